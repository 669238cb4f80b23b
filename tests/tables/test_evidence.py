from __future__ import annotations

import json

import numpy as np
import pytest

from bench.tables.contrasts import difference
from bench.tables.evidence import ACCURACY, HOST_PEAK, LOSS, PEAK, SPEED, STORED, gather, resampling
from bench.tables.load import load_results

from .evidences import BASELINE, LABELS, QUIET, SimulatedCell, alike, evidence, simulated
from .examples import CPU, default_matrix, quality, record, training, write_result

CELLS = (BASELINE, SimulatedCell("nf4", accuracy=0.9, log_speed=0.05), SimulatedCell("fp4", {"quant_type": "fp4"}))


def gathered(folder):
    return gather(load_results(folder))


def edited(folder, change):
    """The evidence of a result whose records, read as JSON, `change` was applied to."""
    path = folder / "records.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        change(entry)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return gathered(folder)


def comparable(found, cell="nf4"):
    """In which measures a cell may be compared with the baseline."""
    number = found.cells.index[found.cells["id"] == cell][0]
    return {measure.name for measure in found.measures if found.comparable(number, 0, measure)}


ALL = {"stored_bytes", "train_peak_bytes", "tokens_per_s", "accuracy_after", "heldout_loss_after"}


def test_values_stand_by_cell_and_seed_and_repeats_apart(tmp_path):
    found = gathered(simulated(tmp_path / "r", CELLS, seeds=(0, 2, 5), examples=40, sentinels=True))
    assert found.seeds == (0, 2, 5)
    assert found.cells["id"].tolist() == ["lora-bf16", "nf4", "fp4"]
    assert (len(found.runs), len(found.repeats)) == (9, 3)
    runs = found.runs.set_index(["id", "seed"])
    for number, cell in enumerate(CELLS):
        for place, seed in enumerate(found.seeds):
            run = runs.loc[(cell.id, seed)]
            assert found.samples[ACCURACY.name].observed[number, place] == run["accuracy_after"]
            assert found.samples[SPEED.name].observed[number, place] == pytest.approx(np.log(run["tokens_per_s"]))


def test_the_real_examples_give_what_the_record_says(tmp_path):
    found = gathered(simulated(tmp_path / "r", CELLS, examples=60))
    for measure in (ACCURACY, LOSS):
        resampled = found.samples[measure.name].resampled
        assert resampled.shape == (1000, 3, 3)
        assert resampled.mean(axis=0) == pytest.approx(found.samples[measure.name].observed, rel=0.02)


def test_resamples_draw_as_many_examples_as_there_are_and_the_first_row_is_the_real_one():
    weights = resampling(50, 200)
    assert weights.shape == (201, 50)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 50).all()
    assert weights[1:].var() == pytest.approx(1 - 1 / 50, rel=0.05)
    np.testing.assert_array_equal(weights, resampling(50, 200))


def test_differences_are_in_the_unit_of_their_measure():
    found = evidence(CELLS, examples=2000, noise=QUIET)
    of = {measure: found.found(measure, [difference(1, 0)]).iloc[0] for measure in found.measures}
    assert of[STORED]["estimate"] == pytest.approx(-153.0)
    assert of[PEAK]["estimate"] == pytest.approx(940.0)
    assert of[SPEED]["estimate"] == pytest.approx(100 * np.expm1(0.05), abs=0.1)
    assert of[ACCURACY]["estimate"] == pytest.approx(5.0, abs=1.5)
    assert {name["verdict"] for name in (of[SPEED], of[ACCURACY], of[STORED])} == {"better"}
    assert of[LOSS]["estimate"] < 0


def test_the_share_of_watched_labels_taken_for_each_other_is_compared(tmp_path):
    folder = simulated(tmp_path / "r", CELLS, examples=60, watch_pairs=[LABELS[:2], ("card_arival", "label_3")])
    found = gathered(folder)
    (pair,) = found.watched
    (part,) = found.examples
    of_pair = part.truth < 2
    shares = (part.predicted_after[:, of_pair] == 1 - part.truth[of_pair]).mean(axis=1)
    sample = found.samples[pair.compared.name]
    assert sample.observed.ravel() == pytest.approx(shares)
    assert np.isfinite(sample.resampled).all()
    assert found.notes == (
        "The watched pair card_arival and label_3: the task has no label 'card_arival'; did you mean card_arrival?",
    )


def test_draws_without_any_example_of_a_watched_pair_do_no_harm(tmp_path):
    found = gathered(simulated(tmp_path / "r", CELLS, examples=3, watch_pairs=[LABELS[:2]]))
    sample = found.samples[found.watched[0].compared.name]
    assert (resampling(3)[:, :2].sum(axis=1) == 0).any()
    assert np.isfinite(sample.resampled).all()


# What may be compared.


