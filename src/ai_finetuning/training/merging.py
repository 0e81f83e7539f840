"""An adapter and its base into one plain model, checked by a reload from disk before success is said."""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import ModelError
from ..models.adapters import adapter_config, agreement, load_adapter, logits_of, merge_into
from ..models.loading import load_causal_lm
from ..models.tokenizers import PROBES, load_tokenizer
from ..notices import notice
from .lora_finetuning import saved_tokenizer
from .output_folder import new_folder, refuse_used_folder

# Rounding to bf16 moves next-token distributions a little; above these the merge counts as failed.
MAX_KL, MIN_TOP1 = 0.05, 0.9


@dataclass(frozen=True)
class MergeReport:
    """How close the merged model, read back from disk, is to base plus adapter: mean KL in nats, share of equal top tokens."""

    folder: Path
    base: str
    kl: float
    top1: float
    size_bytes: int


def merge_adapter(
    adapter: str, out: str, *, base: str | None = None, dtype: str = "bfloat16", device: torch.device | None = None
) -> MergeReport:
    """Writes base and adapter as one plain Hugging Face folder.

    Args:
        adapter: the adapter's folder.
        out: a folder that is not there yet, or is empty.
        base: None takes the one that the adapter was trained on, in 16 bit also where it was trained quantized.
        dtype: of the merged weights.

    Raises:
        ConfigError: a folder in use. ModelError: the merged model, read back, differs from base plus adapter.
        StorageError: it cannot be written.
    """
    place = Path(out)
    refuse_used_folder(place)
    name = base or str(adapter_config(adapter)["base_model_name_or_path"])
    tokenizer = load_tokenizer(saved_tokenizer(adapter) or name)
    model = load_adapter(load_causal_lm(name, dtype=dtype, device=device), adapter).eval()
    probes = [torch.tensor([tokenizer.encode(text)]) for text in PROBES]
    wanted = logits_of(model, probes)
    merged = merge_into(model)
    merged.config.use_cache = True
    with new_folder(place) as staging:
        merged.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        generation = Path(adapter) / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, staging / generation.name)
        del model, merged
        gc.collect()
        found = logits_of(load_causal_lm(str(staging), dtype=dtype, device=device), probes)
        close = agreement(wanted, found)
        if not close.kl <= MAX_KL or close.top1 < MIN_TOP1:
            raise ModelError(
                f"統合したモデルが、アダプター付きのモデルと一致しません（KL {close.kl:.4f}、最尤一致 {close.top1:.1%}）。保存を取り消しました。dtype を float32 にして試してください。",
                f"the merged model does not agree with base plus adapter (KL {close.kl:.4f}, top-1 {close.top1:.1%}); nothing was kept. Try dtype float32.",
            )
    notice(
        f"{place} に統合しました（再読み込みで確認: KL {close.kl:.5f}、最尤一致 {close.top1:.1%}）。",
        f"merged into {place} (read back and compared: KL {close.kl:.5f}, top-1 {close.top1:.1%}).",
    )
    size = sum(path.stat().st_size for path in place.glob("*.safetensors"))
    return MergeReport(place, name, close.kl, close.top1, size)
