from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.matrix.plan import plan
from bench.protocol import PROTOCOL_VERSION
from bench.run.engine import run_plan
from bench.run.lock import hold
from bench.run.observer import Silent
from bench.run.records import to_line
from bench.run.scripted import Script, ScriptedClock, ScriptedExecutor, dies, finishes, hangs
from bench.run.store import append_record, read_records

from .examples import CPU, GPUS, plan_of, record

TEN_SECONDS = finishes("ok", 10.0, measures={"load_s": 1.0, "tokens_per_s": float("nan")}, environment={"torch": "9"})


class Watcher(Silent):
    def __init__(self) -> None:
        self.heard: list = []

    def begun(self, due, kept, slots):
        self.heard.append(("begun", len(due), len(kept)))

    def started(self, slot, job, attempt):
        self.heard.append(("started", slot.name, job.cell.id, attempt))

    def finished(self, slot, record, again):
        self.heard.append(("finished", slot.name, record.id, record.status, again))

    def warned(self, warning):
        self.heard.append(("warned", warning))


class Bench:
    """A folder of results, and workers that do what `scripts` says for each cell, an attempt after the other."""

    def __init__(self, tmp_path: Path) -> None:
        self.results = tmp_path / "results"
        self.folder = self.results / "small"
        self.path = self.folder / "records.jsonl"
        self.clock = ScriptedClock()
        self.scripts: dict[str, list[Script]] = {}
        self.watcher = Watcher()
        self.executor: ScriptedExecutor | None = None

    def run(self, plan, slots=(CPU,), **options):
        self.executor = ScriptedExecutor(self.clock, self._script)
        self.watcher = Watcher()
        common = {"executor": self.executor, "clock": self.clock, "observer": self.watcher}
        return run_plan(plan, self.results, slots=slots, **common, **options)

    def _script(self, request, attempt):
        scripts = self.scripts.get(request.id, [TEN_SECONDS])
        return scripts[min(attempt, len(scripts)) - 1]

    def stop_at(self, elapsed_s):
        return lambda: self.clock.elapsed_s >= elapsed_s

    @property
    def started(self):
        return [(worker.request.id, worker.request.seed) for worker in self.executor.started]

    @property
    def statuses(self):
        return [(entry.id, entry.seed, entry.attempt, entry.status) for entry in read_records(self.path).records]

    @property
    def warnings(self):
        return [what[1] for what in self.watcher.heard if what[0] == "warned"]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


# What a run does and leaves -------------------------------------------------------------------------------------------


def test_jobs_run_in_the_order_of_the_plan_one_at_a_time(bench):
    summary = bench.run(plan_of("a", "b", seeds=(0, 1)))
    assert bench.started == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [worker.started_s for worker in bench.executor.started] == pytest.approx([0, 10, 20, 30])
    assert bench.statuses == [(id_, seed, 1, "ok") for id_, seed in bench.started]
    assert (summary.count("ok"), summary.attempts_count, summary.interrupted) == (4, 4, False)


def test_a_record_holds_what_was_asked_what_came_of_it_and_where(bench):
    bench.clock.elapsed_s = 3600.0
    plan = plan_of("a", target_modules=("q_proj", "v_proj"))
    bench.run(plan, slots=GPUS[1:2])
    (entry,) = read_records(bench.path).records
    assert (entry.key, entry.matrix, entry.protocol, entry.slot) == ("key of a", "small", PROTOCOL_VERSION, "gpu1")
    assert (entry.started_at, entry.wall_s, entry.phase) == ("2025-01-01T01:00:00Z", 10.0, "score_after")
    assert entry.parameters["target_modules"] == ["q_proj", "v_proj"]
    assert entry.parameters == plan.cells[0].parameters.model_dump(mode="json")
    assert entry.measures == {"load_s": 1.0, "tokens_per_s": None}
    assert entry.environment["gpu_name"] == "NVIDIA L4"
    assert entry.environment["torch"] == "9", "what the worker saw counts"
    assert entry.environment["cpu"]


