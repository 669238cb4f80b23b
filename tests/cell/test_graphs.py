from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cell.graphs import MAX_GRAPHS, choose_lengths

counts = st.dictionaries(st.integers(1, 12).map(lambda n: 8 * n), st.integers(1, 50), min_size=1, max_size=7)


def padded(lengths: Counter[int], chosen: list[int]) -> int:
    """Return the tokens of all batches, each padded to the next length that was chosen."""
    return sum(count * min(c for c in chosen if c >= length) for length, count in lengths.items())


@pytest.mark.parametrize(
    ("lengths", "most", "chosen"),
    [
        ({64: 100}, 5, [64]),
        ({64: 1, 72: 1}, 5, [64, 72]),
        ({64: 1, 72: 1, 512: 1}, 2, [72, 512]),
        ({64: 100, 72: 1, 80: 1}, 2, [64, 80]),
        ({64: 1, 72: 100, 80: 1}, 1, [80]),
    ],
)
def test_lengths_that_pad_least_are_chosen(lengths: dict[int, int], most: int, chosen: list[int]) -> None:
    assert choose_lengths(Counter(lengths), most) == chosen


@given(counts, st.integers(1, MAX_GRAPHS))
def test_no_other_choice_pads_less(lengths: dict[int, int], most: int) -> None:
    counted = Counter(lengths)
    found = choose_lengths(counted, most)

    assert found == sorted(set(found))
    assert len(found) <= most
    assert max(found) == max(lengths)
    others = (
        [*choice, max(lengths)]
        for size in range(min(most, len(lengths)))
        for choice in combinations(sorted(set(lengths) - {max(lengths)}), size)
    )
    assert padded(counted, found) == min(padded(counted, other) for other in others)
