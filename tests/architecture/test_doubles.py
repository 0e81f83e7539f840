"""One owner per fact: what was once written in several files stands in one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "ai_finetuning"
TEXTS = {
    path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
}

# (what it is, a pattern of code that decides it, the files that may)
OWNERS = (
    ("the 16-bit type of a device", r"is_bf16_supported\(", {"system/gpu.py"}),
    ("a dtype's name", r'removeprefix\("torch\."\)', {"system/gpu.py"}),
    ("memory that ran out: smaller batches", r"size //= 2|// 2\n.*(again|retry)", {"system/out_of_memory.py"}),
    ("memory that a process has anyway", r"BASE_BYTES\s*=", {"parallel/limits.py"}),
    ("how a memory size is written", r"GB\|GiB", {"config/parallel.py"}),
    ("KL of two models", r"\.exp\(\) \* \(", {"evaluation/fidelity.py"}),
    ("perplexity and bits per character", r"math\.exp\(|math\.log\(2\)", {"engine/metrics.py"}),
    ("a bad row that is refused or left out", r"skip_bad_rows=true", {"data/bad_rows.py"}),
    ("whether a folder holds an adapter", r'(/|=) "adapter_config\.json"', {"models/adapter_folder.py"}),
    ("an adapter's base", r"base_model_name_or_path", {"models/adapter_folder.py"}),
    ("size of a folder's weight files", r'st_size for \w+ in [\w.]+\.glob\("\*\.safetensors"', {"models/source.py"}),
    ("files that an index of weights names", r'\["weight_map"\]\.values', {"runs/weights.py"}),
    ("the layers of a decoder", r"model\.model\.layers|isinstance\(\w+, nn\.ModuleList\)", {"models/parts.py"}),
    ("bits are 4 or 8", r"not in \(None, 4, 8\)", {"models/options.py"}),
    ("stop tokens in generation_config.json", r"config\.eos_token_id =", {"models/tokenizers.py"}),
    ("eval mode for a moment", r"was_training", {"models/modes.py"}),
    ("the model inside an adapter", r'"get_base_model"|\.get_base_model\(', {"models/parts.py"}),
    ("documents to try a model on", r"torch\.randint\(0, rows", {"models/parts.py"}),
    ("names in a run's folder", r'"(metrics\.jsonl|checkpoints|manifest\.json)"', {"config/run_folder.py"}),
    ("the demo's data as a program", r"def (corpus|dataset)\(", set()),
)


@pytest.mark.parametrize(("fact", "pattern", "owners"), OWNERS, ids=[fact for fact, _, _ in OWNERS])
def test_a_fact_has_one_owner(fact: str, pattern: str, owners: set[str]):
    obtained = {name for name, text in TEXTS.items() if re.search(pattern, text)}
    assert obtained == owners, f"{fact}: only {sorted(owners)} may decide it, not {sorted(obtained - owners)}"


def test_no_model_is_told_by_its_name_in_code():
    """Architectures are rows of tables; a function asks the row, or the model."""
    obtained = [
        f"{name}: {found.group()}"
        for name, text in TEXTS.items()
        for found in re.finditer(r'(model_type|architecture)s? (==|!=) "[a-z]\w+"', text)
    ]
    assert obtained == []