def test_a_worker_is_told_where_its_evidence_belongs(bench, monkeypatch):
    monkeypatch.chdir(bench.results.parent)
    bench.results = Path("results")
    bench.run(plan_of("a", "b", baseline="a", seeds=(3,)))
    requests = [worker.request for worker in bench.executor.started]
    assert {request.evidence_dir for request in requests} == {str(bench.folder)}
    assert [request.evidence_name for request in requests] == ["key of a-s3", "key of b-s3", "key of a-s3-again"]


def test_a_seed_offset_reaches_the_worker_and_the_record_keeps_the_seed_of_the_plan(bench):
    bench.run(plan_of("a", seed_offset=1000, seeds=(2,)))
    assert bench.started == [("a", 1002)]
    (entry,) = read_records(bench.path).records
    assert (entry.seed, entry.parameters["seed_offset"]) == (2, 1000)
    assert (bench.folder / "logs" / "a-s2.log").read_text().startswith("=== a, seed 2, attempt 1")
    bench.run(plan_of("a", seed_offset=1000, seeds=(2,)))
    assert bench.started == []


def test_a_worker_is_asked_for_exactly_its_cell(bench):
    plan = plan_of("a", seeds=(7,))
    bench.run(plan)
    (worker,) = bench.executor.started
    assert (worker.request.id, worker.request.seed, worker.request.device) == ("a", 7, "cpu")
    assert json.loads(worker.request.to_json())["parameters"] == plan.cells[0].parameters.model_dump(mode="json")


def test_the_folder_holds_the_matrix_as_run_the_environment_and_logs(bench):
    bench.run(plan_of("a", text="# mine\r\nname: small\r\n"), slots=GPUS[:2])
    assert (bench.folder / "matrix.yaml").read_bytes() == b"# mine\r\nname: small\r\n"
    environment = json.loads((bench.folder / "environment.json").read_text())
    assert environment["slots"]["gpu1"]["gpu_name"] == "NVIDIA L4"
    assert environment["python"]
    assert (
        bench.folder / "logs" / "a-s0.log"
    ).read_text() == "=== a, seed 0, attempt 1, on gpu0, 2025-01-01T00:00:00Z\n"
    names = {path.name for path in bench.folder.iterdir()}
    assert names == {"matrix.yaml", "plan.json", "environment.json", "records.jsonl", "logs"}


def test_the_folder_tells_all_cells_of_the_matrix_though_only_some_were_selected(bench):
    whole = plan_of("a", "b")
    matrix = replace(whole.matrix, baseline="b")
    bench.run(plan(matrix, select="a"))
    assert bench.started == [("a", 0)]
    assert json.loads((bench.folder / "plan.json").read_text()) == {
        "schema": 1,
        "baseline": "b",
        "watch_pairs": [],
        "cells": [{"id": "a", "key": "key of a"}, {"id": "b", "key": "key of b"}],
    }


def test_slots_work_at_the_same_time_and_each_job_runs_once(bench):
    ids = [f"cell{number}" for number in range(8)]
    bench.scripts = {"cell0": [finishes("ok", 35.0)]}
    bench.run(plan_of(*ids, seeds=(0, 1)), slots=GPUS)
    assert Counter(bench.started) == Counter({(id_, seed): 1 for id_ in ids for seed in (0, 1)})
    assert [(id_, seed) for id_, seed in bench.started] == [(id_, seed) for seed in (0, 1) for id_ in ids]
    assert bench.clock.elapsed_s == pytest.approx(75)  # 35 + 15 * 10 seconds of work in three lanes
    for slot in GPUS:
        workers = [worker for worker in bench.executor.started if worker.slot == slot]
        ends = [worker.started_s + worker.script.ends_at_s for worker in workers]
        assert all(end <= worker.started_s for end, worker in zip(ends, workers[1:], strict=False))


