"""A model's folder to carry into a network without internet: weights, tokenizer, licence, and what every file must be.

The folder is itself a MODEL for every verb. Nothing but safetensors and text goes into it: no code, no pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigError, DataError, HubError, InputNotFoundError, ModelError, ToolkitError
from ..execution.output_folder import free_disk_bytes, no_space, not_written, storage_error, validate_new_folder
from ..messages import notice, on_one_line, warn
from ..models import catalog, hub
from ..models.adapter_folder import base_name, is_adapter, recorded_config
from ..models.bundle import MANIFEST, Bundle, BundledFile, read_bundle
from ..models.source import find_model, not_loaded, validate_safetensors, validate_weight_files
from ..models.tokenizers import load_tokenizer
from ..runs.weights import indexed_files
from ..system.files import refuse_links_outside, replacing, sha256_of, write_in_place
from . import llama_cpp

SUMS = "SHA256SUMS"
# Says, while it lies there, which model is on its way into the folder; the same command goes on.
_BEGUN = ".bundle-begun.json"
_HUB_STATE = ".cache"  # huggingface_hub keeps unfinished downloads there
_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "LICEN[SC]E*",
    "NOTICE*",
    "USE_POLICY*",
    "README.md",
)
_NEVER = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.zip", "*.gz")
# What file managers and copying leave in folders.
_JUNK = (".*", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class _Origin:
    """Where a model comes from.

    Attributes:
        folder: where it lies on this machine; None: it is fetched from the hub at `revision`.
        digests: by file, what the hub says of it: `sha256:` and the digest, or `git:` and the blob's id.
        sizes: bytes by file; on the hub of those that it tells.
    """

    model: str
    revision: str | None
    licence: str | None
    folder: Path | None
    sizes: Mapping[str, int]
    digests: Mapping[str, str] = field(default_factory=dict)


def bundle_model(name: str, out: Path, *, gguf: bool = False) -> Bundle:
    """Writes a model's folder with its manifest; the same call goes on after an interruption.

    Args:
        name: hub id, alias, `embedded:NAME`, or a model's folder.
        out: a new folder, or one in which this was interrupted.
        gguf: put llama.cpp's converter beside the model (llama_cpp.py).

    Raises:
        ModelError: an adapter, or a model without safetensors. ConfigError: a folder with something else in it.
        HubError: the hub does not answer, or sends other bytes than it announced. StorageError: no room, or the disk
            refuses.
    """
    origin = _origin(name)
    _say_licence(origin)
    _begin(out, origin)
    try:
        weights = _weights(origin, _index_of(origin, out), out)
        needed = sum(origin.sizes.get(file, 0) for file in weights if not (out / file).is_file())
        needed += llama_cpp.SIZE if gguf else 0
        if free_disk_bytes(out) < needed:
            raise no_space(out, needed)
        files = [*weights, *(file for file in origin.sizes if file not in weights and _belongs(file))]
        for number, file in enumerate(files, 1):
            size = origin.sizes.get(file, 0)
            if size > 10**8:
                notice(
                    f"({number}/{len(files)}) {file}（{size / 1e9:.2f} GB）",
                    f"({number}/{len(files)}) {file} ({size / 1e9:.2f} GB)",
                )
            _fetch_one(origin, file, out)
        validate_weight_files(out)
        extra = [llama_cpp.fetch(out).name] if gguf else []
        shutil.rmtree(out / _HUB_STATE, ignore_errors=True)
        return _finish(origin, sorted({*files, *extra}), out)
    except OSError as error:
        raise error if isinstance(error, ToolkitError) else storage_error(out, error) from error


def verify_bundle(folder: Path) -> Bundle:
    """Compares every file with the manifest, then opens configuration, weights' index and tokenizer without the hub.

    Raises:
        InputNotFoundError: no manifest. DataError: with every file that is missing, changed, or not in the manifest.
        ModelError: the model cannot be used here.
    """
    bundle = read_bundle(folder)
    if bundle is None:
        begun = (folder / _BEGUN).is_file()
        raise InputNotFoundError(
            f"{folder} に {MANIFEST} がありません。"
            + (
                "aift bundle が途中で止まっています。同じコマンドをもう一度実行してください。"
                if begun
                else "aift bundle で作ったフォルダーを指定してください。"
            ),
            f"{folder} has no {MANIFEST}. "
            + (
                "aift bundle was interrupted: run the same command again."
                if begun
                else "Name a folder that aift bundle made."
            ),
        )
    problems = list(_differences(folder, bundle))
    if problems:
        raise DataError(
            f"{folder} は持ち込み元と {len(problems)} 箇所違います。コピーし直してください:"
            + "".join(f"\n  {ja}" for ja, _ in problems),
            f"{folder} differs from what was bundled in {len(problems)} places; copy it again:"
            + "".join(f"\n  {en}" for _, en in problems),
        )
    source = find_model(str(folder))
    validate_safetensors(source)
    load_tokenizer(source)
    return bundle


def fingerprint(folder: Path) -> str:
    """SHA-256 of the manifest, which holds those of all files: one line to compare on both sides."""
    return sha256_of(folder / MANIFEST)


def _differences(folder: Path, bundle: Bundle) -> Iterator[tuple[str, str]]:
    for name, expected in bundle.files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            yield f"{name}: ありません", f"{name}: missing"
        elif path.stat().st_size != expected.size:
            size = path.stat().st_size
            yield (
                f"{name}: {size:,} バイト（正しくは {expected.size:,}）",
                f"{name}: {size:,} bytes, not {expected.size:,}",
            )
        elif sha256_of(path) != expected.sha256:
            yield f"{name}: 内容が違います（SHA-256）", f"{name}: other content (SHA-256)"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        junk = any(fnmatch(part, pattern) for part in name.split("/") for pattern in _JUNK)
        if not (junk or path.is_dir() or name in bundle.files or name in (MANIFEST, SUMS)):
            shown = on_one_line(name)
            yield f"{shown}: 持ち込み元にないファイルです", f"{shown}: was not bundled"


def _origin(name: str) -> _Origin:
    if is_adapter(name):
        base = base_name(recorded_config(name))
        raise ModelError(
            f"{name} は LoRA アダプターです。ベースモデル {base} を aift bundle し、アダプターのフォルダーはそのままコピーしてください。",
            f"{name} is a LoRA adapter. Bundle its base model {base}, and copy the adapter's folder as it is.",
        )
    source = find_model(name)
    row = source.catalog_row
    licence = row.licence if row is not None else None
    if source.local_only:
        folder = Path(source.path) if Path(source.path).is_dir() else _snapshot(source.path)
        validate_safetensors(source)
        refuse_links_outside(folder)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        sizes = {file: (folder / file).stat().st_size for file in names}
        revision = folder.name if folder.parent.name == "snapshots" else None
        earlier = read_bundle(folder)
        model = (
            earlier.model
            if earlier is not None
            else source.name
            if folder != Path(source.name)
            else folder.resolve().name
        )
        return _Origin(model, revision, licence or _licence_of_card(folder), folder, sizes)
    return _on_hub(source.path, licence)


def _snapshot(model_id: str) -> Path:
    """The folder of the hub's cache."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model_id, local_files_only=True))


