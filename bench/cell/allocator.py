"""A model of CUDA's caching allocator as torch has it: what a sequence of allocations and frees takes, to the byte.

From torch's c10/cuda/CUDACachingAllocator.cpp, as it is without settings. Requests are rounded up to 512 bytes. Those
of up to 1 MiB are cut from segments of 2 MiB; those below 10 MiB from segments of 20 MiB; larger ones get a segment of
their own, rounded up to 2 MiB. A request takes the smallest free block that is large enough, and what is left over
becomes a block of its own, unless that is below 512 bytes (small) or not above 1 MiB (large): then it counts as
allocated, which is why allocated bytes can exceed requested ones by percents. Freed blocks join free neighbours of
their segment. A segment goes back to CUDA only when memory would run out, and only if all of it is free.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIB = 1024**2
SMALLEST_BLOCK = 512
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
MIDDLE_REQUEST = 10 * MIB
MIDDLE_SEGMENT = 20 * MIB
SEGMENT_MULTIPLE = 2 * MIB


class OutOfMemory(Exception):
    """The limit does not suffice."""


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment, with its neighbours there."""

    address: int
    size: int
    small: bool
    free: bool = False
    before: Block | None = None
    after: Block | None = None


class Allocator:
    """Serves numbered requests. Figures are bytes; `limit` is what `set_per_process_memory_fraction` allows.

    Making what is there already, or freeing what is not, changes nothing, so that a recorded step can be repeated.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.requested = self.allocated = self.reserved = 0
        self.blocks: dict[int, Block] = {}
        self._requests: dict[int, int] = {}
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._top = 0

    def take(self, event: int, sizes: Sequence[int]) -> None:
        """Act on an event: number + 1 where an allocation is made, its negative where it is freed.

        Raises:
            OutOfMemory: the limit does not suffice.
        """
        if event < 0:
            self.free(-event - 1)
        else:
            self.make(event - 1, sizes[event - 1])

    def make(self, number: int, size: int) -> None:
        """Serve request `number` of `size` bytes.

        Raises:
            OutOfMemory: the limit does not suffice.
        """
        if number in self.blocks or size == 0:
            return
        rounded = max(SMALLEST_BLOCK, -(-size // SMALLEST_BLOCK) * SMALLEST_BLOCK)
        block = self._find(rounded) or self._segment(rounded)
        self._cut(block, rounded)
        block.free = False
        self.blocks[number], self._requests[number] = block, size
        self.requested += size
        self.allocated += block.size

    def free(self, number: int) -> None:
        """Take back what request `number` got."""
        if (block := self.blocks.pop(number, None)) is None:
            return
        self.requested -= self._requests.pop(number)
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._take(other)
                block.address, block.size = min(block.address, other.address), block.size + other.size
                if other is block.before:
                    block.before = other.before
                    if other.before:
                        other.before.after = block
                else:
                    block.after = other.after
                    if other.after:
                        other.after.before = block
        self._give(block)

    def _find(self, size: int) -> Block | None:
        """Take the smallest free block that is large enough out of the free ones."""
        free = self._free[size <= SMALL_REQUEST]
        place = bisect_left(free, size, key=_size)
        return free.pop(place)[2] if place < len(free) else None

    def _segment(self, size: int) -> Block:
        """Have CUDA provide a segment."""
        if size <= SMALL_REQUEST:
            whole = SMALL_SEGMENT
        elif size < MIDDLE_REQUEST:
            whole = MIDDLE_SEGMENT
        else:
            whole = -(-size // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE
        if self.limit is not None and self.reserved + whole > self.limit:
            self._release()
            if self.reserved + whole > self.limit:
                raise OutOfMemory
        self.reserved += whole
        block = Block(self._top, whole, size <= SMALL_REQUEST)
        self._top += whole
        return block

    def _cut(self, block: Block, size: int) -> None:
        """Leave `size` bytes of a block, and give the rest back, where it is worth being a block."""
        rest = block.size - size
        if rest < SMALLEST_BLOCK if block.small else rest <= SMALL_REQUEST:
            return
        other = Block(block.address + size, rest, block.small, before=block, after=block.after)
        if block.after:
            block.after.before = other
        block.after, block.size = other, size
        self._give(other)

    def _release(self) -> None:
        """Give segments back that are free as a whole."""
        for small, free in self._free.items():
            whole = [entry for entry in free if entry[2].before is None and entry[2].after is None]
            self.reserved -= sum(entry[0] for entry in whole)
            gone = {entry[1] for entry in whole}
            self._free[small] = [entry for entry in free if entry[1] not in gone]

    def _give(self, block: Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.address, block))

    def _take(self, block: Block) -> None:
        free = self._free[block.small]
        del free[bisect_left(free, (block.size, block.address), key=_place)]
        block.free = False


@dataclass(frozen=True)
class Peak:
    """The most bytes that were requested, allocated and reserved; after event `moment` the most were allocated."""

    requested: int
    allocated: int
    reserved: int
    moment: int


def replay(events: Iterable[int], sizes: Sequence[int], limit: int | None = None) -> Peak:
    """Run a sequence of events.

    Raises:
        OutOfMemory: the limit does not suffice.
    """
    allocator = Allocator(limit)
    requested = allocated = moment = 0
    for index, event in enumerate(events):
        allocator.take(event, sizes)
        requested = max(requested, allocator.requested)
        if allocator.allocated > allocated:
            allocated, moment = allocator.allocated, index
    return Peak(requested, allocated, allocator.reserved, moment)


def live(events: Sequence[int], moment: int) -> set[int]:
    """Return the numbers of the allocations that are live after event `moment`."""
    alive: set[int] = set()
    for event in events[: moment + 1]:
        if event > 0:
            alive.add(event - 1)
        else:
            alive.discard(-event - 1)
    return alive


def least_limit(events: Sequence[int], sizes: Sequence[int], peak: Peak) -> int:
    """Return the least limit, to 2 MiB, under which the events succeed: between the allocated and the reserved peak."""
    low, high = peak.allocated // SEGMENT_MULTIPLE, -(-peak.reserved // SEGMENT_MULTIPLE)
    while low < high:
        middle = (low + high) // 2
        try:
            replay(events, sizes, middle * SEGMENT_MULTIPLE)
            high = middle
        except OutOfMemory:
            low = middle + 1
    return high * SEGMENT_MULTIPLE


def _size(entry: tuple[int, int, Block]) -> int:
    return entry[0]


def _place(entry: tuple[int, int, Block]) -> tuple[int, int]:
    return entry[:2]
