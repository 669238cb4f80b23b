from __future__ import annotations

import pytest

from bench.tables.comparable import differences, incomparable, left_out, left_out_notes
from bench.tables.load import load_results

from .examples import CPU, H100, record, write_result

OLD = {**H100, "torch": "2.11.0"}
OLDER = {**H100, "torch": "2.10.0"}
INSTEAD = "torch 2.11.0 instead of 2.13.0"


def loaded(folder, records, baseline="base"):
    return load_results(write_result(folder / "r", records, baseline=baseline))


def names(runs):
    return [f"{id_} s{seed}" for id_, seed in zip(runs["id"], runs["seed"], strict=True)]


def apart(folder, records, baseline="base"):
    found = incomparable(loaded(folder, records, baseline))
    return {cell[0]: text for cell, text in found.items()}


def test_cells_of_one_machine_are_all_comparable(tmp_path):
    assert apart(tmp_path, [record("base"), record("a")]) == {}


def test_another_gpu_or_version_than_the_baseline_s_is_named(tmp_path):
    records = [
        record("a", environment={**H100, "gpu_name": "Tesla T4"}),
        record("b", environment={**H100, "torch": "2.11.0"}, protocol=2),
        record("base"),
    ]
    assert apart(tmp_path, records) == {
        "a": "GPU Tesla T4 instead of NVIDIA H100 80GB HBM3",
        "b": "torch 2.11.0 instead of 2.13.0, protocol 2 instead of 1",
    }


def test_without_a_baseline_the_rare_conditions_stand_apart(tmp_path):
    records = [record("odd", environment={**H100, "torch": "2.11.0"}), record("a"), record("b")]
    assert list(apart(tmp_path, records, baseline=None)) == ["odd"]


def test_what_a_dead_worker_could_not_tell_does_not_differ(tmp_path):
    assert apart(tmp_path, [record("base"), record("a", environment={"torch": "2.13.0"})]) == {}


def test_a_cpu_run_is_not_comparable_with_one_of_a_gpu_in_the_same_machine(tmp_path):
    records = [record("base"), record("a", environment=CPU, slot="cpu")]
    assert apart(tmp_path, records) == {"a": "device CPU instead of GPU"}


# By run.


def test_one_odd_seed_is_left_out_and_its_cell_stays_comparable(tmp_path):
    records = [record(name, seed) for name in ("base", "a") for seed in range(3)]
    records[2]["environment"] = OLD
    records[4]["environment"] = OLD
    frame = loaded(tmp_path, records)
    assert incomparable(frame) == {}
    assert names(frame[left_out(frame)]) == ["base s2", "a s1"]
    assert differences(frame).dropna().tolist() == [INSTEAD] * 2
    assert list(left_out_notes(frame)) == [
        f"Left out, since they ran under other conditions: base s2, a s1 ({INSTEAD})."
    ]


def test_seeds_added_with_another_protocol_are_left_out_of_every_cell(tmp_path):
    records = [record(name, seed, protocol=1 + (seed > 2)) for name in ("base", "a", "b") for seed in range(5)]
    frame = loaded(tmp_path, records)
    assert incomparable(frame) == {}
    assert set(frame["seed"][left_out(frame)]) == {3, 4}
    assert list(left_out_notes(frame)) == [
        "Left out, since they ran under other conditions: base s3, base s4, a s3, a s4, b s3, b s4 "
        "(protocol 2 instead of 1)."
    ]


def test_runs_are_named_by_what_differs_and_many_are_counted(tmp_path):
    records = [record("base", seed) for seed in range(10)]
    for entry in records[:4]:
        entry["environment"] = OLD
    records += [record(f"cell{number}", seed) for number in range(8) for seed in range(2)]
    for entry in records[10::2]:
        entry["environment"] = OLDER
    notes = list(left_out_notes(loaded(tmp_path, records)))
    assert len(notes) == 2
    assert notes[0].endswith(f"base s0, base s1, base s2, base s3 ({INSTEAD}).")
    assert "cell5 s0 and 2 more (torch 2.10.0 instead of 2.13.0)" in notes[1]


def test_of_a_cell_apart_the_runs_under_its_own_most_common_conditions_count(tmp_path):
    records = [record("base"), *(record("a", seed, environment=OLD if seed else OLDER) for seed in range(3))]
    frame = loaded(tmp_path, records)
    assert list(incomparable(frame).values()) == [INSTEAD]
    assert names(frame[left_out(frame)]) == ["a s0"]


@pytest.mark.parametrize("environment", [H100, {}])
def test_a_failed_run_under_the_usual_conditions_does_not_push_out_those_that_ended_ok(tmp_path, environment):
    records = [record("base"), record("a", 0, status="oom", environment=environment), record("a", 1, environment=OLD)]
    frame = loaded(tmp_path, records)
    assert list(incomparable(frame).values()) == [INSTEAD]
    assert not left_out(frame).any()


def test_usual_are_the_conditions_of_most_of_the_baseline_s_runs_that_ended_ok(tmp_path):
    records = [
        *(record("base", seed, environment=OLD, status="oom") for seed in range(3)),
        record("base", 3),
        *(record("a", seed, environment=OLD) for seed in range(4)),
    ]
    assert list(apart(tmp_path, records)) == ["a"]


def test_where_the_baseline_failed_the_conditions_of_most_other_runs_are_usual(tmp_path):
    records = [record("base", environment=OLD, status="oom"), record("a"), record("b")]
    assert list(apart(tmp_path, records)) == ["base"]


def test_a_baseline_half_under_one_and_half_under_another_goes_with_most_runs_of_all_cells(tmp_path):
    records = [record("base", 0, environment=OLD), record("base", 1), record("a", 0), record("a", 1)]
    frame = loaded(tmp_path, records)
    assert names(frame[left_out(frame)]) == ["base s0"]
    assert incomparable(frame) == {}


def test_usual_conditions_are_ones_that_a_run_had_and_no_mixture(tmp_path):
    t4 = {**H100, "gpu_name": "Tesla T4"}
    records = [
        record("base", 0),
        record("base", 1, protocol=2),
        record("base", 2, environment=t4, protocol=2),
        record("base", 3, environment=t4, protocol=2),
        record("base", 4, environment={**H100, "torch": "2.11.0"}),
    ]
    frame = loaded(tmp_path, records)
    assert names(frame[~left_out(frame)]) == ["base s2", "base s3"]
