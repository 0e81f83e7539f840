"""Keys of transformers' TrainingArguments, which LLaMA-Factory and TRL inherit and Axolotl partly repeats.

Defaults: src/transformers/training_args.py of github.com/huggingface/transformers.
"""

from __future__ import annotations

from typing import Any

from ...errors import Reason
from .draft import Draft, Row
from .rows import (
    CACHE,
    DISPLAY,
    EVALUATION,
    KERNELS,
    LAUNCH,
    SPEED,
    TRACKER,
    UPLOAD,
    drop,
    in_part,
    refuse,
    rows,
    take,
    take_number,
    take_truth,
    take_whole,
)
from .training_parts import NOT_USED
from .values import Unfit, is_off, number, shown, text, truth, whole, word


def resume(draft: Draft, key: str, value: Any) -> None:
    """`true` is the newest checkpoint; a folder holds checkpoints of the other tool."""
    if is_off(value):
        draft.drop(key, NOT_USED)
    elif str(value).lower() == "true":
        newest = Reason("最新のチェックポイント", "the newest checkpoint")
        draft.take(key, "training.checkpoint.resume_from_checkpoint", "auto", newest)
    else:
        draft.drop(
            key,
            Reason(
                "他のツールのチェックポイントからは再開できません。最初から学習します",
                "no run resumes from another tool's checkpoint: it starts from the beginning",
            ),
            differs=True,
        )


def overwrite(draft: Draft, key: str, value: Any) -> None:
    """An old folder may be written over."""
    if truth(value):
        draft.take(
            key,
            "training.checkpoint.restart",
            True,
            Reason("前の実行のフォルダーに書き込みます", "the folder of an earlier run is written over"),
        )
    else:
        draft.drop(key, Reason("本ツールの既定です", "our default"))


def logging_steps(draft: Draft, key: str, value: Any) -> None:
    """Below 1 it is a share of all steps."""
    steps = number(value)
    if steps >= 1:
        draft.take(key, "training.logging_steps", whole(steps))
    else:
        draft.drop(key, DISPLAY)


def attention(draft: Draft, key: str, value: Any) -> None:
    """eager and sdpa are ours; faster ones are chosen where model and device allow."""
    name = word(value) if not isinstance(value, bool) else ("eager" if key == "eager_attention" and value else "")
    if name in ("eager", "sdpa"):
        draft.take(key, "model.attention", name)
    else:
        draft.drop(key, KERNELS)


def dtype(draft: Draft, key: str, value: Any) -> None:
    """Type of the frozen weights."""
    name = word(value)
    known = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32", "auto": "auto"}
    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
    ours = known.get(name) or short.get(name)
    if ours is None:
        draft.refuse(key, Reason(f"型 {name} はありません", f"there is no type {name}"))
    else:
        draft.take(key, "model.dtype", ours)


def checkpointing(draft: Draft, key: str, value: Any) -> None:
    """true or false; `offload` and `unsloth` only say where the activations wait."""
    try:
        draft.take(key, "training.gradient_checkpointing", truth(value))
    except Unfit:
        elsewhere = Reason("退避先はメモリーだけの違いです", "where activations wait changes memory only")
        draft.take(key, "training.gradient_checkpointing", True, elsewhere)


def workers(draft: Draft, key: str, value: Any) -> None:
    """Processes of their launcher: the number of GPUs, which here is said by --gpus."""
    count = whole(value)
    draft.drop(
        key,
        Reason(
            f"GPU の数です。勾配蓄積は --gpus {draft.gpus} で計算しました",
            f"the number of GPUs; accumulation was counted for --gpus {draft.gpus}",
        ),
        differs=count != draft.gpus,
    )


def revision(draft: Draft) -> None:
    """A branch or commit of the model."""
    for key in ("model_revision", "revision_of_model", "base_model_revision"):
        if not draft.on(key) or draft.read(key, text) == "main":
            draft.drop(key, NOT_USED)
        else:
            draft.drop(
                key,
                Reason(
                    f"最新の版が使われます。{shown(draft.values[key])} を使うには、取得したフォルダーを model.name に書いてください",
                    f"the newest revision is taken; for {shown(draft.values[key])} download it and name the folder in "
                    "model.name",
                ),
                differs=True,
            )


