from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from bench.tables.csv import to_csv
from bench.tables.evidence import gather
from bench.tables.labels import SHOWN, labels_table, scores
from bench.tables.load import load_results
from bench.tables.table import MISSING

from .answers import answered, evidence_of, shown
from .evidences import GRID, alike, evidence
from .examples import default_matrix, write_result

LABELS = ["a", "b", "c", "d"]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_scores_are_those_of_scikit_learn(answers):
    truth, *predicted = np.array(answers).T
    found = scores(truth, np.stack(predicted), 5)
    has_examples = np.isin(range(5), truth)
    for run, of_run in enumerate(predicted):
        expected = precision_recall_fscore_support(truth, of_run, labels=range(5), zero_division=np.nan)
        np.testing.assert_allclose(found["precision"][run], expected[0])
        np.testing.assert_allclose(found["recall"][run], expected[1])
        np.testing.assert_allclose(found["f1"][run][has_examples], expected[2][has_examples])
        assert np.isnan(found["f1"][run][~has_examples]).all()


def test_the_csv_has_each_label_of_each_cell_as_scikit_learn_has_it_averaged_over_seeds():
    found = evidence(GRID[:2], examples=200)
    csv = pd.read_csv(io.StringIO(to_csv(labels_table(found))), dtype={"key": str})
    (examples,) = found.examples
    runs = (found.runs.loc[examples.rows, "id"] == "lora-bf16").to_numpy()
    for when, predicted in (("before", examples.predicted_before), ("after", examples.predicted_after)):
        expected = np.mean(
            [precision_recall_fscore_support(examples.truth, row, zero_division=np.nan)[:3] for row in predicted[runs]],
            axis=0,
        )
        rows = csv[csv["id"] == "lora-bf16"]
        assert rows["label"].tolist() == list(examples.labels)
        for name, values in zip(("precision", "recall", "f1"), expected, strict=True):
            np.testing.assert_allclose(rows[f"{name}_{when}"], values)
    assert len(csv) == 2 * len(examples.labels)
    assert set(csv["seeds_count"]) == {3}


def test_rows_are_means_over_cells_lowest_f1_first_then_by_name(tmp_path):
    truth = list("aabbccdd")
    records = [
        answered(tmp_path, "base", truth, list("aaaaaaaa"), list("aabbcddc"), LABELS),
        answered(tmp_path, "nf4", truth, list("aaaaaaaa"), list("aabbccdd"), LABELS),
    ]
    table = labels_table(evidence_of(tmp_path, records))
    rows = table.rows.set_index("label")
    assert list(rows.index) == ["c", "d", "a", "b"]
    assert rows["f1_after"].tolist() == pytest.approx([0.75, 0.75, 1, 1])
    assert rows.loc["a", ["precision_before", "recall_before"]].tolist() == pytest.approx([0.25, 1])
    texts = shown(table)["c"]
    assert (texts["F1 % before → after"], texts["apart points"]) == ("0.0 → 75.0", "50.0")
    assert (texts["lowest F1 %"], texts["highest F1 %"]) == ("50.0 in base", "100.0 in nf4")
    assert table.caption[-1] == (
        "F1 % after training is furthest apart between cells for c (50.0 in base, 100.0 in nf4), "
        "d (50.0 in base, 100.0 in nf4)."
    )


def test_cells_apart_are_in_no_figure_of_all_cells_but_in_the_csv(tmp_path):
    truth = list("aabb")
    records = [
        answered(tmp_path, "base", truth, truth, truth, LABELS[:2]),
        answered(tmp_path, "t4", truth, truth, list("bbaa"), LABELS[:2]),
    ]
    records[1]["environment"]["gpu_name"] = "Tesla T4"
    table = labels_table(evidence_of(tmp_path, records))
    assert table.rows[["f1_after", "cells_count", "lowest_f1_id"]].to_numpy().tolist() == [[1, 1, "base"]] * 2
    assert set(table.detail["id"]) == {"base", "t4"}
    assert table.notes == (
        "Not in the figures of all cells: t4 (GPU Tesla T4 instead of NVIDIA H100 80GB HBM3).",
    )  # fmt: skip


def test_a_label_never_predicted_has_no_precision_and_one_without_examples_no_recall(tmp_path):
    truth = list("aabbcc")
    records = [answered(tmp_path, "base", truth, list("aaaaaa"), list("aabbdd"), LABELS)]
    table = labels_table(evidence_of(tmp_path, records))
    texts = shown(table)
    assert texts["c"]["precision % before → after"] == MISSING
    assert texts["c"]["F1 % before → after"] == "0.0 → 0.0"
    assert texts["d"]["recall % before → after"] == texts["d"]["F1 % before → after"] == MISSING
    assert texts["d"]["precision % before → after"] == f"{MISSING} → 0.0"
    assert table.rows["label"].tolist()[-1] == "d"
    assert table.notes == ("No test example of d in banking77: no recall and no F1.",)


def test_precision_is_a_mean_over_the_seeds_that_have_one(tmp_path):
    truth = list("aabb")
    records = [
        answered(tmp_path, "base", truth, truth, list("bbbb"), LABELS[:2], seed=0),
        answered(tmp_path, "base", truth, truth, list("aaab"), LABELS[:2], seed=1),
    ]
    rows = labels_table(evidence_of(tmp_path, records)).rows.set_index("label")
    assert rows.loc["a", "precision_after"] == pytest.approx(2 / 3)
    assert rows.loc["a", "recall_after"] == pytest.approx((0 + 1) / 2)


def test_a_terminal_shows_the_lowest_and_each_task_has_its_own_labels(tmp_path):
    assert labels_table(evidence(alike(1), examples=80)).shown == SHOWN
    records = [
        answered(tmp_path, "base", list("aabb"), list("aabb"), list("aabb"), LABELS[:2]),
        answered(tmp_path, "other", list("ax"), list("ax"), list("xx"), ["a", "x"], name="intents"),
    ]
    rows = labels_table(evidence_of(tmp_path, records)).rows
    assert [*zip(rows["task"], rows["label"], strict=True)] == [
        ("intents", "a"), ("intents", "x"), ("banking77", "a"), ("banking77", "b"),
    ]  # fmt: skip


def test_without_files_of_examples_there_is_no_table_and_one_note(tmp_path):
    table = labels_table(gather(load_results(write_result(tmp_path / "r", default_matrix()))))
    assert table.rows.empty
    assert len(table.notes) == 1
