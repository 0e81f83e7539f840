"""How far TRL's own trainers move the weights of a tiny model in three SGD steps, for every loss that they have too.

build/peers/bin/python -m tests.support.trl_movement            # writes tests/fixtures/trl_movement.json
build/peers/bin/python -m tests.support.trl_movement FOLDER     # keeps the weights themselves too: FOLDER/CASE.safetensors

It runs in the peers' environment (`make bench-peers-setup`) and imports nothing of this project's package. Whoever compares
takes model, pairs and cases from here. The fixture has of each case the losses of the steps and, after each step, products of
the movement with fixed random signs: from 32 of them the length of a difference is known within an eighth.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.corpus import BOS, EOS, FIRST_WORD, SPECIALS
from torch import Tensor, nn

from tests.support.models import build_model

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "trl_movement.json"
STEPS, PER_STEP, SIGNS = 3, 4, 32
VOCABULARY, RANK, ALPHA = 160, 4, 8
METHODS = ("lora", "full")


@dataclass(frozen=True)
class Case:
    """A loss as both sides name it.

    Attributes:
        trainer: dpo, cpo, orpo or kto.
        theirs: of the trainer's configuration.
        ours: of the section `preference`.
        rate: the learning rate; losses whose gradients are small get a large one, so that fp32 can tell the movement.
        micro_batch: rows that TRL computes together; 1 where its term would be another one for several rows.
        seed: of the weights that train, before step 1.
    """

    trainer: str
    theirs: dict[str, Any]
    ours: dict[str, Any]
    rate: float
    micro_batch: int = PER_STEP
    seed: int = 2


def _dpo(ours: dict[str, Any], rate: float = 0.3, **theirs: Any) -> Case:
    return Case("dpo", {"loss_type": ours["loss"]} | theirs, ours, rate)


CASES = {
    "sigmoid": _dpo({"loss": "sigmoid"}),
    "robust": _dpo({"loss": "robust", "label_smoothing": 0.1}, label_smoothing=0.1),
    "hinge": _dpo({"loss": "hinge"}),
    "ipo": _dpo({"loss": "ipo"}, rate=0.005),
    "sigmoid_norm": _dpo({"loss": "sigmoid_norm", "beta": 2.0}, rate=0.1, beta=2.0),
    "apo_zero": _dpo({"loss": "apo_zero"}),
    "apo_down": _dpo({"loss": "apo_down"}),
    "ld": _dpo({"loss": "sigmoid", "ld_alpha": 0.5}, ld_alpha=0.5),
    # TRL's sft term is the mean token of a micro-batch: of one pair, that of the pair.
    "rpo": Case(
        "dpo",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 2.0]},
        {"loss": "sigmoid", "sft_weight": 2.0},
        0.1,
        1,
    ),
    "simpo": Case(
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
        {"loss": "simpo", "beta": 2.0, "margin": 1.0},
        0.1,
    ),
    # Its likelihood is that of the prompt too, and a mean over a micro-batch: prompts are one token here, which nothing predicts.
    "orpo": Case("orpo", {"beta": 0.1}, {"loss": "orpo", "beta": 0.1}, 0.3, 1),
    "kto": Case(
        "kto",
        {"loss_type": "kto", "desirable_weight": 1.5, "train_sampling_strategy": "sequential"},
        {"loss": "kto", "desirable_weight": 1.5},
        0.3,
        seed=13,  # the reference point is above 0 in most steps, and cut off at 0 in one
    ),
    "apo_zero_unpaired": Case("kto", {"loss_type": "apo_zero_unpaired"}, {"loss": "apo_zero_unpaired"}, 0.3),
}


@dataclass(frozen=True)
class Row:
    """Token ids; of marked answers `chosen` alone counts, with its mark."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    good: bool = True


def rows_of(name: str) -> list[Row]:
    """The rows of all steps of a case, in their order; the prompt begins with BOS, answers end with EOS."""
    draw = np.random.Generator(np.random.Philox(key=[5, 0]))

    def words(least: int, most: int) -> list[int]:
        return draw.integers(FIRST_WORD, VOCABULARY, int(draw.integers(least, most + 1))).tolist()

    made = []
    for number in range(STEPS * PER_STEP):
        prompt, chosen, rejected = words(2, 12), words(1, 14), words(1, 14)
        if number % PER_STEP == 1:
            rejected = [*chosen[:2], *rejected]  # answers that begin alike
        made.append(Row([BOS] if name == "orpo" else [BOS, *prompt], [*chosen, EOS], [*rejected, EOS], number % 3 != 0))
    return made


def mismatched(name: str) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer of the row before in the step; of the first row that of the last one) as TRL's KTO pairs them."""
    rows, obtained = rows_of(name), []
    for first in range(0, len(rows), PER_STEP):
        step = rows[first : first + PER_STEP]
        obtained += [(row.prompt, step[place - 1].chosen) for place, row in enumerate(step)]
    return obtained


def plain_model() -> Any:
    """A Llama whose weights numpy has drawn: the same everywhere."""
    model = build_model("llama", vocab_size=VOCABULARY, hidden_size=32).float()
    model.set_attn_implementation("eager")
    draw(model, seed=1, spread=0.15)
    return model


