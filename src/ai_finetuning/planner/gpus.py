"""GPUs that a plan can be made for without having them: what NVIDIA states of each. Needs no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError

# Most GPUs of one kind in a plan.
MOST = 1024
# Share of a GPU's memory that a plan may fill: with what the self-check measured of this machine, and without it.
CALIBRATED, UNCALIBRATED = 0.92, 0.80


@dataclass(frozen=True)
class Card:
    """One kind of GPU.

    Attributes:
        name: as a plan is asked for it, in lower case; a size behind `-` where there are several.
        memory_gib: that torch finds on an idle one, rounded down (the driver and ECC have taken theirs).
        bandwidth: of its memory, in 10^9 bytes a second.
        link: what it sends to the other GPUs of a machine, and at a time receives, in 10^9 bytes a second: NVLink where the
            card comes with it, else PCI Express.
        tflops: dense peak in 10^12 operations a second by type: fp32, tf32, fp16, bf16, fp8, without those that it has
            not; 16-bit products are added up in fp32, as in training.
        capability: compute capability.
        known_as: regular expression that the name torch and the driver give it fits; the longest row that fits counts.
        source: where bandwidth and peaks are stated.
    """

    name: str
    memory_gib: float
    bandwidth: float
    link: float
    tflops: Mapping[str, float]
    capability: tuple[int, int]
    known_as: str
    source: str

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16 by instruction."""
        return "bf16" in self.tflops

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return int(self.memory_gib * 2**30)


def _peaks(fp32: float, tf32: float = 0.0, half: float = 0.0, bf16: float = 0.0, fp8: float = 0.0) -> dict[str, float]:
    every = {"fp32": fp32, "tf32": tf32, "fp16": half, "bf16": bf16, "fp8": fp8}
    return {name: value for name, value in every.items() if value}


_AMPERE = "NVIDIA Ampere GA102 GPU Architecture (whitepaper), appendix A"
_HOPPER = "NVIDIA {} Tensor Core GPU (datasheet), SXM; figures without sparsity"
_A100 = "NVIDIA A100 Tensor Core GPU (datasheet), SXM"
_A100_PEAKS, _H100_PEAKS = _peaks(19.5, 156, 312, 312), _peaks(67, 494.7, 989.4, 989.4, 1978.9)
# GeForce cards halve their 16-bit rate where products are added up in fp32; the cards for workstations do not. Where a
# data sheet states figures with sparsity only, the dense ones are half of them.
CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card("t4", 14.5, 320, 16, _peaks(8.1, 0, 65), (7, 5), r"\bt4\b", "NVIDIA T4 Tensor Core GPU (datasheet)"),
        Card(
            "a10",
            22.0,
            600,
            32,
            _peaks(31.2, 62.5, 125, 125),
            (8, 6),
            r"\ba10\b",
            "NVIDIA A10 Tensor Core GPU (datasheet)",
        ),
        Card(
            "l4",
            22.0,
            300,
            32,
            _peaks(30.3, 60, 121, 121, 242.5),
            (8, 9),
            r"\bl4\b",
            "NVIDIA L4 Tensor Core GPU (datasheet); half of its figures with sparsity",
        ),
        Card("3090", 23.6, 936, 32, _peaks(35.6, 35.6, 71, 71), (8, 6), r"\b3090\b(?! ti)", _AMPERE),
        Card(
            "4090",
            23.6,
            1008,
            32,
            _peaks(82.6, 82.6, 165.2, 165.2, 330.3),
            (8, 9),
            r"\b4090\b(?! d)",
            "NVIDIA Ada GPU Architecture (whitepaper), appendix A",
        ),
        Card(
            "5090",
            31.3,
            1792,
            64,
            _peaks(104.8, 104.8, 209.5, 209.5, 419),
            (12, 0),
            r"\b5090\b(?! d)",
            "NVIDIA RTX Blackwell GPU Architecture (whitepaper), appendix A",
        ),
        Card(
            "a5000",
            23.6,
            768,
            32,
            _peaks(27.8, 55.6, 111.1, 111.1),
            (8, 6),
            r"\brtx a5000\b",
            "NVIDIA RTX A5000 (datasheet); half of its tensor performance with sparsity",
        ),
        Card(
            "a6000",
            47.5,
            768,
            32,
            _peaks(38.7, 77.4, 154.8, 154.8),
            (8, 6),
            r"\brtx a6000\b",
            "NVIDIA RTX A6000 (datasheet); half of its tensor performance with sparsity",
        ),
        Card("a100-40", 39.3, 1555, 300, _A100_PEAKS, (8, 0), r"\ba100\b.*\b40gb", _A100),
        Card("a100-80", 79.1, 2039, 300, _A100_PEAKS, (8, 0), r"\ba100\b.*\b80gb", _A100),
        Card("h100", 79.1, 3350, 450, _H100_PEAKS, (9, 0), r"\bh100 80gb hbm3\b", _HOPPER.format("H100")),
        Card("h200", 139.7, 4800, 450, _H100_PEAKS, (9, 0), r"\bh200\b", _HOPPER.format("H200")),
        Card(
            "b200",
            178.3,
            7700,
            900,
            _peaks(75, 1125, 2250, 2250, 4500),
            (10, 0),
            r"\bb200\b",
            "NVIDIA HGX B200 (datasheet), an eighth of eight GPUs; half of its figures with sparsity",
        ),
    )
}


