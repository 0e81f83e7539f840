"""Finding a model before anything is loaded: local folders, the local cache, and a hub that may not answer.

The hub is asked once, with a limit of five seconds (the client's own retries take 23 s where it refuses and
more than 200 s where it accepts and stays silent), and every refusal names the way out.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .. import embedded
from ..errors import HubError, InputNotFoundError, ModelError, Reason, ToolkitError
from ..messages import argument, notice
from ..runs import weights
from ..system.network import LIMIT_SECONDS, carries_tokens, endpoint, head, offline, withhold_tokens
from . import catalog
from .adapter_folder import AUTO, DEQUANTIZED, ORIGINAL, adapter_config, base_name, places_of_base, was_folder
from .named import Named, find_named, is_tokenizer, refusal, what_is_here

# What transformers loads: one file, or those that an index names.
WEIGHTS, INDEX = weights.MODEL, weights.INDEX
_LONGEST = 255  # bytes of a part of a path, beyond which file systems refuse to look


@dataclass(frozen=True)
class Located:
    """Where a model is.

    Attributes:
        name: what it is called on any machine: hub id, `embedded:NAME`, or a folder. Adapters remember it.
        path: what transformers loads: hub id or folder.
        local_only: load without asking the hub.
    """

    name: str
    path: str
    local_only: bool


def cached(model_id: str) -> bool:
    """Whether configuration and every weight file of a hub model are already on this machine."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model_id, "config.json")
    if not isinstance(config, str):
        return False
    return not missing_weights(Path(config).parent)


def missing_weights(folder: Path) -> list[str]:
    """Names of the weight files that a model's folder lacks: those of its index, or the single one.

    Raises:
        ModelError: the index names anything but safetensors files beside it.
    """
    index = folder / INDEX
    names = weights.indexed_files(index) if index.is_file() else [WEIGHTS]
    return [name for name in names if not (folder / name).is_file()]


def on_disk(name: str) -> Path | None:
    """The folder that `embedded:NAME` or a path is, whatever it holds; None for other names.

    Raises:
        InputNotFoundError: an embedded name that does not exist.
    """
    if embedded.is_embedded(name):
        return embedded.model_folder(name)
    try:
        path = os.path.expanduser(name)
        return Path(path) if name.strip() and os.path.isdir(path) else None
    except (OSError, ValueError, RuntimeError):  # a name too long for a file, or with characters that no name has
        return None


def named_base(folder: str | Path, *, origin: str | Path | None = None) -> str:
    """The model that an adapter was trained on: where its configuration says, else where it has moved to with the
    adapter. Said where the user has not named it and the hub will be asked for it.

    Args:
        folder: the adapter's.
        origin: where the adapter was saved, if not there.

    Raises:
        InputNotFoundError: no adapter there, or its base is nowhere.
    """
    name = base_name(adapter_config(folder))
    if max(len(part.encode(errors="replace")) for part in name.split("/")) > _LONGEST:
        raise ModelError(
            f"アダプター {folder} のベースモデルの名前が長すぎます（{name[:40]!r} …）。--base で指定してください。",
            f"the adapter {folder} names a base of {len(name)} characters ({name[:40]!r} ...); name it with --base.",
        )
    if on_disk(catalog.resolve(name)) is not None:
        return name
    moved = next(iter(places_of_base(folder, origin)), None)
    if moved is not None:
        place = os.path.normpath(moved)
        notice(
            f"アダプター {folder} に記録されたベースモデル {name} はここにないため、{place} を使います（--base で変更できます）。",
            f"the base {name} that the adapter {folder} names is not there; using {place} (--base names another).",
        )
        return place
    if _is_place(name) or was_folder(origin if origin is not None else folder):
        raise _base_not_there(folder, name)
    if not Path(name).exists():
        notice(
            f"アダプター {folder} はベースモデルとして {name} を指定しています。手元になければ {endpoint()} に問い合わせます。",
            f"the adapter {folder} names {name} as its base; unless it is on this machine, {endpoint()} is asked for it.",
        )
    return name


def locate_base(folder: str | Path, base: str | None = None) -> str:
    """The base to load an adapter on, looked up as locate() does; nothing is loaded.

    Args:
        folder: the adapter's.
        base: what the user names instead.

    Raises:
        ToolkitError: as locate(); of a base that the user has not named it says where the name came from.
    """
    if base is not None:
        locate(base)
        return base
    name = named_base(folder)
    try:
        locate(name)
    except (HubError, InputNotFoundError) as error:
        raise _with_way_out(error, folder, name) from error
    return name


