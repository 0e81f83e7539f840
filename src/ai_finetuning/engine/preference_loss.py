"""Preference losses as a step computes them: pairs or marked answers in, a sum over them out, with what is to be logged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config.preference import LOSSES, PreferenceConfig
from ..messages import warn
from ..parallel.batch import Batch, LossFunction, Rows
from ..parallel.strategy import Strategy
from .answer_scores import AnswerScores
from .preference import PairScores, beta_of, marked_losses, marked_metrics, metric_names, pair_losses, pair_metrics

# How far the better answers' log-probability may fall (nats of an answer; of a token without a reference), and the decay of
# what is watched.
_FALLEN, _FALLEN_BY_TOKEN, _DECAY = 1.0, 0.1, 0.9


class PreferenceLoss:
    """The loss function of a run over pairs or marked answers. Batches without answers have the usual token loss.

    It is one object for the strategy, which calls it for every micro-batch, and the loop, which reads what it has summed. The
    same calls find the log-probabilities before step 1 (collect) and KTO's reference point (find_rest), so that both come by
    the way of the step, on every strategy.

    Args:
        usual: the token loss of the same way.
        scores: log-probabilities of a batch's answers.
        settings: with the loss by name.
    """

    def __init__(self, usual: LossFunction, scores: AnswerScores, settings: PreferenceConfig) -> None:
        self._usual, self._scores, self.settings = usual, scores, settings
        self.facts = LOSSES[settings.loss or "sigmoid"]
        self._names = (*metric_names(settings), *_COUNTS)
        self._found: list[Tensor] | None = None
        self._ratios: list[Tensor] | None = None
        self._at_rest = 0.0
        self.watch = FallingAnswers(settings)
        self.begin()

    @property
    def has_rest(self) -> bool:
        """Whether every step needs KTO's reference point."""
        return self.settings.loss == "kto"

    def begin(self, *, evaluating: bool = False) -> None:
        """Metrics begin anew: of a step, or of an evaluation.

        Args:
            evaluating: the loss is the named one alone. `sft_weight` holds training back, and would decide which weights are
                the best ones: it outweighs what the pairs are compared by (docs/decisions/0176).
        """
        self._sums: Tensor | None = None
        self._counted = replace(self.settings, sft_weight=0.0) if evaluating else self.settings

    def __call__(self, model: nn.Module, batch: Rows) -> Tensor:
        """The sum of the losses of a micro-batch's pairs or marked answers."""
        answers = batch.answers
        if answers is None:
            return self._usual(model, batch)
        policy = self._scores(model, batch)
        if self._found is not None:
            self._found.append(policy.detach().float())
            return policy.sum() * 0
        if self.facts.reference and answers.reference is None:
            raise ValueError(f"the loss {self.settings.loss} compares with a reference, and the batch has none")
        if answers.good is None:
            scores = PairScores(policy, answers.counts, answers.reference if self.facts.reference else None)
            losses, live = pair_losses(scores, self._counted), scores.live
            metrics = pair_metrics(scores, self.settings) | {"pairs": live.sum()}
        else:
            assert answers.reference is not None
            live = answers.counts[:, 0] > 0
            whole = policy[:, 0].sum(dim=-1)
            ratio = torch.where(live, whole - answers.reference[:, 0].sum(dim=-1), torch.zeros_like(whole))
            if self._ratios is not None:
                self._ratios.append(torch.stack([ratio.detach().double().sum(), live.sum().double()]))
                return policy.sum() * 0
            rest = ratio.new_tensor(self._at_rest) if self.has_rest else None
            losses = marked_losses(ratio, answers.good, self.settings, rest)
            losses = torch.where(live, losses, torch.zeros_like(losses))
            metrics = marked_metrics(ratio.detach(), whole.detach(), answers.good, live, self.settings)
        values = [metrics.get(name, policy.new_zeros(())) for name in self._names]
        mine = torch.stack([value.detach().double() for value in values])
        self._sums = mine if self._sums is None else self._sums + mine
        return losses.sum()

    def take(self, strategy: Strategy) -> dict[str, float]:
        """The metrics since begin(), over all ranks, in a message of their own; every process has to call it."""
        summed, _ = strategy.agree(self.sums(torch.device("cpu")).tolist())
        return self.metrics(summed)

    def sums(self, device: torch.device) -> Tensor:
        """[n] fp64: what this rank has summed since begin(), to be summed over the data ranks for metrics(); it is not
        waited for.
        """
        mine = torch.zeros(len(self._names), dtype=torch.float64) if self._sums is None else self._sums
        self.begin()
        return mine.to(device)

    def metrics(self, summed: Sequence[float]) -> dict[str, float]:
        """The metrics, of sums() over all data ranks."""
        sums = dict(zip(self._names, summed, strict=True))
        if self.facts.objective == "kto":
            counted = {"chosen": sums.pop("good"), "rejected": sums.pop("bad")}
            sums.pop("pairs")
            obtained = {
                name: value / count for name, value in sums.items() if (count := counted[name.rpartition("/")[2]])
            }
            if all(counted.values()):
                obtained["rewards/margins"] = obtained["rewards/chosen"] - obtained["rewards/rejected"]
            rest = {"kl": self._at_rest} if self.has_rest else {}
            return obtained | rest | {"good": counted["chosen"], "bad": counted["rejected"]}
        pairs = sums["pairs"]
        return {name: value / max(1.0, pairs) for name, value in sums.items() if name not in _COUNTS}

    def find_rest(self, strategy: Strategy, run: Callable[[], Any]) -> None:
        """Sets KTO's reference point: the mean of log(policy / reference) over answers to other questions, at least 0.

        Args:
            run: has the strategy run through this rank's batches of them; every process has to call it.
        """
        self._ratios = []
        try:
            run()
            mine = torch.stack(self._ratios).sum(dim=0).tolist() if self._ratios else [0.0, 0.0]
        finally:
            self._ratios = None
        (total, count), _ = strategy.agree(mine)
        self._at_rest = max(0.0, total / max(1.0, count))

    @contextlib.contextmanager
    def collect(self) -> Iterator[list[Tensor]]:
        """Inside, log-probabilities of every micro-batch of this process, [units, sides, 2] fp32, go into the list, and no
        loss is computed. They stay on the device: copying each would make the host wait for it.
        """
        found: list[Tensor] = []
        self._found = found
        try:
            yield found
        finally:
            self._found = None


