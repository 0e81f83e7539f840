"""Batch, epochs, schedule, optimizer, precision: what several keys of theirs say together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import Reason
from .draft import Draft
from .values import is_off, mapping, number, shown, truth, whole, word

MICRO = ("per_device_train_batch_size", "micro_batch_size", "per_gpu_train_batch_size")
EPOCHS = ("num_train_epochs", "num_epochs", "epochs")
SCHEDULERS = ("lr_scheduler_type", "lr_scheduler")
OPTIMIZERS = ("optim", "optimizer")
# Ranks that share one replica of the model: accumulation counts replicas, not GPUs.
SPLITS = (
    ("tensor_parallel_size", "tensor_model_parallel_size"),
    ("pipeline_parallel_size", "pipeline_model_parallel_size"),
    ("context_parallel_size", "sequence_parallel_degree", "sequence_parallel_size"),
)
NOT_USED = Reason("使っていません", "it is switched off")

# Their schedule -> ours. `constant` of transformers has no warm-up, `constant_with_warmup` has.
SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
    "warmup_stable_decay": "wsd",
}
# Their optimizer -> ours: the same update, in another program or with its states paged.
OPTIMIZER_NAMES = {
    **dict.fromkeys(
        ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla"), "adamw"
    ),
    **dict.fromkeys(
        ("adamw_torch_npu_fused", "adamw_anyprecision", "optimi_adamw", "paged_adamw_32bit", "paged_adamw"), "adamw"
    ),
    **dict.fromkeys(
        ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit", "ao_adamw_8bit"), "adamw_8bit"
    ),
    "muon": "muon",
}


def first(draft: Draft, keys: tuple[str, ...]) -> str | None:
    """The one of several names of a key that their file uses."""
    return next((key for key in keys if key in draft.values), None)


def split_size(draft: Draft, keys: tuple[str, ...]) -> int:
    """How many ranks share something; 1 where nothing is said."""
    key = first(draft, keys)
    return 1 if key is None or is_off(draft.values[key]) else max(1, draft.read(key, whole))


def replicas(draft: Draft) -> int:
    """How many ranks of their run see different rows."""
    shared = 1
    for keys in SPLITS:
        shared *= split_size(draft, keys)
    nested = draft.get("context_parallel")
    if isinstance(nested, Mapping):
        shared *= max(1, whole(nested.get("size") or 1))
    return max(1, draft.gpus // shared)


def batch(draft: Draft) -> None:
    """Rows of a micro-batch and accumulation; theirs counts micro-batches of one device, ours those of all."""
    micro = first(draft, MICRO)
    rows = None
    if micro is not None:
        rows = draft.read(micro, whole)
        draft.take(micro, "training.batch_size", rows)
    key, steps = "gradient_accumulation_steps", 1
    if draft.on("batch_size") and rows is not None and not draft.on(key):
        total = draft.read("batch_size", whole)
        key, steps = "batch_size", max(1, total // rows)
    elif draft.on(key):
        steps = draft.read(key, whole)
        draft.drop("batch_size", NOT_USED)
    ranks = replicas(draft)
    path = "training.gradient_accumulation_steps"
    counted = Reason(
        f"1 デバイスあたり {steps} × {ranks}（--gpus {draft.gpus}）。本ツールでは全デバイスを合わせた回数です",
        f"{steps} per device x {ranks} (--gpus {draft.gpus}); ours counts all devices",
    )
    draft.set(path, steps * ranks, counted)
    draft.convert(key, counted, path)
    if key == "batch_size":
        draft.drop("gradient_accumulation_steps", NOT_USED)


def epochs(draft: Draft) -> None:
    """Passes over the data, or a number of steps that wins over them."""
    limit = draft.read("max_steps", whole) if draft.on("max_steps") else -1
    if limit > 0:
        draft.take("max_steps", "training.schedule.max_steps", limit)
    else:
        draft.drop("max_steps", NOT_USED)
    key = first(draft, EPOCHS)
    if key is None:
        return
    passes = draft.read(key, number)
    if passes == int(passes) and passes >= 1:
        draft.take(key, "training.num_epochs", int(passes))
    elif limit > 0:
        draft.drop(key, Reason("max_steps が優先されます", "max_steps decides"))
    else:
        draft.refuse(
            key,
            Reason(
                f"{shown(passes)} は整数ではありません。回数で区切るには max_steps を書いてください",
                f"{shown(passes)} is not a whole number of passes; give max_steps instead",
            ),
        )


def schedule(no_warmup: Callable[[Draft], None]) -> Callable[[Draft], None]:
    """Shape of the learning rate and its warm-up.

    Args:
        no_warmup: sets what their tool does where the file says nothing of a warm-up.
    """

    def part(draft: Draft) -> None:
        key = first(draft, SCHEDULERS)
        name = "" if key is None else draft.read(key, word)
        options = draft.read("lr_scheduler_kwargs", mapping) if draft.on("lr_scheduler_kwargs") else {}
        if key is not None:
            _shape(draft, key, name, options)
        draft.drop(
            "lr_scheduler_kwargs",
            NOT_USED if not options else Reason("lr_scheduler に含めました", "read with the schedule"),
        )
        _warmup(draft, name, no_warmup)

    return part


def _shape(draft: Draft, key: str, name: str, options: dict[str, Any]) -> None:
    ours = SCHEDULES.get(name)
    lacking = Reason(
        f"学習率スケジュール {name} はありません（linear, cosine, constant, wsd）",
        f"there is no schedule {name} (linear, cosine, constant, wsd)",
    )
    if ours is None:
        draft.refuse(key, lacking)
        return
    renamed = None if ours == name else Reason(f"{name} は {ours} です", f"{name} is {ours} here")
    draft.take(key, "training.schedule.name", ours, renamed)
    if name == "cosine_with_min_lr" or (ours == "cosine" and options):
        _floor(draft, key, options, lacking)
    elif ours == "wsd":
        _decay(draft, key, options)
    elif options:
        draft.refuse("lr_scheduler_kwargs", lacking)


def _floor(draft: Draft, key: str, options: dict[str, Any], lacking: Reason) -> None:
    """The end of a cosine: a share of the learning rate, or a learning rate."""
    known = {"min_lr", "min_lr_rate", "num_cycles"}
    rate = draft.get("learning_rate")
    if not options.keys() <= known or number(options.get("num_cycles", 0.5)) != 0.5:
        draft.refuse(key, lacking)
    elif "min_lr_rate" in options:
        draft.set("training.schedule.min_lr_ratio", number(options["min_lr_rate"]))
    elif "min_lr" in options and rate is not None:
        share = Reason("min_lr ÷ learning_rate", "min_lr over learning_rate")
        draft.set("training.schedule.min_lr_ratio", number(options["min_lr"]) / number(rate), share)


def _decay(draft: Draft, key: str, options: dict[str, Any]) -> None:
    """warmup_stable_decay counts steps of decay; ours takes their share of the steps after the warm-up."""
    steps = whole(draft.get("max_steps") or 0)
    warm = number(draft.get("warmup_steps") or 0)
    if "num_decay_steps" not in options or steps <= 0 or warm >= steps:
        draft.refuse(
            key,
            Reason(
                "wsd の割合を計算できません。max_steps と lr_scheduler_kwargs.num_decay_steps が必要です",
                "the share of the decay needs max_steps and lr_scheduler_kwargs.num_decay_steps",
            ),
        )
        return
    draft.set(
        "training.schedule.decay_ratio",
        min(1.0, number(options["num_decay_steps"]) / (steps - warm)),
        Reason("num_decay_steps ÷ ウォームアップ後のステップ数", "num_decay_steps over the steps after the warm-up"),
    )
    if "min_lr_ratio" in options:
        draft.set("training.schedule.min_lr_ratio", number(options["min_lr_ratio"]))


def _warmup(draft: Draft, name: str, no_warmup: Callable[[Draft], None]) -> None:
    steps = draft.read("warmup_steps", number) if "warmup_steps" in draft.values else None
    ratio = draft.read("warmup_ratio", number) if "warmup_ratio" in draft.values else None
    if name == "constant":
        none = Reason(
            "constant にはウォームアップがありません（constant_with_warmup にはあります）",
            "constant has no warm-up there (constant_with_warmup has)",
        )
        draft.set("training.warmup_steps", 0, none)
        draft.drop("warmup_steps", none)
        draft.drop("warmup_ratio", none)
    elif steps is not None and steps >= 1:
        draft.take("warmup_steps", "training.warmup_steps", whole(steps))
        draft.drop("warmup_ratio", Reason("warmup_steps が優先されます", "warmup_steps decides"))
    elif steps:
        share = Reason("1 未満の warmup_steps は割合です", "warmup_steps below 1 is a ratio")
        draft.take("warmup_steps", "training.schedule.warmup_ratio", steps, share)
        draft.drop("warmup_ratio", Reason("warmup_steps が優先されます", "warmup_steps decides"))
    elif ratio:
        draft.take("warmup_ratio", "training.schedule.warmup_ratio", ratio)
        draft.drop("warmup_steps", NOT_USED)
    elif steps == 0 or ratio == 0:
        nothing = Reason("ウォームアップなし", "no warm-up")
        draft.set("training.warmup_steps", 0, nothing)
        draft.convert("warmup_steps", nothing, "training.warmup_steps")
        draft.convert("warmup_ratio", nothing, "training.warmup_steps")
    else:
        no_warmup(draft)


def no_warmup_of_transformers(draft: Draft) -> None:
    """transformers' TrainingArguments: warmup_steps 0."""
    draft.set("training.warmup_steps", 0, Reason("transformers の既定値", "default of transformers"))


