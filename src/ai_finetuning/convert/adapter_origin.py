"""What an adapter was trained on, and the 16-bit bases that it can be merged into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputNotFoundError, ModelError, ToolkitError
from ..models import hub
from ..models.adapter_folder import AUTO, DEQUANTIZED, ORIGINAL, adapter_config, recorded_base
from ..models.adapters import fit_rows, load_adapter
from ..models.loading import load_causal_lm
from ..models.options import validate_bits
from ..models.quantized import quantized_bits
from ..models.source import read_config
from ._upstream import forget_bitsandbytes_conversions


@dataclass(frozen=True)
class AdapterBase:
    """An adapter's base.

    Attributes:
        adapter: the adapter's folder.
        name: the model that it was trained on.
        original: the 16-bit model behind that one; None where the base is quantized on disk and the user did not name
        it.
        bits: 8 or 4 where the adapter was trained on quantized weights.
        stored: whether they are quantized on disk; else on loading.
    """

    adapter: str
    name: str
    original: str | None
    bits: int | None
    stored: bool

    def sources(self, expected: str) -> list[str]:
        """The 16-bit bases to try for `auto`, `original`, `dequantized` or a model's name (which is the original).

        Raises:
            ModelError: there is none such.
        """
        if expected == DEQUANTIZED and self.bits is None:
            raise ModelError(
                f"{self.adapter} は 16bit の {self.name} で学習されたアダプターなので、dequantized（量子化を戻したベース）はありません。--base "
                "original にしてください。量子化したベースで学習したものなら --bits 4 か 8 を付けてください。",
                f"{self.adapter} was trained on {self.name} in 16 bit, so there is no dequantized base; use "
                "--base original. If its base was quantized, add --bits 4 or 8.",
            )
        if expected == DEQUANTIZED:
            return [DEQUANTIZED]
        if expected == AUTO:
            return [ORIGINAL] * (self.original is not None) + [DEQUANTIZED] * (self.bits is not None)
        if self.original is None:
            raise ModelError(
                f"{self.adapter} のベース {self.name} は量子化されていて、もとの 16bit モデルが分かりません。--base にその名前かフォルダーを指定するか、--base "
                "dequantized にしてください。",
                f"{self.adapter}: its base {self.name} is quantized, and the original 16-bit model is unknown; "
                "name it with --base, or use --base dequantized.",
            )
        return [ORIGINAL]

    def load(self, *, source: str | None, dtype: str, device: torch.device | None) -> Any:
        """The base with the adapter on it, in eval mode.

        Args:
            source: ORIGINAL, DEQUANTIZED, or None for the weights that the adapter was trained on.
        """
        if source == ORIGINAL:
            model = load_causal_lm(str(self.original), dtype=dtype, device=device, announce=False)
        else:
            on_loading = None if self.stored else self.bits
            model = load_causal_lm(
                self.name, dtype=dtype, device=device, load_in_4bit=on_loading == 4, load_in_8bit=on_loading == 8
            )
        if source == DEQUANTIZED:
            model = _dequantized(model, self.name)
        fit_rows(model, self.adapter)
        return load_adapter(model, self.adapter).eval()


def base_of(adapter: str, expected: str, bits: int | None) -> AdapterBase:
    """What an adapter was trained on, by its adapter_config.json, its run.json and the base's own config.json.

    Args:
        adapter: the adapter's folder.
        expected: a word of ours, or the name of a 16-bit model.
        bits: what the user says; None asks the files.

    Raises:
        UsageError: bits other than 4 and 8. InputNotFoundError: no adapter there. ModelError: the named base is
            quantized.
    """
    validate_bits(bits, "--bits")
    named = None if expected in (AUTO, ORIGINAL, DEQUANTIZED) else expected
    own = hub.locate_base(adapter) if named is None else _own_if_there(adapter, named)
    if named is not None and stored_bits(named) is not None:
        raise ModelError(
            f"--base の {named} は量子化されています。量子化した重みには統合しません。16bit のモデルを指定してください。",
            f"--base {named} is quantized, and adapters cannot be merged into quantized weights; name a 16-bit model.",
        )
    stored = _stored_bits_if_there(own) if named is not None else stored_bits(own)
    if stored is not None:
        return AdapterBase(adapter, own, named, stored, True)
    # A named base stands for the adapter's own, which may have moved.
    return AdapterBase(adapter, named or own, named or own, bits or recorded_base(adapter).bits, False)


def stored_bits(name: str) -> int | None:
    """Bits of a model that is quantized on disk, None for other models.

    Raises:
        ModelError, HubError, InputNotFoundError: it is not there.
    """
    stored = read_config(hub.locate(name)).get("quantization_config")
    if stored is None:
        return None
    return 4 if stored.get("load_in_4bit") or "Int4" in json.dumps(stored) else int(stored.get("bits") or 8)


def _stored_bits_if_there(name: str) -> int | None:
    try:
        return stored_bits(name)
    except ToolkitError:
        return None


def _own_if_there(adapter: str, named: str) -> str:
    """The base that an adapter names, or, where that is gone, the one that the user names."""
    try:
        return hub.named_base(adapter)
    except InputNotFoundError:
        adapter_config(adapter)  # raised where it is the adapter that is not there
        return named


def _dequantized(model: Any, name: str) -> Any:
    """The model with plain 16-bit weights, dequantized from its stored ones."""
    try:
        model = model.dequantize(dtype=model.dtype)
    except (NotImplementedError, ValueError) as error:
        raise ModelError(
            f"{name} の量子化は 16bit に戻せません（{error}）。--base にもとの 16bit モデルを指定してください。",
            f"{name} cannot be dequantized to 16 bit ({error}); name the original 16-bit model with --base.",
        ) from error
    forget_bitsandbytes_conversions(model)
    if quantized_bits(model) is not None:
        raise ModelError(
            f"{name} に量子化されたままの層が残りました。--base にもとの 16bit モデルを指定してください。",
            f"{name}: some layers remain quantized; name the original 16-bit model with --base.",
        )
    return model
