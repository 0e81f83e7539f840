"""TRL's SFTTrainer: at its defaults (padding, gradient checkpointing), at its best packed and without checkpointing."""

from __future__ import annotations

from typing import Any

from trl import SFTConfig, SFTTrainer

from benchmarks.variants import LIGER
from benchmarks.workers.channel import Channel, read_spec
from benchmarks.workers.subject import Stepper, arguments, dataset, in_order, load, lora, pick_steps


def main() -> None:
    """Steps as the driver asks."""
    spec = read_spec()
    channel = Channel(spec.device)
    rows = spec.rows_per_step if spec.best else spec.per_step
    pick_steps(spec, rows)
    settings: dict[str, Any] = {"bf16": spec.precision == "bf16"}  # its own default is bf16
    if spec.best:
        settings |= {
            "packing": True,
            "max_length": spec.pack_tokens,
            "gradient_checkpointing": spec.checkpointing,
            "use_liger_kernel": LIGER in spec.kernels,
        }
    SFTTrainer(
        # A path, as its documentation writes it, is loaded in fp32; a model keeps the dtype that it was saved in.
        model=load(spec) if spec.best or spec.method == "qlora" else spec.model,
        args=SFTConfig(**arguments(spec, rows), **in_order(), **settings),
        train_dataset=dataset(spec),
        peft_config=lora(spec),
        callbacks=[Stepper(channel)],
    ).train()


if __name__ == "__main__":
    main()
