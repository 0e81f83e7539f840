"""How much memory torch's CUDA allocator takes from the driver for a sequence of allocations.

What a GPU runs out of is what is reserved, not what tensors hold. Sizes and rules are those of torch 2.13's caching
allocator (c10/cuda/CUDACachingAllocator.cpp): blocks are multiples of 512 bytes; requests up to 1 MiB come from segments of
2 MiB, larger ones up to 10 MiB from segments of 20 MiB, others from one of their own, rounded up to 2 MiB; the smallest
free block that fits is taken and its rest split off; neighbours that are free are joined; nothing is given back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

MIB = 2**20
_BLOCK, _SMALL, _SMALL_SEGMENT, _MIDDLE, _LARGE_SEGMENT, _ROUND = 512, MIB, 2 * MIB, 10 * MIB, 20 * MIB, 2 * MIB


@dataclass
class _Block:
    """A stretch of a segment; `before` and `after` are its neighbours there."""

    address: int
    size: int
    free: bool = True
    before: _Block | None = None
    after: _Block | None = None


@dataclass
class _Pool:
    """Segments of one kind of requests.

    Attributes:
        least_rest: a rest of more than this is split off and stays free.
        growing: with expandable segments, the last block of the one segment that grows.
    """

    least_rest: int
    page: int
    free: list[tuple[int, int]] = field(default_factory=list)
    blocks: dict[int, _Block] = field(default_factory=dict)
    growing: _Block | None = None

    def insert(self, block: _Block) -> None:
        """A block is free."""
        block.free = True
        self.blocks[block.address] = block
        insort(self.free, (block.size, block.address))

    def remove(self, block: _Block) -> None:
        """A block is free no more."""
        block.free = False
        self.free.pop(bisect_left(self.free, (block.size, block.address)))
        del self.blocks[block.address]


class CachingAllocator:
    """The model of one device.

    Args:
        expandable: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, where each pool is one segment that grows by 2 MiB
            (small requests) or 20 MiB.

    Attributes:
        reserved: bytes taken from the driver, the most ever at the same time, as nothing is given back.
        allocated: bytes in use, in whole blocks.
    """

    def __init__(self, *, expandable: bool = False) -> None:
        self._expandable = expandable
        self._begin()

    def _begin(self) -> None:
        self._small = _Pool(_BLOCK - 1, _SMALL_SEGMENT)
        self._large = _Pool(_SMALL, _LARGE_SEGMENT)
        self._used: dict[int, tuple[_Pool, _Block]] = {}
        self._next_address = 0
        self.reserved = self.allocated = 0

    def forget_free(self) -> None:
        """What is free was never taken: only what is in use lies there, in the order in which it came."""
        used = {key: block.size for key, (_, block) in self._used.items()}
        self._begin()
        for key, size in used.items():
            self.allocate(key, size)

    def allocate(self, key: int, size: int) -> None:
        """Takes a block for `size` bytes; none are none."""
        if size <= 0:
            return
        size = -(-size // _BLOCK) * _BLOCK
        pool = self._small if size <= _SMALL else self._large
        place = bisect_left(pool.free, (size, -1))
        if place < len(pool.free):
            block = pool.blocks[pool.free[place][1]]
            pool.remove(block)
        else:
            block = self._taken_from_driver(pool, size)
        if block.size - size > pool.least_rest:
            self._split(pool, block, size)
        self._used[key] = pool, block
        self.allocated += block.size

    def free(self, key: int) -> None:
        """Gives a block back to its pool; a key without a block has none."""
        pool, block = self._used.pop(key, (None, None))
        if pool is None or block is None:
            return
        self.allocated -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                pool.remove(neighbour)
                block = self._joined(pool, block, neighbour)
        pool.insert(block)

    def _taken_from_driver(self, pool: _Pool, size: int) -> _Block:
        if self._expandable:
            return self._grown(pool, size)
        whole = pool.page if size <= (_SMALL if pool is self._small else _MIDDLE - 1) else -(-size // _ROUND) * _ROUND
        self.reserved += whole
        self._next_address += whole + 1  # segments are never neighbours
        return _Block(self._next_address - whole, whole, free=False)

    def _grown(self, pool: _Pool, size: int) -> _Block:
        """The end of the pool's segment, as large as asked."""
        last = pool.growing
        room = last.size if last is not None and last.free else 0
        more = -(-(size - room) // pool.page) * pool.page
        self.reserved += more
        if last is None:
            # Each pool has an address space of its own.
            last = _Block(0 if pool is self._small else 2**60, more, free=False)
        elif last.free:
            pool.remove(last)
            last.size += more
        else:
            new = _Block(last.address + last.size, more, free=False, before=last)
            last.after = new
            last = new
        pool.growing = last
        return last

    def _split(self, pool: _Pool, block: _Block, size: int) -> None:
        rest = _Block(block.address + size, block.size - size, before=block, after=block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, size
        if pool.growing is block:
            pool.growing = rest
        pool.insert(rest)

    def _joined(self, pool: _Pool, block: _Block, neighbour: _Block) -> _Block:
        first, second = (block, neighbour) if neighbour.address > block.address else (neighbour, block)
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        if pool.growing is second:
            pool.growing = first
        return first
