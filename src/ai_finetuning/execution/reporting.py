"""report.html of a run, written while it trains: at its beginning, then at evaluations and log lines, and at its end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..config.mixture import Sources
from ..config.plain import plain_run
from ..config.run_folder import CONFIG, METRICS, REPORT
from ..data.encode_report import EncodeReport
from ..data.examples import Joined
from ..data.streamed_loader import StreamedLoader
from ..embedded import is_embedded
from ..engine.hooks import Callback, Control
from ..engine.metrics import read_metrics
from ..engine.train_state import TrainState
from ..errors import Reason
from ..evaluation.report import DataSummary, Report, State, render_report
from ..evaluation.samples import SECONDS as SAMPLE_SECONDS
from ..evaluation.samples import Sample, answers, choose, general_questions, repeats
from ..evaluation.verdict import figure, verdict
from ..messages import argument, notice, warn
from ..planner.speed import AnswerPace, duration
from ..system.environment import environment
from ..system.files import write_in_place
from .build import Built
from .resolve import RunPlan

# Least time between two pages of a run at work: a page is some ten thousand bytes, and drawing it takes milliseconds.
SECONDS = 10.0


def why_no_samples(plan: RunPlan) -> Reason | None:
    """Why a run's report has no sample answers, or None where it has."""
    if plan.request.config.training.runtime.report_samples == 0:
        return Reason(
            "設定により載せていません（training.runtime.report_samples=0）。",
            "None, as asked (training.runtime.report_samples=0).",
        )
    if not plan.data.eval_data:
        return Reason("評価データがないため、ありません。", "None, as there is no evaluation data.")
    if plan.parallel.processes > 1 or plan.processes_to_start > 1:
        return Reason("複数のプロセスの実行では作りません。", "A run of several processes makes none.")
    return None


def samples_line(plan: RunPlan) -> Reason:
    """What the plan says of texts in the report."""
    if why_no_samples(plan) is not None:
        return Reason(f"{REPORT} に行の文は入りません", f"{REPORT} will hold no text of a row")
    count = min(plan.request.config.training.runtime.report_samples, len(plan.data.eval_data))
    return Reason(
        f"{REPORT} には評価データ {count} 行の文と回答が入ります（training.runtime.report_samples=0 で入れない）",
        f"{REPORT} will hold the text of {count} evaluation rows with answers (training.runtime.report_samples=0: none)",
    )


def report_of(plan: RunPlan) -> EncodeReport:
    """What became of the training rows; of streamed ones, of those that are used up, or else of the first ones."""
    streamed = plan.loader.steps_made.report() if isinstance(plan.loader, StreamedLoader) else None
    return streamed or plan.data.report


def data_summary(plan: RunPlan) -> DataSummary:
    """What a run was trained on, without a word of it and without folders."""
    request, data, streams = plan.request, plan.data, plan.data.stream is not None
    return DataSummary(
        train=[str(name) for name in _names(request.train)],
        evaluation=[str(name) for name in _names(request.eval_data)],
        rows=None if streams else len(data.train),
        eval_rows=len(data.eval_data),
        tokens=plan.summary.epoch_tokens[0],
        label_tokens=plan.summary.epoch_tokens[1],
        left_out=[(Reason(ja, en), count) for ja, en, count in report_of(plan).left_out_reasons],
    )


def data_names(plan: RunPlan) -> dict[str, Any]:
    """The same for run.json and the model card, as plain values: `train` and `eval`, names of the data as (Japanese,
    English), and `left_out`, the number of rows.
    """
    names = {"train": _names(plan.request.train), "eval": _names(plan.request.eval_data)}
    plain = {key: [[name.ja, name.en] for name in of_key] for key, of_key in names.items()}
    return plain | {"left_out": report_of(plan).left_out}


def _names(source: Any) -> list[Reason]:
    """Names of files without their folders; of data that is none, what it is."""
    if source is None:
        return []
    if isinstance(source, float):
        return [Reason(f"学習データの {source:.0%}", f"{source:.0%} of the training data")]
    items = [source] if isinstance(source, str | Path) else source.paths if isinstance(source, Sources) else source
    if _names_files(source):
        names = [str(item) if is_embedded(str(item)) else Path(item).name for item in items]
        return [Reason(name, name) for name in names]
    return [Reason("Python から渡したデータ", "data handed over in Python")]


def _names_files(source: Any) -> bool:
    """Whether a source says where its rows are, so that config.yaml finds them again."""
    items = [source] if isinstance(source, str | Path) else source
    return isinstance(source, str | Path | Sources) or (
        isinstance(items, list) and bool(items) and all(isinstance(item, Path) for item in items)
    )


