"""Adapters over one set of weights answer as each does alone, whatever they bring."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import save_tiny_model

from ai_finetuning.errors import ModelError
from ai_finetuning.inference.one_base import open_adapters
from ai_finetuning.inference.session import open_model
from ai_finetuning.inference.side_by_side import Asked, Side, answer_side_by_side
from ai_finetuning.models.adapter_folder import CONFIG
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.generation import generate_answers
from ai_finetuning.models.shared_base import shared_base

BASE, QUESTION = "embedded:kotoha-tiny", "日本の首都はどこですか。"
LONG = {"max_new_tokens": 16, "min_new_tokens": 16}


def _adapter(folder: Path, seed: int, *, tokens: int = 0, **options: Any) -> str:
    """An adapter on the embedded model that changes its answers.

    Args:
        tokens: that it adds to the vocabulary, whose embedding it then brings.
    """
    opened = open_model(BASE)
    if tokens:
        opened.tokenizer.add_tokens([f"<新{number}>" for number in range(tokens)])
        opened.model.resize_token_embeddings(len(opened.tokenizer), mean_resizing=False)
        options["modules_to_save"] = ["embed_tokens"]
    torch.manual_seed(seed)
    model = add_lora(opened.model, r=4, alpha=64, **options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
            elif weight.requires_grad and ("bias" in name or "modules_to_save" in name):
                weight.add_(torch.randn_like(weight) * 0.01)
    model.peft_config["default"].base_model_name_or_path = BASE
    model.save_pretrained(folder)
    opened.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A plain one, one with an embedding that grew, and a second plain one."""
    folder = tmp_path_factory.mktemp("adapters")
    return [_adapter(folder / "a", 1), _adapter(folder / "b", 2, tokens=3), _adapter(folder / "c", 3)]


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_each_answers_as_it_does_alone_over_one_set_of_weights(adapters: list[str], sampled: bool) -> None:
    options = LONG | {"do_sample": sampled, **({"temperature": 1.2, "top_p": 1.0} if sampled else {})}
    seed = 7 if sampled else None
    alone = []
    for name in adapters:
        opened = open_model(name)
        conversation = [{"role": "user", "content": QUESTION}]
        seeds = None if seed is None else [seed]
        alone.append(generate_answers(opened.model, opened.tokenizer, [conversation], seed=seeds, **options)[0].text)
    assert len(set(alone)) == 3

    shared = open_adapters(adapters)
    said = dict.fromkeys("012", "")

    def say(side: str, piece: str) -> None:
        said[side] += piece

    sides = [Side(str(at), opened) for at, opened in enumerate(shared)]
    questions = [(side, Asked([], QUESTION)) for side in sides]
    answer_side_by_side(questions, say, threading.Event(), seed=seed, options=options, turn_seconds=0.0)
    assert list(said.values()) == alone
    # One set: every weight of the base lies once in memory, but for the embedding that grew.
    storages: dict[int, int] = {}
    for opened in shared:
        for name, weight in opened.model.named_parameters():
            if "lora_" not in name and "bias" not in name and "embed_tokens" not in name and "lm_head" not in name:
                storages[weight.data_ptr()] = storages.get(weight.data_ptr(), 0) + 1
    assert set(storages.values()) == {3}


def test_what_changes_its_base_or_has_another_one_is_not_shared(adapters: list[str], tmp_path: Path) -> None:
    first = Path(adapters[0])
    assert shared_base(first) == shared_base(Path(adapters[1])) is not None
    values = json.loads((first / CONFIG).read_text(encoding="utf-8"))

    def changed(name: str, **more: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / CONFIG).write_text(json.dumps(values | more), encoding="utf-8")
        return folder

    assert shared_base(changed("same")) == shared_base(first)
    assert shared_base(changed("pissa", init_lora_weights="pissa")) is None
    assert shared_base(changed("copies", layer_replication=[[0, 2]])) is None
    assert shared_base(changed("elsewhere", base_model_name_or_path="org/not-here")) is None
    eight = changed("eight")
    (eight / "base.json").write_text(json.dumps({"name": BASE, "bits": 8}), encoding="utf-8")
    assert shared_base(eight) is None
    stored = tmp_path / "stored"
    stored.mkdir()
    (stored / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}), encoding="utf-8")
    assert shared_base(changed("quantized", base_model_name_or_path=str(stored))) is None
    with pytest.raises(ModelError, match="one by one"):
        open_adapters([str(first), str(eight)])


def test_biases_that_one_has_trained_are_not_in_the_others(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "qwen2")
    names = []
    for number, more in enumerate(({"bias": "all"}, {})):
        model = add_lora(open_model(str(base)).model, r=2, alpha=8, **more)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.requires_grad and ("lora_B" in name or "bias" in name):
                    weight.normal_(0, 0.2)
        names.append(str(tmp_path / str(number)))
        model.save_pretrained(names[-1])
    ids = torch.arange(1, 9).unsqueeze(0)
    for together in (names, names[::-1]):
        for opened, name in zip(open_adapters(together), together, strict=True):
            alone = open_model(name)
            for on in (True, False):
                with opened.adapter(on), alone.adapter(on), torch.no_grad():
                    assert torch.equal(opened.model(ids).logits, alone.model(ids).logits)
