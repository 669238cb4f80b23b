from __future__ import annotations

import json
import time

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.matrix.parameters import LATER, Parameters
from bench.protocol import MEASURES
from bench.tables.load import ENVIRONMENT_NAMES, RECORD_NAMES, RUN_NAMES, first_runs, load_results

from .examples import H100, default_matrix, record, write_result


def test_a_row_is_a_cell_and_seed_with_every_parameter_and_measure_in_its_own_column(tmp_path):
    frame = load_results(write_result(tmp_path / "default", default_matrix(seeds=(0, 1))))
    assert len(frame) == 36
    for name in (*RECORD_NAMES, *RUN_NAMES, *Parameters.model_fields, *ENVIRONMENT_NAMES, "is_baseline", "result"):
        assert name in frame
    for measure in MEASURES:
        assert frame[measure.name].dtype == "float64"
    row = frame[(frame["id"] == "nf4-dq-fp16-attention") & (frame["seed"] == 1)].iloc[0]
    assert (row["quant_type"], row["double_quant"], row["compute_dtype"]) == ("nf4", True, "float16")
    assert row["quant_state_bytes"] == 1_748_220
    assert row["gpu_name"] == H100["gpu_name"]
    assert list(frame["id"][frame["is_baseline"]]) == ["lora-bf16", "lora-bf16"]


def test_names_of_a_record_a_parameter_a_measure_and_an_environment_never_collide():
    names = [*RECORD_NAMES, *RUN_NAMES, *Parameters.model_fields, *(m.name for m in MEASURES), *ENVIRONMENT_NAMES]
    assert len(names) == len(set(names))


def test_missing_and_null_measures_are_nan(tmp_path):
    records = [record("a", measures={"tokens_per_s": None, "stored_bytes": 7})]
    frame = load_results(write_result(tmp_path / "r", records))
    assert frame["stored_bytes"].tolist() == [7.0]
    assert frame[["tokens_per_s", "accuracy_after"]].isna().all(axis=None)


def test_the_last_attempt_counts_and_without_a_plan_stands_where_its_cell_first_appeared(tmp_path):
    records = [
        record("late", status="crashed", phase="load"),
        record("early"),
        record("late", attempt=2, measures={"tokens_per_s": 5.0}),
    ]
    folder = write_result(tmp_path / "r", records)
    (folder / "plan.json").unlink()
    frame = load_results(folder)
    assert frame[["id", "attempt", "status"]].to_numpy().tolist() == [["late", 2, "ok"], ["early", 1, "ok"]]
    assert frame["tokens_per_s"][0] == 5.0


def test_rows_stand_in_the_order_of_the_plan_whatever_the_order_in_which_runs_ended(tmp_path):
    planned = [record("b"), record("base"), record("a")]
    ended = [record("a", 1), record("b", 0), record("a", 0), record("base", 1), record("b", 1), record("base", 0)]
    frame = load_results(write_result(tmp_path / "r", ended, baseline="base", planned=planned))
    assert frame[["id", "seed"]].to_numpy().tolist() == [
        ["base", 0], ["base", 1], ["b", 0], ["b", 1], ["a", 0], ["a", 1],
    ]  # fmt: skip


def test_a_baseline_that_ran_once_more_is_a_row_of_its_own_after_those_of_its_cell(tmp_path):
    ended = [
        record("base", 0, position=1),
        record("a", 0, position=2),
        record("base", 0, repeat=1, position=3, status="crashed"),
        record("base", 0, repeat=1, position=3, attempt=2),
        record("base", 1, position=1),
    ]
    frame = load_results(write_result(tmp_path / "r", ended, baseline="base"))
    columns = ["id", "seed", "repeat", "position", "attempt", "is_baseline"]
    assert frame[columns].to_numpy().tolist() == [
        ["base", 0, 0, 1, 1, True], ["base", 1, 0, 1, 1, True], ["base", 0, 1, 3, 2, True], ["a", 0, 0, 2, 1, False],
    ]  # fmt: skip


def test_the_first_runs_are_a_row_a_cell_and_seed_with_what_is_known_of_all(tmp_path):
    records = [record("base"), record("base", repeat=1), record("a")]
    frame = load_results(write_result(tmp_path / "r", records, baseline="base", tail="{"))
    first = first_runs(frame)
    assert first["id"].tolist() == ["base", "a"]
    assert first.index.tolist() == [0, 1]
    assert first.attrs == frame.attrs
    assert len(first.attrs["warnings"]) == 1
    assert first.dtypes.equals(frame.dtypes)
    empty = load_results(write_result(tmp_path / "empty", []))
    assert list(first_runs(empty)) == list(empty)


