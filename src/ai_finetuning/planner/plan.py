"""The resolved plan of a run: what `--dry-run` prints and what a run checks before step 1."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..data.mixed import SourceShare
from ..data.mixture import Taken
from ..errors import Reason, localized
from .cuts import Choice
from .length import Asked, Beside, Parts, parts
from .memory import MemoryEstimate
from .phases import Timeline, size_text
from .presets import Preset, few_steps, plain_notes
from .speed import Speed, duration

_GB = 1e9
# Characters of the longest bar.
_BAR = 40


@dataclass(frozen=True)
class Plan:
    """Everything that was decided before weights are loaded.

    Attributes:
        speed: of the steps, by the last run of this model and method or by a pilot; None where neither is known.
        measured_memory: bytes that a pilot held at its peak.
        objective: with its loss, where answers are compared or marked; empty otherwise.
        asked: what the model will be asked beside its training.
        findings: what people should know of it beside few steps.
        reference_passes: how often all rows are scored before the first step (execution/preference.py).
        memory: of one process; of several devices, of the fullest one.
        free_memory_bytes: of that device.
        limit_bytes: what the plan may fill of it; None for all of it.
        devices: the arithmetic for each GPU, where they hold different parts.
        timeline: the simulated bytes of a step; None where the formula suffices.
        libraries_bytes: that libraries take of a GPU beside tensors, where a self-check has measured it.
        simulated_devices: what each device of a map takes, where it was simulated.
        choice: what was chosen for GPUs, and the runners-up; None on a CPU.
        looked_at: rows by which lengths are estimated, where data is streamed: then rows are not counted, and tokens,
            label_tokens and steps_per_epoch are the run's.
        calibration: by which self-check it is known what libraries take of such a GPU; None where it is not.
    """

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
    speed: Speed | None = None
    measured_memory: int | None = None
    objective: str = ""

    @property
    def epoch_tokens(self) -> tuple[int, int]:
        """(tokens, label tokens) of the first epoch without old rows: of several sources what is taken of each."""
        if not self.sources:
            return self.tokens, self.label_tokens
        return sum(of.tokens for of in self.sources), sum(of.label_tokens for of in self.sources)

    @property
    def seconds(self) -> float | None:
        """How long the run takes until its verdict is there; None where no speed is known."""
        return None if self.parts is None else self.parts.total

    @property
    def parts(self) -> Parts | None:
        """The same part by part: steps with old rows, evaluations and references, sample answers, the verdict."""
        if self.speed is None:
            return None
        an_epoch = self.epoch_tokens[0] + (self.replay.tokens if self.replay is not None else 0)
        return parts(self.beside, an_epoch * self.total_steps / max(1, self.steps_per_epoch), self.speed)

    @property
    def training_seconds(self) -> float:
        """How long it takes until the model is saved; 0 where no speed is known."""
        return 0.0 if self.parts is None else self.parts.training

    @property
    def beside(self) -> Beside:
        """What it does beside its steps."""
        rows = self.rows or self.total_steps * self.rows_per_step
        return Beside(
            evaluations=self.evaluations,
            eval_tokens=self.eval_tokens,
            references=self.reference_passes * (self.tokens + self.eval_tokens),
            questions=self.asked.questions,
            samples=self.asked.samples,
            answer_tokens=self.label_tokens / max(1, rows) / self.asked.answers_a_row,
            judged=self.asked.judged,
            token_seconds=self.asked.token_seconds,
        )

    def under(self, preset: Preset) -> Plan:
        """The plan of the same run by a preset."""
        epochs = preset.epochs_for(self.steps_per_epoch)
        total = epochs * self.steps_per_epoch
        beside = self.beside.under(preset, epochs, total, by_steps=self.eval_steps is not None)
        asked = replace(self.asked, questions=beside.questions)
        return replace(self, total_steps=total, evaluations=beside.evaluations, asked=asked)

    def time_text(self) -> str:
        """How long it takes and by what that is told, or that it is not known, and how to learn it."""
        found = self.parts
        if found is None or self.speed is None:
            return localized(
                "不明（このモデルと方法で学習した記録がこの PC にありません。--pilot で 3 ステップ試すと分かります）",
                "unknown (no run of this model and method on this PC yet; --pilot tries three steps)",
            )
        rate = f"{self.speed.tokens_per_second:,.0f}"
        large, told = found.large() or Reason("", ""), duration(found.total)
        return localized(
            f"約 {told}（{large.ja}{'。' if large.ja else ''}{self.speed.source.ja}、{rate} トークン/秒）",
            f"about {told} ({large.en}{'; ' if large.en else ''}{self.speed.source.en}, {rate} tokens/s)",
        )

    def _measured(self) -> list[tuple[str, str]]:
        if self.measured_memory is None:
            return []
        label = localized("メモリー（3 ステップの実測）", "memory (of three steps)")
        return [(label, f"{self.measured_memory / 2**30:.2f} GiB")]

    max_steps: int | None = None
    eval_steps: int | None = None
    evaluations: int = 0
    eval_tokens: int = 0
    reference_passes: int = 0
    asked: Asked = Asked()
    findings: tuple[Reason, ...] = ()
    keeps_best: bool = False
    replay: Taken | None = None  # old rows of the first epoch
    sources: tuple[SourceShare, ...] = ()  # what the first epoch takes of the entries of `data.train`
    limit_bytes: int | None = None
    devices: Reason | None = None
    timeline: Timeline | None = None
    simulated_devices: str | None = None
    libraries_bytes: int = 0
    choice: Choice | None = None
    calibration: Reason | None = None
    looked_at: int | None = None

    def few_steps(self) -> Reason | None:
        """That a run is too short to learn much, and what to change; None where it is not."""
        return few_steps(
            self.total_steps,
            self.steps_per_epoch,
            self.rows_per_step,
            by_steps=self.max_steps is not None,
            compared=bool(self.objective),
        )

    def notes(self) -> list[Reason]:
        """What people should know before they start: few steps, and what else was found."""
        few = self.few_steps()
        return [*([] if few is None else [few]), *self.findings]

    def _note_rows(self) -> list[tuple[str, str]]:
        return [(localized("注意", "note"), localized(one.ja, one.en)) for one in self.notes()]

    def _processes_row(self) -> tuple[str, str]:
        if self.processes == 1 and self.strategy == "ddp":  # of which one process has nothing
            return localized("プロセス", "processes"), "1"
        text = localized(f"{self.processes} プロセス、{self.strategy}", f"{self.processes}, {self.strategy}")
        return localized("プロセスと並列方式", "processes, strategy"), text

    def _replay_row(self) -> list[tuple[str, str]]:
        if self.replay is None:
            return []
        old = self.replay
        return [
            (
                localized("以前のデータ", "replay"),
                localized(
                    f"1 エポック {old.rows:,} 行、{old.tokens:,} トークン（学習対象 {old.label_tokens:,} トークン、{old.share:.1%}）",
                    f"{old.rows:,} rows, {old.tokens:,} tokens per epoch ({old.label_tokens:,} label tokens, {old.share:.1%})",
                ),
            )
        ]

    def _source_rows(self) -> list[tuple[str, str]]:
        return [
            (
                localized(f"データ {source.name}", f"source {source.name}"),
                localized(
                    f"1 エポックに {source.there:,} 行のうち {source.rows:,} 行分（{source.passes:.2f} 回）、学習対象 {source.label_tokens:,} "
                    f"トークン、割合 {source.share:.1%}",
                    f"{source.rows:,} rows per epoch of {source.there:,} ({source.passes:.2f} passes), {source.label_tokens:,} "
                    f"label tokens, {source.share:.1%}",
                ),
            )
            for source in self.sources
        ]

    def _evaluation_row(self) -> list[tuple[str, str]]:
        if not self.eval_rows:
            return []
        every = (
            ""
            if self.eval_steps is None
            else localized(f"、{self.eval_steps} ステップごと", f", every {self.eval_steps} steps")
        )
        best = "" if self.keeps_best else localized("、最良の重みは残しません", "; the best weights are not kept")
        return [
            (
                localized("評価", "evaluations"),
                localized(f"{self.evaluations} 回{every}{best}", f"{self.evaluations}{every}{best}"),
            )
        ]

    @property
    def on_gpu(self) -> bool:
        """Whether the device, here or elsewhere, is a GPU with CUDA's allocator."""
        return not self.device.startswith(("cpu", "mps"))

    @property
    def needed_bytes(self) -> int:
        """What the run needs: simulated where it was, else by the formula."""
        if self.timeline is None:
            return self.memory.total
        if self.on_gpu:
            return self.timeline.reserved + self.libraries_bytes
        return self.timeline.peak + self.memory.base

    @property
    def is_tight(self) -> bool:
        """Whether the formula, which never lies below, comes near the free memory, so that a simulation is worth its
        seconds.
        """
        return 2 * self.memory.total >= self.free_memory_bytes

    @property
    def fits(self) -> bool:
        """Whether that is below what the plan may fill."""
        return self.needed_bytes <= (self.free_memory_bytes if self.limit_bytes is None else self.limit_bytes)

    def free_text(self) -> str:
        """Free memory, and how much of it the plan may fill where that is less."""
        free = f"{self.free_memory_bytes / 2**30:.2f} GiB"
        if self.limit_bytes is None or self.limit_bytes == self.free_memory_bytes:
            return free
        limit, share = self.limit_bytes / 2**30, self.limit_bytes / self.free_memory_bytes
        return localized(
            f"{free}（使うのは {share:.0%} の {limit:.2f} GiB まで）",
            f"{free} (of which {share:.0%}, {limit:.2f} GiB, may be filled)",
        )

    def _memory_rows(self) -> list[tuple[str, str]]:
        """The formula, and the simulated phases as bars where there are."""
        alone = self.processes == 1 and self.devices is None
        of = (
            localized("メモリー", "memory")
            if alone
            else localized("メモリー（1 デバイス）", "memory of the fullest device")
        )
        each = [] if self.devices is None else [(localized("デバイスごと", "each device"), str(self.devices))]
        told = self.timeline
        if told is None:
            return [(of + localized("（見積もり）", " (estimate)"), self.memory.text()), *each]
        rows = [(of + localized("（式による上限）", " (formula, at most)"), self.memory.text()), *each]
        how = (
            localized(
                f"{told.layers[0]} 層と {told.layers[1]} 層から", f"from {told.layers[0]} and {told.layers[1]} layers"
            )
            if told.layers
            else localized("全層", "all layers")
        )
        if told.seconds:
            how += localized(f"、{duration(told.seconds)}", f", {duration(told.seconds)}")
        held = size_text(told.peak)
        if self.on_gpu:
            reserved = size_text(told.reserved)
            if self.calibration is not None:
                held += localized(f"（確保 {reserved}、自己検査で較正済み）", f" ({reserved} reserved; calibrated)")
                if self.libraries_bytes:
                    beside = size_text(self.libraries_bytes)
                    held += localized(f" + ライブラリー {beside}", f" + {beside} of libraries")
            else:
                held += localized(f"（確保 {reserved}、較正なし）", f" ({reserved} reserved; not calibrated)")
        rows.append((of + localized(f"（シミュレーション、{how}）", f" (simulated, {how})"), held))
        if self.simulated_devices is not None:
            rows.append((localized("  デバイスごと", "  each device"), self.simulated_devices))
        for phase, size in told.shown():
            bar = "#" * max(1, round(_BAR * size / told.peak))
            rows.append((f"  {phase}", f"{bar} {size_text(size)}"))
        if told.unknown:
            rows.append(
                (localized("  大きさの分からない演算", "  operations of unknown size"), ", ".join(told.unknown))
            )
        return rows

    def _choice_rows(self) -> list[tuple[str, str]]:
        """What was chosen for GPUs, what else there is, and how far the sizes are to be trusted."""
        if self.choice is None:
            return []
        labels = [localized("次点", "runners-up"), *[""] * len(self.choice.others)]
        rows = [(localized("選んだ分け方", "chosen cut"), self.choice.chosen.text())]
        rows += [(label, item.text()) for label, item in zip(labels, self.choice.runners_up(), strict=False)]
        told = None if self.speed is None else self.speed.source  # by the row of the time
        if self.choice.source not in (None, told):
            rows.append((localized("分け方の時間", "time of the cuts"), str(self.choice.source)))
        none = localized("なし（aift gpu self-check で較正できます）", "none (aift gpu self-check makes one)")
        rows.append((localized("較正", "calibration"), none if self.calibration is None else str(self.calibration)))
        return rows

    def fields(self) -> dict[str, Any]:
        """Everything, for `--json`; sizes in bytes, times in seconds."""
        own = asdict(self) | self.uncounted()
        own["memory"]["total"] = self.memory.total
        own["choice"] = None if self.choice is None else self.choice.fields()
        if self.timeline is not None:
            own["timeline"]["peak"] = self.timeline.peak
        few = self.few_steps()
        findings = plain_notes(few, self.findings)
        computed: dict[str, Any] = {"needed_bytes": self.needed_bytes, "fits": self.fits, "seconds": self.seconds}
        computed |= {"beside": asdict(self.beside), "parts": None if self.parts is None else self.parts.plain()}
        return own | computed | {"findings": findings}

    def uncounted(self) -> dict[str, Any]:
        """What nobody knows of streamed data, as None in the place of its estimate, which has a name of its own."""
        if self.looked_at is None:
            return {}
        unknown = dict.fromkeys(("rows", "tokens", "label_tokens", "steps_per_epoch"))
        return unknown | {"estimated_run_tokens": self.tokens}

    def _data_rows(self) -> list[tuple[str, str]]:
        if self.looked_at is not None:
            return [
                (
                    localized("行", "rows"),
                    localized(
                        f"学習 ストリーミング（数えません）、評価 {self.eval_rows:,}",
                        f"streamed for training (not counted), {self.eval_rows:,} for evaluation",
                    ),
                ),
                (
                    localized("トークン", "tokens"),
                    localized(
                        f"実行全体で約 {self.tokens:,}（先頭の {self.looked_at:,} 行からの見積もり）",
                        f"about {self.tokens:,} in the whole run (by the first {self.looked_at:,} rows)",
                    ),
                ),
            ]
        return [
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
                    "1 エポック {:,}（学習対象 {:,} トークン）".format(*self.epoch_tokens),
                    "{:,} per epoch ({:,} label tokens)".format(*self.epoch_tokens),
                ),
            ),
        ]

    def _steps_text(self) -> str:
        if self.looked_at is not None:
            return localized(
                f"{self.total_steps:,}（1 ステップ {self.rows_per_step} 行、ウォームアップ {self.warmup_steps}。データが先に終われば、最初から読み直します）",
                f"{self.total_steps:,} ({self.rows_per_step} rows a step, warm-up {self.warmup_steps}; data that ends before is "
                "read again)",
            )
        return localized(
            f"{self.total_steps:,}（1 エポック {self.steps_per_epoch:,}、1 ステップ {self.rows_per_step} 行、ウォームアップ "
            f"{self.warmup_steps}）",
            f"{self.total_steps:,} ({self.steps_per_epoch:,} per epoch, {self.rows_per_step} rows a step, "
            f"warm-up {self.warmup_steps})",
        )

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
            *([(localized("目的", "objective"), self.objective)] if self.objective else []),
            (localized("デバイスと精度", "device, precision"), f"{self.device}, {self.precision}"),
            self._processes_row(),
            *self._data_rows(),
            *self._replay_row(),
            *self._source_rows(),
            (localized("ステップ", "steps"), self._steps_text()),
            (localized("時間（見積もり）", "time (estimate)"), self.time_text()),
            *self._note_rows(),
            *self._evaluation_row(),
            (localized("勾配チェックポイント", "gradient checkpointing"), on),
            *self._choice_rows(),
            *self._memory_rows(),
            *self._measured(),
            (localized("空きメモリー", "free memory"), f"{self.free_text()}{fits}"),
            (
                localized("ディスク（最大）", "disk (at most)"),
                localized(
                    f"{self.disk_bytes / _GB:.2f} GB（空き {self.free_disk_bytes / _GB:.1f} GB）",
                    f"{self.disk_bytes / _GB:.2f} GB ({self.free_disk_bytes / _GB:.1f} GB free)",
                ),
            ),
            (localized("出力先", "output"), self.output_dir),
        ]
