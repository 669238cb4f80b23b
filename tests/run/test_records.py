from __future__ import annotations

import json
import math

import pytest

from bench.errors import BenchError, Location
from bench.run import records
from bench.run.records import SCHEMA, from_line, histories, to_line, upgrade

from .examples import record


def test_a_line_holds_the_schema_first_and_gives_the_record_back():
    measures = {"load_s": 1.25, "steps_count": 3, "cap_bytes": None}
    original = record(message="a\nb → c", measures=measures, losses=(2.5, 1.25), warnings=("slow",))
    line = to_line(original)
    assert next(iter(json.loads(line))) == "schema"
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert from_line(line) == original


def test_figures_that_are_not_finite_become_null():
    line = to_line(record(measures={"a_s": math.nan, "b_s": math.inf, "c": [-math.inf, 1.0, {"d": math.nan}]}))
    assert from_line(line).measures == {"a_s": None, "b_s": None, "c": [None, 1.0, {"d": None}]}


def test_a_field_of_a_later_version_of_the_same_schema_is_passed_over():
    entry = json.loads(to_line(record())) | {"mood": "good"}
    assert from_line(json.dumps(entry).encode()) == record()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"17",
        b"[]",
        b"{}",
        b'{"schema": 1}',
        b'{"schema": "1"}',
        b'{"schema": 0}',
        b"\xff\xfe",
        b"\x00" * 40,
        b"[" * 200_000,
        json.dumps(json.loads(to_line(record())) | {"status": "fine"}).encode(),
        json.dumps(json.loads(to_line(record())) | {"seed": "0"}).encode(),
        json.dumps(json.loads(to_line(record())) | {"measures": None}).encode(),
        json.dumps(json.loads(to_line(record())) | {"losses": 5}).encode(),
        json.dumps(json.loads(to_line(record())) | {"warnings": "slow"}).encode(),
        json.dumps(json.loads(to_line(record())) | {"repeat": None}).encode(),
        json.dumps(json.loads(to_line(record())) | {"position": "last"}).encode(),
    ],
)
def test_a_damaged_line_is_a_value_error(line):
    with pytest.raises(ValueError):  # noqa: PT011
        from_line(line)


def test_a_run_that_repeats_the_baseline_is_a_job_of_its_own_and_keeps_its_place():
    again = record(repeat=1, position=7)
    assert from_line(to_line(again)) == again
    assert again.job == ("k1", 0, 1) != record().job


def test_a_line_from_before_there_were_blocks_is_a_first_run_of_no_known_place():
    entry = json.loads(to_line(record(repeat=1, position=7)))
    del entry["repeat"], entry["position"]
    read = from_line(json.dumps(entry).encode())
    assert (read.repeat, read.position) == (0, None)


def test_a_line_from_before_losses_were_kept_has_none():
    entry = json.loads(to_line(record(losses=(1.0,))))
    del entry["losses"]
    assert from_line(json.dumps(entry).encode()).losses == ()


def test_a_newer_schema_is_refused_with_its_place():
    line = json.dumps({"schema": SCHEMA + 1}).encode()
    with pytest.raises(BenchError, match=rf"records\.jsonl:7:1: a record of schema {SCHEMA + 1}.*upgrade qlora-bench"):
        from_line(line, Location("records.jsonl", 7, 1))


def test_older_lines_are_upgraded_step_by_step(monkeypatch):
    monkeypatch.setattr(records, "SCHEMA", 3)
    monkeypatch.setitem(records.UPGRADERS, 1, lambda entry: entry | {"path": [1]})
    monkeypatch.setitem(records.UPGRADERS, 2, lambda entry: entry | {"path": [*entry["path"], 2]})
    assert upgrade({"schema": 1})["path"] == [1, 2]
    assert upgrade({"schema": 2, "path": []})["path"] == [2]
    assert "path" not in upgrade({"schema": 3})


def test_every_schema_before_this_one_has_its_upgrader():
    assert set(records.UPGRADERS) == set(range(1, SCHEMA))


def test_attempts_are_grouped_by_key_seed_and_repeat_in_their_order():
    first, second = record(status="crashed"), record(attempt=2)
    other, again = record(seed=1), record(repeat=1)
    groups = {("k1", 0, 0): [first, second], ("k1", 1, 0): [other], ("k1", 0, 1): [again]}
    assert histories([first, other, again, second]) == groups
