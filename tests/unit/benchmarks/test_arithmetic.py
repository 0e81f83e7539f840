"""The benchmark's own arithmetic: what it reads, what it divides by, what it refuses."""

from __future__ import annotations

import json
import statistics

import pytest
from benchmarks import plot, ratios
from benchmarks.corpus import (
    EOS,
    PAD,
    documents,
    label_share,
    picked_steps,
    shuffled,
)
from benchmarks.inputs import read_documents, save_documents
from benchmarks.shapes import SHAPES, flops_per_token
from benchmarks.variants import VARIANTS, groups


def test_documents_have_the_lengths_of_japanese_instruction_data():
    """docs/design/training-step.md: 512 documents, median 116, mean 155, p95 393, at most 1024, 62.6 % with labels."""
    obtained = sorted(map(len, documents(vocabulary=32000)))
    assert len(obtained) == 512
    assert statistics.median(obtained) == pytest.approx(116, abs=1)
    assert statistics.mean(obtained) == pytest.approx(155, rel=0.03)
    assert obtained[int(0.95 * 512)] == pytest.approx(393, rel=0.03)
    assert obtained[-1] == 1024
    assert label_share(documents(vocabulary=32000)) == pytest.approx(0.626, abs=0.02)


def test_documents_are_seeded_and_inside_the_vocabulary():
    """The same seed gives the same ids; none is padding, which would not be counted as a token."""
    corpus = documents(vocabulary=100, seed=3)
    assert corpus == documents(vocabulary=100, seed=3) != documents(vocabulary=100, seed=4)
    ids = [token for item in corpus for token in item.ids]
    assert PAD not in ids
    assert max(ids) < 100
    assert all(item.ids[-1] == EOS and 0 < item.prompt < len(item) for item in corpus)


def test_text_and_ids_are_the_same_documents(tmp_path):
    """A variant that tokenizes the text gets the ids that the other variants are given."""
    from benchmarks.inputs import word_tokenizer

    corpus = documents(16, vocabulary=200)
    save_documents(tmp_path, corpus)
    assert read_documents(tmp_path) == corpus
    tokenizer = word_tokenizer(200)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, item in zip(rows, corpus, strict=True):
        messages = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        assert tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"] == item.ids
        assert len(tokenizer(row["instruction"])["input_ids"]) == item.prompt


def test_the_counted_steps_stand_for_the_corpus():
    """Mean length of the counted steps is the corpus's within 2 %; the longest document is in the first warm-up
    step.
    """
    corpus = documents(vocabulary=1000)
    order = shuffled(corpus, per_step=8, counted=10, warmup=2)
    steps = picked_steps(64, warmup=2, counted=10)
    assert sorted(map(len, order)) == sorted(map(len, corpus))
    assert len(set(steps)) == 12
    assert steps[0] == 0
    assert max(map(len, order[:8])) == 1024
    seen = [len(item) for step in steps[2:] for item in order[8 * step : 8 * step + 8]]
    assert statistics.mean(seen) == pytest.approx(statistics.mean(map(len, corpus)), rel=0.02)


@pytest.mark.parametrize(
    ("model", "method", "expected"),
    [
        # By hand for small (768 x 12 layers, 2048 ffn, 12 heads, 4 of them for keys and values, 32000 words, labels
        # 62.6 %): linears 12 (2 768^2 + 2 768*256 + 3 768*2048) = 75.5M; head 24.6M; adapters 12 * 16 (2*1536 + 2*1024
        # + 3*2816) = 2.6M; attention 3.5 * 2 * 260 * 768 * 12 = 16.8M.
        ("small", "lora", 4 * 75.50e6 + 4 * 24.576e6 * 0.626 + 6 * 2.605e6 + 16.77e6),
        ("small", "full", 6 * 75.50e6 + 6 * 24.576e6 * 0.626 + 16.77e6),
        # The table of docs/design/training-step.md.
        ("tiny", "lora", 50e6),
        ("tiny", "full", 69e6),
        ("big", "lora", 527e6),
        ("big", "full", 758e6),
    ],
)
def test_flops_of_a_token(model: str, method: str, expected: float):
    """The FLOP limit is the one that the targets were set with."""
    obtained = flops_per_token(SHAPES[model], method, label_share=0.626, mean_length=260)
    assert obtained == pytest.approx(expected, rel=0.01)


