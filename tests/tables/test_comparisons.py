from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from statsmodels.stats.contingency_tables import mcnemar

from bench.tables.comparisons import COLUMNS, comparisons, comparisons_table, verdict_of
from bench.tables.csv import to_csv
from bench.tables.evidence import gather
from bench.tables.load import load_results
from bench.tables.markdown import to_markdown
from bench.tables.table import MISSING
from bench.tables.terminal import print_table

from .evidences import BASELINE, GRID, LABELS, QUIET, SimulatedCell, alike, evidence, simulated

BETTER = SimulatedCell("better", {"lora_r": 8}, accuracy=0.9, log_speed=0.05)
SAME = SimulatedCell("same", {"lora_r": 4})
WORSE = SimulatedCell("worse", {"lora_r": 2}, accuracy=0.8, log_speed=-0.05)
CELLS = (BASELINE, BETTER, SAME, WORSE)


def rewritten(folder, change):
    """The evidence of a result whose records, read as JSON, `change` was applied to; those it returns are kept."""
    path = folder / "records.jsonl"
    entries = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries if entry))
    return gather(load_results(folder))


def of(found, cell, measure="accuracy_after"):
    (row,) = found[(found["id"] == cell) & (found["measure"] == measure)].to_dict("records")
    return row


def shown(table):
    """Texts by id, then by heading."""
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in table.texts()}


def printed(table, width):
    console = Console(width=width, file=io.StringIO())
    print_table(table, console)
    return console.file.getvalue()


def test_planted_differences_are_found_with_all_their_figures():
    found = comparisons(evidence(CELLS, examples=2000, noise=QUIET))
    assert tuple(found) == COLUMNS
    assert len(found) == 3 * 5
    assert found["id"].drop_duplicates().tolist() == ["better", "same", "worse"]
    row = of(found, "better")
    assert (row["unit"], row["verdict"], row["test"]) == ("points", "better", "t")
    assert (row["seeds_count"], row["examples_count"]) == (3, 2000)
    assert row["estimate"] == pytest.approx(100 * (row["value"] - row["baseline"]))
    assert row["low"] < row["estimate"] < row["high"]
    assert row["low"] < 5 < row["high"]
    assert row["p"] <= row["p_holm"] <= 0.05
    assert [of(found, cell)["verdict"] for cell in ("same", "worse")] == ["no difference shown", "worse"]


def test_speed_is_compared_by_ratio_and_bytes_by_their_sign():
    found = comparisons(evidence(CELLS, examples=50, noise=QUIET))
    speed, stored = of(found, "worse", "tokens_per_s"), of(found, "worse", "stored_bytes")
    assert speed["estimate"] == pytest.approx(100 * (speed["value"] / speed["baseline"] - 1))
    assert (speed["verdict"], speed["examples_count"]) == ("worse", 0)
    assert (stored["baseline"], stored["value"], stored["estimate"]) == (269e6, 116e6, -153.0)
    assert (stored["verdict"], stored["test"], stored["unit"]) == ("better", "none", "MB")
    assert np.isnan([stored["p"], stored["minimum_detectable"]]).all()


def test_the_family_is_all_cells_of_a_measure():
    found = comparisons(evidence(alike(8), random_seed=3))
    of_speed = found[found["measure"] == "tokens_per_s"]
    assert of_speed["p_holm"].min() == pytest.approx(min(1, 8 * of_speed["p"].min()))


def test_the_verdicts_on_accuracy_stand_by_number_of_the_cell():
    given = evidence(CELLS, examples=2000, noise=QUIET)
    assert verdict_of(given).isna().tolist() == [True, False, False, False]
    assert verdict_of(given)[1:].tolist() == ["better", "no difference shown", "worse"]


# One seed.


def test_with_one_seed_it_is_mcnemars_test_of_its_examples_and_the_verdict_too_few_runs():
    given = evidence(CELLS, seeds=(5,), examples=300)
    (part,) = given.examples
    right = part.predicted_after == part.truth
    found = comparisons(given)
    for run, cell in enumerate(("better", "same", "worse"), start=1):
        row = of(found, cell)
        table = [[(a & b).sum() for b in (right[0], ~right[0])] for a in (right[run], ~right[run])]
        assert row["p"] == pytest.approx(min(1, mcnemar(table, exact=True).pvalue))
        assert (row["test"], row["verdict"], row["seeds_count"]) == ("McNemar", "too few runs", 1)
        assert row["p"] <= row["p_holm"] <= 1
        assert row["low"] < row["estimate"] < row["high"]
    assert of(found, "better", "tokens_per_s")["test"] == "none"
    assert np.isnan(of(found, "better", "tokens_per_s")["low"])
    assert of(found, "better", "stored_bytes")["verdict"] == "better"
    table = comparisons_table(given)
    assert shown(table)["better"]["accuracy Δ points"].endswith(" ?")
    assert shown(table)["better"]["accuracy p"] != MISSING
    assert "over n = 1 seed and 300 test examples" in "\n".join(table.caption)


