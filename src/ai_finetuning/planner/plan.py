"""The resolved plan of a run: what `--dry-run` prints and what a run checks before step 1."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import localized
from .memory import MemoryEstimate

_GB = 1e9


@dataclass(frozen=True)
class Plan:
    """Everything that was decided before weights are loaded."""

    model: str
    method: str
    device: str
    precision: str
    parameters: int
    trainable: int
    rows: int
    eval_rows: int
    tokens: int
    label_tokens: int
    rows_per_step: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    gradient_checkpointing: bool
    memory: MemoryEstimate
    free_memory_bytes: int
    disk_bytes: int
    free_disk_bytes: int
    output_dir: str
    strategy: str = "single"
    processes: int = 1

    @property
    def fits(self) -> bool:
        """Whether the estimate is below the free memory."""
        return self.memory.total <= self.free_memory_bytes

    def table(self) -> list[tuple[str, str]]:
        """(label, value) lines for people, in the locale's language."""
        on = localized("あり", "on") if self.gradient_checkpointing else localized("なし", "off")
        fits = "" if self.fits else localized("  ← 足りない見込み", "  <- probably insufficient")
        return [
            (localized("モデル", "model"), f"{self.model} ({self.parameters:,})"),
            (
                localized("方法", "method"),
                localized(
                    f"{self.method}（学習する重み {self.trainable:,}）", f"{self.method} (trains {self.trainable:,})"
                ),
            ),
            (localized("デバイスと精度", "device, precision"), f"{self.device}, {self.precision}"),
            (
                localized("プロセスと並列方式", "processes, strategy"),
                localized(f"{self.processes} プロセス、{self.strategy}", f"{self.processes}, {self.strategy}"),
            ),
            (
                localized("行", "rows"),
                localized(
                    f"学習 {self.rows:,}、評価 {self.eval_rows:,}",
                    f"{self.rows:,} for training, {self.eval_rows:,} for evaluation",
                ),
            ),
            (
                localized("トークン", "tokens"),
                localized(
                    f"1 エポック {self.tokens:,}（学習対象トークン {self.label_tokens:,}）",
                    f"{self.tokens:,} per epoch ({self.label_tokens:,} label tokens)",
                ),
            ),
            (
                localized("ステップ", "steps"),
                localized(
                    f"{self.total_steps:,}（1 エポック {self.steps_per_epoch:,}、1 ステップ {self.rows_per_step} 行、ウォームアップ "
                    f"{self.warmup_steps}）",
                    f"{self.total_steps:,} ({self.steps_per_epoch:,} per epoch, {self.rows_per_step} rows a step, "
                    f"warm-up {self.warmup_steps})",
                ),
            ),
            (localized("勾配チェックポイント", "gradient checkpointing"), on),
            (localized("メモリー（見積もり）", "memory (estimate)"), self.memory.text()),
            (localized("空きメモリー", "free memory"), f"{self.free_memory_bytes / 2**30:.2f} GiB{fits}"),
            (
                localized("ディスク（最大）", "disk (at most)"),
                localized(
                    f"{self.disk_bytes / _GB:.2f} GB（空き {self.free_disk_bytes / _GB:.1f} GB）",
                    f"{self.disk_bytes / _GB:.2f} GB ({self.free_disk_bytes / _GB:.1f} GB free)",
                ),
            ),
            (localized("出力先", "output"), self.output_dir),
        ]
