"""TRL's run files for `trl sft`: SFTConfig, ModelConfig and ScriptArguments in one YAML.

Keys and defaults read in trl/trainer/sft_config.py, trl/trainer/model_config.py and trl/scripts/utils.py of
github.com/huggingface/trl; the rest is transformers' TrainingArguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import Reason
from . import hf
from .datasets import Rows, share_or_rows
from .deepspeed import spread
from .draft import Draft, Part, Row
from .lora_parts import four_bit_details, four_or_eight, full, listed, method, rank, targets, trains_adapter, variants
from .preference import trl as preference
from .rows import (
    CACHE,
    GENERATION,
    LAUNCH,
    LOADING,
    PADDING,
    PREFERENCE,
    SAFE,
    SPEED,
    drop,
    in_part,
    refuse,
    rows,
    take,
    take_whole,
)
from .run_parts import evaluation, report_to, saving
from .training_parts import (
    NOT_USED,
    batch,
    epochs,
    no_warmup_of_transformers,
    optimizer,
    precision,
    schedule,
)
from .values import mapping, number, shown, text, truth, whole, word

MARKS = frozenset(
    [
        "dataset_name",
        "dataset_config",
        "dataset_train_split",
        "dataset_test_split",
        "dataset_text_field",
        "dataset_num_proc",
        "use_peft",
        "max_seq_length",
        "max_length",
        "packing_strategy",
        "completion_only_loss",
        "assistant_only_loss",
        "chat_template_path",
        "lora_modules_to_save",
        "dataset_kwargs",
        "eval_packing",
        "padding_free",
        "simpo_gamma",
        "desirable_weight",
        "precompute_ref_log_probs",
    ]
)


def what_trains(draft: Draft) -> None:
    """use_peft, load_in_4bit, load_in_8bit."""
    bits = four_or_eight(draft)
    if draft.on("use_peft") and draft.read("use_peft", truth):
        given = Reason("use_peft: true", "use_peft: true")
        method(draft, "lora", bits, given)
        draft.convert("use_peft", given, "method")
        return
    full(draft, bits, Reason("use_peft なしは全重みの学習", "without use_peft all weights train"))
    draft.drop("use_peft", NOT_USED)


def data(draft: Draft) -> None:
    """dataset_name, or a list of `datasets`; test_split_size."""
    found = Rows()
    if draft.on("datasets"):
        given = draft.values["datasets"]
        for block in given if isinstance(given, list) else [given]:
            _one({"path": block} if isinstance(block, str) else mapping(block), found)
        found.put(draft, "datasets")
        draft.drop("dataset_name", Reason("datasets が優先されます", "datasets decides"))
    elif draft.on("dataset_name"):
        block = {"path": draft.values["dataset_name"], "name": draft.get("dataset_config")}
        block["split"] = draft.get("dataset_train_split")
        _one({key: item for key, item in block.items() if item is not None}, found)
        found.put(draft, "dataset_name")
    else:
        draft.missing("dataset_name", Reason("学習データの指定がありません", "it names no training data"))
    for key in ("dataset_config", "dataset_train_split"):
        draft.convert(key, Reason("dataset_name とともに読みました", "read with dataset_name"))
    draft.drop(
        "dataset_test_split", Reason("評価データは data.eval で指定します", "evaluation data is named by data.eval")
    )
    if draft.on("test_split_size"):
        share = share_or_rows(draft.read("test_split_size", number), "test_split_size")
        draft.take("test_split_size", "data.eval", share)
    column = draft.get("dataset_text_field")
    if column is not None and text(column) != "text":
        draft.set("data.columns", {"text": text(column)})
        draft.convert("dataset_text_field", Reason("data.columns の text", "text of data.columns"), "data.columns")
    else:
        draft.drop("dataset_text_field", Reason("本ツールが見つけます", "our reader finds it"))
    _length(draft)
    _labels(draft)


def _one(block: Mapping[str, Any], found: Rows) -> None:
    files = block.get("data_files")
    if isinstance(files, Mapping):
        files = files.get("train")
    names = files if isinstance(files, list) else [files] if files else [block.get("path")]
    for name in names:
        found.add(text(name))
    split = str(block.get("split") or "train")
    for part, value in (
        ("split", split if split != "train" else None),
        ("name", block.get("name")),
        ("data_dir", block.get("data_dir")),
    ):
        if value:
            found.remarks.append(
                Reason(
                    f"{part}（{shown(value)}）は指定できません。取得したファイルを data.train に書いてください",
                    f"{part} {shown(value)} cannot be named; download the files and name them in data.train",
                )
            )


def _length(draft: Draft) -> None:
    for key in ("max_length", "max_seq_length"):
        if key in draft.values:
            draft.take(key, "data.max_length", draft.read(key, whole))
    packed = draft.on("packing") and draft.read("packing", truth)
    strategy = word(draft.get("packing_strategy") or "bfd")
    if packed:
        isolated = Reason("まとめた文書は互いに参照しません", "packed documents do not see each other here")
        draft.take("packing", "data.packing", True, isolated if strategy == "wrapped" else None)
        draft.drop(
            "packing_strategy",
            Reason("詰め方は本ツールが選びます", "how rows are packed is ours to choose"),
            differs=strategy == "wrapped",
        )
    else:
        draft.drop("packing", NOT_USED)
        draft.drop("packing_strategy", NOT_USED)
    if word(draft.get("truncation_mode") or "keep_start") != "keep_start":
        draft.refuse("truncation_mode", Reason("長い行は末尾が切り詰められます", "long rows keep their start here"))
    else:
        draft.drop("truncation_mode", Reason("本ツールと同じです", "as here"))


def _labels(draft: Draft) -> None:
    """Which tokens are learnt. Without a word TRL learns all of a conversation, but the completion of a prompt only."""
    answers, everything = None, None
    for key in ("assistant_only_loss", "completion_only_loss"):
        if key not in draft.values:
            continue
        if draft.read(key, truth):
            answers = key
        elif key == "completion_only_loss":
            everything = key
    if answers is not None:
        draft.take(answers, "data.loss_on", "assistant", Reason("loss_on: assistant", "loss_on: assistant"))
    elif everything is not None:
        draft.take(everything, "data.loss_on", "all", Reason("loss_on: all", "loss_on: all"))
    else:
        draft.set(
            "data.loss_on",
            "auto",
            Reason(
                "TRL は messages の会話を全部学習し、prompt/completion では completion だけです。前者と同じにするには all",
                "TRL learns all of a conversation in messages, and the completion only of prompt/completion rows; for "
                "the former write all",
            ),
        )
    for key in ("assistant_only_loss", "completion_only_loss"):
        if key in draft.values and key not in draft.entries:
            draft.drop(key, NOT_USED)


def adapter(draft: Draft) -> None:
    """lora_*."""
    rank(draft, ("lora_r", "lora_alpha", "lora_dropout"), (16, 32, 0.05))
    if draft.on("lora_target_modules"):
        targets(draft, "lora_target_modules")
    else:
        draft.drop("lora_target_modules", NOT_USED)
        if trains_adapter(draft):
            draft.comments["lora.r"] = Reason(
                "lora_target_modules がないので、すべての線形層（TRL ではモデルごとの PEFT の既定）",
                "no lora_target_modules: every linear layer (in TRL PEFT's choice for the model)",
            )
    listed(draft, "lora_target_parameters", "lora.target_parameters")
    listed(draft, "lora_modules_to_save", "lora.modules_to_save")
    variants(draft, "use_rslora", "use_dora")
    four_bit_details(draft, "bnb_4bit_quant_type", "use_bnb_nested_quant")


def tokens(draft: Draft) -> None:
    """eos_token and pad_token of SFTConfig."""
    if draft.on("eos_token"):
        special = {"eos_token": draft.read("eos_token", text)}
        draft.set("model.special_tokens", special)
        draft.convert("eos_token", Reason("special_tokens", "special_tokens"), "model.special_tokens")
    else:
        draft.drop("eos_token", NOT_USED)
    draft.drop("pad_token", PADDING)


def loss(draft: Draft) -> None:
    """loss_type: the cross entropy, however computed, or a loss of preference."""
    if preference(draft):
        return
    if not draft.on("loss_type") or draft.read("loss_type", word) in ("nll", "chunked_nll"):
        draft.drop("loss_type", Reason("交差エントロピーで、本ツールと同じです", "cross entropy, as here"))
    else:
        draft.refuse(
            "loss_type",
            Reason(
                "この損失はありません（教師あり学習の交差エントロピーだけです）",
                "this loss is not there (cross entropy only)",
            ),
        )


def mixed_precision(draft: Draft, key: str, value: Any) -> None:
    """Accelerate's word for bf16 and fp16, where the run itself says neither."""
    name = word(value)
    if name in ("bf16", "fp16") and not (draft.on("bf16") or draft.on("fp16")):
        draft.take(key, "training.runtime.precision", name)
    else:
        draft.drop(key, NOT_USED)


