"""`aift`, verb by verb, as a user types it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.commands import call, environment, spawn, write_run
from tests.support.models import build_tokenizer
from tests.support.systems import needs_terminal

from ai_finetuning import embedded


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    assert call("train", str(write_run(folder, tiny_model_dir, num_epochs=1))) == 0
    return folder / "out"


def test_help_lists_the_verbs_and_every_setting(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert all(
        verb in text
        for verb in (
            "train",
            "generate",
            "chat",
            "merge",
            "quantize",
            "bench",
            "eval",
            "models",
            "import",
            "env",
            "schema",
            "data",
            "demo",
        )
    )
    assert call("train", "--help") == 0
    text = capsys.readouterr().out
    assert all(
        key in text
        for key in (
            "--dry-run",
            "training.learning_rate",
            "data.on_long",
            "lora.use_rslora",
            "training.checkpoint.restart",
        )
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom ai_finetuning.apps.cli.main import run\nrun(['--help'])\nprint([m for m in ('torch', "
        "'transformers', 'pydantic', 'datasets', 'rich.table') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_the_first_step_waits_for_no_library_that_it_does_not_use(tmp_path: Path, tiny_model_dir: Path):
    config = [
        "train",
        f"model={tiny_model_dir}",
        "method=full",
        f"data.train={tmp_path / 'rows.jsonl'}",
        f"training.output_dir={tmp_path / 'out'}",
    ]
    write_run(tmp_path, tiny_model_dir)
    code = (
        f"import sys\nfrom ai_finetuning.apps.cli.main import run\nrun({config!r})\nprint([m for m in "
        "('bitsandbytes', 'peft', 'datasets', 'pandas', 'matplotlib', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(AIFT_FAULT="step:term@1"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "saved up to step 1" in done.stderr
    assert done.stdout.strip().endswith("[]")


def test_the_module_is_the_command(capsys):
    done = subprocess.run(
        [sys.executable, "-m", "ai_finetuning", "--help"], env=environment(), capture_output=True, text=True, check=True
    )
    assert "aift" in done.stdout


def test_a_run_by_overrides_alone(tmp_path: Path, tiny_model_dir: Path, logged):
    rows = tmp_path / "rows.csv"
    rows.write_bytes("質問,回答\r\n首都は？,東京です。\r\n人口は？,多いです。\r\n".encode("cp932"))
    code = call(
        "train",
        f"model={tiny_model_dir}",
        "method=lora",
        f"data.train={rows}",
        f"training.output_dir={tmp_path / 'out'}",
        "training.resume_from_checkpoint=auto",
        "num_epochs=1",
    )
    assert code == 0
    text = logged()
    assert "cp932, 2 rows" in text
    assert f"aift chat {tmp_path / 'out'}" in text
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, tiny_model_dir: Path, logged):
    config = write_run(tmp_path, tiny_model_dir)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert call("train", str(config), "--dry-run") == 0
    text = logged()
    for word in ("rows", "tokens", "steps", "precision", "memory", "disk", "24", "22"):
        assert word in text, word
    assert "Attention" not in text  # no weight was read
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_generate_answers_and_repeats_itself_when_greedy(adapter: Path, tiny_model_dir: Path, capsys):
    arguments = [
        "generate",
        str(adapter),
        "3の次の数は何ですか？",
        "5の次の数は何ですか？",
        "--greedy",
        "--max-new-tokens",
        "6",
    ]
    assert call(*arguments) == 0
    first = capsys.readouterr().out
    assert call(*arguments) == 0
    assert capsys.readouterr().out == first
    assert (
        call("generate", str(tiny_model_dir), "要約して", "--input", "長い文", "--bits", "4", "--max-new-tokens", "2")
        == 0
    )
    assert call("generate", str(tiny_model_dir), "要約", "--bits", "5") == 64
    assert call("generate", str(tiny_model_dir), "要約", "--base", str(tiny_model_dir)) == 64
    assert call("generate", str(adapter) + "x", "要約") == 66


def test_chat_talks_compares_and_obeys_commands(adapter: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    lines = "/help\n3の次の数は何ですか？\n/compare\n4の次の数は何ですか？\n/adapter\n/reset\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert call("chat", str(adapter), "--greedy", "--max-new-tokens", "4") == 0
    text = capsys.readouterr().out
    assert "/compare shows both" in text
    assert "compare: on" in text
    assert "without adapter" in text
    assert "adapter: off" in text
    assert "history cleared" in text


def test_merge_reports_its_agreement_and_loads_plain(adapter: Path, tmp_path: Path, capsys):
    from transformers import AutoModelForCausalLM

    assert call("merge", str(adapter), "--out", str(tmp_path / "told"), "--json", str(tmp_path / "told.json")) == 0
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert told["kl"] <= told["limits"]["kl"]
    assert told["top1"] >= told["limits"]["top1"]
    assert told["folder"] == str(tmp_path / "told")
    capsys.readouterr()
    assert call("merge", str(adapter), "--out", str(tmp_path / "merged")) == 0
    text = capsys.readouterr().out
    assert "KL 0.0" in text
    assert "top-1 " in text
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert str(model.dtype) == "torch.bfloat16"
    assert call("generate", str(tmp_path / "merged"), "3の次の数は何ですか？", "--max-new-tokens", "2") == 0
    assert call("merge", str(adapter), "--out", str(tmp_path / "merged")) != 0  # never over an existing folder
    assert call("merge", str(tmp_path / "merged"), "--out", str(tmp_path / "b")) == 66


def test_quantize_and_bench_and_their_refusals(tmp_path: Path, tiny_model_dir: Path, logged):
    out, text = tmp_path / "q", tmp_path / "text.txt"
    text.write_text("日本の首都は東京です。電車は九時に出発します。\n" * 8, encoding="utf-8")
    assert (
        call("quantize", str(tiny_model_dir), "--bits", "4", "--type", "fp4", "--no-double-quant", "--out", str(out))
        == 0
    )
    shown = logged()
    assert "bitsandbytes fp4  modules 14" in shown
    assert f"aift bench {tiny_model_dir} {out}" in shown
    assert (
        json.loads((out / "config.json").read_text(encoding="utf-8"))["quantization_config"]["bnb_4bit_quant_type"]
        == "fp4"
    )
    report = tmp_path / "report"
    assert (
        call(
            "bench",
            str(tiny_model_dir),
            str(out),
            "--data",
            str(text),
            "--runs",
            "1",
            "--rows",
            "2",
            "--max-length",
            "32",
            "--out",
            str(report),
        )
        == 0
    )
    shown = logged()
    assert "verdict: " in shown
    assert "| quantized modules | 0 | 14 |" in shown
    assert sorted(path.name for path in report.iterdir()) == ["benchmark.json", "benchmark.md", "benchmark.png"]
    assert call("generate", str(out), "首都は？", "--max-new-tokens", "2") == 0
    for arguments, code in (
        (["--bits", "5"], 78),
        (["--bits", "4", "--type", "int3"], 78),
        (["--bits", "8", "--backend", "hqq"], 78),
        (["--bits", "8", "--double-quant"], 78),
        (["--bits", "8", "--dtype", "half"], 78),
    ):
        assert call("quantize", str(tiny_model_dir), *arguments, "--out", str(tmp_path / "never")) == code
    assert call("quantize", str(out), "--bits", "8", "--out", str(tmp_path / "never")) == 78
    assert call("quantize", str(tmp_path / "nowhere"), "--bits", "8", "--out", str(tmp_path / "never")) == 66
    assert call("quantize", str(tiny_model_dir), "--bits", "8", "--out", str(text / "below")) == 74
    assert call("bench", str(tiny_model_dir), str(out), "--rows", "0") == 78
    assert not (tmp_path / "never").exists()


def test_models_lists_searches_and_describes(capsys):
    assert call("models", "llm-jp-3-1.8b") == 0
    assert "llm-jp/llm-jp-3-1.8b-instruct3" in re.sub(r"\s", "", capsys.readouterr().out)
    assert call("models", "llm-jp/llm-jp-3-1.8b-instruct3") == 0
    described = capsys.readouterr().out
    assert "licence: Apache-2.0" in described
    assert "prompt: tokenizer" in described
    assert "source of the prompt: https://huggingface.co/" in described
    assert call("models", "matsuo-lab/weblab-10b-instruction-sft") == 0
    assert "prompt: golden" in capsys.readouterr().out
    assert call("models", "elyza/ELYZA-japanese-Llama-2-13b-instruct") == 0
    assert "prompt: unconfirmed" in capsys.readouterr().out


def test_env_as_text_and_json(capsys):
    assert call("env", "--json") == 0
    obtained = json.loads(capsys.readouterr().out)
    assert {"versions", "hub", "free_disk_gb"} <= obtained.keys()
    assert call("env") == 0
    text = capsys.readouterr().out
    for word in ("torch", "transformers", "cpu", "locale"):
        assert word in text.lower()


def test_schema_is_json_for_editors(tmp_path: Path):
    assert call("schema", "--out", str(tmp_path / "schema.json")) == 0
    schema = json.loads((tmp_path / "schema.json").read_text(encoding="utf-8"))
    assert "$schema" in schema
    assert {"model", "method", "data", "training", "lora", "parallel"} <= schema["properties"].keys()
    assert "learning_rate" in schema["properties"]  # flat, as the YAML takes it too


def test_data_show_prints_the_exact_tokens_and_where_loss_is(adapter: Path, tiny_model_dir: Path, capsys):
    rows = adapter.parent / "rows.jsonl"
    assert call("data", "show", str(rows), "--model", str(tiny_model_dir), "--row", "2") == 0
    text = capsys.readouterr().out
    assert "rows.jsonl:2" in text
    mask = next(line for line in text.splitlines() if line.startswith("loss: ")).removeprefix("loss: ")
    from ai_finetuning import DataConfig
    from ai_finetuning.data.prepare import load_examples

    examples, *_ = load_examples(str(rows), build_tokenizer(), DataConfig())
    assert mask == "".join("0" if label == -100 else "1" for label in examples[1].labels)
    assert "⟨</s>⟩" in text
    assert call("data", "show", str(rows), "--model", str(tiny_model_dir), "--row", "99") == 64


def test_data_stats_counts_and_says_what_would_be_cut(adapter: Path, tiny_model_dir: Path, capsys):
    assert (
        call("data", "stats", str(adapter.parent / "rows.jsonl"), "--model", str(tiny_model_dir), "--max-length", "30")
        == 0
    )
    text = capsys.readouterr().out
    assert "22 rows" in text
    assert "characters per token" in text
    assert "rows over max_length 30" in text
    assert "#" in text


CODES = [
    (64, ["train", "model={model}", "what"], "what"),
    (64, ["no-such-verb"], "no-such-verb"),
    (64, ["generate"], "Missing argument"),
    (65, ["train", "model={model}", "data.train={bad}"], "bad.jsonl:1"),
    (66, ["train", "none.yaml"], "none.yaml"),
    (66, ["train", "model={model}", "data.train=none.csv"], "none.csv"),
    (66, ["train", "model={model}x", "data.train={rows}"], "does not exist"),
    (69, ["train", "model=nobody/nothing", "data.train={rows}"], "offline"),
    (78, ["train", "model={model}"], "data.train"),
    (78, ["train", "model={model}", "data.train={rows}", "batch_size=0"], "batch_size is 0"),
    (78, ["train", "model={model}", "data.train={rows}", "parallel.strategy=tensor"], "--cpu-processes 2"),
]


@pytest.mark.parametrize(("code", "arguments", "word"), CODES, ids=[f"{code}-{word}" for code, _, word in CODES])
def test_exit_codes_and_reasons(
    tmp_path: Path, tiny_model_dir: Path, logged, monkeypatch, code: int, arguments: list[str], word: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("{\n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"text": "文"}\n', encoding="utf-8")
    values = {"model": tiny_model_dir, "bad": tmp_path / "bad.jsonl", "rows": tmp_path / "rows.jsonl"}
    assert call(*(argument.format(**values) for argument in arguments)) == code
    assert word in logged()
    assert not (tmp_path / "outputs").exists()  # nothing half-written


def test_an_error_of_our_own_making_exits_70_with_its_traceback(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch, logged
):
    from ai_finetuning.engine import loop

    def broken(run, data) -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(loop, "step_with_retry", broken)
    assert call("train", str(write_run(tmp_path, tiny_model_dir))) == 70
    assert "a mistake of ours" in logged()
    assert "aift env" in logged()


def test_messages_follow_the_locale(tmp_path: Path):
    for language, word in (
        ("ja", "エラー: 設定ファイル none.yaml がありません。"),
        ("en", "error: there is no configuration file"),
    ):
        code, output = spawn("train", "none.yaml", AIFT_LANG=language)
        assert code == 66
        assert word in output
    done = subprocess.run(
        [sys.executable, "-m", "ai_finetuning", "train", "none.yaml"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={
            key: value
            for key, value in environment(LC_ALL="ja_JP.UTF-8", LANG="ja_JP.UTF-8").items()
            if key != "AIFT_LANG"
        },
    )
    assert "ありません" in done.stderr


def test_a_cp932_console_never_crashes(tmp_path: Path, tiny_model_dir: Path):
    """Characters that CP932 cannot show (𠮷, 🍣, é) become substitutes; the program goes on."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "𠮷野家の🍣は？", "output": "caféで—食べる。"}\n', encoding="utf-8")
    for language in ("ja", "en"):
        for arguments in (
            ["data", "show", str(rows), "--model", str(tiny_model_dir)],
            ["models"],
            ["train", "--help"],
            ["env"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "ai_finetuning", *arguments],
                capture_output=True,
                env=environment(PYTHONIOENCODING="cp932", PYTHONUTF8="0", AIFT_LANG=language),
            )
            assert done.returncode == 0, done.stderr.decode("cp932", "replace")
            done.stdout.decode("cp932")


