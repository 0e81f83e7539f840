"""The contract's code blocks (docs/contract.ja.md), word for word, on tiny models that carry the documented names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.commands import environment
from tests.support.models import SENTENCES, save_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    text = (ROOT / "docs" / "contract.ja.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)


def block(blocks: list[str], word: str) -> str:
    (obtained,) = [item for item in blocks if word in item]
    return obtained


def run(folder: Path, code: str, **variables: str) -> str:
    """The code as a script in an empty folder, with `src` importable as from the repository's root."""
    (folder / "script.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment(PYTHONPATH=str(ROOT), HF_HOME=str(folder / "hf"), **variables),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def cache_as(folder: Path, name: str, kind: str) -> None:
    """A tiny model as the hub's cache keeps one."""
    place = folder / "hf" / "hub" / f"models--{name.replace('/', '--')}"
    save_tiny_model(place / "snapshots" / "0", kind)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0", encoding="utf-8")


def test_the_lora_example(blocks: list[str], tmp_path: Path):
    code = block(blocks, "trainer.train(train_texts=your_texts)")
    name = re.search(r'JapaneseModel\("(.+?)"\)', code).group(1)
    from ai_finetuning.models import catalog

    cache_as(tmp_path, catalog.rows()[name].alias_of or name, "stablelm")
    texts = f"your_texts = {SENTENCES!r}\n"
    check = "\nassert trained_model.peft_config['default'].r == 16\nassert not trained_model.training\n"
    run(tmp_path, texts + code + check)
    assert (tmp_path / "outputs" / "adapter_model.safetensors").is_file()


def test_the_quantization_example(blocks: list[str], tmp_path: Path):
    save_tiny_model(tmp_path / "your-model-name")
    code = block(blocks, 'QuantizationOptimizer("your-model-name")')
    check = "\nfrom ai_finetuning.models.quantized import quantized_bits\nassert quantized_bits(quantized_model) == 4\n"
    run(tmp_path, code + check)
    assert (tmp_path / "output_dir" / "model.safetensors").is_file()


def test_the_recommended_settings(blocks: list[str], tmp_path: Path):
    """The settings exist as documented; both are used: model_parallel is refused before anything loads, QLoRA
    trains.
    """
    save_tiny_model(tmp_path / "tiny")
    code = block(blocks, "strategy='model_parallel'")
    before = "from src.training import LoRAConfig, MultiGPUTrainingConfig\n"
    after = f"""
from src.models import JapaneseModel
from src.training import AdvancedMultiGPUTrainer, LoRAFinetuningTrainer, TrainingConfig
from ai_finetuning.errors import ToolkitError
assert config.max_memory_per_gpu == {{0: '22GB', 1: '22GB'}} and config.fp16 and config.gradient_checkpointing
model = JapaneseModel("tiny")
try:
    AdvancedMultiGPUTrainer(model, config).train({SENTENCES!r})
except ToolkitError as error:
    assert model.model is None
    print(error)
else:
    raise SystemExit("model_parallel is built now: train with it here")
trained = LoRAFinetuningTrainer(model, qlora_config, TrainingConfig(num_epochs=1)).train({SENTENCES!r})
from ai_finetuning.models.quantized import quantized_bits
assert quantized_bits(trained) == 4
"""
    run(tmp_path, before + code + after)


@pytest.mark.skipif(os.name == "nt", reason="POSIX shell")
def test_the_examples_of_the_readme_run(tmp_path: Path):
    """Every python block of both READMEs, in order, in one folder each."""
    for readme in ("README.md", "README.ja.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))
        folder = tmp_path / readme
        folder.mkdir()
        save_tiny_model(folder / "my-model")
        (folder / "faq.csv").write_bytes("質問,回答\r\n首都は？,東京です。\r\n人口は？,多いです。\r\n".encode("cp932"))
        if code:
            run(folder, code)


def test_the_example_scripts_run(tmp_path: Path):
    save_tiny_model(tmp_path / "model")
    rows = "".join(f"{number}の次は？,{number + 1}です。\r\n" for number in range(20))
    (tmp_path / "faq.csv").write_bytes(("質問,回答\r\n" + rows).encode("cp932"))
    (tmp_path / "questions.txt").write_text("3の次は？\n", encoding="utf-8")
    calls = {
        "lora_faq_csv.py": (["model", "faq.csv", "out"], "evaluation loss"),
        "compare_before_after.py": (["out", "questions.txt"], "あり:"),
    }
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {*calls, "ray_train.py"}  # Ray is not a dependency; tests/distributed runs what it calls
    for name, (arguments, word) in calls.items():
        path = ROOT / "examples" / name
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
        done = subprocess.run(
            [sys.executable, str(path), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        assert word in done.stdout
