from __future__ import annotations

from bench.tables.comparable import incomparable
from bench.tables.load import load_results

from .examples import CPU, H100, record, write_result


def differences(folder, records, baseline="base"):
    found = incomparable(load_results(write_result(folder / "r", records, baseline=baseline)))
    return {cell[0]: text for cell, text in found.items()}


def test_cells_of_one_machine_are_all_comparable(tmp_path):
    assert differences(tmp_path, [record("base"), record("a")]) == {}


def test_another_gpu_or_version_than_the_baseline_s_is_named(tmp_path):
    records = [
        record("a", environment={**H100, "gpu_name": "Tesla T4"}),
        record("b", environment={**H100, "torch": "2.11.0"}, protocol=2),
        record("base"),
    ]
    assert differences(tmp_path, records) == {
        "a": "GPU Tesla T4 instead of NVIDIA H100 80GB HBM3",
        "b": "torch 2.11.0 instead of 2.13.0, protocol 2 instead of 1",
    }


def test_without_a_baseline_the_rare_conditions_stand_apart(tmp_path):
    records = [record("odd", environment={**H100, "torch": "2.11.0"}), record("a"), record("b")]
    assert list(differences(tmp_path, records, baseline=None)) == ["odd"]


def test_what_a_dead_worker_could_not_tell_does_not_differ(tmp_path):
    assert differences(tmp_path, [record("base"), record("a", environment={"torch": "2.13.0"})]) == {}


def test_a_cpu_run_is_not_comparable_with_one_of_a_gpu_in_the_same_machine(tmp_path):
    records = [record("base"), record("a", environment=CPU, slot="cpu")]
    assert differences(tmp_path, records) == {"a": "device CPU instead of GPU"}


def test_one_odd_seed_sets_its_cell_apart_and_the_baseline_too(tmp_path):
    odd = {**H100, "torch": "2.11.0"}
    records = [record("base", 0), record("base", 1), record("base", 2, environment=odd), record("a", 0)]
    assert list(differences(tmp_path, records)) == ["base"]