def _on_hub(model_id: str, licence: str | None) -> _Origin:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(model_id, files_metadata=True, timeout=30)
    except (OSError, ValueError) as error:
        raise not_loaded(model_id, error) from error
    siblings = info.siblings or []
    digests = {}
    for file in siblings:
        if file.lfs is not None:
            digests[file.rfilename] = f"sha256:{file.lfs.sha256}"
        elif file.blob_id:
            digests[file.rfilename] = f"git:{file.blob_id}"
    card = getattr(info.card_data, "license", None) if info.card_data is not None else None
    return _Origin(
        model_id,
        info.sha,
        licence or (str(card) if card else None),
        None,
        {file.rfilename: file.size or 0 for file in siblings},
        digests,
    )


def _licence_of_card(folder: Path) -> str | None:
    from huggingface_hub import ModelCard

    with contextlib.suppress(OSError, ValueError):
        licence = ModelCard.load(folder / "README.md").data.get("license")
        return str(licence)[:100] if licence else None
    return None


def _say_licence(origin: _Origin) -> None:
    row = catalog.lookup(origin.model)
    for ja, en in row.licence_notices() if row is not None else []:
        notice(ja, en)
    if origin.licence is None:
        warn(
            f"{origin.model} のライセンスの記載がありません。持ち込む前に確かめてください。",
            f"{origin.model} names no licence; find out before you carry it.",
        )


