"""transformers' Trainer with dynamic padding in bf16 or fp32; at its best with batches of similar length."""

from __future__ import annotations

from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from benchmarks.workers.channel import Channel, read_spec
from benchmarks.workers.subject import Stepper, arguments, dataset, load, pick_steps, with_adapter


def main() -> None:
    """Steps as the driver asks."""
    spec = read_spec()
    channel = Channel(spec.device)
    pick_steps(spec, spec.per_step)
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    order = "group_by_length" if spec.best else "sequential"  # the corpus is shuffled already
    options = {"bf16": spec.precision == "bf16", "train_sampling_strategy": order}
    Trainer(
        model=with_adapter(load(spec), spec),
        args=TrainingArguments(**arguments(spec, spec.per_step), **options),
        train_dataset=dataset(spec),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Stepper(channel)],
    ).train()


if __name__ == "__main__":
    main()
