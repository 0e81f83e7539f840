"""Models over several devices find the likelihoods and give the answers of one: on virtual GPUs, no two of which meet in an
operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.commands import call
from tests.support.models import build_model, build_tokenizer, save_tiny_model
from tests.support.parity import Case, model_of
from tests.support.virtual import virtual_devices

from ai_finetuning.engine.loss import make_loss
from ai_finetuning.errors import ConfigError
from ai_finetuning.evaluation import device_maps
from ai_finetuning.evaluation.before_after import Loaded, Side
from ai_finetuning.evaluation.device_maps import Placing
from ai_finetuning.evaluation.likelihood import Question, Scored, score_questions, score_scored, score_texts
from ai_finetuning.evaluation.spread_likelihood import SpreadLikelihoods
from ai_finetuning.inference import session
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.generation import generate_answers
from ai_finetuning.models.parts import unwrapped
from ai_finetuning.models.placement import spread
from ai_finetuning.models.source import find_model
from ai_finetuning.parallel.strategies.device_map import ModelParallel
from ai_finetuning.planner.layers import split_model
from ai_finetuning.planner.memory import Workload

QUESTIONS = [
    Question("夏の次の季節は？\n回答：", ("秋", "冬です", "春")),
    Question("夏の次の日の長さは？\n回答：", ("長い", "短い")),
    Question("夏は？\n回答：", ("暑い", "寒い", "涼しい")),
]
GIB = 2**30


def gpus(monkeypatch: pytest.MonkeyPatch, *gib: float) -> None:
    there = {index: int(size * GIB) for index, size in enumerate(gib)}
    monkeypatch.setattr(device_maps, "free_gpus", lambda: there)


def halves(model: Any) -> dict[str, torch.device]:
    work = Workload(trainable=0, bits=None, frozen_bytes=4, tokens=64, compute_bytes=4)
    return split_model(model, work, dict.fromkeys((0, 1), 2**31), checkpointing=True).device_map()


@pytest.mark.parametrize(
    "case",
    [
        Case("llama", "lora", "documents", layers=4),
        Case("gemma2", "full", "padded", layers=4),
        Case("qwen3_tied", "lora", "padded", layers=4),
        Case("llama", "qlora", "documents", layers=4),
    ],
    ids=str,
)
def test_two_devices_find_the_likelihoods_of_one(case: Case):
    tokenizer = build_tokenizer()
    model = model_of(case)
    expected, reason = score_questions(model, tokenizer, QUESTIONS)
    assert reason is None
    prose = score_texts(model, tokenizer, ["春は花が咲きます。"])
    again, device_map = model_of(case), halves(build_model(case.kind, layers=4))
    assert set(device_map.values()) == {torch.device("cuda", 0), torch.device("cuda", 1)}
    with virtual_devices() as places:
        spread(unwrapped(again), device_map)
        obtained, why = score_questions(again, tokenizer, QUESTIONS)
        spread_prose = score_texts(again, tokenizer, ["春は花が咲きます。"])
    assert why is None
    assert (torch.device("cuda", 0), torch.device("cuda", 1)) in places.moves
    for mine, theirs in zip([*obtained, spread_prose], [*expected, prose], strict=True):
        assert [item.nats for item in mine] == pytest.approx([item.nats for item in theirs], abs=1e-5)
        assert [item.greedy for item in mine] == [item.greedy for item in theirs]


def test_a_run_over_two_devices_finds_them_in_its_evaluation():
    """What training reads off its own evaluation under `model_parallel`."""
    case = Case("llama", "lora", "padded", layers=4)
    items = [Scored((5, 6, 7, 8, 9, 10, 11), 3, 4), Scored((12, 13, 14, 15), 1, 3)]
    expected = score_scored(model_of(case), items)
    model, found = model_of(case), SpreadLikelihoods(items)
    with virtual_devices() as places:
        strategy = ModelParallel(halves(build_model(case.kind, layers=4)))
        strategy.prepare(model, make_loss(logits_to_keep=True, predictions=found.predictions))
        obtained = found.score(strategy, batch_size=2, pad_token_id=0)
        strategy.close()
    assert places.moves
    assert [item.nats for item in obtained] == pytest.approx([item.nats for item in expected], abs=1e-5)


def test_an_evaluation_loads_base_and_adapter_over_two_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = save_tiny_model(tmp_path / "base")
    adapted = add_lora(build_model("llama"), r=2, alpha=4, dropout=0.0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(str(tmp_path / "adapter"), safe_serialization=True)
    side = Side("after", str(tmp_path / "adapter"), str(tmp_path / "adapter"), base=str(base))
    asked = [[{"role": "user", "content": "夏の次は？"}]]

    def measured(loaded: Loaded) -> tuple[list[float], list[str]]:
        opened = loaded.get(side)
        found, answers = [], []
        for on in (False, True):
            with opened.adapter(on):
                scores, _ = score_questions(opened.model, opened.tokenizer, QUESTIONS)
                found += [item.nats for row in scores for item in row]
                answers += [
                    answer.text
                    for answer in generate_answers(
                        opened.model, opened.tokenizer, asked, do_sample=False, max_new_tokens=6
                    )
                ]
        return found, answers

    expected = measured(Loaded(dtype="float32"))
    assert expected[0][: len(expected[0]) // 2] != expected[0][len(expected[0]) // 2 :]
    gpus(monkeypatch, 4, 4)
    read = session.load_causal_lm(str(base), dtype="float32")

    def load(_: Any, *, device_map: Mapping[str, torch.device], **options: Any) -> Any:
        """transformers reads weights onto real GPUs only: what was read before, spread as after that."""
        assert options["dtype"] == "float32"
        spread(read, device_map)
        return read

    monkeypatch.setattr(session, "load_causal_lm", load)
    with virtual_devices() as places:
        obtained = measured(Loaded(place=Placing("balanced"), dtype="float32"))
    assert (torch.device("cuda", 0), torch.device("cuda", 1)) in places.moves
    assert obtained[0] == pytest.approx(expected[0], abs=1e-5)
    assert obtained[1] == expected[1]


def test_where_a_model_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = find_model(str(save_tiny_model(tmp_path / "base")))
    assert Placing("auto")(source, None, "auto") is None  # no GPU
    gpus(monkeypatch, 8, 8)
    assert Placing("auto")(source, None, "auto") is None  # it fits on one
    assert Placing("none")(source, None, "auto") is None
    both = {torch.device("cuda", 0), torch.device("cuda", 1)}
    divided = Placing("balanced")(source, None, "auto")
    assert divided is not None
    assert set(divided.values()) == both
    gpus(monkeypatch, 0.1, 0.1)
    for how in ("auto", "balanced"):
        with pytest.raises(ConfigError, match="does not fit, even over the visible GPUs"):
            Placing(how)(source, None, "auto")
    gpus(monkeypatch, 8)
    assert Placing("auto")(source, 4, "float32") is None


def test_what_this_machine_cannot_do_is_said_first(kotoha: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "eval")
    assert call("eval", kotoha, "--tasks", "prose", "--device-map", "balanced", "--out", out) == 78
    assert "two or more visible GPUs (0 visible)" in capsys.readouterr().err
    assert call("eval", kotoha, "--tasks", "prose", "--device-map", "sequential", "--out", out) == 78
    assert "--device-map is sequential; it must be one of auto, balanced, none" in capsys.readouterr().err
