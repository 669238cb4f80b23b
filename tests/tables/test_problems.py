from __future__ import annotations

from bench.tables.load import load_results
from bench.tables.problems import problems_table

from .examples import record, write_result


def table_of(folder, records):
    return problems_table(load_results(write_result(folder / "r", records)))


def test_every_run_that_is_not_ok_is_a_row_with_its_phase_message_and_hint(tmp_path):
    records = [
        record("a", 0),
        record("a", 1, status="oom", phase="train", message="12 MB short", hint="halve batch_size"),
        record("b", 0, status="crashed", phase="load", message="signal 9"),
    ]
    assert table_of(tmp_path, records).texts() == [
        ["a", "1", "oom", "train", "12 MB short", "halve batch_size"],
        ["b", "0", "crashed", "load", "signal 9", "–"],  # noqa: RUF001
    ]


def test_a_crash_that_the_next_attempt_made_good_is_no_problem(tmp_path):
    records = [record("a", status="crashed", phase="load"), record("a", attempt=2)]
    assert len(table_of(tmp_path, records).rows) == 0