def test_a_slow_cell_holds_up_its_own_slot_only(bench):
    bench.scripts = {"slow": [finishes("ok", 100.0)]}
    bench.run(plan_of("slow", "b", "c", "d"), slots=GPUS[:2])
    assert [worker.slot.name for worker in bench.executor.started] == ["gpu0", "gpu1", "gpu1", "gpu1"]
    assert bench.clock.elapsed_s == pytest.approx(100.0, abs=0.5)


# Failures are rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["oom", "diverged", "invalid", "timeout"])
def test_a_failure_that_is_a_result_is_a_row_and_the_run_goes_on(bench, status):
    bench.scripts = {"a": [finishes(status, 5.0, "train", message="why", hint="how")]}
    summary = bench.run(plan_of("a", "b"))
    assert bench.statuses == [("a", 0, 1, status), ("b", 0, 1, "ok")]
    assert (summary.records[0].message, summary.records[0].hint) == ("why", "how")
    bench.run(plan_of("a", "b"))
    assert bench.started == []


def test_a_cell_that_takes_longer_than_its_timeout_is_killed_and_not_tried_again(bench):
    bench.scripts = {"a": [hangs()]}
    bench.run(plan_of("a", "b", timeout=60.0))
    assert bench.statuses == [("a", 0, 1, "timeout"), ("b", 0, 1, "ok")]
    assert bench.executor.started[0].killed_s == pytest.approx(60.0, abs=0.5)


def test_a_crash_is_tried_again_at_once_and_the_better_end_counts(bench):
    bench.scripts = {"a": [dies(5.0, -9), TEN_SECONDS]}
    summary = bench.run(plan_of("a", "b"))
    assert bench.statuses == [("a", 0, 1, "crashed"), ("a", 0, 2, "ok"), ("b", 0, 1, "ok")]
    assert [entry.status for entry in summary.records] == ["ok", "ok"]
    assert ("finished", "cpu", "a", "crashed", True) in bench.watcher.heard


def test_a_second_crash_is_final_in_this_run_and_in_the_next(bench):
    bench.scripts = {"a": [dies(5.0, 1)]}
    summary = bench.run(plan_of("a", "b"))
    assert bench.statuses == [("a", 0, 1, "crashed"), ("a", 0, 2, "crashed"), ("b", 0, 1, "ok")]
    assert ("finished", "cpu", "a", "crashed", False) in bench.watcher.heard
    assert (summary.count("crashed"), summary.attempts_count) == (1, 3)
    bench.run(plan_of("a", "b"))
    assert bench.started == []


def test_a_crash_that_the_worker_reported_itself_is_tried_again_too(bench):
    bench.scripts = {"a": [finishes("crashed", 5.0), TEN_SECONDS]}
    bench.run(plan_of("a"))
    assert bench.statuses == [("a", 0, 1, "crashed"), ("a", 0, 2, "ok")]


# Going on -------------------------------------------------------------------------------------------------------------


def test_running_again_does_what_is_missing_and_nothing_else(bench):
    bench.run(plan_of("a", "b"))
    before = bench.path.read_bytes()
    summary = bench.run(plan_of("a", "b", "c", seeds=(0, 1)))
    assert bench.started == [("c", 0), ("a", 1), ("b", 1), ("c", 1)]
    assert bench.path.read_bytes().startswith(before)
    assert bench.watcher.heard[0] == ("begun", 4, 2)
    assert [(entry.id, entry.seed) for entry in summary.records] == [(i, s) for s in (0, 1) for i in "abc"]


def test_records_are_matched_by_key_though_matrix_and_ids_have_changed(bench):
    bench.run(plan_of("a", text="name: small\n"))
    append_record(bench.path, record(id="old name", key="key of b"))
    bench.run(plan_of("a", "b", "c", text="name: small # new\n"))
    assert bench.started == [("c", 0)]
    assert (bench.folder / "matrix.yaml").read_text() == "name: small # new\n"


