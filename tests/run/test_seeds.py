from __future__ import annotations

from dataclasses import replace

import pytest

from bench.errors import BenchError
from bench.run.seeds import MOST_SEEDS, Extension, extend, read_seeds, written_seeds
from bench.run.store import append_record

from .examples import plan_of, record

MATRIX = plan_of("a", "b", baseline="a").matrix


def keep(folder, *runs, **changes):
    """Leave a record for each run: `a0` is the cell a with seed 0, and `a0 again` its repeat."""
    (folder / "small").mkdir(exist_ok=True)
    for run in runs:
        name, _, again = run.partition(" ")
        made = record(key=f"key of {name[0]}", seed=int(name[1:]), repeat=int(bool(again)), position=1)
        append_record(folder / "small" / "records.jsonl", replace(made, **changes))


def test_the_next_seeds_follow_the_largest_of_the_records(tmp_path):
    keep(tmp_path, *(f"{cell}{seed}" for seed in (7, 2) for cell in ("a", "b")), "a2 again", "a7 again")
    assert extend(MATRIX, tmp_path, 3) == Extension((2, 7), (), (8, 9, 10))
    assert extend(MATRIX, tmp_path, 3).seeds == (2, 7, 8, 9, 10)


@pytest.mark.parametrize("missing", ["a1", "b1", "a1 again"])
def test_what_is_unfinished_is_finished_before_any_seed_is_added(tmp_path, missing):
    every = ["a0", "b0", "a0 again", "a1", "b1", "a1 again"]
    keep(tmp_path, *(run for run in every if run != missing))
    assert extend(MATRIX, tmp_path, 2) == Extension((0, 1), (1,), ())
    keep(tmp_path, missing)
    assert extend(MATRIX, tmp_path, 2) == Extension((0, 1), (), (2, 3))


def test_an_interrupted_run_is_unfinished_and_a_failure_is_not(tmp_path):
    keep(tmp_path, "b0", "a0 again", status="oom")
    keep(tmp_path, "a0", status="interrupted")
    assert extend(MATRIX, tmp_path, 1).unfinished == (0,)
    keep(tmp_path, "a0", status="crashed")
    keep(tmp_path, "a0", status="crashed")
    assert extend(MATRIX, tmp_path, 1) == Extension((0,), (), (1,))


def test_a_result_from_before_there_were_blocks_is_finished(tmp_path):
    keep(tmp_path, "a0", "b0", position=None)
    assert extend(MATRIX, tmp_path, 1) == Extension((0,), (), (1,))


def test_only_the_cells_that_are_selected_need_be_finished(tmp_path):
    keep(tmp_path, "a0")
    assert extend(MATRIX, tmp_path, 1, "a").new == (1,)
    assert extend(MATRIX, tmp_path, 1).unfinished == (0,)


def test_records_of_cells_that_the_matrix_no_longer_has_do_not_count(tmp_path):
    keep(tmp_path, "c9")
    with pytest.raises(BenchError, match=r"add seeds to, but 1 record of cells that the matrix does not have; run it"):
        extend(MATRIX, tmp_path, 1)
    keep(tmp_path, "a0", "b0", "a0 again")
    assert extend(MATRIX, tmp_path, 1).seeds == (0, 1)


def test_without_records_there_is_nothing_to_extend_and_nothing_is_written(tmp_path):
    with pytest.raises(BenchError, match=r"small has no records to add seeds to; run it without --add-seeds first$"):
        extend(MATRIX, tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_damaged_records_alone_are_named(tmp_path):
    keep(tmp_path, "c9")
    path = tmp_path / "small" / "records.jsonl"
    path.write_bytes(path.read_bytes() + b"{}\n" + b'{"id"')
    with pytest.raises(BenchError) as caught:
        extend(MATRIX, tmp_path, 1)
    said = str(caught.value)
    assert "but 1 record of cells that the matrix does not have, " in said
    assert f"{path}:2: skipped a damaged record" in said
    assert f"{path}:3: dropped a record that was cut short" in said


def test_records_that_cannot_be_read_are_a_plain_error(tmp_path):
    (tmp_path / "small" / "records.jsonl").mkdir(parents=True)
    with pytest.raises(BenchError, match=r"records\.jsonl cannot be read: .*; see to its permissions"):
        extend(MATRIX, tmp_path, 1)


def test_seeds_beyond_the_largest_are_not_added(tmp_path):
    keep(tmp_path, "a4294967294", "b4294967294", "a4294967294 again")
    assert extend(MATRIX, tmp_path, 1).new == (2**32 - 1,)
    with pytest.raises(BenchError, match=r"^--add-seeds 2: .*small has seeds up to 4294967294, and 4294967295 is the"):
        extend(MATRIX, tmp_path, 2)


@pytest.mark.parametrize(
    ("seeds", "words"), [((0,), "0"), ((0, 1), "0-1"), ((0, 1, 2, 7), "0-2,7"), ((3, 5, 6, 9), "3,5-6,9")]
)
def test_seeds_are_written_as_they_are_read(seeds, words):
    assert written_seeds(seeds) == words
    assert read_seeds(words) == seeds


def test_seeds_are_read_in_the_order_given_and_with_spaces():
    assert read_seeds("7, 2-3,0") == (7, 2, 3, 0)
    assert len(read_seeds("0-499,500-999")) == MOST_SEEDS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("one", "--seeds: 'one' is no seed; write numbers such as 0,1,2 or 0-4"),
        ("1,", "--seeds: '' is no seed; write numbers such as 0,1,2 or 0-4"),
        ("-1", "--seeds: '-1' is no seed; write numbers such as 0,1,2 or 0-4"),
        ("9" * 5000, f"--seeds: '{'9' * 39}…' is no seed; write numbers such as 0,1,2 or 0-4"),
        ("5-2,1", "--seeds: 5-2 is an empty range; write 2-5"),
        ("0-999,1000", "--seeds: '0-999,1000' is 1,001 seeds; give at most 1,000"),
    ],
)
def test_seeds_that_cannot_be_read_are_refused(words, message):
    with pytest.raises(BenchError) as caught:
        read_seeds(words)
    assert str(caught.value) == message