def _with_way_out(error: ToolkitError, folder: str | Path, name: str) -> ToolkitError:
    return type(error)(
        f"{error.ja}（{name} は、アダプター {folder} に記録されたベースモデルの名前です。別の場所にあるなら --base で指定してください。）",
        f"{error.en} ({name} is the base that the adapter {folder} names; if it is elsewhere, name it with --base.)",
    )


def _is_place(name: str) -> bool:
    """Whether a name can only be a folder's."""
    try:
        return find_named(name).kind != "hub"
    except ToolkitError:
        return True


def _base_not_there(folder: str | Path, name: str) -> InputNotFoundError:
    near = Path(re.split(r"[/\\]", name.rstrip("/\\"))[-1])
    here = (f"{near} がここにあります。", f"{near} is here.") if (near / "config.json").is_file() else ("", "")
    example = str(near) if here[0] else "FOLDER"
    return InputNotFoundError(
        f"アダプター {folder} のベースモデル {name} が見つかりません（この名前はアダプターの adapter_config.json に記録されたものです）。{here[0]}"
        f"ベースモデルのフォルダーか ID を --base で指定してください（例: --base {argument(example)}）。",
        f"the base model {name} of the adapter {folder} does not exist (the name is the one in its adapter_config.json). "
        f"{here[1]} Name the base's folder or id with --base (such as --base {argument(example)}).",
    )


def validate_name(name: str, base: str | None = None, *, weights: bool = True) -> Named:
    """What a MODEL argument names, with all that can be refused before anything heavy is imported.

    Args:
        base: an adapter's base, where the user names it, or a word of `aift merge --base`.
        weights: False where its tokenizer is enough.

    Raises:
        ToolkitError: it is not there, or nothing in it can be used.
    """
    named = find_named(name)
    if named.kind == "adapter" and named.folder is not None and (weights or not is_tokenizer(named.folder)):
        locate_base(named.folder, None if base in (AUTO, ORIGINAL, DEQUANTIZED) else base)
    elif named.kind not in ("model", "checkpoint"):
        locate(name, weights=weights)
    return named


def locate(name: str, *, weights: bool = True, limit_seconds: float = LIMIT_SECONDS) -> Located:
    """Makes sure, within seconds, that a hub id, alias, `embedded:NAME` or folder can be loaded; says from where.

    Args:
        weights: False takes a folder without a model too (one that holds a tokenizer).

    Raises:
        InputNotFoundError, ModelError: a name or path that is not there, or a folder that holds no model.
        HubError: the hub does not answer, refuses, or does not know the id.
    """
    name = catalog.resolve(name)
    named = find_named(name)
    if named.folder is not None:
        if weights and named.kind != "model":
            raise refusal(named)
        place = named.folder if weights else named.tokenizer_folder
        if not weights and named.kind in ("run", "export", "other") and not _may_hold_tokenizer(named.folder):
            raise refusal(named)
        return Located(name, str(place), True)
    if cached(name):
        return Located(name, name, True)
    if offline():
        raise HubError(
            f"モデル {name} はこの PC に保存されておらず、オフライン設定 (HF_HUB_OFFLINE) のためダウンロードできません。{_suggest_ja(name)}"
            "ダウンロード済みのフォルダーを指定するか、HF_HUB_OFFLINE を外してください。インターネットのある PC で "
            f"aift bundle {argument(name)} --out フォルダー を実行すると、そのフォルダーを持ち込めます。",
            f"Model {name} is not on this machine, and offline mode (HF_HUB_OFFLINE) forbids the "
            f"download.{_suggest_en(name)}"
            " Name a downloaded folder, or unset HF_HUB_OFFLINE. "
            f"To carry it here, run aift bundle {argument(name)} --out FOLDER on a PC with internet access.",
        )
    preflight(name, limit_seconds=limit_seconds)
    return Located(name, name, False)


def _may_hold_tokenizer(folder: Path) -> bool:
    """Whether a folder without a known file has one that a tokenizer can be in, which may have any name."""
    return any(path.suffix in (".model", ".json", ".tiktoken", ".txt", ".vocab") for path in folder.iterdir())


