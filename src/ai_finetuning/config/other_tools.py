"""Names of settings that LLaMA-Factory, Axolotl, TRL and Hugging Face's Trainer have and we have not, or not under this
name. A file with such keys is answered with the command that reads it, never with a name of ours that only looks alike.
"""

from __future__ import annotations

# From the argument classes of LLaMA-Factory (src/llamafactory/hparams), Axolotl's configuration reference, TRL's
# SFTConfig, ModelConfig and ScriptArguments, and transformers' TrainingArguments; names that are ours too are left out.
_LLAMA_FACTORY = """
    adapter_folder adapter_name_or_path badam_mode buffer_size cache_dir compute_accuracy cutoff_len dataset dataset_dir
    dataset_shards dataset_info default_system disable_gradient_checkpointing disable_shuffling do_eval do_predict
    do_train double_quantization dpo_label_smoothing enable_liger_kernel enable_thinking eval_dataset eval_num_beams
    finetuning_type flash_attn freeze_extra_modules freeze_multi_modal_projector freeze_trainable_layers
    freeze_trainable_modules freeze_vision_tower galore_rank galore_target ignore_pad_token_for_loss image_max_pixels
    infer_backend infer_dtype interleave_probs kto_chosen_weight kto_rejected_weight lora_rank lora_target
    loraplus_lr_embedding loraplus_lr_ratio low_cpu_mem_usage mask_history media_dir mix_strategy mixture_of_depths
    model_name_or_path model_revision moe_aux_loss_coef neat_packing new_special_tokens overwrite_cache pissa_convert
    pissa_init pissa_iter plot_loss ppo_epochs pref_beta pref_bco_weight pref_ftx pref_loss preprocessing_batch_size
    preprocessing_num_workers print_param_status pure_bf16 quantization_bit quantization_device_map quantization_method
    quantization_type ray_num_workers ray_run_name ray_storage_path ref_model resize_vocab reward_model rope_scaling
    sequence_parallel shift_attn simpo_gamma split_special_tokens stage swanlab_project swanlab_run_name
    template tokenized_path tool_format train_on_prompt upcast_layernorm upcast_lmhead_output use_badam use_fast_tokenizer
    use_galore use_apollo use_llama_pro use_muon use_swanlab use_unsloth use_unsloth_gc val_size video_max_pixels
    visual_inputs
"""
_AXOLOTL = """
    adam_beta1 adam_beta2 adam_epsilon add_tokens auto_resume_from_checkpoints base_model base_model_config
    base_model_ignore_patterns bf16 bfloat16 chat_template_jinja context_parallel_size cosine_min_lr_ratio
    curriculum_sampling cut_cross_entropy dataset_exact_deduplication dataset_keep_in_memory dataset_prepared_path
    dataset_processes datasets debug default_system_message eot_tokens eval_batch_size eval_max_new_tokens
    eval_sample_packing eval_table_size excess_length_strategy field_messages flash_attention flash_attn_cross_entropy
    flash_attn_fuse_mlp flash_attn_rms_norm flash_optimum flex_attention fp8 gptq
    hub_model_id hub_strategy is_falcon_derived_model is_llama_derived_model is_mistral_derived_model
    is_qwen_derived_model liger_fused_linear_cross_entropy liger_glu_activation liger_layer_norm liger_rms_norm liger_rope
    load_in_4bit load_in_8bit lora_fan_in_fan_out lora_mlp_kernel lora_model_dir lora_modules_to_save lora_o_kernel
    lora_on_cpu lora_qkv_kernel lora_target_linear lora_target_modules loss_watchdog_patience loss_watchdog_threshold
    lr_scheduler lr_scheduler_kwargs max_packed_sequence_len micro_batch_size mlflow_experiment_name mlflow_tracking_uri
    model_type multipack_real_batches noisy_embedding_alpha optim_args optim_target_modules pad_to_sequence_len
    peft_layers_to_transform peft_use_dora peft_use_rslora plugins pretraining_dataset qlora_sharded_model_loading
    relora_steps rl s2_attention sample_packing sample_packing_eff_est
    sdp_attention sequence_len sequence_parallel_degree shuffle_merged_datasets skip_prepare_dataset strict
    test_datasets tokenizer_config tokenizer_legacy tokenizer_type tokenizer_use_fast torch_compile torch_compile_backend
    train_on_inputs unfrozen_parameters unsloth_lora_mlp use_wandb val_set_size wandb_entity wandb_log_model wandb_name
    wandb_project wandb_run_id wandb_watch xformers_attention zero_first
"""
_TRL = """
    activation_offloading assistant_only_loss attn_implementation bnb_4bit_quant_type chat_template_path
    completion_only_loss dataset_config dataset_kwargs dataset_name dataset_num_proc dataset_test_split
    dataset_text_field dataset_train_split eval_packing lora_task_type max_prompt_length max_seq_length
    model_init_kwargs packing_strategy padding_free use_bnb_nested_quant use_liger use_liger_kernel use_peft
"""
_TRAINER = """
    auto_find_batch_size bf16_full_eval dataloader_drop_last dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor ddp_find_unused_parameters ddp_timeout deepspeed disable_tqdm
    eval_accumulation_steps eval_delay eval_on_start eval_strategy evaluation_strategy fp16_full_eval fp16_opt_level fsdp
    fsdp_config full_determinism gradient_checkpointing_kwargs greater_is_better hub_private_repo hub_token
    include_num_input_tokens_seen include_tokens_per_second jit_mode_eval label_names label_smoothing_factor
    length_column_name load_best_model_at_end log_level logging_dir logging_first_step logging_nan_inf_filter
    logging_strategy lr_scheduler_type metric_for_best_model neftune_noise_alpha no_cuda num_train_epochs optim
    overwrite_output_dir per_device_eval_batch_size per_device_train_batch_size per_gpu_train_batch_size
    predict_with_generate push_to_hub remove_unused_columns run_name save_on_each_node save_safetensors save_strategy
    skip_memory_metrics tf32 torch_dtype torch_empty_cache_steps use_cpu use_mps_device
"""
OTHER_TOOLS = frozenset(" ".join((_LLAMA_FACTORY, _AXOLOTL, _TRL, _TRAINER)).split())
