"""The first day after training: asking a model in a terminal, by a file and by a server, as it was trained."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import openpyxl
import pytest
from filelock import FileLock
from tests.support.batches import batches
from tests.support.commands import call, environment, start
from tests.support.patience import patience, until
from tests.support.runs import train_lora
from tests.support.systems import needs_terminal

from ai_finetuning import DataConfig, JapaneseModel, LoRAFinetuningTrainer
from ai_finetuning.apps.cli.answers import print_comparison
from ai_finetuning.errors import ConfigError, HubError
from ai_finetuning.export.ollama import modelfile
from ai_finetuning.inference.answering import Record
from ai_finetuning.inference.session import Chat, OpenModel, open_model
from ai_finetuning.japanese.default_system import default_system
from ai_finetuning.japanese.prompts import render
from ai_finetuning.models.tokenizers import load_tokenizer

SYSTEM = "あなたは社内ヘルプデスクの担当者です。"
QUESTION = "3の次の数は何ですか？"
GREEDY = ("--greedy", "--max-new-tokens", "8")


@pytest.fixture(scope="module")
def adapter(kotoha: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was trained with a system prompt."""
    folder = tmp_path_factory.mktemp("first-day") / "faq"
    data = DataConfig(max_length=96, system_prompt=SYSTEM)
    train_lora(Path(kotoha), folder, data=data, num_epochs=1, save_steps=100)
    return folder


@pytest.fixture(scope="module")
def opened(adapter: Path) -> OpenModel:
    return open_model(str(adapter), dtype="float32")


