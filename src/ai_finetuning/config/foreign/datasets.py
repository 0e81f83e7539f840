"""Rows of data as other tools name them: what our reader finds by itself, and what it has to be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import Reason
from .draft import Draft
from .values import Unfit, shown

# Names that our reader knows by itself (data/formats.py), by role.
KNOWN_COLUMNS = {
    "messages": ("messages", "conversations", "conversation"),
    "instruction": ("instruction", "prompt", "question", "query"),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "completion"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "text": ("text",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "label": ("label",),
}
ROLES = {
    "system": ("system",),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "bot", "model"),
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")


@dataclass
class Rows:
    """What several data sets of theirs become.

    Attributes:
        train: files, folders and hub ids, as they are named there.
        named: the columns of each role, as the entries call them.
        forms: how the rows become text: `plain`, `chat`, or the name of a prompt.
        limits: the first so many rows of each.
        problems: what is missing.
        remarks: what is then not quite theirs.
    """

    train: list[str] = field(default_factory=list)
    named: dict[str, list[str]] = field(default_factory=dict)
    forms: list[str] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    problems: list[Reason] = field(default_factory=list)
    remarks: list[Reason] = field(default_factory=list)

    def add(self, name: str) -> None:
        """One more file or data set; the same one twice is trained on twice there, and once here."""
        if name in self.train:
            self.remarks.append(
                Reason(f"{name} が 2 回あります。1 回だけ読みます", f"{name} stands there twice and is read once")
            )
        else:
            self.train.append(name)

    def column(self, role: str, name: object) -> None:
        """A column of a role; told to our reader where it would not find it by its name."""
        self.named.setdefault(role, []).append(str(name))

    def _settle(self) -> dict[str, str]:
        """The columns that our reader has to be told; one name for a role holds for all files."""
        columns = {}
        for role, named in self.named.items():
            unknown = [name for name in dict.fromkeys(named) if name not in KNOWN_COLUMNS[role]]
            if unknown and len(set(named)) > 1:
                self.remarks.append(
                    Reason(
                        f"データごとに列の名前が違います（{', '.join(dict.fromkeys(named))}）。{KNOWN_COLUMNS[role][0]} に揃えてください",
                        f"the data sets name a column differently ({', '.join(dict.fromkeys(named))}); call it "
                        f"{KNOWN_COLUMNS[role][0]} in all of them",
                    )
                )
            elif unknown:
                columns[role] = unknown[0]
        return columns

    def attempt(self, entry: Callable[[], None]) -> None:
        """Reads one entry; a value in it that cannot be read is a problem of the data sets."""
        try:
            entry()
        except Unfit as unfit:
            self.problems.append(unfit.reason)

    def put(self, draft: Draft, key: str) -> None:
        """Writes data.train and its companions, and lists what became of `key`."""
        if self.problems:
            draft.refuse(key, Reason.joined(list(dict.fromkeys(self.problems))))
            return
        if not self.train:
            draft.refuse(key, Reason("学習データがありません", "it names no training data"))
            return
        columns = self._settle()
        remarks = Reason.joined(list(dict.fromkeys(self.remarks))) if self.remarks else None
        draft.set("data.train", self.train[0] if len(self.train) == 1 else self.train, remarks)
        if columns:
            draft.set("data.columns", columns)
        if self.limits and "data.max_samples" not in draft.settings:
            draft.set("data.max_samples", self.limits[0])
        draft.take(key, "data.train", draft.settings["data.train"], remarks)
        if remarks is not None:
            draft.convert(key, remarks, "data.train", differs=True)


def check_tags(tags: Mapping[str, Any], rows: Rows) -> None:
    """Names inside a message: role, content, and the names of the roles."""
    for name, known in (("role", ROLE_KEYS), ("content", CONTENT_KEYS), *ROLES.items()):
        value = tags.get(name)
        if value is not None and str(value) not in known:
            rows.problems.append(
                Reason(
                    f"メッセージの {name} が {shown(value)} です（読めるのは {', '.join(known)}）",
                    f"{name} of a message is called {shown(value)} (known: {', '.join(known)})",
                )
            )


def share_or_rows(value: float, key: str) -> float:
    """A share of the rows for evaluation.

    Raises:
        Unfit: a number of rows.
    """
    if 0 < value < 1:
        return value
    raise Unfit(
        f"{key} が行数（{value:g}）です。評価データは割合（0.1 など）かファイルで指定してください",
        f"{key} is a number of rows ({value:g}); evaluation data is a share (0.1) or a file here",
        key,
    )