_COUNTS = ("pairs", "good", "bad")


def score_answers(strategy: Strategy, loss: PreferenceLoss, batches: Sequence[Batch]) -> np.ndarray:
    """[units, sides, 2] fp32: log-probabilities of all batches' answers in their order, on every process; every process has
    to call it.
    """
    with loss.collect() as found:
        strategy.evaluate(batches)
    mine = [scores.cpu().numpy() for scores in found]
    gathered: dict[int, list[np.ndarray]] = {}
    for rank, parts in strategy.gather((strategy.data_rank, mine)):
        # Equal where ranks see the same rows; of the stages of a pipeline only the last one has any.
        if parts or rank not in gathered:
            gathered[rank] = parts
    size = strategy.data_size
    return np.concatenate([gathered[number % size][number // size] for number in range(len(batches))])


class FallingAnswers:
    """Says once that the better answers become less likely while they win more often against the worse ones."""

    def __init__(self, settings: PreferenceConfig) -> None:
        self._facts, self._beta = LOSSES[settings.loss or "sigmoid"], beta_of(settings)
        self._weighted = "sft_weight" in self._facts.settings and not settings.sft_weight
        self._first: float | None = 0.0 if self._facts.reference else None
        self._mean: tuple[float, ...] | None = None
        self._said = self._facts.objective == "kto"

    def look(self, step: int, row: dict[str, float]) -> None:
        """At a step's metrics."""
        if self._said or "rewards/chosen" not in row:
            return
        seen = row["rewards/chosen"] / self._beta, row["rewards/accuracies"], row["rewards/margins"]
        self._mean = mean = tuple(
            _DECAY * before + (1 - _DECAY) * now for before, now in zip(self._mean or seen, seen, strict=True)
        )
        if self._first is None:
            self._first = mean[0]
        limit = _FALLEN if self._facts.reference else _FALLEN_BY_TOKEN
        # Without a lead the worse answers have not fallen further.
        if mean[0] > self._first - limit or mean[1] <= 0.5 or mean[2] <= 0:
            return
        self._said = True
        way_ja = (
            "preference.sft_weight を 1 にするか、学習率を下げてください"
            if self._weighted
            else "学習率を下げてください"
        )
        way_en = (
            "set preference.sft_weight to 1, or lower the learning rate"
            if self._weighted
            else "lower the learning rate"
        )
        unit_ja, unit_en = ("1 回答", "an answer") if self._facts.reference else ("1 トークン", "a token")
        warn(
            f"ステップ {step}: 良い回答が選ばれる割合は {mean[1]:.0%} に上がりましたが、良い回答そのものの対数確率は {unit_ja}あたり {self._first - mean[0]:.1f} nat 下がりました（悪い回答がさらに下がっています）。{way_ja}。",
            f"step {step}: the better answer wins in {mean[1]:.0%} of the pairs, but its own log-probability has fallen by "
            f"{self._first - mean[0]:.1f} nats {unit_en} (the worse one's still more): {way_en}.",
        )
