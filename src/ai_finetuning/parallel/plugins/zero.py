"""`deepspeed_stage: 2 | 3`: ZeRO (arXiv:1910.02054) by DeepSpeed, set up by Accelerate; an extra, docs/decisions/0021.

DeepSpeed's engine sums gradients, clips, steps and gathers. What stays ours: the loss and its division by the step's
label tokens, the learning rate, autocast, what a step that is not finite means, and the checkpoint, which any other
strategy resumes from.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ...errors import ConfigError, ProcessesError
from .. import _upstream
from ..batch import Batch, LossFunction, Rows
from ..strategies.distributed import DataParallel
from ..strategies.shard import ModelWithLoss
from ..strategy import Update
from ..weights.layout import Layout
from ..weights.state import Tensors, validate_names

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, the only optimizer here
_INSTALL = (
    "pip install wheel setuptools ninja && DS_BUILD_OPS=0 pip install --no-build-isolation 'deepspeed>=0.19.8,<0.20'"
)


def validate_processes(processes: int) -> None:
    """Refuses one process, or a machine without DeepSpeed, before anything is loaded.

    Raises:
        ConfigError: with the way out; a plain `pip install deepspeed` fails where torch is there already.
    """
    if processes == 1:
        raise ConfigError(
            "parallel.deepspeed_stage は 2 プロセス以上で使います（1 プロセスでは分けるものがありません）。GPU を増やすか、GPU なしで試すなら --cpu-processes "
            "2（parallel.processes）を指定するか、deepspeed_stage を消してください。",
            "parallel.deepspeed_stage needs two or more processes, and there is one: use more GPUs, or, to try it "
            "without, --cpu-processes 2 (parallel.processes), or leave deepspeed_stage out.",
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"parallel.deepspeed_stage には deepspeed が必要ですが、入っていません。次で入ります: {_INSTALL} 。追加パッケージなしで同じものを分割する "
            "strategy: fsdp もあります。",
            f"parallel.deepspeed_stage needs deepspeed, which is not installed: {_INSTALL} ; strategy: fsdp "
            "divides the same things without it.",
        )


def validate(stage: int, *, bits: int | None, optimizer: str, scaler: bool) -> None:
    """Refuses what ZeRO cannot train.

    Args:
        bits: of a quantized base.
        scaler: gradients are scaled (fp16).

    Raises:
        ConfigError: with the way out.
    """
    if bits is not None and stage == 3:
        raise ConfigError(
            f"parallel.deepspeed_stage 3 は {bits} ビットに量子化したベースを分割できません。2 にするか、strategy: fsdp（4 ビット）にしてください。",
            f"parallel.deepspeed_stage 3 cannot shard a {bits}-bit base; use 2, or strategy: fsdp (4 bit).",
        )
    if optimizer != "adamw":
        raise ConfigError(
            f"parallel.deepspeed_stage は training.optimizer.name: adamw だけです。いまは {optimizer} です。adamw にするか "
            "deepspeed_stage を消してください。",
            f"parallel.deepspeed_stage requires training.optimizer.name: adamw; it is {optimizer}. Use adamw, or "
            "leave deepspeed_stage out.",
        )
    if scaler:
        raise ConfigError(
            "parallel.deepspeed_stage は fp16 の勾配スケーリングと組み合わせられません。training.runtime.precision を bf16 か fp32 にしてください。",
            "parallel.deepspeed_stage cannot be combined with fp16 gradient scaling; set training.runtime.precision to "
            "bf16 or fp32.",
        )


class Zero(DataParallel):
    """Gradients and moments (stage 2), and weights too (stage 3), divided over the data ranks by DeepSpeed.

    Args:
        device: of this rank, which holds the whole model until attach() divides it.
        mesh: [1, dp, 1].
        stage: 2 or 3.
        max_grad_norm: DeepSpeed clips inside its step, so it has to know beforehand; 0: not clipped.
    """

    steps_optimizer = False

    def __init__(
        self,
        device: torch.device,
        mesh: DeviceMesh,
        *,
        stage: int,
        max_grad_norm: float,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(device, mesh, autocast=autocast)
        self._casts_stay = stage == 2  # copies of gathered weights would undo the division
        self._stage, self._max_norm = stage, max_grad_norm
        self._engine: Any = None

    def _replicate(self, model: nn.Module, loss: LossFunction) -> None:
        """DeepSpeed sends the first rank's weights to all and sums gradients."""

    def _take_parts(self, model: nn.Module) -> None:
        """Layouts of whole weights: in a checkpoint, the ranks take turns."""
        super()._take_parts(model)
        self.layouts = {
            name: Layout(tuple(p.shape), (0,) * p.ndim, tuple(p.shape), index % self.data_size == self.data_rank)
            for index, (name, p) in enumerate(self._whole.items())
        }

    def attach(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Divides model and optimizer; the optimizer's groups continue as flat parts, so that its learning rates stay
        ours.
        """
        self._linear = nn.functional.linear  # stage 3 puts its own in torch's place
        with _quiet():
            self._accelerator = _accelerator(self._settings())
            self._engine, _ = self._accelerator.prepare(ModelWithLoss(self._model, self._autocast_loss), optimizer)
            # Else transformers would divide whatever is loaded next in this process.
            self._accelerator.state.deepspeed_plugin.dschf = None
        return super().attach(optimizer)

    def _settings(self) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        vectors = [p.numel() for p in self._model.parameters() if p.ndim == 1]
        return {
            "train_micro_batch_size_per_gpu": 1,  # of its throughput counter only
            "gradient_accumulation_steps": 1,  # the loss is divided already
            "gradient_clipping": self._max_norm,
            "communication_data_type": "fp32",
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": self._stage,
                # Weights that stay whole: norms and the like, ten times the hidden size as transformers does.
                "stage3_param_persistence_threshold": 10 * max(vectors, default=0),
            },
        }

    def _autocast_loss(self, model: nn.Module, batch: Rows) -> Tensor:
        """The loss inside autocast; the engine would switch off one that is open around it."""
        with super()._computing():
            return self._loss(model, batch)

    def _computing(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def _loss_of(self, batch: Batch) -> Tensor:
        loss: Tensor = self._engine(batch)
        return loss

    def _communicating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def _backward(self, loss: Tensor) -> None:
        # The engine averages over the ranks what is a part of one sum. It skips a step by its gradients alone, so a
        # loss that is not finite makes them so (inf * 0 is nan).
        self._engine.backward(loss * (self.data_size + 0 * loss.detach()))

    @torch.no_grad()
    def update(self, loss: Tensor, max_norm: float, also: Tensor | None = None) -> Update:
        """DeepSpeed clips and steps in one, and skips both where gradients are not finite; the norm is nan then."""
        assert max_norm == self._max_norm, (max_norm, self._max_norm)
        self.exchanges += 1
        self._engine.step()
        norm = math.nan if self._engine.optimizer.overflow else float(self._engine.get_global_grad_norm())
        sums = loss.double()[None] if also is None else torch.cat([loss.double()[None], also])
        dist.all_reduce(sums)
        total, *rest = sums.tolist()
        return Update(total, norm, applied=bool(self._engine.was_step_applied()), also=tuple(rest))

    @torch.no_grad()
    def tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
        """Whole tensors, on the CPU, of the weights whose turn is this rank's."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        assert self.layouts is not None
        obtained: Tensors = {"model": {}, "optimizer": {}}
        steps = [state["step"] for state in optimizer.state.values() if state]
        if steps:
            self._find_moments()
        for name, parameter in self._whole.items():
            # Every rank takes part in putting each tensor together, and drops those that are not its own at once.
            weight = safe_get_full_fp32_param(parameter)
            moments = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS if steps}
            if not self.layouts[name].owner:
                continue
            obtained["model"][name] = weight.cpu()
            obtained["optimizer"] |= {f"{name}/{key}": moment.cpu() for key, moment in moments.items()}
            if steps:
                obtained["optimizer"][f"{name}/step"] = steps[0].detach().clone().cpu()
        return obtained

    @torch.no_grad()
    def load_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
        """Each rank keeps its part of whole tensors; the weights that the forward pass reads follow."""
        from deepspeed.runtime.zero import GatheredParameters

        validate_names(self._whole, tensors["model"])
        for name, parameter in self._whole.items():
            value = tensors["model"][name].to(self.device)
            with GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3):
                parameter.copy_(value)
            self._put(parameter, value)
        moments = tensors.get("optimizer")
        if not moments:
            return
        self._make_moments(optimizer)
        for key, moment in moments.items():
            name, _, kind = key.rpartition("/")
            if kind in _MOMENTS:
                self._put(self._whole[name], moment.to(self.device), kind)
        count = next(value for key, value in moments.items() if key.endswith("/step"))  # one for all
        for state in optimizer.state.values():
            state["step"].copy_(count)

    def _put(self, parameter: Any, value: Tensor, kind: str | None = None) -> None:
        """Sets the fp32 weight, or one of its moments, that DeepSpeed keeps."""
        from deepspeed import utils

        fp32, moment = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state
        if self._stage == 3:
            # DeepSpeed's own cut of a whole tensor fails where it does not divide evenly: its parts are as long as the
            # first, padded.
            size = parameter.ds_tensor.numel()
            padded = nn.functional.pad(value.flatten(), (0, size * self.data_size - value.numel()))
            value = padded.narrow(0, size * self.data_rank, size)
            fp32, moment = utils.safe_set_local_fp32_param, utils.safe_set_local_optimizer_state
        if kind is None:
            fp32(parameter, value)
        else:
            moment(parameter, value, kind)

    def _make_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """A step at rate 0 with gradients of 0: AdamW makes its moments in its first step, and DeepSpeed finds them
        after one.
        """
        zero = self._engine.optimizer
        parts = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        for index, part in enumerate(parts):
            part.grad = torch.zeros_like(part)
            _upstream.update_part(zero, index)
            part.grad = None
        self._find_moments()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _find_moments(self) -> None:
        """Under stage 2 DeepSpeed looks for the moments after the first group's first step, when the other groups
        have none yet.
        """
        if self._stage == 2:
            _upstream.look_for_moments(self._engine.optimizer)

    def close(self) -> None:
        """Takes DeepSpeed's hooks off, and lets Accelerate forget that it was there."""
        if self._engine is None:
            return
        self._engine.destroy()
        nn.functional.linear = self._linear
        self._engine = None
        self._accelerator.free_memory()
        _upstream.forget_accelerator()
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


