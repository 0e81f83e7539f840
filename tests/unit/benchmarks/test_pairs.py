"""The preference benchmark's pairs, its arithmetic, and the gate's plain computation."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import preference, preference_gate
from benchmarks.corpus import EOS
from benchmarks.inputs import word_tokenizer
from benchmarks.pairs import KINDS, LENGTHS, Pair, lengths_of, pairs, read_pairs, save_pairs
from benchmarks.rounds import WorkerError
from benchmarks.shapes import SHAPES
from benchmarks.variants import PAIR_VARIANTS
from tests.support.models import build_model


@pytest.mark.parametrize("kind", KINDS)
def test_text_and_ids_are_the_same_pairs(kind: str, tmp_path: Path):
    """What tokenizes the messages gets the ids of the others; the same pairs come of the same seed."""
    made = pairs(kind, 6, vocabulary=200)
    assert made == pairs(kind, 6, vocabulary=200) != pairs(kind, 6, vocabulary=200, seed=1)
    assert read_pairs(save_pairs(tmp_path, made)) == made
    tokenizer = word_tokenizer(200)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, pair in zip(rows, made, strict=True):
        for name, whole in zip(("chosen", "rejected"), pair.sides(), strict=True):
            text = tokenizer.apply_chat_template(row["prompt"] + row[name], tokenize=False)
            assert tokenizer(text)["input_ids"] == whole
            assert whole[-1] == EOS
        assert pair.tokens == sum(map(len, pair.sides()))


def test_few_pairs_have_the_lengths_of_all():
    """40 of the 128 real ones: within a tenth of the mean. The long ones have the prompts that sharing is for."""
    everyone = json.loads(LENGTHS.read_text(encoding="utf-8"))
    assert len(everyone) == 128
    assert all(prompt + max(answers) <= 1024 for prompt, *answers in everyone)

    def mean(rows: Any) -> float:
        return sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in rows) / len(rows)

    assert mean(lengths_of("dolly", 40)) == pytest.approx(mean(everyone), rel=0.1)
    assert all(320 <= prompt <= 480 and 70 <= a <= 130 and 70 <= b <= 130 for prompt, a, b in lengths_of("long", 40))


def test_ratios_are_those_of_the_same_round():
    def step(wall: float, peak: int, warmup: bool = False) -> dict[str, Any]:
        return {"tokens": 100, "slots": 80, "wall": wall, "cpu": wall, "peak_bytes": peak, "warmup": warmup}

    steps = {
        "ours": [step(9.0, 5, warmup=True), step(1.0, 3), step(2.0, 3)],
        "trl": [step(9.0, 9, warmup=True), step(4.0, 20), step(6.0, 20)],
    }
    rows = preference.summarise(steps, threads=1, cores=1)
    assert (rows["trl"]["ours_is_faster_wall"]["min"], rows["trl"]["ours_is_faster_wall"]["max"]) == (3.0, 4.0)
    assert (rows["ours"]["steps"], rows["ours"]["slots_per_token"]) == (2, 0.8)
    assert rows["trl"]["ours_memory_ratio"] == 0.25  # loading and the warm-up count for memory


def test_variants_name_their_micro_batches():
    for variant in PAIR_VARIANTS.values():
        assert variant.micro_batch is not None
        assert preference.PER_STEP % variant.micro_batch == 0
    assert PAIR_VARIANTS["trl-fp32-4"].settings == ("bf16=False",)


def test_the_gates_plain_step_is_dpo():
    """Its loss without a margin is log 2, and its gradient pushes the two answers apart by half of beta."""
    model, pair = build_model("llama"), Pair([5, 6, 7], [8, 9, EOS], [10, EOS])
    with torch.no_grad():
        before = [float(value) for value in preference_gate.sums(model, pair)]
    loss, found = preference_gate.plain_step(model, [pair], [before])
    assert loss == pytest.approx(0.693147, rel=1e-5)
    model.zero_grad()
    chosen, rejected = preference_gate.sums(model, pair)
    (-0.05 * (chosen - rejected)).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        assert torch.allclose(found[name], weight.grad, rtol=1e-4, atol=1e-7), name


def test_a_loss_that_is_another_one_keeps_the_gate_shut():
    found = preference_gate.Findings("fp32", 2e-5, 1e-6, 1e-6, "w", 0.0)
    with pytest.raises(preference_gate.GateError, match="loss 2"):
        found.refuse()


def test_a_kept_gate_is_that_of_a_commit_and_of_the_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The gate of our own variants needs no TRL; one of changes that nobody has committed says nothing."""
    folder = tmp_path / "preference-tiny-lora-gate"
    folder.mkdir()
    given = Namespace(gate="kept", work=tmp_path, model="tiny", method="lora", variants=["ours"])
    for of, now, variants, kept in (
        ("abc", "abc", ["ours"], True),
        ("abc", "abc", ["ours", "trl"], False),
        ("abc", "a0c", ["ours"], False),
        ("abc+changes", "abc+changes", ["ours"], False),
    ):
        (folder / "gate.json").write_text(json.dumps({"commit": of, "findings": {"ours": []}}), encoding="utf-8")
        monkeypatch.setattr(preference.plot, "commit", lambda now=now: now)
        given.variants = variants
        if kept:
            assert preference.gate_of(given, SHAPES["tiny"]) == {"ours": []}
        else:
            with pytest.raises(WorkerError, match="open it with --gate only"):
                preference.gate_of(given, SHAPES["tiny"])


def test_a_table_without_a_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "page.md"
    page.write_text("text\n", encoding="utf-8")
    monkeypatch.setattr(preference.plot, "PAGE", page)
    monkeypatch.setattr(preference, "table", lambda result: "a table")
    result = {"model": "tiny", "method": "lora", "kind": "dolly"}
    with pytest.raises(SystemExit, match="no place for this result"):
        preference.publish(result)
    page.write_text(
        "<!-- bench preference-tiny-lora-dolly -->\n<!-- end preference-tiny-lora-dolly -->\n", encoding="utf-8"
    )
    preference.publish(result)
    assert "a table" in page.read_text(encoding="utf-8")
