"""A folder that vLLM loads as it is, and whether vLLM can put an adapter on its base by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..execution.output_folder import new_folder, validate_new_folder
from ..inference.usable import usable
from ..messages import argument, notice, warn
from ..models.adapter_folder import adapter_config, base_name
from ..models.hub import missing_weights
from ..models.source import find_model
from ..models.tokenizers import load_tokenizer, save_generation_config
from ..system.files import refuse_links_outside
from .gguf import generation_config
from .source import model_folder

# What `--max-lora-rank` may be (vLLM's LoRAConfig).
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def export_vllm(name: str, out: Path, *, base: str = "auto") -> Path:
    """Writes a whole model with everything that a server reads: weights, tokenizer, chat template, all stop tokens.

    Args:
        name: a model, or an adapter, which is merged in the cache first.
        out: a folder that is not there yet, or is empty.
        base: what an adapter is merged into.

    Raises:
        ModelError: something that vLLM needs is missing. ToolkitError: as merging and writing raise; nothing is left
            then.
    """
    validate_new_folder(out)
    named = usable(name)
    folder = model_folder(named.path, base=base)
    refuse_links_outside(folder)
    with new_folder(out) as staging:
        for path in folder.iterdir():
            if (
                path.suffix in (".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".md")
                and path.is_file()
            ):
                shutil.copyfile(path, staging / path.name)
        _complete(staging)
        validate_complete(staging)
    if named.kind == "adapter":
        _say_adapter(Path(named.path))
    notice(f"vLLM: vllm serve {argument(out)}", f"vLLM: vllm serve {argument(out)}")
    return out


def _complete(folder: Path) -> None:
    """Puts the chat template in force and every token that ends an answer into a model's folder."""
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(str(folder))
    tokenizer.save_pretrained(folder)
    if not (folder / "tokenizer.json").is_file():
        warn(
            "このモデルのトークナイザーは tokenizer.json に正しく変換できないため、tokenizer.model だけを書き出しました。ほかのプログラムでは改行や空白の表示が"
            "変わることがあります（aift serve は学習時と同じです）。",
            "this model's tokenizer has no exact tokenizer.json, so that only tokenizer.model was written; other programs "
            "may show line ends and blanks differently (aift serve is as in training).",
        )
    make: Callable[[], GenerationConfig] = GenerationConfig
    save_generation_config(generation_config(folder) or make(), tokenizer, folder)


def validate_complete(folder: Path) -> None:
    """Raises ModelError with everything that vLLM would miss in a model's folder."""
    problems = problems_of(folder)
    if problems:
        raise ModelError(
            f"{folder} はこのままでは vLLM で使えません: {'、'.join(problems)}。",
            f"{folder} is not ready for vLLM: {', '.join(problems)}.",
        )


def problems_of(folder: Path) -> list[str]:
    """What vLLM would miss in a model's folder: names of files and keys."""
    source = find_model(str(folder))
    obtained = [
        key
        for key in ("architectures", "model_type", "vocab_size")
        if not (source.config.get(key) or source.text.get(key))
    ]
    obtained += missing_weights(folder)
    if not ((folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()):
        obtained.append("tokenizer.json")
    settings = _json(folder / "tokenizer_config.json")
    if not ((folder / "chat_template.jinja").is_file() or settings.get("chat_template")):
        obtained.append("chat_template.jinja")
    if _json(folder / "generation_config.json").get("eos_token_id") is None:
        obtained.append("generation_config.json: eos_token_id")
    return obtained


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def adapter_obstacles(folder: Path) -> list[str]:
    """Settings of an adapter that vLLM's `--enable-lora` does not take; empty where it loads as it is."""
    config = adapter_config(folder)
    obtained = [
        f"{key}={config[key]}" for key in ("modules_to_save", "use_dora", "target_parameters") if config.get(key)
    ]
    obtained += [f"bias={config['bias']}"] if config.get("bias", "none") != "none" else []
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return obtained + ([f"r={max(ranks)}"] if max(ranks) > _RANKS[-1] else [])


def _say_adapter(folder: Path) -> None:
    """One line on serving the adapter without merging."""
    obstacles = adapter_obstacles(folder)
    if obstacles:
        warn(
            f"このアダプターは vLLM の --enable-lora では使えません（{', '.join(obstacles)}）。統合したモデルを使ってください。",
            f"vLLM's --enable-lora does not take this adapter ({', '.join(obstacles)}); use the merged model.",
        )
        return
    config = adapter_config(folder)
    most = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    rank = next(rank for rank in _RANKS if rank >= most)
    base, module = argument(base_name(config)), argument(f"{folder.name}={folder}")
    line = f"vllm serve {base} --enable-lora --lora-modules {module} --max-lora-rank {rank}"
    notice(f"統合せずに使うこともできます: {line}", f"you can also serve it without merging: {line}")
