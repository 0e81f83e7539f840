"""`aift data doctor` and `aift data split` as a user runs them, and the warning before training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.apps.cli.main import run
from ai_finetuning.data.doctor.rules import RULES

TOKYO = "東京です。江戸時代から政治の中心で、いまも多くの省庁と企業の本社が集まっています。"
GOOD = [
    {"質問": f"第{number}の町について教えてください。", "回答": f"第{number}の町には、古い橋があります。"}
    for number in range(20)
]
ODD = [
    {"質問": "初日は？", "回答": "アバター』の初日は12月18日です。"},
    {"質問": "返事は？", "回答": "はい" * 60},
    {"質問": "連絡先は？", "回答": "電話は090-1234-5678です。"},
    {"質問": "首都は？", "回答": "東京は\x1b[2J首都です。"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "a.jsonl", GOOD + ODD[:3])


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_report_names_rules_rows_and_what_to_do(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, language: str
):
    monkeypatch.setenv("AIFT_LANG", language)
    before = Path(file).read_bytes()
    assert run(["data", "doctor", file]) == 0
    said = capsys.readouterr().out
    for key in ("quote_lost", "loop", "mobile"):
        assert f"({key})" in said
    assert "a.jsonl:21" in said
    assert "→ 『アバター』の初日" in said
    assert "090-1234" not in said
    assert "--fix safe --out FILE" in said
    assert ("見つからない" if language == "ja" else "not found") in said
    assert Path(file).read_bytes() == before
    assert [path.name for path in Path(file).parent.iterdir()] == ["a.jsonl"]


def test_clean_data_is_said_to_be_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "doctor", write(tmp_path / "a.jsonl", GOOD)]) == 0
    said = capsys.readouterr().out
    assert "to check" not in said
    assert "fixable" not in said


def test_errors_end_with_65_and_a_terminal_gets_no_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write(tmp_path / "a.jsonl", GOOD + ODD)
    assert run(["data", "doctor", file]) == 65
    assert run(["data", "doctor", file, "--show", "control"]) == 65
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\\x1b" in said


def test_show_and_rule_take_one_rule(file: str, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "doctor", file, "--show", "mobile"]) == 0
    assert "電話は⟨090-1234-5678⟩です" in capsys.readouterr().out
    assert run(["data", "doctor", file, "--rule", "loop"]) == 0
    said = capsys.readouterr().out
    assert "(loop)" in said
    assert "(quote_lost)" not in said


def test_rules_are_left_out_by_their_keys(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for how in (
        ["--ignore", "loop,mobile"],
        ["--ignore", "loop", "--ignore", "mobile"],
        ["data.doctor.ignore=[loop,mobile]"],
    ):
        assert run(["data", "doctor", file, *how, "--json", "-"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert list(report["rules"]) == [rule.key for rule in RULES if rule.key not in ("loop", "mobile")]
    out = tmp_path / "b.jsonl"
    assert run(["data", "doctor", file, "--ignore", "loop", "--fix", "safe", "--out", str(out)]) == 0
    assert len(read(out)) == 23
    assert run(["data", "doctor", file, "--ignore", "lop"]) == 64
    assert run(["data", "doctor", file, "data.doctor.ignore=[lop]"]) == 78
    odd = write(tmp_path / "c.jsonl", GOOD + ODD)
    assert run(["data", "doctor", odd]) == 65
    assert run(["data", "doctor", odd, "--ignore", "control"]) == 0


def test_training_leaves_the_same_rules_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As `aift data stats` prepares the data: what training does."""
    broken = TOKYO.encode("euc_jp").decode("cp932", "ignore")
    rows = [*GOOD, {"質問": "首都は？", "回答": broken}, {"質問": "山は？", "回答": "山は\ufffdです。"}, ODD[1]]
    command = ["data", "stats", write(tmp_path / "a.jsonl", rows), "--model", "embedded:kotoha-tiny"]
    refused, loops = "Training refuses data with such rows", "ends in a loop"
    for ignored, told, named in (
        ("", (refused, loops), [21, 22]),
        ("mojibake", (refused, loops), [22]),
        ("mojibake,replacement", (loops,), []),
        ("mojibake,replacement,loop", (), []),
    ):
        assert run([*command, f"data.doctor.ignore=[{ignored}]"]) == 0
        said = "".join(capsys.readouterr())
        assert [text in said for text in (refused, loops)] == [text in told for text in (refused, loops)]
        assert [row for row in (21, 22) if f"a.jsonl:{row}: the text is mojibake" in said] == named
    train = [
        "train",
        "model=embedded:kotoha-tiny",
        f"data.train={command[2]}",
        f"training.output_dir={tmp_path / 'out'}",
    ]
    assert run([*train, "data.doctor.ignore=[mojibak]", "--dry-run"]) == 78
    assert "there is no such rule" in capsys.readouterr().err


