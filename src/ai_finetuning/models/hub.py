"""Finding a model before anything is loaded: local folders, the local cache, and a hub that may not answer.

The hub is asked once, with a limit of five seconds (the client's own retries take 23 s where it refuses and
more than 200 s where it accepts and stays silent), and every refusal names the way out.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from .. import embedded
from ..errors import HubError, InputNotFoundError, ModelError, Reason
from ..messages import notice
from ..system.network import LIMIT_SECONDS, carries_tokens, endpoint, head, offline, withhold_tokens
from . import catalog
from .adapter_folder import adapter_config, base_name, is_adapter, recorded_config

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?$")
# What transformers loads: one file, or those that an index names.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST = 255  # bytes of a part of a path, beyond which file systems refuse to look
_WEIGHT_FILE = re.compile(r"[^/\\:\x00]+\.safetensors")


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


def _refuse_missing_path(name: str) -> None:
    """Refuses what reads like a path and is not there; near names are suggested."""
    path = Path(name).expanduser()
    reads_like_path = not _HUB_ID.match(name) or name.startswith((".", "~"))
    if reads_like_path or ("/" in name and path.parent.is_dir() and _near_entries(path)):
        raise _missing_path(path)


def _require_model_files(path: Path) -> None:
    if (path / "config.json").is_file():
        return
    if is_adapter(path):
        base = base_name(recorded_config(path))
        raise ModelError(
            f"{path} は LoRA アダプターで、モデル全体ではありません。ベースモデル {base} と組み合わせて読み込んでください (load_lora_model、または aift merge)。",
            f"{path} is a LoRA adapter, not a whole model. Load it together with its base model {base} "
            "(load_lora_model, or aift merge).",
        )
    raise ModelError(
        f"{path} に config.json がありません。save_pretrained で保存したモデルのフォルダーを指定してください。",
        f"{path} has no config.json; name a folder written by save_pretrained.",
    )


def _near_entries(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    return [str(path.parent / near) for near in difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)]


def _missing_path(path: Path) -> InputNotFoundError:
    nearest = next((parent for parent in path.parents if parent.is_dir()), None)
    near = _near_entries(path) or catalog.near(str(path))
    ja = f"モデルのフォルダー {path} が見つかりません。"
    en = f"The model folder {path} does not exist."
    if near:
        ja, en = ja + f" もしかして: {'、'.join(near)}", en + f" Did you mean: {', '.join(near)}?"
    elif nearest is not None:
        ja, en = ja + f" {nearest} まではあります。", en + f" {nearest} does exist."
    return InputNotFoundError(
        ja + " フォルダーのパスか、組織名/モデル名 の形の ID を指定してください。",
        en + " Name a folder, or an id of the form organisation/model.",
    )


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
    names = indexed_files(index) if index.is_file() else [WEIGHTS]
    return [name for name in names if not (folder / name).is_file()]


def indexed_files(index: Path) -> list[str]:
    """The files that an index of weights names, each once.

    Raises:
        ModelError: it is damaged, or names anything but safetensors files beside it: a `.bin` is a pickle, and whoever
            loads the index opens it, whatever it asked for.
    """
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{index} を読めません（{type(error).__name__}）。モデルをダウンロードまたは保存し直してください。",
            f"{index} cannot be read ({type(error).__name__}); download or save the model again.",
        ) from error
    for name in names:
        if not isinstance(name, str) or not _WEIGHT_FILE.fullmatch(name):
            shown = repr(name)[:100]
            raise ModelError(
                f"{index} が重みのファイルとして {shown} を挙げています。読み込むのは同じフォルダーの *.safetensors だけです（.bin などは開くだけで危険です）。"
                "信頼できる環境で save_pretrained し直したモデルを使ってください。",
                f"{index} names {shown} as a weight file. Only *.safetensors beside it are read: opening a pickle can run "
                "code. Use a model that was saved again by save_pretrained in an environment that you trust.",
            )
    return sorted(set(names))


def on_disk(name: str) -> Path | None:
    """The folder that `embedded:NAME` or a path is, whatever it holds; None for other names.

    Raises:
        InputNotFoundError: an embedded name that does not exist.
    """
    if embedded.is_embedded(name):
        return embedded.model_folder(name)
    try:
        path = Path(name).expanduser()
        return path if path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a name too long for a file, or of a user who is not there
        return None


def named_base(folder: str | Path) -> str:
    """The model that an adapter's configuration names as its base; said where the hub will be asked for it, which the
    user has not named.
    """
    name = base_name(adapter_config(folder))
    if max(len(part.encode(errors="replace")) for part in name.split("/")) > _LONGEST:
        raise ModelError(
            f"アダプター {folder} のベースモデルの名前が長すぎます（{name[:40]!r} …）。--base で指定してください。",
            f"the adapter {folder} names a base of {len(name)} characters ({name[:40]!r} ...); name it with --base.",
        )
    if on_disk(catalog.resolve(name)) is None and not Path(name).exists():
        notice(
            f"アダプター {folder} はベースモデルとして {name} を指定しています。手元になければ {endpoint()} に問い合わせます。",
            f"the adapter {folder} names {name} as its base; unless it is on this machine, {endpoint()} is asked for it.",
        )
    return name


def locate(name: str, *, weights: bool = True, limit_seconds: float = LIMIT_SECONDS) -> Located:
    """Makes sure, within seconds, that a hub id, alias, `embedded:NAME` or folder can be loaded; says from where.

    Args:
        weights: False takes a folder without a model too (one that holds a tokenizer).

    Raises:
        InputNotFoundError, ModelError: a name or path that is not there, or a folder that holds no model.
        HubError: the hub does not answer, refuses, or does not know the id.
    """
    name = catalog.resolve(name)
    folder = on_disk(name)
    if folder is not None:
        if weights:
            _require_model_files(folder)
        return Located(name, str(folder), True)
    _refuse_missing_path(name)
    if cached(name):
        return Located(name, name, True)
    if offline():
        raise HubError(
            f"モデル {name} はこの PC に保存されておらず、オフライン設定 (HF_HUB_OFFLINE) のためダウンロードできません。{_suggest_ja(name)}"
            " ダウンロード済みのフォルダーを指定するか、HF_HUB_OFFLINE を外してください。",
            f"Model {name} is not on this machine, and offline mode (HF_HUB_OFFLINE) forbids the "
            f"download.{_suggest_en(name)}"
            " Name a downloaded folder, or unset HF_HUB_OFFLINE.",
        )
    preflight(name, limit_seconds=limit_seconds)
    return Located(name, name, False)


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
        f"モデル {model_id} を取りに行きましたが、{endpoint()} が応答しません ({reason.ja})。ネットワークを確認してください。オフラインなら"
        " ダウンロード済みのフォルダーを指定し (HF_HUB_OFFLINE=1)、ミラーがあれば HF_ENDPOINT に設定してください。",
        f"Model {model_id}: {endpoint()} does not answer ({reason.en}). Check the network. Offline, name a "
        "downloaded folder"
        " (HF_HUB_OFFLINE=1); where there is a mirror, set HF_ENDPOINT to it.",
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
            f"モデル {model_id} は {endpoint()} にありません。{_suggest_ja(model_id)} 名前の綴りを確認してください。非公開のモデルなら HF_TOKEN "
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


def _suggest_ja(name: str) -> str:
    near = catalog.near(name)
    return f" もしかして: {'、'.join(near)}" if near else ""


def _suggest_en(name: str) -> str:
    near = catalog.near(name)
    return f" Did you mean: {', '.join(near)}?" if near else ""


def reachability(limit_seconds: float = LIMIT_SECONDS) -> str:
    """One line for `aift env`: whether the hub answers."""
    answer = head(endpoint(), limit_seconds)
    return f"{endpoint()}: {f'HTTP {answer.status}' if answer.status is not None else answer.reason}"
