"""Models of real sizes for plans: a configuration and a tokenizer, as they come before the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ai_finetuning import embedded

# hidden, intermediate, layers, heads, key-value heads; 13B and 30B are Llama's (arXiv:2302.13971, table 2).
SIZES = {
    "1.8b": (2048, 8192, 24, 16, 16),
    "8b": (4096, 14336, 32, 32, 8),
    "13b": (5120, 13824, 40, 40, 40),
    "30b": (6656, 17920, 60, 52, 52),
}


def shape_folder(parent: Path, name: str) -> Path:
    """A folder with a Llama of that size, of 32,000 words."""
    hidden, intermediate, layers, heads, groups = SIZES[name]
    folder = parent / name
    folder.mkdir()
    for file in (Path(embedded.__file__).parent / "kotoha-tiny").glob("token*"):
        shutil.copy(file, folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def long_rows(file: Path, sentences: int = 300) -> Path:
    """Forty rows; of 300 sentences two fill a packed row of 2,048 tokens."""
    row = {"instruction": "日本の首都はどこですか。", "output": "東京です。" * sentences}
    file.write_text("\n".join([json.dumps(row, ensure_ascii=False)] * 40), encoding="utf-8")
    return file
