"""The first day: from `aift` alone to a run, as a newcomer types it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.commands import call, environment, write_run
from tests.support.patience import patience
from tests.support.systems import needs_terminal

from ai_finetuning.apps.cli import start as start_verb
from ai_finetuning.config.load import load_config
from ai_finetuning.execution.request import request_of
from ai_finetuning.execution.resolve import resolve


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PC on which nothing was trained yet."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path_factory.mktemp("cache")))


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder as an empty one."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def test_a_plan_with_a_pilot_measures_real_steps_and_keeps_nothing(tmp_path: Path, tiny_model_dir: Path, logged):
    config = write_run(tmp_path, tiny_model_dir)
    before = files_below(tmp_path)
    assert call("plan", str(config), "--pilot") == 0
    text = logged()
    assert "by three steps that were tried now" in text
    assert "memory (of three steps)" in text
    assert files_below(tmp_path) == before
    assert call("train", str(config), "--dry-run", "--pilot") == 0
    assert files_below(tmp_path) == before


def test_a_run_after_a_pilot_is_the_run_without_one(tmp_path: Path, tiny_model_dir: Path):
    losses = []
    for name in ("plain", "tried"):
        config = write_run(tmp_path / name, tiny_model_dir, schedule={"max_steps": 3})
        if name == "tried":
            assert call("plan", str(config), "--pilot") == 0
        assert call("train", str(config)) == 0
        metrics = (tmp_path / name / "out" / "metrics.jsonl").read_text(encoding="utf-8")
        losses.append([line.split('"loss": ')[1].split(",")[0] for line in metrics.splitlines() if '"loss"' in line])
    assert losses[0] == losses[1]


def test_the_plan_takes_the_speed_of_the_last_run_like_it_or_says_that_there_is_none(
    tmp_path: Path, tiny_model_dir: Path, logged
):
    config = write_run(tmp_path, tiny_model_dir, schedule={"max_steps": 3})
    assert call("plan", str(config)) == 0
    assert "unknown (no run of this model and method on this PC yet" in logged()
    assert call("train", str(config)) == 0
    assert call("plan", str(config)) == 0
    assert "by the speed of the last such run on this PC" in logged()
    other = write_run(tmp_path, tiny_model_dir).read_text(encoding="utf-8").split("lora:")[0]
    config.write_text(other.replace("method: lora", "method: full"), encoding="utf-8")
    assert call("plan", str(config)) == 0
    assert logged().count("unknown (no run of this model and method") == 2


TABLE = [
    ("No", "お問い合わせ", "ご回答", "分類", "更新日"),
    *((str(n), f"{n}番の窓口はどこですか？", f"{n}階の受付です。", "窓口", "2026/4/1") for n in range(1, 25)),
]


def workbook(path: Path) -> Path:
    """A cover, and the FAQ on the second sheet, as offices have it."""
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "表紙"
    book.active.append(["社内FAQ 第3版"])
    sheet = book.create_sheet("FAQ")
    for row in TABLE:
        sheet.append(row)
    book.save(path)
    return path


WORDS = {
    "ja": {
        "sheet": "シート",
        "rows": "先頭の 3 行",
        "number": r"番号.*\[\d\]: ",
        "recommended": "← 推奨",
        "write": "設定を run-2.yaml に書きました",
        "exists": "run.yaml は既にあります。上書きしますか",
        "begin": r"この設定で学習を始めますか \[Y/n\]: ",
        "steps": "ステップ",
        "next": "次のステップ",
        "quick": "速い",
        "standard": "標準",
        "careful": "ていねい",
    },
    "en": {
        "sheet": "sheet",
        "rows": "The first 3 rows",
        "number": r"number.*\[\d\]: ",
        "recommended": "<- recommended",
        "write": "The settings are in run-2.yaml",
        "exists": "run.yaml exists. Write over it",
        "begin": r"Train with these settings \[Y/n\]: ",
        "steps": "steps",
        "next": "next steps",
        "quick": "quick",
        "standard": "standard",
        "careful": "careful",
    },
}


@needs_terminal
@pytest.mark.parametrize("language", ["ja", pytest.param("en", marks=pytest.mark.slow)])
def test_start_asks_sheet_columns_model_and_length_in_a_terminal(tmp_path: Path, language: str):
    """Enter takes what is recommended; nothing is overwritten without a yes; 80 columns are enough."""
    import pexpect

    words = WORDS[language]
    workbook(tmp_path / "faq.xlsx")
    (tmp_path / "run.yaml").write_text("# mine\n", encoding="utf-8")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "ai_finetuning", "start", "faq.xlsx"],
        cwd=str(tmp_path),
        env=environment(AIFT_LANG=language, TERM="xterm", HF_HUB_CACHE=str(tmp_path / "none")),
        dimensions=(40, 80),
        encoding="utf-8",
        timeout=patience(120),
    )
    asked = []
    for expected in ("FAQ", "お問い合わせ", "ご回答", "embedded:kotoha-tiny", words["standard"]):
        child.expect(words["number"])
        marked = next(line for line in child.before.splitlines() if words["recommended"] in line)
        assert expected in marked, marked
        asked.append(child.before)
        child.sendline("" if expected != words["standard"] else "1")
    assert words["sheet"] in asked[0]
    assert words["rows"] in asked[3]
    assert "1番の窓口はどこですか？" in asked[3]
    for name in ("quick", "standard", "careful"):
        line = next(line for line in asked[4].splitlines() if words[name] in line)
        assert "GiB" in line
        assert words["steps"] in line
        assert re.search(r"約|about", line)
    child.expect(re.escape(words["exists"]))
    child.sendline("")
    child.expect(words["write"])
    child.expect(words["begin"])
    child.sendline("n")
    child.expect(words["next"])
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert (tmp_path / "run.yaml").read_text(encoding="utf-8") == "# mine\n"
    config = load_config(tmp_path / "run-2.yaml")
    assert config.data.sheet == "FAQ"
    assert (config.data.train, config.data.eval) == ("faq.xlsx", 0.1)
    assert config.model.name == "embedded:kotoha-tiny"
    assert not (tmp_path / "outputs").exists()  # the steps that were tried left nothing


@needs_terminal
def test_start_is_left_by_the_end_of_input_without_a_trace(tmp_path: Path):
    import pexpect

    workbook(tmp_path / "faq.xlsx")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "ai_finetuning", "start", "faq.xlsx"],
        cwd=str(tmp_path),
        env=environment(TERM="xterm"),
        encoding="utf-8",
        timeout=patience(60),
    )
    child.expect(WORDS["en"]["number"])
    child.sendline("9")
    child.expect("Type a number from 1 to 2")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert "Traceback" not in child.before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faq.xlsx"]


def test_start_decides_where_nobody_can_be_asked_says_so_and_trains(
    tmp_path: Path, kotoha: str, monkeypatch: pytest.MonkeyPatch, logged
):
    """A5, A6: the printed columns of an office's CP932 table are recognised."""
    monkeypatch.chdir(tmp_path)
    text = "\r\n".join(",".join(row) for row in TABLE)
    (tmp_path / "faq.csv").write_bytes(text.encode("cp932"))
    # What is there is left alone: neither settings nor outputs are written over where nobody can say yes.
    (tmp_path / "run.yaml").write_text("# mine\n", encoding="utf-8")
    (tmp_path / "outputs" / "faq").mkdir(parents=True)
    assert call("start", "faq.csv", "--yes", "--preset", "quick") == 0
    said = logged()
    assert "going on with what is recommended, without questions" in said
    assert "--yes" in said
    assert (tmp_path / "outputs" / "faq-2" / "adapter_model.safetensors").is_file()
    assert not list((tmp_path / "outputs" / "faq").iterdir())
    assert (tmp_path / "run.yaml").read_text(encoding="utf-8") == "# mine\n"
    config = load_config(tmp_path / "run-2.yaml")
    assert config.model.name == kotoha
    assert config.training.num_epochs * 6 >= 30  # few rows come often enough to teach something
    assert call("plan", "run-2.yaml") == 0


