"""`--json FILE|-`: one value on standard output and nothing beside it, or in a file; the keys that programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import call

from ai_finetuning.data.prepare import load_examples
from ai_finetuning.data.split import by_share
from ai_finetuning.models import catalog

ROWS = [{"instruction": f"{number} の次の数は？", "output": f"{number + 1} です。"} for number in range(20)]
MODEL = "embedded:kotoha-tiny"


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), "utf-8")
    return path


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> Any:
        assert call(*arguments) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_models_for_programs(printed: Any, tmp_path: Path, tiny_model_dir: Path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(tiny_model_dir)
    found = printed("models", "--in", str(tmp_path / "models"), "--json")
    assert {"gib", "devices", "gpus"} == found["room"].keys()
    by_id = {model["id"]: model for model in found["models"]}
    assert by_id["./mine"]["model"] == str(tmp_path / "models" / "mine")
    assert by_id["./mine"]["here"]["place"] == "folder"
    assert by_id["./mine"]["need_gib"] == {}
    shipped = by_id[MODEL]
    assert shipped["here"] == {"place": "embedded", "size_bytes": None}
    assert shipped["commercial"] == "yes"
    assert shipped["need_gib"].keys() == {"infer", "lora", "qlora", "full"}
    assert shipped["simulated"] == []
    assert {model["id"] for model in found["models"] if model["recommended"]} == set(catalog.RECOMMENDED)
    calm = printed("models", "calm2-7b-chat", "--json", "-")["models"]
    assert all("calm2-7b-chat" in model["id"] and model["here"] is None for model in calm)
    with_limits = printed("models", "llm-jp/llm-jp-3-1.8b-instruct3", "--gpu", "4090x2", "--json", "-")
    assert with_limits["room"]["devices"] == 2
    assert len(with_limits["models"]) == 1


def test_what_a_licence_allows():
    said = {row.id: row.commercial for row in catalog.rows().values() if row.alias_of is None}
    assert set(said.values()) <= {"yes", "no", "conditions", None}
    assert said["elyza/Llama-3-ELYZA-JP-8B"] == "conditions"
    assert said["cyberagent/calm2-7b-chat"] == "yes"
    assert all(said[row.id] == "no" for row in catalog.rows().values() if row.non_commercial and row.alias_of is None)


def test_tokens_are_those_that_training_makes(printed: Any, faq: Path):
    from ai_finetuning.config.data import DataConfig
    from ai_finetuning.models.tokenizers import load_tokenizer

    found = printed("data", "show", str(faq), "--model", MODEL, "--row", "all", "--json", "-")
    examples, _, _ = load_examples(str(faq), load_tokenizer(MODEL), DataConfig(cache=False))
    assert len(found["rows"]) == len(examples) == len(ROWS)
    for row, example in zip(found["rows"], examples, strict=True):
        tokens = [token for part in row["parts"] for token in part["tokens"]]
        assert [token[0] for token in tokens] == example.input_ids.tolist()
        assert [token[2] for token in tokens] == (example.labels != -100).tolist()
        assert (row["tokens"], row["label_tokens"]) == (len(example), int((example.labels != -100).sum()))
    one = printed("data", "show", str(faq), "--model", MODEL, "--row", "last", "--json")
    assert one["rows"] == found["rows"][-1:]


def test_statistics_and_a_division(printed: Any, faq: Path, tmp_path: Path):
    told = printed("data", "stats", str(faq), "--model", MODEL, "--max-length", "16", "--json", "-")
    assert told["rows"] == 20
    assert told["max_length"] == 16
    assert set(told["percentiles"]) == {"50", "90", "95", "99", "100"}
    assert sum(count for *_, count in told["histogram"]) == 20
    sides = printed(
        "data", "split", str(faq), "--out", str(tmp_path / "s"), "--share", "0.1", "--by-rows", "--json", "-"
    )
    whole = by_share(list(range(20)), 0.1, 0, str(faq))
    assert (sides["train"], sides["eval"]) == (len(whole.train), len(whole.evaluated)) == (18, 2)


def test_it_goes_to_a_file_where_one_is_named(faq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "env.json"
    assert call("env", "--json", str(out)) == 0
    assert capsys.readouterr().out == ""
    assert "versions" in json.loads(out.read_text("utf-8"))
    assert call("env", "--json", str(tmp_path / "none" / "env.json")) == 74


def test_a_plan_is_printed_alone_and_settings_may_follow_the_option(printed: Any, faq: Path, tmp_path: Path):
    given = (f"model={MODEL}", f"data.train={faq}", f"output_dir={tmp_path / 'run'}")
    first, second = printed("plan", "--json", *given), printed("plan", *given, "--json", "-")
    assert first.keys() == second.keys()
    assert {key: first[key] for key in ("model", "train_rows", "total_steps") if key in first} == {
        key: second[key] for key in ("model", "train_rows", "total_steps") if key in second
    }
    assert not (tmp_path / "run").exists()