DEFAULTS: dict[str, Any] = {
    "training.batch_size": 8,
    "training.num_epochs": 3,
    "training.schedule.name": "linear",
    "training.optimizer.name": "adamw",
    "training.logging_steps": 500,
    "training.save_steps": 500,
}

TABLE: dict[str, Row] = {
    "learning_rate": take_number("training.learning_rate"),
    "weight_decay": take_number("training.optimizer.weight_decay"),
    "max_grad_norm": take_number("training.max_grad_norm"),
    "seed": take_whole("training.runtime.seed"),
    "output_dir": take("training.output_dir"),
    "logging_steps": logging_steps,
    "overwrite_output_dir": overwrite,
    "resume_from_checkpoint": resume,
    "save_only_model": take_truth("training.save_only_model"),
    "ddp_timeout": take_number("parallel.timeout_seconds"),
    "group_by_length": take_truth("data.group_by_length"),
    "gradient_checkpointing": checkpointing,
    **rows(workers, "ray_num_workers num_processes world_size"),
    "attn_implementation": attention,
    "torch_dtype": dtype,
    "dtype": dtype,
    **rows(
        in_part,
        "per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps lr_scheduler_type "
        "lr_scheduler_kwargs warmup_steps warmup_ratio optim adam_beta1 adam_beta2 adam_epsilon bf16 fp16 save_strategy "
        "save_steps save_total_limit load_best_model_at_end metric_for_best_model greater_is_better eval_strategy "
        "evaluation_strategy eval_steps report_to deepspeed deepspeed_config fsdp fsdp_config model_revision tensor_parallel_size "
        "tensor_model_parallel_size pipeline_parallel_size pipeline_model_parallel_size expert_parallel_size "
        "expert_model_parallel_size context_parallel_size sequence_parallel_size sequence_parallel "
        "virtual_pipeline_model_parallel_size",
    ),
    "optim_args": refuse(
        "オプティマイザーの追加引数は指定できません", "further arguments of the optimizer cannot be given"
    ),
    "optim_target_modules": refuse(
        "一部の層だけのオプティマイザーはありません", "an optimizer for some layers only is not there"
    ),
    "neftune_noise_alpha": refuse("NEFTune はありません", "NEFTune is not there"),
    "label_smoothing_factor": refuse("ラベル平滑化はありません", "label smoothing is not there"),
    **rows(
        drop(DISPLAY), "logging_* log_* disable_tqdm run_name include_num_input_tokens_seen include_tokens_per_second"
    ),
    **rows(drop(DISPLAY), "include_for_metrics project skip_memory_metrics debug profiler_* verbose"),
    **rows(drop(TRACKER), "trackio_*"),
    **rows(drop(SPEED), "fsdp_*"),
    **rows(drop(UPLOAD), "push_to_hub* hub_* push_dataset_to_hub hf_use_auth_token use_auth_token"),
    **rows(drop(EVALUATION), "per_device_eval_batch_size per_gpu_eval_batch_size eval_* do_eval prediction_loss_only"),
    **rows(drop(EVALUATION), "batch_eval_metrics bf16_full_eval fp16_full_eval"),
    **rows(drop(SPEED), "dataloader_* tf32 torch_compile* auto_find_batch_size torch_empty_cache_steps use_cache"),
    **rows(drop(SPEED), "gradient_checkpointing_kwargs activation_checkpointing* activation_offloading gc_steps"),
    **rows(
        drop(SPEED), "average_tokens_across_devices half_precision_backend fp16_opt_level fp16_backend jit_mode_eval"
    ),
    **rows(drop(KERNELS), "use_liger* liger_* use_ipex tp_size"),
    **rows(drop(LAUNCH), "local_rank ddp ddp_* accelerator_config parallelism_config use_cpu no_cuda use_mps_device"),
    **rows(drop(LAUNCH), "num_machines machine_rank distributed_type main_process_port"),
    **rows(drop(LAUNCH), "device device_map enable_jit_checkpoint"),
    **rows(drop(CACHE), "remove_unused_columns label_names length_column_name ignore_data_skip full_determinism"),
    **rows(drop(CACHE), "data_seed save_safetensors save_on_each_node past_index train_sampling_strategy"),
    **rows(drop(CACHE), "restore_callback_states_from_checkpoint"),
}