def optimizer(draft: Draft) -> None:
    """The optimizer's name and its moments."""
    key = first(draft, OPTIMIZERS)
    if key is not None:
        name = draft.read(key, word)
        ours = OPTIMIZER_NAMES.get(name)
        if ours is None:
            draft.refuse(
                key,
                Reason(
                    f"オプティマイザー {name} はありません（adamw, adamw_8bit, muon）",
                    f"there is no optimizer {name} (adamw, adamw_8bit, muon)",
                ),
            )
        else:
            renamed = None if ours == name else Reason(f"{name} は {ours} です", f"{name} is {ours} here")
            draft.take(key, "training.optimizer.name", ours, renamed)
    betas = [draft.get("adam_beta1"), draft.get("adam_beta2")]
    if betas != [None, None]:
        defaults = (0.9, 0.999)
        pair = [number(given) if given is not None else usual for given, usual in zip(betas, defaults, strict=True)]
        both = Reason("adam_beta1 と adam_beta2 の組", "the pair of adam_beta1 and adam_beta2")
        draft.set("training.optimizer.betas", pair, both)
        draft.convert("adam_beta1", both, "training.optimizer.betas")
        draft.convert("adam_beta2", both, "training.optimizer.betas")
    for name in ("adam_epsilon", "adam_eps"):
        if name in draft.values:
            draft.take(name, "training.optimizer.eps", draft.read(name, number))


