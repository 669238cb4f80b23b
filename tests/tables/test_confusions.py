from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from bench.tables.confusions import MOST_PAIRS, confusions_of, confusions_table
from bench.tables.csv import to_csv
from bench.tables.evidence import gather
from bench.tables.load import load_results

from .answers import answered, evidence_of, shown
from .evidences import GRID, QUIET, alike, evidence, simulated
from .examples import default_matrix, record, write_result

LABELS = ["a", "b", "c", "d"]
TRUTH = ["a"] * 4 + ["b"] * 4 + ["c"] * 2


def test_counts_are_those_of_scikit_learn_averaged_over_the_seeds_of_a_cell():
    found = evidence(GRID[:3], examples=200)
    (confusions,) = confusions_of(found)
    (examples,) = found.examples
    numbers = range(len(examples.labels))
    for predicted, counts in (
        (examples.predicted_before, confusions.before),
        (examples.predicted_after, confusions.after),
    ):
        for place, cell in enumerate(confusions.cells):
            runs = (found.runs.loc[examples.rows, "id"] == found.cells["id"][cell]).to_numpy()
            expected = np.mean(
                [confusion_matrix(examples.truth, row, labels=numbers) for row in predicted[runs]], axis=0
            )
            np.testing.assert_allclose(counts[place], expected)
    assert confusions.seeds_count.tolist() == [3, 3, 3]
    assert confusions.examples_count.tolist() == confusion_matrix(examples.truth, examples.truth).sum(axis=1).tolist()


def test_pairs_of_all_cells_stand_by_how_often_they_are_confused_then_by_name(tmp_path):
    records = [
        answered(tmp_path, "base", TRUTH, ["d"] * 10, ["b", "b", "a", "a", *"aabb", "c", "c"], LABELS),
        answered(tmp_path, "nf4", TRUTH, ["d"] * 10, ["b", "c", "d", "a", *"bbbb", "c", "c"], LABELS),
    ]
    table = confusions_table(evidence_of(tmp_path, records))
    rows = table.rows
    assert [*zip(rows["label"], rows["other"], strict=True)] == [("a", "b"), ("a", "c"), ("a", "d")]
    # By hand: base takes 2 a for b and 2 b for a, nf4 1 a for b, 1 for c and 1 for d; 10 examples.
    assert rows["confused_after_per_1000"].tolist() == pytest.approx(
        [1000 * 2.5 / 10, 1000 * 0.5 / 10, 1000 * 0.5 / 10]
    )
    assert rows["confused_after"].tolist() == pytest.approx([2.5 / 8, 0.5 / 6, 0.5 / 4])
    assert rows["label_as_other_after"].tolist() == pytest.approx([1.5 / 4, 0.5 / 4, 0.5 / 4])
    assert rows["other_as_label_after"].tolist()[:2] == pytest.approx([1 / 4, 0])
    assert np.isnan(rows["other_as_label_after"][2])  # no test example of d
    assert rows[["most_id", "most_share", "least_id", "least_share"]].iloc[0].tolist() == [
        "base", pytest.approx(0.5), "nf4", pytest.approx(1 / 8),
    ]  # fmt: skip
    assert "Confused after training: 3 pairs of labels, equal ones by name." in table.caption
    texts = shown(table)["a ↔ b"]
    assert (texts["per 1,000 before → after"], texts["most % in cell"]) == ("0.0 → 250.0", "50.0\nbase")
    assert (texts["first → second % before → after"], texts["n"]) == ("0.0 → 37.5", "8")


def test_cells_apart_are_in_no_figure_of_all_cells_but_in_the_csv(tmp_path):
    records = [
        answered(tmp_path, "base", TRUTH, TRUTH, ["b", *TRUTH[1:]], LABELS),
        answered(tmp_path, "t4", TRUTH, TRUTH, ["b", "c", *TRUTH[2:]], LABELS),
    ]
    records[1]["environment"]["gpu_name"] = "Tesla T4"
    table = confusions_table(evidence_of(tmp_path, records))
    assert table.rows[["label", "other", "cells_count", "most_id"]].to_numpy().tolist() == [["a", "b", 1, "base"]]
    assert set(table.detail["id"]) == {"base", "t4"}
    assert table.notes == (
        "Not in the figures of all cells: t4 (GPU Tesla T4 instead of NVIDIA H100 80GB HBM3).",
    )  # fmt: skip


