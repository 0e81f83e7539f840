"""LLaMA-Factory's run files.

Keys and defaults read in src/llamafactory/hparams (model_args.py, data_args.py, finetuning_args.py, training_args.py)
of github.com/hiyouga/LLaMA-Factory; what these inherit in transformers' TrainingArguments.
"""

from __future__ import annotations

from typing import Any

from ...errors import Reason
from ..yaml_text import parse_plain
from . import hf
from .beside import find_beside
from .deepspeed import spread
from .draft import Draft, Part, Row
from .llamafactory_data import data
from .lora_parts import (
    adapter_folder,
    bits_of,
    four_bit_details,
    listed,
    method,
    plus_ratio,
    rank,
    targets,
    trains_adapter,
    variants,
)
from .preference import llamafactory as preference
from .rows import (
    CACHE,
    DISPLAY,
    EVALUATION,
    GENERATION,
    KERNELS,
    LAUNCH,
    LOADING,
    PREFERENCE,
    SAFE,
    SPEED,
    TRACKER,
    drop,
    in_part,
    only_if,
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
from .values import names, shown, text, truth, word

# What only this tool's files have.
MARKS = frozenset(
    [
        "stage",
        "finetuning_type",
        "template",
        "cutoff_len",
        "do_train",
        "dataset_dir",
        "lora_rank",
        "lora_target",
        "quantization_bit",
        "infer_backend",
        "export_dir",
        "preprocessing_num_workers",
        "overwrite_cache",
        "plot_loss",
        "max_samples",
        "dataset",
        "adapter_name_or_path",
    ]
)
STAGES = {
    "rm": ("報酬モデルの学習はありません", "reward models are not trained here"),
    "ppo": ("強化学習（PPO）はありません", "reinforcement learning (PPO) is not there"),
}


def what_trains(draft: Draft) -> None:
    """stage, finetuning_type, quantization_bit: the method; and whether the file is a training run at all."""
    stage = word(draft.get("stage") or "sft")
    if stage in STAGES:
        draft.refuse("stage", Reason(*STAGES[stage]))
    elif stage in ("sft", "pt", "dpo", "kto"):  # the last two: preference.py
        plain = Reason("プレーンテキストの継続事前学習", "continued pretraining on plain text")
        supervised = Reason("教師あり学習", "supervised training")
        draft.convert("stage", plain if stage == "pt" else supervised, "data.train")
    else:
        draft.refuse("stage", Reason(f"stage {stage} はありません", f"there is no stage {stage}"))
    kind = word(draft.get("finetuning_type") or "lora")
    if kind not in ("lora", "full"):
        draft.refuse(
            "finetuning_type",
            Reason(f"学習方法 {kind} はありません（full, lora）", f"there is no method {kind} (full, lora)"),
        )
    else:
        bits = draft.read("quantization_bit", bits_of) if draft.on("quantization_bit") else None
        given = Reason(f"finetuning_type: {kind}", f"finetuning_type: {kind}")
        if bits is not None and kind == "full":
            draft.refuse(
                "quantization_bit",
                Reason("量子化した重みは全部は学習できません", "quantized weights cannot be trained in full"),
            )
        else:
            draft.convert(
                "quantization_bit", Reason(f"method: qlora（{bits} bit）", f"method: qlora ({bits} bit)"), "method"
            )
        method(draft, kind, bits, given)
        draft.convert("finetuning_type", given, "method")
    if not draft.on("quantization_bit"):
        draft.drop("quantization_bit", NOT_USED)
    _is_a_run(draft)


def _is_a_run(draft: Draft) -> None:
    lacking = Reason("学習の実行ではありません（do_train がありません）", "it is no training run (do_train is not set)")
    if draft.on("do_train"):
        draft.drop("do_train", Reason("aift train が学習します", "aift train trains"))
    elif "do_train" in draft.values:
        draft.refuse("do_train", lacking)
    elif not draft.on("dataset"):
        draft.missing(
            "dataset",
            Reason(
                "学習データの指定がありません（学習の実行ではありません）", "it names no training data: no training run"
            ),
        )


def adapter(draft: Draft) -> None:
    """lora_*, additional_target, adapter_name_or_path."""
    adapter_folder(draft, "adapter_name_or_path")
    rank(draft, ("lora_rank", "lora_alpha", "lora_dropout"), (8, None, 0.0))
    if trains_adapter(draft) and "lora.adapter" not in draft.settings and not draft.on("lora_target"):
        draft.set("lora.target_modules", "all-linear", Reason("相手の既定値（all）", "their default (all)"))
    targets(draft, "lora_target")
    listed(draft, "additional_target", "lora.modules_to_save")
    variants(draft, "use_rslora", "use_dora")
    plus_ratio(draft)


def muon(draft: Draft) -> None:
    """use_muon wins over optim."""
    if draft.on("use_muon") and draft.read("use_muon", truth):
        draft.take("use_muon", "training.optimizer.name", "muon", Reason("optimizer: muon", "optimizer: muon"))
    else:
        draft.drop("use_muon", NOT_USED)


def tokens(draft: Draft) -> None:
    """add_tokens, add_special_tokens and new_special_tokens_config (tokens with descriptions): new tokens."""
    added: list[str] = []
    for key in ("add_tokens", "add_special_tokens"):
        if draft.on(key):
            added += draft.read(key, names)
            draft.convert(key, Reason("新しいトークン", "new tokens"), "model.extra_tokens")
        else:
            draft.drop(key, NOT_USED)
    key = "new_special_tokens_config"
    described = _described_tokens(draft, key) if draft.on(key) else []
    if described is None:
        draft.refuse(key, Reason("ファイルが見つかりません", "the file is not there"))
    elif described:
        draft.convert(
            key,
            Reason("新しいトークン。説明文からの初期化はしません", "new tokens; descriptions do not initialize them"),
            "model.extra_tokens",
            differs=True,
        )
    else:
        draft.drop(key, NOT_USED)
    added += described or []
    if added:
        draft.set("model.extra_tokens", list(dict.fromkeys(added)))


def _described_tokens(draft: Draft, key: str) -> list[str] | None:
    path = find_beside(draft.folder, draft.read(key, text))
    values = parse_plain(path.read_text(encoding="utf-8-sig"), str(path)) if path is not None else None
    return [str(token) for token in values] if isinstance(values, dict) else None


def checkpointing(draft: Draft) -> None:
    """disable_gradient_checkpointing says the opposite of ours."""
    key, path = "disable_gradient_checkpointing", "training.gradient_checkpointing"
    if draft.on(key):
        draft.take(key, path, not draft.read(key, truth), Reason("逆の意味です", "it says the opposite"))
    else:
        draft.drop(key, Reason("必要なときだけ使います", "it is used where memory needs it"))


TABLE: dict[str, Row] = {
    **hf.TABLE,
    "model_name_or_path": take("model.name"),
    "cutoff_len": take_whole("data.max_length"),
    "max_samples": take_whole("data.max_samples"),
    "default_system": take("data.system_prompt"),
    "early_stopping_steps": take_whole("training.runtime.early_stopping_patience"),
    **rows(
        in_part, "stage finetuning_type do_train quantization_bit dataset eval_dataset val_size dataset_dir template"
    ),
    **rows(in_part, "packing neat_packing train_on_prompt adapter_name_or_path lora_rank lora_alpha lora_dropout"),
    **rows(in_part, "lora_target additional_target use_rslora use_dora loraplus_lr_ratio use_muon add_tokens"),
    **rows(in_part, "add_special_tokens disable_gradient_checkpointing pure_bf16"),
    **rows(drop(CACHE), "overwrite_cache preprocessing_batch_size preprocessing_num_workers tokenized_path"),
    **rows(drop(CACHE), "data_shared_file_system cache_dir streaming buffer_size media_dir hf_hub_token ms_hub_token"),
    **rows(drop(CACHE), "om_hub_token"),
    **rows(drop(LOADING), "use_fast_tokenizer low_cpu_mem_usage offload_folder print_param_status adapter_folder"),
    **rows(drop(LOADING), "resize_vocab tool_format use_kv_cache"),
    **rows(
        drop(KERNELS),
        "flash_attn use_unsloth use_unsloth_gc enable_liger_kernel use_v1_kernels use_reentrant_gc upcast_layernorm "
        "upcast_lmhead_output use_kt kt_* use_cce use_cut_cross_entropy *_fusion moe_grouped_gemm "
        "moe_token_dispatcher_type recompute_* use_distributed_optimizer overlap_* mixed_precision bridge_* "
        "export_hf_on_finish use_packed_sequences megatron_* calculate_per_token_loss use_mca",
    ),
    **rows(drop(SPEED), "fp8 fp8_* pad_to_multiple_of padding_* *_padding quantization_device_map"),
    **rows(drop(DISPLAY), "plot_loss include_effective_tokens_per_second compute_accuracy include_mfu *_mfu"),
    **rows(drop(TRACKER), "use_swanlab swanlab_* ray_run_name"),
    **rows(drop(LAUNCH), "ray_* resources_per_worker placement_strategy"),
    **rows(
        drop(GENERATION),
        "infer_* vllm_* sglang_* do_sample temperature top_p top_k num_beams max_new_tokens max_length",
    ),
    **rows(drop(GENERATION), "repetition_penalty length_penalty skip_special_tokens generation_*"),
    **rows(drop(EVALUATION), "eval_on_each_dataset eval_num_beams"),
    **rows(drop(PREFERENCE), "pref_* dpo_* kto_* simpo_* ppo_* ref_model* reward_model* ld_alpha bco_* bm_*"),
    **rows(
        drop(Reason("使われる方法のときだけの設定です", "it belongs to a method that is not used")),
        "freeze_trainable_* freeze_extra_modules oft_* module_dropout galore_* apollo_* badam_* asft_alpha eaft_* "
        "pissa_iter pissa_convert loraplus_lr_embedding quantization_method_kwargs",
    ),
    "trust_remote_code": drop(SAFE),
    "freeze_vision_tower": drop(Reason("画像の部分は学習しません", "the part for pictures does not train here")),
    "freeze_multi_modal_projector": drop(
        Reason("画像の部分は学習しません", "the part for pictures does not train here")
    ),
    "freeze_language_model": refuse("言語モデルを凍結する学習はありません", "the language model cannot be frozen here"),
    "mask_history": refuse("最後の応答だけを学習する指定はありません", "learning the last answer only is not there"),
    "enable_thinking": drop(Reason("テンプレートの既定に従います", "the template's default is used"), differs=True),
    "preserve_thinking": drop(Reason("テンプレートの既定に従います", "the template's default is used"), differs=True),
    "disable_shuffling": drop(Reason("行の順序は seed で混ぜます", "rows are shuffled by the seed"), differs=True),
    "moe_aux_loss_coef": drop(
        Reason("ルーターの補助損失は加えません", "no auxiliary loss of the router is added"), differs=True
    ),
    "quantization_type": in_part,
    "double_quantization": in_part,
    "mix_strategy": in_part,
    "ignore_pad_token_for_loss": only_if(
        True,
        Reason("パディングは学習しません", "padding is never learnt"),
        Reason("パディングは学習できません", "padding is never learnt here"),
    ),
    "model_revision": in_part,
    "quantization_method": in_part,
    "init_special_tokens": drop(
        Reason("新しいトークンは本ツールの方法で初期化します", "new tokens are initialized our way"), differs=True
    ),
    "new_special_tokens_config": in_part,
    "freeze_original_embeddings": refuse(
        "埋め込みの一部だけの学習はありません", "part of an embedding cannot be frozen"
    ),
    "interleave_probs": refuse("データの混合比は指定できません", "the share of each data set cannot be chosen"),
    "rope_scaling": refuse("位置の伸長（RoPE scaling）はありません", "RoPE scaling is not there"),
    "shift_attn": refuse("S^2-Attn はありません", "S^2-Attn is not there"),
    "mixture_of_depths": refuse("Mixture-of-Depths はありません", "mixture of depths is not there"),
    "train_from_scratch": refuse(
        "既存の構成の重みを初期化した学習はありません", "training a given architecture from scratch is not there"
    ),
    "create_new_adapter": refuse(
        "アダプターに新しいアダプターを重ねる学習はありません", "a new adapter on top of another is not there"
    ),
    "pissa_init": refuse("PiSSA の初期化はありません", "the initialization PiSSA is not there"),
    "use_galore": refuse("オプティマイザー GaLore はありません", "the optimizer GaLore is not there"),
    "use_apollo": refuse("オプティマイザー APOLLO はありません", "the optimizer APOLLO is not there"),
    "use_badam": refuse("オプティマイザー BAdam はありません", "the optimizer BAdam is not there"),
    "use_adam_mini": refuse("オプティマイザー Adam-mini はありません", "the optimizer Adam-mini is not there"),
    "use_llama_pro": refuse("LLaMA Pro（ブロックの追加）はありません", "LLaMA Pro (added blocks) is not there"),
    **rows(
        refuse(
            "この損失はありません（教師あり学習の交差エントロピーだけです）",
            "this loss is not there (cross entropy only)",
        ),
        "use_*_loss",
    ),
    **rows(
        refuse("画像・動画・音声の学習はありません", "training on pictures, video or sound is not there"),
        "image_* video_* audio_* crop_to_patches use_audio_in_video",
    ),
    **rows(
        refuse(
            "書き出しの指定です（学習の実行ではありません）。aift merge や aift export を使ってください",
            "it exports a model and is no training run: aift merge, aift export",
        ),
        "export_*",
    ),
    **rows(
        refuse("予測・評価だけの実行です（学習の実行ではありません）", "it predicts or scores and is no training run"),
        "do_predict predict_with_generate",
    ),
}


def details(draft: Draft) -> None:
    """What is checked against the one way in which ours does it."""
    four_bit_details(draft, "quantization_type", "double_quantization")
    if draft.on("quantization_method") and draft.read("quantization_method", word) not in ("bnb", "bitsandbytes"):
        draft.refuse(
            "quantization_method",
            Reason(
                f"量子化 {shown(draft.values['quantization_method'])} はありません（bitsandbytes だけです）",
                f"there is no quantization {shown(draft.values['quantization_method'])} (bitsandbytes only)",
            ),
        )
    else:
        draft.drop("quantization_method", Reason("bitsandbytes で、本ツールと同じです", "bitsandbytes, as here"))
    if draft.on("mix_strategy") and draft.read("mix_strategy", word) != "concat":
        draft.refuse(
            "mix_strategy", Reason("データの混合比は指定できません", "the share of each data set cannot be chosen")
        )
    else:
        draft.drop("mix_strategy", Reason("続けて並べます。本ツールと同じです", "data sets follow each other, as here"))


PARTS: tuple[Part, ...] = (
    what_trains,
    data,
    epochs,
    batch,
    schedule(no_warmup_of_transformers),
    optimizer,
    muon,
    precision,
    adapter,
    preference,
    tokens,
    checkpointing,
    details,
    hf.revision,
    saving(lambda draft: None),
    evaluation,
    report_to,
    spread,
)
# hparams/data_args.py; the rest is TrainingArguments'.
DEFAULTS: dict[str, Any] = hf.DEFAULTS | {"data.max_length": 2048, "training.learning_rate": 5e-5}