BF16 = ("bf16", "bfloat16", "pure_bf16")
FP16 = ("fp16", "float16")


def precision(draft: Draft) -> None:
    """bf16 true, false or `auto`, fp16, fp32; false means nothing but `not this one`."""
    path = "training.runtime.precision"
    present = [key for key in (*BF16, *FP16, "float32", "fp32") if key in draft.values]
    chosen: str | None = None
    for key in present:
        value = draft.values[key]
        if is_off(value):
            draft.drop(key, Reason("false はこの型を使わないという意味だけです", "false only says `not this type`"))
            continue
        if word(value) in ("auto", "full"):
            ours = "auto" if word(value) == "auto" else "bf16"
        else:
            truth(value)
            ours = "bf16" if key in BF16 else "fp16" if key in FP16 else "fp32"
        if chosen is None:
            chosen = ours
        draft.convert(key, _why(key, ours), path, differs=key == "pure_bf16")
    if chosen is not None:
        draft.set(path, chosen, _why(present[0], chosen) if "pure_bf16" in present else None)


def _why(key: str, ours: str) -> Reason:
    if key == "pure_bf16":
        return Reason(
            "bf16。学習する重みの更新は fp32 で計算します",
            "bf16; here the weights that train are updated in fp32",
        )
    return Reason(f"precision: {ours}", f"precision: {ours}")