def test_records_from_before_there_were_blocks_are_first_runs_of_no_known_place(tmp_path):
    frame = load_results(write_result(tmp_path / "r", [record("a"), record("b", position=2)]))
    assert frame["repeat"].tolist() == [0, 0]
    assert pd.isna(frame["position"][0])
    assert str(frame["position"][1]) == "2"


@pytest.mark.parametrize("name", LATER)
def test_records_from_before_a_parameter_have_its_default(tmp_path, name):
    old, new = record("a"), record("b")
    del old["parameters"][name]
    frame = load_results(write_result(tmp_path / "r", [old, new]))
    assert frame[name].tolist() == [Parameters.model_fields[name].default] * 2


def test_the_pairs_to_watch_are_those_of_the_plans(tmp_path):
    for name, pairs in {"one": [["a", "b"], ["c", "d"]], "two": [["c", "d"]], "three": None}.items():
        path = write_result(tmp_path / name, [record("a", matrix=name)]) / "plan.json"
        plan = json.loads(path.read_text())
        path.write_text(json.dumps(plan if pairs is None else {**plan, "watch_pairs": pairs}))
    assert load_results(tmp_path / "one").attrs["watch_pairs"] == (("a", "b"), ("c", "d"))
    assert load_results(tmp_path / "three").attrs["watch_pairs"] == ()
    assert load_results(tmp_path).attrs["watch_pairs"] == (("a", "b"), ("c", "d"))


def test_the_hashes_of_what_was_scored_are_columns(tmp_path):
    hashes = {"task_sha256": "1a", "examples_sha256": "2b"}
    frame = load_results(write_result(tmp_path / "r", [record("a", environment=hashes), record("b")]))
    assert frame.loc[0, list(hashes)].tolist() == ["1a", "2b"]
    assert frame.loc[1, list(hashes)].isna().all()


def test_a_file_its_folder_and_a_folder_of_results_are_all_read(tmp_path):
    one = write_result(tmp_path / "results" / "one", [record("a", matrix="one")], baseline="a")
    two = write_result(tmp_path / "results" / "deep" / "two", [record("a", matrix="two")], baseline="b")
    assert load_results(one / "records.jsonl")["matrix"].tolist() == ["one"]
    assert load_results(str(one))["matrix"].tolist() == ["one"]
    both = load_results(tmp_path / "results")
    assert both[["matrix", "result", "is_baseline"]].to_numpy().tolist() == [
        ["two", str(two), False],
        ["one", str(one), True],
    ]


def test_records_set_aside_by_a_fresh_start_are_not_read(tmp_path):
    folder = write_result(tmp_path / "r", [record("new")])
    (folder / "records-20251121-204512-1.jsonl").write_text(json.dumps(record("old")) + "\n", encoding="utf-8")
    assert load_results(tmp_path)["id"].tolist() == ["new"]


