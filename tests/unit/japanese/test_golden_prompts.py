"""Prompts against strings that were written by hand from named sources, and the status that the catalog gives them.

Nothing here is rendered to be compared with itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.models import build_tokenizer

from ai_finetuning.japanese.metered import FROZEN_DATE
from ai_finetuning.japanese.prompts import render
from ai_finetuning.japanese.templates import TEMPLATES
from ai_finetuning.models import catalog

TABLE = yaml.safe_load((Path(__file__).parents[2] / "fixtures" / "golden_prompts.yaml").read_text(encoding="utf-8"))
GOLDEN: list[dict[str, Any]] = TABLE["golden"]


def cases() -> Iterator[Any]:
    for number, entry in enumerate(GOLDEN):
        for kind, expected in entry["prompts"].items():
            own = expected if isinstance(expected, dict) else {"text": expected}
            messages = own.get("messages") or TABLE["conversations"][kind]
            yield pytest.param(entry, messages, own, id=f"{number}-{entry['template']}-{kind}")


def tokenizer_with(template: str, bos: str = "<s>", eos: str = "</s>") -> Any:
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    tokenizer.chat_template = TEMPLATES[template].jinja
    return tokenizer


@pytest.mark.parametrize(("entry", "messages", "expected"), list(cases()))
def test_prompts_are_what_the_makers_write(entry: dict[str, Any], messages: list, expected: dict[str, Any]):
    tokenizer = tokenizer_with(entry["template"], entry.get("bos", "<s>"), entry.get("eos", "</s>"))
    asks = messages[-1]["role"] != "assistant"
    if "tools" in expected:
        text = tokenizer.apply_chat_template(
            messages, tools=expected["tools"], tokenize=False, add_generation_prompt=asks
        )
    else:
        text = render(tokenizer, messages, add_generation_prompt=asks)
    assert FROZEN_DATE == "2026-01-01"
    assert text == expected["text"]


def test_every_string_names_its_source():
    for entry in GOLDEN:
        assert entry["source"].startswith("https://"), entry["template"]
        assert entry["prompts"], entry["template"]


def test_a_golden_row_has_a_string_of_its_source_and_a_template_that_writes_it():
    found = {(model, entry["template"]): entry["source"] for entry in GOLDEN for model in entry["models"]}
    rows = {row.id: row for row in catalog.rows().values() if row.prompt == "golden"}
    assert {model for model, _ in found} == set(rows)
    for row in rows.values():
        assert row.prompt_source is not None, row.id
        assert found[row.id, row.template].split(" (")[0] == row.prompt_source, row.id
        assert TEMPLATES[row.template].status == "golden", row.id


def test_every_row_of_the_catalog_says_how_far_its_prompt_is_known():
    for row in catalog.rows().values():
        if (row.kind or "").startswith("instruct"):
            assert row.prompt in ("golden", "tokenizer", "unconfirmed"), row.id
            assert (row.prompt_source is None) == (row.prompt == "unconfirmed"), row.id
        else:
            assert row.prompt is row.source is row.template is None, row.id


def test_a_golden_template_has_a_string_and_the_others_are_marked():
    with_string = {entry["template"] for entry in GOLDEN}
    assert {item.key for item in TEMPLATES.values() if item.status == "golden"} <= with_string
    # The released llm-jp-4 may differ from the alpha tokenizer whose string is compared.
    assert {key for key, item in TEMPLATES.items() if not item.verified} == {
        "sarashina22",
        "harmony",
        "llm_jp_4_harmony",
    }


# Sentences by which a maker's model presents itself, and whose models may say them.
PERSONAS = {
    "You are Qwen": {"Qwen"},
    "You are ChatGPT": {"openai"},
    "You are LLM-jp-4": {"llm-jp"},
    "あなたは誠実で優秀な日本人のアシスタントです": {"elyza"},
    "あなたは役立つアシスタントです": {"stabilityai"},
    "あなたは親切なAIアシスタントです": {"cyberagent"},
    "A chat between a curious user": {"Rakuten"},
    "以下に、あるタスクを説明する指示があり": {"tokyotech-llm"},
    "以下はタスクを説明する指示で": {"pfnet"},
}


@pytest.mark.parametrize("key", TEMPLATES)
def test_no_model_is_given_another_makers_system_sentence(key: str):
    material = TABLE["conversations"]["material"]
    texts = [render(tokenizer_with(key), TABLE["conversations"][kind]) for kind in ("question", "turns")]
    written = "".join([*texts, render(tokenizer_with(key), material)])
    makers = {row.id.split("/")[0] for row in catalog.rows().values() if row.template == key}
    for sentence, owners in PERSONAS.items():
        assert sentence not in written or makers <= owners, (sentence, makers)
    default = TEMPLATES[key].system_default
    if default is not None and not default.startswith("以下は、タスクを説明する指示"):  # the public Alpaca sentences
        assert any(sentence in default for sentence in PERSONAS), default


@pytest.mark.parametrize("key", TEMPLATES)
def test_a_role_that_a_template_does_not_know_is_refused(key: str):
    from ai_finetuning.errors import DataError

    asked = TABLE["conversations"]["question"]
    knows_tools = key in ("qwen25_chatml", "qwen3_chatml")
    for role in ("critic", *(() if knows_tools else ("tool",))):
        with pytest.raises(DataError, match=role):
            render(tokenizer_with(key), [*asked, {"role": role, "content": "晴れ"}])