def test_an_interruption_kills_records_and_resumes(bench):
    plan = plan_of("a", "b", "c", "d")
    summary = bench.run(plan, slots=GPUS[:2], stop=bench.stop_at(15.0))
    assert summary.interrupted
    assert sorted(bench.statuses) == [
        ("a", 0, 1, "ok"),
        ("b", 0, 1, "ok"),
        ("c", 0, 1, "interrupted"),
        ("d", 0, 1, "interrupted"),
    ]
    assert all(worker.killed_s == pytest.approx(15.0, abs=0.5) for worker in bench.executor.started[2:])
    summary = bench.run(plan, slots=GPUS[:2])
    assert bench.started == [("c", 0), ("d", 0)]
    assert not summary.interrupted
    assert [entry.attempt for entry in summary.records] == [1, 1, 2, 2]


def test_a_job_may_be_interrupted_any_number_of_times_and_still_crash_twice(bench):
    plan = plan_of("a")
    for _ in range(3):
        assert bench.run(plan, stop=bench.stop_at(bench.clock.elapsed_s + 3)).interrupted
    bench.scripts = {"a": [dies(1.0, -9), TEN_SECONDS]}
    bench.run(plan)
    assert [entry[3] for entry in bench.statuses] == ["interrupted"] * 3 + ["crashed", "ok"]
    assert [entry[2] for entry in bench.statuses] == [1, 2, 3, 4, 5]


def test_a_result_that_came_in_the_moment_of_the_interruption_is_kept(bench):
    bench.scripts = {"a": [Script(finishes("ok", 4.0).messages)]}  # sent its result, and still there
    summary = bench.run(plan_of("a"), stop=bench.stop_at(5.0))
    assert bench.statuses == [("a", 0, 1, "ok")]
    assert not summary.interrupted


def test_a_wish_to_stop_before_the_first_cell_starts_nothing(bench):
    assert bench.run(plan_of("a"), stop=lambda: True).interrupted
    assert bench.started == []


def test_a_crash_before_an_interruption_has_its_second_try_in_the_next_run(bench):
    plan = plan_of("a")
    bench.scripts = {"a": [dies(5.0, 1), hangs()]}
    bench.run(plan, stop=bench.stop_at(8.0))
    assert [entry[3] for entry in bench.statuses] == ["crashed", "interrupted"]
    bench.scripts = {}
    bench.run(plan)
    assert [entry[3] for entry in bench.statuses] == ["crashed", "interrupted", "ok"]


def test_drafts_that_a_killed_worker_left_are_gone_with_the_next_run(bench):
    plan = plan_of("a")
    bench.run(plan)
    (bench.folder / "examples").mkdir()
    for name in (".key of a-s0.parquet.4711", "key of a-s0.parquet"):
        (bench.folder / "examples" / name).touch()
    bench.run(plan)
    assert [path.name for path in (bench.folder / "examples").iterdir()] == ["key of a-s0.parquet"]


def test_statuses_can_be_run_again_on_request(bench):
    bench.scripts = {"a": [finishes("oom", 5.0)], "b": [finishes("timeout", 5.0)], "c": [dies(5.0, 1)]}
    plan = plan_of("a", "b", "c", "d")
    bench.run(plan)
    bench.scripts = {}
    summary = bench.run(plan, retry={"oom", "crashed"})
    assert bench.started == [("a", 0), ("c", 0)]
    assert [entry.status for entry in summary.records] == ["ok", "timeout", "ok", "ok"]
    assert [entry.attempt for entry in summary.records] == [2, 1, 3, 1]


def test_a_crash_that_is_run_again_on_request_has_one_try(bench):
    bench.scripts = {"a": [dies(5.0, 1)]}
    bench.run(plan_of("a"))
    bench.run(plan_of("a"), retry={"crashed"})
    assert bench.started == [("a", 0)]


