"""The documented trainers on a tiny real model: what they return, what they leave on disk, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.support.models import SENTENCES, build_tokenizer
from tests.support.runs import ROWS, losses, train_full, train_lora, training, weights_digest

from ai_finetuning import (
    AdvancedMultiGPUTrainer,
    DataConfig,
    FullFinetuningTrainer,
    JapaneseModel,
    LoRAConfig,
    LoRAFinetuningTrainer,
    MultiGPUTrainingConfig,
    ScheduleConfig,
    TextDataset,
    TrainingConfig,
)
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import ConfigError, DataError, ModelError
from ai_finetuning.kernels.build import why_unavailable
from ai_finetuning.models.fused import why_not_worth
from ai_finetuning.system import gpu

FILES = {
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "loss.png",
    "report.html",
    "run.json",
    "README.md",
    "tokenizer.json",
    "chat_template.jinja",
    "generation_config.json",
}


def logits(model: torch.nn.Module, text: str = "日本の首都は東京です。") -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([build_tokenizer().encode(text)])).logits


@pytest.fixture(scope="module")
def lora_run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("lora") / "out"
    return folder, train_lora(tiny_model_dir, folder, evaluate=ROWS[:4], eval_steps=4, num_epochs=4)


def test_lora_learns_and_the_folder_is_complete(lora_run):
    folder, trainer = lora_run
    scores = [row["eval_loss"] for row in read_metrics(folder / "metrics.jsonl") if "eval_loss" in row]
    assert scores[-1] < scores[0] - 0.3
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES | {"adapter_model.safetensors", "adapter_config.json"}
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "completed"
    assert trainer.result.state.step == 24
    assert not trainer.result.model.training


def test_adapter_loads_with_plain_peft_with_the_same_logits(lora_run, tiny_model_dir: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, trainer = lora_run
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), folder).eval()
    assert torch.equal(logits(plain), logits(trainer.result.model))
    model, tokenizer = LoRAFinetuningTrainer.load_lora_model(str(tiny_model_dir), str(folder))
    assert tokenizer.chat_template == build_tokenizer().chat_template
    assert torch.allclose(logits(model).float(), logits(plain), atol=0.1)  # bf16 base where the processor has it


def test_model_card_has_the_measured_numbers(lora_run):
    folder, _ = lora_run
    card = (folder / "README.md").read_text(encoding="utf-8")
    last = [row for row in read_metrics(folder / "metrics.jsonl") if "eval_loss" in row][-1]
    assert f"{last['eval_loss']:.4f}" in card
    assert "library_name: peft" in card


def test_the_written_configuration_runs_again(lora_run, tmp_path: Path):
    """config.yaml of a run is what `aift train` reads: same settings, same losses."""
    from ai_finetuning.config.load import load_config

    folder, _ = lora_run
    config = load_config(folder / "config.yaml", [f"training.output_dir={tmp_path}"])
    assert config.training.warmup_steps == 2
    assert config.lora.r == 4
    assert config.model.name.endswith("tiny-llama")


def test_generation_after_training_uses_the_trained_weights(lora_run):
    _, trainer = lora_run
    answer = trainer.model.generate_japanese("3の次の数は何ですか？", max_new_tokens=8, do_sample=False)
    assert isinstance(answer, str)
    assert trainer.model.model is trainer.result.model


@pytest.mark.parametrize("use_accelerate", [False, True])
def test_full_model_loads_with_plain_transformers_with_the_same_logits(
    tiny_model_dir: Path, tmp_path: Path, use_accelerate: bool
):
    from transformers import AutoModelForCausalLM

    trainer = train_full(tiny_model_dir, tmp_path / "out", use_accelerate=use_accelerate)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(plain), logits(trainer.result.model))
    assert not torch.equal(logits(plain), logits(AutoModelForCausalLM.from_pretrained(tiny_model_dir)))


def test_accelerate_gives_the_same_bits(tiny_model_dir: Path, tmp_path: Path):
    train_full(tiny_model_dir, tmp_path / "plain", use_accelerate=False)
    train_full(tiny_model_dir, tmp_path / "accelerate", use_accelerate=True)
    assert losses(tmp_path / "plain") == losses(tmp_path / "accelerate")
    assert weights_digest(tmp_path / "plain") == weights_digest(tmp_path / "accelerate")


def test_full_model_keeps_the_dtype_of_its_file(tmp_path: Path):
    """A bf16 model trains on fp32 masters and is saved in bf16 again."""
    from tests.support.models import build_model

    source = tmp_path / "bf16"
    tokenizer = build_tokenizer()
    build_model(vocab_size=len(tokenizer)).to(torch.bfloat16).save_pretrained(source)
    tokenizer.save_pretrained(source)
    trainer = train_full(source, tmp_path / "out")
    assert next(trainer.result.model.parameters()).dtype is torch.bfloat16
    stored = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert stored["dtype"] == "bfloat16"
    assert stored["use_cache"] is True


@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_loads_the_base_quantized_and_says_so(
    tiny_model_dir: Path, tmp_path: Path, bits: int, precision: str, caplog
):
    from ai_finetuning.models.quantized import quantized_bits

    caplog.set_level("INFO", logger="ai_finetuning")
    model = JapaneseModel(str(tiny_model_dir))
    model.load_model()
    lora = LoRAConfig(r=4, use_qlora=True, qlora_4bit=bits == 4)
    trainer = LoRAFinetuningTrainer(
        model,
        lora,
        training(tmp_path / "out", num_epochs=1, runtime={"precision": precision}),
        data=DataConfig(max_length=64),
    )
    trained = trainer.train(ROWS)
    assert quantized_bits(trained) == bits
    assert f"reloading in {bits} bit" in caplog.text
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert isinstance(model.generate_japanese("3の次の数は何ですか？", max_new_tokens=4), str)


def test_qlora_refuses_weights_changed_in_memory(tiny_model_dir: Path, tmp_path: Path):
    model = JapaneseModel(str(tiny_model_dir))
    with torch.no_grad():
        next(model.load_model().parameters()).add_(1.0)
    trainer = LoRAFinetuningTrainer(model, LoRAConfig(use_qlora=True), training(tmp_path / "out"))
    with pytest.raises(ModelError, match="changed"):
        trainer.train(ROWS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["load_in_4bit", "load_in_8bit"])
def test_full_fine_tuning_of_a_quantized_model_is_refused(tiny_model_dir: Path, tmp_path: Path, flag: str):
    model = JapaneseModel(str(tiny_model_dir), **{flag: True})
    with pytest.raises(ConfigError, match="cannot be fine-tuned in full"):
        FullFinetuningTrainer(model, training(tmp_path / "out")).train(ROWS)
    assert model.model is None


def test_training_again_with_an_adapter_on_starts_from_the_base(tiny_model_dir: Path, tmp_path: Path):
    first = train_lora(tiny_model_dir, tmp_path / "a", num_epochs=1)
    again = LoRAFinetuningTrainer(
        first.model,
        LoRAConfig(r=4, lora_alpha=8, lora_dropout=0.1),
        training(tmp_path / "b", num_epochs=1),
        data=DataConfig(max_length=64),
    )
    again.train(ROWS)
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")


def test_text_dataset_and_texts_train(tiny_model_dir: Path, tmp_path: Path):
    model = JapaneseModel(str(tiny_model_dir))
    dataset = TextDataset(SENTENCES, build_tokenizer(), max_length=32)
    FullFinetuningTrainer(model, training(tmp_path / "a", num_epochs=1), dataset, dataset).train()
    assert (tmp_path / "a" / "model.safetensors").is_file()
    FullFinetuningTrainer(JapaneseModel(str(tiny_model_dir)), training(tmp_path / "b", num_epochs=1)).train(SENTENCES)
    # Eos ends a plain text in both, so the same texts are the same run.
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_paths_datasets_and_conversations_train(tiny_model_dir: Path, tmp_path: Path):
    from datasets import Dataset

    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    talks = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        for row in ROWS
    ]
    obtained = []
    for name, source in (("rows", ROWS), ("path", str(file)), ("dataset", Dataset.from_list(ROWS)), ("talks", talks)):
        train_lora(tiny_model_dir, tmp_path / name, rows=source, num_epochs=1)
        obtained.append(losses(tmp_path / name))
    assert all(item == obtained[0] for item in obtained)


def test_data_given_twice_or_not_at_all_is_refused(tiny_model_dir: Path, tmp_path: Path):
    model = JapaneseModel(str(tiny_model_dir))
    dataset = TextDataset(SENTENCES, build_tokenizer(), max_length=32)
    with pytest.raises(ConfigError, match="train_texts, train_dataset"):
        FullFinetuningTrainer(model, training(tmp_path / "out"), dataset).train(SENTENCES)
    with pytest.raises(ConfigError, match="no training data"):
        FullFinetuningTrainer(model, training(tmp_path / "out")).train()
    assert not (tmp_path / "out").exists()


def test_bad_data_is_refused_before_the_model_loads_and_leaves_no_trace(tiny_model_dir: Path, tmp_path: Path):
    model = JapaneseModel(str(tiny_model_dir))
    with pytest.raises(DataError):
        LoRAFinetuningTrainer(model, LoRAConfig(), training(tmp_path / "out")).train([{"instruction": "問い"}])
    assert model.model is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("strategy", ["model_parallel", "pipeline", "tensor"])
def test_strategies_that_need_more_devices_are_refused_before_anything_loads(
    tiny_model_dir: Path, tmp_path: Path, strategy: str
):
    model = JapaneseModel(str(tiny_model_dir), device=torch.device("cpu"))
    config = MultiGPUTrainingConfig(strategy=strategy, output_dir=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=f"parallel.strategy {strategy}.* needs"):
        AdvancedMultiGPUTrainer(model, config).train(SENTENCES)
    assert model.model is None
    assert model.tokenizer is None


def test_multi_gpu_trainer_trains_in_one_process(tiny_model_dir: Path, tmp_path: Path):
    config = MultiGPUTrainingConfig(strategy="ddp", output_dir=str(tmp_path / "out"), num_epochs=1)
    trained = AdvancedMultiGPUTrainer(JapaneseModel(str(tiny_model_dir)), config).train(SENTENCES)
    assert isinstance(trained, torch.nn.Module)


def test_ddp_in_one_process_trains_as_usual_with_one_line(tiny_model_dir: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO", logger="ai_finetuning")
    train_lora(tiny_model_dir, tmp_path / "out", num_epochs=1, ddp=True)
    assert caplog.text.count("ddp=True") == 1


def test_world_size_must_agree_with_the_launcher(tiny_model_dir: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="world_size is 2"):
        train_lora(tiny_model_dir, tmp_path / "out", world_size=2)


def test_low_default_learning_rate_is_said_with_lora(tiny_model_dir: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO", logger="ai_finetuning")
    config = TrainingConfig(num_epochs=1, output_dir=str(tmp_path / "out"))
    LoRAFinetuningTrainer(JapaneseModel(str(tiny_model_dir)), LoRAConfig(r=4), config).train(ROWS)
    assert "1e-4 - 3e-4" in caplog.text


def test_fp16_on_a_cpu_is_resolved_said_once_and_recorded(tiny_model_dir: Path, tmp_path: Path, caplog):
    import yaml

    from ai_finetuning.system.gpu import cpu_has_bf16

    caplog.set_level("INFO", logger="ai_finetuning")
    train_lora(tiny_model_dir, tmp_path / "out", num_epochs=1, fp16=True, runtime={"precision": "auto"})
    precision = "bf16" if cpu_has_bf16() else "fp32"
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["derived"]["precision"] == precision
    config = (tmp_path / "out" / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(config)["training"]["runtime"]["precision"] == "auto"  # what was given
    assert any(line.startswith("#") and line.endswith(f'precision: "{precision}"') for line in config.splitlines())
    assert caplog.text.count("mixed precision in") + caplog.text.count("computing in fp32") == 1


def test_gradient_checkpointing_follows_the_user_and_else_the_memory(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch, logged
):
    def recorded(name: str, **changes) -> bool:
        config = TrainingConfig(num_epochs=1, output_dir=str(tmp_path / name), **changes)
        trainer = LoRAFinetuningTrainer(JapaneseModel(str(tiny_model_dir)), LoRAConfig(r=4), config)
        trainer.train(ROWS)
        run = json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8"))
        return run["derived"]["gradient_checkpointing"]

    assert recorded("untouched") is False  # a tiny model leaves most of the memory free
    assert recorded("asked", gradient_checkpointing=True) is True
    assert recorded("refused", gradient_checkpointing=False) is False
    from ai_finetuning.execution import build, place

    # The estimate of this run is about 2.5 MB; free memory is pretended, the estimate is not.
    for part in (build, place):
        monkeypatch.setattr(part, "free_memory_bytes", lambda device: 2 * 2**20)
    assert recorded("short of memory") is True
    assert recorded("short of memory, refused", gradient_checkpointing=False) is False
    assert "memory may not suffice" in logged()


def test_gradient_checkpointing_changes_no_loss(tiny_model_dir: Path, tmp_path: Path):
    train_full(tiny_model_dir, tmp_path / "with", gradient_checkpointing=True)
    train_full(tiny_model_dir, tmp_path / "without", gradient_checkpointing=False)
    with_it, without = ([float.fromhex(item) for item in losses(tmp_path / name)] for name in ("with", "without"))
    assert with_it == pytest.approx(without, abs=1e-6)


def test_packing_trains_the_same_tokens(tiny_model_dir: Path, tmp_path: Path):
    trainer = train_lora(
        tiny_model_dir, tmp_path / "out", data=DataConfig(max_length=128, packing=True), num_epochs=1, warmup_steps=0
    )
    rows = [row for row in trainer.result.history if "loss" in row]
    from ai_finetuning.data.prepare import load_examples

    examples, report, _ = load_examples(ROWS, trainer.model.tokenizer, DataConfig(max_length=128))
    assert sum(row["label_tokens"] for row in rows) == report.label_tokens
    assert len(rows) < 6


def test_a_run_without_bf16_instructions_computes_in_fp32(
    tiny_model_dir: Path, tmp_path: Path, logged, monkeypatch: pytest.MonkeyPatch
):
    """Also where mixed precision is asked for; with the fused blocks where there is a compiler."""
    monkeypatch.setattr(gpu, "cpu_flags", lambda: frozenset({"avx2"}))
    train_lora(tiny_model_dir, tmp_path, num_epochs=1, fp16=True, runtime={"precision": "auto"})
    text = logged()
    assert "this CPU has no bf16 instructions" in text
    path = "fused" if why_unavailable(torch.device("cpu"), torch.float32) is None else "portable"
    assert f"training step: {path}" in text


@pytest.mark.parametrize("train", [train_full, train_lora])
@pytest.mark.parametrize(
    ("path", "precision", "near"), [("fused", "bf16", 2e-3), ("fused", "fp32", 1e-5), ("portable", "fp32", 1e-5)]
)
def test_packed_and_padded_steps_over_the_same_documents_have_the_same_losses(
    tiny_model_dir: Path, tmp_path: Path, logged, train, path: str, precision: str, near: float
):
    """Every step holds all documents, so that only their arrangement differs; rates large enough for the losses to
    fall.
    """
    cpu = torch.device("cpu")
    compute = torch.bfloat16 if precision == "bf16" else torch.float32
    reason = why_unavailable(cpu, compute) or why_not_worth(cpu, compute)
    if path == "fused" and reason is not None:
        pytest.skip(f"a run does not choose the compiled kernels here: {reason}")
    options = {"lora": {"lora_dropout": 0.0}, "learning_rate": 2e-2} if train is train_lora else {"learning_rate": 5e-3}
    obtained = []
    for packing in (True, False):
        train(
            tiny_model_dir,
            tmp_path / str(packing),
            data=DataConfig(max_length=128, packing=packing),
            batch_size=22,
            gradient_accumulation_steps=1,
            num_epochs=8,
            warmup_steps=0,
            runtime={"precision": precision, "kernels": "auto" if path == "fused" else path},
            **options,
        )
        obtained.append([float.fromhex(item) for item in losses(tmp_path / str(packing))])
    assert logged().count(f"training step: {path}") == 2
    packed, padded = obtained
    assert len(packed) == 8
    assert packed[-1] < packed[0] - 0.5
    assert packed == pytest.approx(padded, rel=near)


def test_packed_runs_score_held_out_rows_as_padded_ones_do(tiny_model_dir: Path, tmp_path: Path):
    """Before the first step, where the weights are the same: loss and bits per character agree, the tokens are
    equal.
    """
    rows = []
    for packing in (True, False):
        data = DataConfig(max_length=128, packing=packing)
        trainer = train_lora(
            tiny_model_dir, tmp_path / str(packing), data=data, evaluate=ROWS[:9], num_epochs=1, warmup_steps=0
        )
        rows.append(next(row for row in trainer.result.history if "eval_loss" in row))
    packed, padded = rows
    assert packed["eval_tokens"] == padded["eval_tokens"]
    for name in ("eval_loss", "eval_bits_per_character"):
        assert packed[name] == pytest.approx(padded[name], rel=1e-6)


def test_packing_is_refused_where_documents_see_each_other(tiny_model_dir: Path):
    """The probe finds a leak in a model that ignores position_ids, and none in one that does not."""
    from tests.support.models import build_model

    from ai_finetuning.execution.packing_check import leak_of_packing, validate_packing

    model = build_model("llama")
    assert leak_of_packing(model) < 1e-6

    class Leaking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config, self.device = model, model.config, model.device

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, input_ids, position_ids, attention_mask, use_cache):
            return self.inner(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)

    assert leak_of_packing(Leaking()) > 1e-3
    with pytest.raises(ModelError, match="see each other"):
        validate_packing(Leaking(), "leaking")


def test_best_checkpoint_is_returned_where_asked(tiny_model_dir: Path, tmp_path: Path):
    """With a rate that ruins the model, the best weights are earlier ones; the returned model is exactly those."""
    trainer = train_lora(
        tiny_model_dir,
        tmp_path / "out",
        evaluate=ROWS[:6],
        eval_steps=1,
        learning_rate=0.3,
        num_epochs=3,
        schedule=ScheduleConfig(name="constant"),
        checkpoint={"load_best": True},
    )
    state, history = trainer.result.state, trainer.result.history
    scores = {row["step"]: row["eval_loss"] for row in history if row.get("eval_loss") is not None}
    assert state.best_step == min(scores, key=scores.get) < state.step
    from ai_finetuning.data.loader import evaluation_batches
    from ai_finetuning.data.prepare import load_examples
    from ai_finetuning.engine.loss import make_loss

    examples, *_ = load_examples(ROWS[:6], trainer.model.tokenizer, DataConfig(max_length=64))
    batches = evaluation_batches(examples, batch_size=2, pad_token_id=0)
    loss = make_loss(logits_to_keep=True)
    with torch.no_grad():
        total = sum(float(loss(trainer.result.model, batch)) for batch in batches) / sum(
            b.num_label_tokens for b in batches
        )
    assert total == pytest.approx(scores[state.best_step], abs=1e-4)


def test_early_stopping_ends_the_run(tiny_model_dir: Path, tmp_path: Path):
    trainer = train_lora(
        tiny_model_dir,
        tmp_path / "out",
        evaluate=ROWS[:6],
        eval_steps=1,
        learning_rate=0.5,
        num_epochs=20,
        runtime={"early_stopping_patience": 2},
    )
    assert trainer.result.state.step < 120


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
)
def test_lora_options_train_and_load_with_plain_peft(tiny_model_dir: Path, tmp_path: Path, options: dict):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trainer = train_lora(tiny_model_dir, tmp_path / "out", num_epochs=1, lora=options)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path / "out").eval()
    assert torch.allclose(logits(plain), logits(trainer.result.model), atol=1e-6)


def test_lora_plus_gives_lora_b_its_own_rate(tiny_model_dir: Path, tmp_path: Path):
    from ai_finetuning import OptimizerConfig

    train_lora(tiny_model_dir, tmp_path / "plain", num_epochs=1)
    config = training(tmp_path / "plus", num_epochs=1)
    config.optimizer = OptimizerConfig(lora_plus_ratio=16)
    LoRAFinetuningTrainer(
        JapaneseModel(str(tiny_model_dir), torch_dtype=torch.float32),
        LoRAConfig(r=4, lora_alpha=8, lora_dropout=0.1),
        config,
        data=DataConfig(max_length=64),
    ).train(ROWS)
    assert losses(tmp_path / "plain") != losses(tmp_path / "plus")


def test_eight_bit_adam_trains(tiny_model_dir: Path, tmp_path: Path):
    from ai_finetuning import OptimizerConfig

    config = training(tmp_path / "out", num_epochs=1)
    config.optimizer = OptimizerConfig(name="adamw_8bit")
    FullFinetuningTrainer(JapaneseModel(str(tiny_model_dir)), config, data=DataConfig(max_length=64)).train(ROWS)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_tracker_writes_and_a_broken_one_does_not_stop_the_run(tiny_model_dir: Path, tmp_path: Path, caplog):
    train_lora(tiny_model_dir, tmp_path / "good", num_epochs=1, runtime={"report_to": ("tensorboard",)})
    assert list((tmp_path / "good" / "trackers").rglob("events.out.tfevents.*"))
    (tmp_path / "bad").mkdir()
    from ai_finetuning.engine.hooks import Control
    from ai_finetuning.engine.train_state import TrainState
    from ai_finetuning.execution import trackers

    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    callback = trackers.Tracker("tensorboard", blocked / "below", "run")
    callback.on_step_end(TrainState(1), Control(), {"step": 1, "loss": 1.0})
    callback.close()
    assert caplog.text.count("cannot be reached") == 1


def test_a_tracker_that_is_not_installed_is_refused_before_loading(tiny_model_dir: Path, tmp_path: Path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest))
    with pytest.raises(ConfigError, match="pip install wandb"):
        train_lora(tiny_model_dir, tmp_path / "out", runtime={"report_to": ("wandb",)})
    assert not (tmp_path / "out").exists()


def test_token_id_beyond_the_vocabulary_is_refused(tmp_path: Path):
    from tests.support.models import build_model

    build_model(vocab_size=300).save_pretrained(tmp_path / "small")
    build_tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match="embedding rows"):
        train_lora(tmp_path / "small", tmp_path / "out")


def test_row_longer_than_the_model_is_refused(tiny_model_dir: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="at most 1024"):
        train_full(
            tiny_model_dir,
            tmp_path / "out",
            rows=["質問に答えてください。" * 150],
            data=DataConfig(max_length=4096),
            num_epochs=8,
        )