def preflight(model_id: str, *, limit_seconds: float = LIMIT_SECONDS) -> None:
    """Asks the hub for the model's config.json (HEAD, at most `limit_seconds` in all).

    Raises:
        HubError: with the reason (no answer, gated, unknown id, server error) and the way out.
    """
    url = f"{endpoint()}/{model_id}/resolve/main/config.json"
    if not carries_tokens(url):
        withhold_tokens()
    answer = head(url, limit_seconds)
    if answer.status is None:
        raise _unreachable(model_id, answer.reason)
    if answer.status >= 400 and answer.code != "EntryNotFound":
        raise _refused(model_id, answer.status, answer.code)


def _unreachable(model_id: str, reason: Reason) -> HubError:
    return HubError(
        f"モデル {model_id} を取りに行きましたが、{endpoint()} が応答しません（{reason.ja}）。{_suggest_ja(model_id)}ネットワークを確認してください。オフラインの場合は、"
        "ダウンロード済みのフォルダーを指定し（HF_HUB_OFFLINE=1）、ミラーがあれば HF_ENDPOINT に設定してください。インターネットのある PC で aift bundle "
        f"{argument(model_id)} --out フォルダー を実行すると、そのフォルダーを持ち込めます。",
        f"Model {model_id}: {endpoint()} does not answer ({reason.en}).{_suggest_en(model_id)} Check the network. Offline, "
        "name a downloaded folder"
        " (HF_HUB_OFFLINE=1); where there is a mirror, set HF_ENDPOINT to it. "
        f"To carry it here, run aift bundle {argument(model_id)} --out FOLDER on a PC with internet access.",
    )


def _refused(model_id: str, status: int, code: str) -> HubError:
    """The hub's answer as an error with a matching way out."""
    if code == "GatedRepo":
        return HubError(
            f"モデル {model_id} は利用申請が必要です (gated)。{endpoint()}/{model_id} を開いて条件に同意し、`hf auth login` でログインするか "
            "HF_TOKEN を設定してください。",
            f"Model {model_id} is gated. Open {endpoint()}/{model_id}, accept its terms, then log in with `hf "
            "auth login` or set HF_TOKEN.",
        )
    # The hub answers 401 for an unknown id too, so that private names do not leak.
    if code == "RepoNotFound" or status == 404:
        return HubError(
            f"モデル {model_id} は {endpoint()} にありません。{_suggest_ja(model_id)}名前の綴りを確認してください。非公開のモデルなら HF_TOKEN "
            "を設定してください。",
            f"Model {model_id} does not exist on {endpoint()}.{_suggest_en(model_id)} Check the spelling; for a "
            "private model set HF_TOKEN.",
        )
    if status in (401, 403):
        return HubError(
            f"モデル {model_id}: {endpoint()} が認証を求めています ({status})。HF_TOKEN が正しいか、`hf auth login` で確認してください。",
            f"Model {model_id}: {endpoint()} asks for authentication ({status}). Check HF_TOKEN, or log in with "
            "`hf auth login`.",
        )
    return HubError(
        f"モデル {model_id}: {endpoint()} がエラー {status} を返しました。しばらく待つか、ミラー (HF_ENDPOINT) やダウンロード済みのフォルダーを使ってください。",
        f"Model {model_id}: {endpoint()} answered with error {status}. Wait and retry, or use a mirror "
        "(HF_ENDPOINT) or a downloaded folder.",
    )


def _suggestion(name: str) -> Reason:
    """Near names of the catalog for a name that is none of it, and, for one that may be a folder's, what is here."""
    near = catalog.near(name) if catalog.lookup(name) is None else []
    folder, _, within = name.partition("/")
    here = what_is_here() if not within or Path(folder).is_dir() else Reason("", "")
    if not near:
        return here
    return Reason(f"もしかして: {'、'.join(near)}。{here.ja}", f" Did you mean: {', '.join(near)}?{here.en}")


def _suggest_ja(name: str) -> str:
    return _suggestion(name).ja


def _suggest_en(name: str) -> str:
    return _suggestion(name).en


def reachability(limit_seconds: float = LIMIT_SECONDS) -> str:
    """One line for `aift env`: whether the hub answers."""
    answer = head(endpoint(), limit_seconds)
    return f"{endpoint()}: {f'HTTP {answer.status}' if answer.status is not None else answer.reason}"
