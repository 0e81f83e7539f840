"""The four keyword-only sections of TrainingConfig."""

from __future__ import annotations

from typing import ClassVar, Literal

from .section import require, section

OPTIMIZERS = ("adamw", "adamw_8bit", "muon")


@section
class OptimizerConfig:
    """How gradients become steps."""

    SECTION: ClassVar[str] = "training.optimizer"

    name: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """AdamW (fused where the device has it); bitsandbytes' AdamW with 8-bit states; or Muon for the matrices of
    hidden layers and AdamW for the rest (all-weights training only).
    """
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; biases and norms have none."""
    lora_plus_ratio: float | None = None
    """LoRA+ (arXiv:2402.12354): learning rate of lora_B over that of lora_A; None for equal rates."""

    def __post_init__(self) -> None:
        for beta in self.betas:
            require(
                0 <= beta < 1,
                "training.optimizer.betas",
                self.betas,
                "0 以上 1 未満にしてください。",
                "each must be at least 0 and below 1.",
            )
        require(self.eps > 0, "training.optimizer.eps", self.eps, "正の値にしてください。", "it must be positive.")
        require(
            0 <= self.weight_decay < 1,
            "training.optimizer.weight_decay",
            self.weight_decay,
            "0 以上 1 未満にしてください。",
            "it must be at least 0 and below 1.",
        )
        ratio = self.lora_plus_ratio
        require(
            ratio is None or ratio >= 1,
            "training.optimizer.lora_plus_ratio",
            ratio,
            "1 以上にしてください（論文の推奨は 16）。",
            "it must be at least 1 (the paper suggests 16).",
        )


@section
class ScheduleConfig:
    """How the learning rate moves over the steps."""

    SECTION: ClassVar[str] = "training.schedule"

    name: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """Shape after the warm-up; `wsd` (warm-up, stable, decay; arXiv:2404.06395) is constant, then linear over the
    last decay_ratio of the steps.
    """
    max_steps: int | None = None
    """Optimizer steps to run; overrides num_epochs."""
    min_lr_ratio: float = 0.0
    """Where cosine and wsd decay end, as a share of the learning rate."""
    decay_ratio: float = 0.2
    """Share of the steps after the warm-up in which wsd decays."""

    def __post_init__(self) -> None:
        require(
            self.max_steps is None or self.max_steps >= 1,
            "training.schedule.max_steps",
            self.max_steps,
            "1 以上にしてください。",
            "it must be at least 1.",
        )
        require(
            0 <= self.min_lr_ratio <= 1,
            "training.schedule.min_lr_ratio",
            self.min_lr_ratio,
            "0 から 1 にしてください。",
            "it must be between 0 and 1.",
        )
        require(
            0 < self.decay_ratio <= 1,
            "training.schedule.decay_ratio",
            self.decay_ratio,
            "0 より大きく 1 以下にしてください。",
            "it must be above 0 and at most 1.",
        )


@section
class CheckpointConfig:
    """What is kept on disk, and what a run starts from."""

    SECTION: ClassVar[str] = "training.checkpoint"

    resume_from_checkpoint: str | None = None
    """`auto`, a checkpoint's folder or a run's folder; None starts anew."""
    save_total_limit: int = 3
    """Checkpoints kept; at least two, so that one is intact whatever happens to the other."""
    load_best: bool = False
    """Return the weights with the lowest held-out loss instead of the last ones."""
    restart: bool = False
    """Start anew although the folder holds checkpoints that cannot be used."""
    allow_changed: bool = False
    """Resume although batch size, data, seed or model differ from the checkpoint's."""

    def __post_init__(self) -> None:
        require(
            self.save_total_limit >= 2,
            "training.checkpoint.save_total_limit",
            self.save_total_limit,
            "2 以上にしてください（1 つが壊れても再開できるように）。",
            "it must be at least 2, so that a damaged checkpoint leaves another.",
        )


@section
class RuntimeConfig:
    """The machine's side of a run: precision, seed, logging, early stopping."""

    SECTION: ClassVar[str] = "training.runtime"

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` follows fp16= and what the machine does well."""
    seed: int = 42
    """Seed of weights, data order and dropout."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that receive the metrics besides metrics.jsonl."""
    early_stopping_patience: int | None = None
    """Evaluations without improvement after which the run ends."""
    early_stopping_threshold: float = 0.0
    """What counts as an improvement of the held-out loss, in nats per token."""
    progress: bool = True
    """Show progress."""
    kernels: Literal["auto", "portable", "plain"] = "auto"
    """How the step computes: `auto` takes fused blocks where they serve the model, `portable` the model's own
    modules without padding, `plain` padded rows.
    """

    def __post_init__(self) -> None:
        require(
            0 <= self.seed < 2**32,
            "training.runtime.seed",
            self.seed,
            "0 以上 2^32 未満にしてください。",
            "it must be at least 0 and below 2^32.",
        )
        patience = self.early_stopping_patience
        require(
            patience is None or patience >= 1,
            "training.runtime.early_stopping_patience",
            patience,
            "1 以上にしてください。",
            "it must be at least 1.",
        )
        require(
            self.early_stopping_threshold >= 0,
            "training.runtime.early_stopping_threshold",
            self.early_stopping_threshold,
            "0 以上にしてください。",
            "it must not be negative.",
        )
