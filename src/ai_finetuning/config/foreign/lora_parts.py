"""Method and adapter: what several keys of theirs say together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

from ...errors import Reason
from .draft import Draft
from .training_parts import NOT_USED
from .values import Unfit, names, number, truth, whole, word

ALL = ("all", "all-linear", "all_linear")
WITHOUT = Reason("全重みの学習にアダプターはありません", "all weights train: there is no adapter")
OF_ADAPTER = Reason("続きから学習するアダプターのものが使われます", "the adapter that the run goes on from has its own")
# What stands for every layer's number in a regular expression over names of modules.
_ANY_LAYER = re.compile(r"(?:\[\\d\]\+|\\d\+|\[0-9\]\+|\.\*|\[\\d\]\*|\\d\*)")
_GROUP = re.compile(r"\(([^()]*)\)(\??)")


def method(draft: Draft, name: str, bits: int | None, reason: Reason) -> None:
    """full, lora or qlora; 8 bit is qlora with `qlora_4bit: false`."""
    if name == "full" or bits is None:
        draft.set("method", name, reason)
        return
    draft.set("method", "qlora", reason)
    if bits == 8:
        draft.set("lora.qlora_4bit", False, Reason("8 bit で読み込むベース", "the base is loaded in 8 bit"))


def full(draft: Draft, bits: int | None, reason: Reason) -> None:
    """Training of all weights, which a quantized model does not allow."""
    if bits is not None:
        draft.refuse(
            "load_in_4bit" if bits == 4 else "load_in_8bit",
            Reason("量子化した重みは全部は学習できません", "quantized weights cannot be trained in full"),
        )
    method(draft, "full", None, reason)


def trains_adapter(draft: Draft) -> bool:
    """Whether the run has an adapter; settled by method()."""
    return draft.settings.get("method") in ("lora", "qlora")


def rank(draft: Draft, keys: tuple[str, str, str], defaults: tuple[int | None, int | None, float]) -> None:
    """Rank, alpha and dropout of the adapter.

    Args:
        keys: theirs of rank, alpha, dropout.
        defaults: theirs; alpha None is twice the rank, rank None has to be given.
    """
    rank_key, alpha_key, dropout_key = keys
    if not trains_adapter(draft) or "lora.adapter" in draft.settings:
        for key in keys:
            draft.drop(key, OF_ADAPTER if trains_adapter(draft) else WITHOUT)
        return
    theirs = Reason("相手の既定値", "their default")
    r = draft.get(rank_key, defaults[0])
    if r is None:
        draft.missing(rank_key, Reason("アダプターのランクがありません", "the adapter's rank is missing"))
        return
    r = whole(r)
    draft.set("lora.r", r, None if rank_key in draft.values else theirs)
    draft.take(rank_key, "lora.r", r)
    if alpha_key in draft.values:
        draft.take(alpha_key, "lora.lora_alpha", draft.read(alpha_key, whole))
    else:
        doubled = Reason("指定がなければランクの 2 倍", "twice the rank where it is not set")
        draft.set(
            "lora.lora_alpha", 2 * r if defaults[1] is None else defaults[1], doubled if defaults[1] is None else theirs
        )
    if dropout_key in draft.values:
        draft.take(dropout_key, "lora.lora_dropout", draft.read(dropout_key, number))
    else:
        draft.set("lora.lora_dropout", defaults[2], theirs)


def variants(draft: Draft, rslora: str, dora: str) -> None:
    """rsLoRA and DoRA."""
    for key, path in ((rslora, "lora.use_rslora"), (dora, "lora.use_dora")):
        if not draft.on(key):
            draft.drop(key, NOT_USED)
        elif trains_adapter(draft):
            draft.take(key, path, draft.read(key, truth))
        else:
            draft.drop(key, WITHOUT)


def plus_ratio(draft: Draft) -> None:
    """LoRA+."""
    key = "loraplus_lr_ratio"
    if draft.on(key) and trains_adapter(draft):
        draft.take(key, "training.optimizer.lora_plus_ratio", draft.read(key, number))
    else:
        draft.drop(key, WITHOUT if draft.on(key) else NOT_USED)


def listed(draft: Draft, key: str, path: str) -> None:
    """A list of modules or parameters of the adapter."""
    if not draft.on(key):
        draft.drop(key, NOT_USED)
    elif not trains_adapter(draft):
        draft.drop(key, WITHOUT)
    elif "lora.adapter" in draft.settings:
        draft.drop(key, OF_ADAPTER)
    else:
        draft.take(key, path, draft.read(key, names))


def targets(draft: Draft, key: str) -> None:
    """The layers of the adapter: `all`, names, or a regular expression over the names of modules."""
    if not draft.on(key):
        draft.drop(key, NOT_USED)
        return
    if not trains_adapter(draft) or "lora.adapter" in draft.settings:
        draft.drop(key, OF_ADAPTER if trains_adapter(draft) else WITHOUT)
        return
    value, path = draft.values[key], "lora.target_modules"
    if _is_all(value):
        draft.take(key, path, "all-linear", Reason("すべての線形層（出力層を除く）", "every linear layer but the head"))
    elif isinstance(value, str) and re.search(r"[\\()\[\]*|^$+]", value):
        suffixes = _of_pattern(value)
        if suffixes is None:
            draft.refuse(
                key,
                Reason(
                    "正規表現は、すべての層を指して名前の選択肢で終わるものだけ変換できます。層の名前のリストにしてください",
                    "a regular expression is converted where it means every layer and ends in a choice of names; "
                    "write a list of names",
                ),
            )
            return
        by_name = Reason(
            "正規表現を層の名前にしました。同じ名前の層は、正規表現の外のものにも付きます",
            "the regular expression as names of layers; layers of these names outside it carry adapters too",
        )
        draft.set(path, suffixes, by_name)
        draft.convert(key, by_name, path, differs=True)
    else:
        draft.take(key, path, names(value))


def _is_all(value: Any) -> bool:
    items = names(value) if isinstance(value, str | list) else []
    return value is True or any(item.lower() in ALL for item in items) or items == ["True"] or items == ["true"]


def _of_pattern(pattern: str) -> list[str] | None:
    """The last parts of the names that a regular expression means, or None where it means less or more than that."""
    pieces = _ANY_LAYER.split(pattern.strip("^$").replace("\\.", "."))
    if len(pieces) < 2:
        return None
    tail = pieces[-1]
    if re.search(r"[\[\]\\+*^$]", tail) or re.search(r"[\[\]]", "".join(pieces[:-1])):
        return None
    found = list(dict.fromkeys(item.rsplit(".", 1)[-1] for item in _spelled(tail)))
    return found if found and all(re.fullmatch(r"\w+", item) for item in found) else None


def _spelled(tail: str) -> Iterable[str]:
    """Every text that groups `(a|b)` spell out; `(a)?` is left out."""
    parts, start = [], 0
    for group in _GROUP.finditer(tail):
        parts.append([tail[start : group.start()]])
        parts.append([""] if group.group(2) else group.group(1).split("|"))
        start = group.end()
    parts.append([tail[start:]])
    return map("".join, itertools.product(*parts))


def adapter_folder(draft: Draft, key: str) -> None:
    """An adapter that the run goes on from."""
    if not draft.on(key):
        draft.drop(key, NOT_USED)
        return
    folders = draft.read(key, names)
    if len(folders) > 1:
        draft.refuse(
            key,
            Reason(
                "アダプターは 1 つだけ指定できます。先に aift merge で統合してください",
                "only one adapter can be gone on from; merge the others first (aift merge)",
            ),
        )
    elif trains_adapter(draft):
        draft.take(key, "lora.adapter", folders[0])
    else:
        draft.refuse(
            key,
            Reason(
                "全重みの学習はアダプターから続けられません。先に aift merge で統合してください",
                "all-weights training does not go on from an adapter; merge it first (aift merge)",
            ),
        )


def four_or_eight(draft: Draft) -> int | None:
    """Bits of the base by `load_in_4bit` and `load_in_8bit`, both listed."""
    bits = None
    for key, size in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if draft.on(key) and draft.read(key, truth):
            bits = bits or size
            draft.convert(key, Reason(f"method: qlora（{size} bit）", f"method: qlora ({size} bit)"), "method")
        else:
            draft.drop(key, NOT_USED)
    return bits


def four_bit_details(draft: Draft, kind: str, double: str) -> None:
    """NF4 or FP4, and whether the constants are quantized as well."""
    if draft.on(kind) and draft.read(kind, word) != "nf4":
        draft.refuse(kind, Reason("4 bit は NF4 だけです", "4 bit is NF4 here"))
    else:
        draft.drop(kind, Reason("NF4 で、本ツールと同じです", "NF4, as here"))
    if double in draft.values:
        if draft.on(double):
            draft.drop(double, Reason("本ツールでも二重量子化します", "constants are quantized here too"))
        else:
            draft.drop(
                double,
                Reason("本ツールは量子化定数も量子化します（二重量子化）", "here the constants are quantized as well"),
                differs="method" in draft.settings and draft.settings["method"] == "qlora",
            )


def bits_of(value: object) -> int:
    """4 or 8.

    Raises:
        Unfit: another number of bits.
    """
    bits = whole(value)
    if bits not in (4, 8):
        raise Unfit(f"{bits} bit では読み込めません（4 か 8）", f"a base cannot be loaded in {bits} bit (4 or 8)")
    return bits
