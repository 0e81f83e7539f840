"""Axolotl's run files.

Keys and defaults read in src/axolotl/utils/schemas (config.py, training.py, peft.py, model.py) and
src/axolotl/core/builders/base.py of github.com/axolotl-ai-cloud/axolotl.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import Reason
from . import hf
from .axolotl_data import data
from .deepspeed import spread
from .draft import Draft, Part, Row, Verdict
from .lora_parts import (
    adapter_folder,
    four_or_eight,
    full,
    listed,
    method,
    plus_ratio,
    rank,
    targets,
    trains_adapter,
    variants,
)
from .preference import axolotl as preference
from .prompts import TEMPLATE_ENDS
from .rows import (
    CACHE,
    DISPLAY,
    EVALUATION,
    GENERATION,
    KERNELS,
    LAUNCH,
    LOADING,
    PADDING,
    PREFERENCE,
    SAFE,
    SPEED,
    TRACKER,
    drop,
    in_part,
    refuse,
    rows,
    take,
    take_truth,
    take_whole,
)
from .run_parts import evaluation, saving
from .training_parts import NOT_USED, batch, epochs, optimizer, precision, schedule
from .values import is_off, mapping, names, number, shown, text, truth, whole, word

MARKS = frozenset(
    [
        "base_model",
        "sequence_len",
        "micro_batch_size",
        "sample_packing",
        "val_set_size",
        "dataset_prepared_path",
        "adapter",
        "lora_target_linear",
        "datasets",
        "pretraining_dataset",
        "load_in_8bit",
        "load_in_4bit",
        "lora_model_dir",
        "wandb_project",
        "evals_per_epoch",
        "saves_per_epoch",
        "pad_to_sequence_len",
        "special_tokens",
        "lr_scheduler",
        "base_model_config",
    ]
)
# Plugins that compute the same faster, log, or place weights.
FAST_PLUGINS = ("cut_cross_entropy", "liger", "kernels", "spectrum_kernels", "lm_eval", "swanlab", "expert_parallel")
SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")
# Tokens that a tokenizer has without a word: the defaults of transformers' Llama classes, and the one token of GPT-2's
# vocabulary and its kin (tokenizer_config.json of GPT-2, GPT-J, Pythia, RedPajama-INCITE, Falcon 7B and 40B, Phi 1 and 2).
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_GPT2_KIN = re.compile(r"(?:^|/)(?:gpt2|gpt-j|pythia|redpajama|falcon-\d+b|phi-[12](?:\D|$))", re.IGNORECASE)
ENDS_ITSELF = Reason(
    "テンプレートが応答の後に置くトークンは、指定しなくても学習され、生成を止めます",
    "the token that the template puts behind an answer is learnt and stops generation without a word",
)
_LANGUAGE = re.compile(r"^\^?model\.language_model(\.layers)?\.?\.?\*?$|^\^?language_model\.\*$")


def what_trains(draft: Draft) -> None:
    """adapter, load_in_4bit, load_in_8bit, peft: the method."""
    bits = four_or_eight(draft) or _bits_of_peft(draft)
    kind = draft.read("adapter", word) if draft.on("adapter") else ""
    if kind not in ("", "lora", "qlora"):
        draft.refuse(
            "adapter",
            Reason(f"アダプター {kind} はありません（lora, qlora）", f"there is no adapter {kind} (lora, qlora)"),
        )
        return
    if kind == "":
        full(draft, bits, Reason("adapter なしは全重みの学習", "no adapter: all weights train"))
        draft.drop("adapter", NOT_USED)
        return
    given = Reason(f"adapter: {kind}", f"adapter: {kind}")
    if kind == "qlora" and bits is None:
        bits = 4
    if bits == 8:
        given = Reason("8 bit のベースに LoRA", "LoRA on a base in 8 bit")
    method(draft, "lora", bits, given)
    draft.convert("adapter", given, "method")


def _bits_of_peft(draft: Draft) -> int | None:
    """`peft: {backend, weight_dtype}` says in other words what load_in_4bit and load_in_8bit do."""
    options = draft.read("peft", mapping) if draft.on("peft") else {}
    kind = word(options.get("weight_dtype", ""))
    bits = {"nf4": 4, "int4": 4, "int8": 8}.get(kind)
    if options and (bits is None or not options.keys() <= {"backend", "weight_dtype", "group_size"}):
        draft.refuse(
            "peft",
            Reason(
                f"peft の {', '.join(options)} に当たるものはありません",
                f"there is nothing like {', '.join(options)} of peft",
            ),
        )
        return None
    if bits is None:
        draft.drop("peft", NOT_USED)
        return None
    differs = kind == "int4" or word(options.get("backend", "bnb")) != "bnb"
    draft.convert(
        "peft", Reason(f"bitsandbytes の {bits} bit", f"{bits} bit of bitsandbytes"), "method", differs=differs
    )
    return bits


def adapter(draft: Draft) -> None:
    """lora_*."""
    adapter_folder(draft, "lora_model_dir")
    rank(draft, ("lora_r", "lora_alpha", "lora_dropout"), (None, 16, 0.0))
    if trains_adapter(draft) and "lora.adapter" not in draft.settings and "lora_alpha" not in draft.values:
        draft.missing("lora_alpha", Reason("アダプターの倍率がありません", "the adapter's alpha is missing"))
    everywhere = draft.on("lora_target_linear") and draft.read("lora_target_linear", truth)
    if everywhere and trains_adapter(draft) and "lora.adapter" not in draft.settings:
        all_of_them = Reason("すべての線形層（出力層を除く）", "every linear layer but the head")
        draft.take("lora_target_linear", "lora.target_modules", "all-linear", all_of_them)
        draft.drop("lora_target_modules", Reason("lora_target_linear に含まれます", "lora_target_linear has them"))
    else:
        draft.drop("lora_target_linear", NOT_USED)
        targets(draft, "lora_target_modules")
    listed(draft, "lora_target_parameters", "lora.target_parameters")
    somewhere = {"lora.adapter", "lora.target_modules", "lora.target_parameters"} & draft.settings.keys()
    if trains_adapter(draft) and not somewhere and not draft.on("lora_target_modules"):
        draft.missing(
            "lora_target_modules",
            Reason(
                "アダプターを付ける層がありません（lora_target_linear か lora_target_modules）",
                "it names no layers for the adapter (lora_target_linear, lora_target_modules)",
            ),
        )
    listed(draft, "lora_modules_to_save", "lora.modules_to_save")
    variants(draft, "peft_use_rslora", "peft_use_dora")
    plus_ratio(draft)


def tokens(draft: Draft) -> None:
    """special_tokens, tokens, eot_tokens (docs/decisions/0081)."""
    special: dict[str, str] = {}
    extra: list[str] = []
    for key in ("special_tokens", "tokens"):
        if not draft.on(key):
            draft.drop(key, NOT_USED)
        elif isinstance(draft.get(key), list):
            extra += draft.read(key, names)
            draft.convert(key, Reason("新しいトークン", "new tokens"), "model.extra_tokens")
        else:
            parts = draft.read(key, mapping)
            extra += names(parts.pop("additional_special_tokens", []))
            special |= _special(draft, key, parts)
    if special:
        draft.set("model.special_tokens", special)
    if extra:
        draft.set("model.extra_tokens", list(dict.fromkeys(extra)))
    ends = draft.read("eot_tokens", names) if draft.on("eot_tokens") else []
    if len(ends) > 1:
        draft.take("eot_tokens", "model.turn_end_tokens", ends)
    else:
        draft.drop("eot_tokens", ENDS_ITSELF if ends else NOT_USED)


def _special(draft: Draft, key: str, parts: dict[str, Any]) -> dict[str, str]:
    """The parts that a run of ours has to be told."""
    unknown = [name for name in parts if name not in SPECIALS]
    if unknown:
        draft.refuse(key, Reason(f"{', '.join(unknown)} は指定できません", f"{', '.join(unknown)} cannot be given"))
        return {}
    left, reason = {name: text(token) for name, token in parts.items()}, NOT_USED
    if left.pop("pad_token", None) is not None:
        reason = PADDING
    if left.get("eos_token") == TEMPLATE_ENDS.get(str(draft.get("chat_template", "")).lower(), "") and _chats(draft):
        del left["eos_token"]
        reason = ENDS_ITSELF
    if left.items() <= _own_tokens(draft).items():
        left, reason = (
            {},
            reason if reason is PADDING else Reason("トークナイザー自身のものです", "the tokenizer's own"),
        )
    if left:
        draft.say(key, Verdict.TAKEN, None, "model.special_tokens")
    else:
        draft.drop(key, reason)
    return left


def _own_tokens(draft: Draft) -> dict[str, str]:
    if "Llama" in str(draft.get("tokenizer_type", "")):
        return _LLAMA
    return _GPT2 if _GPT2_KIN.search(str(draft.get("base_model", ""))) else {}


def _chats(draft: Draft) -> bool:
    """Whether the rows are rendered by `chat_template`, and not by a prompt of their own or as plain text."""
    entry = draft.entries.get("chat_template")
    return entry is not None and entry.verdict is not Verdict.DROPPED


def shape(draft: Draft) -> None:
    """Axolotl's own keys of the cosine."""
    key = "cosine_min_lr_ratio"
    floor = draft.read(key, number) if draft.on(key) else 0.0
    if floor and draft.settings.get("training.schedule.name", "cosine") == "cosine":
        draft.take(key, "training.schedule.min_lr_ratio", floor)
    else:
        draft.drop(key, NOT_USED)