def test_parameters_are_those_of_the_model_that_is_built():
    """The formula counts the weights that transformers builds."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES["tiny"].config())
    linears = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
    assert linears == SHAPES["tiny"].linear_parameters


def step(tokens: int, wall: float, cpu: float, **more: float) -> dict[str, float]:
    return {
        "tokens": tokens,
        "slots": 2 * tokens,
        "wall": wall,
        "cpu": cpu,
        "peak_bytes": 100,
        "minor_faults": 0,
        **more,
    }


def test_ratios_are_taken_round_by_round():
    """A round in which the whole machine was half as fast leaves the ratio alone."""
    ours = [step(100, 1, 2), step(100, 2, 4), step(100, 1, 2)]
    peer = [step(100, 3, 6), step(100, 6, 12), step(100, 4, 8)]
    obtained = ratios.paired_ratios(ours, peer, "wall")
    assert obtained == {"median": 3, "min": 3, "max": 4, "pooled": pytest.approx(13 / 4)}


def test_a_disturbed_step_is_marked():
    """More than 5 % of the machine in other hands; without the system's word for it, wall time over CPU time per
    thread.
    """
    assert not ratios.contaminated(step(1, wall=1.0, cpu=1.6, machine_busy=1.65), threads=2, cores=2)
    assert ratios.contaminated(step(1, wall=1.0, cpu=1.6, machine_busy=1.9), threads=2, cores=2)
    assert ratios.contaminated(step(1, wall=1.0, cpu=0.9, machine_busy=None), threads=1, cores=2)


def result() -> dict:
    """A result of two variants, as training_step.py writes it."""
    steps = {"ours": [step(100, 1, 2, machine_busy=2.0)] * 2, "naive": [step(80, 4, 8, machine_busy=8.0)] * 2}
    summary = ratios.summarise([steps], base="ours", flops=1e6, ceiling=4e8, threads=2, cores=2, device="cpu")
    return {
        "model": "tiny",
        "method": "lora",
        "device": "cpu",
        "threads": 2,
        "date": "2026-01-01T00:00:00Z",
        "commit": "abc",
        "hardware": {"cpu": "a CPU"},
        "documents": {"per_step": 8},
        "ceiling_gflops": {"used": 0.4},
        "limit_tokens_per_second": 400.0,
        "summary": summary,
        "labels": {"ours": "this", "naive": "that"},
    }


def test_summary_divides_real_tokens_by_time_and_by_the_limit():
    """100 tokens/s of a limit of 400; five times as fast as 20 tokens/s; half of the slots are padding."""
    rows = result()["summary"]
    assert rows["ours"]["tokens_per_second"]["median"] == 100
    assert rows["ours"]["limit_share"] == 0.25
    assert rows["naive"]["ours_is_faster_wall"]["median"] == 5
    assert rows["naive"]["useful_slots"] == 0.5
    assert rows["ours"]["contaminated_steps"] == 0


def test_a_peer_is_compared_with_the_steps_of_its_own_group():
    """Ours was half as fast while the second group ran; both peers are a quarter as fast as ours beside them."""
    parts = [
        {"ours": [step(100, 1, 2)], "hf": [step(100, 4, 8)]},
        {"ours": [step(100, 2, 4)], "trl": [step(100, 8, 16)]},
    ]
    rows = ratios.summarise(parts, base="ours", flops=1e6, ceiling=4e8, threads=2, cores=2, device="cpu")
    assert [rows[name]["ours_is_faster_wall"]["median"] for name in ("ours", "hf", "trl")] == [1, 4, 4]
    assert rows["ours"]["steps"] == 2


def test_every_group_has_ours_and_few_enough_processes():
    peers = [name for name in VARIANTS if VARIANTS[name].worker != "ours"]
    parts = groups(["ours", *peers], together=3)
    assert all(part[0] == "ours" and 2 <= len(part) <= 3 for part in parts)
    assert sorted(name for part in parts for name in part if name != "ours") == sorted(peers)
    assert groups(["ours"], together=4) == [["ours"]]


def test_publishing_replaces_the_table_between_its_marks(tmp_path):
    """The page keeps its text, the table and the picture are the result's, and doing it twice changes nothing."""
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- bench tiny-lora-cpu -->\nold\n<!-- end tiny-lora-cpu -->\nafter\n", encoding="utf-8")
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result()), encoding="utf-8")
    image, _ = plot.publish(path, page)
    once = page.read_text(encoding="utf-8")
    plot.publish(path, page)
    assert image.is_file()
    assert once == page.read_text(encoding="utf-8")
    assert once.startswith("before")
    assert once.endswith("after\n")
    assert "old" not in once
    assert "| that | 20 (20 - 20) | 5.00x (5.00 - 5.00) |" in once
