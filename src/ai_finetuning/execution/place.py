"""Where a run computes: the devices of this machine, asked when they are needed, or GPUs of the table that are not here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..errors import ConfigError, Reason
from ..models.base_model import BaseModel
from ..parallel.processes import launched
from ..parallel.strategies.device_map import capacities
from ..planner.gpus import CALIBRATED, UNCALIBRATED, Card, Gpus, card_named
from ..planner.roofline import Rates, linked, stated_rates
from ..system.gpu import free_memory_bytes, get_available_device, own_gpu, sixteen_bit
from .self_check.facts import key_of
from .self_check.record import calibration_like, calibration_of, libraries_like, libraries_of, rates_like, rates_of


@dataclass(frozen=True)
class Place:
    """What a plan asks of a machine.

    Attributes:
        device: of this process, or of the first one of the run.
        elsewhere: GPUs that the plan is made for although they are not here; None for this machine.
    """

    device: torch.device
    elsewhere: Gpus | None = None

    def __str__(self) -> str:
        return str(self.device) if self.elsewhere is None else str(self.elsewhere)

    @property
    def several(self) -> bool:
        """Whether the run may take every GPU there is: none of them was named."""
        return self.device.type == "cuda" and self.device.index is None

    def gpu_count(self) -> int:
        """GPUs that the run may take."""
        return self.elsewhere.count if self.elsewhere is not None else torch.cuda.device_count()

    def validate_count(self, processes: int) -> None:
        """Refuses a plan for more processes than the GPUs that it is made for.

        Raises:
            ConfigError: with both numbers.
        """
        if self.elsewhere is not None and processes > self.elsewhere.count:
            raise ConfigError(
                f"parallel.processes が {processes} ですが、--gpu は {self.elsewhere} です。{self.elsewhere.count} 以下にするか、GPU の数を増やしてください。",
                f"parallel.processes is {processes}, but --gpu names {self.elsewhere}; make it {self.elsewhere.count} or less, "
                "or name more GPUs.",
            )

    def gpus(self) -> dict[int, int]:
        """Free bytes of each GPU."""
        if self.elsewhere is not None:
            return dict.fromkeys(range(self.elsewhere.count), self.elsewhere.card.memory_bytes)
        return {index: free_memory_bytes(torch.device("cuda", index)) for index in range(torch.cuda.device_count())}

    def free_bytes(self, model: BaseModel | None = None) -> int:
        """Free on the device, counting what a loaded model already takes."""
        if self.elsewhere is not None:
            return self.elsewhere.card.memory_bytes
        loaded = model.model if model is not None else None
        held = (
            sum(weight.numel() * weight.element_size() for weight in loaded.parameters()) if loaded is not None else 0
        )
        return free_memory_bytes(self.device) + held

    def usable(self, free: int) -> int:
        """What a plan may fill of so many free bytes: of a GPU not all, as what its libraries and a fragmented heap take is
        not known before it was measured on one of its kind.
        """
        return int(free * self.share())

    def share(self) -> float:
        """The share of free memory that usable() leaves."""
        if self.device.type != "cuda":
            return 1.0
        return CALIBRATED if self.calibration() is not None else UNCALIBRATED

    def calibration(self) -> Reason | None:
        """By which self-check it was measured what the libraries take of such a GPU; None without one."""
        if self.elsewhere is not None:
            return calibration_like(self.elsewhere.card)
        return calibration_of(self.device) if self.device.type == "cuda" else None

    def libraries(self, communicators: int) -> int:
        """Bytes that libraries will take of such a GPU beside tensors, where a self-check has measured them; else 0, which the
        smaller share() stands for.

        Args:
            communicators: of NCCL that a process makes.
        """
        if self.device.type != "cuda":
            return 0
        taken = libraries_of(self.device) if self.elsewhere is None else libraries_like(self.elsewhere.card)
        if self.elsewhere is None and own_gpu() is not None:  # then what is free knows the context
            taken.pop("context_bytes", None)
        each = taken.pop("communicator_bytes", 0)
        return sum(taken.values()) + communicators * each

    def comfortable(self, free: int) -> int:
        """Above which gradient checkpointing is worth its time; on a CPU other programs want memory too."""
        return self.usable(free) if self.device.type == "cuda" else int(0.8 * free)

    def rates(self) -> Rates | None:
        """What the GPUs reach, measured by a self-check of such a one or else as stated; None where neither is known."""
        if self.elsewhere is not None:
            like = rates_like(self.elsewhere.card)
            return stated_rates(self.elsewhere) if like is None else replace(like, link=linked(self.elsewhere.card))
        measured = rates_of(self.device) if self.device.type == "cuda" else None
        card = self._card()
        return measured if measured is None or card is None else replace(measured, link=linked(card))

    def expected_rates(self) -> Rates | None:
        """As rates(), or what the maker states of the GPU that is here: good enough to compare two ways to train."""
        rates, card = self.rates(), self._card()
        return rates if rates is not None or card is None else stated_rates(Gpus(card))

    def _card(self) -> Card | None:
        if self.elsewhere is not None:
            return self.elsewhere.card
        return card_named(key_of(self.device)["device"]) if self.device.type == "cuda" else None

    def sixteen_bit(self) -> torch.dtype | None:
        """The 16-bit type that the device computes well in."""
        if self.elsewhere is not None:
            return torch.bfloat16 if self.elsewhere.card.has_bf16 else torch.float16
        return sixteen_bit(self.device)

    def room(self, asked: dict[int, str] | None) -> dict[int, int]:
        """Bytes that model_parallel may use on each GPU.

        Raises:
            ConfigError: fewer than two GPUs, or one that is not there.
        """
        return capacities(asked, self.gpus())

    def of_rank(self, processes: int) -> torch.device:
        """Where this process computes: with several, each takes the GPU of its rank on the machine."""
        if processes > 1 and self.device.type == "cuda":
            return torch.device("cuda", launched().local_rank)
        return self.device


def place_for(device: torch.device | None, elsewhere: Gpus | None) -> Place:
    """The place of a run: what was named, else the best there is."""
    if elsewhere is not None:
        return Place(torch.device("cuda"), elsewhere)
    return Place(device or get_available_device())
