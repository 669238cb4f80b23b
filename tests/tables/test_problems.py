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


def test_a_run_out_of_memory_says_what_it_missed_and_what_was_predicted(tmp_path):
    measures = {"short_bytes": 752_000_000, "predicted_train_peak_allocated_bytes": 17_048_989_336}
    records = [
        record("a", status="oom", phase="train", measures=measures),
        record("b", status="oom", phase="train", measures=measures, environment={"prediction_note": "a lower bound"}),
        record("c", status="oom", phase="load"),
        record("d", status="crashed", phase="train", measures=measures),
    ]
    table = table_of(tmp_path, records)
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    assert headings[2:5] == ["status", "short GB", "predicted peak GB"]
    assert [row[3:5] for row in table.texts()] == [
        ["0.752", "17.0"], ["0.752", "≥ 17.0"], ["–", "–"], ["–", "–"],  # noqa: RUF001
    ]  # fmt: skip
    assert table.rows["short_bytes"].tolist()[:2] == [752_000_000] * 2


def test_what_a_run_under_a_cap_missed_is_told_of_its_whole_need_not_of_one_allocation(tmp_path):
    capped = {"short_bytes": 2_000_000, "cap_bytes": 15_400_000_000}
    records = [
        record("a", status="oom", phase="adapt", measures={**capped, "predicted_needed_bytes": 16_300_000_000}),
        record("b", status="oom", phase="train", measures={**capped, "predicted_needed_bytes": 12_000_000_000}),
        record(
            "c", status="oom", phase="train", measures={**capped, "predicted_needed_bytes": 16_300_000_000},
            environment={"prediction_note": "a lower bound"},
        ),
    ]  # fmt: skip
    crashed = record("d", status="crashed", measures={**capped, "predicted_needed_bytes": 16_300_000_000})
    table = table_of(tmp_path, [*records, crashed])
    assert [row[3] for row in table.texts()] == ["0.900", "0.002", "≥ 0.900", "–"]  # noqa: RUF001
    assert table.rows["lacked_bytes"].tolist()[:3] == [900_000_000, 2_000_000, 900_000_000]
    assert table.rows["lacked_bytes"].isna()[3]
    assert "where there is no cap, or by prediction it suffices" in str(table.columns[3].about)


def test_where_no_run_was_out_of_memory_there_is_no_column_for_it(tmp_path):
    table = table_of(tmp_path, [record("a", status="crashed", phase="load", message="boom")])
    assert [column.heading for column in table.columns] == ["id", "seed", "status", "phase", "message", "hint"]
