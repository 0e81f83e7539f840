"""Merging in fp32: equal to base plus adapter, whatever the adapter trains, and refused where it is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import build_model, build_tokenizer, save_tiny_model

from ai_finetuning.convert import adapter_origin
from ai_finetuning.convert.merge import merge_adapter
from ai_finetuning.errors import ModelError
from ai_finetuning.models import adapters
from ai_finetuning.models.adapters import add_lora, load_adapter, without_adapter
from ai_finetuning.models.loading import load_causal_lm

IDS = torch.randint(3, 290, (1, 40), generator=torch.Generator().manual_seed(5))
CPU = torch.device("cpu")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits[0]


def write(folder: Path, base: Path, **options: Any) -> Path:
    """An adapter with random weights in all that it trains, as small as a short training leaves it."""
    model: Any = load_causal_lm(str(base), dtype="float32", device=CPU)
    wrapped = add_lora(model, r=4, alpha=8, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 3e-3)
    wrapped.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def both(adapter: Path, base: Path) -> Any:
    return load_adapter(load_causal_lm(str(base), dtype="float32", device=CPU), adapter).eval()


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tied") / "base", "qwen3_tied")


ONE_SIDE = [
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["lm_head", "q_proj"]},
    {"modules_to_save": ["embed_tokens"]},
    {"modules_to_save": ["lm_head"], "target_modules": ["embed_tokens"]},
]


@pytest.mark.parametrize("options", ONE_SIDE, ids=lambda options: json.dumps(options))
def test_a_trained_side_of_a_tied_pair_is_parted(options: dict[str, Any], tied: Path, tmp_path: Path):
    adapter = write(tmp_path / "a", tied, **options)
    report = merge_adapter(str(adapter), str(tmp_path / "m"), base=str(tied), dtype="float32", device=CPU)
    merged = load_causal_lm(str(tmp_path / "m"), dtype="float32", device=CPU)
    expected = logits(both(adapter, tied))
    assert torch.allclose(logits(merged), expected, rtol=1e-4, atol=1e-5)
    assert report.error < 1e-4 < report.change  # the adapter changed something, and the merge lost none of it
    assert merged.config.tie_word_embeddings is False


def test_an_untouched_pair_stays_tied(tied: Path, tmp_path: Path):
    adapter = write(tmp_path / "a", tied)
    merge_adapter(str(adapter), str(tmp_path / "m"), base=str(tied), dtype="float32", device=CPU)
    merged: Any = load_causal_lm(str(tmp_path / "m"), dtype="float32", device=CPU)
    assert merged.config.tie_word_embeddings is True
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert torch.allclose(logits(merged), logits(both(adapter, tied)), rtol=1e-4, atol=1e-5)


def test_an_error_as_large_as_the_adapter_is_refused(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """KL and top-1 alone let a merge pass that lost a small adapter."""
    adapter = write(tmp_path / "a", tied, **ONE_SIDE[0])
    monkeypatch.setattr(adapters, "part_shared_weights", lambda model: [])
    with pytest.raises(ModelError, match="where the adapter changed"):
        merge_adapter(str(adapter), str(tmp_path / "m"), base=str(tied), dtype="float32", device=CPU)
    assert not (tmp_path / "m").exists()


def test_an_adapter_lost_in_rounding_is_said(tied: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model: Any = load_causal_lm(str(tied), dtype="float32", device=CPU)
    wrapped = add_lora(model, r=2, alpha=2)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 3e-5)
    wrapped.save_pretrained(tmp_path / "a")
    merge_adapter(str(tmp_path / "a"), str(tmp_path / "m"), base=str(tied), dtype="bfloat16", device=CPU)
    assert "use dtype float32" in caplog.text


@pytest.mark.parametrize(("own", "other"), [(1, 2), (2, 1)])
def test_an_adapter_of_another_depth_is_refused(own: int, other: int, tmp_path: Path):
    base = save_tiny_model(tmp_path / "base", layers=own)
    adapter = write(tmp_path / "a", base)
    with pytest.raises(ModelError, match="does not fit this model") as refused:
        load_adapter(build_model(layers=other), adapter)
    assert str(base) in refused.value.en


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen2"])
def test_an_adapter_of_another_family_is_refused(kind: str, tmp_path: Path):
    adapter = write(tmp_path / "a", save_tiny_model(tmp_path / "base"), modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match="does not fit this model"):
        load_adapter(build_model(kind, hidden_size=32), adapter)


def test_an_adapter_of_its_own_base_fits_with_all_it_brings(tmp_path: Path):
    base = save_tiny_model(tmp_path / "base", "gpt_neox")
    for number, options in enumerate(
        [{"bias": "all"}, {"bias": "lora_only"}, {"use_dora": True}, {"modules_to_save": ["lm_head", "embed_in"]}]
    ):
        adapter = write(tmp_path / f"a{number}", base, **options)
        assert not torch.equal(logits(both(adapter, base)), logits(build_model("gpt_neox", vocab_size=400)))


@pytest.mark.parametrize(
    "options",
    [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}],
    ids=lambda options: json.dumps(options),
)
def test_without_the_adapter_the_base_answers(
    options: dict[str, Any], tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    base = save_tiny_model(tmp_path / "base", "gpt_neox")
    adapter = write(tmp_path / "a", base, **options)
    plain: Any = load_causal_lm(str(base), dtype="float32", device=CPU)
    wrapped = both(adapter, base)
    trained = logits(wrapped)
    with without_adapter(wrapped):
        assert torch.equal(logits(wrapped), logits(plain))
    assert torch.equal(logits(wrapped), trained)
    assert not torch.equal(trained, logits(plain))
    assert not [item for item in recwarn if "disabling adapter" in str(item.message)]


def test_an_unused_token_without_a_row_does_not_stop_a_merge(tmp_path: Path):
    """Gemma 3 1B ships a tokenizer with one token more than its embedding has rows."""
    base = save_tiny_model(tmp_path / "base")
    tokenizer = grown_tokenizer(1)
    tokenizer.save_pretrained(base)
    adapter = write(tmp_path / "a", base)
    tokenizer.save_pretrained(adapter)
    report = merge_adapter(str(adapter), str(tmp_path / "m"), base=str(base), dtype="float32", device=CPU)
    assert report.error < 1e-4
    assert torch.allclose(
        logits(load_causal_lm(str(report.folder), dtype="float32", device=CPU)), logits(both(adapter, base)), atol=1e-5
    )


def grown_tokenizer(extra: int) -> Any:
    """The tiny tokenizer with so many tokens more."""
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.add_tokens([f"<unused_{number}>" for number in range(extra)])
    return tokenizer


def test_rows_that_an_adapter_brings_are_merged(tmp_path: Path):
    """Tokens were added and both ends trained: the base gets as many rows as the adapter has."""
    base = save_tiny_model(tmp_path / "base")
    tokenizer = grown_tokenizer(3)
    model: Any = load_causal_lm(str(base), dtype="float32", device=CPU)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    wrapped = add_lora(model, r=2, alpha=4, modules_to_save=["embed_tokens", "lm_head"])
    wrapped.save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    report = merge_adapter(str(tmp_path / "a"), str(tmp_path / "m"), base=str(base), dtype="float32", device=CPU)
    merged: Any = load_causal_lm(str(report.folder), dtype="float32", device=CPU)
    assert merged.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert adapter_origin.base_of(str(tmp_path / "a"), str(base), None).name == str(base)


@pytest.mark.parametrize("kept", [True, False])
def test_new_rows_of_a_head_that_nobody_saved_are_said(kept: bool, tmp_path: Path, logged: Callable[[], str]):
    """They stay as they begin: random."""
    base = save_tiny_model(tmp_path / "base")
    model: Any = load_causal_lm(str(base), dtype="float32", device=CPU)
    model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + 5, mean_resizing=False)
    wrapped = add_lora(model, r=2, alpha=4, modules_to_save=["embed_tokens", "lm_head"] if kept else ["embed_tokens"])
    wrapped.save_pretrained(tmp_path / "a", save_embedding_layers=kept)
    load_adapter(load_causal_lm(str(base), dtype="float32", device=CPU), tmp_path / "a")
    assert ("does not bring the head's new rows" in logged()) is not kept


def write_peft(folder: Path, base: Path, **options: Any) -> torch.Tensor:
    """An adapter that PEFT alone made; returns the logits that it was saved with."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["query_key_value"], **options)
    wrapped: Any = get_peft_model(load_causal_lm(str(base), dtype="float32", device=CPU), config)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.add_(0.05)
    wrapped.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return logits(wrapped.eval())


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_base_answers_where_an_adapter_took_its_start_from_it(start: str, tmp_path: Path):
    """PEFT takes the start of such an adapter out of the base's weights, and leaves them so without the adapter."""
    base = save_tiny_model(tmp_path / "base", "gpt_neox")
    trained = write_peft(tmp_path / "a", base, init_lora_weights=start)
    wrapped = both(tmp_path / "a", base)
    plain = logits(load_causal_lm(str(base), dtype="float32", device=CPU))
    assert torch.allclose(logits(wrapped), trained, atol=1e-5)
    assert not torch.allclose(trained, plain, atol=1e-2)
    with without_adapter(wrapped):
        assert torch.equal(logits(wrapped), plain)
    assert torch.allclose(logits(wrapped), trained, atol=1e-5)
    report = merge_adapter(str(tmp_path / "a"), str(tmp_path / "m"), base=str(base), dtype="float32", device=CPU)
    merged = logits(load_causal_lm(str(report.folder), dtype="float32", device=CPU))
    assert torch.allclose(merged, trained, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "lora_ga"), ("layer_replication", [[0, 2], [1, 2]])],
)
def test_a_start_that_cannot_be_made_again_is_refused(key: str, value: object, tmp_path: Path):
    """PEFT loads such a file without an error, onto other weights than it was trained on."""
    base = save_tiny_model(tmp_path / "base", "gpt_neox")
    write_peft(tmp_path / "a", base)
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")
    way = "path_initial_model_for_weight_conversion" if key == "init_lora_weights" else key
    with pytest.raises(ModelError, match=key) as refused:
        both(tmp_path / "a", base)
    assert way in refused.value.en


