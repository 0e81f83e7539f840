"""The benchmark of a model before and after quantization: right numbers, both models as they were, clear refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.support.models import SENTENCES, build_model, build_tokenizer, save_tiny_model

from ai_finetuning import QuantizationOptimizer
from ai_finetuning.errors import ConfigError, StorageError
from ai_finetuning.evaluation.quantization_benchmark import benchmark_inputs, compare_models, verdict
from ai_finetuning.evaluation.speed import NEW_TOKENS, WARMUP
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.models.quantized import allow_cpu_packing, linear_modules, packs_on_cpu, unchanged

INPUTS = [torch.tensor(build_tokenizer().encode(text)) for text in SENTENCES[:4]]


@pytest.fixture(scope="module")
def original(tiny_model_dir: Path):
    return load_causal_lm(str(tiny_model_dir))


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "nf4"
    QuantizationOptimizer(str(tiny_model_dir)).quantize_to_4bit(str(out), use_double_quant=False)
    return out


@pytest.fixture(scope="module")
def obtained(tiny_model_dir: Path, original, folder: Path) -> dict:
    return QuantizationOptimizer(str(tiny_model_dir)).benchmark_quantization(
        original, load_causal_lm(str(folder)), INPUTS, num_runs=12
    )


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), unchanged(model):
        return model(input_ids=ids[None]).logits[0].float()


def test_speed_is_measured_prefill_and_decoding_apart(obtained: dict):
    assert (obtained["num_runs"], obtained["decode_runs"]) == (12, 10)
    for side in (obtained["original"], obtained["quantized"]):
        for spread in (side["latency_ms"], side["time_to_first_token_ms"], side["decode"]["latency_ms"]):
            assert 0 < spread["p50"] <= spread["p90"] <= spread["p95"] <= spread["p99"]
        assert side["characters_per_second"] > 0
        assert side["decode"]["characters_per_second"] > 0
        assert side["tokens_per_second"] > 0
        assert side["decode"]["tokens_per_second"] > 0
    assert obtained["speedup"] > 0
    assert obtained["decode_speedup"] > 0


def test_memory_and_disk_are_what_is_stored(obtained: dict, folder: Path):
    side = obtained["quantized"]
    assert side["memory_bytes"] == sum(side["memory_by_dtype"].values())
    assert side["memory_by_dtype"]["uint8"] > 0
    assert obtained["memory_ratio"] == side["memory_bytes"] / obtained["original"]["memory_bytes"] < 0.95
    assert side["disk_bytes"] == (folder / "model.safetensors").stat().st_size
    assert side["peak_bytes"] is None or side["peak_bytes"] >= side["memory_bytes"]
    assert (side["quantized_modules"], side["bits"], obtained["original"]["quantized_modules"]) == (14, 4, 0)


def test_fidelity_is_that_of_the_two_distributions(obtained: dict, original, folder: Path):
    quantized = load_causal_lm(str(folder))
    kl, top1, cosine, nats = [], [], [], [0.0, 0.0]
    for ids in INPUTS:
        left, right = logits(original, ids), logits(quantized, ids)
        for a, b in zip(left, right, strict=True):
            kl.append(
                float(torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (a, b))))
            )
            top1.append(int(a.argmax() == b.argmax()))
            cosine.append(float(torch.cosine_similarity(a, b, dim=0)))
        for index, side in enumerate((left, right)):
            nats[index] += float(torch.nn.functional.cross_entropy(side[:-1], ids[1:], reduction="sum"))
    close = obtained["agreement"]
    assert close["mean_kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert close["max_kl"] == pytest.approx(max(kl), rel=1e-3)
    assert close["mean_kl"] <= close["p99_kl"] <= close["max_kl"]
    assert close["top1"] == pytest.approx(sum(top1) / len(top1))
    assert 0 <= close["top5"] <= 1
    assert close["min_cosine"] == pytest.approx(min(cosine), abs=1e-4)
    assert close["mean_cosine"] == pytest.approx(sum(cosine) / len(cosine), abs=1e-4)
    predicted = sum(len(ids) - 1 for ids in INPUTS)
    characters = sum(len(build_tokenizer().decode(ids)) - len(build_tokenizer().decode(ids[:1])) for ids in INPUTS)
    for name, total in zip(("original", "quantized"), nats, strict=True):
        assert obtained[name]["loss"] == pytest.approx(total / predicted, rel=1e-3)
        assert obtained[name]["perplexity"] == pytest.approx(math.exp(total / predicted), rel=1e-2)
        assert obtained[name]["bits_per_character"] == pytest.approx(total / math.log(2) / characters, rel=1e-3)


def test_greedy_texts_are_those_of_generate(obtained: dict, original):
    for ids, texts in zip(INPUTS, obtained["greedy"]["texts"], strict=True):
        whole = original.generate(ids[None], max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
        expected = build_tokenizer().decode(whole[0, len(ids) :], skip_special_tokens=True)
        assert texts["original"].startswith(expected[:8])
    apart = obtained["greedy"]["first_divergence"]
    assert len(apart) == len(INPUTS)
    for place, texts in zip(apart, obtained["greedy"]["texts"], strict=True):
        assert place is not None or texts["original"] == texts["quantized"]


def state(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("bits", [4, 8])
def test_neither_model_is_changed(tiny_model_dir: Path, tmp_path: Path, bits: int):
    """Weights, training modes module by module, re-packing flags, the place of 8-bit scales; a copy saved afterwards
    is the same.
    """
    optimizer = QuantizationOptimizer(str(tiny_model_dir))
    settings = {"bnb_4bit_use_double_quant": False} if bits == 4 else None
    quantized = optimizer.quantize(str(tmp_path / "q"), bits=bits, settings=settings)
    original = load_causal_lm(str(tiny_model_dir)).train()
    original.model.layers[0].eval()
    if bits == 4:
        allow_cpu_packing(
            quantized
        )  # as after `aift chat`; the benchmark must neither use it on this model nor forget it

    def inner() -> list:
        if bits == 4:
            return [
                (m.support_avx512bf16_for_cpu, getattr(m.weight.quant_state, "packing_format_for_cpu", False))
                for m in linear_modules(quantized, 4)
            ]
        return [(m.weight.SCB is None, m.state.SCB is None) for m in linear_modules(quantized, 8)]

    def modes() -> list[bool]:
        return [module.training for model in (original, quantized) for module in model.modules()]

    before = (inner(), modes(), state(original))
    compare_models(original, quantized, INPUTS, num_runs=1)
    assert (inner(), modes()) == before[:2]
    assert all(torch.equal(tensor, before[2][name]) for name, tensor in state(original).items())
    quantized.save_pretrained(tmp_path / "again")
    stored = (tmp_path / "q" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == stored


def test_models_take_turns_and_warm_up_does_not_count(tiny_model_dir: Path, original):
    other = load_causal_lm(str(tiny_model_dir))
    calls: list[str] = []
    hooks = [
        model.register_forward_pre_hook(lambda module, args, name=name: calls.append(name))
        for name, model in (("a", original), ("b", other))
    ]
    from ai_finetuning.evaluation.speed import take_turns

    timings = take_turns({"a": original, "b": other}, [INPUTS[0][None]], prefill_runs=4, decode_runs=1, room=None)
    for hook in hooks:
        hook.remove()
    assert "".join(calls[-6:]) == "baabba"  # the last three rounds have no decoding
    assert calls.count("a") == calls.count("b") == (WARMUP + 4) + (WARMUP + 1) * NEW_TOKENS
    for timing in timings.values():
        assert (len(timing.prefill), len(timing.first_token), len(timing.per_token)) == (4, 1, NEW_TOKENS - 1)


def test_without_a_tokenizer_text_numbers_are_none_with_the_reason():
    obtained = compare_models(build_model(), build_model(), INPUTS, num_runs=1)
    assert obtained["original"]["bits_per_character"] is None
    assert obtained["quantized"]["characters_per_second"] is None
    assert obtained["greedy"]["texts"] is None
    assert obtained["original"]["perplexity"] > 1
    assert "no tokenizer" in obtained["reasons"]["bits_per_character, characters_per_second, greedy texts"]
    assert "name_or_path" in obtained["reasons"]["tokenizer of original"]
    assert "name_or_path" in obtained["reasons"]["disk_bytes"]


def test_what_cannot_be_compared_is_refused(tiny_model_dir: Path, tmp_path: Path, original):
    optimizer = QuantizationOptimizer(str(tiny_model_dir))
    long = torch.ones(1025, dtype=torch.int64)
    for bad, word in (
        ([], "test_inputs"),
        ([torch.zeros(2, 2, 2)], "test_inputs"),
        ([torch.zeros(3)], "test_inputs"),
        ([torch.tensor([[1, 2], [3, 4]])], "test_inputs"),
        ([torch.tensor([400])], "the models know 0 to 399"),
        ([long], "1025 tokens"),
    ):
        with pytest.raises(ConfigError, match=word):
            optimizer.benchmark_quantization(original, original, bad)
    for runs in (0, True, 2.5):
        with pytest.raises(ConfigError, match="num_runs"):
            optimizer.benchmark_quantization(original, original, INPUTS, num_runs=runs)
    with pytest.raises(ConfigError, match="differ in num_hidden_layers"):
        compare_models(original, build_model(vocab_size=original.config.vocab_size, layers=1), INPUTS)

    file = save_tiny_model(tmp_path / "other") / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    words["あ"], words["い"] = 20, 21  # two characters in the places of others
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(ConfigError, match="tokenizers differ"):
        compare_models(original, load_causal_lm(str(tmp_path / "other")), INPUTS)


def test_vocabularies_of_other_size_are_refused_where_no_configuration_tells():
    class Plain(torch.nn.Module):
        def __init__(self, words: int) -> None:
            super().__init__()
            self.inner = build_model(vocab_size=words)

        def forward(self, **inputs):
            return self.inner(**inputs)

    with pytest.raises(ConfigError, match="vocabularies differ"):
        compare_models(Plain(400), Plain(300), [torch.tensor([1, 2, 3])], num_runs=1)


def test_the_verdict_names_its_limits(obtained: dict, original):
    checks = {check["name"]: check for check in obtained["verdict"]["checks"]}
    assert set(checks) == {"quantized modules", "memory ratio", "perplexity ratio", "mean KL", "top-1 agreement"}
    assert "<= 0.01 close, <= 0.1 usable" in checks["mean KL"]["limit"]
    same = compare_models(original, original, INPUTS, num_runs=1)
    assert same["agreement"]["mean_kl"] == pytest.approx(0.0, abs=1e-6)
    assert (same["agreement"]["top1"], same["agreement"]["top5"]) == (1.0, 1.0)
    assert same["greedy"]["first_divergence"] == [None]
    assert (same["verdict"]["grade"], same["verdict"]["passed"]) == ("not quantized", False)

    def graded(kl: float, top1: float, ratio: float) -> str:
        changed = {"agreement": {"mean_kl": kl, "top1": top1}, "perplexity_ratio": ratio}
        return verdict(obtained | changed)["grade"]

    assert graded(0.01, 0.95, 1.005) == "close"
    assert graded(0.011, 0.95, 1.0) == "usable"
    assert graded(0.001, 0.849, 1.0) == "poor"
    assert graded(0.001, 1.0, 1.06) == "poor"
    assert graded(float("nan"), 1.0, 1.0) == "poor"


def test_it_is_written_as_json_markdown_and_a_picture(tiny_model_dir: Path, tmp_path: Path, original, folder: Path):
    obtained = QuantizationOptimizer(str(tiny_model_dir)).benchmark_quantization(
        original, load_causal_lm(str(folder)), INPUTS, num_runs=1, output_dir=tmp_path / "report"
    )
    assert json.loads((tmp_path / "report" / "benchmark.json").read_text(encoding="utf-8")) == obtained
    text = (tmp_path / "report" / "benchmark.md").read_text(encoding="utf-8")
    for word in (
        obtained["verdict"]["grade"],
        "bits per character",
        "p99",
        "mean_kl",
        "top-1 agreement",
        "uint8",
        str(folder),
    ):
        assert word in text, word
    assert ("re-packed weights" in text) == packs_on_cpu(load_causal_lm(str(folder)))
    assert (tmp_path / "report" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        QuantizationOptimizer("x").benchmark_quantization(original, original, INPUTS, 1, output_dir=tmp_path / "file")


def test_inputs_come_from_any_data_evenly(tmp_path: Path):
    rows = tmp_path / "rows.txt"
    rows.write_text("\n\n".join(f"{number}番目の文です。" for number in range(40)), encoding="utf-8")
    ids = benchmark_inputs(str(rows), build_tokenizer(), rows=4, max_length=16)
    texts = [build_tokenizer().decode(row[0], skip_special_tokens=True) for row in ids]
    assert len(ids) == 4
    assert all(row.ndim == 2 and row.shape[0] == 1 and row.shape[1] <= 16 for row in ids)
    assert texts[0].startswith("0番")
    assert len(benchmark_inputs(None, build_tokenizer(), rows=3, max_length=32)) == 3
    with pytest.raises(ConfigError, match="rows"):
        benchmark_inputs(None, build_tokenizer(), rows=0, max_length=32)


@pytest.mark.parametrize("kind", ["gpt_neox", "stablelm"])
def test_other_families_are_measured(kind: str, tmp_path: Path):
    name = str(save_tiny_model(tmp_path / kind, kind))
    quantized = QuantizationOptimizer(name).quantize_to_8bit(str(tmp_path / "q"))
    obtained = compare_models(load_causal_lm(name), quantized, INPUTS, num_runs=1)
    assert obtained["quantized"]["quantized_modules"] > 0
    assert obtained["agreement"]["top1"] > 0.5