def lines_of(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


# A10: the system prompt of the training


def test_a10_the_trained_system_prompt_is_asked_by_everything(
    adapter: Path, opened: OpenModel, kotoha: str, monkeypatch: pytest.MonkeyPatch, logged
):
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    expected = render(opened.tokenizer, asked, add_generation_prompt=True)
    plain = render(load_tokenizer(kotoha), asked[1:], add_generation_prompt=True)
    assert opened.system == SYSTEM
    prompts: list[str] = []

    def seen(*arguments, **options):
        prompts.append(render(*arguments, **options))
        return prompts[-1]

    monkeypatch.setattr("ai_finetuning.models.generation.render", seen)
    _, tokenizer = LoRAFinetuningTrainer.load_lora_model(kotoha, str(adapter))
    loaded = JapaneseModel(kotoha)
    loaded.model, loaded.tokenizer = opened.model, tokenizer
    for system, wanted in ((None, expected), ("", plain)):
        prompts.clear()
        list(Chat(opened, system).stream(QUESTION, max_new_tokens=1))
        loaded.generate_japanese(QUESTION, max_new_tokens=1, system=system)
        given = [] if system is None else ["--system", system]
        assert call("generate", str(adapter), QUESTION, *GREEDY, *given) == 0
        assert len(prompts) >= 3
        assert set(prompts) == {wanted}
    assert f"system prompt (as in training): {SYSTEM}" in logged()
    assert f"not the system prompt that the model was trained with: {SYSTEM}" in logged()


def test_a10_it_goes_into_a_modelfile_and_transformers_asks_it_by_itself(adapter: Path, opened: OpenModel):
    text = modelfile("m.gguf", load_tokenizer(str(adapter)))
    assert f'SYSTEM """{SYSTEM}"""' in text.splitlines()
    assert SYSTEM not in text.split("TEMPLATE")[1]
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": QUESTION}]
    by_itself = AutoTokenizer.from_pretrained(adapter)
    text = by_itself.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == render(opened.tokenizer, messages, add_generation_prompt=True)
    assert SYSTEM in text


@pytest.mark.slow
def test_a10_it_goes_along_with_a_merge_and_into_a_folder_for_vllm(adapter: Path, tmp_path: Path):
    assert call("merge", str(adapter), "--out", str(tmp_path / "merged")) == 0
    assert call("export", "vllm", str(adapter), "--out", str(tmp_path / "vllm")) == 0
    for folder in (tmp_path / "merged", tmp_path / "vllm"):
        assert default_system(load_tokenizer(str(folder))) == SYSTEM
        assert SYSTEM in (folder / "chat_template.jinja").read_text(encoding="utf-8")


def test_a10_the_model_in_memory_asks_as_it_was_trained_and_says_a_change(kotoha: str, tmp_path: Path, logged):
    """As in examples/lora_faq_csv.py: trained with a system prompt, asked without naming it."""
    rows = [{"instruction": "首都は？", "output": "東京です。", "system": "短く。"}] * 4
    trainer = train_lora(Path(kotoha), tmp_path / "a", rows=rows, num_epochs=1, warmup_steps=0)
    assert default_system(trainer.model.tokenizer) == "短く。"  # all rows had the same
    assert 'the system prompt "短く。" is saved with the model' in logged()
    trainer.data = DataConfig(max_length=64, system_prompt="丁寧に。")
    trainer.training_config.output_dir = str(tmp_path / "b")
    trainer.train([{"instruction": "首都は？", "output": "東京です。"}] * 4)
    assert 'changes from the one that this model was trained with, "短く。", to "丁寧に。"' in logged()
    assert default_system(load_tokenizer(str(tmp_path / "b"))) == "丁寧に。"
    trainer.data = DataConfig(max_length=64, system_prompt="")
    trainer.training_config.output_dir = str(tmp_path / "c")
    trainer.train([{"instruction": "首都は？", "output": "東京です。"}] * 4)
    assert '"丁寧に。", to none' in logged()
    assert default_system(load_tokenizer(str(tmp_path / "c"))) is None


# A2, A7, A20, case 43: chat and generate


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a2_a_comparison_loses_no_character(columns: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    without = "分かりません。" * 9
    with_it = "勤怠システムの「休暇申請」をご利用ください。[b]:smile:[/b] " + "｜表｜" * 30
    print_comparison(without, with_it)
    shown = capsys.readouterr().out
    assert "…" not in shown
    cells = [[part.strip() for part in line.split("│")[1:3]] for line in shown.splitlines() if line.startswith("│")]
    assert "".join(cell[0] for cell in cells) == without
    assert "".join(cell[1] for cell in cells).replace(" ", "") == with_it.replace(" ", "")


def test_a20_generate_compares_and_shows_questions(adapter: Path, capsys):
    assert call("generate", str(adapter), QUESTION, "首都は？", "--compare", *GREEDY) == 0
    shown = capsys.readouterr().out
    for text in (f"question 1/2: {QUESTION}", "question 2/2: 首都は？", "without adapter", "with adapter", "────"):
        assert text in shown
    assert call("generate", str(adapter), QUESTION, *GREEDY) == 0
    assert "question" not in capsys.readouterr().out  # one answer, for programs
    assert call("generate", "embedded:kotoha-tiny", QUESTION, "--compare") == 64


@pytest.mark.parametrize("verb", [["generate", "no/model", "q"], ["chat", "no/model"]])
def test_a18_values_are_refused_before_a_model_is_looked_for(verb: list[str], capsys):
    assert call(*verb, "--temperature", "0") == 78
    assert "--greedy" in capsys.readouterr().err
    assert call(*verb, "--max-new-tokens", "0") == 78


def test_a7_case_43_a_long_history_and_a_long_question_end_nothing(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, logged
):
    lines_of(monkeypatch, *(f"{number}: " + "首都は？" * 90 for number in range(4)), "長い" * 3000, QUESTION)
    assert call("chat", str(adapter), *GREEDY) == 78  # of a pipe: that of the question that was refused
    shown = logged()
    assert "the answer no longer sees the oldest" in shown
    assert shown.count("this question cannot be answered: the prompt has") == 1
    assert shown.index("this question cannot") < shown.rindex("cut at 8 tokens")  # the next one is answered


def test_a7_the_history_keeps_what_fits(opened: OpenModel):
    talk = Chat(opened)
    talk.history = [{"role": role, "content": "首都は？" * 60} for _ in range(10) for role in ("user", "assistant")]
    messages = talk._messages(QUESTION, {"max_new_tokens": 100})
    assert messages[-1]["content"] == QUESTION
    assert 0 < talk.forgotten < 10
    assert len(messages) == 2 * (10 - talk.forgotten) + 1
    before = talk.forgotten
    with pytest.raises(Exception, match="at most 1024"):
        talk._messages("長い" * 3000, {})
    assert (talk.forgotten, len(talk.history)) == (before, 20)


def test_the_commands_of_chat(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged):
    saved = tmp_path / "talk.jsonl"
    lines_of(
        monkeypatch,
        "/undo",
        QUESTION,
        "首都は？",
        "／undo",
        f"/save {saved}",
        f"/save {saved}",
        "/system 短く。",
        '/system ""',
        "/nothing",
        "／ＥＸＩＴ",
        "never asked",
    )
    assert call("chat", str(adapter), *GREEDY) == 0
    shown = logged()
    for text in (
        f"adapter {adapter} (base ",
        f"system prompt (as in training): {SYSTEM}",
        "/exit or Ctrl-D ends",
        "nothing to take back",
        "are taken back",
        "saved as",
        "it exists",
        "system prompt: 短く。",
        "system prompt: none",
        "/nothing is no command here",
    ):
        assert text in shown, text
    (row,) = map(json.loads, saved.read_text(encoding="utf-8").splitlines())
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][0]["content"] == SYSTEM


def test_ctrl_c_ends_the_answer_and_not_the_conversation(adapter: Path, monkeypatch: pytest.MonkeyPatch, logged):
    lines_of(monkeypatch, QUESTION, QUESTION)
    original, count = Chat.stream, iter(range(9))

    def interrupted(self, text, **options):
        pieces = original(self, text, **options)
        if next(count) == 0:
            yield next(pieces)
            raise KeyboardInterrupt
        yield from pieces

    monkeypatch.setattr(Chat, "stream", interrupted)
    assert call("chat", str(adapter), *GREEDY) == 0
    assert logged().count("answer stopped") == 1
    assert next(count) == 2  # the next question was answered


def test_bytes_of_cp932_in_a_pipe_are_read(adapter: Path, monkeypatch: pytest.MonkeyPatch, logged):
    raw = f"{QUESTION}\n".encode("cp932")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
    asked = []
    original = Chat.stream
    monkeypatch.setattr(Chat, "stream", lambda self, text, **o: asked.append(text) or original(self, text, **o))
    assert call("chat", str(adapter), *GREEDY) == 0
    assert asked == [QUESTION]


# aift answer

ROWS = [
    ["1", "3の次の数は何ですか？", "A"],
    ["2", "", "=SUM(A1)"],
    ["3", "有給休暇は、\nいつ？", "C"],
    ["4", "パスワードを忘れました。", "①㈱髙"],
]


def write_csv(path: Path, encoding: str = "cp932", headings: Sequence[str] = ("No", "お問い合わせ", "分類")) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([headings, *ROWS])
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def read_csv(path: Path, encoding: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_bytes().decode(encoding), newline="")))


