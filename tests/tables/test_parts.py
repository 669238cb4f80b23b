from __future__ import annotations

from bench.protocol import MEASURES, PEAK_PARTS
from bench.tables.palette import PALETTE
from bench.tables.parts import AT_PEAK, IN_STORAGE, KNOWN_AT_PEAK, PLACED

STACKS = (AT_PEAK, IN_STORAGE)


def test_every_part_of_the_peak_is_in_one_bar_part_and_no_other():
    names = [name for part in AT_PEAK for name in part.measures]
    assert sorted(names) == sorted(f"predicted_peak_{part}_bytes" for part in PEAK_PARTS)


def test_every_measure_of_storage_by_place_is_in_one_part():
    names = [name for part in IN_STORAGE for name in part.measures]
    assert len(names) == len(set(names))
    assert set(PLACED) <= set(names)


def test_parts_sum_measures_that_exist():
    known = {measure.name for measure in MEASURES} | {"unplaced_bytes"}
    assert {name for parts in (*STACKS, KNOWN_AT_PEAK) for part in parts for name in part.measures} <= known


def test_what_is_counted_goes_by_the_names_of_what_is_predicted():
    assert [part.name for part in KNOWN_AT_PEAK] == [part.name for part in AT_PEAK[: len(KNOWN_AT_PEAK)]]


def test_within_a_stack_no_two_parts_share_a_character_or_a_colour():
    for parts in STACKS:
        paints = [PALETTE[part.name] for part in parts]
        assert len({paint.character for paint in paints}) == len({paint.color for paint in paints}) == len(parts)