def test_errors_per_1_000_add_up_to_what_accuracy_lacks_and_most_pairs_stand_in_the_files_only():
    found = evidence(alike(1), examples=40, noise=QUIET)
    table = confusions_table(found)
    lacking = 1000 * (1 - found.cells["accuracy_after"].mean())
    assert table.rows["confused_after_per_1000"].sum() == pytest.approx(lacking)
    found = evidence(alike(2), examples=800)
    table = confusions_table(found)
    assert (len(table.rows), table.shown) == (MOST_PAIRS, 10)
    assert table.caption[-1].endswith(f"pairs of labels; the {MOST_PAIRS} most are here, equal ones by name.")
    assert table.rows["confused_after_per_1000"].round(9).is_monotonic_decreasing


def test_cells_that_tie_for_an_extreme_are_counted_and_the_first_by_name_is_named(tmp_path):
    one = ["b", *TRUTH[1:]]
    records = [answered(tmp_path, name, TRUTH, TRUTH, one, LABELS) for name in ("base", "z", "b2", "a")]
    records.append(answered(tmp_path, "none", TRUTH, TRUTH, TRUTH, LABELS))
    texts = shown(confusions_table(evidence_of(tmp_path, records)))["a ↔ b"]
    assert (texts["most % in cell"], texts["least % in cell"]) == ("12.5\na + 3", "0.0\nnone")


def test_the_csv_has_each_direction_of_each_cell_and_pairs_of_the_table_for_every_cell(tmp_path):
    records = [
        answered(tmp_path, "base", TRUTH, ["b"] * 10, ["b", *TRUTH[1:]], LABELS, seed=0),
        answered(tmp_path, "base", TRUTH, ["b"] * 10, TRUTH, LABELS, seed=1),
        answered(tmp_path, "nf4", TRUTH, ["b"] * 10, TRUTH, LABELS),
    ]
    found = evidence_of(tmp_path, records, [("c", "d")])
    csv = pd.read_csv(io.StringIO(to_csv(confusions_table(found))), dtype={"key": str})
    rows = csv.set_index(["id", "label", "predicted"])
    assert Counter(csv["id"]) == {"base": 4, "nf4": 4}  # a and b, and the watched c and d, both ways
    assert rows.loc[("base", "a", "b"), ["predicted_before_per_run", "predicted_after_per_run"]].tolist() == [4, 0.5]
    assert rows.loc[("nf4", "a", "b"), ["predicted_before_per_run", "predicted_after_per_run"]].tolist() == [4, 0]
    assert rows.loc[("nf4", "c", "d"), "label_examples_count"] == 2
    assert rows["seeds_count"].groupby("id").first().tolist() == [2, 1]


def test_tasks_stand_beside_each_other_and_those_of_one_name_are_told_apart_by_a_cell(tmp_path):
    records = [
        answered(tmp_path, "base", TRUTH, TRUTH, ["b", *TRUTH[1:]], LABELS),
        answered(tmp_path, "other", ["x", "y"], ["x", "x"], ["y", "y"], ["x", "y"], name="intents"),
        answered(tmp_path, "cut", ["a", "b"], ["a", "a"], ["b", "b"], LABELS),
    ]
    rows = confusions_table(evidence_of(tmp_path, records)).rows
    assert [*zip(rows["task"], rows["label"], rows["cells_count"], strict=True)] == [
        ("banking77 of cut", "a", 1), ("intents", "x", 1), ("banking77 of base", "a", 1),
    ]  # fmt: skip


def test_when_no_two_labels_are_confused_a_note_says_so(tmp_path):
    records = [answered(tmp_path, "base", TRUTH, ["b"] * 10, TRUTH, LABELS)]
    table = confusions_table(evidence_of(tmp_path, records))
    assert table.rows.empty
    assert table.notes == ("No run confuses two labels after training.",)


@pytest.mark.parametrize(
    ("records", "notes"),
    [
        (default_matrix(), 1),
        ([record("base", status="crashed", phase="load")], 0),
        ([record("base", parameters={"weights": "random"}, measures={"tokens_per_s": 9.0})], 0),
    ],
)
def test_a_result_without_files_of_examples_is_one_note_where_it_should_have_had_them(tmp_path, records, notes):
    table = confusions_table(gather(load_results(write_result(tmp_path / "r", records))))
    assert table.rows.empty
    assert len(table.notes) == notes
    assert all("No run has its file of examples" in note for note in table.notes)


def test_a_file_that_is_torn_is_left_out_and_its_note_stands_with_the_table(tmp_path):
    folder = simulated(tmp_path / "r", alike(2), examples=40)
    first = sorted((folder / "examples").iterdir())[0]
    first.write_bytes(first.read_bytes()[:100])
    table = confusions_table(gather(load_results(folder)))
    assert len(table.rows)
    assert any("file of examples cannot be used" in note for note in table.notes)