def warmup(draft: Draft) -> None:
    """Without a word Axolotl warms up for 3 % of the steps, at most 100 (core/builders/base.py)."""
    why = Reason("相手の既定（全ステップの 3 %、100 まで）", "their default (3 % of the steps, at most 100)")
    steps = draft.settings.get("training.schedule.max_steps")
    if steps is not None:
        draft.set("training.warmup_steps", min(int(0.03 * steps), 100), why)
    else:
        draft.set("training.schedule.warmup_ratio", 0.03, why)


def checkpoints(draft: Draft) -> None:
    """Without a word Axolotl saves after every epoch."""
    draft.set("training.saves_per_epoch", 1, Reason("相手の既定（エポックごと）", "their default (after every epoch)"))


def trackers(draft: Draft) -> None:
    """use_wandb, wandb_project, use_mlflow, use_tensorboard."""
    wanted = []
    for name, keys in (
        ("tensorboard", ("use_tensorboard",)),
        ("wandb", ("use_wandb", "wandb_project")),
        ("mlflow", ("use_mlflow", "mlflow_tracking_uri")),
    ):
        off = keys[0] in draft.values and is_off(draft.values[keys[0]])
        off = off or (name == "wandb" and str(draft.get("wandb_mode")).lower() == "disabled")
        used = [key for key in keys if draft.on(key)]
        if used and not off:
            wanted.append(name)
            for key in used:
                draft.convert(key, Reason(f"report_to: {name}", f"report_to: {name}"), "training.runtime.report_to")
        for key in keys:
            if key not in used or off:
                draft.drop(key, NOT_USED)
    if wanted:
        draft.set("training.runtime.report_to", wanted)


