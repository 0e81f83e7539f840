"""Every setting is explained in both languages, once; help, schema and pages show that text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.unit.config.test_limits import ENGLISH_SENTENCE
from typer.testing import CliRunner

from ai_finetuning.config.describe import COMMAND, PAGES, json_schema, page, settings, table

DOCS = Path(__file__).parents[3] / "docs"
JAPANESE = re.compile("[ぁ-んァ-ヶ一-龠]")
SETTINGS = settings()


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.key for setting in SETTINGS])
def test_every_setting_is_explained_in_both_languages(setting):
    assert re.match(r"[A-Z0-9`].+[.}]$", setting.en, flags=re.DOTALL), setting.en
    assert JAPANESE.search(setting.ja), setting.ja
    assert not ENGLISH_SENTENCE.search(setting.ja.replace("torchrun", "")), setting.ja
    assert not re.search("訓練|装置|機械|詰め物|活性", setting.ja), setting.ja
    assert "ja:" not in setting.en


@pytest.mark.parametrize("language", PAGES)
def test_the_pages_are_those_of_the_source(language: str):
    written = (DOCS / PAGES[language]).read_text(encoding="utf-8")
    assert written == page(language), f"docs/{PAGES[language]} is stale; write it anew with `{COMMAND}`"
    for setting in SETTINGS:
        assert setting.is_section or f"`{setting.key}`" in written


def test_help_speaks_the_users_language(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_LANG", "ja")
    japanese = {key: text for key, _, text in table()}
    assert (
        japanese["training.batch_size"]
        == "デバイスごとのマイクロバッチの行数。GPU では、蓄積回数とともに指定しなければ計画が選びます（積は変わりません）。（1 以上）"
    )
    assert japanese["method"].endswith("（full, lora, qlora, pretrain）")
    monkeypatch.setenv("AIFT_LANG", "en")
    english = {key: text for key, _, text in table()}
    assert english["training.batch_size"] == (
        "Micro-batch size per device, in rows. On a GPU the plan chooses it, with the accumulation, where neither is set. "
        "(at least 1)"
    )
    assert english["lora.use_dora"].endswith("which trains magnitude and direction separately.")


def test_train_help_ends_with_japanese_settings(monkeypatch: pytest.MonkeyPatch):
    from ai_finetuning.apps.cli.main import app_of

    monkeypatch.setenv("AIFT_LANG", "ja")
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app_of(), ["train", "--help"]).output
    assert "training.warmup_steps [100]" in shown
    settings_part = shown.split("method [lora]")[-1]
    assert "学習" in settings_part
    assert not ENGLISH_SENTENCE.search(settings_part)


def test_the_schema_takes_the_flat_keys_that_the_reader_takes():
    schema = json_schema(japanese=False)["properties"]
    assert schema["learning_rate"]["description"] == "Peak learning rate of the schedule."
    assert schema["save_total_limit"]["minimum"] == 2
    assert "name" not in schema  # several sections have it
    assert schema["model"]["anyOf"][0] == {"type": "string"}


def test_the_schema_speaks_both_languages(monkeypatch: pytest.MonkeyPatch):
    english, japanese = json_schema(japanese=False), json_schema(japanese=True)
    place = ("$defs", "TrainingConfig", "properties", "batch_size", "description")
    for schema, text in ((english, "Micro-batch size per device, in rows."), (japanese, "デバイスごとの")):
        value = schema
        for part in place:
            value = value[part]
        assert value.startswith(text)
    monkeypatch.setenv("AIFT_LANG", "ja")
    assert json_schema() == japanese
    descriptions = re.findall(r'"description": "([^"]*)"', json.dumps(japanese, ensure_ascii=False))
    assert len(descriptions) > 80
    assert all(JAPANESE.search(text) for text in descriptions)