def test_a_pipe_has_a_line_when_it_is_said():
    """Not when the command ends: the demo tells how long it takes before it takes it."""
    said = (
        "import os; from ai_finetuning.apps.cli.main import _safe_streams; "
        "_safe_streams(); print('takes 5 min'); os._exit(0)"
    )
    told = environment(PYTHONUNBUFFERED="")  # which would say it at once by itself
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, env=told, check=True)
    assert done.stdout.decode().strip() == "takes 5 min"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_that_is_started_with_a_stream_closed_ends_as_ever(closed: str, tmp_path: Path):
    """Some services start commands so; the numbers of the streams are not given to files that the command opens."""
    script = (
        "import os, sys\nfrom ai_finetuning.apps.cli import main\nrun = main.run\n"
        "def opened(arguments):\n    file = open(sys.argv.pop(), 'w')\n    file.write(str(file.fileno()))\n    file.close()\n"
        "    return run(['version'])\nmain.run = opened\nmain.main()\n"
    )
    (tmp_path / "command.py").write_text(script, encoding="utf-8")
    line = f'"{sys.executable}" "{tmp_path}/command.py" version "{tmp_path}/number" {closed}'
    assert subprocess.run(["sh", "-c", line], env=environment()).returncode == 0
    assert int((tmp_path / "number").read_text(encoding="utf-8")) > 2


