"""Pipeline parallel: every process holds some layers, and micro-batches travel through the processes
(arXiv:1811.06965).

torch.distributed.pipelining runs the schedule over stages.py's cut of the model. All shapes are given beforehand:
hidden states travel packed, as [longest micro-batch of the step, width], so that micro-batches of any lengths share a
step, and nothing is computed or pickled to find shapes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from ...errors import ConfigError
from ...models.modes import evaluating
from ..batch import Batch, LossFunction
from ..collectives.mesh import Sizes
from .distributed import DataParallel
from .shard import shard_blocks
from .stages import Stage, StageSplitter, spans_of, split_layers, validate_stages


def _as_many(micro_batches: int, processes: int) -> int:
    return micro_batches


def _at_least_stages(micro_batches: int, processes: int) -> int:
    return max(micro_batches, processes)


def _whole_rounds(micro_batches: int, processes: int) -> int:
    """Interleaved schedules go in rounds of one length."""
    while micro_batches % max(1, micro_batches // processes):
        micro_batches += 1
    return micro_batches


@dataclass(frozen=True)
class Schedule:
    """One way to order the micro-batches.

    Attributes:
        kind: torch's class.
        stages: per process.
        vee: stages go down the processes and up again; else round and round.
        splits_backward: gradients of inputs first, those of weights where the process would wait (zero bubble).
        count: micro-batches that a step needs to hold, from those it has; empty ones fill up.
    """

    kind: Callable[..., Any]
    stages: int = 1
    vee: bool = False
    splits_backward: bool = False
    count: Callable[[int, int], int] = _as_many


# Batches for each stage that an evaluation sends through the pipeline together.
EVALUATED = 4
SCHEDULES = {
    "GPipe": Schedule(ScheduleGPipe),
    "1F1B": Schedule(Schedule1F1B, count=_at_least_stages),
    "Interleaved1F1B": Schedule(ScheduleInterleaved1F1B, 2, count=_whole_rounds),
    "InterleavedZeroBubble": Schedule(ScheduleInterleavedZeroBubble, 2, splits_backward=True, count=_whole_rounds),
    "ZBV": Schedule(ScheduleZBVZeroBubble, 2, vee=True, splits_backward=True),
}
DEFAULT_SCHEDULE = "1F1B"
# Refused: torch's split backward failed or hung on GPT-2 where stages zeroed its positions.
# With the cut of stages.py one step of a small GPT-2 is right under both (docs/decisions/0020); a longer trial on GPUs
# is missing.
WITHOUT_ZERO_BUBBLE = ("gpt2",)


def validate_pipeline(config: Any, sizes: Sizes, schedule: str = DEFAULT_SCHEDULE, *, sharded: bool = False) -> None:
    """Refuses what cannot be a pipeline, before weights are loaded.

    Args:
        config: the model's transformers configuration.
        sharded: whether the data ranks shard the stages (fsdp).

    Raises:
        ConfigError: an unknown schedule, fewer layers than stages, zero bubble with a model or with fsdp, or with `tp`.
    """
    plan = SCHEDULES.get(schedule)
    if plan is None:
        raise ConfigError(
            f"パイプラインのスケジュール {schedule} はありません。使えるもの: {', '.join(SCHEDULES)}",
            f"there is no pipeline schedule {schedule}; there are {', '.join(SCHEDULES)}.",
        )
    text = config.get_text_config()
    if sizes.tp > 1:
        raise ConfigError(
            f"pipeline_parallel_size {sizes.pp} と tensor_parallel_size {sizes.tp} は組み合わせられません。"
            "どちらかを 1 にしてください（残りのプロセスはデータ並列になります）。",
            f"pipeline_parallel_size {sizes.pp} and tensor_parallel_size {sizes.tp} cannot be combined; set one "
            "of them to 1 "
            "(the other processes become data parallel).",
        )
    if plan.splits_backward and text.model_type in WITHOUT_ZERO_BUBBLE:
        raise ConfigError(
            f"{text.model_type} はスケジュール {schedule}（zero bubble）では学習できません。{DEFAULT_SCHEDULE} を使ってください。",
            f"{text.model_type} cannot be trained by the schedule {schedule} (zero bubble); use {DEFAULT_SCHEDULE}.",
        )
    _check_sharded(schedule, sharded and sizes.dp > 1)
    _check_layers(int(text.num_hidden_layers), sizes.pp, schedule)


def _check_sharded(schedule: str, sharded: bool) -> None:
    """FSDP2 loses gradients of a backward pass that is split, without an error (docs/decisions/0020)."""
    if sharded and SCHEDULES[schedule].splits_backward:
        raise ConfigError(
            f"スケジュール {schedule}（zero bubble）と fsdp は、勾配が失われるため組み合わせられません。{DEFAULT_SCHEDULE} か strategy: ddp を使ってください。",
            f"the schedule {schedule} (zero bubble) and fsdp cannot be combined: gradients would be lost; use "
            f"{DEFAULT_SCHEDULE}, or ddp.",
        )


def _check_layers(layers: int, processes: int, schedule: str) -> None:
    each = SCHEDULES[schedule].stages
    if layers < processes * each:
        raise ConfigError(
            f"モデルの層は {layers} 層ですが、{schedule} の {processes} プロセスには {processes * each} 段（1 プロセス {each} 段）が必要です。"
            f"pipeline_parallel_size を {layers // each} 以下にしてください。",
            f"the model has {layers} layers, but {schedule} on {processes} processes needs {processes * each} "
            f"stages ({each} each); "
            f"lower pipeline_parallel_size to {layers // each} or less.",
        )


class Pipeline(DataParallel):
    """Stages over `pp`; each stage data parallel over `dp`, replicated or sharded.

    All processes of a pipeline see the same micro-batches. prepare() takes the whole model, on every process, and drops
    what other stages hold before the model moves to the device; then only this process's weights count.

    Args:
        schedule: a name of SCHEDULES.
        others: as Distributed.
    """

    def __init__(
        self,
        device: torch.device,
        mesh: DeviceMesh,
        *,
        schedule: str = DEFAULT_SCHEDULE,
        sharded: bool = False,
        autocast: torch.dtype | None = None,
        scaler: bool = False,
        fp32_master_weights: bool = False,
    ) -> None:
        _check_sharded(schedule, sharded)
        super().__init__(
            device, mesh, sharded=sharded, autocast=autocast, scaler=scaler, fp32_master_weights=fp32_master_weights
        )
        self._name, self._plan = schedule, SCHEDULES[schedule]
        self._group, self._processes, self._place = mesh.get_group("pp"), mesh["pp"].size(), mesh.get_local_rank("pp")
        self._count = self._processes * self._plan.stages
        self._counts = self._counts and self._place == self._process_of(self._count - 1)  # it knows the loss
        self._schedule: Any = None
        self._shape = (0, 0)

    def _process_of(self, stage: int) -> int:
        """Place in the pipeline's group of the process that holds a stage."""
        if self._plan.vee and stage >= self._processes:
            return self._count - 1 - stage
        return stage % self._processes

    def _rank_of(self, stage: int) -> int:
        return dist.get_global_rank(self._group, self._process_of(stage))

    def prepare(self, model: nn.Module, loss: LossFunction) -> nn.Module:
        """Cuts the model, checks the cut, and keeps this process's stages.

        Raises:
            ConfigError: fewer layers than stages. ModelError: the cut model computes another loss.
        """
        with self._weight_placement.layer_offload(model):
            staging = StageSplitter(model, loss, autocast=self._autocast, device=self.device)
            layers, before, after = staging.costs()
            _check_layers(len(layers), self._processes, self._name)
            spans = spans_of(split_layers(layers, self._count, before=before, after=after))
            validate_stages(staging, spans)
        self._note_names(model, staging)
        mine = [span for span in spans if self._process_of(span.index) == self._place]
        staging.prune(mine)
        self._staging = staging
        self.stages = [Stage(staging, span) for span in mine]
        super().prepare(model, loss)
        self._same_ties()
        return model

    def _note_names(self, model: nn.Module, staging: StageSplitter) -> None:
        """Names under which weights stay known when the module that has named them is another process's."""
        names: dict[int, str] = {}
        self._names = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names[name] = names.setdefault(id(parameter), name)
        ends = {self._process_of(0), self._process_of(self._count - 1)}
        self._ties = [names[id(p)] for p in model.parameters() if id(p) in staging.shared] if len(ends) == 2 else []
        self._answers_for_ties = self._place == self._process_of(0)
        if self._ties and self._place in ends:
            (other,) = ends - {self._place}
            self._tied_rank = dist.get_global_rank(self._group, other)

    def _shard(self, model: nn.Module, loss: LossFunction) -> None:
        for stage in self.stages:
            shard_blocks(stage, self._staging.blocks_of(stage.span), self.mesh["dp"], self._weight_placement)

    def _global_names(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in model.named_parameters():
            yield self._names[name], parameter

    def _take_parts(self, model: nn.Module) -> None:
        super()._take_parts(model)
        assert self.layouts is not None
        self._ties = [name for name in self._ties if name in self._parts]
        if not self._answers_for_ties:
            self.layouts |= {name: replace(self.layouts[name], owner=False) for name in self._ties}

    @torch.no_grad()
    def _same_ties(self) -> None:
        """Both copies of a tied weight begin equal, and get equal updates from then on."""
        for name in self._ties:
            theirs = self._exchange(self._parts[name].data)
            if not self._answers_for_ties:
                self._parts[name].copy_(theirs)

    def _exchange(self, tensor: Tensor) -> Tensor:
        """The same tensor of the process at the pipeline's other end."""
        theirs = torch.empty_like(tensor)
        both = ((dist.isend, tensor.contiguous()), (dist.irecv, theirs))
        for work in dist.batch_isend_irecv([dist.P2POp(do, what, self._tied_rank, self._group) for do, what in both]):
            work.wait()
        return theirs

    def forward_backward(self, group: Sequence[Batch], num_valid: float) -> Tensor:
        """Gradients over the micro-batches, in the schedule's order, summed over the data ranks."""
        self.exchanges += 1
        group = [batch.to(self.device) for batch in group]
        smallest = min(group, key=_tokens)
        group += [smallest.without_labels()] * (self._plan.count(len(group), self._processes) - len(group))
        schedule = self._schedule_for(len(group), max(map(_tokens, group)))
        for stage in self.stages:
            stage.begin(group, num_valid, self._shape[1])
        numbers = torch.arange(len(group))
        try:
            first = (numbers,) if self.stages[0].span.first else ()
            schedule.step(*first, number=numbers, target=numbers, return_outputs=False)
        except BaseException:
            self._schedule = None  # a step that broke off leaves its losses in it
            raise
        finally:
            self._staging.show(None)
        self._finish_gradients()
        for name in self._ties:
            self._add_ties(self._parts[name])
        return self._total()

    def _add_ties(self, part: nn.Parameter) -> None:
        if part.grad is None:
            part.grad = torch.zeros_like(part)
        part.grad += self._exchange(part.grad)

    def _total(self) -> Tensor:
        """The sum of the losses, 0 where the last stage is another process's; the micro-batches are let go."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for stage in self.stages:
            total = total + stage.total
            stage.begin([], 1.0, 0)
        return total

    def _schedule_for(self, micro_batches: int, tokens: int) -> Any:
        """A schedule for so many micro-batches of at most `tokens` tokens; the last one where it serves."""
        count, longest = self._shape
        if self._schedule is None or micro_batches != count or not longest // 2 <= tokens <= longest:
            self._schedule = None  # its buffers go before the new ones come
            self._shape = (micro_batches, tokens)
            stages = [self._torch_stage(stage) for stage in self.stages]
            self._schedule = self._plan.kind(
                stages if self._plan.stages > 1 else stages[0], micro_batches, loss_fn=self._scaled, scale_grads=False
            )
        return self._schedule

    def _scaled(self, loss: Tensor, number: Tensor) -> Tensor:
        return self._scale.scale(loss)

    def _torch_stage(self, stage: Stage) -> PipelineStage:
        span, staging = stage.span, self._staging
        hidden = torch.empty(self._shape[1], staging.width, dtype=staging.dtype, device="meta", requires_grad=True)
        number, loss = (
            torch.empty(1, dtype=torch.int64, device="meta"),
            torch.empty((), device="meta", requires_grad=True),
        )
        return PipelineStage(
            stage,
            span.index,
            self._count,
            self.device,
            group=self._group,
            input_args=number if span.first else hidden,
            output_args=loss if span.last else hidden,
        )

    def _evaluate_mine(self, batches: Sequence[Batch]) -> tuple[float, int]:
        total, each = torch.zeros((), dtype=torch.float64, device=self.device), EVALUATED * self._count
        try:
            with evaluating(self._model):
                for start in range(0, len(batches), each):
                    part = [batch.to(self.device) for batch in batches[start : start + each]]
                    for stage in self.stages:
                        stage.begin(part, 1.0, max(map(_tokens, part)))
                    self._forward(len(part))
                    total += self._total()
        finally:
            self._staging.show(None)
        return float(total), sum(batch.num_units for batch in batches)

    def _forward(self, count: int) -> None:
        """Every micro-batch through this process's stages; torch's schedules cannot go forward only in a V."""
        here: dict[tuple[int, int], Tensor] = {}
        works: list[tuple[Any, Tensor]] = []
        for stage in self.stages:
            index = stage.span.index
            for number in range(count):
                received = here.pop((index, number), None)
                if received is None and not stage.span.first:
                    received = torch.empty(
                        stage.tokens, self._staging.width, dtype=self._staging.dtype, device=self.device
                    )
                    dist.recv(received, self._rank_of(index - 1), group=self._group)
                out = stage(received, number=torch.tensor(number))
                if stage.span.last:
                    continue
                if self._process_of(index + 1) == self._place:
                    here[index + 1, number] = out
                else:
                    works.append((dist.isend(out, self._rank_of(index + 1), group=self._group), out))
        for work, _ in works:
            work.wait()

    def close(self) -> None:
        """Lets buffers and the schedule go."""
        super().close()
        self._schedule = None


def _tokens(batch: Batch) -> int:
    return batch.input_ids.numel()
