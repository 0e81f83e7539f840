"""Entries of data.train: what they mean, what is refused in both languages, and that their paths are paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from ai_finetuning.config.data import DataConfig, ReplayConfig
from ai_finetuning.config.load import load_config
from ai_finetuning.config.mixture import Entry, Sources, paths_of, sources_of, with_replay
from ai_finetuning.config.run import RunConfig
from ai_finetuning.config.run_yaml import absolute_paths, describe_run
from ai_finetuning.config.section import with_values
from ai_finetuning.errors import ConfigError

TWO = [{"path": "a.jsonl", "weight": 0.7}, {"path": ["b.jsonl", "c.jsonl"], "epochs": 2, "max_samples": 10}]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([{"path": "a", "weight": 0}, "b"], "data.train[1].weight is 0; it must be a number above 0"),
        ([{"path": "a", "weight": -0.5}, "b"], "data.train[1].weight is -0.5"),
        ([{"path": "a", "weight": True}, "b"], "data.train[1].weight is True"),
        ([{"path": "a", "weight": float("inf")}, "b"], "data.train[1].weight is inf"),
        (["b", {"path": "a", "weight": 0.5, "epochs": 2}], "data.train[2].weight is 0.5; epochs is 2 too"),
        ([{"path": "a", "weights": 0.5}], "data.train[1] has no key weights. did you mean weight?"),
        ([{"path": "a", "epochs": 1.5}], "data.train[1].epochs is 1.5; it must be an integer"),
        ([{"path": "a", "max_samples": 0}], "data.train[1].max_samples is 0"),
        ([{"path": "a", "epochs": 10**30}], "of at least 1 and below 2^53"),
        ([{"path": "a", "weight": 10**400}, "b"], "it must be a number above 0 and below 2^53"),
        ([{"weight": 0.5}, "b"], "data.train[1].path is None"),
        ([{"path": []}], "data.train[1].path is []"),
        ([{"path": "a", "weight": 0.5}], "there is one entry; a share needs another"),
        ([{"path": "a", "weight": 0.5, "by": "words"}, "b"], "data.train[1].by is 'words'"),
        ([{"path": "a", "by": "tokens"}, "b"], "data.train[1].by is 'tokens'; it says what a weight counts"),
        ([{"path": "a", "weight": 1, "by": "tokens"}, {"path": "b", "weight": 1}], "give all entries with a weight"),
        ([{"path": "a", "weight": 0.7}, {"path": "b", "weight": 0.3}, "c"], "sum to 1; beside entries without"),
        ([], "data.train is an empty list"),
    ],
)
def test_what_cannot_be_is_refused(train: list, said: str):
    with pytest.raises(ConfigError) as refused:
        DataConfig(train=train)
    assert said in refused.value.en
    assert "data.train" in refused.value.ja
    assert any("ぁ" <= character <= "ん" for character in refused.value.ja)


def test_all_problems_of_the_entries_are_said_at_once():
    with pytest.raises(ConfigError) as refused:
        load_config(None, ["data.train=[{path: a, weight: 0}, {path: b, epochs: 0, weights: 1}]"])
    assert [text in refused.value.en for text in ("[1].weight", "[2].epochs", "no key weights")] == [True] * 3


def test_old_rows_beside_a_mixture_are_one_more_entry():
    passes, weights = Entry(("a",), epochs=2), [Entry((name,), weight=0.5, by="tokens") for name in "ab"]
    beside = with_replay(Sources((passes, weights[0])), "old.jsonl", 0.1).entries
    assert beside == (passes, weights[0], Entry(("old.jsonl",), weight=0.1, by="tokens"))
    among = with_replay(Sources(tuple(weights)), ["old.jsonl", "more.jsonl"], 0.2).entries
    assert among[2].path == ("old.jsonl", "more.jsonl")
    assert among[2].weight == pytest.approx(0.25)  # a fifth of 1.25


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([{"path": "a", "weight": 1}, {"path": "b", "weight": 1}], "by: tokens"),
        ([{"path": "a", "weight": 0.9, "by": "tokens"}, "b"], "sum to 1, which leaves nothing"),
    ],
)
def test_weights_that_do_not_go_with_the_share_of_old_rows_are_refused(train: list, said: str):
    with pytest.raises(ConfigError, match=said):
        DataConfig(train=train, replay=ReplayConfig("old.jsonl", 0.1))


def test_a_path_and_a_list_of_paths_are_what_they_were():
    for value in ("a.jsonl", ["a.jsonl", "b.jsonl"], None):
        assert sources_of(value) is None
        assert DataConfig(train=value).train == value


def test_entries_are_read_from_yaml_and_from_the_command_line(tmp_path: Path):
    text = "[{path: a.jsonl, weight: 0.7}, {path: [b.jsonl, c.jsonl], epochs: 2, max_samples: 10}]"
    (tmp_path / "run.yaml").write_text(f"data:\n  train: {text}\n", encoding="utf-8")
    for config in (load_config(tmp_path / "run.yaml"), load_config(None, [f"data.train={text}"])):
        assert config.data.train == TWO
        sources = sources_of(config.data.train)
        assert sources is not None
        assert sources.entries == (
            Entry(("a.jsonl",), weight=0.7),
            Entry(("b.jsonl", "c.jsonl"), epochs=2, max_samples=10),
        )
    mixed = sources_of(["a.jsonl", {"path": "b.jsonl", "weight": 0.25, "by": "tokens"}])
    assert mixed is not None
    assert [entry.passes for entry in mixed.entries] == [1, None]


def test_a_mapping_without_its_list_is_refused_as_what_it_is():
    """On the command line too, where it is no name of a file."""
    mapping = "{path: a.jsonl, weight: 0.5}"
    for load in (
        lambda: load_config(None, [f"data.train={mapping}"]),
        lambda: DataConfig(train={"path": "a.jsonl", "weight": 0.5}),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError) as refusal:
            load()
        assert "data.train is {'path': 'a.jsonl', 'weight': 0.5} (dict); it must be text, a list of" in refusal.value.en


def test_paths_are_those_of_the_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.jsonl").write_text("{}\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(None, ["data.train=[{path: ~/a.jsonl, weight: 0.5}, ~/missing.jsonl]"])
    assert paths_of(config.data.train) == [str(tmp_path / "a.jsonl"), str(tmp_path / "missing.jsonl")]
    relative = RunConfig(data=DataConfig(train=[{"path": "a.jsonl", "weight": 0.5}, {"path": "hub/name"}]))
    moved = absolute_paths(relative, tmp_path)
    assert moved.data.train == [{"path": str(tmp_path / "a.jsonl"), "weight": 0.5}, {"path": "hub/name"}]
    (tmp_path / "run.yaml").write_text(describe_run(moved, {}), encoding="utf-8")
    assert load_config(tmp_path / "run.yaml").data.train == moved.data.train
    assert with_values(moved.data, max_length=64).train == moved.data.train
