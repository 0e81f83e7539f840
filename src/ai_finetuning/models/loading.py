"""From a name to a causal language model: dtype, attention, 8/4 bit, safetensors only, no foreign code.

Everything that can be known from the configuration is checked before weights are read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available
from typing_extensions import Unpack

from ..errors import ModelError, Reason, ToolkitError
from ..messages import notice, warn
from ..system.collector import as_usual
from ..system.gpu import chosen_device, dtype_name, get_available_device, sixteen_bit
from .activation_checkpointing import enable_activation_checkpointing
from .adapter_folder import recorded_base
from .half_precision import without_overflow
from .options import validate_options
from .placement import DeviceMap, spread
from .quantized import Quantization, find_method, forbid_cpu_packing, plain_parts, validate_backend, validate_quantized
from .sizes import validate_sizes
from .source import ModelSource, described, find_model, not_loaded, validate_safetensors, weight_file_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTIONS = ("flash_attention_2", "sdpa", "eager")


@dataclass(frozen=True)
class LoadPlan:
    """What was decided before the weights are read."""

    source: ModelSource
    device: torch.device
    dtype: torch.dtype
    quantization: Quantization | None
    device_map: Any
    announce: bool

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.source.name


class LoadOptions(TypedDict, total=False):
    """How weights are loaded, beside their dtype, device and attention."""

    load_in_8bit: bool
    """bitsandbytes weights, on CPUs too; off by default."""
    load_in_4bit: bool
    """The same in 4 bit."""
    quantization: Quantization | None
    """A method with its settings, instead of load_in_8bit and load_in_4bit."""
    device_map: DeviceMap | None
    """Devices by module name, instead of `device`."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass; off by default."""
    trust_remote_code: bool
    """Run code from the model's repository; off by default."""
    announce: bool
    """Report which attention is used (default: on); off for loads that only verify something."""


def load_causal_lm(
    name: str | ModelSource,
    *,
    dtype: torch.dtype | str | None = "auto",
    device: torch.device | None = None,
    attention: str = "auto",
    **options: Unpack[LoadOptions],
) -> PreTrainedModel:
    """Loads a causal language model in eval mode.

    Args:
        name: hub id, catalog alias, `embedded:NAME` or local folder; or a model that find_model() has found.
        dtype: of the weights; "auto" (or None) takes what the machine does well (see `resolve_dtype`).
        device: where the model goes; None takes the best one there is.
        attention: "auto" (flash-attention 2, SDPA, eager in this order) or one of `ATTENTIONS` to start from.
        **options: the keys of `LoadOptions`.

    Raises:
        ModelError: the model cannot be loaded as asked. HubError: the hub does not give it.
        InputNotFoundError: a local path that is not there.
    """
    validate_options(options, LoadOptions, "load_causal_lm")
    as_usual()
    expected = options.get("quantization") or _quantization_of(
        options.get("load_in_8bit", False), options.get("load_in_4bit", False)
    )
    device_map = options.get("device_map")
    trusted = options.get("trust_remote_code", False)
    source = name if isinstance(name, ModelSource) else find_model(name, trust_remote_code=trusted)
    validate_safetensors(source)
    validate_filled(source)
    target_device = chosen_device(device) or get_available_device()
    plan = LoadPlan(
        source=source,
        device=target_device,
        dtype=without_overflow(
            resolve_dtype(dtype, target_device),
            str(source.config.get("model_type", "")),
            asked=dtype not in (None, "auto"),
        ),
        quantization=expected,
        device_map=device_map if device_map is not None else {"": target_device},
        announce=options.get("announce", True),
    )
    extra = _quantization(plan, source.config)
    model = _with_attention(plan, attention, extra)
    if expected is not None:
        validate_quantized(model, expected.method.bits, source.name)
    forbid_cpu_packing(model)
    if isinstance(device_map, Mapping) and len(device_map) > 1:
        spread(model, device_map)
    if options.get("gradient_checkpointing"):
        enable_activation_checkpointing(model)
    # peft writes this into adapters: a name that other machines know, not a folder of this one.
    model.name_or_path = model.config.name_or_path = source.recorded
    model.train(False)  # `eval()` has no types in transformers
    return model