def test_mcnemar_takes_the_one_seed_that_both_have():
    cells = (dataclasses.replace(BASELINE, seeds=(1,)), BETTER, dataclasses.replace(WORSE, seeds=(0, 2)))
    given = evidence(cells, seeds=(0, 1, 2), examples=300)
    (part,) = given.examples
    right = part.predicted_after == part.truth
    seeds = given.runs["seed"].tolist()
    assert seeds == [1, 0, 1, 2, 0, 2]
    found = comparisons(given)
    table = [[(a & b).sum() for b in (right[0], ~right[0])] for a in (right[2], ~right[2])]
    assert of(found, "better")["p"] == pytest.approx(mcnemar(table, exact=True).pvalue)
    none = of(found, "worse")
    assert (none["seeds_count"], none["verdict"], none["test"]) == (0, "too few runs", "none")
    assert np.isnan([none["estimate"], none["value"], none["p"]]).all()
    assert comparisons_table(given).notes == (
        "The baseline has no result with seeds 0, 2: left out of all comparisons.",
        "No result with seed 1, and compared without: worse.",
    )


def test_without_files_of_examples_one_seed_has_no_test(tmp_path):
    found = comparisons(gather(load_results(simulated(tmp_path / "r", CELLS, seeds=(0,), files=False))))
    assert set(found["test"]) == {"none"}
    assert of(found, "better")["verdict"] == "too few runs"


# What cannot be compared.


def test_cells_of_another_gpu_are_rows_without_numbers(tmp_path):
    def change(entry):
        if entry["id"] == "worse":
            entry["environment"]["gpu_name"] = "NVIDIA L4"
        return entry

    given = rewritten(simulated(tmp_path / "r", CELLS, examples=50), change)
    found = comparisons(given)
    rows = found[found["id"] == "worse"]
    assert set(rows["verdict"]) == {"not comparable"}
    assert rows[["baseline", "value", "estimate", "p"]].isna().all(axis=None)
    assert (rows["seeds_count"] == 0).all()
    table = comparisons_table(given)
    assert shown(table)["worse"]["accuracy Δ points"] == MISSING
    assert shown(table)["worse"]["accuracy: verdict"] == "not comparable"
    assert table.notes == ("Not comparable: worse (GPU NVIDIA L4 instead of NVIDIA H100 80GB HBM3).",)


@pytest.mark.parametrize(
    ("changed", "measures", "note"),
    [
        ({"environment": {"execution_used": "eager"}}, {"tokens_per_s"},
         "Not comparable in tokens/s: ran as eager, the baseline as cuda_graph: worse."),
        ({"parameters": {"model": "other"}}, {"heldout_loss_after"},
         "Not comparable in held-out loss: of another model, whose tokens are others: worse."),
        ({"environment": {"task_sha256": "other"}}, {"accuracy_after", "heldout_loss_after"},
         "Not comparable in accuracy: scored on other test examples than the baseline: worse."),
    ],
)  # fmt: skip
def test_what_differs_in_one_measure_is_said_for_it(tmp_path, changed, measures, note):
    def change(entry):
        return entry | {name: entry[name] | new for name, new in changed.items()} if entry["id"] == "worse" else entry

    given = rewritten(simulated(tmp_path / "r", CELLS, examples=50), change)
    found = comparisons(given)
    assert set(found["measure"][found["verdict"] == "not comparable"]) == measures
    assert note in comparisons_table(given).notes


def test_a_cell_that_failed_has_too_few_runs(tmp_path):
    def change(entry):
        return entry | ({"status": "oom"} if entry["id"] == "worse" else {})

    given = rewritten(simulated(tmp_path / "r", CELLS, examples=50), change)
    found = comparisons(given)
    assert set(found["verdict"][found["id"] == "worse"]) == {"too few runs"}
    assert shown(comparisons_table(given))["worse"]["tokens/s Δ %"] == f"{MISSING} ?"
    assert comparisons_table(given).notes == ("No result with seeds 0, 1, 2, and compared without: worse.",)


def test_a_seed_that_some_cells_lack_is_named_with_them():
    cells = (BASELINE, BETTER, dataclasses.replace(SAME, seeds=(0, 1)), dataclasses.replace(WORSE, seeds=(0, 1)))
    table = comparisons_table(evidence(cells, examples=50))
    assert table.notes == ("No result with seed 2, and compared without: same, worse.",)
    assert "over n = 2 to 3 seeds" in "\n".join(table.caption)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda entry: entry | {"status": "crashed"}, "No comparisons: the baseline ended crashed."),
        (lambda entry: entry | ({"status": "oom"} if entry["id"] == BASELINE.id else {}),
         "No comparisons: the baseline ended oom."),
        (lambda entry: None if entry["id"] == BASELINE.id else entry,
         "No comparisons: there is no record of a baseline."),
    ],
)  # fmt: skip
def test_nothing_to_compare_with_is_said(tmp_path, change, note):
    given = rewritten(simulated(tmp_path / "r", CELLS, examples=50), change)
    table = comparisons_table(given)
    assert note in table.notes
    assert set(table.detail["verdict"]) <= {"not comparable"}
    assert verdict_of(given).dropna().isin(["not comparable"]).all()
    assert printed(table, 80)


