"""Where a model comes from, looked up once: name, path, configuration. Needs neither torch nor transformers."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import embedded
from ..errors import HubError, ModelError, ToolkitError, refusing
from ..messages import warn
from ..runs.weights import indexed_files
from . import catalog, hub
from .catalog import CatalogRow
from .named import find_named, is_tokenizer
from .sizes import validate_sizes

# The key of config.json that names a single file of weights.
_NAMED_WEIGHTS = "transformers_weights"
# Parts of the keys of config.json whose value may be a kernel of a hub.
_KERNELS = ("attn", "attention", "experts", "kernel")
# What keys that are read here hold, where they are there.
_SHAPES: dict[str, type[dict[str, Any]] | type[list[Any]]] = {
    "text_config": dict,
    "quantization_config": dict,
    "architectures": list,
}
_SAFE_NAMES = (".safetensors", ".safetensors.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found.

    Attributes:
        name: what it is called on any machine: hub id, `embedded:NAME`, or a folder. Adapters remember it.
        path: what transformers loads: hub id or folder.
        local_only: load without asking the hub.
        config: its config.json; empty for a folder that holds only a tokenizer.
        catalog_row: what the catalog knows of it, or None.
        remote_code: the user allowed the code that its repository brings, and config.json asks for it.
    """

    name: str
    path: str
    local_only: bool
    config: Mapping[str, Any] = field(default_factory=dict)
    catalog_row: CatalogRow | None = None
    remote_code: bool = False

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the configuration that describes the language model; of most models all of it."""
        return self.config.get("text_config") or self.config

    @property
    def quantization(self) -> Mapping[str, Any]:
        """The quantization_config of weights that are stored quantized; else empty."""
        stored: Mapping[str, Any] = self.config.get("quantization_config") or {}
        return stored

    @property
    def recorded(self) -> str:
        """What an adapter notes as its base: the name, of a folder its whole path, so that it holds in any folder."""
        on_this_machine = Path(self.path).is_dir() and not embedded.is_embedded(self.name)
        return os.path.abspath(self.path) if on_this_machine else self.name

    @property
    def architecture(self) -> str:
        """The first of its architectures, such as LlamaForCausalLM."""
        return str((self.config.get("architectures") or ["?"])[0])


def find_model(name: str, *, trust_remote_code: bool = False) -> ModelSource:
    """A model by hub id, alias, `embedded:NAME` or folder, with its configuration; within seconds, nothing is loaded.

    Raises:
        InputNotFoundError, HubError: it cannot be found. ModelError: it needs code from its repository, and nobody
            allowed it; its configuration cannot be read.
    """
    obtained = hub.locate(name)
    config = read_config(obtained)
    remote_code = allow_remote_code(obtained.name, config, trust_remote_code)
    return ModelSource(
        obtained.name, obtained.path, obtained.local_only, config, catalog.lookup(obtained.name), remote_code
    )


def find_tokenizer(name: str) -> ModelSource:
    """The same for a folder or id whose tokenizer alone is needed; its configuration is read where it has one. An
    adapter without a tokenizer of its own has its base's.
    """
    named = find_named(name)
    if named.kind == "adapter" and named.folder is not None and not is_tokenizer(named.folder):
        name = hub.locate_base(named.folder)
    obtained = hub.locate(name, weights=False)
    file = Path(obtained.path) / "config.json"
    config = read_config(obtained) if file.is_file() else {}
    return ModelSource(obtained.name, obtained.path, obtained.local_only, config, catalog.lookup(obtained.name))


def read_config(obtained: hub.Located) -> dict[str, Any]:
    """The model's config.json as a dict; no code of the repository runs. The one reader of configurations.

    Raises:
        ModelError, HubError: it cannot be read. ModelError: it names weights that are no safetensors, code to download
            for attention, experts or kernels, or sizes that no model has or that its weights do not.
    """
    try:
        file = Path(obtained.path) / "config.json"
        if not Path(obtained.path).is_dir():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(obtained.path, "config.json", local_files_only=obtained.local_only))
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"config.json holds a {type(values).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise not_loaded(obtained.path, error) from error
    _refuse_shapes(obtained.name, values)
    _refuse_named_weights(obtained.name, values.get(_NAMED_WEIGHTS))
    _refuse_named_kernels(obtained.name, values)
    folder = Path(obtained.path)
    validate_sizes(obtained.name, values, weight_file_bytes(folder) if folder.is_dir() else 0)
    return values


def _refuse_shapes(name: str, values: Mapping[str, Any]) -> None:
    for key, kind in _SHAPES.items():
        value = values.get(key)
        if value is not None and not isinstance(value, kind):
            ja, en = ("キーと値の組", "keys with values") if kind is dict else ("リスト", "a list")
            raise ModelError(
                f"{name} の config.json の {key} が {str(value)[:20]!r} です。{ja}でなければなりません。モデルをもう一度取り直してください。",
                f"{name}: {key} in its config.json is {str(value)[:20]!r}; it must be {en}. Fetch the model again.",
            )


def _refuse_named_weights(name: str, file: object) -> None:
    if file is None or (isinstance(file, str) and "/" not in file and file.endswith(_SAFE_NAMES)):
        return
    raise ModelError(
        f"{name} の config.json の {_NAMED_WEIGHTS} が {str(file)[:100]!r} です。safetensors だけを読み込みます。",
        f"{name}: {_NAMED_WEIGHTS} in its config.json is {str(file)[:100]!r}. Safetensors only.",
    )


def _refuse_named_kernels(name: str, config: Mapping[str, Any]) -> None:
    """Refuses a configuration that names a repository as its attention, experts or kernels.

    transformers 5.23 downloads and runs such a kernel where the package `kernels` is installed, although another
    attention is asked for; nothing that it computes by itself has a `/` in its name.
    """
    waiting: list[tuple[str, Any, bool]] = [("", config, False)]
    while waiting:
        key, value, about_kernels = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [
                (str(k), v, about_kernels or any(x in str(k).lower() for x in _KERNELS)) for k, v in value.items()
            ]
        elif isinstance(value, list):
            waiting += [(key, item, about_kernels) for item in value]
        elif about_kernels and isinstance(value, str) and "/" in value:
            raise ModelError(
                f"{name} の config.json の {key[:60]} が {value[:100]!r} です。ハブのカーネル（実行コード）は読み込みません。信頼できるモデルなら、そのキーを消してください。",
                f"{name}: {key[:60]} in its config.json is {value[:100]!r}. Kernels of a hub are code and are not loaded; if "
                "you trust the model, remove the key.",
            )


def allow_remote_code(name: str, config: Mapping[str, Any], trust_remote_code: bool) -> bool:
    """Whether code from the repository may run; without the opt-in a repository that brings code is refused.

    A model that the catalog knows to have a built-in class is loaded by that class, its code stays unused.

    Raises:
        ModelError: the repository's configuration points at code (`auto_map`), and nobody allowed it.
    """
    if not config.get("auto_map"):
        return False
    if trust_remote_code:
        warn_of_code(name)
        return True
    row = catalog.lookup(name)
    if row is not None and not getattr(row, "trust_remote_code", True):
        return False
    raise ModelError(
        f"{name} の config.json はリポジトリー内のコード (auto_map) の実行を求めています。実行しません。内容を確認して信頼できる場合だけ"
        " trust_remote_code=True (コマンドラインでは model.trust_remote_code=true) を指定してください。",
        f"{name}: its config.json requests code from the repository (auto_map), which is not run by default. Read "
        "that code, and only if you trust"
        " it pass trust_remote_code=True (on the command line: model.trust_remote_code=true).",
    )


def warn_of_code(name: str) -> None:
    """Said before any code of a repository runs."""
    warn(
        f"{name} のリポジトリーに含まれるコードを実行します (trust_remote_code)。",
        f"Running code from the repository of {name} (trust_remote_code).",
    )


def validate_safetensors(source: ModelSource) -> None:
    """Refuses, before transformers looks at it, a model of which anything but safetensors would be opened: unpickling
    can run any code, and an index may name a pickle whatever its reader asks for.

    Raises:
        ModelError: a folder without weights in safetensors, or an index that names other files.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        index = _hub_index(source)
        if index is not None:
            indexed_files(index)
        return
    validate_weight_files(folder, str(source.config.get(_NAMED_WEIGHTS) or hub.WEIGHTS))


