"""LoRA on a table of questions and answers, with held-out rows and early stopping.

python examples/lora_faq_csv.py MODEL faq.csv OUTPUT_DIR
"""

from __future__ import annotations

import sys

from ai_finetuning import (
    CheckpointConfig,
    DataConfig,
    JapaneseModel,
    LoRAConfig,
    LoRAFinetuningTrainer,
    RuntimeConfig,
    TrainingConfig,
)
from ai_finetuning.data.prepare import prepare

name, table, folder = sys.argv[1:4]
model = JapaneseModel(name)
data = DataConfig(max_length=512, system_prompt="あなたは社内ヘルプデスクの担当者です。")

# What the table becomes, before anything is trained: encoding, rows, tokens, what would be cut.
print("\n".join(prepare(table, None, model.ensure_tokenizer(), data, seed=0).lines))

config = TrainingConfig(
    learning_rate=2e-4,
    num_epochs=3,
    eval_steps=20,
    output_dir=folder,
    checkpoint=CheckpointConfig(resume_from_checkpoint="auto", load_best=True),  # start it again after a crash
    runtime=RuntimeConfig(early_stopping_patience=3),
)
trainer = LoRAFinetuningTrainer(model, LoRAConfig(r=16, lora_alpha=32), config, data=data)
trainer.train(table, 0.1)

scores = [row for row in trainer.result.history if "eval_loss" in row]
print(f"evaluation loss {scores[0]['eval_loss']:.3f} -> {min(row['eval_loss'] for row in scores):.3f}")
# Asked as it was trained: the system prompt comes along, here and in every program that loads the folder.
print(model.generate_japanese("パスワードを忘れました。", max_new_tokens=60))
