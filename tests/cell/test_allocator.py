from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cell.allocator import MIB, Allocator, OutOfMemory, least_limit, live, replay


def made(*sizes: int) -> Allocator:
    allocator = Allocator()
    for number, size in enumerate(sizes):
        allocator.make(number, size)
    return allocator


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),  # from a segment of 20 MiB
        (10 * MIB - 1, 10 * MIB, 10 * MIB),  # rounded up, no longer below 10 MiB
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # what is left is above 1 MiB, and a block of its own
        (11 * MIB, 12 * MIB, 12 * MIB),  # what is left is not, and belongs to it
    ],
)
def test_one_request_takes_what_cuda_s_allocator_gives_it(size: int, allocated: int, reserved: int) -> None:
    found = made(size)

    assert (found.requested, found.allocated, found.reserved) == (size, allocated, reserved)


def test_nothing_is_taken_for_nothing() -> None:
    assert made(0).reserved == 0


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    allocator = made(64 * MIB, 30 * MIB, 40 * MIB)
    for number in range(3):
        allocator.free(number)

    allocator.make(3, 35 * MIB)  # out of the 40, of which 5 are left

    assert allocator.reserved == 134 * MIB
    allocator.make(4, 40 * MIB)  # out of the 64
    allocator.make(5, 24 * MIB)  # what is left of them
    assert allocator.reserved == 134 * MIB
    allocator.make(6, 40 * MIB)  # 30 and 5 are free, in pieces
    assert allocator.reserved == 174 * MIB


def test_freed_neighbours_become_one() -> None:
    allocator = made(4 * MIB, 4 * MIB, 4 * MIB, 4 * MIB, 4 * MIB)
    assert allocator.reserved == 20 * MIB
    for number in (1, 3, 2):
        allocator.free(number)

    allocator.make(5, 12 * MIB)

    assert allocator.reserved == 20 * MIB
    assert allocator.allocated == 20 * MIB


def test_what_is_there_is_not_made_again_and_what_is_not_is_not_freed() -> None:
    allocator = made(3 * MIB)

    allocator.make(0, 3 * MIB)
    allocator.free(7)

    assert allocator.allocated == 3 * MIB


def test_free_segments_go_back_before_memory_runs_out() -> None:
    allocator = Allocator(limit=50 * MIB)
    allocator.make(0, 30 * MIB)
    allocator.free(0)

    allocator.make(1, 40 * MIB)

    assert allocator.reserved == 40 * MIB
    allocator.make(2, 10 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.make(3, 1)


def test_a_segment_of_which_a_piece_is_used_stays() -> None:
    allocator = Allocator(limit=50 * MIB)
    allocator.make(0, 30 * MIB)
    allocator.make(1, 18 * MIB)
    allocator.free(0)
    allocator.make(2, 2 * MIB)

    with pytest.raises(OutOfMemory):
        allocator.make(3, 30 * MIB)


REQUESTS = st.lists(st.tuples(st.integers(1, 40 * MIB), st.integers(0, 12)), min_size=1, max_size=60)


@given(REQUESTS)
def test_whatever_happens_the_figures_are_of_the_blocks(requests: list[tuple[int, int]]) -> None:
    allocator, sizes = Allocator(), dict[int, int]()
    for number, (size, freed) in enumerate(requests):
        allocator.make(number, size)
        sizes[number] = size
        if freed in sizes:
            allocator.free(freed)
            del sizes[freed]
        blocks = [*allocator.blocks.values(), *(entry[2] for free in allocator._free.values() for entry in free)]
        assert allocator.requested == sum(sizes.values())
        assert allocator.allocated == sum(block.size for block in allocator.blocks.values())
        assert allocator.reserved == sum(block.size for block in blocks)
        assert all(
            sizes[number] <= block.size < sizes[number] + MIB + 512 for number, block in allocator.blocks.items()
        )
        places = sorted((block.address, block.size) for block in blocks)
        assert all(start + size <= other for (start, size), (other, _) in pairwise(places))
    for number in list(sizes):
        allocator.free(number)
    assert allocator.allocated == allocator.requested == 0
    assert all(block.before is block.after is None for free in allocator._free.values() for _, _, block in free)


@given(REQUESTS)
def test_the_least_limit_suffices_and_is_between_the_peaks(requests: list[tuple[int, int]]) -> None:
    sizes = [size for size, _ in requests]
    events = [event for number, (_, freed) in enumerate(requests) for event in (number + 1, -freed - 1)]
    peak = replay(events, sizes)

    limit = least_limit(events, sizes, peak)

    assert peak.requested <= peak.allocated <= limit <= peak.reserved
    replay(events, sizes, limit)
    if limit > 2 * MIB and limit - 2 * MIB >= peak.allocated:
        with pytest.raises(OutOfMemory):
            replay(events, sizes, limit - 2 * MIB)


def test_what_is_live_at_the_peak_adds_up_to_it() -> None:
    sizes = [5 * MIB, 7 * MIB, 3 * MIB, 600]
    events = [1, 2, -1, 3, 4, -2]

    peak = replay(events, sizes)

    assert peak.requested == 12 * MIB
    assert live(events, peak.moment) == {0, 1}
