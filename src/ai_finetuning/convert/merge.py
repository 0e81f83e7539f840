"""An adapter and its base into one plain model, verified by a reload from disk before it reports success.

An adapter that was trained on a quantized base can go into two 16-bit models: the original one, or the quantized one
turned back to 16 bit, which is what the adapter saw. Which of them is nearer to the trained model differs by model, so
it is measured (docs/decisions/0041). Nothing is merged into quantized weights: that would round the adapter away.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..embedded import questions
from ..errors import ModelError
from ..evaluation.fidelity import Agreement, agreement, logits_of
from ..execution.model_card import merge_card
from ..execution.output_folder import new_folder, validate_new_folder
from ..japanese.prompts import render, user_turn
from ..messages import notice
from ..models.adapters import merge_into, saved_tokenizer
from ..models.loading import load_causal_lm
from ..models.source import weight_file_bytes
from ..models.tokenizers import PROBES, load_tokenizer
from .adapter_origin import AUTO, ORIGINAL, AdapterBase, base_of

# Rounding to bf16 moves next-token distributions a little; above these the merge counts as failed.
MAX_KL, MIN_TOP1 = 0.05, 0.9
# Questions in the model's own prompt format, beside the plain probes.
_QUESTIONS = 12


@dataclass(frozen=True)
class MergeReport:
    """A merged model and how close it is to the trained one.

    Attributes:
        folder: the merged model.
        base: the model that its weights come from.
        source: `original` or `dequantized`.
        bits: 8 or 4 where the adapter was trained on quantized weights.
        kl, top1: of the model read back from disk against base plus adapter: mean KL in nats, share of equal top
            tokens.
        measured: the same numbers of every base that was compared before one was chosen.
        size_bytes: of the weights.
    """

    folder: Path
    base: str
    source: str
    bits: int | None
    kl: float
    top1: float
    measured: dict[str, Agreement]
    size_bytes: int


def merge_adapter(
    adapter: str,
    out: str,
    *,
    base: str | None = None,
    bits: int | None = None,
    dtype: str = "bfloat16",
    device: torch.device | None = None,
) -> MergeReport:
    """Writes base and adapter as one plain Hugging Face folder with a card of what was measured.

    Args:
        adapter: the adapter's folder.
        out: a folder that is not there yet, or is empty.
        base: `original`, the 16-bit model that the adapter names; `dequantized`, the quantized base turned to 16 bit;
            `auto` or None, the nearer of both; any other text is the name of a 16-bit model.
        bits: 4 or 8 where the adapter was trained on a base quantized on loading, and no run.json says so.
        dtype: of the merged weights.

    Raises:
        UsageError: other bits. ConfigError: a folder in use. InputNotFoundError: no adapter there.
        ModelError: the merged model, read back, differs from base plus adapter. StorageError: it cannot be written.
    """
    folder = Path(out)
    validate_new_folder(folder)
    expected = base or AUTO
    obtained = base_of(adapter, expected, bits)
    sources = obtained.sources(expected)
    tokenizer = load_tokenizer(saved_tokenizer(adapter) or obtained.name)
    texts = held_out_texts(tokenizer)
    probes = [torch.tensor([tokenizer.encode(text)]) for text in texts]
    trained = logits_of(obtained.load(tokenizer, source=None, dtype=dtype, device=device), probes)
    measured: dict[str, Agreement] = {}
    if len(sources) > 1:
        for source in sources:
            model = merge_into(obtained.load(tokenizer, source=source, dtype=dtype, device=device))
            measured[source] = agreement(trained, logits_of(model, probes))
            del model
            gc.collect()
    source = min(sources, key=lambda name: measured[name].kl if measured else 0.0)
    name = str(obtained.original) if source == ORIGINAL else obtained.name
    with new_folder(folder) as staging:
        merged = merge_into(obtained.load(tokenizer, source=source, dtype=dtype, device=device))
        tied = _write(merged, tokenizer, adapter, staging)
        del merged
        gc.collect()
        close = _read_back(staging, tokenizer, texts, trained, tied=tied, dtype=dtype, device=device)
        _refuse_distance(close, source, obtained)
        card = merge_card(
            name,
            adapter,
            bits=obtained.bits,
            source=source,
            close=close,
            measured=measured,
            limits=(MAX_KL, MIN_TOP1),
            prompts=len(texts),
        )
        (staging / "README.md").write_text(card, encoding="utf-8")
    notice(
        f"{folder} に統合しました（ベース {source}、再読み込みで確認: KL {close.kl:.5f}、Top-1 一致率 {close.top1:.1%}）。",
        f"merged into {folder} (base {source}; verified by reloading: KL {close.kl:.5f}, top-1 {close.top1:.1%}).",
    )
    size = weight_file_bytes(folder)
    return MergeReport(folder, name, source, obtained.bits, close.kl, close.top1, measured, size)


def held_out_texts(tokenizer: Any) -> list[str]:
    """Texts that no training of ours uses: plain sentences, the tokens added to the vocabulary, questions as
    prompts.
    """
    asked = questions("held_out_phrasings")
    asked = asked[:: max(1, len(asked) // _QUESTIONS)][:_QUESTIONS]
    prompts = [render(tokenizer, [user_turn(question)], add_generation_prompt=True) for question, _ in asked]
    added = "".join(token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()))
    texts = [*PROBES, *prompts, *([added] if added else [])]
    return [text for text in texts if tokenizer.encode(text)]  # some vocabularies drop a text of line ends


def _write(merged: Any, tokenizer: Any, adapter: str, staging: Path) -> bool:
    """Saves model, tokenizer and generation settings; returns whether embedding and head are one matrix."""
    tied = _tied(merged)
    # An adapter that trained one of them parted them: the configuration has to say so, or a reload ties them again.
    merged.config.tie_word_embeddings = tied
    merged.config.use_cache = True
    merged.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    generation = Path(adapter) / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, staging / generation.name)
    return tied


def _tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def _read_back(
    staging: Path,
    tokenizer: Any,
    texts: Sequence[str],
    trained: Sequence[torch.Tensor],
    *,
    tied: bool,
    dtype: str,
    device: torch.device | None,
) -> Agreement:
    """How close the folder, loaded as a user will load it, is to the trained model.

    Raises:
        ModelError: its tokens or its tied matrices are not those that were saved.
    """
    again = load_tokenizer(str(staging))
    model: Any = load_causal_lm(str(staging), dtype=dtype, device=device)
    rows = model.get_input_embeddings().weight.shape[0]
    ids = [again.encode(text) for text in texts]
    wrong = [text for text, obtained in zip(texts, ids, strict=True) if obtained != tokenizer.encode(text)]
    if wrong or len(again) > rows:
        raise ModelError(
            f"統合したモデルのトークナイザーが、読み直すと同じになりません（{len(wrong)} 文、語彙 {len(again)}、埋め込み {rows} 行）。保存を取り消しました。",
            f"the merged model's tokenizer differs after reloading ({len(wrong)} texts differ, {len(again)} "
            f"tokens, {rows} embedding rows); the output was deleted.",
        )
    if _tied(model) is not tied:
        raise ModelError(
            f"埋め込みと出力層の共有が、読み直すと変わります（保存時 {tied}）。保存を取り消しました。",
            f"embedding and head, tied {tied} when saved, change after reloading; the output was deleted.",
        )
    return agreement(trained, logits_of(model, [torch.tensor([obtained]) for obtained in ids]))


def _refuse_distance(close: Agreement, source: str, obtained: AdapterBase) -> None:
    """Raises ModelError above the threshold; not-a-number is above it."""
    if close.kl <= MAX_KL and close.top1 >= MIN_TOP1:
        return
    way_ja, way_en = ("dtype を float32 に", "Try dtype float32")
    if source == ORIGINAL and obtained.bits is not None:
        way_ja, way_en = "--base dequantized に", "Try --base dequantized"
    raise ModelError(
        f"統合したモデルが、学習したモデル（ベースとアダプター）と一致しません（ベース {source}、KL {close.kl:.4f}、上限 {MAX_KL}、Top-1 一致率 {close.top1:.1%}、下限 "
        f"{MIN_TOP1:.0%}）。保存を取り消しました。{way_ja}して試してください。",
        f"the merged model does not match base plus adapter (base {source}, KL {close.kl:.4f}, limit "
        f"{MAX_KL}; top-1 {close.top1:.1%}, limit {MIN_TOP1:.0%}); the output was deleted. {way_en}.",
    )