def test_in_a_measure_that_the_baseline_lacks_no_cell_is_compared_and_a_note_says_why(tmp_path):
    def change(entry):
        return entry | {"measures": entry["measures"] | ({"tokens_per_s": None} if entry["id"] == BASELINE.id else {})}

    table = comparisons_table(rewritten(simulated(tmp_path / "r", CELLS, examples=50), change))
    of_speed = table.detail["measure"] == "tokens_per_s"
    assert set(table.detail["verdict"][of_speed]) == {"not comparable"}
    assert "not comparable" not in set(table.detail["verdict"][~of_speed])
    assert "Not comparable in tokens/s: the baseline has no result in it: " in table.notes[0]


def test_random_weights_have_no_quality_to_compare(tmp_path):
    def change(entry):
        return entry | {"parameters": entry["parameters"] | {"weights": "random"}}

    given = rewritten(simulated(tmp_path / "r", CELLS, examples=50), change)
    assert set(comparisons(given)["measure"]) == {"stored_bytes", "train_peak_bytes", "tokens_per_s"}
    assert verdict_of(given).isna().all()
    assert printed(comparisons_table(given), 80)


def test_figures_that_are_no_numbers_leave_their_seed_out(tmp_path):
    def change(entry):
        if entry["id"] == "better" and entry["seed"] == 1:
            entry["measures"]["accuracy_after"] = None
        return entry

    found = comparisons(rewritten(simulated(tmp_path / "r", CELLS, examples=50), change))
    assert (of(found, "better")["seeds_count"], of(found, "better")["verdict"]) == (2, "too few runs")
    assert of(found, "better", "heldout_loss_after")["seeds_count"] == 3


def test_a_result_of_the_baseline_alone_has_no_rows():
    table = comparisons_table(evidence((BASELINE,), examples=50))
    assert len(table.rows) == len(table.detail) == 0
    assert tuple(table.detail) == COLUMNS


# What a reader sees.


def test_a_cell_is_a_row_with_marks_and_in_markdown_words():
    table = comparisons_table(evidence(CELLS, examples=2000, noise=QUIET))
    assert table.title == "simulated: each cell against the baseline"
    assert list(shown(table)) == ["better", "same", "worse"]
    assert shown(table)["better"]["accuracy Δ points"].startswith("+")
    assert shown(table)["better"]["accuracy Δ points"].endswith(" ▲")
    assert shown(table)["worse"]["accuracy Δ points"].startswith("−")  # noqa: RUF001
    assert shown(table)["worse"]["accuracy Δ points"].endswith(" ▼")
    assert shown(table)["same"]["stored Δ MB"] == "−153.0 ▲"  # noqa: RUF001
    text = to_markdown(table)
    assert "no difference shown" in text
    assert "▲ better, ▼ worse, = no difference shown." in text
    frame = pd.read_csv(io.StringIO(to_csv(table)))
    assert (tuple(frame), len(frame)) == (COLUMNS, 15)


def test_a_few_bytes_are_a_difference_though_none_is_shown():
    few = dataclasses.replace(SAME, stored_bytes=BASELINE.stored_bytes + 1)
    none = dataclasses.replace(WORSE, stored_bytes=BASELINE.stored_bytes)
    table = comparisons_table(evidence((BASELINE, few, none), examples=50))
    assert [shown(table)[cell]["stored Δ MB"] for cell in ("same", "worse")] == ["+<0.1 ▼", "0.0 ="]


@pytest.mark.parametrize(
    ("width", "headings"),
    [(80, ["accuracy", "tokens/s", "held-out loss"]), (100, ["train peak", "stored"]), (160, ["detectable"])],
)
def test_the_columns_that_matter_most_fit_a_narrow_terminal(width, headings):
    text = printed(comparisons_table(evidence(GRID, examples=400)), width)
    heading = text.split("─")[0]
    assert all(name in heading for name in headings)
    assert max(map(len, text.splitlines())) <= width


def test_watched_labels_are_compared_and_explained(tmp_path):
    folder = simulated(tmp_path / "r", CELLS, examples=100, watch_pairs=[LABELS[:2]])
    table = comparisons_table(gather(load_results(folder)))
    assert "confused Δ points" in shown(table)["better"]
    assert "card_arrival and card_delivery_estimate" in to_markdown(table).replace("\\", "")