def model_title(plan: RunPlan) -> str:
    """A model's name for people: a hub id as it is, a folder by its last part."""
    name = plan.source.name
    return Path(name).name or name if Path(name).is_dir() else name


class RunReport(Callback):
    """The report of a run, on its main process.

    It asks the sample questions as it is made, of the model as it was built: the base, or an adapter that is trained on.

    Args:
        plan: of the run.
        built: before anything of a checkpoint is in it.
        folder: of the run.
        clock: seconds that only grow.

    Attributes:
        pace: how long its answers' tokens take.
    """

    def __init__(
        self, plan: RunPlan, built: Built, folder: Path, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._folder, self._clock = plan, folder, clock
        self._history: list[dict[str, Any]] = []
        self.pace = AnswerPace()
        self._written = -math.inf
        self._ended = self._warned = False
        self._state = built.run.state
        self.data = data_summary(plan)
        why = why_no_samples(plan)
        count = plan.request.config.training.runtime.report_samples
        config = built.model.config
        system = plan.request.config.data.system_prompt or plan.data.report.system
        self._questions = [] if why else choose(plan.data.eval_data, plan.tokenizer, config, count, system)
        before: list[str | None] = []
        if self._questions:
            _say_asking(Reason("学習前", "the model before training"))
            with contextlib.nullcontext() if built.path is None else built.path.paused():
                before = answers(built.model, plan.tokenizer, self._questions, pace=self.pace)
        self._samples: list[Sample] | Reason = [
            Sample(question.text, question.expected, answer)
            for question, answer in zip(self._questions, before, strict=True)
        ] or (why or Reason("評価データの行がどれも長いため、ありません。", "None, as every evaluation row is long."))
        self._settings = flat(plain_run(plan.request.config))
        self._environment = _environment(plan, environment())

    def ask(self, model: Any) -> list[tuple[str, str]]:
        """Asks the trained model the sample questions for the report, and returns its answers to general ones for the card:
        (question, answer), without those that repeat a piece of the data; none where samples are off or the run was made to
        continue texts.
        """
        plan = self._plan
        if isinstance(self._samples, list):
            _say_asking(Reason("学習後", "the trained model"))
            after = answers(model, plan.tokenizer, self._questions, pace=self.pace)
            self._samples = [replace(sample, after=answer) for sample, answer in zip(self._samples, after, strict=True)]
        alone = plan.parallel.processes == 1
        if (
            not alone
            or not plan.request.config.training.runtime.report_samples
            or plan.request.config.method == "pretrain"
        ):
            return []
        asked = general_questions(plan.tokenizer)
        given = answers(model, plan.tokenizer, asked, pace=self.pace)
        rows = Joined(plan.data.train, plan.data.eval_data)
        return [
            (question.text, answer)
            for question, answer in zip(asked, given, strict=True)
            if answer and not repeats(plan.tokenizer, answer, rows)
        ]

    def completed(self, history: Sequence[dict[str, Any]], summary: dict[str, Any], saved_step: int | None) -> bytes:
        """The last page, as bytes of a file."""
        self.data = data_summary(self._plan)  # of streamed rows more is known by now
        self._history = [_kept(row) for row in history]
        return self._page("completed", _facts(summary), saved_step)

    def on_train_begin(self, state: TrainState, control: Control) -> None:
        """The first page; a resumed run has its curve again."""
        self._history = [
            _kept(row) for row in read_metrics(self._folder / METRICS) if row["step"] <= state.step and state.step > 0
        ]
        self._write("running", now=True)

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Notes the step."""
        self._history.append(_kept(row))

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Notes the evaluation; a new page."""
        self._history.append(_kept(row))
        self._write("running")

    def on_log(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """A new page."""
        self._write("running")

    def on_train_end(self, state: TrainState, control: Control) -> None:
        """Training is over; what follows is the last page."""
        self._ended = True
        self._write("running", now=True)

    def close(self) -> None:
        """The last page of a run that was stopped, by a signal or an error."""
        if not self._ended:
            self._write("stopped", now=True)

    def _write(self, state: State, *, now: bool = False) -> None:
        """The page in place of the last one, at most every SECONDS; a page that cannot be written stops no run."""
        moment = self._clock()
        if not now and moment - self._written < SECONDS:
            return
        self._written = moment
        try:
            write_in_place(self._folder / REPORT, self._page(state, [], None))
        except OSError as error:
            if not self._warned:
                warn(
                    f"{self._folder / REPORT} に書き込めません（{error}）。学習は続けます。",
                    f"{self._folder / REPORT} cannot be written ({error}); training continues.",
                )
            self._warned = True

    def _page(self, state: State, facts: list[tuple[Reason, str]], saved_step: int | None) -> bytes:
        plan = self._plan
        page = Report(
            model=model_title(plan),
            method=plan.request.config.effective_method,
            when=datetime.now().astimezone(),
            state=state,
            step=self._state.step,
            total_steps=self._state.step if state == "completed" else plan.summary.total_steps,
            history=self._history,
            data=self.data,
            samples=self._samples,
            facts=facts,
            environment=self._environment,
            commands=self._commands(state),
            settings=self._settings,
            notes=_notes(self._state),
            few=few_steps_unless_better(plan, self._history, saved_step),
            saved_step=saved_step,
        )
        return render_report(page).encode("utf-8")

    def _commands(self, state: State) -> list[tuple[Reason, str]]:
        folder = Path(self._plan.summary.output_dir)
        commands = []
        if _names_files(self._plan.request.train):
            again = f"aift train {argument(folder / CONFIG)}"
            commands.append((Reason("同じ学習をもう一度行う", "the same training again"), again))
            if state != "completed":
                more = f"aift resume {argument(folder)}"
                commands.append((Reason("続きから再開する", "continue from the last checkpoint"), more))
        if state == "completed":
            commands.append((Reason("会話して確かめる", "talk to the model"), f"aift chat {argument(folder)}"))
        return commands


def _say_asking(who: Reason) -> None:
    notice(
        f"レポートに載せる回答の例を作ります（{who.ja}、長くて {SAMPLE_SECONDS:.0f} 秒）。",
        f"asking {who.en} for the sample answers of the report ({SAMPLE_SECONDS:.0f} s at most).",
    )


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """What the page needs of a row, so that a long run holds little."""
    return row if "eval_loss" in row else {key: row.get(key) for key in ("step", "loss", "label_tokens")}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    obtained: dict[str, Any] = {}
    for key, value in values.items():
        obtained |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return obtained


def few_steps_unless_better(plan: RunPlan, history: Sequence[dict[str, Any]], saved_step: int | None) -> Reason | None:
    """That a run has few steps; not where its evaluation losses say that they were enough to learn something."""
    return None if verdict(history, saved_step).kind == "better" else plan.summary.few_steps()


def _notes(state: TrainState) -> list[Reason]:
    notes = []
    if state.skipped:
        notes.append(
            Reason(
                f"損失か勾配が有限でないため、{state.skipped} ステップの更新を見送りました。",
                f"{state.skipped} steps changed nothing, as their loss or gradient was not finite.",
            )
        )
    return notes


def _environment(plan: RunPlan, machine: dict[str, Any]) -> list[tuple[Reason, str]]:
    versions = machine["versions"]
    names = (
        ("Python", "python"),
        ("aift", "ai-finetuning-toolkit"),
        *((name, name) for name in ("torch", "transformers", "peft")),
    )
    return [
        (Reason("デバイス", "device"), f"{device_name(plan, machine)} ({plan.device})"),
        (Reason("精度", "precision"), plan.precision.name),
        (Reason("メモリー", "memory"), f"{machine['memory_gb']} GB"),
        (Reason("OS", "OS"), machine["platform"]),
        (
            Reason("バージョン", "versions"),
            ", ".join(f"{name} {versions[key]}" for name, key in names if versions[key]),
        ),
    ]


def device_name(plan: RunPlan, machine: dict[str, Any]) -> str:
    """The name of the GPU or the processor that computed."""
    devices = machine["gpu"].get("devices") or []
    if plan.device.type == "cuda" and devices:
        return str(devices[min(plan.device.index or 0, len(devices) - 1)]["name"])
    return str(machine["cpu"]["name"])


def _facts(summary: dict[str, Any]) -> list[tuple[Reason, str]]:
    plan = summary["plan"]
    return [
        (Reason("時間", "time"), duration(summary["seconds"])),
        (
            Reason("速さ", "speed"),
            str(
                Reason(
                    f"毎秒 {figure(summary['tokens_per_second'])} トークン",
                    f"{figure(summary['tokens_per_second'])} tokens/s",
                )
            ),
        ),
        (
            Reason("最大メモリー", "peak memory"),
            str(
                Reason(
                    f"{summary['peak_memory_gb']:g} GB（見積もり {summary['estimated_memory_gb']:g} GB）",
                    f"{summary['peak_memory_gb']:g} GB (estimate {summary['estimated_memory_gb']:g} GB)",
                )
            ),
        ),
        (Reason("学習した重み", "trained parameters"), f"{plan['trainable']:,} / {plan['parameters']:,}"),
    ]
