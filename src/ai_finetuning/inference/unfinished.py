"""What a long command has made so far, on disk before the next of it is made: a stopped command goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError, Reason, StorageError
from ..messages import argument, excerpt
from ..system.files import appended, is_private, replacing

_FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Unfinished:
    """A file of JSON lines: one that says what the others were made of, and a line for each thing that is made.

    Attributes:
        path: the file.
        made_by: what the lines depend on, as JSON gives it back; another command does not go on with them.
        called: what messages call it.
    """

    path: Path
    made_by: dict[str, Any]
    called: Reason

    @classmethod
    def at(cls, path: Path, made_by: Mapping[str, Any], called: Reason) -> Unfinished:
        """The file at a path, which need not be there."""
        return cls(path, json.loads(json.dumps(made_by)), called)

    def read(self, parse: Callable[[Any], T], *, restart: bool = False) -> list[T]:
        """What an earlier command has made.

        Args:
            parse: of a line's JSON; ValueError, KeyError or TypeError where it is no such line.
            restart: forget it.

        Raises:
            ConfigError: it belongs to another command, and the message says what differs; or others can write it, or it is
                damaged. StorageError: it cannot be removed.
        """
        if not os.path.lexists(self.path):
            return []
        if restart:
            try:
                self.path.unlink()
            except OSError as error:
                raise self._unwritable(error) from error
            return []
        ja, en = (f"{self.called.ja} {argument(self.path)}", f"{self.called.en}, {argument(self.path)},")
        if not is_private(self.path):
            raise ConfigError(
                f"{ja} はほかのユーザーが書き込めるか、リンクです。消すか、--out を変えてください。",
                f"{en} can be written by other users, or are a link; remove them, or choose another --out.",
            )
        try:
            if not self.path.is_file():
                raise ValueError("no regular file")
            lines = self.path.read_bytes().split(b"\n")[:-1]  # what a killed process wrote last may be half a line
            head = json.loads(lines[0]) if lines else None
            if head is not None and (head["format"] != _FORMAT or not isinstance(head["made_by"], dict)):
                raise ValueError("format")
            before = head["made_by"] if head is not None else self.made_by
            changed = [name for name, value in self.made_by.items() if before.get(name) != value]
            found = [parse(json.loads(line)) for line in lines[1:] if not changed]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = excerpt(str(error))
            raise ConfigError(
                f"{ja} を読めません（{why}）。--restart で最初からやり直せます。",
                f"{en} cannot be read ({why}); --restart begins anew.",
            ) from error
        if changed:
            raise ConfigError(
                f"{ja} は別の指定で作られています（違うもの: {', '.join(changed)}）。同じ指定に戻すか、--out を変えるか、--restart で最初からやり直してください。",
                f"{en} were made by another command (different: {', '.join(changed)}); use the same one, choose another "
                "--out, or begin anew with --restart.",
            )
        return found

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes lines to disk.

        Raises:
            StorageError: they cannot be written.
        """
        try:
            with appended(self.path) as file:
                head = [{"format": _FORMAT, "made_by": self.made_by}] if file.tell() == 0 else []
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*head, *rows]).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the file anew, in one step.

        Raises:
            StorageError: it cannot be written; the old one stays.
        """
        head = {"format": _FORMAT, "made_by": self.made_by}
        try:
            with replacing(self.path, mode=0o600) as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [head, *rows]).encode())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StorageError:
        why = error.strerror or error
        return StorageError(
            f"{self.called.ja} {argument(self.path)} に書けません（{why}）。空き容量と権限を確認してください。",
            f"{self.called.en}, {argument(self.path)}, cannot be written ({why}); check space and rights.",
        )