@dataclass(frozen=True)
class Gpus:
    """GPUs of one kind in one machine that need not be here."""

    card: Card
    count: int = 1

    def __str__(self) -> str:
        return f"{self.card.name.upper()} x {self.count}"


_WORDS = re.compile(r"nvidia|geforce|quadro|tesla|rtx|\s|_|-")
_COUNT = re.compile(r"^(?P<name>.+?)\s*[x×*]\s*(?P<count>\d{1,5})$", re.IGNORECASE)


def parse_gpus(text: str) -> Gpus:
    """GPUs as `--gpu` names them: `4090x2`, `a100-80x8`, `A100 80GB`, `RTX 4090 x 2`.

    Raises:
        UsageError: no such row in the table, several, or a number of GPUs that cannot be.
    """
    name, count = text.strip(), 1
    found = CARDS.get(name.lower())
    counted = _COUNT.match(name)
    # A name may end as a count does ("rtx4090").
    if found is None and counted is not None and _rows_of(counted["name"]):
        name, count = counted["name"], int(counted["count"])
    rows = [found] if found is not None else _rows_of(name)
    if len(rows) != 1:
        raise _unknown(text, rows)
    if not 1 <= count <= MOST:
        raise UsageError(
            f"--gpu {text} の枚数が {count} です。1 から {MOST} にしてください。",
            f"--gpu {text} asks for {count} GPUs; it must be 1 to {MOST}.",
        )
    return Gpus(rows[0], count)


def card_named(name: str) -> Card | None:
    """The row of a GPU by the name that torch and the driver give it; None where the table has none."""
    return next((card for card in CARDS.values() if re.search(card.known_as, name.lower())), None)


def _rows_of(text: str) -> list[Card]:
    asked = _plain(text)
    exact = [card for card in CARDS.values() if _plain(card.name) == asked]
    return exact or [card for card in CARDS.values() if asked and _plain(card.name.split("-")[0]) == asked]


def _plain(name: str) -> str:
    return re.sub(r"(\d)gb?$", r"\1", _WORDS.sub("", name.lower()))


def _unknown(text: str, rows: list[Card]) -> UsageError:
    near = [card.name for card in rows] or difflib.get_close_matches(_plain(text).split("x")[0], CARDS, n=3, cutoff=0.4)
    ja = f"もしかして: {'、'.join(near)}。" if near else ""
    en = f" Did you mean {', '.join(near)}?" if near else ""
    return UsageError(
        f"--gpu {text} は GPU の表にありません。{ja}名前と枚数を 4090x2 のように書きます。表にあるもの: {', '.join(CARDS)}",
        f"--gpu {text} is not in the table of GPUs.{en} Write a name and a number, like 4090x2. The table has "
        f"{', '.join(CARDS)}.",
    )