def plugins(draft: Draft) -> None:
    """Plugins that change speed only are dropped; the others are refused by name."""
    if not draft.on("plugins"):
        draft.drop("plugins", NOT_USED)
        return
    given = draft.read("plugins", names)
    others = [name for name in given if not any(fast in name.lower() for fast in FAST_PLUGINS)]
    if others:
        draft.refuse(
            "plugins",
            Reason(
                f"プラグイン {', '.join(others)} に当たるものはありません",
                f"there is nothing like the plugin {', '.join(others)}",
            ),
        )
    else:
        draft.drop("plugins", KERNELS)


def frozen(draft: Draft) -> None:
    """unfrozen_parameters: some of the weights train."""
    key = "unfrozen_parameters"
    if not draft.on(key):
        draft.drop(key, NOT_USED)
    elif trains_adapter(draft):
        draft.drop(key, Reason("アダプターだけが学習します", "only the adapter trains"))
    elif any(_LANGUAGE.match(name.replace("\\", "")) for name in draft.read(key, names)):
        draft.drop(key, Reason("言語モデルの部分は全部学習します", "the whole language model trains"))
    else:
        draft.refuse(key, Reason("一部の重みだけの学習はありません", "training some of the weights is not there"))


def quantized_base(draft: Draft) -> None:
    """Bases that are quantized already, and details of bitsandbytes."""
    key = "bnb_config_kwargs"
    if draft.on(key):
        details = draft.read(key, mapping)
        kind = word(details.get("bnb_4bit_quant_type", "nf4"))
        double = details.get("bnb_4bit_use_double_quant", True)
        if kind != "nf4":
            draft.refuse(key, Reason("4 bit は NF4 だけです", "4 bit is NF4 here"))
        else:
            same = Reason("NF4 と二重量子化で、本ツールと同じです", "NF4 with double quantization, as here")
            other = Reason(
                "本ツールは量子化定数も量子化します（二重量子化）", "here the constants are quantized as well"
            )
            draft.drop(key, same if truth(double) else other, differs=not truth(double))
    else:
        draft.drop(key, NOT_USED)
    key = "model_quantization_config"
    if draft.on(key):
        kwargs = draft.get("model_quantization_config_kwargs")
        if isinstance(kwargs, dict) and kwargs.get("dequantize"):
            draft.drop(key, Reason("重みは 16 bit に戻して学習します", "the weights are turned to 16 bit for training"))
        else:
            draft.refuse(
                key,
                Reason(
                    f"{shown(draft.values[key])} で量子化したベースは学習できません",
                    f"a base quantized by {shown(draft.values[key])} cannot be trained",
                ),
            )
    else:
        draft.drop(key, NOT_USED)
    draft.drop("model_quantization_config_kwargs", NOT_USED)


