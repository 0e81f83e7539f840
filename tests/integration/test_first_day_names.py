"""What a newcomer types as a name on the first day: any folder that the product wrote, for every verb."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.commands import call
from tests.support.runs import train_full, train_lora

from ai_finetuning.errors import CheckpointError, ModelError
from ai_finetuning.inference.session import open_model
from ai_finetuning.inference.usable import usable


@pytest.fixture(scope="module")
def run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run of six steps with checkpoints after 3 and 6; read-only."""
    folder = tmp_path_factory.mktemp("outputs") / "faq"
    train_lora(tiny_model_dir, folder, num_epochs=1)
    (folder.parent / "rows.jsonl").write_text('{"instruction": "質問", "output": "答え"}\n', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def full_run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in full; read-only."""
    folder = tmp_path_factory.mktemp("outputs") / "whole"
    train_full(tiny_model_dir, folder, num_epochs=1)
    return folder


def interrupted(run: Path, place: Path) -> Path:
    """What a run leaves that was stopped before its end."""
    place.mkdir()
    shutil.copytree(run / "checkpoints", place / "checkpoints")
    for name in ("config.yaml", "run.json", "environment.json"):
        shutil.copyfile(run / name, place / name)
    return place


def write_rows(file: Path, count: int) -> None:
    """Questions and answers, no two alike."""
    rows = ({"instruction": f"質問{number}", "output": f"答え{number}"} for number in range(count))
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def logits(name: str) -> torch.Tensor:
    opened = open_model(name, dtype="float32")
    ids = torch.tensor([opened.tokenizer.encode("日本の首都は")])
    with torch.no_grad():
        return opened.model(input_ids=ids).logits


@pytest.mark.parametrize("kind", ["run", "full_run"])
def test_a13_the_last_checkpoint_answers_as_the_saved_model_and_an_earlier_one_does_not(
    kind: str, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(kind)
    saved = logits(str(folder))
    assert torch.equal(logits(str(folder / "checkpoints" / "checkpoint-6")), saved)
    assert not torch.allclose(logits(str(folder / "checkpoints" / "checkpoint-3")), saved)


@pytest.mark.parametrize("kind", ["run", "full_run"])
def test_a13_an_interrupted_run_answers_from_its_newest_checkpoint_and_says_so(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, logged
):
    folder: Path = request.getfixturevalue(kind)
    place = interrupted(folder, tmp_path / "stopped run")
    assert torch.equal(logits(str(place)), logits(str(folder)))
    text = logged()
    assert "step 6" in text
    assert f"aift resume '{place}'" in text


def test_a13_a_damaged_checkpoint_is_refused_and_an_interrupted_run_uses_the_one_before(
    run: Path, tmp_path: Path, logged
):
    place = interrupted(run, tmp_path / "stopped")
    weights = next((place / "checkpoints" / "checkpoint-6").glob("model-*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="SHA-256"):
        usable(str(place / "checkpoints" / "checkpoint-6"))
    assert torch.equal(logits(str(place)), logits(str(run / "checkpoints" / "checkpoint-3")))
    assert "step 3" in logged()


def test_a13_a_checkpoint_of_an_earlier_version_takes_the_rest_from_its_ended_run(run: Path, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    shutil.rmtree(old / "checkpoints" / "without-weights")
    (old / "base.json").unlink()
    assert torch.equal(logits(str(old / "checkpoints" / "checkpoint-6")), logits(str(run)))
    stopped = interrupted(run, tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints" / "without-weights")
    with pytest.raises(ModelError, match="aift resume"):
        usable(str(stopped))


def test_a13_the_adapter_of_a_checkpoint_has_the_bytes_that_training_saves(run: Path):
    made = load_file(Path(usable(str(run / "checkpoints" / "checkpoint-6")).path) / "adapter_model.safetensors")
    saved = load_file(run / "adapter_model.safetensors")
    assert made.keys() == saved.keys()
    assert all(torch.equal(made[name], saved[name]) for name in saved)


def test_a04_an_adapter_trained_on_a_relative_path_answers_from_elsewhere(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    here = tmp_path / "here"
    shutil.copytree(tiny_model_dir, here / "my-model")
    monkeypatch.chdir(here)
    train_lora(Path("my-model"), Path("outputs/faq"), num_epochs=1)
    settings = json.loads((here / "outputs/faq/adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == str(here / "my-model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ask = ["質問", "--greedy", "--max-new-tokens", "3"]
    assert call("generate", str(here / "outputs/faq"), *ask) == 0
    answer = capsys.readouterr().out
    here.rename(tmp_path / "moved")  # the whole folder, on another machine or disk
    for name in ("outputs/faq", "outputs/faq/checkpoints/checkpoint-6"):
        assert call("generate", str(tmp_path / "moved" / name), *ask) == 0
        assert capsys.readouterr().out == answer
    (tmp_path / "moved" / "my-model").rename(tmp_path / "base")
    assert call("generate", str(tmp_path / "moved/outputs/faq"), *ask) == 66
    assert "--base" in capsys.readouterr().err
    assert call("generate", str(tmp_path / "moved/outputs/faq"), *ask, "--base", str(tmp_path / "base")) == 0
    assert capsys.readouterr().out == answer


# --- every verb


ASK = ("質問", "--greedy", "--max-new-tokens", "3")


def test_a13_every_verb_takes_a_checkpoint_and_an_interrupted_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stopped = str(interrupted(run, tmp_path / "stopped"))
    checkpoint = str(run / "checkpoints" / "checkpoint-6")
    answers = set()
    for name in (str(run), checkpoint, stopped):
        assert call("generate", name, *ASK) == 0
        answers.add(capsys.readouterr().out)
    assert len(answers) == 1
    assert call("merge", checkpoint, "--out", str(tmp_path / "merged"), "--dtype", "float32") == 0
    assert call("export", "vllm", stopped, "--out", str(tmp_path / "vllm")) == 0
    assert call("export", "checkpoint", checkpoint, "--out", str(tmp_path / "taken")) == 0
    assert call("data", "show", str(run.parent / "rows.jsonl"), "--model", stopped) == 0
    assert call("bench", checkpoint, str(tmp_path / "merged"), "--rows", "2", "--runs", "1") == 0
    asked = ("--tasks", "prose", "--limit", "1", "--out", str(tmp_path / "eval"))
    assert call("eval", checkpoint, *asked) == 0
    text = capsys.readouterr().out
    assert f"aift chat {tmp_path / 'taken'}" in text
    for made in ("merged", "vllm"):
        assert torch.allclose(logits(str(tmp_path / made)), logits(str(run)), atol=0.1)
    assert torch.equal(logits(str(tmp_path / "taken")), logits(str(run)))


def test_a13_a_checkpoint_of_all_weights_is_quantized_exported_and_said_to_need_no_merging(
    full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = str(full_run / "checkpoints" / "checkpoint-3")
    assert call("quantize", checkpoint, "--bits", "8", "--out", str(tmp_path / "q")) == 0
    assert call("export", "checkpoint", checkpoint, "--out", str(tmp_path / "taken")) == 0
    assert torch.equal(logits(str(tmp_path / "taken")), logits(checkpoint))
    capsys.readouterr()
    assert call("merge", checkpoint, "--out", str(tmp_path / "m")) == 66
    assert "nothing to merge" in capsys.readouterr().err


def test_every_folder_that_a_verb_cannot_use_says_what_to_type(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(run.parent)
    refused = {
        ("quantize", "faq", "--bits", "8", "--out", str(tmp_path / "q")): "aift merge faq --out",
        ("train", "model=faq", "method=full", "data.train=rows.jsonl"): "aift merge faq --out",
        ("train", "model=faq/checkpoints/checkpoint-3", "data.train=rows.jsonl"): "aift export checkpoint",
        ("train", "faq", "model=x"): "aift resume faq",
        ("export", "checkpoint", "faq", "--out", str(tmp_path / "c")): "checkpoints/checkpoint-N",
        ("generate", "faq/config.yaml", *ASK): "Name its folder: faq",
        ("chat", "fak"): "Did you mean: faq",
    }
    for arguments, words in refused.items():
        assert call(*arguments) in (64, 66, 78), arguments
        assert words in capsys.readouterr().err, arguments
    assert not list(tmp_path.iterdir())


ODD_NAMES = ("[旧] 社内 FAQ", "a,b", "{x}", "50%", "#1", "役割： 店員", "@a", "~x", "=y", "全角　空白")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_files_and_folders_of_any_name_need_no_quoting_of_ours(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Data, output folder and model of any name, from the command line and again from the config.yaml that it wrote."""
    monkeypatch.chdir(tmp_path)
    settings = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    shutil.copytree(settings["base_model_name_or_path"], f"model {name}")
    file = f"{name}.jsonl"
    Path(file).write_text('{"instruction": "質問", "output": "答え"}\n' * 3, encoding="utf-8")
    arguments = [f"model=model {name}", "method=lora", f"data.train={file}", f"training.output_dir=out {name}"]
    prompt = f"{name} # 丁寧に: [答えて]"
    done = call("train", *arguments, f"data.system_prompt={prompt}", "max_steps=1", "learning_rate=1e-4", "--dry-run")
    assert done == 0, capsys.readouterr().err
    from ai_finetuning.config.load import load_config

    config = load_config(None, [*arguments, f"data.system_prompt={prompt}"])
    assert config.data.train == file
    assert config.data.system_prompt == prompt
    assert config.training.output_dir == f"out {name}"
    assert call("data", "stats", file, "--model", f"model {name}") == 0
    shutil.copytree(run, f"run {name}")
    assert torch.equal(logits(f"run {name}"), logits(str(run)))


# --- what is typed in place of settings


def test_a16_data_in_place_of_settings_is_answered_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("faq.csv").write_bytes("質問,回答\n送料は,無料\n".encode("cp932"))
    Path("社内.json").write_text("[]", encoding="utf-8")
    model = "model=embedded:kotoha-tiny"
    expected = {
        ("train", "faq.csv"): (78, "data.train=faq.csv"),
        ("train", "faq.csv", model): (78, "data.train=faq.csv"),
        ("train", "faq2.csv"): (66, "data.train=FILE"),
        ("train", "社内.json"): (78, "data.train="),
        ("train", "--data", "faq.csv", model): (78, "data.train=FILE"),
        ("train", model, "data.train=faq.csv", "data.eval=10"): (78, "data.eval=0.1"),
        ("train", model, "data.train=faq.csv", "data.eval=10%"): (78, "data.eval=0.1"),
        ("train", model, "data.train=faq.csv", "data.eval=２０％"): (78, "data.eval=0.2"),
    }
    for arguments, (code, words) in expected.items():
        assert call(*arguments) == code, arguments
        assert words in capsys.readouterr().err, arguments
    assert call("train", model, "data.train=faq.csv", "data.eval=fag.csv") == 66
    assert "did you mean" not in capsys.readouterr().err  # the training file is no evaluation file
    Path("fag.txt").touch()
    assert call("train", model, "data.train=faq.csv", "data.eval=fag.csv") == 66
    assert "did you mean fag.txt" in capsys.readouterr().err


TEXTS = (
    "# 丁寧に答えて",
    "~",
    "役割: 店員",
    "[重要] 丁寧に",
    "- a",
    "*a*",
    "@a",
    "%s",
    "`a`",
    "> a",
    "'a'",
    "1",
    "true",
    "a\tb",
    "a：b",
)


@pytest.mark.parametrize("text", TEXTS)
def test_case_59_a_text_setting_takes_its_text_unread(text: str):
    from ai_finetuning.config.load import load_config

    config = load_config(None, [f"data.system_prompt={text}", f"model.name={text}x", f"data.sheet={text}"])
    assert config.data.system_prompt == config.data.sheet == text
    assert config.model.name == f"{text}x"
    assert load_config(None, ["data.system_prompt=null"]).data.system_prompt is None
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert load_config(None, [f"model.chat_template={template}"]).model.chat_template == template


# --- the Python interface


def test_case_57_config_yaml_has_every_argument_of_the_model_object(tiny_model_dir: Path, tmp_path: Path):
    from tests.support.runs import ROWS, training

    from ai_finetuning import DataConfig, JapaneseModel, LoRAConfig, LoRAFinetuningTrainer
    from ai_finetuning.config.load import load_config
    from ai_finetuning.execution.request import request_of

    model = JapaneseModel(
        str(tiny_model_dir),
        torch_dtype=torch.float32,
        use_flash_attention=False,
        chat_template="llama2_ja",
        load_in_4bit=True,
    )
    config = training(tmp_path / "out", num_epochs=1)
    trainer = LoRAFinetuningTrainer(model, LoRAConfig(r=2), config, data=DataConfig(max_length=512))
    trainer.train(ROWS)
    written = load_config(tmp_path / "out" / "config.yaml", [f"data.train={tmp_path}"])
    assert written.model.chat_template == "llama2_ja"
    assert (written.model.dtype, written.model.attention) == ("float32", "sdpa")
    assert written.effective_method == "qlora"
    again = request_of(written)
    assert again.bits == 4
    assert again.model.chat_template == "llama2_ja"  # type: ignore[attr-defined]


def test_a03_an_adapter_of_a_quantized_base_answers_on_one(tiny_model_dir: Path, tmp_path: Path, logged):
    from ai_finetuning import JapaneseModel, LoRAFinetuningTrainer
    from ai_finetuning.models.quantized import quantized_bits

    folder = tmp_path / "q"
    train_lora(tiny_model_dir, folder, lora={"use_qlora": True}, num_epochs=1)
    assert json.loads((folder / "base.json").read_text(encoding="utf-8"))["bits"] == 4
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("run.json", "checkpoints"))
    for name in ("q", "copy", "q/checkpoints/checkpoint-3"):
        assert quantized_bits(open_model(str(tmp_path / name)).model) == 4, name
        text = logged()
        assert "loading the base in 4 bit" in text
        assert "--bits 16" in text
    assert quantized_bits(JapaneseModel(str(folder)).load_model()) == 4
    load = LoRAFinetuningTrainer.load_lora_model
    assert quantized_bits(load(str(tiny_model_dir), str(folder))[0]) == 4
    assert quantized_bits(load(None, str(folder))[0]) == 4  # type: ignore[arg-type]
    for model in (load(str(tiny_model_dir), str(folder), bits=16)[0], open_model(str(folder), bits=16).model):
        assert quantized_bits(model) is None
    assert "in 16 bit, as asked" in logged()


