"""aift sample and aift score: several answers to each question, judged, and rows to train on out of them."""

from __future__ import annotations

import json
import py_compile
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from tests.support.batches import batches
from tests.support.commands import call, environment

from ai_finetuning.data.messages import Conversation
from ai_finetuning.data.sources import load_samples
from ai_finetuning.errors import DataError
from ai_finetuning.evaluation import judging
from ai_finetuning.japanese.prompts import render
from ai_finetuning.models.tokenizers import load_tokenizer
from ai_finetuning.system.children import isolated_environment

OPTIONS = ("-k", "3", "--max-new-tokens", "6", "--seed", "5")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Four questions: all right, two mixed (one of them twice in the file), all wrong; a cut answer, an empty one."""
    capital = {"question": "首都は？", "row": {"質問": "首都は？", "回答": "東京です。"}}
    rows = [
        {"question": "1の次は？", "row": {"質問": "1の次は？", "回答": "2"}, "samples": ["2", "２。", "2"]},
        capital | {"samples": ["東京です。", "大阪です。", "東京です", "大阪です"]},
        capital | {"samples": ["京都です。", "東京です。", "京都です。", "奈良です。"]},
        {
            "question": "訳して",
            "material": "Good",
            "system": "短く。",
            "row": {"質問": "訳して", "回答": ["良い", "よい"]},
            "samples": ["よい", "悪い", "", "良い"],
            "ends": ["stop", "stop", "stop", "length"],
        },
        {"question": "3の次は？", "row": {"質問": "3の次は？", "回答": "4"}, "samples": ["5", "6"]},
    ]
    return write(tmp_path / "samples.jsonl", rows)


# aift sample


def test_the_same_command_gives_the_same_answers_and_another_seed_others(kotoha: str, tmp_path: Path, capsys):
    text = "質問,正解,文脈\n首都は？,東京,日本\n,,\n3の次の数は何ですか？,4,\n"
    questions = tmp_path / "q.csv"
    questions.write_bytes(text.encode("cp932"))
    target = ["sample", kotoha, str(questions), *OPTIONS, "--out"]
    assert call(*target, str(tmp_path / "a.jsonl")) == 0
    shown = capsys.readouterr().out
    assert "drew 6 answers to 2 questions" in shown
    assert "aift score" in shown
    rows = lines(tmp_path / "a.jsonl")
    assert [(row["number"], row["question"], row.get("material")) for row in rows] == [
        (2, "首都は？", "日本"),
        (4, "3の次の数は何ですか？", None),
    ]
    assert rows[0]["row"] == {"質問": "首都は？", "正解": "東京", "文脈": "日本"}
    assert all(len(row["samples"]) == len(row["ends"]) == 3 for row in rows)
    assert len({text for row in rows for text in row["samples"]}) > 3
    assert call(*target, str(tmp_path / "b.jsonl")) == 0
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert call(*target, str(tmp_path / "c.jsonl"), "--seed", "6") == 0
    assert lines(tmp_path / "c.jsonl") != rows
    # A workbook asks the same; fewer samples are the first ones of more. Its rows have the numbers of the sheet.
    book = openpyxl.Workbook()
    for line in text.splitlines():
        book.active.append(line.split(","))
    book.save(tmp_path / "q.xlsx")
    assert call("sample", kotoha, str(tmp_path / "q.xlsx"), *OPTIONS, "--out", str(tmp_path / "d.jsonl")) == 0
    assert lines(tmp_path / "d.jsonl") == rows


def test_no_answer_depends_on_the_size_of_the_batch_or_on_their_number(tiny_model_dir: Path, tmp_path: Path):
    """In fp32, which this model is in."""
    questions = write(tmp_path / "q.jsonl", [{"質問": f"{n}の次の数は何ですか？"} for n in (1, 20, 300)])
    target = ["sample", str(tiny_model_dir), str(questions), *OPTIONS]
    assert call(*target, "--out", str(tmp_path / "a.jsonl")) == 0
    assert call(*target, "--out", str(tmp_path / "b.jsonl"), "--batch-size", "2") == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert call(*target, "--out", str(tmp_path / "c.jsonl"), "-k", "5") == 0
    for more, fewer in zip(lines(tmp_path / "c.jsonl"), lines(tmp_path / "a.jsonl"), strict=True):
        assert more["samples"][:3] == fewer["samples"]


def test_a_command_that_was_stopped_goes_on_with_the_same_result(kotoha: str, tmp_path: Path, logged):
    questions = write(tmp_path / "q.jsonl", [{"質問": f"{n}の次の数は何ですか？"} for n in range(5)])
    target = ["sample", kotoha, str(questions), *OPTIONS, "--batch-size", "6", "--out"]
    assert call(*target, str(tmp_path / "whole.jsonl")) == 0
    out = tmp_path / "parts.jsonl"
    with batches(most=2) as asked:
        assert call(*target, str(out)) == 130
    assert asked == [6, 6]
    assert not out.exists()
    partial = tmp_path / "parts.jsonl.partial.jsonl"
    kept = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(kept[:-1]) + kept[-1][:20])  # as a killed process leaves it
    assert call(*target, str(out), "-k", "4") == 78  # another command does not mix its answers in
    assert "different: samples" in logged()
    assert call(*target, str(out)) == 0
    assert "has 3 answers; 2 are left" in logged()
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


def test_a_question_that_is_too_long_is_left_out_and_said(kotoha: str, tmp_path: Path, logged):
    questions = write(tmp_path / "q.jsonl", [{"質問": "首都は？"}, {"質問": "長い" * 3000}])
    assert call("sample", kotoha, str(questions), *OPTIONS, "--out", str(tmp_path / "a.jsonl")) == 65
    assert "1 rows could not be answered (they are not in the file): row 2" in logged()
    assert [row["question"] for row in lines(tmp_path / "a.jsonl")] == ["首都は？"]


@pytest.mark.parametrize(
    ("more", "code", "en", "ja"),
    [
        (["-k", "0"], 78, "--samples (-k) is 0; it must be at least 1", "1 以上 10,000 以下"),
        (["-k", "10001"], 78, "at most 10,000", "10,000 以下にしてください"),
        (["--temperature", "0"], 78, "above 0 (for the one answer", "aift answer --greedy"),
        (["--temperature", "nan"], 78, "--temperature is nan", "--temperature が nan"),
        (["--top-p", "2"], 78, "top_p is 2.0", "top_p が 2.0"),
        (["--out", "a.csv"], 78, "--out is a.csv; it must end in .jsonl", ".jsonl のファイルにしてください"),
        (["--out", "no/a.jsonl"], 66, "the folder no of --out", "フォルダー no がありません"),
        (["--out", "q.jsonl"], 78, "the file itself that is read", "読むファイル"),
        (["--out", "there.jsonl"], 78, "replace it with --overwrite", "--overwrite"),
        (["--column", "x"], 78, "--column is x", "--column が x"),
    ],
)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_sample_refuses_before_a_model_is_looked_for(
    more: list[str], code: int, en: str, ja: str, language: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIFT_LANG", language)
    write(tmp_path / "q.jsonl", [{"質問": "首都は？"}])
    (tmp_path / "there.jsonl").write_text("kept")
    assert call("sample", "no/model", "q.jsonl", "--out", "a.jsonl", *more) == code
    assert {"en": en, "ja": ja}[language] in capsys.readouterr().err
    assert (tmp_path / "there.jsonl").read_text() == "kept"


# aift score


def test_right_answers_become_rows_without_duplicates(samples: Path, tmp_path: Path, capsys, logged):
    out = {name: tmp_path / f"{name}.jsonl" for name in ("sft", "pairs", "marked")}
    files = ("--sft", str(out["sft"]), "--pairs", str(out["pairs"]), "--out", str(out["marked"]))
    assert call("score", str(samples), "--by", "exact", *files) == 0
    said = logged()
    assert "5 questions, 17 answers, of which 8 are right (47.1%)" in said
    assert "all right: 1, some right: 3, all wrong: 1" in said
    assert "1 answers did not end by themselves" in said
    assert lines(out["sft"]) == [
        {"instruction": "1の次は？", "output": "2"},
        {"instruction": "首都は？", "output": "東京です。"},
        {"instruction": "訳して", "input": "Good", "system": "短く。", "output": "よい"},
    ]
    # The most frequent wrong answer: 大阪です。 was drawn twice, in two spellings, and so was 京都です。.
    assert lines(out["pairs"]) == [
        {"prompt": "首都は？", "chosen": "東京です。", "rejected": "京都です。"},
        {"prompt": "訳して", "input": "Good", "system": "短く。", "chosen": "よい", "rejected": "悪い"},
    ]
    marks = [row["right"] for row in lines(out["marked"])]
    assert marks == [
        [True] * 3,
        [True, False, True, False],
        [False, True, False, False],
        [True, False, False, True],
        [False] * 2,
    ]
    # Files that are there stay, unless they may be replaced; more rows of a question on request.
    before = out["sft"].read_bytes()
    assert call("score", str(samples), "--by", "exact", *files) == 78
    assert call("score", str(samples), "--by", "exact", *files, "--per-question", "3", "--overwrite") == 0
    assert out["sft"].read_bytes() == before  # 東京です。 and 東京です are one answer
    rejected = [row["rejected"] for row in lines(out["pairs"]) if row["prompt"] == "首都は？"]
    assert sorted(rejected) == ["京都です。", "大阪です。", "奈良です。"]


def test_judging_needs_no_torch(samples: Path, tmp_path: Path):
    """Which takes seconds to import."""
    code = (
        "import sys; from ai_finetuning.apps.cli.main import run; "
        "print(run(sys.argv[1:]), [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "score", str(samples), "--by", "exact", "--sft", str(tmp_path / "a.jsonl")]
    here = environment(PYTHONPATH=isolated_environment()["PYTHONPATH"])
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert lines(tmp_path / "a.jsonl")


def test_rows_are_trained_as_they_were_asked(samples: Path, kotoha: str, tmp_path: Path):
    """A written row renders as the prompt of the sample and its answer."""
    assert call("score", str(samples), "--by", "exact", "--sft", str(tmp_path / "sft.jsonl")) == 0
    rows, _ = load_samples(str(tmp_path / "sft.jsonl"))
    tokenizer = load_tokenizer(kotoha)
    last = rows[-1]
    assert isinstance(last, Conversation)
    asked = [{"role": "system", "content": "短く。"}, {"role": "user", "content": "訳して\n\nGood"}]
    prompt = render(tokenizer, asked, add_generation_prompt=True)
    assert render(tokenizer, last.as_dicts()).startswith(prompt + "よい")


def test_samples_are_no_training_data(samples: Path, tmp_path: Path, kotoha: str, capsys):
    """The file, with marks and without, is refused by training instead of being trained as something else."""
    marked = tmp_path / "marked.jsonl"
    assert call("score", str(samples), "--by", "exact", "--out", str(marked)) == 0
    with pytest.raises(DataError, match="make no training sample"):
        load_samples(str(samples))
    assert call("train", f"model={kotoha}", f"data.train={marked}", f"output_dir={tmp_path / 'run'}") == 65
    assert "make no training sample" in capsys.readouterr().err


def test_answers_of_another_program_can_be_judged(tmp_path: Path, capsys):
    file = write(tmp_path / "vllm.jsonl", [{"question": "首都は？", "answer": "東京", "samples": ["東京", "大阪"]}])
    assert call("score", str(file), "--by", "exact", "--pairs", str(tmp_path / "p.jsonl")) == 0
    assert lines(tmp_path / "p.jsonl") == [{"prompt": "首都は？", "chosen": "東京", "rejected": "大阪"}]


@pytest.mark.parametrize(
    ("pattern", "right"),
    [
        ("東京", 3),  # somewhere in the answer
        ("^{expected}$", 6),  # as it is written, the full-width 2 and a missing 。 are another answer
        (r"^\p{Han}+です。?$", 8),
        (r"^[0-9]$", 4),
    ],
)
def test_a_pattern_marks_what_holds_it(pattern: str, right: int, samples: Path, capsys):
    assert call("score", str(samples), "--by", "regex", "--pattern", pattern) == 0
    assert f"17 answers, of which {right} are right" in capsys.readouterr().out


def test_the_expected_answer_in_a_pattern_is_text(tmp_path: Path, capsys):
    rows = [{"question": "記号は？", "answer": "a.c(", "samples": ["a.c(", "abc("]}]
    file = write(tmp_path / "s.jsonl", rows)
    assert call("score", str(file), "--by", "regex", "--pattern", "{expected}") == 0
    assert "2 answers, of which 1 are right" in capsys.readouterr().out


@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_pattern_that_does_not_end_is_stopped(language: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("AIFT_LANG", language)
    monkeypatch.setattr(judging, "SECONDS", 0.25)
    file = write(tmp_path / "s.jsonl", [{"question": "q", "samples": ["b", "a" * 5000 + "b"]}])
    began = time.process_time()
    assert (
        call("score", str(file), "--by", "regex", "--pattern", "(?:a|aa)+$", "--out", str(tmp_path / "o.jsonl")) == 78
    )
    assert time.process_time() - began < 10
    said = capsys.readouterr().err
    assert {"en": "takes more than 0.25 s for one answer", "ja": "0.25 秒を超えて"}[language] in said
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    "pattern", ["(((a{1000}){1000}){1000}){1000}", r"(?:\(a?[){]{0,3000}){,3000}", "a{" + "9" * 5000 + "}"]
)
def test_a_pattern_that_would_fill_the_memory_is_not_compiled(pattern: str, tmp_path: Path, capsys):
    file = write(tmp_path / "s.jsonl", [{"question": "q", "samples": ["a"]}])
    began = time.process_time()
    code = call("score", str(file), "--by", "regex", "--pattern", pattern)
    assert time.process_time() - began < 2
    if "9" in pattern:  # more digits than a count has
        assert code in (0, 78)
        return
    assert code == 78
    assert "more than 1,000,000" in capsys.readouterr().err


def test_the_checks_of_the_evaluation_judge_by_the_questions_column(tmp_path: Path, capsys):
    polite = [{"check": "polite"}, {"check": "characters_at_most", "n": 12}]
    words = [{"check": "keyword_at_least", "word": "海", "n": 1}, {"check": "keyword_at_least", "word": "山", "n": 1}]
    rows = [
        {"question": "挨拶", "checks": polite, "samples": ["ありがとうございます。", "ありがとう。", ""]},
        {
            "question": "長く",
            "checks": json.dumps(polite),
            "samples": ["とても長い返事を書いています。"],
        },  # as CSV has it
        {"question": "景色", "checks": words, "samples": ["海と山", "山"]},
    ]
    file = write(tmp_path / "s.jsonl", rows)
    assert call("score", str(file), "--by", "checks", "--out", str(tmp_path / "o.jsonl")) == 0
    assert [row["right"] for row in lines(tmp_path / "o.jsonl")] == [[True, False, False], [False], [True, False]]


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        (None, "a list of objects with a check"),
        ("not json", "cannot be read"),
        ([{"check": "polit"}], "known: polite"),
        ([{"check": "lines", "n": "3"}], "a whole number"),
        ([{"check": "lines", "n": 10**400}], "a whole number from 0 to"),
        ([{"check": "lines"}], "takes n"),
        ([{"check": "sections", "separator": "", "n": 2}], "a text, not empty"),
        ([{"check": "keywords", "words": []}], "none empty"),
        ([{"check": "keywords", "words": ["海", ""]}], "none empty"),
        ([{"check": "keywords", "words": "海"}], "a list of texts"),
    ],
)
def test_checks_that_cannot_be_are_refused_with_their_question(checks: Any, said: str, tmp_path: Path, capsys):
    rows = [{"number": 7, "question": "q", "row": {"checks": checks}, "samples": ["a"]}]
    assert call("score", str(write(tmp_path / "s.jsonl", rows)), "--by", "checks") == 65
    shown = capsys.readouterr().err
    assert "question 7" in shown
    assert said in shown


def test_a_function_judges_and_it_is_said_that_its_code_runs(samples: Path, tmp_path: Path, capsys, logged):
    code = "def ok(answer, question):\n    return answer in question['row']['回答'] and 'samples' not in question\n"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    name = f"{tmp_path / 'mine.py'}:ok"
    out = tmp_path / "o.jsonl"
    assert call("score", str(samples), "--by", name, "--out", str(out)) == 0
    said = logged()
    assert f"running {name}: the code of this file can do whatever you can do here" in said
    assert [row["right"] for row in lines(out)][1] == [True, False, True, False]


@pytest.mark.parametrize(
    ("code", "name", "exit_code", "en", "ja"),
    [
        ("def ok(a, q):\n    return True\n", "mine.py:none", 78, "has no function none; functions: ok", "関数 none が"),
        ("x = (\n", "mine.py:ok", 78, "cannot be run (SyntaxError", "読み込めません"),
        ("import not_there\n", "mine.py:ok", 78, "mine.py:1 of --by cannot be run (ModuleNotFound", "読み込めません"),
        (
            "def ok(a, q):\n    return q['x']\n",
            "mine.py:ok",
            78,
            "mine.py:2 of --by fails over an answer",
            "止まりました",
        ),
        ("def ok(a, q):\n    return 1\n", "mine.py:ok", 78, "must return True or False", "True か False"),
        ("def ok(a):\n    return True\n", "mine.py:ok", 78, "fails over an answer of question", "止まりました"),
        ("", "other.py:ok", 66, "other.py of --by does not exist", "other.py がありません"),
        ("", "mine.py", 64, "must be one of exact, regex", "のどれかにしてください"),
        ("", "exactly", 64, "must be one of exact, regex", "のどれかにしてください"),
    ],
)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_what_is_wrong_with_a_function_is_said(
    code: str, name: str, exit_code: int, en: str, ja: str, language: str, samples: Path, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIFT_LANG", language)
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    assert call("score", str(samples), "--by", name, "--out", str(tmp_path / "o.jsonl")) == exit_code
    said = capsys.readouterr().err
    assert {"en": en, "ja": ja}[language] in said
    assert "Traceback" not in said
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "code", "en", "ja"),
    [
        (["--by", "regex"], 64, "--pattern and --by regex belong together", "--pattern は"),
        (["--by", "exact", "--pattern", "x"], 64, "belong together", "--pattern は"),
        (["--by", "regex", "--pattern", "x", "--expected", "回答"], 64, "--expected is for", "--expected は"),
        (["--by", "regex", "--pattern", "(a"], 78, "is no regular expression", "読めません"),
        (["--by", "regex", "--pattern", ""], 78, "--pattern is empty", "--pattern が空です"),
        (["--by", "exact", "--expected", "正解"], 78, "columns: 質問, 回答", "列: 質問, 回答"),
        (["--by", "exact", "--sft", "a.csv"], 78, "--sft is a.csv; it must end in .jsonl", "--sft が a.csv"),
        (["--by", "exact", "--sft", "a.jsonl", "--pairs", "a.jsonl"], 78, "must be different files", "同じファイル"),
        (["--by", "exact", "--per-question", "0"], 78, "at least 1", "1 以上"),
        (
            ["--by", "regex", "--pattern", "zzz", "--sft", "a.jsonl", "--out", "b.jsonl"],
            65,
            "no row for --sft",
            "--sft に",
        ),
    ],
)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_score_refuses(
    more: list[str], code: int, en: str, ja: str, language: str, samples: Path, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIFT_LANG", language)
    assert call("score", str(samples), *more) == code
    assert {"en": en, "ja": ja}[language] in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"samples.jsonl"}


@pytest.mark.parametrize(
    "line",
    ["[]", "{", '{"question": "q"}', '{"question": "q", "samples": "a"}', '{"question": "q", "samples": []}']
    + ['{"question": 1, "samples": ["a"]}', '{"question": "q", "samples": ["a"], "ends": []}'],
)
def test_a_line_that_is_no_question_with_samples_is_named(line: str, tmp_path: Path, capsys):
    file = tmp_path / "s.jsonl"
    file.write_text('{"question": "q", "answer": "a", "samples": ["a"]}\n' + line + "\n", encoding="utf-8")
    assert call("score", str(file), "--by", "exact") == 65
    assert "s.jsonl:2: no question with samples" in capsys.readouterr().err
    assert call("score", str(tmp_path / "none.jsonl"), "--by", "exact") == 66


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"質問": "q", "回答": ""}, "1 questions have no expected answer in the column 回答"),
        ({"質問": "q", "回答": float("nan")}, "1 questions have no expected answer in the column 回答"),
        ({"質問": "q"}, "no column is known to hold the expected answers (質問)"),
        ({"回答": "a", "答え": "b"}, "several columns may hold the expected answers (回答, 答え)"),
    ],
)
def test_questions_without_an_expected_answer_are_refused(row: dict[str, str], said: str, tmp_path: Path, capsys):
    file = write(tmp_path / "s.jsonl", [{"question": "q", "row": row, "samples": ["a"]}])
    assert call("score", str(file), "--by", "exact") == 65
    assert said in capsys.readouterr().err


def test_what_runs_is_the_file_that_can_be_read(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """A compiled file beside it, which says that it needs no comparison with its source, is not run in its place."""
    file = tmp_path / "mine.py"
    file.write_text("def ok(answer, question):\n    raise ValueError('planted')\n", encoding="utf-8")
    py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    file.write_text("def ok(answer, question):\n    return True\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    assert call("score", str(samples), "--by", f"{file}:ok") == 0
    assert "17 answers, of which 17 are right" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_an_answer_that_is_right_and_wrong_teaches_nothing(tmp_path: Path, capsys):
    """The same question twice, with different expected answers."""
    file, sft, pairs = (tmp_path / f"{name}.jsonl" for name in ("samples", "sft", "pairs"))
    asked = [{"question": "q", "answer": answer, "samples": ["a", "b", "c"]} for answer in ("a", "b")]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    (tmp_path / "sub").mkdir()
    same = tmp_path / "sub" / ".." / "sft.jsonl"
    assert call("score", str(file), "--by", "exact", "--sft", str(sft), "--pairs", str(same)) == 78
    assert call("score", str(file), "--by", "exact", "--sft", str(sft)) == 65  # a and b are both
    with file.open("a", encoding="utf-8") as more:
        more.write(json.dumps({"question": "q", "answer": "d", "samples": ["d", "a"]}) + "\n")
    assert call("score", str(file), "--by", "exact", "--sft", str(sft), "--pairs", str(pairs)) == 0
    assert (lines(sft), lines(pairs)) == (
        [{"instruction": "q", "output": "d"}],
        [{"prompt": "q", "chosen": "d", "rejected": "c"}],
    )