def model_class(draft: Draft, key: str, value: Any) -> None:
    """A class of transformers; the model's config.json names it, and only language models train."""
    name = text(value)
    if re.search(r"SequenceClassification|TokenClassification|QuestionAnswering|MaskedLM|Seq2Seq", name):
        draft.refuse(
            key, Reason(f"{name} は文章を生成するモデルではありません", f"{name} is no model that generates text")
        )
    else:
        draft.drop(key, LOADING)


def same_as_model(draft: Draft, key: str, value: Any) -> None:
    """Another repository for configuration or tokenizer."""
    if text(value) == str(draft.get("base_model", "")):
        draft.drop(key, LOADING)
    else:
        draft.refuse(
            key,
            Reason(
                f"モデルとは別のもの（{shown(value)}）は指定できません。1 つのフォルダーにまとめてください",
                f"another one than the model's ({shown(value)}) cannot be named; put them into one folder",
            ),
        )


def router_loss(draft: Draft, key: str, value: Any) -> None:
    """Overrides of config.json: the router's auxiliary loss is left out, others are refused."""
    overrides = mapping(value)
    left = {name: item for name, item in overrides.items() if name not in ("output_router_logits", "use_cache")}
    if left:
        draft.refuse(
            key,
            Reason(
                f"config.json の変更（{', '.join(left)}）は指定できません",
                f"changes of config.json ({', '.join(left)}) cannot be given",
            ),
        )
    else:
        draft.drop(
            key,
            Reason("ルーターの補助損失は加えません", "no auxiliary loss of the router is added"),
            differs="output_router_logits" in overrides,
        )


def early_stopping(draft: Draft, key: str, value: Any) -> None:
    """Needs evaluations."""
    if is_off(value):
        draft.drop(key, NOT_USED)
    else:
        draft.take(key, "training.runtime.early_stopping_patience", whole(value))


