"""What becomes of rows that cannot be used: refused together in one list, or left out and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..errors import DataError, Reason, localized
from ..messages import excerpt

# Reasons that a message lists, and rows that it names for each.
LISTED, NAMED = 20, 3


class BadRow(ValueError):
    """A row that cannot become a sample, with the reason in Japanese and English.

    Attributes:
        found: the beginning of what stands in the row; empty where the reason says it all. It is shown where the rows are
            refused, and nowhere else.
    """

    def __init__(self, ja: str, en: str, found: object = "") -> None:
        super().__init__(ja, en)
        self.ja, self.en = ja, en
        self.found = excerpt(found)


@dataclass
class BadRows:
    """The bad rows of everything that is read for one purpose: collected first, so that a user learns of all at once.

    Attributes:
        skip: leave them out and count them instead of refusing the data.
        counts: rows by reason (Japanese, English).
        places: the first rows of each reason (`data/faq.csv:12`), with the beginning of what was found there.
    """

    skip: bool = False
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    places: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def add(self, error: BadRow, source: str) -> None:
        """Notes a bad row."""
        reason = (error.ja, error.en)
        self.counts[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < NAMED:
            places.append((source, error.found))

    def merge(self, later: BadRows) -> None:
        """Adds the bad rows of what comes behind these."""
        for reason, count in later.counts.items():
            self.counts[reason] += count
            places = self.places.setdefault(reason, [])
            places += later.places[reason][: NAMED - len(places)]

    def without_excerpts(self) -> BadRows:
        """The same without the beginnings of what was found."""
        places = {reason: [(source, "") for source, _ in some] for reason, some in self.places.items()}
        return BadRows(self.skip, Counter(self.counts), places)

    def listed(self, *, excerpts: bool = False) -> list[tuple[str, str]]:
        """A line (Japanese, English) for each of the first reasons: the rows and the reason.

        Args:
            excerpts: with the beginnings of what was found, for a terminal; logs, caches and files get none.
        """
        lines = []
        for (ja, en), places in list(self.places.items())[:LISTED]:
            more = self.counts[ja, en] - len(places)
            rows = [f'{source} "{found}"' if excerpts and found else source for source, found in places]
            named = ", ".join(rows)
            lines.append(
                (
                    f"{named}{f' ほか {more} 行' if more else ''}: {ja}",
                    f"{named}{f' and {more} more' if more else ''}: {en}",
                )
            )
        hidden = sum(list(self.counts.values())[LISTED:])
        return lines + ([(f"ほか {hidden} 行", f"and {hidden} more rows")] if hidden else [])

    def refuse(self) -> None:
        """Ends the reading if there are bad rows and nobody asked to leave them out.

        Raises:
            DataError: names every kind of problem with its rows and what to do.
        """
        if self.skip or not self.counts:
            return
        shown, written = self._refusal(self.listed(excerpts=True)), self._refusal(self.listed())
        raise DataError(shown.ja, shown.en, for_files=written)

    def _refusal(self, lines: list[tuple[str, str]]) -> Reason:
        if len(self) == 1:
            ja, en = lines[0]
            return Reason(
                f"{ja}。直すか、data.skip_bad_rows=true で読み飛ばせます。",
                f"{en}. Fix the row, or skip such rows with data.skip_bad_rows=true.",
            )
        return Reason(
            f"使えない行が {len(self)} 行あります。直すか、data.skip_bad_rows=true で読み飛ばせます。\n"
            + "\n".join(f"  {ja}" for ja, _ in lines),
            f"{len(self)} rows cannot be used. Fix them, or skip such rows with data.skip_bad_rows=true.\n"
            + "\n".join(f"  {en}" for _, en in lines),
        )

    def empty(self, name: str) -> DataError:
        """The refusal of data none of whose rows can be used."""
        reasons = self.listed()
        out = (
            ("", "")
            if reasons
            else (
                "行のあるファイルを指定するか、データから外してください。",
                " Name a file with rows, or leave it out.",
            )
        )
        return DataError(
            f"{name} に使える行がありません（読み飛ばし {len(self)} 行）。{out[0]}"
            + "".join(f"\n  {ja}" for ja, _ in reasons),
            f"{name} contains no usable row ({len(self)} rows skipped).{out[1]}"
            + "".join(f"\n  {en}" for _, en in reasons),
        )

    def lines(self) -> list[str]:
        """The report for the user, in the locale's language; empty without bad rows."""
        if not self.counts:
            return []
        head = localized(f"読み飛ばした行: {len(self)}", f"rows skipped: {len(self)}")
        return [head, *(f"  {localized(ja, en)}" for ja, en in self.listed())]
