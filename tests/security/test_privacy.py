"""What of a row, or of a secret, is printed and written: at most 20 characters on the terminal, nothing in a file."""

from __future__ import annotations

import base64
import csv
import http.server
import json
import logging
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from ai_finetuning import JapaneseModel, LoRAConfig, LoRAFinetuningTrainer, TextDataset
from ai_finetuning.apps.cli.main import run
from ai_finetuning.data.bad_rows import BadRow, BadRows
from ai_finetuning.errors import DataError, without_secrets
from ai_finetuning.execution.processes import ERROR
from ai_finetuning.execution.worker import tell
from ai_finetuning.messages import EXCERPT, described, excerpt, trace
from ai_finetuning.system.network import head
from tests.support.commands import spawn
from tests.support.models import save_tiny_model
from tests.support.patience import patience
from tests.support.runs import training

# A row's text whose every part is found again, be it cut, escaped or half of it in another encoding.
CANARY = "鈴木花子さんは第二病棟から Kobe-General-7419-West へ四月三日に移りました。保険証は Blue-88213-Kite です"
# Characters in a row that prove that a file holds text of a row.
PIECE = 8
SECRETS = {
    "HF_TOKEN": "hf_CanaryCanaryCanaryCanaryCanary01",
    "WANDB_API_KEY": "wandbcanary0123456789abcdef0123456789abcd",
    "AIFT_SERVE_KEY": "serve-canary-4711",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-canary-4712",
    "MLFLOW_TRACKING_TOKEN": "mlflow-canary-4713",
    "AWS_SECRET_ACCESS_KEY": "aws-canary-4714",
}
ADDRESSES = {
    "HTTPS_PROXY": "http://someone:proxy-canary-4715@127.0.0.1:9",
    "MLFLOW_TRACKING_URI": "https://someone:mlflow-canary-4716@127.0.0.1:9",
    "HF_ENDPOINT": "https://someone:hub-canary-4717@127.0.0.1:9",
}
CANARY_OF_SECRETS = re.compile(r"canary|Canary")


def pieces(size: int) -> set[str]:
    return {CANARY[start : start + size] for start in range(len(CANARY) - size + 1)}


def readings(raw: bytes) -> Iterator[str]:
    """The text of a file however it may hold it: numpy's notes are UTF-32, JSON and YAML may escape."""
    offsets = (
        ("utf-8", 0),
        ("cp932", 0),
        *(("utf-16-le", at) for at in range(2)),
        *(("utf-32-le", at) for at in range(4)),
    )
    for encoding, offset in offsets:
        text = raw[offset:].decode(encoding, errors="ignore")
        yield text
        if "\\u" in text:
            yield re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found.group(1), 16)), text)


def files_that_hold(folder: Path, wanted: set[str]) -> dict[str, str]:
    """The files below a folder in which one of the pieces stands, with the piece."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            texts = [path.name, *readings(path.read_bytes())]
            found |= {str(path): piece for text in texts for piece in wanted if piece in text}
    return found


def assert_shown_briefly(said: str) -> None:
    assert not [piece for piece in pieces(EXCERPT + 1) if piece in said], said


def good(number: int = 0) -> dict[str, Any]:
    return {"instruction": f"{number} の次は？{CANARY}", "output": f"{CANARY}{number}"}


def message(**values: Any) -> dict[str, Any]:
    """A row of messages with something odd in its user's turn."""
    return {
        "messages": [{"role": "user", "content": CANARY} | values, {"role": "assistant", "content": CANARY}],
    }