def test_a_fresh_start_runs_everything_and_keeps_the_old_records_aside(bench):
    bench.run(plan_of("a", "b"))
    before = bench.path.read_bytes()
    (bench.folder / "examples").mkdir()
    (bench.folder / "examples" / "key of a-s0.parquet").write_text("of the first run")
    bench.run(plan_of("a", "b"), fresh=True)
    assert bench.started == [("a", 0), ("b", 0)]
    (aside,) = bench.folder.glob("records-*.jsonl")
    assert aside.read_bytes() == before
    (kept,) = bench.folder.glob("examples*/*")
    assert kept.parent.name == aside.stem.replace("records", "examples")
    assert bench.warnings == [f"earlier records are now in {aside}"]
    assert len(read_records(bench.path).records) == 2


def test_half_a_record_costs_its_own_cell_only(bench):
    plan = plan_of("a", "b", "c")
    bench.run(plan)
    first, second, third = bench.path.read_bytes().splitlines(keepends=True)
    bench.path.write_bytes(first + second[:100] + b"\n" + third[:100])
    bench.run(plan)
    assert bench.started == [("b", 0), ("c", 0)]
    assert [warning.partition(": ")[0] for warning in bench.warnings] == [f"{bench.path}:2", f"{bench.path}:3"]
    assert bench.path.read_bytes().startswith(first + second[:100] + b"\n" + b'{"schema"')
    bench.run(plan)
    assert bench.started == []


# Blocks ---------------------------------------------------------------------------------------------------------------


def places(bench):
    return [(entry.id, entry.seed, entry.repeat, entry.position) for entry in read_records(bench.path).records]


def without_blocks(bench):
    """Leave the records as a version that had no blocks would have, without runs that repeat the baseline."""
    entries = [json.loads(line) for line in bench.path.read_text().splitlines()]
    earlier = [{name: value for name, value in entry.items() if name not in ("repeat", "position")}
               for entry in entries if not entry["repeat"]]  # fmt: skip
    bench.path.write_text("".join(json.dumps(entry) + "\n" for entry in earlier))


def test_the_baseline_runs_once_more_at_the_end_of_each_block_with_a_record_and_a_log_of_its_own(bench):
    plan = plan_of("a", "b", baseline="a", seeds=(0, 1))
    summary = bench.run(plan)
    block = [("a", 0, 1), ("b", 0, 2), ("a", 1, 3)]
    assert places(bench) == [(id_, seed, repeat, place) for seed in (0, 1) for id_, repeat, place in block]
    assert [entry.attempt for entry in summary.records] == [1] * 6
    logs = {path.name: path.read_text() for path in (bench.folder / "logs").iterdir()}
    assert set(logs) == {"a-s0.log", "b-s0.log", "a-s0-again.log", "a-s1.log", "b-s1.log", "a-s1-again.log"}
    assert logs["a-s1-again.log"].startswith("=== a, seed 1 again, attempt 1, on cpu, ")
    bench.run(plan)
    assert bench.started == []
    assert bench.watcher.heard == [("begun", 0, 6)]


def test_the_repeat_of_a_block_that_was_cut_short_runs_at_its_end(bench):
    plan = plan_of("a", "b", "c", baseline="a", seeds=(0, 1))
    bench.run(plan, stop=bench.stop_at(15.0))
    bench.run(plan, stop=bench.stop_at(bench.clock.elapsed_s + 25.0))
    assert [entry[:3] for entry in places(bench)][2:] == [("b", 0, 0), ("c", 0, 0), ("a", 0, 1)]
    bench.run(plan)
    assert bench.started == [("a", 0), ("a", 1), ("b", 1), ("c", 1), ("a", 1)]
    assert bench.statuses[4:6] == [("a", 0, 1, "interrupted"), ("a", 0, 2, "ok")]


def test_a_result_that_was_complete_before_there_were_blocks_gets_no_run(bench):
    plan = plan_of("a", "b", baseline="a", seeds=(0, 1))
    bench.run(plan)
    without_blocks(bench)
    summary = bench.run(plan)
    assert bench.started == []
    assert bench.watcher.heard == [("begun", 0, 4)]
    assert len(summary.records) == 4