@pytest.mark.parametrize("name", ["nowhere", "empty", "note.txt"])
def test_where_there_is_no_result_the_error_names_the_place_and_says_what_to_give(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(BenchError, match=r"records\.jsonl") as caught:
        load_results(tmp_path / name)
    (problem,) = caught.value.problems
    assert problem.fix
    assert name in str(problem)


def test_an_empty_file_of_records_gives_all_columns_and_no_row(tmp_path):
    frame = load_results(write_result(tmp_path / "r", []))
    assert frame.empty
    assert {"id", "quant_type", "tokens_per_s", "torch", "is_baseline"} <= set(frame)


def test_a_torn_line_is_a_warning_and_loses_nothing_else(tmp_path):
    folder = write_result(tmp_path / "r", [record("a"), record("b")], tail='{"schema": 1, "id": "c", "ke')
    frame = load_results(folder)
    assert frame["id"].tolist() == ["a", "b"]
    (warning,) = frame.attrs["warnings"]
    assert "records.jsonl:3" in warning


def test_without_a_baseline_in_the_plan_no_row_is_one(tmp_path):
    frame = load_results(write_result(tmp_path / "r", [record("a")], baseline=None))
    assert frame["is_baseline"].tolist() == [False]
    assert frame.attrs["warnings"] == []


def test_without_a_plan_every_record_is_shown_and_no_row_is_the_baseline(tmp_path):
    folder = write_result(tmp_path / "r", [record("a"), record("b")], baseline="a")
    (folder / "plan.json").unlink()
    frame = load_results(folder)
    assert frame[["id", "is_baseline"]].to_numpy().tolist() == [["a", False], ["b", False]]
    (warning,) = frame.attrs["warnings"]
    assert "plan.json is missing, so the baseline is unknown" in warning


def test_cells_of_the_plan_that_have_no_record_are_named(tmp_path):
    a, b = record("a"), record("b")
    folder = write_result(tmp_path / "r", [a], planned=[a, b])
    assert load_results(folder).attrs["warnings"] == ["Planned and not run yet: b."]


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[]", b"{}", b'{"schema": 2}', b'{"schema": 1, "cells": []}'])
def test_a_plan_that_cannot_be_read_is_a_warning_and_hides_nothing(tmp_path, data):
    folder = write_result(tmp_path / "r", [record("a")], baseline="a")
    (folder / "plan.json").write_bytes(data)
    frame = load_results(folder)
    assert frame[["id", "is_baseline"]].to_numpy().tolist() == [["a", False]]
    (warning,) = frame.attrs["warnings"]
    assert "plan.json cannot be read, so the baseline is unknown" in warning


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        (1, "1 record of an earlier version of the matrix is not shown."),
        (2, "2 records of an earlier version of the matrix are not shown."),
    ],
)
def test_records_of_cells_that_the_matrix_no_longer_has_are_left_out_and_counted(tmp_path, gone, sentence):
    old = [record("a", seed, key="old") for seed in range(gone)]
    frame = load_results(write_result(tmp_path / "r", [*old, record("a")], baseline="a", planned=[record("a")]))
    assert frame[["key", "is_baseline"]].to_numpy().tolist() == [[record("a")["key"], True]]
    assert frame.attrs["warnings"] == [sentence]


def test_a_cell_that_was_renamed_keeps_its_records_under_its_new_id(tmp_path):
    records = [record("old", 0, key="k"), record("new", 1, key="k")]
    frame = load_results(write_result(tmp_path / "r", records, baseline="new", planned=[record("new", key="k")]))
    assert frame[["id", "seed", "is_baseline"]].to_numpy().tolist() == [["new", 0, True], ["new", 1, True]]


def test_a_list_of_modules_becomes_text_so_that_cells_compare(tmp_path):
    records = [record("a", parameters={"target_modules": ("v_proj", "q_proj")}), record("b")]
    frame = load_results(write_result(tmp_path / "r", records))
    assert frame["target_modules"].tolist() == ["q_proj,v_proj", "all-linear"]


def test_a_parameter_that_some_cells_leave_open_stays_a_whole_number(tmp_path):
    frame = load_results(write_result(tmp_path / "r", [record("a", parameters={"max_steps": 300}), record("b")]))
    assert str(frame["max_steps"][0]) == "300"
    assert pd.isna(frame["max_steps"][1])


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.integers(0, 2**64 - 1))
def test_any_message_and_any_seed_survive(tmp_path_factory, message, seed):
    folder = write_result(tmp_path_factory.mktemp("r"), [record("zürich-µ", seed, status="oom", message=message)])
    frame = load_results(folder)
    assert frame.loc[0, "message"] == message.replace("\r\n", "\n").replace("\r", "\n")
    assert int(frame.loc[0, "seed"]) == seed
    assert frame.loc[0, "id"] == "zürich-µ"


def test_half_a_surrogate_pair_in_a_message_does_no_harm(tmp_path):
    frame = load_results(write_result(tmp_path / "r", [record("a", message="bad \udc80 byte")]))
    assert frame.loc[0, "message"] == "bad ? byte"


@pytest.mark.slow
def test_loading_ten_thousand_records_takes_a_few_times_as_long_as_reading_their_json(tmp_path, record_property):
    names = {measure.name: 1234.5 for measure in MEASURES}
    records = [{**record("a", measures=names), "id": f"cell-{n}", "key": f"k{n}"} for n in range(10_000)]
    folder = write_result(tmp_path / "r", records)

    def read_json():
        return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]

    def seconds(read):
        start = time.process_time()
        assert len(read()) == 10_000
        return time.process_time() - start

    loaded, parsed = (min(seconds(read) for _ in range(2)) for read in (lambda: load_results(folder), read_json))
    record_property("seconds to load 10,000 records and to read their JSON", (loaded, parsed))
    assert loaded < 15 * parsed