@needs_terminal
def test_a_terminal_shows_a_bar_and_messages_stand_above_it(tmp_path: Path, tiny_model_dir: Path):
    import os
    import pty

    config = write_run(tmp_path, tiny_model_dir, runtime={"progress": True})
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ai_finetuning", "train", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=environment(TERM="xterm", COLUMNS="100"),
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        seen += piece
    assert process.wait() == 0
    text = seen.decode("utf-8")
    assert "24/24" in text
    assert "tok/s" in text
    assert "━" in text
    for line in text.split("\n"):
        if "evaluation loss" in line:  # the bar is wiped before the message is written
            assert line.rindex("[aift]") == 0 or line[: line.rindex("[aift]")].endswith("\x1b[2K")


@pytest.mark.slow
def test_the_demo_teaches_its_model(kotoha: str, tmp_path: Path, capsys):
    assert call("demo", "--out", str(tmp_path / "demo")) == 0
    obtained = re.search(r"before (\d+)% -> after (\d+)%", capsys.readouterr().out)
    assert obtained is not None
    assert int(obtained[1]) <= 5
    assert int(obtained[2]) >= 80


@pytest.fixture
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Demos ask a quarter of their questions, of every kind: most of a short one's time goes to answers."""
    questions = embedded.questions
    monkeypatch.setattr(embedded, "questions", lambda part: questions(part)[::4])