def validate_weight_files(folder: Path, single: str = hub.WEIGHTS) -> None:
    """The same for a folder.

    Args:
        single: the file that holds all weights where there is no index.
    """
    for index in folder.glob("*.index.json"):
        if not index.name.startswith("pytorch_model."):  # of pickles, which nothing reads
            indexed_files(index)
    if (folder / single).is_file() or (folder / hub.INDEX).is_file():
        return
    others = sorted(path.name for pattern in (*_PICKLES, "*.safetensors") for path in folder.glob(pattern))
    raise ModelError(
        f"{folder} に safetensors の重み（{single} か {hub.INDEX}）がありません (あるのは {'、'.join(others[:8]) or 'なし'})。安全のため safetensors だけを読み込みます。"
        " 信頼できる環境で save_pretrained し直して変換してください。",
        f"{folder} has no safetensors weights, {single} or {hub.INDEX} (found: {', '.join(others[:8]) or 'none'}). "
        "Safetensors only: pickles can run code. Convert it with save_pretrained in an environment that you trust.",
    )


def _hub_index(source: ModelSource) -> Path | None:
    """The index of a model on the hub or in its cache; None where its weights are one file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source.path, hub.INDEX, local_files_only=source.local_only))
    except EntryNotFoundError:  # LocalEntryNotFoundError is one
        return None
    except (OSError, ValueError) as error:
        raise not_loaded(source.path, error) from error


def weight_file_bytes(folder: Path) -> int:
    """Bytes of the weight files in a folder; 0 where there are none."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def described(name: str) -> contextlib.AbstractContextManager[None]:
    """Refuses a config.json that transformers fails over, while a model is made of it.

    Raises:
        ModelError: with what transformers said.
    """
    return refusing(
        ModelError,
        f"{name} の config.json から文章生成モデルを組み立てられません（{{reason}}）。",
        f"the config.json of {name} does not describe a causal language model ({{reason}}).",
    )


def not_loaded(name: str, error: Exception) -> ToolkitError:
    """A library's failure with what the user can do about it."""
    text = str(error)
    first = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
    if "safetensors" in text and ("does not appear to have" in text or "no file named" in text.lower()):
        return ModelError(
            f"{name} に safetensors の重みがありません。safetensors だけを読み込みます。変換済みのモデルを使ってください。",
            f"{name} has no safetensors weights. Safetensors only: use a converted model.",
        )
    if isinstance(error, OSError) and not Path(name).is_dir():
        return HubError(
            f"{name} をダウンロードできませんでした: {first} ネットワーク、HF_TOKEN、モデル名を確認してください。",
            f"{name} could not be downloaded: {first} Check the network, HF_TOKEN and the name.",
        )
    return ModelError(
        f"{name} を読み込めませんでした: {first} config.json と重みが揃った、文章生成 (causal LM) のモデルか確認してください。",
        f"{name} could not be loaded: {first} Check that it is a causal language model with matching config.json and weights.",
    )
