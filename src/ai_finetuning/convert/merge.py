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
from ..errors import InputNotFoundError, ModelError
from ..evaluation.fidelity import Agreement, agreement, distance, logits_of
from ..execution.model_card import merge_card
from ..execution.output_folder import new_folder, validate_new_folder
from ..inference.usable import usable
from ..japanese.prompts import render, user_turn
from ..messages import argument, notice, warn
from ..models import hub
from ..models.adapter_folder import AUTO, ORIGINAL
from ..models.adapters import merge_into, saved_tokenizer, without_adapter
from ..models.loading import load_causal_lm
from ..models.named import Named
from ..models.source import weight_file_bytes
from ..models.tokenizers import PROBES, load_tokenizer
from ..system.files import refuse_links_outside
from .adapter_origin import AdapterBase, base_of

# Rounding to bf16 moves next-token distributions a little; above these the merge counts as failed.
MAX_KL, MIN_TOP1 = 0.05, 0.9
# Most distance of logits to base plus adapter, as a share of what the adapter changed, and the distance that rounding to
# each dtype may cause beside it. Without the first a merge that lost a small adapter altogether would pass.
MAX_SHARE = 0.1
_ROUNDING = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
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
        error, change: distance of the read-back model's logits to base plus adapter, and of the base's without it.
        measured: the same numbers of every base that was compared before one was chosen.
        size_bytes: of the weights.
    """

    folder: Path
    base: str
    source: str
    bits: int | None
    kl: float
    top1: float
    error: float
    change: float
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
        adapter: the adapter's folder, its run's, or one of its checkpoints.
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
    named = usable(adapter)
    if named.kind in ("model", "hub"):
        raise nothing_to_merge(named)
    refuse_links_outside(hub.on_disk(adapter))
    given, adapter = adapter, named.path
    expected = base or AUTO
    obtained = base_of(adapter, expected, bits)
    refuse_links_outside(hub.on_disk(obtained.name))
    sources = obtained.sources(expected)
    tokenizer = load_tokenizer(saved_tokenizer(adapter) or obtained.name)
    both = obtained.load(source=None, dtype=dtype, device=device)
    rows = both.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        warn(
            f"{adapter} のトークナイザーは {len(tokenizer)} 語、モデルの埋め込みは {rows} 行です。行のないトークンは使えません（ほかには影響しません）。",
            f"{adapter}: the tokenizer has {len(tokenizer)} tokens and the model {rows} embedding rows; tokens without a "
            "row cannot be used (nothing else is affected).",
        )
    texts = held_out_texts(tokenizer, rows=rows)
    probes = [torch.tensor([tokenizer.encode(text)]) for text in texts]
    trained = logits_of(both, probes)
    with without_adapter(both):
        change = distance(trained, logits_of(both, probes))
    del both
    gc.collect()
    measured: dict[str, Agreement] = {}
    if len(sources) > 1:
        for source in sources:
            model = merge_into(obtained.load(source=source, dtype=dtype, device=device))
            measured[source] = agreement(trained, logits_of(model, probes))
            del model
            gc.collect()
    source = min(sources, key=lambda name: measured[name].kl if measured else 0.0)
    name = str(obtained.original) if source == ORIGINAL else obtained.name
    with new_folder(folder) as staging:
        merged = merge_into(obtained.load(source=source, dtype=dtype, device=device))
        tied = _write(merged, tokenizer, adapter, staging)
        del merged
        gc.collect()
        again = _read_back(staging, tokenizer, texts, tied=tied, dtype=dtype, device=device)
        close, error = agreement(trained, again), distance(trained, again)
        _refuse_distance(close, source, obtained)
        if obtained.bits is None:  # merged into the weights that it was trained on: only rounding may differ
            _refuse_share(error, change, dtype)
        card = merge_card(
            name,
            given,
            bits=obtained.bits,
            source=source,
            close=close,
            measured=measured,
            limits=(MAX_KL, MIN_TOP1),
            prompts=len(texts),
        )
        (staging / "README.md").write_text(card, encoding="utf-8")
    notice(
        f"{folder} に統合しました（ベース {source}、再読み込みで確認: KL {close.kl:.5f}、Top-1 一致率 {close.top1:.1%}、"
        f"ロジットの誤差 {error:.1e}、アダプターによる変化 {change:.1e}）。",
        f"merged into {folder} (base {source}; verified by reloading: KL {close.kl:.5f}, top-1 {close.top1:.1%}, "
        f"error of the logits {error:.1e} where the adapter changed {change:.1e}).",
    )
    size = weight_file_bytes(folder)
    return MergeReport(folder, name, source, obtained.bits, close.kl, close.top1, error, change, measured, size)


def nothing_to_merge(named: Named) -> InputNotFoundError:
    """The refusal of a whole model, which needs no merging."""
    shown = argument(named.name)
    return InputNotFoundError(
        f"{shown} は LoRA アダプターではなくモデル全体なので、統合は不要です。そのまま使えます（aift chat {shown}）。",
        f"{shown} is a whole model, not a LoRA adapter: there is nothing to merge. Use it as it is (aift chat {shown}).",
    )


def held_out_texts(tokenizer: Any, *, rows: int) -> list[str]:
    """Texts that no training of ours uses: plain sentences, the tokens added to the vocabulary, questions as prompts.

    Args:
        rows: of the embedding; a token beyond them, which the model cannot read, is in no text.
    """
    asked = questions("held_out_phrasings")
    asked = asked[:: max(1, len(asked) // _QUESTIONS)][:_QUESTIONS]
    prompts = [render(tokenizer, [user_turn(question)], add_generation_prompt=True) for question, _ in asked]
    added = "".join(token.content for index, token in sorted(tokenizer.added_tokens_decoder.items()) if index < rows)
    texts = [*PROBES, *prompts, *([added] if added else [])]
    return [text for text in texts if tokenizer.encode(text)]  # some vocabularies drop a text of line ends


def _write(merged: Any, tokenizer: Any, adapter: str, staging: Path) -> bool:
    """Saves model, tokenizer and generation settings; returns whether embedding and head are one matrix."""
    tied = _tied(merged)
    # An adapter that trained one of them parted them: the configuration has to say so, or a reload ties them again.
    for config in {id(item): item for item in (merged.config, merged.config.get_text_config())}.values():
        config.tie_word_embeddings = tied
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
    *,
    tied: bool,
    dtype: str,
    device: torch.device | None,
) -> list[torch.Tensor]:
    """Logits of the folder, loaded as a user will load it.

    Raises:
        ModelError: its tokens or its tied matrices are not those that were saved.
    """
    again = load_tokenizer(str(staging))
    model: Any = load_causal_lm(str(staging), dtype=dtype, device=device, announce=False)
    ids = [again.encode(text) for text in texts]
    wrong = [text for text, obtained in zip(texts, ids, strict=True) if obtained != tokenizer.encode(text)]
    if wrong or len(again) != len(tokenizer):
        raise ModelError(
            f"統合したモデルのトークナイザーが、読み直すと同じになりません（{len(wrong)} 文、語彙 {len(tokenizer)} が {len(again)} に）。保存を取り消しました。",
            f"the merged model's tokenizer differs after reloading ({len(wrong)} texts differ, {len(tokenizer)} tokens "
            f"became {len(again)}); the output was deleted.",
        )
    if _tied(model) is not tied:
        raise ModelError(
            f"埋め込みと出力層の共有が、読み直すと変わります（保存時 {tied}）。保存を取り消しました。",
            f"embedding and head, tied {tied} when saved, change after reloading; the output was deleted.",
        )
    return logits_of(model, [torch.tensor([obtained]) for obtained in ids])


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


def _refuse_share(error: float, change: float, dtype: str) -> None:
    """Raises ModelError where the merge errs by more than a share of what the adapter changed and than rounding does;
    warns where rounding alone is more than the adapter.
    """
    rounding = _ROUNDING.get(dtype, max(_ROUNDING.values()))
    if not error <= max(MAX_SHARE * change, rounding):
        raise ModelError(
            f"統合したモデルのロジットが、学習したモデルから {error:.1e} ずれています（アダプターによる変化は {change:.1e}、上限はその {MAX_SHARE:.0%} か丸めの "
            f"{rounding:.0e}）。保存を取り消しました。ベースとアダプターをそのまま使い、不具合としてご報告ください。",
            f"the merged model's logits are {error:.1e} away from base plus adapter, where the adapter changed "
            f"{change:.1e} (limit: {MAX_SHARE:.0%} of it, or {rounding:.0e} of rounding); the output was deleted. Use "
            "base and adapter as they are, and report this.",
        )
    if error > change and dtype != "float32":
        warn(
            f"アダプターによる変化（{change:.1e}）が {dtype} の丸め（{error:.1e}）より小さいため、統合で失われます。dtype を float32 にしてください。",
            f"the adapter changes less ({change:.1e}) than rounding to {dtype} does ({error:.1e}), so the merge loses it; "
            "use dtype float32.",
        )
