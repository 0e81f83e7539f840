"""What was read of data, left out and changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..errors import localized
from ..messages import excerpt
from .bad_rows import BadRows
from .rows import FileReport

_NAMED = 5  # rows that a report names


@dataclass
class Noted:
    """Rows that have something about them: how many, and the first ones.

    Attributes:
        last: the one that was noted last; a row is counted once, however often it is noted in a row.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)
    last: str = ""

    def note(self, source: str) -> None:
        """Counts a row."""
        if source != self.last:
            self.merge(Noted(1, [source], source))

    def merge(self, later: Noted) -> None:
        """Adds the rows of what comes behind these."""
        self.count += later.count
        self.first += later.first[: _NAMED - len(self.first)]
        self.last = later.last or self.last


@dataclass
class DataReport:
    """What was read, left out and changed.

    Attributes:
        bad: rows that cannot be used.
        shared: whether these are of other sources as well, and reported by whoever collects them.
        formats: rows by format.
        roles: role by column, where a heading is not the role's own name.
        unused_columns: rows in which a column held something that is not used, by the column's name.
        unused_keys: the same for keys of messages.
        unlearnt: rows that say of themselves that they are not to be learnt.
        ties: pairs of answers neither of which is the better one.
        against: pairs whose chosen answer has the lower score.
        winners: of pairs with a verdict in a column of its own, the column of the better answer.
        marked, unmarked: rows that were refused as answers that somebody marked as good or bad, and rows that are used
            although they have a column for such marks, by file.
        likely_rows: rows that are perhaps mojibake, too few of their file to be sure.
        loop_rows, template_rows: conversations with an answer that ends in a loop, or with a template token of some model.
    """

    bad: BadRows = field(default_factory=BadRows)
    shared: bool = False
    files: list[FileReport] = field(default_factory=list)
    samples: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    roles: dict[str, str] = field(default_factory=dict)
    normalized: Counter[str] = field(default_factory=Counter)
    private_use_rows: Noted = field(default_factory=Noted)
    control_rows: Noted = field(default_factory=Noted)
    unused_columns: Counter[str] = field(default_factory=Counter)
    unused_keys: Counter[str] = field(default_factory=Counter)
    unlearnt: int = 0
    ties: int = 0
    against: Noted = field(default_factory=Noted)
    winners: Counter[str] = field(default_factory=Counter)
    marked: Counter[str] = field(default_factory=Counter)
    unmarked: Counter[str] = field(default_factory=Counter)
    likely_rows: Noted = field(default_factory=Noted)
    loop_rows: Noted = field(default_factory=Noted)
    template_rows: Noted = field(default_factory=Noted)

    def merge(self, later: DataReport) -> None:
        """Adds what was read behind this; bad rows are merged by whoever collects them."""
        self.files += later.files
        self.samples += later.samples
        self.unlearnt += later.unlearnt
        self.ties += later.ties
        self.roles |= later.roles
        for mine, other in (
            (self.formats, later.formats),
            (self.normalized, later.normalized),
            (self.unused_columns, later.unused_columns),
            (self.unused_keys, later.unused_keys),
            (self.winners, later.winners),
            (self.marked, later.marked),
            (self.unmarked, later.unmarked),
        ):
            mine.update(other)
        for noted, more in (
            (self.private_use_rows, later.private_use_rows),
            (self.control_rows, later.control_rows),
            (self.likely_rows, later.likely_rows),
            (self.loop_rows, later.loop_rows),
            (self.template_rows, later.template_rows),
            (self.against, later.against),
        ):
            noted.merge(more)

    def lines(self) -> list[str]:
        """The report for the user, in the locale's language."""
        lines = [line for item in self.files for line in item.lines()]
        lines += [] if self.shared else self.bad.lines()
        if len(self.formats) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in self.formats.items())
            lines.append(localized(f"行の形式: {counts}", f"formats of the rows: {counts}"))
        if self.roles:
            named = ", ".join(f"{excerpt(column)} → {role}" for column, role in self.roles.items())
            lines.append(localized(f"列の役割: {named}", f"roles of columns: {named}"))
        if self.unlearnt:
            lines.append(
                localized(
                    f"学習しないと書かれた行（weight: 0、train: false など）: {self.unlearnt}",
                    f"rows that say not to learn them (weight: 0, train: false and the like): {self.unlearnt}",
                )
            )
        lines += self._judged_lines()
        if self.normalized:
            counts = ", ".join(f"{name} {count}" for name, count in self.normalized.items())
            lines.append(localized(f"文字の正規化: {counts}", f"characters normalised: {counts}"))
        for rows, ja, en in (
            (self.private_use_rows, "外字（私用領域）のある行", "rows with private-use characters"),
            (
                self.control_rows,
                "制御文字 U+0080-U+009F のある行（そのまま使います。data.normalize.strip_control=true で取り除けます）",
                "rows with control characters U+0080-U+009F (used as they are; data.normalize.strip_control=true removes them)",
            ),
            (self.likely_rows, "文字化けかもしれない行", "rows that are perhaps mojibake"),
            (
                self.against,
                "良いとした回答の点数が、悪いとした回答より低い組（そのまま使います。取り違えていないか確かめてください）",
                "pairs whose chosen answer has the lower score (used as they are; see that they are not the wrong way round)",
            ),
            (
                self.loop_rows,
                "警告: 同じ語句の繰り返しで終わる回答のある行（aift data doctor で除けます）",
                "warning: rows with an answer that ends in a loop (`aift data doctor` can leave them out)",
            ),
            (
                self.template_rows,
                "警告: プロンプトテンプレートのトークンのある行（aift data doctor で確かめられます）",
                "warning: rows with a token of a prompt template (`aift data doctor` shows them)",
            ),
        ):
            if rows.count:
                where = ", ".join(rows.first)
                lines.append(localized(f"{ja}: {rows.count}（{where}）", f"{en}: {rows.count} ({where})"))
        for counter, ja, en in (
            (self.unused_columns, "使わない列", "columns not used"),
            (self.unused_keys, "使わないメッセージのキー", "message keys not used"),
        ):
            if counter:
                named = ", ".join(
                    name if count == self.samples else localized(f"{name}（{count} 行）", f"{name} ({count} rows)")
                    for name, count in ((excerpt(full), rows) for full, rows in counter.items())
                )
                lines.append(localized(f"{ja}: {named}", f"{en}: {named}"))
        return lines

    def _judged_lines(self) -> list[str]:
        """What is said of pairs of answers."""
        lines = []
        if self.winners:
            counts = ", ".join(f"{excerpt(column)} {count}" for column, count in self.winners.items())
            lines.append(localized(f"良いとされた回答の列: {counts}", f"columns of the better answers: {counts}"))
        if len(self.winners) == 1:
            lines.append(
                localized(
                    "すべての行で同じ列が良いとされています。数が列の番号（1、2）のときは、列の名前（response1 など）に書き直してください",
                    "the same column is the better one in every row: if the numbers are names of columns (1, 2), write the "
                    "columns (such as response1) instead",
                )
            )
        if self.ties:
            lines.append(
                localized(
                    f"引き分けの組（使いません）: {self.ties}", f"ties between two answers, left out: {self.ties}"
                )
            )
        return lines