def test_a_block_of_an_earlier_version_in_which_something_is_due_is_ended_as_any_other(bench):
    bench.run(plan_of("a", "b", baseline="a", seeds=(0, 1)))
    without_blocks(bench)
    extended = plan_of("a", "b", "c", baseline="a", seeds=(0, 1))
    bench.run(extended, stop=bench.stop_at(bench.clock.elapsed_s + 10.0))
    assert bench.started == [("c", 0)]
    bench.run(extended)
    assert bench.started == [("a", 0), ("c", 1), ("a", 1)]
    assert [entry[2] for entry in places(bench)][-3:] == [1, 0, 1]


def test_a_new_seed_leaves_the_blocks_of_an_earlier_version_alone(bench):
    bench.run(plan_of("a", "b", baseline="a"))
    without_blocks(bench)
    bench.run(plan_of("a", "b", baseline="a", seeds=(0, 1)))
    assert bench.started == [("a", 1), ("b", 1), ("a", 1)]


def test_a_new_cell_does_not_repeat_a_baseline_that_was_repeated(bench):
    bench.run(plan_of("a", "b", baseline="a"))
    bench.run(plan_of("a", "b", "c", baseline="a"))
    assert bench.started == [("c", 0)]


def test_repeats_crash_are_tried_again_and_retried_for_themselves(bench):
    plan = plan_of("a", "b", baseline="a")
    bench.run(plan)
    (last,) = [entry for entry in read_records(bench.path).records if entry.repeat]
    append_record(bench.path, replace(last, attempt=2, status="oom"))
    bench.run(plan)
    assert bench.started == []
    bench.scripts = {"a": [dies(5.0, 1), TEN_SECONDS]}
    bench.run(plan, retry={"oom"})
    assert bench.statuses[-2:] == [("a", 0, 3, "crashed"), ("a", 0, 4, "ok")]
    assert [entry[2] for entry in places(bench)] == [0, 0, 1, 1, 1, 1]


# What cannot be done --------------------------------------------------------------------------------------------------


def test_two_runs_never_share_a_folder(bench):
    bench.folder.mkdir(parents=True)
    with hold(bench.folder, datetime.now(UTC)), pytest.raises(BenchError, match=f"in use by process {os.getpid()}"):
        bench.run(plan_of("a"))
    assert bench.started == []
    bench.run(plan_of("a"))
    assert bench.started == [("a", 0)]


def test_records_of_a_newer_version_are_left_alone(bench):
    bench.folder.mkdir(parents=True)
    bench.path.write_text('{"schema": 99}\n')
    with pytest.raises(BenchError, match="newer qlora-bench"):
        bench.run(plan_of("a"))
    assert bench.path.read_text() == '{"schema": 99}\n'


def test_a_full_disk_ends_the_run_kills_the_workers_and_keeps_what_was_finished(bench, monkeypatch):
    bench.scripts = {"b": [finishes("ok", 100.0)]}
    full_at = len(to_line(record()))
    write = os.write

    def write_until_full(descriptor, data):
        size = os.fstat(descriptor).st_size
        return write(descriptor, data if size < full_at or not data.startswith(b'{"schema"') else data[:70])

    monkeypatch.setattr(os, "write", write_until_full)
    with pytest.raises(BenchError, match=r"results/small cannot go on: .*No space left on device.*run again"):
        bench.run(plan_of("a", "b", "c"), slots=GPUS[:2])
    assert bench.executor.started[1].killed_s == pytest.approx(20.0, abs=0.5)
    assert not (bench.folder / ".lock").exists()
    monkeypatch.undo()
    summary = bench.run(plan_of("a", "b", "c"))
    assert bench.started == [("b", 0), ("c", 0)]
    assert summary.count("ok") == 3


def test_a_folder_that_cannot_be_made_is_a_plain_error(bench):
    bench.results.write_text("a file in the way")
    with pytest.raises(BenchError, match=r"the run in .*small cannot go on: .*Not a directory"):
        bench.run(plan_of("a"))