def validate_filled(source: ModelSource) -> None:
    """Refuses a folder whose configuration, with what transformers adds to it, describes far more than its weights: what
    a file lacks is filled at random, and keys that config.json lacks are those of the largest of a family.

    Raises:
        ModelError: with the sizes.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        return
    with described(source.name):
        config: Any = AutoConfig.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=source.remote_code
        )
        values = config.get_text_config().to_dict()
    validate_sizes(source.name, values, weight_file_bytes(folder))


def _quantization_of(load_in_8bit: bool, load_in_4bit: bool) -> Quantization | None:
    if load_in_8bit and load_in_4bit:
        raise ModelError(
            "load_in_8bit と load_in_4bit が両方 True です。どちらか一方だけにしてください。",
            "load_in_8bit and load_in_4bit are both True; choose one of them.",
        )
    return Quantization(find_method(8 if load_in_8bit else 4)) if load_in_8bit or load_in_4bit else None


def _quantization(plan: LoadPlan, config: Mapping[str, Any]) -> dict[str, object]:
    """The quantization argument of from_pretrained; a checkpoint that is quantized already brings its own."""
    stored = config.get("quantization_config")
    if stored is not None:
        validate_backend(str(stored.get("quant_method")))
    if plan.quantization is None:
        return {}
    if stored is None:
        return {"quantization_config": plan.quantization.config(plan.device, plan.dtype)}
    bits = plan.quantization.method.bits
    if not stored.get(f"load_in_{bits}bit"):
        raise ModelError(
            f"{plan.name} はすでに別の方式 ({stored.get('quant_method')}) で量子化されているため、{bits}bit では読み込めません。量子化前のモデルを指定してください。",
            f"{plan.name} is quantized already ({stored.get('quant_method')}), so it cannot be loaded in {bits} "
            "bit. Name the model before quantization.",
        )
    return {}


def has_bitsandbytes() -> bool:
    """Whether the package that quantizes on loading is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def bits_as_trained(adapter: str, source: ModelSource, bits: int | None) -> int | None:
    """Bits to load an adapter's base in: what the user says, else what it had in training, with one line.

    Args:
        adapter: the adapter's folder.
        source: its base.
        bits: 4, 8, or 16 for no quantization; None asks the adapter.

    Returns:
        4, 8, or None for weights as they are stored.
    """
    trained = recorded_base(adapter).bits
    if source.quantization or (bits is None and trained is None):
        return None if bits == 16 else bits
    if bits is None and trained is not None:
        if not has_bitsandbytes():
            warn(
                f"アダプター {adapter} は {trained}bit のベースで学習されましたが、この PC には bitsandbytes がないため、量子化していないベースで読み込みます。"
                "学習時とは回答が少し変わることがあります（pip install bitsandbytes で学習時と同じになります）。",
                f"the adapter {adapter} was trained on a base in {trained} bit, and this machine has no bitsandbytes: loading "
                "an unquantized base. Answers may differ a little from those in training (pip install bitsandbytes).",
            )
            return None
        notice(
            f"アダプター {adapter} を学習したときと同じく、ベースを {trained}bit で読み込みます（16bit で読み込むには --bits 16）。",
            f"loading the base in {trained} bit, as the adapter {adapter} was trained on it (--bits 16 loads it in 16 bit).",
        )
        return trained
    if bits != trained and (bits, trained) != (16, None):
        had = f"{trained}bit" if trained is not None else "16bit"
        notice(
            f"アダプター {adapter} は {had} のベースで学習されました。指定どおり {bits}bit で読み込みます（回答が少し変わることがあります）。",
            f"the adapter {adapter} was trained on a base in {had.replace('bit', ' bit')}; loading it in {bits} bit, as asked "
            "(answers may differ a little).",
        )
    return None if bits == 16 else bits