def test_json_has_every_rule_and_no_text_of_a_row(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "doctor", file, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["rules"]) == [rule.key for rule in RULES]
    assert report["rules"]["loop"]["rows"] == 1
    (hit,) = report["rules"]["quote_lost"]["hits"]
    assert (hit["row"], hit["source"], hit["place"], hit["spans"]) == (21, f"{file}:21", ["回答"], [[0, 5]])
    assert report["rows"] == 23
    assert run(["data", "doctor", file, "--json", str(tmp_path / "r.json")]) == 0
    written = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert json.loads(written) == report
    assert not any(word in written for word in ("アバター", "はいはい", "090", "古い橋"))


def test_fix_writes_another_file_and_undo_gives_the_rows_back(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "fixed" / "clean.jsonl"
    out.parent.mkdir()
    assert run(["data", "doctor", file, "--fix", "safe", "--mask", "--out", str(out)]) == 0
    rows = read(out)
    assert len(rows) == 22
    assert rows[:20] == GOOD
    assert rows[20]["回答"] == "『アバター』の初日は12月18日です。"
    assert rows[21]["回答"] == "電話は090-0000-0000です。"
    assert "loop 1" in capsys.readouterr().out
    journal = out.with_name("doctor.jsonl")
    assert [line.get("rule") for line in read(journal)] == [None, "quote_lost", "loop", "mobile"]
    back = tmp_path / "back.jsonl"
    assert run(["data", "doctor", str(out), "--undo", str(journal), "--out", str(back)]) == 0
    assert back.read_bytes() == Path(file).read_bytes()


def test_rows_come_back_where_all_of_them_were_left_out(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", [{"質問": "返事は？", "回答": "はい" * 60}])
    out = tmp_path / "out" / "b.jsonl"
    out.parent.mkdir()
    assert run(["data", "doctor", file, "--fix", "safe", "--out", str(out)]) == 0
    assert out.read_bytes() == b""
    back = tmp_path / "c.jsonl"
    assert run(["data", "doctor", str(out), "--undo", str(out.with_name("doctor.jsonl")), "--out", str(back)]) == 0
    assert back.read_bytes() == Path(file).read_bytes()


def test_what_remains_after_a_repair_decides_the_exit_code(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", GOOD + ODD)
    assert run(["data", "doctor", file, "--fix", "safe", "--out", str(tmp_path / "b.jsonl")]) == 65
    assert run(["data", "doctor", file, "--fix", "all", "--out", str(tmp_path / "b.jsonl"), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--fix", "safe"], 64),
        (["--fix", "some", "--out", "b.jsonl"], 64),
        (["--out", "b.jsonl"], 64),
        (["--mask"], 64),
        (["--rule", "lop"], 64),
        (["--keep-style", "polit", "--out", "b.jsonl"], 64),
        (["--keep-style", "敬体"], 64),
        (["--show", "lop"], 64),
        (["--fix", "safe", "--out", "a.jsonl", "--overwrite"], 64),
        (["--fix", "safe", "--out", "there.jsonl"], 64),
        (["--fix", "safe", "--out", "no/where.jsonl"], 74),
        (["--eval", "none.jsonl"], 66),
        (["--undo", "none.jsonl", "--out", "b.jsonl"], 65),
    ],
)
def test_what_does_not_go_together_is_refused(
    file: str, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(Path(file).parent)
    Path("there.jsonl").write_text("{}\n", encoding="utf-8")
    before = Path(file).read_bytes()
    assert run(["data", "doctor", "a.jsonl", *arguments]) == code
    assert Path(file).read_bytes() == before
    assert Path("there.jsonl").read_text(encoding="utf-8") == "{}\n"
    assert "Traceback" not in capsys.readouterr().err


def test_a_style_is_kept_by_its_name(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", [*GOOD, {"質問": "山は？", "回答": "富士山である。高い。"}])
    assert run(["data", "doctor", file, "--keep-style", "敬体", "--out", str(tmp_path / "b.jsonl")]) == 0
    assert read(tmp_path / "b.jsonl") == GOOD


def test_rows_that_training_would_refuse_are_named_and_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "a.jsonl"
    write(file, [*GOOD, {"質問": "首都は？", "回答": ""}])
    assert run(["data", "doctor", str(file)]) == 65
    assert "(unreadable)" in capsys.readouterr().out
    with file.open("a", encoding="utf-8") as more:
        more.write("{broken\n")
    assert run(["data", "doctor", str(file)]) == 65
    assert "not valid JSON" in capsys.readouterr().out
    assert run(["data", "doctor", str(file), "--fix", "safe", "--out", str(tmp_path / "b.jsonl")]) == 65
    assert not (tmp_path / "b.jsonl").exists()


def test_chosen_and_rejected_tables_and_conversations_are_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pairs = write(
        tmp_path / "p.jsonl",
        [{"prompt": f"{number}の首都は？", "chosen": "はい" * 60, "rejected": "いいえ" * 60} for number in range(3)],
    )
    assert run(["data", "doctor", pairs, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {tuple(hit["place"]) for hit in report["rules"]["loop"]["hits"]} == {("chosen",)}
    with (tmp_path / "t.csv").open("w", encoding="cp932", newline="") as table:
        csv.writer(table).writerows([["質問", "回答"], ["首都は？", "アバター』の初日です。"], ["次は？", TOKYO]])
    assert run(["data", "doctor", str(tmp_path / "t.csv"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rules"]["quote_lost"]["hits"][0]["source"].endswith("t.csv:2")
    talk = [{"role": "user", "content": "首都は？"}, {"role": "assistant", "content": TOKYO}]
    talk += [{"role": "user", "content": "本当？"}, {"role": "assistant", "content": "はい" * 60}]
    assert run(["data", "doctor", write(tmp_path / "m.jsonl", [{"messages": talk}]), "--json", "-"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["rules"]["loop"]["hits"]
    assert hit["place"] == ["messages", 3, "content"]


def test_leakage_of_an_evaluation_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train = write(tmp_path / "train.jsonl", GOOD)
    evaluated = write(
        tmp_path / "eval.jsonl",
        [{"質問": GOOD[3]["質問"], "回答": "別の答えです。"}, {"質問": "別の質問は？", "回答": TOKYO}],
    )
    assert run(["data", "doctor", train, "--eval", evaluated]) == 0
    said = capsys.readouterr().out
    assert "(leak_question)  1 rows" in said
    assert "train.jsonl:4 ← " in said
    assert "eval.jsonl:1" in said
    with Path(evaluated).open("a", encoding="utf-8") as more:
        more.write("{broken\n")
    assert run(["data", "doctor", train, "--eval", evaluated]) == 0
    assert "1 rows of the evaluation data cannot be used" in capsys.readouterr().out
    Path(evaluated).write_text("{broken\n", encoding="utf-8")
    assert run(["data", "doctor", train, "--eval", evaluated]) == 65


def test_with_a_model_its_special_tokens_and_lengths_are_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write(tmp_path / "a.jsonl", [*GOOD, {"質問": "終わりは？", "回答": "終わり</s>です。"}])
    command = ["data", "doctor", file, "--model", "embedded:kotoha-tiny", "--rule", "special_token"]
    assert run([*command, "--max-length", "64"]) == 65
    said = capsys.readouterr().out
    assert "(special_token)  1 rows" in said
    assert "label tokens" in said


def test_a_file_of_broken_rows_is_refused_by_training_as_the_doctor_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Five in a hundred rows that are EUC-JP read as CP932."""
    broken = TOKYO.encode("euc_jp").decode("cp932", "replace")
    rows = [*({"質問": f"{number}は？", "回答": broken if number % 20 == 7 else TOKYO} for number in range(100))]
    file = write(tmp_path / "a.jsonl", rows)
    assert run(["data", "doctor", file, "--rule", "mojibake", "--json", "-"]) == 65
    assert json.loads(capsys.readouterr().out)["rules"]["mojibake"]["rows"] == 5
    assert (
        run(
            [
                "train",
                "model=embedded:kotoha-tiny",
                f"data.train={file}",
                f"training.output_dir={tmp_path / 'out'}",
                "--dry-run",
            ]
        )
        == 65
    )
    said = capsys.readouterr().err
    assert "mojibake" in said
    assert "a.jsonl:8" in said
    assert "strip_control" not in said


def test_split_writes_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [*GOOD, {"質問": GOOD[0]["質問"] + "？", "回答": "別の答えです。"}]
    file = write(tmp_path / "a.jsonl", rows)
    assert run(["data", "split", file, "--out", str(tmp_path / "out"), "--share", "0.2", "--seed", "1"]) == 0
    sides = [read(tmp_path / "out" / name) for name in ("train.jsonl", "eval.jsonl")]
    assert [len(side) for side in sides] == [17, 4]
    assert sorted(map(json.dumps, sides[0] + sides[1])) == sorted(map(json.dumps, rows))
    assert sum(rows[0] in side and rows[20] in side for side in sides) == 1
    assert "1" in capsys.readouterr().out
    command = ["data", "split", file, "--out", str(tmp_path / "out")]
    assert run(command) == 64
    assert run([*command, "--overwrite", "--by-rows"]) == 0
    assert run([*command, "--overwrite", "--share", "1.5"]) == 64
    assert run([*command, "--overwrite", "--time", "日時"]) == 65


def test_settings_without_an_effect_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Where a training's setting is typed, and the command has an option for it, or none."""
    data = tmp_path / "faq.csv"
    data.write_text("質問,回答\n" + "".join(f"{n} は？,{n} です。\n" for n in range(9)), encoding="utf-8")
    split = ["data", "split", str(data), "--out", str(tmp_path / "out")]
    for more, told in (
        (["data.eval=0.3"], "--share 0.1"),
        (["--eval", "0.3"], "--share 0.1"),
        (["num_epochs=3"], "does not take training"),
    ):
        assert run([*split, *more]) == 64
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run([*split, "data.columns={instruction: 質問, output: 回答}", "--share", "0.3"]) == 0
    model = ["--model", "embedded:kotoha-tiny", "data.max_length=16"]
    for verb in (["data", "stats", str(data)], ["data", "show", str(data), "--row", "1"]):
        assert run([*verb, *model]) == 64
        assert "--max-length 16" in capsys.readouterr().err


def test_split_by_time_and_by_a_column(tmp_path: Path):
    rows = [{**row, "日": f"2024年{1 + number // 2}月1日", "店": f"店{number % 5}"} for number, row in enumerate(GOOD)]
    file = write(tmp_path / "a.jsonl", rows)
    assert run(["data", "split", file, "--out", str(tmp_path / "t"), "--time", "日", "--share", "0.3"]) == 0
    assert [row["日"] for row in read(tmp_path / "t" / "eval.jsonl")] == [row["日"] for row in rows[14:]]
    assert run(["data", "split", file, "--out", str(tmp_path / "g"), "--group", "店", "--share", "0.4"]) == 0
    sides = [{row["店"] for row in read(tmp_path / "g" / name)} for name in ("train.jsonl", "eval.jsonl")]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2


def train(folder: Path, name: str, *more: str) -> int:
    return run(
        [
            "train",
            f"model={folder / 'model'}",
            f"data.train={folder / 'train.jsonl'}",
            f"training.output_dir={folder / name}",
        ]
        + ["training.schedule.max_steps=2", "lora.r=2", "training.runtime.progress=false"]
        + ["training.evaluation.verdict=false", *more]
    )


def test_training_warns_of_leakage_once_computed_and_its_bits_do_not_depend_on_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    from tests.support.models import save_tiny_model

    from ai_finetuning.execution import leakage

    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    save_tiny_model(tmp_path / "model")
    write(tmp_path / "train.jsonl", GOOD)
    held = write(
        tmp_path / "eval.jsonl",
        [{"質問": GOOD[3]["質問"], "回答": "別の答えです。"}, {"質問": "別は？", "回答": TOKYO}],
    )
    assert train(tmp_path, "first", f"data.eval={held}") == 0
    assert caplog.text.count("of 2 evaluation rows 1 have a question of the training data") == 1

    def compared(*_: Any) -> Any:
        raise AssertionError("the same data was compared again")

    monkeypatch.setattr(leakage, "find_leakage", compared)
    assert train(tmp_path, "second", f"data.eval={held}") == 0
    assert caplog.text.count("of 2 evaluation rows 1 have a question of the training data") == 2
    monkeypatch.setattr("ai_finetuning.execution.execute.warn_of_leakage", lambda *_: None)
    assert train(tmp_path, "third", f"data.eval={held}") == 0
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "second", "third")]
    assert weights[0] == weights[1] == weights[2]
    for path in (tmp_path / "first").rglob("*.json*"):
        assert "別の答え" not in path.read_text(encoding="utf-8", errors="replace") or path.name == "samples.jsonl"


def test_a_run_that_began_with_the_older_division_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Equal questions with other answers are on two sides there; a new run keeps them together."""
    from tests.support.models import save_tiny_model

    from ai_finetuning.data import prepare
    from ai_finetuning.execution import resolve

    save_tiny_model(tmp_path / "model")
    rows = [{"質問": f"{number % 10}は？", "回答": f"答えは{number}です。"} for number in range(20)]
    write(tmp_path / "train.jsonl", rows)

    def split_of(name: str) -> str:
        return str(json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8"))["derived"]["split"])

    with monkeypatch.context() as older:
        older.setattr(resolve, "SPLIT", prepare.ROWS_SPLIT)
        older.setenv("AIFT_FAULT", "step:term@1")
        assert train(tmp_path, "out", "data.eval=0.3") == 75
    assert train(tmp_path, "out", "data.eval=0.3", "--resume") == 0
    assert split_of("out") == "equal rows"
    assert train(tmp_path, "new", "data.eval=0.3") == 0
    assert split_of("new") == "equal questions"
