"""DataConfig: what is read, and how it becomes tokens."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from .section import require, section


@section
class NormalizeConfig:
    """Which characters of the text are brought into one form; templates and special tokens never are."""

    SECTION: ClassVar[str] = "data.normalize"

    newlines: bool = True
    """CRLF and CR become LF."""
    bom: bool = True
    """U+FEFF is removed."""
    compose: bool = True
    """Combining sequences are composed (NFC), compatibility ideographs in people's names stay."""
    widen_kana: bool = True
    """Half-width katakana become full-width."""
    strip_control: bool = False
    """Control and zero-width characters are removed; else rows with control characters are refused."""
    narrow_ascii: bool = False
    """Full-width letters and digits become half-width."""
    wave_dash: bool = False
    """Full-width tilde U+FF5E becomes wave dash U+301C."""
    collapse_blank_lines: bool = False
    """Three and more line ends become two."""


@section
class DataConfig:
    """Training and held-out data, and how rows become tokens."""

    SECTION: ClassVar[str] = "data"

    train: str | list[str] | None = None
    """File, folder or hub id, or a list of them."""
    eval: str | list[str] | float | None = None
    """Held-out data: a file, or a share of the training rows (0.1)."""
    max_length: int = 512
    """Most tokens in a row."""
    packing: bool = False
    """Put several short documents into a row, isolated from each other."""
    group_by_length: bool = True
    """Without packing: rows of similar length share a micro-batch."""
    on_long: Literal["truncate", "drop", "error", "split"] = "truncate"
    """What happens to rows longer than max_length; split, for plain texts, makes several rows of them."""
    system_prompt: str | None = None
    """System message for conversations that have none."""
    columns: dict[str, str] | None = None
    """Roles of columns said by hand: {instruction: 本文, output: 答え}."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used, and count them, instead of stopping."""
    loss_on: Literal["auto", "assistant", "all"] = "auto"
    """Tokens that carry loss; auto: the assistant's in conversations, all of a plain text."""
    cache: bool = True
    """Keep tokens between runs (in the user's cache folder)."""
    normalize: NormalizeConfig = dataclasses.field(default_factory=NormalizeConfig)
    """Forms of characters."""

    def __post_init__(self) -> None:
        require(
            self.max_length >= 8, "data.max_length", self.max_length, "8 以上にしてください。", "it must be at least 8."
        )
        share = self.eval
        require(
            not isinstance(share, float) or 0 < share < 1,
            "data.eval",
            share,
            "割合なら 0 より大きく 1 より小さくしてください。",
            "a share must be above 0 and below 1.",
        )