TABLE: dict[str, Row] = {
    **hf.TABLE,
    "base_model": take("model.name"),
    "sequence_len": take_whole("data.max_length"),
    "sample_packing": take_truth("data.packing"),
    "default_system_message": take("data.system_prompt"),
    "early_stopping_patience": early_stopping,
    "model_type": model_class,
    "type_of_model": model_class,
    "base_model_config": same_as_model,
    "tokenizer_config": same_as_model,
    "model_config": router_loss,
    "overrides_of_model_config": router_loss,
    "auto_resume_from_checkpoints": hf.resume,
    **rows(
        in_part,
        "adapter load_in_4bit load_in_8bit datasets dataset pretraining_dataset test_datasets val_set_size "
        "chat_template chat_template_jinja excess_length_strategy train_on_inputs micro_batch_size batch_size num_epochs "
        "lr_scheduler optimizer adam_eps bfloat16 float16 float32 saves_per_epoch evals_per_epoch lora_model_dir lora_r "
        "lora_alpha lora_dropout lora_target_linear lora_target_modules lora_target_parameters lora_modules_to_save "
        "peft_use_rslora peft_use_dora loraplus_lr_ratio special_tokens tokens eot_tokens cosine_min_lr_ratio use_wandb "
        "wandb_project use_mlflow mlflow_tracking_uri use_tensorboard plugins unfrozen_parameters bnb_config_kwargs "
        "model_quantization_config model_quantization_config_kwargs revision_of_model fsdp_version dp_shard_size "
        "dp_replicate_size sequence_parallel_degree context_parapllel_size",
    ),
    "trust_remote_code": drop(SAFE),
    **rows(drop(LOADING), "tokenizer_* cls_model_config is_*_derived_model low_cpu_mem_usage experimental_* strict"),
    **rows(
        drop(LOADING), "embeddings_skip_upcast mean_resizing_embeddings shrink_embeddings resize_token_embeddings_to_*"
    ),
    **rows(
        drop(LOADING),
        "base_model_ignore_patterns lora_fan_in_fan_out lora_on_cpu qlora_sharded_model_loading peft_autocast_adapter_dtype",
    ),
    **rows(drop(LOADING), "llama4_linearized_experts freeze_mm_modules fix_untrained_tokens full_finetune"),
    **rows(
        drop(KERNELS),
        "flash_attention flash_attn_* sdp_attention xformers_attention flex_attention flex_attn_* sage_attention "
        "flash_optimum lora_*_kernel lora_kernels use_kernels use_scattermoe use_sonicmoe experts_implementation "
        "fused_attn_kernel cut_cross_entropy unsloth_* tiled_mlp* chunked_cross_entropy* gemma4_hybrid_attn_impl "
        "use_dsv4_kernels dsv4_* moe_kernels* *_hybrid_attn_impl pretrain_multipack_attn",
    ),
    "eager_attention": hf.attention,
    "context_parallel": in_part,
    "quantize_moe_experts": drop(
        Reason(
            "エキスパートは 16 bit のままです。メモリーだけの違いです", "experts stay in 16 bit; only memory differs"
        )
    ),
    "nvfp4_merge_aware": drop(GENERATION),
    **rows(drop(SPEED), "fp8 fp8_* eval_sample_packing pad_to_sequence_len sample_packing_* multipack_real_batches"),
    **rows(drop(SPEED), "batch_flattening pretrain_multipack_* pretraining_sample_concatenation streaming*"),
    **rows(drop(SPEED), "max_packed_sequence_len total_* max_memory gpu_memory_limit bf16_full expert_parallel_*"),
    **rows(drop(SPEED), "heads_k_stride ring_attn_func torchdistx_path"),
    **rows(drop(CACHE), "dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory"),
    **rows(drop(CACHE), "skip_prepare_dataset is_preprocess preprocess_iterable num_dataset_shards_to_save"),
    **rows(drop(CACHE), "shuffle_before_merging_datasets eval_sequence_len"),
    **rows(drop(DISPLAY), "loss_watchdog_* axolotl_config_path save_first_step dynamic_checkpoint gradio_*"),
    **rows(drop(TRACKER), "wandb_* mlflow_* hf_mlflow_* use_comet comet_* use_swanlab swanlab_* use_trackio"),
    **rows(drop(TRACKER), "use_otel_metrics otel_*"),
    **rows(drop(LAUNCH), "use_ray ray_* resources_per_worker launcher*"),
    **rows(drop(EVALUATION), "eval_* do_causal_lm_eval do_bench_eval bench_* lm_eval_*"),
    **rows(
        drop(PREFERENCE),
        "trl vllm rl_beta dpo_* orpo_alpha rpo_alpha simpo_gamma cpo_alpha kto_* center_rewards_coefficient "
        "max_prompt_len num_labels gdpo* ebft*",
    ),
    **rows(
        drop(Reason("使われる方法のときだけの設定です", "it belongs to a method that is not used")),
        "lisa_layers_attribute relora_* jagged_restart_* gptq_* eaft_* loraplus_lr_embedding kd_* diffusion_* "
        "adam_beta3 adam_epsilon2 pose_* lr_div_factor eta_min",
    ),
    "shuffle_merged_datasets": drop(Reason("行の順序は seed で混ぜます", "rows are shuffled by the seed")),
    "curriculum_sampling": drop(Reason("行の順序は seed で混ぜます", "rows are shuffled by the seed"), differs=True),
    "dataset_exact_deduplication": drop(
        Reason("同じ行を取り除きません", "rows that stand there twice are not removed"), differs=True
    ),
    "min_sample_len": drop(Reason("短い行を除く指定はありません", "short rows are not left out"), differs=True),
    "lr_quadratic_warmup": drop(Reason("ウォームアップは直線です", "the warm-up is linear"), differs=True),
    "rl": in_part,
    "reward_model": refuse("報酬モデルの学習はありません", "reward models are not trained here"),
    "process_reward_model": refuse("報酬モデルの学習はありません", "reward models are not trained here"),
    "qat": refuse("量子化を考慮した学習（QAT）はありません", "quantization-aware training is not there"),
    "quantization": drop(Reason("学習後の量子化は aift quantize で行います", "quantizing afterwards is aift quantize")),
    "gptq": refuse("GPTQ のベースは学習できません", "a base in GPTQ cannot be trained"),
    "relora": refuse("ReLoRA はありません", "ReLoRA is not there"),
    "lisa_n_layers": refuse("LISA はありません", "LISA is not there"),
    "lisa_step_interval": refuse("LISA はありません", "LISA is not there"),
    "peft": in_part,
    **rows(
        refuse("アダプターのこの指定はありません", "this option of adapters is not there"),
        "peft_layers_to_transform peft_layers_pattern peft_layer_replication peft_init_lora_weights "
        "peft_trainable_token_indices peft_ensure_weight_tying",
    ),
    "use_onebitllms": refuse("1 bit の学習はありません", "training in 1 bit is not there"),
    "llmcompressor": refuse("疎な学習（llmcompressor）はありません", "sparse training (llmcompressor) is not there"),
    "diffusion": refuse("拡散言語モデルの学習はありません", "diffusion language models are not trained here"),
    "use_eaft": refuse(
        "この損失はありません（教師あり学習の交差エントロピーだけです）", "this loss is not there (cross entropy only)"
    ),
    **rows(
        refuse(
            "この損失はありません（教師あり学習の交差エントロピーだけです）",
            "this loss is not there (cross entropy only)",
        ),
        "use_*_loss dft_* use_dynamic_finetuning",
    ),
    "reinit_weights": refuse(
        "既存の構成の重みを初期化した学習はありません", "training a given architecture from scratch is not there"
    ),
    **rows(
        refuse("画像・動画・音声の学習はありません", "training on pictures, video or sound is not there"),
        "processor_type processor_config is_multimodal image_* audio_* video_*",
    ),
    "s2_attention": refuse("S^2-Attn はありません", "S^2-Attn is not there"),
    "use_pose": refuse("PoSE はありません", "PoSE is not there"),
    **rows(
        refuse("位置の伸長（RoPE scaling）はありません", "RoPE scaling is not there"),
        "rope_scaling rope_theta xpos_rope",
    ),
    "noisy_embedding_alpha": refuse("NEFTune はありません", "NEFTune is not there"),
    "cosine_constant_lr_ratio": refuse(
        "途中から一定にする cosine はありません", "a cosine that becomes constant is not there"
    ),
    **rows(
        refuse("層ごとの学習率はありません", "learning rates of their own for some layers are not there"),
        "lr_groups embedding_lr embedding_lr_scale",
    ),
    "added_tokens_overrides": refuse("トークンの置き換えはありません", "tokens cannot be replaced"),
    **rows(refuse("データの一部（shards）は指定できません", "a shard of the data cannot be named"), "dataset_shard_*"),
    **rows(refuse("知識蒸留はありません", "distillation is not there"), "kd_trainer"),
    **rows(refuse("一部の重みだけの学習はありません", "training some of the weights is not there"), "spectrum_*"),
}

PARTS: tuple[Part, ...] = (
    what_trains,
    data,
    epochs,
    batch,
    schedule(warmup),
    shape,
    optimizer,
    precision,
    adapter,
    preference,
    tokens,
    quantized_base,
    frozen,
    plugins,
    hf.revision,
    saving(checkpoints),
    evaluation,
    trackers,
    spread,
)
# utils/schemas/training.py and config.py; 4 checkpoints: core/builders/base.py.
DEFAULTS: dict[str, Any] = {
    "data.max_length": 512,
    "training.batch_size": 1,
    "training.num_epochs": 1,
    "training.schedule.name": "cosine",
    "training.optimizer.name": "adamw",
    "training.checkpoint.save_total_limit": 4,
}
REQUIRED = ("base_model", "learning_rate")