def test_an_adapter_that_cannot_be_merged_is_refused_in_words(tmp_path: Path):
    """The biases of LoRA's B have no place in layers without one."""
    base = save_tiny_model(tmp_path / "base", "gpt_neox")
    model: Any = load_causal_lm(str(base), dtype="float32", device=CPU)
    model.config.attention_bias = False
    for layer in model.gpt_neox.layers:
        layer.attention.query_key_value.bias = None
    model.save_pretrained(base)
    trained = write_peft(tmp_path / "a", base, lora_bias=True)
    assert torch.allclose(logits(both(tmp_path / "a", base)), trained, atol=1e-5)
    with pytest.raises(ModelError, match="cannot be merged"):
        merge_adapter(str(tmp_path / "a"), str(tmp_path / "m"), base=str(base), dtype="float32", device=CPU)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("kind", ["llama", "qwen3_tied"])
def test_weights_of_the_base_that_a_file_brings_are_taken(kind: str, tmp_path: Path):
    """PEFT's save_embedding_layers writes embedding and head beside the adapter, and loads them; they were left out."""
    from peft import LoraConfig, get_peft_model

    base = save_tiny_model(tmp_path / "base", kind)
    model: Any = load_causal_lm(str(base), dtype="float32", device=CPU)
    plain = logits(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj"])
    wrapped: Any = get_peft_model(model, config)
    trained = logits(wrapped.eval())
    wrapped.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    again = both(tmp_path / "a", base)
    assert torch.equal(logits(again), trained)
    assert not torch.equal(trained, plain)
    with without_adapter(again):
        assert torch.equal(logits(again), plain)
