"""LoRA adapters: put on, saved, loaded, merged."""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typing_extensions import Unpack

from ..errors import ModelError, refusing
from ..messages import warn
from ._upstream import leave_inputs_to_autocast, peft_turns_into_experts, tied_weight_names, without_bitsandbytes
from .adapter_folder import CONFIG, STARTS, WEIGHTS, adapter_config, base_name, note_base, unreadable
from .lora_targets import ALL_LINEAR, resolve_modules_to_save, resolve_targets
from .options import validate_options
from .quantized import quantized_bits

# Ends of the names of a head, and of a token embedding or a head.
_HEADS = tuple(f"{name}.{end}" for name in ("lm_head", "embed_out") for end in ("weight", "base_layer.weight"))
_EMBEDDINGS = _HEADS + tuple(
    f"{name}.{end}" for name in ("embed_tokens", "embed_in", "wte") for end in ("weight", "base_layer.weight")
)


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
        # A base that moved; whether it is the right one is found out from its weights.
        warnings.filterwarnings("ignore", message="The PEFT config's .* was renamed")
        yield


class LoRAVariant(TypedDict, total=False):
    """What may differ from plain LoRA; each is off by default."""

    use_rslora: bool
    """Scale by alpha / sqrt(r) (arXiv:2312.03732)."""
    use_dora: bool
    """Train magnitude and direction separately (arXiv:2402.09353)."""
    target_parameters: Sequence[str] | None
    """Weights of experts to adapt, by the ends of their names; their adapters have no dropout, which PEFT's do not
    allow."""


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
        target_modules: names of linear layers; None or `all-linear` takes every linear layer but the head that can
            carry an adapter (models/lora_targets.py).
        **variant: use_rslora, use_dora, target_parameters.

    Raises:
        ConfigError: a target or a module to save that the model does not have, or that cannot carry an adapter.
        ModelError: the model is spread over processes already; nobody would add up the adapter's gradients.
    """
    validate_options(variant, LoRAVariant, "add_lora")
    with without_bitsandbytes():
        from peft import LoraConfig, get_peft_model
    from torch.distributed.tensor import DTensor
    from transformers.pytorch_utils import Conv1D

    if any(isinstance(weight, DTensor) for weight in model.parameters()):
        raise ModelError(
            "モデルはすでにプロセス間で分割されています。LoRA は分割の前に付けてください（後から付けるとその勾配は合計されません）。",
            "the model is already sharded across processes; add LoRA before sharding (gradients of a later "
            "adapter would not be all-reduced).",
        )
    use_dora = variant.get("use_dora", False)
    targets = resolve_targets(model, target_modules, variant.get("target_parameters"), use_dora=use_dora)
    saved = resolve_modules_to_save(model, modules_to_save)
    model.requires_grad_(False)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=0.0 if targets.parameters else dropout,
        bias=bias,
        task_type="CAUSAL_LM",
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        use_rslora=variant.get("use_rslora", False),
        use_dora=use_dora,
        modules_to_save=saved or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with quiet_peft(), without_bitsandbytes():
        wrapped = get_peft_model(model, config)
    if targets.parameters and dropout:
        _set_dropout(wrapped, dropout)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in wrapped.modules():
        own = list(module.parameters(recurse=False))
        if "Norm" in type(module).__name__ and any(parameter.requires_grad for parameter in own):
            module.float()  # a norm takes its weight and its trained bias in one dtype
    _remember_base(wrapped, {weight: weight.detach().clone() for weight in _trained_biases(wrapped)})
    return wrapped


def without_input_casts(model: nn.Module, device_type: str = "cuda") -> None:
    """Lets LoRA layers read their inputs in 16 bit under autocast, in place.

    peft turns each input into fp32, the adapter's type, and autocast turns it back: of 961 GB of element-wise traffic in
    a step of 8B LoRA 227 were such casts. Without dropout no bit changes; with it the same share of numbers is dropped.
    Variants such as DoRA compute more from their inputs and keep the cast.

    Args:
        device_type: where it applies; elsewhere, and outside autocast, inputs are cast as before.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and not getattr(module, "lora_variant", None):
            leave_inputs_to_autocast(module, device_type)


