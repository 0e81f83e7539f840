"""The documented API (docs/contract.ja.md): import paths, signatures, defaults."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

PATHS = {
    "src.models.japanese_model": ["JapaneseModel", "SUPPORTED_MODELS"],
    "src.models.base_model": ["BaseModel"],
    "src.models": ["JapaneseModel", "BaseModel", "SUPPORTED_MODELS"],
    "src.training.training_utils": ["TrainingConfig", "TextDataset"],
    "src.training.full_finetuning": ["FullFinetuningTrainer"],
    "src.training.lora_finetuning": ["LoRAFinetuningTrainer", "LoRAConfig"],
    "src.training.multi_gpu_training": ["AdvancedMultiGPUTrainer", "MultiGPUTrainingConfig"],
    "src.training.quantization": ["QuantizationOptimizer"],
    "src.training": [
        "TrainingConfig",
        "TextDataset",
        "FullFinetuningTrainer",
        "LoRAFinetuningTrainer",
        "LoRAConfig",
        "AdvancedMultiGPUTrainer",
        "MultiGPUTrainingConfig",
        "QuantizationOptimizer",
    ],
    "src.utils.gpu_utils": [
        "get_available_device",
        "get_gpu_memory_info",
        "optimize_model_for_gpu",
        "clear_gpu_memory",
        "set_memory_fraction",
    ],
    "src.utils": [
        "get_available_device",
        "get_gpu_memory_info",
        "optimize_model_for_gpu",
        "clear_gpu_memory",
        "set_memory_fraction",
    ],
}
NONE = inspect.Parameter.empty
SIGNATURES = {
    "JapaneseModel": {
        "model_name": "stabilityai/japanese-stablelm-3b-4e1t-instruct",
        "device": None,
        "load_in_8bit": False,
        "load_in_4bit": False,
        "torch_dtype": None,
        "use_flash_attention": True,
        "gradient_checkpointing": False,
    },
    "BaseModel": {
        "model_name": NONE,
        "device": None,
        "load_in_8bit": False,
        "load_in_4bit": False,
        "torch_dtype": None,
    },
    "FullFinetuningTrainer": {
        "model": NONE,
        "config": NONE,
        "train_dataset": None,
        "eval_dataset": None,
        "use_accelerate": True,
    },
    "LoRAFinetuningTrainer": {
        "model": NONE,
        "lora_config": NONE,
        "training_config": NONE,
        "train_dataset": None,
        "eval_dataset": None,
    },
    "AdvancedMultiGPUTrainer": {"model": NONE, "config": NONE, "train_dataset": None, "eval_dataset": None},
    "MultiGPUTrainingConfig": {
        "strategy": "ddp",
        "max_memory_per_gpu": None,
        "pipeline_parallel_size": 1,
        "tensor_parallel_size": 1,
    },
    "QuantizationOptimizer": {"model_name_or_path": NONE, "device": None},
    "TrainingConfig": {
        "learning_rate": 2e-5,
        "batch_size": 4,
        "gradient_accumulation_steps": 4,
        "num_epochs": 3,
        "warmup_steps": 100,
        "max_grad_norm": 1.0,
        "eval_steps": 100,
        "save_steps": 500,
        "logging_steps": 10,
        "output_dir": "./outputs",
        "fp16": True,
        "gradient_checkpointing": True,
        "ddp": False,
        "local_rank": -1,
        "world_size": 1,
    },
    "LoRAConfig": {
        "r": 16,
        "lora_alpha": 32,
        "target_modules": None,
        "lora_dropout": 0.05,
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "use_qlora": False,
        "qlora_4bit": True,
    },
    "TextDataset": {"texts": NONE, "tokenizer": NONE, "max_length": 512},
    "JapaneseModel.load_model": {},
    "JapaneseModel.load_tokenizer": {},
    "JapaneseModel.generate_japanese": {
        "instruction": NONE,
        "input_text": None,
        "max_new_tokens": 512,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
        "do_sample": True,
    },
    "JapaneseModel.load_with_fallback": {"fallback_models": None},
    "JapaneseModel.list_supported_models": {},
    "FullFinetuningTrainer.train": {"train_texts": None, "eval_texts": None, "resume_from_checkpoint": None},
    "LoRAFinetuningTrainer.train": {"train_texts": None, "eval_texts": None, "resume_from_checkpoint": None},
    "LoRAFinetuningTrainer.load_lora_model": {"base_model_name": NONE, "lora_adapter_path": NONE, "device": None},
    "AdvancedMultiGPUTrainer.train": {"train_texts": None, "eval_texts": None, "resume_from_checkpoint": None},
    "QuantizationOptimizer.quantize_to_4bit": {
        "output_dir": NONE,
        "compute_dtype": "torch.float16",
        "quant_type": "nf4",
        "use_double_quant": True,
    },
    "QuantizationOptimizer.quantize_to_8bit": {
        "output_dir": NONE,
        "compute_dtype": "torch.float16",
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    },
    "QuantizationOptimizer.benchmark_quantization": {
        "original_model": NONE,
        "quantized_model": NONE,
        "test_inputs": NONE,
        "num_runs": 100,
    },
    "get_available_device": {},
    "get_gpu_memory_info": {},
    "optimize_model_for_gpu": {
        "model": NONE,
        "device": None,
        "enable_mixed_precision": True,
        "gradient_checkpointing": False,
    },
    "clear_gpu_memory": {},
    "set_memory_fraction": {"fraction": 0.9},
}


@pytest.mark.parametrize("module", PATHS)
def test_documented_import_paths_give_the_same_objects(module: str):
    top = importlib.import_module("ai_finetuning")
    documented = importlib.import_module(module)
    for name in PATHS[module]:
        assert getattr(documented, name) is getattr(top, name)


@pytest.mark.parametrize("name", SIGNATURES)
def test_documented_signatures(name: str):
    """Documented parameters come first, in order, positional, with the documented defaults; ours are keyword-only."""
    target = importlib.import_module("ai_finetuning")
    for part in name.split("."):
        target = getattr(target, part)
    parameters = dict(inspect.signature(target).parameters)
    parameters.pop("self", None)
    documented = SIGNATURES[name]
    assert list(parameters)[: len(documented)] == list(documented)
    for key, default in documented.items():
        obtained = parameters[key].default
        assert (
            str(obtained) == default
            if isinstance(default, str) and default.startswith("torch.")
            else obtained == default
        )
        assert parameters[key].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ours = list(parameters.values())[len(documented) :]
    assert all(p.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD) for p in ours)


def test_import_is_lazy():
    """`import ai_finetuning` pulls in neither torch nor transformers nor pydantic."""
    code = (
        "import sys, ai_finetuning; print([m for m in ('torch', 'transformers', 'pydantic', 'yaml') if m in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_src_paths_work_without_installation(tmp_path: Path):
    """In a clone where the package is not installed, `src.*` finds it and does not shadow a user's models.py."""
    (tmp_path / "models.py").write_text("MINE = 1\n", encoding="utf-8")
    code = (
        "import sys; sys.path = [p for p in sys.path if 'editable' not in p and not p.rstrip('/').endswith('/src')];"
        f"sys.path.insert(0, {str(tmp_path)!r}); sys.path.insert(0, {str(REPOSITORY)!r});"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()];"
        "from src.training.training_utils import TrainingConfig; import models; "
        "print(TrainingConfig().batch_size, models.MINE)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.split() == ["4", "1"], done.stderr