def resolve_dtype(requested: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The dtype of the weights on this device.

    "auto" or None: bfloat16 on GPUs and CPUs that compute in it, float16 on older GPUs, float32 on other CPUs.
    float16 on a CPU is several times slower than either, so it becomes what "auto" gives, with one line.
    """
    if isinstance(requested, str) and requested != "auto" and requested not in DTYPES:
        raise ModelError(
            f"dtype は {requested!r} です。auto, {', '.join(DTYPES)} のいずれかにしてください。",
            f"dtype is {requested!r}; it must be auto, {', '.join(DTYPES)}.",
        )
    automatic = sixteen_bit(device) or torch.float32
    if requested is None or requested == "auto":
        return automatic
    expected = DTYPES[requested] if isinstance(requested, str) else requested
    if expected is torch.float16 and device.type == "cpu":
        notice(
            f"CPU では float16 は遅いため、{dtype_name(automatic)} で読み込みます。",
            f"float16 is slow on a CPU; loading in {dtype_name(automatic)} instead.",
        )
        return automatic
    return expected


def _with_attention(plan: LoadPlan, attention: str, extra: Mapping[str, object]) -> PreTrainedModel:
    """Loads with the first attention implementation that machine and model accept, and says which in one line."""
    if attention != "auto" and attention not in ATTENTIONS:
        raise ModelError(
            f"attention は {attention!r} です。auto, {', '.join(ATTENTIONS)} のいずれかにしてください。",
            f"attention is {attention!r}; it must be auto, {', '.join(ATTENTIONS)}.",
        )
    order = ATTENTIONS if attention == "auto" else ATTENTIONS[ATTENTIONS.index(attention) :]
    refusals: dict[str, Reason] = {}
    for implementation in order:
        reason = _why_no_flash(plan) if implementation == "flash_attention_2" else None
        if reason is not None:
            refusals[implementation] = reason
            continue
        try:
            model = _from_pretrained(plan, implementation, extra)
        except (ImportError, ValueError) as error:
            if isinstance(error, ToolkitError) or implementation == "eager" or not _about_attention(error):
                raise
            refusals[implementation] = _refusal(error)
            continue
        if plan.announce:
            _say_attention(implementation, refusals)
        return model
    raise AssertionError("eager attention always loads or raises")


def _about_attention(error: Exception) -> bool:
    text = str(error).lower().partition("model type should be one of")[0]  # a list of all families, some named by it
    return "attention" in text or "flash" in text


def _refusal(error: Exception) -> Reason:
    """The library's reason, which is English only: in Japanese the message leaves it out."""
    first = str(error).split(". ")[0].splitlines()[0][:120]
    return Reason(f"このモデルでは使えません（{type(error).__name__}）", first)


def _why_no_flash(plan: LoadPlan) -> Reason | None:
    if plan.device.type != "cuda":
        return Reason("GPU 専用", f"needs a GPU, not {plan.device.type}")
    if not is_flash_attn_2_available():
        return Reason("インストールされていません", "not installed")
    if plan.dtype is torch.float32:
        return Reason("16 bit のデータ型が必要です", "needs a 16-bit dtype")
    return None


def _say_attention(chosen: str, refusals: Mapping[str, Reason]) -> None:
    why = Reason.joined([Reason(f"{name}: {r.ja}", f"{name}: {r.en}") for name, r in refusals.items()])
    notice(
        f"アテンション: {chosen}" + (f"（{why.ja}）" if refusals else ""),
        f"Attention: {chosen}" + (f" ({why.en})" if refusals else ""),
    )


def _from_pretrained(plan: LoadPlan, implementation: str, extra: Mapping[str, object]) -> PreTrainedModel:
    quiet_progress()
    try:
        # With output_loading_info it returns a pair, which its types do not say.
        model, info = cast(
            "tuple[PreTrainedModel, dict[str, Any]]",
            AutoModelForCausalLM.from_pretrained(
                plan.source.path,
                dtype=plan.dtype,
                attn_implementation=implementation,
                device_map=plan.device_map,
                use_safetensors=True,
                trust_remote_code=plan.source.remote_code,
                local_files_only=plan.source.local_only,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **extra,
            ),
        )
    except (OSError, RuntimeError) as error:
        if isinstance(error, ToolkitError | torch.OutOfMemoryError):
            raise
        raise not_loaded(plan.source.path, error) from error
    except ValueError as error:
        if _about_attention(error):
            raise
        raise not_loaded(plan.source.path, error) from error
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        if type(error).__name__ != "SafetensorError":
            raise not_loaded(plan.source.path, error) from error
        raise ModelError(
            f"{plan.name} の重みファイルが壊れています ({error})。ダウンロードまたは保存をやり直してください。",
            f"{plan.name}: a weight file is damaged ({error}). Download or save it again.",
        ) from error
    _refuse_encoder(plan.name, model.config)
    _refuse_unfilled(plan.name, model, info)
    return model


def _refuse_encoder(name: str, config: Any) -> None:
    """Refuses an encoder that transformers loads as a language model all the same: what it reads behind a token decides what
    it says there.

    Raises:
        ModelError: with the setting by which a decoder of this family is one.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    encodes = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", None) is False
    if encodes and not getattr(config, "is_encoder_decoder", False) and not getattr(config, "causal", False):
        raise ModelError(
            f"{name} は前後を同時に読むエンコーダー（{config.model_type}）で、文章を生成できません。デコーダーとして学習されたモデルなら "
            "config.json の is_decoder を true にしてください。",
            f"{name} is an encoder ({config.model_type}), which reads a text in both directions and cannot generate one; a "
            "model that was trained as a decoder needs is_decoder: true in its config.json.",
        )


def _refuse_unfilled(name: str, model: Any, info: Mapping[str, Any]) -> None:
    """Refuses a language model that its files do not fill; says so where they hold what it has no place for, and where
    what they lack is no matrix of its layers, embedding or head (a bias, a norm, a part for images).

    Raises:
        ModelError: a matrix would be filled at random; one has other sizes than config.json says.
    """
    ways_ja = "config.json と重みが揃ったモデルを、もう一度ダウンロードまたは保存してください"
    ways_en = "download or save the model again, with a config.json that belongs to its weights"
    apart = sorted(info.get("mismatched_keys", ()))
    if apart:
        key, there, expected = apart[0]
        raise ModelError(
            f"{name} の重み {len(apart)} 個の形が config.json と違います（例: {key} はファイルでは {_shape(there)}、config.json では {_shape(expected)}）。{ways_ja}。",
            f"{name}: {len(apart)} weights have other sizes than its config.json says (for example {key}: {_shape(there)} in "
            f"the files, {_shape(expected)} by config.json); {ways_en}.",
        )
    missing, unused = sorted(info.get("missing_keys", ())), sorted(info.get("unexpected_keys", ()))
    parts = (model.get_decoder(), model.get_output_embeddings())
    own = {number for part in parts for number in _ids(part)}
    holes = [key for key, weight in model.named_parameters() if key in set(missing) and id(weight) in own]
    matrices = [key for key in holes if model.get_parameter(key).dim() > 1]
    if matrices:
        there_ja = f"ファイルには代わりに {unused[0]} などがあります。" if unused else ""
        there_en = f"; its files hold {unused[0]} and others instead" if unused else ""
        if len(matrices) == 1 and id(model.get_parameter(matrices[0])) in _ids(model.get_output_embeddings()):
            there_ja += "出力層が埋め込みと同じモデルなら、config.json の tie_word_embeddings を true にしてください。"
            there_en += "; a model whose head is its embedding has tie_word_embeddings: true in its config.json"
        raise ModelError(
            f"{name} のファイルに無い重みが {len(missing)} 個あり（例: {matrices[0]}）、乱数で埋まってしまうため読み込みません。{there_ja}{ways_ja}。",
            f"{name}: {len(missing)} weights are not in its files (for example {matrices[0]}) and would be filled at "
            f"random{there_en}; {ways_en}.",
        )
    if missing:
        warn(
            f"{name} のファイルに無い重みが {len(missing)} 個あり、初期値のままです (例: {missing[0]})。",
            f"{name}: {len(missing)} weights are not in its files and are as they begin (for example {missing[0]}).",
        )
    if unused:
        warn(
            f"{name} のファイルにある重み {len(unused)} 個は、config.json の形のモデルに入る場所がないため使いません (例: {unused[0]})。",
            f"{name}: {len(unused)} weights of its files have no place in the model that config.json describes and are not "
            f"used (for example {unused[0]}).",
        )


def _ids(module: nn.Module | None) -> set[int]:
    return set() if module is None else {id(weight) for weight in module.parameters()}


def _shape(sizes: Any) -> str:
    return "x".join(map(str, sizes))


def quiet_progress() -> None:
    """Switches the loading bars off: they stand between our lines, and in a log each of their steps would be a line."""
    from transformers.utils import logging

    switch_off: Callable[[], None] = logging.disable_progress_bar
    switch_off()


def weight_fingerprint(model: nn.Module, samples: int = 16) -> dict[str, tuple[float, ...]]:
    """A few values of every parameter, to tell later whether weights were changed (cheap, not a hash)."""
    marks = {}
    for name, parameter in model.named_parameters():
        values: list[float] = []
        for part in plain_parts(parameter):
            flat = part.detach().reshape(-1)
            step = max(1, flat.numel() // samples)
            values += flat[::step][:samples].float().cpu().tolist()
        marks[name] = tuple(values)
    return marks
