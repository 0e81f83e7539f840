"""Values of settings as messages show them: cut before they are written out, so that no file makes a message endless."""

from __future__ import annotations

import itertools
import reprlib

# Characters of a text, and of a key.
_TEXT, _KEY = 200, 100


class _Short(reprlib.Repr):
    """repr() that looks at the first values of a container and the first characters of a text only."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 12
        self.maxstring = self.maxother = self.maxlong = _TEXT

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        """In the order of the file, which reprlib would sort."""
        if level <= 0:
            return "{...}"
        items = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in itertools.islice(x.items(), self.maxdict)
        ]
        items += ["..."] if len(x) > self.maxdict else []
        return "{" + ", ".join(items) + "}"


_SHORT = _Short()


def shortened(value: object) -> str:
    """repr() of a value, at most a few hundred characters of it."""
    return _SHORT.repr(value)


def cut(key: object) -> str:
    """A key or a reason as text, cut after its first 100 characters."""
    text = key if isinstance(key, str) else str(key)
    return text if len(text) <= _KEY else text[:_KEY] + "..."
