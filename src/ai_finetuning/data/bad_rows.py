"""What becomes of a row that cannot be used: refused, or left out and counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import DataError, localized

# Reasons that a report keeps.
KEPT = 10


class BadRow(ValueError):
    """A row that cannot become a sample, with the reason in Japanese and English."""

    def __init__(self, ja: str, en: str) -> None:
        super().__init__(ja, en)
        self.ja, self.en = ja, en


@dataclass(kw_only=True)
class LeftOut:
    """Rows that were left out, and the first reasons, in the user's language."""

    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def leave_out(self, error: BadRow, source: str, skip: bool) -> None:
        """Counts a bad row where the user asked for that.

        Raises:
            DataError: nobody did; it names the row's place and the reason.
        """
        if not skip:
            raise DataError(
                f"{source}: {error.ja}。直すか、data.skip_bad_rows=true で読み飛ばせます。",
                f"{source}: {error.en}. Fix the row, or skip such rows with data.skip_bad_rows=true.",
            ) from None
        self.skipped += 1
        if len(self.reasons) < KEPT:
            self.reasons.append(f"{source}: {localized(error.ja, error.en)}")