def test_an_observer_that_fails_leaves_no_worker_behind(bench):
    class Broken(Silent):
        def told(self, slot, message):
            raise RuntimeError("a bug in the display")

    executor = ScriptedExecutor(bench.clock, lambda request, attempt: TEN_SECONDS)
    with pytest.raises(RuntimeError):
        run_plan(plan_of("a"), bench.results, slots=(CPU,), executor=executor, clock=bench.clock, observer=Broken())
    assert executor.started[0].killed_s is not None


def test_missing_data_is_found_before_anything_is_written(bench, tmp_path):
    with pytest.raises(BenchError, match=r"there is no .*banking77/train\.csv"):
        bench.run(plan_of("a", task="banking77"), data_dir=tmp_path)
    assert not bench.results.exists()


def test_the_folder_of_data_reaches_the_worker(bench, tmp_path):
    bench.run(plan_of("a"), data_dir=tmp_path)
    assert bench.executor.started[0].request.data_dir == str(tmp_path)


def test_workers_of_a_run_share_a_folder_that_a_fresh_start_empties(bench):
    bench.run(plan_of("a", "b"))
    folders = {worker.request.shared_dir for worker in bench.executor.started}
    assert folders == {str(bench.folder / "shared")}
    left = bench.folder / "shared" / "scores"
    left.parent.mkdir()
    left.write_text("of an earlier cell")
    bench.run(plan_of("a", "b", "c"))
    assert left.exists()
    bench.run(plan_of("a", "b"), fresh=True)
    assert not left.exists()


# Workers that are prepared --------------------------------------------------------------------------------------------

REPLAYS = replace(
    TEN_SECONDS,
    messages=(*TEN_SECONDS.messages[:2], (7.0, {"kind": "replay", "phase": "train"}), *TEN_SECONDS.messages[2:]),
)


def prepared(bench):
    return [(elapsed_s, slot.name, log.stem) for elapsed_s, slot, log in bench.executor.prepared]


def test_the_next_worker_of_a_gpu_is_prepared_when_the_one_before_spares_the_host(bench):
    bench.scripts = {"a": [REPLAYS], "b": [REPLAYS], "c": [REPLAYS]}
    bench.run(plan_of("a", "b", "c"), slots=GPUS[:1])
    assert prepared(bench) == [(pytest.approx(7.0), "gpu0", "b-s0"), (pytest.approx(17.0), "gpu0", "c-s0")]
    assert bench.started == [("a", 0), ("b", 0), ("c", 0)]
    assert [record.environment["worker_prepared"] for record in read_records(bench.path).records] == [False, True, True]


def test_no_worker_is_prepared_on_the_cpu_nor_while_the_host_is_timed(bench):
    bench.scripts = {"a": [REPLAYS]}
    bench.run(plan_of("a", "b"))
    assert prepared(bench) == []
    bench.run(plan_of("c", "d"), slots=GPUS[:1])
    assert prepared(bench) == []


def test_scoring_after_training_spares_the_host_too(bench):
    scoring = replace(
        TEN_SECONDS, messages=(*TEN_SECONDS.messages[:2], (8.0, {"kind": "phase", "phase": "score_after"}))
    )
    bench.scripts = {"a": [replace(scoring, messages=(*scoring.messages, TEN_SECONDS.messages[2]))]}
    bench.run(plan_of("a", "b"), slots=GPUS[:1])
    assert prepared(bench) == [(pytest.approx(8.0), "gpu0", "b-s0")]


def test_a_free_gpu_takes_over_what_was_prepared_behind_a_slow_cell(bench):
    end = TEN_SECONDS.messages[2][1]
    slow = Script(((1.0, {"kind": "replay", "phase": "train"}), (30.0, end)), ends_at_s=30.0)
    bench.scripts = {"a": [slow]}
    bench.run(plan_of("a", "b", "c"), slots=GPUS[:2])
    ran = {worker.request.id: (worker.slot.name, worker.started_s) for worker in bench.executor.started}
    assert prepared(bench) == [(pytest.approx(1.0), "gpu0", "c-s0")]
    assert ran == {
        "a": ("gpu0", pytest.approx(0.0)),
        "b": ("gpu1", pytest.approx(0.0)),
        "c": ("gpu1", pytest.approx(10.0)),
    }
    assert bench.executor.waiting == set()
    last = {record.id: record for record in read_records(bench.path).records}["c"]
    assert (last.slot, last.environment["worker_prepared"]) == ("gpu1", False)