TABLE: dict[str, Row] = {
    **hf.TABLE,
    "model_name_or_path": take("model.name"),
    "chat_template_path": take("model.chat_template"),
    "early_stopping_patience": take_whole("training.runtime.early_stopping_patience"),
    **rows(
        in_part,
        "use_peft load_in_4bit load_in_8bit datasets dataset_name dataset_config dataset_train_split dataset_test_split "
        "test_split_size dataset_text_field max_length max_seq_length packing packing_strategy truncation_mode "
        "assistant_only_loss completion_only_loss lora_r lora_alpha lora_dropout lora_target_modules "
        "lora_target_parameters lora_modules_to_save use_rslora use_dora bnb_4bit_quant_type use_bnb_nested_quant "
        "eos_token pad_token loss_type beta desirable_weight undesirable_weight label_smoothing simpo_gamma cpo_alpha "
        "rpo_alpha ld_alpha loss_weights f_divergence_type use_weighting sync_ref_model reference_free "
        "force_use_ref_model disable_dropout precompute_ref_log_probs precompute_ref_batch_size",
    ),
    "mixed_precision": mixed_precision,
    "trust_remote_code": drop(SAFE),
    **rows(
        drop(CACHE), "dataset_num_proc dataset_batch_size dataset_streaming streaming dataset_kwargs shuffle_dataset"
    ),
    **rows(drop(SPEED), "padding_free pad_to_multiple_of eval_packing bnb_4bit_quant_storage bnb_4bit_compute_dtype"),
    **rows(drop(LOADING), "model_code_revision use_flash_attention_2 lora_task_type"),
    **rows(drop(LAUNCH), "gradient_checkpointing_use_reentrant ignore_bias_buffers env compute_environment"),
    **rows(drop(LAUNCH), "fsdp_version downcast_bf16 main_training_function rdzv_backend same_network tpu_* use_cpu"),
    **rows(drop(GENERATION), "vllm_* use_vllm temperature top_p top_k max_new_tokens"),
    **rows(drop(PREFERENCE), "ref_model* precompute_ref_* label_pad_token_id"),
    "model_init_kwargs": refuse(
        "モデルの読み込みの追加引数は指定できません", "further arguments of loading cannot be given"
    ),
    **rows(
        refuse("強化学習はまだありません", "reinforcement learning is not there yet"),
        "reward_* num_generations teacher_* max_prompt_length max_completion_length num_ppo_epochs",
    ),
}

PARTS: tuple[Part, ...] = (
    what_trains,
    data,
    epochs,
    batch,
    schedule(no_warmup_of_transformers),
    optimizer,
    precision,
    adapter,
    tokens,
    loss,
    hf.revision,
    saving(lambda draft: None),
    evaluation,
    report_to,
    spread,
)
DEFAULTS: dict[str, Any] = hf.DEFAULTS | {
    "data.max_length": 1024,
    "training.learning_rate": 2e-5,
    "training.logging_steps": 10,
}