@pytest.mark.usefixtures("few_questions")
def test_the_full_demo_compares_three_methods(kotoha: str, tmp_path: Path, capsys):
    assert call("demo", "--full", "--out", str(tmp_path / "demo"), "--steps", "2") == 0
    text = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert {"full", "lora", "qlora"} <= lines.keys()
    megabytes = {name: float(lines[name].split("│")[6].split()[0]) for name in ("full", "lora", "qlora")}
    assert megabytes["full"] > megabytes["lora"] == megabytes["qlora"]
    assert (tmp_path / "demo" / "comparison" / "comparison.png").is_file()


@pytest.mark.usefixtures("few_questions")
def test_a_short_demo_runs_to_its_end(kotoha: str, tmp_path: Path, capsys):
    """Every part of `make demo`, with fewer steps."""
    assert call("demo", "--out", str(tmp_path / "demo"), "--steps", "2") == 0
    text = capsys.readouterr().out
    for word in (
        "学習前",
        "学習後",
        "loss.png",
        "report.html",
        "aift chat",
        "aift merge",
        "exact match",
        "not in the training data",
        "you> ",
    ):
        assert word in text
    assert (tmp_path / "demo" / "adapter" / "loss.png").is_file()
    assert (tmp_path / "demo" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.fixture
def mixed_rows(tmp_path: Path) -> Path:
    """Three good rows, and one that training refuses."""
    path = tmp_path / "mixed.jsonl"
    rows = [
        {"質問": "首都は？", "回答": "東京です。"},
        {"質問": "人口は？", "回答": ""},
        {"質問": "天気は？", "回答": "晴れです。"},
    ]
    rows.append({"質問": "季節は？", "回答": "秋です。"})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_data_show_and_stats_go_on_beside_a_bad_row_and_say_that_training_would_not(
    mixed_rows: Path, tiny_model_dir: Path, capsys
):
    model = ("--model", str(tiny_model_dir))
    for row in ("last", "-1", "3"):
        assert call("data", "show", str(mixed_rows), *model, "--row", row) == 0
        text = capsys.readouterr().out
        assert "mixed.jsonl:4:" in text
        assert "mixed.jsonl:2: 回答 is empty" in text
        assert "Training refuses" in text
    assert call("data", "stats", str(mixed_rows), *model, "data.skip_bad_rows=true") == 0
    text = capsys.readouterr().out
    assert "rows skipped: 1" in text
    assert "Training refuses" not in text
    assert call("data", "show", str(mixed_rows), *model, "--row", "4") == 64


def test_data_show_takes_the_settings_that_errors_advise(tmp_path: Path, tiny_model_dir: Path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("聞いたこと,言ったこと\n首都は？,東京です。\n", encoding="utf-8")
    model = ("--model", str(tiny_model_dir))
    assert call("data", "show", str(path), *model) == 65
    advised = re.search(r"'(data\.columns=[^']*)'", capsys.readouterr().err)
    assert advised is not None
    assert call("data", "show", str(path), *model, advised.group(1), "data.system_prompt=短く", "data.loss_on=all") == 0
    text = capsys.readouterr().out
    assert set(next(line for line in text.splitlines() if line.startswith("loss: "))[7:]) == {"1"} or "01" in text


@pytest.mark.parametrize("language", ["ja", "en"])
def test_data_formats_lists_the_tables_of_the_reader(language: str, capsys, monkeypatch: pytest.MonkeyPatch):
    from ai_finetuning.data.files import READERS
    from ai_finetuning.data.formats import FORMATS

    monkeypatch.setenv("AIFT_LANG", language)
    assert call("data", "formats") == 0
    text = capsys.readouterr().out
    for ending in READERS:
        assert ending in text
    for item in FORMATS:
        assert item.key in text
        assert (item.ja if language == "ja" else item.en) in text
        assert item.example in text


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}\n', 65),
        ("a.jsonl", '{"質問": "価格は？", "回答": "<s>千円</s>です"}\n', 65),
        ("a.csv", "質問,回答,回答\n一,二,三\n", 65),
        ("a.xlsx", "no workbook", 65),
        ("a.pkl", "x", 65),
        (None, "", 66),
    ],
)
def test_training_on_what_is_no_data_exits_by_its_kind_and_writes_nothing(
    tmp_path: Path, tiny_model_dir: Path, name: str | None, content: str, code: int, capsys
):
    path = tmp_path / (name or "missing.jsonl")
    if name:
        path.write_text(content, encoding="utf-8")
    out = tmp_path / "out"
    assert call("train", f"model={tiny_model_dir}", f"data.train={path}", f"training.output_dir={out}") == code
    assert not out.exists()
    assert "Traceback" not in capsys.readouterr().err
