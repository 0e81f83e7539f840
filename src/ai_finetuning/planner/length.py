"""How long a run takes, part by part: steps, evaluations, sample answers, and the verdict behind them. Needs no torch.

What a plan says before a run, and the page for each of its lengths, is this one sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import Reason
from .gpus import Card
from .presets import Preset
from .speed import Speed, duration

# Evaluations of a run whose settings say nothing of them (execution/data_order.py).
USUAL_EVALUATIONS = 10
# Of a sample answer in tokens; of all sample answers of one moment in seconds.
ANSWER_TOKENS, ANSWERS_SECONDS = 128, 20.0
# Most seconds of a verdict: a share of those of the training, or so many where that is less.
_SHARE, _LEAST_SECONDS = 0.1, 120.0
# Sample answers of the model card; characters of the general prose that a verdict scores, and of a token of it.
CARD_QUESTIONS, PROSE_CHARACTERS, _CHARACTERS = 4, 28_800, 1.4
# Most evaluation rows that a verdict asks: more would not change what is seen (an interval of 2 points).
MOST_JUDGED = 2000
# Tokens of an answer that the verdict asks of a model that does not end it, and how much cheaper one is among 16 at a time.
_JUDGED_TOKENS, _TOGETHER = 64, 5.0
# Share of the answers of a model in training that run to their limit all the same (kotoha-tiny, 180 rows: 9 of 100).
_ENDLESS = 0.1
# A generated token runs every layer alone and reads every weight once: seconds of a layer with an adapter, whatever it
# computes (kotoha-tiny on one core: 11.5 ms a token), and bytes a second of a CPU's memory and of a GPU not in the table.
_LAYER_SECONDS, _CPU_BYTES, _GPU_BYTES = 1.3e-3, 1e10, 5e11
# Share of the whole from which a part is named beside it.
_LARGE = 0.25


def time_limit(seconds: float) -> float:
    """Seconds that the verdict of a training of so many may take."""
    return max(_LEAST_SECONDS, _SHARE * seconds)


@dataclass(frozen=True)
class Asked:
    """What a model is asked in its run.

    Attributes:
        questions: at each evaluation (training.evaluation.generate).
        samples: for report and card, before and after (training.runtime.report_samples).
        judged: by the verdict, of each side; None where there is none.
        answers_a_row: of the data; two of pairs.
        token_seconds: of a generated token by formula.
    """

    questions: int = 0
    samples: int = 0
    judged: int | None = None
    answers_a_row: int = 1
    token_seconds: float = 0.0


@dataclass(frozen=True)
class Beside:
    """What a run does beside its steps, in tokens.

    Attributes:
        evaluations: after steps; there is one before the first step too.
        eval_tokens: of one of them.
        references: tokens that are scored before the first step.
        answer_tokens: of an answer as the data has them.
        questions, samples, judged, token_seconds: as Asked has them.
    """

    evaluations: int = 0
    eval_tokens: float = 0.0
    references: float = 0.0
    questions: int = 0
    samples: int = 0
    answer_tokens: float = 0.0
    judged: int | None = None
    token_seconds: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Beside:
        """From a plan's JSON."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def under(self, preset: Preset, epochs: int, total: int, *, by_steps: bool) -> Beside:
        """The same of a run by a preset.

        Args:
            epochs, total: its epochs and steps.
            by_steps: this run evaluates after steps, and one by a preset that says nothing of it as often.
        """
        if not self.evaluations:
            return self
        changes = preset.settings(1, evaluates=True)
        each = changes.get("training.evals_per_epoch")
        often = self.evaluations if by_steps else USUAL_EVALUATIONS
        return replace(
            self,
            evaluations=min(total, often) if each is None else each * epochs,
            questions=changes.get("training.evaluation.generate", 0),
        )


@dataclass(frozen=True)
class Parts:
    """Seconds of a run.

    Attributes:
        steps: with old rows.
        evaluations: with the references of all rows before the first step.
        answers: samples at each evaluation, and those of report and card.
        at_evaluations: of them those at each evaluation.
        verdict: at the end; of a run that changes all weights also before the first step.
    """

    steps: float
    evaluations: float
    answers: float
    at_evaluations: float
    verdict: float

    @property
    def training(self) -> float:
        """Until the model is saved."""
        return self.steps + self.evaluations + self.answers

    @property
    def total(self) -> float:
        """Until the verdict is there."""
        return self.training + self.verdict

    def large(self) -> Reason | None:
        """What takes a large part of the time beside the steps; None where nothing does."""
        named = (
            (Reason("回答の例", "sample answers"), self.answers),
            (Reason("判定", "the verdict"), self.verdict),
            (Reason("評価", "evaluations"), self.evaluations),
        )
        found = [(name, seconds) for name, seconds in named if seconds >= max(1.0, _LARGE * self.total)]
        if not found:
            return None
        ja = "、".join(f"{name.ja} 約 {duration(seconds)}" for name, seconds in found)
        en = ", ".join(f"{name.en} about {duration(seconds)}" for name, seconds in found)
        return Reason(f"うち{ja}", f"of which {en}")

    def plain(self) -> dict[str, float]:
        """For JSON, with the sums."""
        return asdict(self) | {"training": self.training, "total": self.total}


def parts(beside: Beside, tokens: float, speed: Speed) -> Parts:
    """The seconds of a run.

    Forward alone is a third of a step's work for a token (arXiv:2001.08361, section 2.1). Answers of a model before training
    run to their limit, as those of a base do; later ones are as long as the data's, but for a share of them.

    Args:
        tokens: that go through its steps.
    """
    steps = speed.seconds(tokens)
    rounds = beside.evaluations + 1 if beside.evaluations else 0
    forward = rounds * beside.eval_tokens + beside.references
    evaluated = speed.seconds(forward / 3)
    each = speed.token_seconds or beside.token_seconds
    usual = min(ANSWER_TOKENS, beside.answer_tokens + 1)
    usual += _ENDLESS * (ANSWER_TOKENS - usual)
    asked = 0.0
    if rounds:
        asked = _answering(beside.questions, ANSWER_TOKENS, each) + (rounds - 1) * _answering(
            beside.questions, usual, each
        )
    others = 0.0
    if beside.samples:
        others = _answering(beside.samples, ANSWER_TOKENS, each) + _answering(beside.samples, usual, each)
        others += _answering(CARD_QUESTIONS, usual, each)
    judged = 0.0
    if beside.judged is not None:
        written = beside.judged * (max(_JUDGED_TOKENS, usual) + usual) * each / _TOGETHER
        scored = 2 * PROSE_CHARACTERS / _CHARACTERS
        judged = min(time_limit(steps + evaluated + asked + others), written + speed.seconds(scored / 3))
    return Parts(steps, evaluated, asked + others, asked, judged)


def _answering(questions: int, tokens: float, each: float) -> float:
    return min(ANSWERS_SECONDS, questions * tokens * each)


def token_seconds(
    parameters: int, layers: int, *, gpu: bool, card: Card | None = None, bits: int | None = None
) -> float:
    """Seconds of a generated token by formula: what layers take whatever they compute, and all weights read once.

    Args:
        card: the GPU, where the table has it.
        bits: of quantized weights; None for 16 on a GPU and 32 on a CPU.
    """
    rate = card.bandwidth * 1e9 if card is not None else _GPU_BYTES if gpu else _CPU_BYTES
    return layers * _LAYER_SECONDS + parameters * (bits or (16 if gpu else 32)) / 8 / rate
