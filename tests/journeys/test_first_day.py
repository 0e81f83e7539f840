"""The first day of several newcomers, typed into a terminal: every step works at the first try.

The sessions run in Japanese at 80 columns; the same in English at 120 columns is marked slow.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.support.systems import needs_terminal
from tests.support.terminal import Terminal, assert_tables_fit

pytestmark = needs_terminal
TERMINALS = [
    pytest.param(("ja", 80), id="ja-80"),
    pytest.param(("en", 120), id="en-120", marks=pytest.mark.slow),
]
RATE = "learning_rate=3e-3"  # of the model that ships; docs/embedded.md


@pytest.fixture(params=TERMINALS)
def terminal(request: pytest.FixtureRequest, desk: Path, tmp_path: Path) -> Terminal:
    language, columns = request.param
    return Terminal(desk, columns=columns, language=language, cache=tmp_path / "cache")


def ok(terminal: Terminal, *arguments: str, seconds: float = 240) -> str:
    """A command that has to work at the first try and to fit the terminal; its text."""
    seen = terminal.run(*arguments, seconds=seconds)
    assert seen.code == 0, seen.text
    assert "Traceback" not in seen.text
    assert_tables_fit(seen.text, terminal.columns)
    return seen.text


def words(terminal: Terminal, ja: str, en: str) -> str:
    return ja if terminal.environment["LANG"].startswith("ja") else en


def test_looking_around(terminal: Terminal):
    """Who has just installed it learns what there is, without a page."""
    home = ok(terminal)
    assert "my-model" in home
    assert "aift start" in home
    assert "ai-finetuning-toolkit" in ok(terminal, "version")
    for verb in ("train", "start", "chat", "answer", "resume"):
        assert f"aift {verb}" in ok(terminal, verb, "-h")
    models = ok(terminal, "models")
    assert "kotoha-tiny" in models
    assert "…" not in models


def test_a_table_in_cp932_to_answers_for_a_file(terminal: Terminal):
    """An engineer with a CP932 table: train, compare, answer a file of questions."""
    run = ["train", "model=my-model", "method=lora", "data.train=faq.csv", "data.eval=0.1", RATE]
    run += ["num_epochs=6", "training.output_dir=outputs/faq"]
    done = ok(terminal, *run)
    assert "cp932" in done
    assert words(terminal, "学習対象 298 トークン", "298 label tokens") in done
    assert "aift chat outputs/faq" in done
    compared = ok(terminal, "generate", "outputs/faq", "送料について教えてください。", "--compare", "--greedy")
    assert not [line for line in compared.splitlines() if "│" in line and "…" in line]
    ok(terminal, "answer", "outputs/faq", "質問一覧.csv", "--out", "回答.csv", "--greedy", "--max-new-tokens", "24")
    text = (terminal.folder / "回答.csv").read_bytes().decode("cp932")
    rows = list(csv.reader(text.splitlines()))
    assert rows[0][:2] == ["番号", "質問"]
    assert len(rows) == 5
    assert all(row[-1] for row in rows)
    assert terminal.tries == 3


def test_talking(terminal: Terminal):
    """A chat that one can stay in: a banner, answers that are not cut, Ctrl-C that ends an answer, a way out."""
    chat = terminal.type("chat", "my-model", "--greedy", "--max-new-tokens", "40")
    banner = chat.expect(r"\n[^\n]*[>＞] ")
    assert "my-model" in banner
    assert "/exit" in banner or "/help" in banner
    chat.answer("こんにちは")
    chat.expect(r"\n[^\n]*[>＞] ", 120)
    chat.answer("/undo")
    chat.expect(r"\n[^\n]*[>＞] ")
    chat.answer("/exit")
    seen = chat.end()
    assert seen.code == 0
    assert "Traceback" not in seen.text


def test_a_workbook_by_asking(terminal: Terminal):
    """A student with a workbook presses Enter at every question of `aift start`."""
    start = terminal.type("start", "社内 FAQ.xlsx", "--model", "my-model", "--preset", "quick")
    for _ in range(8):
        try:
            start.expect(r"[:：?？>] ?$", 20)
        except AssertionError:
            break
        start.answer()
    seen = start.end(300)
    assert seen.code == 0, seen.text
    assert "FAQ" in seen.text
    assert (terminal.folder / "run.yaml").is_file()
    assert_tables_fit(seen.text, terminal.columns)
    assert terminal.tries == 1


def test_interrupted_moved_continued(terminal: Terminal):
    """Ctrl-C, the command that goes on, the folder moved, and new rows on top."""
    run = ["train", "model=my-model", "method=lora", "data.train=faq.csv", RATE, "num_epochs=15"]
    train = terminal.type(*run, "training.output_dir=outputs/long", "logging_steps=1")
    train.expect(r"\b[1-9]\d?/\d+", 120)  # the bar may skip a step
    train.interrupt()
    stopped = train.end()
    assert stopped.code == 75
    assert "aift resume outputs/long" in stopped.text
    assert words(terminal, "エラー", "error:") not in stopped.text
    shutil.move(terminal.folder / "outputs", terminal.folder / "移動先")
    resumed = ok(terminal, "resume", "移動先/long")
    assert "Traceback" not in resumed
    more = terminal.folder / "追加 分.csv"
    with more.open("w", encoding="cp932", newline="") as file:
        csv.writer(file).writerows(
            [["お問い合わせ", "ご回答"], *([f"新しい質問{n}？", f"新しい答え{n}。"] for n in range(8))]
        )
    ok(terminal, "train", "--from", "移動先/long", "data.train=追加 分.csv", RATE, "training.output_dir=outputs/more")
    state = json.loads((terminal.folder / "outputs" / "more" / "run.json").read_text(encoding="utf-8"))
    assert state["status"] == "completed"
    ok(terminal, "generate", "outputs/more", "新しい質問1？", "--greedy", "--max-new-tokens", "8")


def test_two_processes_with_a_share_for_evaluation(terminal: Terminal):
    run = ["train", "model=my-model", "method=lora", "data.train=faq.csv", "data.eval=0.1", RATE, "max_steps=3"]
    plan = ok(terminal, *run, "--cpu-processes", "2", "--dry-run")
    assert "ddp" in plan
    assert "cp932" in plan
    assert words(terminal, "2 プロセス", "2, ddp") in plan
    ok(terminal, *run, "--cpu-processes", "2")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["chat", "my-modl"], "my-model"),
        (["train", "faq.csv"], "data.train=faq.csv"),
        (["train", "model=my-model", "data.train=faqq.csv"], "faq.csv"),
        (["generate", "my-model", "質問", "--temperature", "0"], "--greedy"),
        (["train", "model=my-model", "data.train=faq.csv", "data.eval=10"], "data.eval=0.1"),
        (["train", "--data", "faq.csv"], "data.train="),
        (["train", "method：lora", "data.train=faq.csv"], "半角の ="),
        (["train", "run.yml"], "もしかして: rum.yaml"),
        (["generate", "faq.csv", "質問"], "aift start faq.csv"),
        (["answer", "my-model", "質問一覧.csv"], "--out"),
        (["answer", "my-model", "質問.csv", "--out", "回答.csv"], "質問一覧.csv"),
        (["merge", "my-model", "--out", "x"], "aift chat my-model"),
        (["resume", "outputs"], "outputs"),
        (["models", "no-such-model"], "aift models"),
        (["bundle", "verify", "my-model"], "aift bundle"),
        (["train", "model=llm-jp/llm-jp-3-1.8b", "data.train=faq.csv"], "aift bundle llm-jp/llm-jp-3-1.8b --out"),
        (["start", "社内 FAQ.xls"], "社内 FAQ.xlsx"),
    ],
)
def test_a_slip_is_answered_with_what_to_type(desk: Path, tmp_path: Path, typed: list[str], expected: str):
    (desk / "rum.yaml").write_text("method: lora\n", encoding="utf-8")
    seen = Terminal(desk, cache=tmp_path / "cache").run(*typed)
    assert seen.code in (64, 65, 66, 69, 78), seen.text
    assert expected in "".join(seen.text.splitlines())  # a terminal may break a command that is long
    assert "Traceback" not in seen.text
    assert "。 " not in seen.text


def test_a_model_is_carried_to_a_pc_without_internet(terminal: Terminal):
    """Packed, checked there, and used under its new name, which has a blank in it."""
    packed = ok(terminal, "bundle", "my-model", "--out", "持ち込み 用")
    assert "SHA-256" in packed
    shutil.move(terminal.folder / "持ち込み 用", terminal.folder / "別の PC")
    assert "SHA-256" in ok(terminal, "bundle", "verify", "別の PC")
    ok(terminal, "generate", "別の PC", "こんにちは", "--greedy", "--max-new-tokens", "4")


@pytest.mark.slow
def test_best_weights_merged_exported_quantized(terminal: Terminal):
    """A researcher takes the weights of the best evaluation, merges, exports and quantizes them."""
    run = ["train", "model=my-model", "method=lora", "data.train=faq.csv", "data.eval=0.1", RATE, "num_epochs=10"]
    ok(terminal, *run, "training.output_dir=outputs/社内 FAQ")
    finished = terminal.folder / "outputs" / "社内 FAQ"
    assert (finished / "checkpoints" / "best" / "adapter_model.safetensors").is_file()
    for name in ("outputs/社内 FAQ/checkpoints/best", "outputs/社内 FAQ/checkpoints", "outputs/社内 FAQ/"):
        ok(terminal, "generate", name, "送料について教えてください。", "--greedy", "--max-new-tokens", "8")
    merged = ok(terminal, "merge", "outputs/社内 FAQ/checkpoints/best", "--out", "統合 済み")
    assert merged.count(words(terminal, "アテンション: ", "Attention: ")) == 1
    assert "aift chat '統合 済み'" in merged
    assert "vllm serve" in ok(terminal, "export", "vllm", "統合 済み", "--out", "for-vllm")
    ok(terminal, "quantize", "統合 済み", "--bits", "8", "--out", "small")
    ok(terminal, "generate", "small", "送料について教えてください。", "--greedy", "--max-new-tokens", "8")


@pytest.mark.slow
def test_on_and_on(terminal: Terminal):
    """More steps for a finished run, twice; new rows on top of new rows, with a share of the old ones."""
    run = ["train", "model=my-model", "method=lora", "data.train=faq.csv", "data.eval=0.1", RATE, "max_steps=3"]
    ok(terminal, *run, "training.output_dir=outputs/faq")
    ok(terminal, "resume", "outputs/faq", "max_steps=4")
    longer = ok(terminal, "train", "outputs/faq", "--resume", "max_steps=5")
    assert words(terminal, " 0 トークン/秒", " 0 tok/s") not in longer  # one step tells no speed
    more = ["data.train=faq.csv", RATE, "max_steps=2", "data.packing=true", "data.eval=0.1"]
    ok(terminal, "train", "--from", "outputs/faq", *more)
    ok(terminal, "train", "--from", "outputs/faq-2", *more, "--replay", "0.2", "faq.csv")
    assert (terminal.folder / "outputs" / "faq-2-2" / "adapter_model.safetensors").is_file()
    ok(terminal, "generate", "outputs/faq-2-2", "送料について教えてください。", "--greedy", "--max-new-tokens", "8")