def test_longer_presets_answer_fixed_questions(tiny_model_dir: Path, tmp_path: Path, capsys):
    settings = [f"model={tiny_model_dir}", "data.train=embedded:kotoha-qa", f"training.output_dir={tmp_path / 'out'}"]
    plan = resolve(request_of(load_config(None, settings)))
    for preset, questions in (("quick", 0), ("standard", 10), ("careful", 10)):
        for eval_data, expected in ((0.1, questions), (None, 0)):
            values = {"data.eval": eval_data}
            start_verb._ask_preset(values, plan, None, preset)
            assert values.get("training.evaluation.generate", 0) == expected
    assert load_config(None, settings).training.evaluation.generate == 0


def test_start_tells_everything_that_is_wrong_in_one_list_before_torch(tmp_path: Path):
    code = (
        "import sys\nfrom ai_finetuning.apps.cli.main import run\n"
        "code = run(['start', 'fqa.csv', '--preset', 'fast', '--model', './nowhere', '--yes'])\n"
        "print(code, 'torch' in sys.modules)"
    )
    (tmp_path / "faq.csv").write_text("質問,回答\nあ,い\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    for word in ("3 problems", "--preset is fast", "nowhere", "fqa.csv", "faq.csv"):
        assert word in done.stderr, word
    assert done.stdout.strip().endswith("False")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faq.csv"]


@pytest.mark.parametrize(
    ("rows", "arguments", "word"),
    [
        ("項目A,項目B\nあ,い\n", (), "--question"),
        ("質問,回答\nあ,い\n", ("--answer", "答"), "答"),
        ("質問,回答\n,\n", (), "no usable row"),
        ("", (), "faq.csv"),
    ],
)
def test_start_refuses_what_it_cannot_decide(
    tmp_path: Path, monkeypatch, logged, rows: str, arguments: tuple, word: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faq.csv").write_text(rows, encoding="utf-8")
    assert call("start", "faq.csv", "--yes", *arguments) in (65, 78)
    assert word in logged()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faq.csv"]


def test_start_shows_conversations_as_they_are_and_takes_no_name_of_the_hub(
    tmp_path: Path, monkeypatch, kotoha, logged
):
    monkeypatch.chdir(tmp_path)
    talk = '{"messages": [{"role": "user", "content": "首都は？"}, {"role": "assistant", "content": "東京です。"}]}\n'
    (tmp_path / "talks.jsonl").write_text(talk * 3, encoding="utf-8")
    assert call("start", "talks.jsonl", "--yes", "--preset", "quick", "--out", "elsewhere") == 0
    assert '1 messages: [{"role": "user", "content": "首都は？"}' in logged()
    assert (tmp_path / "elsewhere" / "adapter_config.json").is_file()
    assert load_config(tmp_path / "run.yaml").data.columns is None
    assert call("start", "org/dataset", "--yes") == 64


def test_start_names_the_columns_that_the_headings_do_not_tell(tmp_path: Path, monkeypatch, kotoha: str, logged):
    monkeypatch.chdir(tmp_path)
    lines = ["項目A,項目B", *(f"{n} は？,{n} です" for n in range(6)), "空,"]
    (tmp_path / "faq.csv").write_text("\n".join(lines), encoding="utf-8")
    given = ("--question", "項目A", "--answer", "項目B", "--preset", "quick", "--config", "mine.yaml")
    assert call("start", "faq.csv", "--yes", *given) == 0
    assert "rows skipped: 1" in logged()
    config = load_config(tmp_path / "mine.yaml")
    assert config.data.columns == {"instruction": "項目A", "output": "項目B"}
    assert config.data.skip_bad_rows


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "nope.yaml"),
        ("plan", "nope.yaml"),
        ("start", "nope.csv"),
        ("generate", "./nope", "hello"),
        ("answer", "./nope", "nope.csv", "--out", "x.csv"),
        ("merge", "./nope", "--out", "x"),
        ("quantize", "./nope", "--bits", "8", "--out", "x"),
        ("bench", "./nope", "./nope"),
        ("export", "vllm", "./nope", "--out", "x"),
        ("bundle", "./nope", "--out", "x"),
        ("data", "show", "nope.csv", "--model", "embedded:kotoha-tiny"),
        ("tokenizer", "train", "nope.txt", "--out", "x"),
    ],
    ids=" ".join,
)
def test_a28_the_first_word_comes_at_once_and_a_mistyped_name_is_refused_before_torch(tmp_path: Path, arguments):
    """The first line is written before anything is imported: at 0.3 s of processor time at most."""
    (tmp_path / "faq.csv").write_text("質問,回答\nあ,い\n", encoding="utf-8")
    code = (
        "import resource, sys\n"
        "class First:\n"
        "    def __init__(self, stream): self.stream, self.seconds = stream, None\n"
        "    def write(self, text):\n"
        "        used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "        self.seconds = self.seconds or used.ru_utime + used.ru_stime\n"
        "        return self.stream.write(text)\n"
        "    def __getattr__(self, name): return getattr(self.stream, name)\n"
        "sys.stdout, sys.stderr = out, err = First(sys.stdout), First(sys.stderr)\n"
        "from ai_finetuning.apps.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop:\n"
        "    first = min(part.seconds for part in (out, err) if part.seconds)\n"
        "    print(stop.code, 'torch' in sys.modules, first < 0.3, first, file=sys.__stdout__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1].split()[:3] == ["66", "False", "True"], (done.stdout, done.stderr)


@pytest.mark.slow
@needs_terminal
def test_no_bar_of_a_library_stands_between_our_lines_in_a_terminal(tmp_path: Path, kotoha: str):
    import pexpect

    (tmp_path / "faq.csv").write_text("質問,回答\nあ,い\nう,え\n", encoding="utf-8")
    child = pexpect.spawn(
        sys.executable,
        ["-m", "ai_finetuning", "train", "data.train=faq.csv", f"model={kotoha}", "max_steps=6"],
        cwd=str(tmp_path),
        env=environment(TERM="xterm"),
        dimensions=(40, 80),
        encoding="utf-8",
        timeout=patience(120),
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "6/6" in child.before
    assert "Loading weights" not in child.before