def draw(model: nn.Module, *, seed: int, spread: float, away: bool = False) -> None:
    """Normal numbers in the place of what trains, or added to it: to vectors, and where weights are to move away."""
    generator = np.random.Generator(np.random.Philox(key=[seed, 7]))
    with torch.no_grad():
        for name, weight in sorted(trained(model).items()):
            fresh = generator.standard_normal(tuple(weight.shape)) * spread
            base = (
                weight.double()
                if weight.dim() < 2 or away and "lora_" not in name
                else torch.zeros_like(weight).double()
            )
            weight.copy_((base + torch.from_numpy(fresh)).float())


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, under names that do not depend on how the adapter is called."""
    return {name.replace(".default.", "."): weight for name, weight in model.named_parameters() if weight.requires_grad}


def kept(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what trains."""
    return {name: weight.detach().clone() for name, weight in trained(model).items()}


def signs(movement: dict[str, Tensor]) -> list[float]:
    """Products of the whole movement with fixed random signs, in fp64."""
    whole = torch.cat([movement[name].double().flatten() for name in sorted(movement)]).numpy()
    generator = np.random.Generator(np.random.Philox(key=[11, 0]))
    return [float(f"{(generator.integers(0, 2, len(whole)) * 2 - 1) @ whole:.10g}") for _ in range(SIGNS)]


def _texts(rows: list[Row], *, marked: bool) -> list[dict[str, Any]]:
    names = {token: name for name, token in SPECIALS.items()}

    def text(ids: list[int]) -> str:
        return " ".join(names.get(token, f"w{token}") for token in ids)

    if marked:
        return [
            {"prompt": text(row.prompt) + " ", "completion": text(row.chosen[:-1]), "label": row.good} for row in rows
        ]
    return [
        {"prompt": text(row.prompt) + " ", "chosen": text(row.chosen[:-1]), "rejected": text(row.rejected[:-1])}
        for row in rows
    ]


@dataclass
class Recorded:
    """What a training has left.

    Attributes:
        losses: of the steps.
        weights: what trains before step 1 and after each.
    """

    losses: list[float] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)


def train(name: str, method: str, folder: Path) -> Recorded:
    """TRL's trainer on a case."""
    from benchmarks.inputs import word_tokenizer
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    case, rows = CASES[name], rows_of(name)
    settings, trainer_class = _trainer(case.trainer)
    config = settings(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=case.micro_batch,
        gradient_accumulation_steps=PER_STEP // case.micro_batch,
        learning_rate=case.rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="sgd",
        max_grad_norm=0.0,
        weight_decay=0.0,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        **({"train_sampling_strategy": "sequential"} | case.theirs),
    )
    given: dict[str, Any] = {}
    if method == "lora":
        given["peft_config"] = LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    elif case.trainer in ("dpo", "kto"):
        given["ref_model"] = plain_model()

    recorded = Recorded()

    class Record(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            recorded.weights.append(kept(model))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                recorded.losses.append(float(logs["loss"]))

    trainer = trainer_class(
        model=plain_model(),
        args=config,
        train_dataset=Dataset.from_list(_texts(rows, marked=case.trainer == "kto")),
        processing_class=word_tokenizer(VOCABULARY),
        callbacks=[Record()],
        **given,
    )
    _check_tokens(trainer.train_dataset, rows, case.trainer)
    move_away(trainer.model, case)
    recorded.weights.append(kept(trainer.model))
    trainer.train()
    return recorded


def move_away(model: nn.Module, case: Case) -> None:
    """From what the reference is: margins of 0 would prove less."""
    draw(model, seed=case.seed, spread=0.05, away=True)


def _trainer(kind: str) -> tuple[Any, Any]:
    if kind == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOConfig, DPOTrainer
    if kind == "kto":
        from trl import KTOConfig, KTOTrainer

        return KTOConfig, KTOTrainer
    if kind == "cpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOConfig, ORPOTrainer


def _check_tokens(dataset: Any, rows: list[Row], kind: str) -> None:
    for made, row in zip(dataset, rows, strict=True):
        if kind == "dpo":
            obtained = made["prompt_ids"], made["chosen_ids"], made["rejected_ids"]
        elif kind == "kto":
            obtained = made["prompt_ids"], made["completion_ids"], row.rejected
        else:
            size = len(row.prompt)
            obtained = made["prompt_input_ids"], made["chosen_input_ids"][size:], made["rejected_input_ids"][size:]
        if obtained != (row.prompt, row.chosen, row.rejected):
            raise SystemExit(f"TRL's {kind} trainer makes other tokens: {obtained} of {row}")


def main() -> None:
    """All cases."""
    from importlib.metadata import version

    from safetensors.torch import save_file

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    found: dict[str, Any] = {}
    for name in CASES:
        for method in METHODS:
            with tempfile.TemporaryDirectory() as scratch:
                recorded = train(name, method, Path(scratch))
            start = recorded.weights[0]
            movements = [{key: after[key] - start[key] for key in start} for after in recorded.weights[1:]]
            found[f"{name}-{method}"] = {
                "losses": recorded.losses,
                "norms": [float(sum(part.double().square().sum() for part in by.values())) ** 0.5 for by in movements],
                "signs": [signs(movement) for movement in movements],
            }
            if folder is not None:
                flat = {f"{step}/{key}": part for step, by in enumerate(recorded.weights) for key, part in by.items()}
                folder.mkdir(parents=True, exist_ok=True)
                save_file(flat, folder / f"{name}-{method}.safetensors")
    versions = {name: version(name) for name in ("trl", "torch", "transformers", "peft")}
    text = json.dumps({"versions": versions, "cases": found}, indent=None)
    (FIXTURE if folder is None else folder / "movement.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