def test_cells_of_one_matrix_are_comparable_in_everything(tmp_path):
    assert comparable(gathered(simulated(tmp_path / "r", CELLS, examples=20))) == ALL


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"environment": {"execution_used": "eager"}}, {"tokens_per_s"}),
        ({"environment": {"gpu_name": "NVIDIA L4"}}, ALL),
        ({"environment": {"task_sha256": "other"}}, {"accuracy_after", "heldout_loss_after"}),
        ({"parameters": {"task": "other"}}, {"accuracy_after", "heldout_loss_after"}),
        ({"parameters": {"eval_examples": 100}}, {"accuracy_after", "heldout_loss_after"}),
        ({"parameters": {"train_examples": 100}, "environment": {"task_sha256": "other"}}, set()),
        ({"parameters": {"model": "other"}}, {"heldout_loss_after"}),
        ({"parameters": {"weights": "random"}}, {"accuracy_after", "heldout_loss_after"}),
        ({"status": "oom"}, ALL),
    ],
)
def test_what_differs_keeps_a_cell_from_being_compared(tmp_path, changed, lost):
    def change(entry):
        if entry["id"] == "nf4":
            entry.update({name: entry[name] | new if name != "status" else new for name, new in changed.items()})

    found = edited(simulated(tmp_path / "r", CELLS, examples=20), change)
    assert comparable(found) == ALL - lost
    assert comparable(found, "fp4") == ALL


def test_a_cell_whose_seeds_were_scored_on_other_data_is_not_compared_in_quality(tmp_path):
    def change(entry):
        if entry["id"] == "nf4" and entry["seed"] == 2:
            entry["environment"]["task_sha256"] = "other"

    found = edited(simulated(tmp_path / "r", CELLS, examples=20), change)
    assert comparable(found) == ALL - {"accuracy_after", "heldout_loss_after"}


def test_a_run_under_other_conditions_is_in_no_sample_and_no_group_and_its_cell_is_compared_all_the_same(tmp_path):
    def change(entry):
        if entry["id"] == "nf4" and entry["seed"] == 2:
            entry["environment"] |= {"gpu_name": "Tesla T4", "execution_used": "eager", "task_sha256": "other"}

    found = edited(simulated(tmp_path / "r", CELLS, examples=20), change)
    assert (len(found.runs), len(found.counted)) == (9, 8)
    assert (found.apart, found.seeds) == ({}, (0, 1, 2))
    assert comparable(found) == ALL
    for measure in found.measures:
        sample = found.samples[measure.name]
        assert np.isnan(sample.observed).sum() == 1
        assert np.isnan(sample.observed[1, 2])
    resampled = found.samples[ACCURACY.name].resampled
    assert np.isnan(resampled[:, 1, 2]).all()
    assert not np.isnan(np.delete(resampled.reshape(len(resampled), -1), 5, axis=1)).any()
    assert sum(len(part.rows) for part in found.examples) == 8
    assert found.found(SPEED, [difference(1, 0)])["seeds_count"].tolist() == [2]
    assert found.notes == (
        "Left out, since they ran under other conditions: nf4 s2 (GPU Tesla T4 instead of NVIDIA H100 80GB HBM3).",
    )


def test_seeds_that_were_added_with_another_protocol_leave_the_others_as_they_were(tmp_path):
    def change(entry):
        entry["protocol"] += entry["seed"] > 2

    found = edited(simulated(tmp_path / "r", CELLS, seeds=range(5), examples=20), change)
    before = gathered(simulated(tmp_path / "before", CELLS, seeds=range(3), examples=20))
    assert found.seeds == (0, 1, 2)
    assert comparable(found) == ALL
    for measure in found.measures:
        shape = found.samples[measure.name].observed.shape
        assert shape == before.samples[measure.name].observed.shape
        assert not np.isnan(found.samples[measure.name].observed).any()
    assert len(found.notes) == 1


def test_records_of_before_there_were_hashes_are_comparable(tmp_path):
    found = gathered(write_result(tmp_path / "r", default_matrix(seeds=(0, 1, 2))))
    assert found.examples == ()
    assert comparable(found, "int8") == {"stored_bytes", "train_peak_bytes", "accuracy_after", "heldout_loss_after"}
    assert found.samples[ACCURACY.name].resampled is None


def test_on_a_cpu_the_peak_is_of_host_memory_and_has_noise(tmp_path):
    records = [
        record(cell, seed, environment=CPU, slot="cpu", measures={**training(1, 100 + seed, 1), **quality(0.8)})
        for cell in ("lora-bf16", "nf4")
        for seed in range(3)
    ]
    found = gathered(write_result(tmp_path / "r", records))
    assert HOST_PEAK in found.measures
    assert found.found(HOST_PEAK, [difference(1, 0)])["estimate"][0] == pytest.approx(0)


# What is missing.


def test_figures_that_are_no_numbers_are_left_out_and_named(tmp_path):
    def change(entry):
        if entry["id"] == "nf4" and entry["seed"] == 1:
            entry["measures"]["accuracy_after"] = None

    found = edited(simulated(tmp_path / "r", CELLS, examples=20), change)
    assert np.isnan(found.samples[ACCURACY.name].observed[1]).tolist() == [False, True, False]
    assert found.notes == ("No accuracy in the record of nf4 s1, though it ended ok: left out.",)


def test_a_result_in_which_everything_failed_is_arranged_all_the_same(tmp_path):
    found = edited(simulated(tmp_path / "r", CELLS, examples=20), lambda entry: entry.update(status="crashed"))
    assert found.examples == ()
    assert comparable(found) == set()


def test_many_cells_with_one_seed_are_arranged(tmp_path):
    found = gathered(simulated(tmp_path / "r", alike(3), seeds=(4,), examples=20))
    assert found.samples[ACCURACY.name].observed.shape == (4, 1)