def test_a_worker_that_cannot_be_prepared_is_started_in_its_turn(bench, monkeypatch):
    def fail(*_):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(ScriptedExecutor, "prepare", fail)
    bench.scripts = {"a": [REPLAYS]}
    bench.run(plan_of("a", "b"), slots=GPUS[:1])
    assert bench.statuses == [("a", 0, 1, "ok"), ("b", 0, 1, "ok")]
    assert [record.environment["worker_prepared"] for record in read_records(bench.path).records] == [False, False]


def test_a_crash_is_tried_again_after_the_worker_that_was_prepared(bench):
    crash = Script(((1.0, {"kind": "replay", "phase": "train"}),), 5.0, 1)
    bench.scripts = {"a": [crash, TEN_SECONDS]}
    bench.run(plan_of("a", "b", "c"), slots=GPUS[:1])
    assert bench.started == [("a", 0), ("b", 0), ("a", 0), ("c", 0)]
    assert bench.statuses == [("a", 0, 1, "crashed"), ("b", 0, 1, "ok"), ("a", 0, 2, "ok"), ("c", 0, 1, "ok")]


def test_a_prepared_worker_that_is_not_needed_is_ended(bench):
    bench.scripts = {"a": [REPLAYS]}
    summary = bench.run(plan_of("a", "b"), slots=GPUS[:1], stop=bench.stop_at(8.0))
    assert prepared(bench) == [(pytest.approx(7.0), "gpu0", "b-s0")]
    assert bench.executor.waiting == set()
    assert bench.started == [("a", 0)]
    assert (summary.interrupted, summary.attempts_count) == (True, 1)
    bench.run(plan_of("a", "b"), slots=GPUS[:1])
    assert bench.started == [("a", 0), ("b", 0)]


def test_a_stop_between_two_workers_is_an_interruption(bench):
    bench.scripts = {"a": [REPLAYS]}
    summary = bench.run(plan_of("a", "b"), slots=GPUS[:1], stop=bench.stop_at(10.0))
    assert summary.interrupted
    assert bench.executor.waiting == set()


# With real processes and real signals ---------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from bench.run.engine import run_plan
from bench.run.local import LocalExecutor
from bench.run.stop import stop_on_signals
from tests.run.examples import CPU, plan_of
WORKER = '''
import json, sys, time
id = json.load(sys.stdin)["id"]
print(json.dumps({"kind": "phase", "phase": "train"}), flush=True)
time.sleep(0 if id == "quick" else 60)
print(json.dumps({"kind": "end", "status": "ok", "phase": "score_after"}), flush=True)
'''
with stop_on_signals() as stop:
    executor = LocalExecutor((sys.executable, "-c", WORKER))
    summary = run_plan(plan_of("quick", "slow"), Path(sys.argv[1]), slots=[CPU], stop=stop, executor=executor)
print("interrupted", summary.interrupted)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_real_run_cleanly(tmp_path, number):
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    path = tmp_path / "small" / "records.jsonl"
    deadline = time.monotonic() + 30
    while not (tmp_path / "small" / "logs" / "slow-s0.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "interrupted True\n"
    assert [(entry.id, entry.status) for entry in read_records(path).records] == [
        ("quick", "ok"),
        ("slow", "interrupted"),
    ]


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}])
def test_a_models_own_code_is_trusted_only_where_the_run_is_told_so(tmp_path, options):
    bench = Bench(tmp_path)
    bench.run(plan_of("a"), **options)
    assert [worker.request.trust_remote_code for worker in bench.executor.started] == [bool(options)]
