"""What a rendering may take: units that it pays with."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from itertools import islice
from typing import Any

from jinja2.runtime import Undefined

# Units of a rendering, those that each message and each character of the conversation adds, and the most of all. A unit
# stands for at most some eight bytes or a tenth of a microsecond: seconds and a few hundred MB at the very most.
FREE, PER_MESSAGE, PER_CHARACTER, MOST = 1 << 24, 1 << 16, 64, 1 << 28
# Units of a node of the template, a part that is looked at, an item of a new list or of one that is gone through, a call,
# and an object such as a namespace; a character has one.
NODE, PART, ITEM, CALL, OBJECT = 12, 5, 32, 64, 200
MOST_BITS = 4096
PLAIN = (str, int, float, bool, type(None))
_VIEWS = (KeysView, ValuesView, ItemsView)


class TooMuch(Exception):
    """The template asks for more than a rendering may take."""


class Meter:
    """What is left of a rendering's units."""

    def __init__(self) -> None:
        self.left = FREE

    def pay(self, units: int) -> None:
        """Takes units.

        Raises:
            TooMuch: there are not so many left.
        """
        self.left -= units
        if self.left < 0:
            raise TooMuch("it loops too often or makes too much text")

    def weigh(self, value: Any, *, printed: bool = False) -> None:
        """Pays for going through a value, each part as often as it is met: a list of twice the same list doubles.

        Args:
            printed: it becomes text, which only plain data and undefined values may.
        """
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                self.pay(len(item) + PART)
            elif isinstance(item, int):
                self.pay(PART)
                if item.bit_length() > MOST_BITS:
                    raise TooMuch("it makes a number of more than a thousand digits")
            elif isinstance(item, Mapping):
                self.pay(2 * len(item) + PART)
                waiting += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple, *_VIEWS)):
                self.pay(len(item) + PART)
                waiting += item
            elif printed and not (item is None or isinstance(item, (float, Undefined))):
                raise TooMuch(f"it prints a {type(item).__name__}, which is no text")
            else:
                self.pay(PART)

    def listed(self, values: Any) -> Any:
        """An iterable whose items are known: one without a length becomes a list."""
        if hasattr(values, "__len__") or not hasattr(values, "__iter__"):
            return values
        found = list(islice(values, self.left // ITEM + 1))
        self.pay(ITEM * len(found))
        return found

    def each(self, values: Iterable[Any], units: int = ITEM) -> Iterator[Any]:
        """The items, each paid for as it is taken."""
        for value in values:
            self.pay(units)
            yield value