# Lines of a JSONL file that cannot be used, one for each kind of refusal; each holds the canary.
BAD: dict[str, str] = {
    "a list in place of a text": json.dumps(good() | {"output": [CANARY]}, ensure_ascii=False),
    "an object in place of a text": json.dumps(good() | {"output": {CANARY: CANARY}}, ensure_ascii=False),
    "an empty answer": json.dumps(good() | {"output": ""}, ensure_ascii=False),
    "an unknown role": json.dumps(message(role=CANARY), ensure_ascii=False),
    "a role of another type": json.dumps(message(role=[CANARY]), ensure_ascii=False),
    "a part of another type": json.dumps(message(content=[{"type": CANARY, "text": CANARY}]), ensure_ascii=False),
    "an odd weight": json.dumps(message(weight=CANARY), ensure_ascii=False),
    "an odd key": json.dumps(message(**{f"loss {CANARY}": CANARY}), ensure_ascii=False),
    "messages that are no JSON": json.dumps({"messages": f"[{CANARY}"}, ensure_ascii=False),
    "tools that are no JSON": json.dumps(message() | {"tools": f"[{CANARY}"}, ensure_ascii=False),
    "a tool call": json.dumps(message(tool_calls=[{"function": {"name": f"call {CANARY}"}}]), ensure_ascii=False),
    "a list in place of an object": json.dumps([CANARY], ensure_ascii=False),
    "another kind of row": json.dumps({"prompt": CANARY, "chosen": CANARY, "rejected": CANARY}, ensure_ascii=False),
    "unknown columns": json.dumps({CANARY: CANARY, f"{CANARY}2": CANARY}, ensure_ascii=False),
    "bad JSON": f'{{"instruction": "{CANARY}", "output": "{CANARY}',
    "a key twice": f'{{"{CANARY}": "{CANARY}", "{CANARY}": 1}}',
    "mojibake": json.dumps(
        good() | {"output": CANARY.encode().decode("cp932", errors="ignore") + CANARY}, ensure_ascii=False
    ),
    "a control": json.dumps(good() | {"output": f"{CANARY}\0"}, ensure_ascii=False),
    "half a character": json.dumps(good() | {"output": CANARY})[:-2] + '\\ud83c"}',
    "a special token": json.dumps(good() | {"output": f"{CANARY}</s>"}, ensure_ascii=False),
    "too long": json.dumps(good() | {"instruction": CANARY * 200}, ensure_ascii=False),
}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(save_tiny_model(tmp_path / "tiny"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def arguments(model: str, data: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", f"model={model}", "method=lora", f"data.train={data}", "data.max_length=512", "lora.r=2",
        f"training.output_dir={out}", "training.schedule.max_steps=1", "training.batch_size=1", "training.fp16=false",
        "training.gradient_accumulation_steps=1", "training.runtime.progress=false", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("language", ["en", "ja"])
def test_no_bad_row_is_shown_beyond_its_beginning(
    language: str, tiny: str, cache: Path, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
):
    """Refused one by one, and left out together."""
    monkeypatch.setenv("AIFT_LANG", language)
    for name, line in BAD.items():
        data = write_lines(tmp_path / "rows.jsonl", json.dumps(good(), ensure_ascii=False), line)
        code = run(arguments(tiny, data, tmp_path / "out", "--dry-run", "data.on_long=error"))
        said = "".join(capfd.readouterr())
        assert code == 65, (name, said)
        assert "rows.jsonl" in said, name
        assert_shown_briefly(said)
    rows = [json.dumps(good(number), ensure_ascii=False) for number in range(3)]
    data = write_lines(tmp_path / "all.jsonl", *rows, *BAD.values())
    skipping = ("--dry-run", "data.on_long=error", "data.skip_bad_rows=true")
    assert run(arguments(tiny, data, tmp_path / "out", *skipping)) == 0
    said = "".join(capfd.readouterr())
    assert str(len(BAD)) in said
    assert_shown_briefly(said)
    assert not [path for path in (cache, tmp_path / "out") if path.exists()]  # a dry run


def test_where_the_row_begins_is_shown_on_the_terminal_only():
    bad = BadRows()
    bad.add(BadRow("壊れています", "broken", CANARY), "x:1")
    with pytest.raises(DataError) as refusal:
        bad.refuse()
    assert excerpt(CANARY) in refusal.value.ja
    assert excerpt(CANARY) in refusal.value.en
    assert_shown_briefly(refusal.value.ja + refusal.value.en)
    written = refusal.value.for_files
    assert "x:1" in written.ja + written.en
    assert not [piece for piece in pieces(PIECE) if piece in written.ja + written.en + str(bad.lines())]


def table_files(folder: Path) -> dict[str, Path]:
    """Tables that are refused: without a heading, with two of one name, broken, of cells that are no numbers."""
    rows = [[CANARY, f"{CANARY}です"], [f"二{CANARY}", CANARY]]
    (folder / "plain.csv").write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    (folder / "quotes.csv").write_text(f'質問,回答\n"{CANARY}"{CANARY},"{CANARY}\n', encoding="utf-8")
    with (folder / "cells.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["質問", "回答"], [CANARY, CANARY, CANARY]])
    with (folder / "twice.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["質問", f"回答（{CANARY}）", f"回答（{CANARY}）"], [CANARY, CANARY, CANARY]])
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(folder / "plain.xlsx")
    return {path.name: path for path in sorted(folder.glob("*.*"))}


def test_tables_are_refused_without_their_rows(tiny: str, cache: Path, tmp_path: Path, capfd):
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, path in table_files(folder).items():
        code = run(arguments(tiny, path, tmp_path / "out", "--dry-run"))
        said = "".join(capfd.readouterr())
        assert code == 65, (name, said)
        assert_shown_briefly(said)


def test_what_a_parser_says_of_a_cell_is_cut(tmp_path: Path, capfd, tiny: str):
    """openpyxl names the cell's text in its error."""
    path = tmp_path / "book.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["質問", 12345678])
    book.save(path)
    parts = {item: zipfile.ZipFile(path).read(item) for item in zipfile.ZipFile(path).namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(b"12345678", CANARY.encode()))
    assert run(["data", "stats", str(path), "--model", tiny]) == 65
    said = "".join(capfd.readouterr())
    assert "ValueError" in said
    assert_shown_briefly(said)


def test_rows_above_a_heading_and_long_headings_are_not_listed(tiny: str, cache: Path, tmp_path: Path, capfd):
    data = tmp_path / "cover.csv"
    with data.open("w", encoding="utf-8", newline="") as file:
        cells = [[CANARY, CANARY], ["質問", "回答", CANARY], *[[CANARY, f"{CANARY}{n}", CANARY] for n in range(3)]]
        csv.writer(file).writerows(cells)
    assert run(arguments(tiny, data, tmp_path / "out", "--dry-run")) == 0
    assert_shown_briefly("".join(capfd.readouterr()))


# A template that hands the row's text to an error, of its own and of Python.
TEMPLATES = {
    "raise_exception": "{{ raise_exception('no: ' + messages[0].content) }}",
    "a name": "{{ messages[0][messages[0].content].x }}",
    "format": "{{ messages[0].content.format() }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_says_of_a_row_is_cut(name: str, tiny: str, cache: Path, tmp_path: Path, capfd):
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATES[name], encoding="utf-8")
    row = good() | {"instruction": f"{{{CANARY}}}"}
    data = write_lines(tmp_path / "rows.jsonl", json.dumps(row, ensure_ascii=False))
    assert run(arguments(tiny, data, tmp_path / "out", "--dry-run", f"model.chat_template={template}")) != 0
    assert_shown_briefly("".join(capfd.readouterr()))


def test_a_templates_own_words_are_shown_whole(tiny: str, cache: Path, tmp_path: Path, capfd):
    words = "Conversation roles must alternate user/assistant/user/assistant and so on"
    template = tmp_path / "template.jinja"
    template.write_text(f"{{{{ raise_exception('{words}') }}}}", encoding="utf-8")
    data = write_lines(tmp_path / "rows.jsonl", json.dumps(good(), ensure_ascii=False))
    assert run(arguments(tiny, data, tmp_path / "out", "--dry-run", f"model.chat_template={template}")) == 65
    assert words in capfd.readouterr().err


def test_a_trace_of_where_rows_are_read_does_not_show_them(tmp_path: Path):
    """An error that nobody foresaw, raised by a library below the room of the data."""
    from ai_finetuning.data.stats import percentile

    def failing() -> Iterator[int]:
        raise ValueError(CANARY)
        yield 0

    with pytest.raises(ValueError, match="鈴木") as raised:
        percentile(failing(), 0.5)  # type: ignore[arg-type]
    for text in (trace(raised.value, for_files=False), described(raised.value, for_files=False)):
        assert excerpt(CANARY) in text
        assert_shown_briefly(text)
    for text in (trace(raised.value, for_files=True), described(raised.value, for_files=True)):
        assert "ValueError" in text
        assert not [piece for piece in pieces(PIECE) if piece in text]
    # Elsewhere nothing is read of rows: what it says helps, and stays.
    assert described(RuntimeError("shape mismatch"), for_files=True) == "RuntimeError: shape mismatch"


def test_the_error_file_of_a_process_holds_no_row(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch):
    bad = BadRows()
    bad.add(BadRow("壊れています", "broken", CANARY), "x:1")
    monkeypatch.setenv("AIFT_LANG", "en")
    with pytest.raises(DataError) as refusal:
        bad.refuse()
    assert tell(tmp_path / ERROR, refusal.value) == 65
    assert "x:1" in (tmp_path / ERROR).read_text(encoding="utf-8")
    assert not files_that_hold(tmp_path, pieces(PIECE))


@pytest.mark.parametrize("fault", ["", "step:oom@1x9"], ids=["a run that ends well", "one that fails"])
def test_a_run_writes_no_row(
    fault: str, tiny: str, cache: Path, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
):
    """Good rows, twice the same ones, and bad ones that are left out; an evaluation, a report, a card, TensorBoard. Only
    the sample answers of report.html and the items of the verdict show evaluation rows, unless they are switched off.
    """
    monkeypatch.setenv("AIFT_FAULT", fault)
    rows = [json.dumps(good(number % 4), ensure_ascii=False) for number in range(8)]
    data = write_lines(tmp_path / "rows.jsonl", *rows, *BAD.values())
    more = (
        "data.skip_bad_rows=true",
        "data.on_long=drop",
        "data.eval=0.3",
        'training.runtime.report_to=["tensorboard"]',
    )
    code = run(arguments(tiny, data, tmp_path / "out", *more))
    said = "".join(capfd.readouterr())
    assert (code == 0) == (fault == ""), said
    assert_shown_briefly(said)
    assert list(cache.rglob("tokens.json"))
    for folder in (tmp_path / "out", cache):
        allowed = {str(tmp_path / "out" / name) for name in ("report.html", "eval.jsonl")}
        assert set(files_that_hold(folder, pieces(PIECE))) <= allowed
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8") if not fault else ""
    shown = "".join(re.findall(r'<dl class="sample">.*?</dl>', page, re.DOTALL))
    assert bool(shown) == (not fault)
    assert not [piece for piece in pieces(PIECE) if piece in page.replace(shown, "") and piece not in shown]
    without = run(arguments(tiny, data, tmp_path / "without", *more, "training.runtime.report_samples=0"))
    assert (without == 0) == (fault == "")
    assert not files_that_hold(tmp_path / "without", pieces(PIECE))
    if not fault:
        assert {"README.md", "report.html", "run.json", "metrics.jsonl", "environment.json"} <= {
            path.name for path in (tmp_path / "out").iterdir()
        }


def test_a_run_from_memory_writes_and_logs_no_row(tiny_model_dir: Path, tmp_path: Path, capfd, caplog):
    caplog.set_level(logging.DEBUG, logger="ai_finetuning")
    trainer = LoRAFinetuningTrainer(
        JapaneseModel(str(tiny_model_dir)), LoRAConfig(r=2), training(tmp_path / "out", warmup_steps=0)
    )
    trainer.train([good(number) for number in range(4)])
    assert_shown_briefly("".join(capfd.readouterr()) + caplog.text)
    assert not files_that_hold(tmp_path / "out", pieces(PIECE))
    with pytest.raises(DataError) as refusal:
        trainer.train([good(), {CANARY}])
    assert_shown_briefly(refusal.value.ja + refusal.value.en)
    with pytest.raises(DataError) as refusal:
        TextDataset([CANARY, [CANARY]], None)  # type: ignore[list-item]
    assert_shown_briefly(refusal.value.ja + refusal.value.en)
    assert excerpt(CANARY) not in str(refusal.value.for_files)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "step:kill@1%1"], ids=["a run that ends well", "one that fails"])
def test_a_run_of_two_processes_writes_no_row(fault: str, tiny: str, cache: Path, tmp_path: Path):
    """Its logs are files, too."""
    rows = [json.dumps(good(number), ensure_ascii=False) for number in range(8)]
    data = write_lines(tmp_path / "rows.jsonl", *rows, *BAD.values())
    more = ("--cpu-processes", "2", "data.skip_bad_rows=true", "data.on_long=drop")
    code, said = spawn(*arguments(tiny, data, tmp_path / "out", *more), fault=fault)
    assert (code == 0) == (fault == ""), said
    assert_shown_briefly(said)
    assert list((tmp_path / "out" / ".launch" / "logs").rglob("stderr.log"))
    for folder in (tmp_path / "out", cache):
        assert not files_that_hold(folder, pieces(PIECE))


# --- secrets


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SECRETS | ADDRESSES).items():
        monkeypatch.setenv(name, value)


def test_secrets_are_left_out_of_texts(secrets: None):
    for value in SECRETS.values():
        assert without_secrets(f"a {value} b") == "a *** b"
    for value in ADDRESSES.values():
        assert CANARY_OF_SECRETS.search(without_secrets(f"at {value}/x")) is None
        assert "127.0.0.1:9/x" in without_secrets(f"at {value}/x")
    # pathlib leaves one slash.
    assert without_secrets(str(Path("https://me:canary@host/x"))) == "https:/***@host/x"
    for text in ("https://host/a@b", "me@example.jp", "data.csv:12: a@b", "C:/Users/a@b", "13:05 a@b"):
        assert without_secrets(text) == text


def test_no_secret_is_written_by_a_run(secrets: None, tiny: str, cache: Path, tmp_path: Path, capfd):
    data = write_lines(tmp_path / "rows.jsonl", *(json.dumps(good(number)) for number in range(4)))
    more = ("data.eval=0.3", 'training.runtime.report_to=["tensorboard"]')
    assert run(arguments(tiny, data, tmp_path / "out", *more)) == 0
    assert not CANARY_OF_SECRETS.search("".join(capfd.readouterr()))
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert not re.search(rb"-canary-|CanaryCanary|wandbcanary", path.read_bytes()), path


def test_no_secret_is_printed(secrets: None, tiny: str, cache: Path, tmp_path: Path, capfd, monkeypatch):
    """Commands that fail with an address, a token or the hub's endpoint in what they say, and `aift env`."""
    address, token = "https://someone:pw-canary@127.0.0.1:9/model", SECRETS["HF_TOKEN"]
    data = write_lines(tmp_path / "rows.jsonl", json.dumps(good()))
    out = str(tmp_path / "m")
    commands = [
        ["env"],
        ["env", "--json"],
        ["train", f"model={address}", "method=lora", f"data.train={data}"],
        ["train", f"model={tmp_path}/{token}/x", "method=lora", f"data.train={data}"],
        ["train", f"model={tiny}", "method=lora", f"data.train={address}.jsonl"],
        ["train", f"{token}=1", f"data.train={data}"],
        ["generate", address, "q"],
        ["generate", "org/model", "q"],
        ["merge", address, "--out", out],
        ["export", "vllm", address, "--out", out],
        ["generate", f"--{token}"],
    ]
    for offline in ("1", "0"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        for command in commands:
            code = run(command)
            said = "".join(capfd.readouterr())
            assert (code == 0) == (command[0] == "env"), (command, said)
            assert said
            assert not CANARY_OF_SECRETS.search(said.replace(str(tmp_path), "")), (command, said)


def test_a_trace_holds_no_secret(secrets: None):
    try:
        raise OSError(f"cannot reach {ADDRESSES['HF_ENDPOINT']}") from ValueError(SECRETS["HF_TOKEN"])
    except OSError as error:
        text = trace(error, for_files=True)
    assert "cannot reach https://***@127.0.0.1:9" in text
    assert "ValueError: ***" in text


def test_an_endpoint_with_a_password_is_asked_with_it():
    """As a user and password, not as a part of the host's name, which an error would show."""
    asked: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answer = head(f"http://someone:p%40ss@127.0.0.1:{server.server_port}/x", patience(5))
        server.shutdown()
    assert answer.status == 200
    assert asked == ["Basic " + base64.b64encode(b"someone:p@ss").decode()]
