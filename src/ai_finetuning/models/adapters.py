"""LoRA adapters: put on, saved, loaded, merged."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from safetensors.torch import save_file
from torch import nn
from typing_extensions import Unpack

from ..errors import ConfigError, ModelError
from ._upstream import tied_weight_names
from .adapter_folder import WEIGHTS, adapter_config, base_name, note_base
from .options import validate_options
from .quantized import quantized_bits

# Ends of the names of a token embedding and of a head.
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "lm_head.weight", "embed_out.weight")


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides warnings of peft 0.21 that a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        # peft asks transformers by a name that transformers 6 drops; remove when peft's floor asks by the new one.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # On saving it looks for the base's config on the hub, to see whether the vocabulary grew; here it never does.
        warnings.filterwarnings("ignore", message="Could not find a config file")
        # Rows are only ever added where the embedding trains and is saved anyway (models/special_tokens.py).
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
        yield


class LoRAVariant(TypedDict, total=False):
    """What may differ from plain LoRA; each is off by default."""

    use_rslora: bool
    """Scale by alpha / sqrt(r) (arXiv:2312.03732)."""
    use_dora: bool
    """Train magnitude and direction separately (arXiv:2402.09353)."""


def add_lora(
    model: Any,
    *,
    r: int,
    alpha: int,
    dropout: float = 0.0,
    target_modules: Sequence[str] | str | None = None,
    bias: Literal["none", "all", "lora_only"] = "none",
    modules_to_save: Sequence[str] | None = None,
    **variant: Unpack[LoRAVariant],
) -> Any:
    """Freezes a model and puts a LoRA adapter on it; adapter weights are fp32.

    Args:
        target_modules: names of linear layers; None or `all-linear` takes every linear layer but the head.
        **variant: use_rslora, use_dora.

    Raises:
        ConfigError: a target that the model does not have.
        ModelError: the model is spread over processes already; nobody would add up the adapter's gradients.
    """
    validate_options(variant, LoRAVariant, "add_lora")
    from peft import LoraConfig, get_peft_model
    from torch.distributed.tensor import DTensor
    from transformers.pytorch_utils import Conv1D

    if any(isinstance(weight, DTensor) for weight in model.parameters()):
        raise ModelError(
            "モデルはすでにプロセス間で分割されています。LoRA は分割の前に付けてください（後から付けるとその勾配は合計されません）。",
            "the model is already sharded across processes; add LoRA before sharding (gradients of a later "
            "adapter would not be all-reduced).",
        )
    targets = list(target_modules) if isinstance(target_modules, list | tuple) else "all-linear"
    if isinstance(targets, list):
        _check_targets(model, targets)
    model.requires_grad_(False)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias=bias,
        task_type="CAUSAL_LM",
        target_modules=targets,
        use_rslora=variant.get("use_rslora", False),
        use_dora=variant.get("use_dora", False),
        modules_to_save=list(modules_to_save) if modules_to_save else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with quiet_peft():
        wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def target_modules(model: Any) -> list[str]:
    """Names of the layers that carry the adapter, as its configuration says them."""
    targets = model.peft_config["default"].target_modules
    return [targets] if isinstance(targets, str) else sorted(targets)


def _check_targets(model: nn.Module, targets: list[str]) -> None:
    names = {
        name.split(".")[-1] for name, module in model.named_modules() if getattr(module, "weight", None) is not None
    }
    unknown = [target for target in targets if target.split(".")[-1] not in names]
    if unknown:
        linear = sorted(
            {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        )
        raise ConfigError(
            f"lora.target_modules の {', '.join(unknown)} はこのモデルにありません。線形層: {', '.join(linear)}",
            f"lora.target_modules names {', '.join(unknown)}, which this model does not have; linear layers: "
            f"{', '.join(linear)}.",
        )


def embedding_weights(model: Any) -> list[nn.Parameter]:
    """The token embedding and the head: matrices whose rows are tokens, not features."""
    places = (model.get_input_embeddings(), model.get_output_embeddings())
    return [weight for path in places if (weight := getattr(path, "weight", None)) is not None]


def trains_embedding(model: Any, modules_to_save: Sequence[str]) -> bool:
    """Whether modules that are trained in full are the token embedding and the head."""
    places = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() for place in places if module is place]
    return all(any(name.split(".")[-1] == saved.split(".")[-1] for saved in modules_to_save) for name in names)


def brought_rows(folder: str | Path) -> int:
    """Rows of the token embedding or the head that an adapter's file brings; 0 where it has neither."""
    return max((shape[0] for key, shape in _shapes(folder).items() if key.endswith(_EMBEDDINGS)), default=0)


