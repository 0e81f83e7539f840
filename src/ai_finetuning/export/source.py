"""The folder of a whole 16-bit model behind any name: hub ids, embedded models, and adapters, which are merged once
into a cache.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from filelock import FileLock

from ..convert.adapter_origin import base_of
from ..convert.merge import merge_adapter
from ..errors import ModelError
from ..inference.usable import usable
from ..messages import notice, warn
from ..models import hub
from ..models.source import find_model, validate_safetensors, validate_weight_files
from ..system.files import is_private_tree
from ..system.folders import private_cache


def model_folder(name: str, *, base: str = "auto") -> Path:
    """The folder of a whole model; an adapter is merged into a cache folder that its content names, once.

    Args:
        name: hub id, alias, `embedded:NAME`, or folder of a model, an adapter, a run or a checkpoint.
        base: what an adapter is merged into, as `aift merge --base`.

    Raises:
        ModelError: the model is quantized, or needs code from its repository. ToolkitError: as locating and merging
            raise.
    """
    named = usable(name)
    if named.kind == "adapter":
        return _merged(named.path, base)
    obtained = find_model(named.path if named.step is not None else name)
    if obtained.quantization:
        raise ModelError(
            f"{name} は量子化されています。書き出しと配信には 16bit のモデルを使います。量子化前のモデルを指定してください（GGUF の量子化は --type で選べます）。",
            f"{name} is quantized; exports and serving take a 16-bit model. Name the model before quantization (a "
            "GGUF is quantized by --type).",
        )
    validate_safetensors(obtained)
    if Path(obtained.path).is_dir():
        return Path(obtained.path)
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(obtained.path, ignore_patterns=["*.bin", "*.pth", "*.pt", "*.msgpack", "*.h5"]))
    validate_weight_files(folder)
    return folder


def _merged(adapter: str, base: str) -> Path:
    path = private_cache("merged") / content_key(adapter, base)
    with FileLock(str(path) + ".lock"):
        whole = (path / "config.json").is_file()
        if whole and is_private_tree(path):
            notice(f"統合済みの {path} を使います。", f"using {path}, which was merged earlier.")
            return path
        if whole:
            warn(
                f"{path} はほかのユーザーが書き込めるため使わず、統合し直します。",
                f"{path} can be written by other users: not used, merged anew.",
            )
        notice(
            f"アダプター {adapter} をベースに統合します（次回からは {path} を使います）。",
            f"merging the adapter {adapter} into its base (kept in {path} for the next time).",
        )
        shutil.rmtree(path, ignore_errors=True)
        merge_adapter(adapter, str(path), base=base)
    return path


def content_key(adapter: str, base: str) -> str:
    """A name that changes with the adapter's files, its base's weights (by size and time) and the requested base."""
    digest = hashlib.sha256(base.encode())
    for path in sorted(Path(adapter).iterdir()):
        if path.is_file() and path.suffix in (".json", ".jinja", ".safetensors", ".model", ".txt"):
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    behind = hub.on_disk(base_of(adapter, base, None).name)
    for path in sorted(behind.glob("*.safetensors")) if behind is not None else ():
        state = path.stat()
        digest.update(f"{path.name} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()[:20]