def _accelerator(settings: dict[str, Any]) -> Any:
    """An Accelerator that hands model and optimizer to DeepSpeed.

    Not `cpu=True`, which drops the plugin without a word; on CPUs it then counts one process (DeepSpeed counts right),
    so that it is never asked for ranks.

    Raises:
        ProcessesError: Accelerate was used in this process before, without DeepSpeed.
    """
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, DistributedType

    # No operators of its own: on CPUs it would compile an all-reduce at the first start (minutes; killed meanwhile, it
    # leaves a lock on which later starts wait for ever), where gloo does the same, and to find out which it could
    # compile it runs the compiler.
    _upstream.compile_no_operators()
    plugin = DeepSpeedPlugin(hf_ds_config=settings, zero3_init_flag=False)
    accelerator = Accelerator(deepspeed_plugin=plugin, mixed_precision="no")
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise ProcessesError(
            f"このプロセスの Accelerate は DeepSpeed なし（{accelerator.distributed_type}）で初期化済みです。新しいプロセスで実行してください。",
            f"Accelerate was initialised without DeepSpeed in this process before ({accelerator.distributed_type}); "
            "run it in a fresh process.",
        )
    return accelerator


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed's lines of setup: none, and nothing on stdout; later, no word of what it calls in torch under old
    names.
    """
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):
        yield