def _belongs(file: str) -> bool:
    """Whether a file other than weights goes along."""
    return any(fnmatch(file, pattern) for pattern in _NAMES) and not any(fnmatch(file, never) for never in _NEVER)


def _begin(out: Path, origin: _Origin) -> None:
    """Makes the folder, or takes the one in which the same was interrupted."""
    begun = {"model": origin.model, "revision": origin.revision}
    note = out / _BEGUN
    with contextlib.suppress(OSError, ValueError):
        if json.loads(note.read_text(encoding="utf-8")) == begun:
            return
    validate_new_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_in_place(note, json.dumps(begun, ensure_ascii=False).encode("utf-8"))
    except OSError as error:
        raise not_written(out, error) from error


def _index_of(origin: _Origin, out: Path) -> Path | None:
    """The index of the weights, where they are several files."""
    if hub.INDEX not in origin.sizes:
        return None
    _fetch_one(origin, hub.INDEX, out)
    return out / hub.INDEX


def _weights(origin: _Origin, index: Path | None, out: Path) -> list[str]:
    """Names of the weight files, index first; none of them but the index is here yet."""
    names = [hub.INDEX, *indexed_files(index)] if index is not None else [hub.WEIGHTS]
    missing = [name for name in names if name not in origin.sizes]
    if missing:
        with contextlib.suppress(OSError):
            (out / _BEGUN).unlink()
            out.rmdir()
        raise ModelError(
            f"{origin.model} に safetensors の重み {missing[0]} がありません。safetensors だけを持ち込みます。",
            f"{origin.model} has no safetensors weights {missing[0]}; only safetensors are bundled.",
        )
    return names


def _fetch_one(origin: _Origin, file: str, out: Path) -> None:
    """One file into the folder, unless it is there; its content is compared with what its origin says."""
    target = out / file
    if target.is_file() and not target.is_symlink():
        if origin.folder is None:  # of a folder it is compared at the end
            _compare(origin, file, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if origin.folder is not None:
        _copy(origin.folder / file, target)
        return
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(origin.model, file, revision=origin.revision, local_dir=out)
    except (OSError, ValueError) as error:
        raise not_loaded(origin.model, error) from error
    _compare(origin, file, target)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as content, replacing(target) as file:
        shutil.copyfileobj(content, file, 1 << 20)


def _compare(origin: _Origin, file: str, path: Path) -> None:
    """Raises HubError where a download is not what the hub announced; the file goes."""
    kind, _, expected = origin.digests.get(file, "").partition(":")
    obtained = {"sha256": sha256_of, "git": _git_blob}[kind](path) if kind else expected
    if obtained != expected:
        path.unlink()
        raise HubError(
            f"{origin.model} の {file} が、ハブの示すハッシュと違います。もう一度実行してください。続くなら途中のプロキシなどを疑ってください。",
            f"{file} of {origin.model} is not what the hub announced (hash). Run it again; if it stays, suspect a proxy.",
        )


def _git_blob(path: Path) -> str:
    """Git's name of a file's content (SHA-1 over its length and bytes)."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _finish(origin: _Origin, files: list[str], out: Path) -> Bundle:
    described = {file: BundledFile((out / file).stat().st_size, sha256_of(out / file)) for file in files}
    if origin.folder is not None:
        for file in files:
            original = origin.folder / file
            if original.is_file() and sha256_of(original) != described[file].sha256:
                raise ConfigError(
                    f"{original} とコピーの内容が違います。{out} を消してやり直してください。",
                    f"the copy of {original} differs from it; delete {out} and begin again.",
                )
    bundle = Bundle(origin.model, origin.revision, origin.licence, date.today().isoformat(), __version__, described)
    sums = "".join(f"{entry.sha256}  {file}\n" for file, entry in described.items())
    write_in_place(out / SUMS, sums.encode("utf-8"))
    content: dict[str, Any] = asdict(bundle)
    write_in_place(out / MANIFEST, json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8"))
    (out / _BEGUN).unlink()
    return bundle