def target_modules(model: Any) -> list[str]:
    """Names of the layers that carry the adapter, as its configuration says them."""
    targets = model.peft_config["default"].target_modules
    return [targets] if isinstance(targets, str) else sorted(targets)


def _set_dropout(wrapped: nn.Module, p: float) -> None:
    """Dropout before the adapters of layers; those of experts' tensors go without."""
    from peft.tuners.lora import LoraLayer, ParamWrapper

    for module in wrapped.modules():
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper):
            for name in module.lora_dropout:
                module.lora_dropout[name] = nn.Dropout(p)


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
    rows, here = brought_rows(folder), model.get_input_embeddings().weight.shape[0]
    if rows in (0, here):
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    head = model.get_output_embeddings()
    tied = head is None or head.weight is model.get_input_embeddings().weight
    if rows > here and not tied and not any(key.endswith(_HEADS) for key in _shapes(folder)):
        warn(
            f"アダプター {folder} は語彙を {here:,} から {rows:,} に広げますが、出力層の新しい行を含まないため、それらは乱数です。新しいトークンを正しく答え"
            "られません。出力層も modules_to_save に入れて保存し直してください。",
            f"the adapter {folder} grows the vocabulary from {here:,} to {rows:,} and does not bring the head's new rows: they "
            "are random, so new tokens are not answered as they were learnt. Save it again with the head in modules_to_save.",
        )


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def validate_fit(model: Any, folder: str | Path) -> None:
    """Refuses an adapter whose shapes are those of another base; of the model only names and sizes are looked at.

    Raises:
        ModelError: with the first layer that does not fit; the file is damaged.
    """
    expected = base_name(adapter_config(folder))
    modules = dict(model.named_modules())
    for key, shape in _shapes(folder).items():
        if not key.endswith("lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        module = modules.get(name.removesuffix(".base_layer"))
        features = getattr(module, "in_features", None) or getattr(module, "nx", None)
        converted = module is None and peft_turns_into_experts(model, ALL_LINEAR)  # names of transformers 4
        if (module is None and not converted) or (features is not None and features != shape[1]):
            raise _other_base(folder, expected, name)


def _shapes(folder: str | Path) -> dict[str, list[int]]:
    """The shapes in an adapter's file, by PEFT's names; no weight is read."""
    from safetensors import safe_open

    with refusing(
        ModelError,
        f"アダプター {folder} の {WEIGHTS} が壊れています（{{reason}}）。保存し直してください。",
        f"{WEIGHTS} of the adapter {folder} is damaged ({{reason}}); save it again.",
    ):
        with safe_open(str(Path(folder) / WEIGHTS), framework="pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            return {key: shape for key, shape in shapes.items() if all(shape)}  # without those of no element


# Keys of adapter_config.json whose values peft takes as regular expressions.
_PATTERNS = ("exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
_MOST_REPEATS = 3
# Starts that took from the base what depends on random numbers or on data: on loading PEFT takes something else, or nothing.
_LOST_STARTS = ("pissa_niter", "corda", "lora_ga")


def _bound_patterns(config: Any, folder: str | Path) -> None:
    """Keeps a received adapter from naming layers by a regular expression that takes endless time to match.

    Layers that a longer expression names are those that the file brings weights for.
    """
    targets = config.target_modules
    if isinstance(targets, str) and targets != ALL_LINEAR and not _is_bounded(targets):
        ends = (".lora_A.weight", ".lora_embedding_A")
        names = {key.removesuffix(end) for key in _shapes(folder) for end in ends if key.endswith(end)}
        config.target_modules = {name.removeprefix("base_model.model.") for name in names}
    for key in _PATTERNS:
        value = getattr(config, key, None) or ()
        for pattern in [value] if isinstance(value, str) else value:
            if not _is_bounded(str(pattern)):
                shown = repr(str(pattern)[:60])
                raise ModelError(
                    f"アダプター {folder} の {key} にある正規表現 {shown} は、照合に終わりがないことがあるため使いません。レイヤーの名前で書いてください。",
                    f"{key} of the adapter {folder} has the regular expression {shown}, which may never end matching; "
                    "name the layers instead.",
                )


def _bound_ranks(config: Any, folder: str | Path) -> None:
    """Keeps an adapter's configuration from asking for larger matrices than its file brings.

    Raises:
        ModelError: with the rank.
    """
    ranks = [shape[0] for key, shape in _shapes(folder).items() if ".lora_A." in key or ".lora_embedding_A" in key]
    asked = [getattr(config, "r", 0), *(getattr(config, "rank_pattern", None) or {}).values()]
    for rank in asked:
        if not isinstance(rank, int) or rank > max(ranks, default=0):
            raise ModelError(
                f"アダプター {folder} の {CONFIG} のランクは {_number(rank)} ですが、{WEIGHTS} の行列は最大 {max(ranks, default=0)} です。保存し直してください。",
                f"the {CONFIG} of the adapter {folder} has the rank {_number(rank)}, but the matrices in {WEIGHTS} have at "
                f"most {max(ranks, default=0)}; save it again.",
            )


def _refuse_unusual(stored: Mapping[str, Any], folder: str | Path) -> None:
    """Refuses what an adapter's configuration may ask of PEFT beside adapting layers: other kinds of adapters, a module to
    import, copies of the base's layers, and starts that took a part out of the base which nobody can compute again.

    Raises:
        ModelError: with the key.
    """
    unusual = {
        "peft_type": stored.get("peft_type", "LORA") != "LORA",
        "alora_invocation_tokens": stored.get("alora_invocation_tokens") is not None,
        "trainable_token_indices": not isinstance(stored.get("trainable_token_indices"), list | dict | None),
        "megatron_config": stored.get("megatron_config") is not None,
        "layer_replication": bool(stored.get("layer_replication")),
        "init_lora_weights": str(stored.get("init_lora_weights")).startswith(_LOST_STARTS),
    }
    for key in (key for key, yes in unusual.items() if yes):
        shown = repr(stored[key])[:60]
        ja, en = ("", "")
        if key == "init_lora_weights":
            ja = "学習時に PEFT の save_pretrained(..., path_initial_model_for_weight_conversion=...) で保存し直してください。"
            en = " Save it where it was trained, by PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        raise ModelError(
            f"アダプター {folder} の {CONFIG} の {key} が {shown} です。読み込めるのは LoRA だけで、この設定は使えません。{ja}",
            f"{key} in the {CONFIG} of the adapter {folder} is {shown}; only LoRA is read, and not with this setting.{en}",
        )


def _number(value: Any) -> str:
    return f"{value:,}"[:40] if isinstance(value, int) else repr(value)[:40]


def _is_bounded(pattern: str) -> bool:
    """Whether matching a name takes time with a low power of its length: few parts repeat, may be missing or have
    alternatives, and no group repeats.
    """
    plain = re.sub(r"\\[.\-_]", "", pattern)
    repeats = len(re.findall(r"[*+{]|(?<![*+}(])\?", plain))
    return (
        len(pattern) <= 1000
        and repeats <= _MOST_REPEATS
        and plain.count("(") <= _MOST_REPEATS
        and not re.search(r"\)[*+{?]|\\[1-9]|\(\?[^:]", plain)
    )


def load_adapter(model: Any, folder: str | Path, *, trainable: bool = False, dropout: float | None = None) -> Any:
    """A model with a saved adapter on it, every weight of which has found its place.

    Raises:
        ModelError: the adapter was trained on another base: shapes that do not fit, which is seen before any weight is
            changed, layers that the model does not have, or layers of the model that it does not bring.
    """
    with without_bitsandbytes():
        from peft import PeftConfig, get_peft_model

    stored = adapter_config(folder)
    expected = base_name(stored)
    with unreadable(folder):
        _refuse_unusual(stored, folder)
    validate_fit(model, folder)
    fit_rows(model, folder)
    before = {weight: weight.detach().clone() for weight in _may_change(model, stored, folder)}
    unfit = _other_base(folder, expected, "{reason}")
    with quiet_peft():
        with unreadable(folder):
            config = PeftConfig.from_pretrained(str(folder))
            _bound_patterns(config, folder)
            _bound_ranks(config, folder)
        config.inference_mode = not trainable
        if dropout is not None:
            config.lora_dropout = dropout
        with refusing(ModelError, unfit.ja, unfit.en), without_bitsandbytes():
            wrapped = get_peft_model(model, config)
            apart = _fill(wrapped, folder, trainable=trainable)
    if apart:
        raise _other_base(folder, expected, apart[0].removeprefix("base_model.model.").replace(".default", ""))
    train = set(_trained_biases(wrapped)) if trainable else set()
    _remember_base(
        wrapped,
        {weight: value for weight, value in before.items() if weight in train or not torch.equal(weight, value)},
    )
    remember_origin(wrapped, folder, model.name_or_path)
    return wrapped


def _may_change(model: Any, stored: Mapping[str, Any], folder: str | Path) -> list[nn.Parameter]:
    """The base's own weights that an adapter may change when it is put on: biases and others that it brings, and those of
    its layers where its start takes a part out of them (PiSSA, OLoRA).
    """
    brought = {key.removeprefix("base_model.model.").replace(".base_layer.", ".") for key in _shapes(folder)}
    obtained = [weight for name, weight in model.named_parameters() if "bias" in name or name in brought]
    if stored.get("init_lora_weights", True) not in STARTS:
        modules, end = dict(model.named_modules()), ".lora_A.weight"
        names = [
            key.removeprefix("base_model.model.").removesuffix(end) for key in _shapes(folder) if key.endswith(end)
        ]
        obtained += [weight for name in names if (weight := getattr(modules.get(name), "weight", None)) is not None]
    return obtained


# Where the adapters of modules lie, and what their bases are called.
_ORIGINS: WeakKeyDictionary[nn.Module, tuple[Path, str]] = WeakKeyDictionary()


def remember_origin(model: nn.Module, folder: str | Path, base: str) -> None:
    """Notes that a module's adapter is the one in a folder."""
    _ORIGINS[model] = (Path(folder).absolute(), base)


def adapter_origin(model: Any) -> tuple[Path, str] | None:
    """(folder of the adapter, name of the base) of a module; None where nobody has noted it."""
    return _ORIGINS.get(model) if isinstance(model, nn.Module) else None


def is_as_saved(model: nn.Module, folder: Path) -> bool:
    """Whether the adapter on a module is the one in a folder, in the module's dtype."""
    if not (folder / WEIGHTS).is_file():
        return False
    saved = load_file(folder / WEIGHTS)
    own = {saved_name(name): weight for name, weight in model.named_parameters() if _ADDED.search(name)}
    return all(
        name in saved and torch.equal(weight.detach().cpu(), saved[name].to(weight.dtype))
        for name, weight in own.items()
    )


def _fill(wrapped: Any, folder: str | Path, *, trainable: bool) -> list[str]:
    """Puts a file's weights into an adapter; names that only the file or only the adapter has."""
    saved = load_file(Path(folder) / WEIGHTS)
    own = {saved_name(name): weight for name, weight in wrapped.named_parameters()}
    needed = {saved_name(name) for name in dict(wrapped.named_parameters()) if _ADDED.search(name)}
    if needed <= saved.keys() <= own.keys():
        with torch.no_grad():
            for name in saved:  # weights of the base among them, such as an embedding that grew
                own[name].copy_(saved[name])
        return []
    # Names of other versions of transformers, which PEFT knows how to read.
    loaded = wrapped.load_adapter(str(folder), "default", is_trainable=trainable)
    # PEFT saves an embedding that grew a second time, under the name of its wrapper.
    return [*loaded.missing_keys, *(key for key in loaded.unexpected_keys if ".modules_to_save." not in key)]


# Names of parameters that an adapter adds to its base.
_ADDED = re.compile(r"\.(lora_\w+|modules_to_save)\.")
# The base's weights where an adapter brings, trains or has changed them, which PEFT has in their place.
_BASE_WEIGHTS: WeakKeyDictionary[nn.Module, list[tuple[nn.Parameter, torch.Tensor]]] = WeakKeyDictionary()


def _trained_biases(wrapped: nn.Module) -> list[nn.Parameter]:
    """The base's own parameters that train with an adapter."""
    return [weight for name, weight in wrapped.named_parameters() if weight.requires_grad and not _ADDED.search(name)]


def _remember_base(wrapped: nn.Module, values: Mapping[nn.Parameter, torch.Tensor]) -> None:
    if values:
        _BASE_WEIGHTS[wrapped] = list(values.items())


@contextlib.contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base's own answers inside the block: without the adapter, what it saved whole, and what it changed of the
    base's weights.
    """
    changed = _BASE_WEIGHTS.get(model, [])
    trained = [weight.data for weight, _ in changed]
    with warnings.catch_warnings():
        # It warns that biases stay: the swap below takes them back, as it does other weights.
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        with model.disable_adapter():
            for weight, value in changed:
                weight.data = value.to(weight.device, weight.dtype)
            try:
                yield
            finally:
                for (weight, _), value in zip(changed, trained, strict=True):
                    weight.data = value


def _other_base(folder: str | Path, expected: str, what: str) -> ModelError:
    return ModelError(
        f"アダプター {folder} は {expected} 用で、このモデルとは形が合いません（{what}）。元のベースモデルを指定してください。",
        f"the adapter {folder} was trained on {expected} and does not fit this model ({what}); name its own base.",
    )


def part_shared_weights(model: Any) -> list[str]:
    """Gives every layer whose adapter will be merged a weight of its own, where it shares one with another layer.

    Head and embedding are one matrix in a tied model; what is merged into one of them must not change the other.

    Returns:
        The layers that got a copy.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    holders: dict[int, int] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            holders[weight.data_ptr()] = holders.get(weight.data_ptr(), 0) + 1
    parted = []
    for name, layer in layers.items():
        own = layer.get_base_layer()
        for key, weight in list(own.named_parameters(recurse=False)):
            if holders.get(weight.data_ptr(), 0) > 1 and weight.numel():
                holders[weight.data_ptr()] -= 1
                setattr(own, key, nn.Parameter(weight.detach().clone(), requires_grad=False))
                parted.append(name)
    return parted


def continue_adapter(model: Any, folder: str | Path, *, dropout: float) -> Any:
    """Freezes a model and puts a saved adapter on it, to be trained on; its weights are fp32, as add_lora's are.

    Args:
        dropout: in place of the adapter's own.

    Raises:
        ModelError: the adapter was trained on another base, or its file lacks weights of a layer that it names.
    """
    model.requires_grad_(False)
    name = model.name_or_path
    wrapped = load_adapter(model, folder, trainable=True, dropout=dropout)
    note_base(wrapped.peft_config["default"], name)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def merge_into(model: Any) -> Any:
    """Merges an adapter into its 16- or 32-bit base; refuses weights that are not finite.

    A layer that shares its weight with another one (a head tied to the embedding) gets a weight of its own first; the
    merged model's configuration has to say so.

    Raises:
        ModelError: the base is quantized (merging would quantize the adapter too), the merged weights are not finite, or
            PEFT cannot merge the adapter (one with biases, into layers without).
    """
    if quantized_bits(model) is not None:
        raise ModelError(
            "量子化したベースにはアダプターを統合しません（誤差が大きくなります）。ベースを 16bit で読み込み直してください。",
            "an adapter is not merged into a quantized base, which would quantize it too; load the base in 16 bit.",
        )
    part_shared_weights(model)
    try:
        return model.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"このアダプターは統合できません（{error}）。統合せずに、ベースとアダプターのまま使ってください。",
            f"this adapter cannot be merged ({error}); use base and adapter as they are.",
        ) from error


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
    save_adapter_tensors(path, tensors)
    settings.save_pretrained(path)


def save_adapter_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The weights of an adapter's folder, from whole tensors by parameter name."""
    state = {saved_name(name): tensor.contiguous() for name, tensor in tensors.items()}
    save_file(state, path / WEIGHTS, metadata={"format": "pt"})


def saved_name(name: str) -> str:
    """The name of an adapter's parameter in PEFT's files: without the adapter's own name."""
    if name.endswith(".lora_magnitude_vector.default.weight"):
        return name.removesuffix(".default.weight")
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def saved_tokenizer(folder: str) -> str | None:
    """The adapter's folder where a tokenizer was saved with it (ours are), else None."""
    return folder if (Path(folder) / "tokenizer_config.json").is_file() else None