def answer(model: Path | str, questions: Path, out: Path, *more: str) -> int:
    return call("answer", str(model), str(questions), "--out", str(out), *GREEDY, *more)


def test_answer_keeps_encoding_rows_and_cells_and_names_what_has_no_answer(kotoha: str, tmp_path: Path, logged):
    questions = write_csv(tmp_path / "q.csv")
    assert answer(kotoha, questions, tmp_path / "a.csv") == 0
    table = read_csv(tmp_path / "a.csv", "cp932")
    assert table[0] == ["No", "お問い合わせ", "分類", "回答"]
    assert [row[:3] for row in table[1:]] == ROWS
    assert [bool(row[3]) for row in table[1:]] == [True, False, True, True]
    assert b"\r\n" in (tmp_path / "a.csv").read_bytes()
    shown = logged()
    assert "4 questions in the column お問い合わせ; answers go to 回答" in shown
    assert "rows without a question have no answer: row 3" in shown
    assert [path.name for path in tmp_path.iterdir()] in (["q.csv", "a.csv"], ["a.csv", "q.csv"])


def test_answer_gives_the_same_whatever_the_batch_and_the_kind_of_file(kotoha: str, tmp_path: Path):
    questions = write_csv(tmp_path / "q.csv")
    assert answer(kotoha, questions, tmp_path / "a.jsonl", "--batch-size", "1") == 0
    assert answer(kotoha, questions, tmp_path / "b.jsonl", "--batch-size", "4") == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert list(rows[0]) == ["No", "お問い合わせ", "分類", "回答"]
    # From JSON Lines, whose values keep their types.
    typed = tmp_path / "t.jsonl"
    typed.write_text(
        "".join(json.dumps({"id": 7, "question": row[1]}, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8"
    )
    assert answer(kotoha, typed, tmp_path / "c.jsonl") == 0
    again = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["回答"] for row in again] == [row["回答"] for row in rows]
    assert again[0]["id"] == 7


def test_answer_writes_into_the_workbook_as_it_was(adapter: Path, tmp_path: Path, logged):
    book = openpyxl.Workbook()
    book.active.title = "表紙"
    book.active["A1"] = "社内 FAQ"
    sheet = book.create_sheet("FAQ")
    sheet.append(["社内FAQ 第3版"])
    sheet.merge_cells("A1:D1")
    sheet.append(["No", "ご質問", "金額"])
    sheet.append([1, QUESTION, "=1+1"])
    sheet.append([2, None, 5])
    sheet.append([3, "パスワードを忘れました。", 0.1])
    sheet["C5"].number_format = "0%"
    book.save(tmp_path / "q.xlsx")
    assert answer(adapter, tmp_path / "q.xlsx", tmp_path / "a.xlsx", "--compare") == 0
    written = openpyxl.load_workbook(tmp_path / "a.xlsx")
    assert written.sheetnames == ["表紙", "FAQ"]
    sheet = written["FAQ"]
    assert sheet["C3"].value == "=1+1"
    assert sheet["C5"].number_format == "0%"
    assert [sheet.cell(2, column).value for column in (5, 6)] == ["回答", "回答（アダプターなし）"]
    assert sheet["E3"].value
    assert sheet["F5"].value
    assert sheet["E4"].value is None
    assert all(cell.data_type == "s" for cell in (sheet["E3"], sheet["F3"], sheet["E5"]))
    # The base's answers are those of the base.
    assert answer(adapter, tmp_path / "q.xlsx", tmp_path / "n.csv", "--no-adapter") == 0
    table = read_csv(tmp_path / "n.csv", "utf-8-sig")
    assert [row[-1] for row in table if row[0] in ("1", "3")] == [sheet["F3"].value, sheet["F5"].value]
    assert "other sheets: 表紙" in logged()


def test_answer_says_what_kept_it_from_answering(kotoha: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged):
    """A second command that writes the same file, and errors while the first one has it, under their own names."""
    questions = write_csv(tmp_path / "q.csv")
    with FileLock(str(tmp_path / "a.csv.partial.jsonl.lock")):
        assert answer(kotoha, questions, tmp_path / "a.csv") == 75
    assert "another command is writing" in logged()

    def unreachable(*_: object, **__: object) -> None:
        raise HubError("ハブが応答しません。", "the hub went away.")

    monkeypatch.setattr("ai_finetuning.inference.session.open_model", unreachable)
    assert answer(kotoha, questions, tmp_path / "a.csv") == 69
    assert "the hub went away" in logged()
    assert not (tmp_path / "a.csv.partial.jsonl.lock").exists()


def test_answer_never_overwrites_a_column_or_a_file(kotoha: str, tmp_path: Path, logged):
    questions = write_csv(tmp_path / "q.csv", headings=("No", "質問", "回答"))
    assert answer(kotoha, questions, tmp_path / "a.csv") == 78
    assert "the column 回答" in logged()
    assert answer(kotoha, questions, tmp_path / "a.csv", "--answer-column", "AIの回答") == 0
    before = (tmp_path / "a.csv").read_bytes()
    assert answer(kotoha, questions, tmp_path / "a.csv", "--answer-column", "AIの回答") == 78
    assert answer(kotoha, questions, questions, "--overwrite", "--answer-column", "AIの回答") == 78
    assert (tmp_path / "a.csv").read_bytes() == before
    # An empty column of that name is what the answers are for.
    empty = tmp_path / "e.csv"
    empty.write_text("質問,回答,備考\nパスワードを忘れました。,,x\n", encoding="utf-8")
    assert answer(kotoha, empty, tmp_path / "f.csv") == 0
    table = read_csv(tmp_path / "f.csv", "utf-8")
    assert table[0] == ["質問", "回答", "備考"]
    assert table[1][1]
    assert table[1][2] == "x"


@pytest.mark.parametrize(
    ("text", "more", "code", "said"),
    [
        ("a,b\nx,y\n", [], 65, "--column NAME"),
        ("質問,設問\nx,y\n", [], 65, "choose one with --column"),
        ("質問,b\nx,y\n", ["--column", "c"], 78, "columns: 質問, b"),
        ("質問,b\n", [], 65, "no row with a question"),
        ("質問\nx\n", ["--batch-size", "0"], 78, "batch_size is 0"),
        ("質問\nx\n", ["--compare", "--no-adapter"], 64, "not both"),
        ("質問\nx\n", ["--sheet", "s"], 78, "for Excel files only"),
    ],
)
def test_answer_refuses_before_a_model_is_looked_for(
    text: str, more: list[str], code: int, said: str, tmp_path: Path, capsys
):
    (tmp_path / "q.csv").write_text(text, encoding="utf-8")
    assert answer("no/model", tmp_path / "q.csv", tmp_path / "a.csv", *more) == code
    assert said in capsys.readouterr().err
    assert answer("no/model", tmp_path / "none.csv", tmp_path / "a.csv") == 66
    assert answer("no/model", tmp_path / "q.csv", tmp_path / "a.docx") != 0
    assert [path.name for path in tmp_path.iterdir()] == ["q.csv"]


def test_answer_refuses_a_question_that_is_too_long_by_itself(kotoha: str, tmp_path: Path, logged):
    (tmp_path / "q.csv").write_text(f"質問\nパスワードを忘れました。\n{'長い' * 3000}\n", encoding="utf-8")
    assert answer(kotoha, tmp_path / "q.csv", tmp_path / "a.csv") == 65
    said = logged()
    assert "q.csv:3: the prompt has" in said
    assert "1 rows could not be answered (their answers are empty): row 3" in said
    table = read_csv(tmp_path / "a.csv", "utf-8")
    assert table[1][1]
    assert table[2][1] == ""


def test_answer_goes_on_where_it_was_stopped_with_the_same_result(kotoha: str, tmp_path: Path, logged):
    questions = tmp_path / "q.csv"
    questions.write_text("質問\n" + "".join(f"{n}の次の数は何ですか？\n" for n in range(9)), encoding="utf-8")
    command = ("--batch-size", "2", "--seed", "5", "--max-new-tokens", "6")
    target = ["answer", kotoha, str(questions), *command]
    assert call(*target, "--out", str(tmp_path / "whole.csv")) == 0
    out = tmp_path / "parts.csv"
    with batches(most=3):
        assert call(*target, "--out", str(out)) == 130
    partial = tmp_path / "parts.csv.partial.jsonl"
    assert partial.stat().st_mode & 0o077 == 0
    assert len(partial.read_bytes().splitlines()) == 1 + 6
    assert not out.exists()
    assert "6 answers are in" in logged()
    with partial.open("ab") as file:
        file.write(b'{"question": 7, "answ')  # as a killed process leaves it
    with batches() as asked:
        assert call(*target[:-1], "7", "--out", str(out)) == 78  # another command does not mix its answers in
        assert "different: max_new_tokens" in logged()
        assert call(*target, "--out", str(out)) == 0
    assert asked == [2, 1]
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()


def test_a_record_that_others_may_have_put_there_is_not_read(tmp_path: Path):
    real = tmp_path / "theirs"
    real.write_text("{}\n")
    (tmp_path / "a.partial.jsonl").symlink_to(real)
    with pytest.raises(ConfigError, match="are a link"):
        Record.open(tmp_path / "a.partial.jsonl", {}, restart=False)


@pytest.mark.slow
@needs_terminal
def test_ctrl_c_in_a_terminal(kotoha: str):
    """The first ends the answer, the one at the prompt the program."""
    import pty
    import select

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ai_finetuning", "chat", kotoha, "--max-new-tokens", "900"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(),
        start_new_session=True,
    )
    shown = b""

    def said(text: bytes) -> bool:
        nonlocal shown
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 65536)
        return text in shown

    try:
        until(lambda: said(b"you> "), 120, "the prompt is there")
        os.write(ours, "パスワードを忘れました。\n".encode())
        until(lambda: said("、".encode()), 60, "an answer has begun")
        os.killpg(process.pid, signal.SIGINT)
        until(lambda: said(b"answer stopped"), 60, "the answer ended")
        until(lambda: said(b"kept.\r\nyou> "), 60, "the prompt is there again")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=patience(30)) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_answer_survives_a_kill(kotoha: str, tmp_path: Path):
    questions = tmp_path / "q.csv"
    questions.write_text("質問\n" + "".join(f"{n}の次の数は何ですか？\n" for n in range(40)), encoding="utf-8")
    command = ["answer", kotoha, str(questions), "--greedy", "--batch-size", "1", "--max-new-tokens", "40"]
    assert call(*command, "--out", str(tmp_path / "whole.csv")) == 0
    out, partial = tmp_path / "a.csv", tmp_path / "a.csv.partial.jsonl"
    process: subprocess.Popen[str] = start(*command, "--out", str(out))
    until(lambda: partial.is_file() and partial.read_bytes().count(b"\n") > 3, 120, "some answers are there")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    assert call(*command, "--out", str(out)) == 0
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()