def fit_rows(model: Any, folder: str | Path) -> None:
    """Gives a base as many embedding rows as an adapter's file brings, where tokens were added in training."""
    rows = brought_rows(folder)
    if rows not in (0, model.get_input_embeddings().weight.shape[0]):
        model.resize_token_embeddings(rows, mean_resizing=False)


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def validate_fit(model: Any, folder: str | Path) -> None:
    """Refuses an adapter whose shapes are those of another base; of the model only names and sizes are looked at.

    Raises:
        ModelError: with the first layer that does not fit; the file is damaged.
    """
    base = base_name(adapter_config(folder))
    modules = dict(model.named_modules())
    for key, shape in _shapes(folder).items():
        if not key.endswith("lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        module = modules.get(name)
        features = getattr(module, "in_features", None) or getattr(module, "nx", None)
        if module is None or (features is not None and features != shape[1]):
            raise ModelError(
                f"アダプター {folder} は {base} 用で、このモデルとは形が合いません（{name}）。"
                "元のベースモデルを指定してください。",
                f"the adapter {folder} was trained on {base} and does not fit this model ({name}); name its own base.",
            )


def _shapes(folder: str | Path) -> dict[str, list[int]]:
    """The shapes in an adapter's file, by PEFT's names; no weight is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(Path(folder) / WEIGHTS), framework="pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(
            f"アダプター {folder} の {WEIGHTS} が壊れています（{error}）。保存し直してください。",
            f"{WEIGHTS} of the adapter {folder} is damaged ({error}); save it again.",
        ) from error


def load_adapter(model: Any, folder: str | Path) -> Any:
    """A model with a saved adapter on it.

    Raises:
        ModelError: the adapter was trained on another base; the shapes show it before any weight is changed.
    """
    from peft import PeftModel

    validate_fit(model, folder)
    fit_rows(model, folder)
    with quiet_peft():
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False)


def continue_adapter(model: Any, folder: str | Path, *, dropout: float) -> Any:
    """Freezes a model and puts a saved adapter on it, to be trained on; its weights are fp32, as add_lora's are.

    Args:
        dropout: in place of the adapter's own.

    Raises:
        ModelError: the adapter was trained on another base, or its file lacks weights of a layer that it names.
    """
    from peft import LoraConfig, PeftModel

    validate_fit(model, folder)
    fit_rows(model, folder)
    model.requires_grad_(False)
    config = LoraConfig.from_pretrained(str(folder))
    config.lora_dropout = dropout
    note_base(config, model.name_or_path)
    with quiet_peft():
        wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=True, config=config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    stored = _shapes(folder)
    trained = [_saved_name(name) for name, weight in wrapped.named_parameters() if weight.requires_grad]
    missing = [name for name in trained if ".lora_" in name and name not in stored]
    if missing:
        raise ModelError(
            f"アダプター {folder} に {missing[0]} など {len(missing)} 個の重みがありません。このベースのアダプターか確認してください。",
            f"the adapter {folder} lacks {len(missing)} weights ({missing[0]}, ...); check that it was trained on this "
            "base.",
        )
    return wrapped


def merge_into(model: Any) -> Any:
    """Merges an adapter into its 16- or 32-bit base; refuses weights that are not finite.

    Raises:
        ModelError: the base is quantized (merging would quantize the adapter too), or the merged weights are not
            finite.
    """
    if quantized_bits(model) is not None:
        raise ModelError(
            "量子化したベースにはアダプターを統合しません（誤差が大きくなります）。ベースを 16bit で読み込み直してください。",
            "an adapter is not merged into a quantized base, which would quantize it too; load the base in 16 bit.",
        )
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(f"統合できません: {error}", f"cannot merge: {error}") from error


def tied_names(model: Any) -> set[str]:
    """Names of weights that loading makes from others (a head tied to the embedding), which files leave out."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return set()
    return tied_weight_names(model)


def write_adapter(path: Path, model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """An adapter's folder from its whole weights by parameter name, as PEFT's save_pretrained writes it.

    PEFT's own function looks at the modules of the model, of which this process may hold a few only.
    """
    settings = copy.copy(model.peft_config["default"])
    settings.inference_mode = True
    state = {_saved_name(name): tensor.contiguous() for name, tensor in tensors.items()}
    save_file(state, path / WEIGHTS, metadata={"format": "pt"})
    settings.save_pretrained(path)


def _saved_name(name: str) -> str:
    """The name of an adapter's parameter in PEFT's files: without the adapter's own name."""
    if name.endswith(".lora_magnitude_vector.default.weight"):
        return name.removesuffix(".default.weight")
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def saved_tokenizer(folder: str) -> str | None:
    """The adapter's folder where a tokenizer was saved with it (ours are), else None."""
    return folder if (Path(folder) / "tokenizer_config.json").is_file() else None