def test_a03_without_bitsandbytes_the_base_is_loaded_plain_and_that_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged
):
    """The absence of a package cannot be had for real in one environment: the question for it is answered no."""
    from ai_finetuning.models import loading
    from ai_finetuning.models.quantized import quantized_bits

    shutil.copytree(run, tmp_path / "q", ignore=shutil.ignore_patterns("checkpoints"))
    base = json.loads((tmp_path / "q" / "base.json").read_text(encoding="utf-8"))
    (tmp_path / "q" / "base.json").write_text(json.dumps(base | {"bits": 4}), encoding="utf-8")
    monkeypatch.setattr(loading, "has_bitsandbytes", lambda: False)
    assert quantized_bits(open_model(str(tmp_path / "q")).model) is None
    assert "pip install bitsandbytes" in logged()


def test_a04_the_model_card_names_no_folder_of_this_machine(run: Path, tiny_model_dir: Path):
    card = (run / "README.md").read_text(encoding="utf-8")
    assert str(tiny_model_dir.parent) not in card
    assert "base_model" not in card
    assert tiny_model_dir.name in card
    assert 'from_pretrained("BASE_MODEL")' in card


def test_a04_config_yaml_trains_again_from_elsewhere(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = tmp_path / "here"
    here.mkdir()
    shutil.copytree(tiny_model_dir, here / "my-model")
    write_rows(here / "faq.jsonl", 8)
    monkeypatch.chdir(here)
    arguments = ["model=my-model", "method=lora", "data.train=faq.jsonl", "data.eval=0.25", "output_dir=out"]
    assert call("train", *arguments, "max_steps=1", "learning_rate=1e-4", "runtime.progress=false") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("train", str(here / "out" / "config.yaml"), "output_dir=again") == 0
    assert (tmp_path / "elsewhere" / "again" / "adapter_model.safetensors").is_file()


# --- several processes


def test_a01_a_share_as_evaluation_data_trains_in_two_processes_and_the_plan_names_them(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "faq.jsonl"
    write_rows(data, 12)
    arguments = [
        "train",
        f"model={tiny_model_dir}",
        "method=lora",
        f"data.train={data}",
        "data.eval=0.25",
        "max_steps=2",
        "learning_rate=1e-4",
        f"training.output_dir={tmp_path / 'out'}",
        "--cpu-processes",
        "2",
    ]
    assert call(*arguments, "--dry-run") == 0
    plan = capsys.readouterr().out
    assert "processes, strategy" in plan
    assert "2, ddp" in plan
    assert call(*arguments[:-2], "--dry-run") == 0
    assert "ddp" not in capsys.readouterr().out  # one process has no strategy
    assert call(*arguments) == 0
    result = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["result"]
    assert result["held_out_after"]["eval_loss"] > 0
    assert (result["plan"]["processes"], result["plan"]["eval_rows"]) == (2, 3)


def test_a21_an_editable_install_finds_src_from_any_script_and_a_wheel_has_none(tmp_path: Path):
    """Built here by the backend that pip calls; nothing is installed."""
    import subprocess
    import sys
    import zipfile

    root = Path(__file__).resolve().parents[2]
    build = (
        "import sys; from hatchling import build; "
        f"build.build_editable({str(tmp_path / 'e')!r}); build.build_wheel({str(tmp_path / 'w')!r})"
    )
    for folder in ("e", "w", "scripts"):
        (tmp_path / folder).mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=root, check=True, capture_output=True)
    editable, wheel = (zipfile.ZipFile(next((tmp_path / kind).glob("*.whl"))) for kind in "ew")
    assert not [name for name in wheel.namelist() if name.startswith("src/")]
    (tmp_path / "site").mkdir()
    editable.extractall(tmp_path / "site")
    script = tmp_path / "scripts" / "a.py"
    script.write_text("from src.models import JapaneseModel\nprint(JapaneseModel.__name__)\n", encoding="utf-8")
    start = f"import site, runpy; site.addsitedir({str(tmp_path / 'site')!r}); runpy.run_path({str(script)!r})"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.extend({sys.path!r}[1:]); {start}"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "JapaneseModel", done.stderr


def test_a15_a28_every_verb_refuses_a_wrong_name_before_torch_is_imported(tmp_path: Path):
    """torch cannot be imported in this process, so that every verb that tried would end with another code."""
    import subprocess
    import sys

    (tmp_path / "outputs").mkdir()
    (tmp_path / "faq.jsonl").write_text('{"instruction": "質問", "output": "答え"}\n', encoding="utf-8")
    lines = [
        ["generate", "output", "質問"],
        ["chat", "output"],
        ["answer", "output", "faq.jsonl", "--out", "a.csv"],
        ["serve", "output"],
        ["merge", "output", "--out", "m"],
        ["quantize", "output", "--bits", "4", "--out", "q"],
        ["bench", "output", "output"],
        ["export", "vllm", "output", "--out", "v"],
        ["export", "gguf", "output", "--out", "v.gguf"],
        ["export", "ollama", "output", "--out", "v"],
        ["data", "show", "faq.jsonl", "--model", "output"],
        ["data", "stats", "faq.jsonl", "--model", "output"],
        ["train", "model=output", "data.train=faq.jsonl"],
    ]
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from ai_finetuning.apps.cli.main import run\n"
        f"print([run(line) for line in {lines!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str([66] * len(lines)), done.stdout + done.stderr
    assert done.stderr.count("Did you mean: outputs") == len(lines)
