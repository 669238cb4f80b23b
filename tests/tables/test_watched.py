from __future__ import annotations

import pytest
from statsmodels.stats.proportion import proportion_confint

from bench.protocol import EXAMPLES
from bench.tables.evidence import gather
from bench.tables.load import load_results
from bench.tables.table import MISSING
from bench.tables.watched import watched_table

from .answers import answered, evidence_of, shown
from .evidences import GRID, QUIET, SimulatedCell, simulated
from .examples import record

LABELS = ["arrival", "estimate", "fees"]
PAIR = ("arrival", "estimate")
TRUTH = ["arrival"] * 4 + ["estimate"] * 6 + ["fees"] * 2
RIGHT = list(TRUTH)


def confused(first, second):
    """Answers in which so many of the first label's examples, and of the second's, are taken for the other."""
    return ["estimate"] * first + TRUTH[first:4] + ["arrival"] * second + TRUTH[4 + second :]


def test_of_each_cell_both_directions_are_counted_before_and_after_and_averaged_over_seeds(tmp_path):
    records = [
        answered(tmp_path, "base", TRUTH, confused(4, 2), confused(1, 0), LABELS, seed=0),
        answered(tmp_path, "base", TRUTH, confused(4, 2), confused(2, 1), LABELS, seed=1),
        answered(tmp_path, "nf4", TRUTH, confused(2, 2), RIGHT, LABELS, seed=0),
        answered(tmp_path, "nf4", TRUTH, confused(2, 2), confused(0, 2), LABELS, seed=1),
    ]
    table = watched_table(evidence_of(tmp_path, records, [PAIR]))
    assert table.title == "default: arrival and estimate, taken for each other"
    rows = table.rows.set_index(table.rows["id"].fillna("all"))
    assert rows.loc["base", ["confused_before", "confused_after"]].tolist() == pytest.approx([6 / 10, 4 / 2 / 10])
    assert rows.loc["base", ["first_as_second_before", "first_as_second_after"]].tolist() == pytest.approx([1, 1.5 / 4])
    assert rows.loc["base", ["second_as_first_before", "second_as_first_after"]].tolist() == pytest.approx(
        [2 / 6, 0.5 / 6]
    )
    assert rows.loc["all", "confused_after"] == pytest.approx((4 / 2 + 2 / 2) / 2 / 10)
    assert list(rows.index) == ["all", "base", "nf4"]
    assert rows["examples_count"].tolist() == [10, 10, 10]
    assert shown(table)["all 2 cells"]["arrival → estimate %"] == "75.0 → 18.8"


def test_with_few_seeds_the_half_width_is_wilson_s_and_no_verdict_is_given(tmp_path):
    records = [
        answered(tmp_path, name, TRUTH, confused(4, 2), confused(1, 0), LABELS, seed=seed)
        for name in ("base", "nf4") for seed in (0, 1)
    ]  # fmt: skip
    table = watched_table(evidence_of(tmp_path, records, [PAIR]))
    low, high = proportion_confint(1, 10, method="wilson")
    assert table.rows["confused_after_half_width"].dropna().tolist() == pytest.approx([(high - low) / 2] * 2)
    assert shown(table)["nf4"]["verdict"] == "too few runs"
    assert shown(table)["base (baseline)"]["verdict"] == MISSING
    assert any("Wilson interval" in column.about for column in table.columns)


def test_a_cell_that_settles_the_pair_is_better_and_its_difference_is_the_paired_one(tmp_path):
    cells = (GRID[0], SimulatedCell("settled", {"lora_r": 8}, accuracy=0.99), SimulatedCell("alike", {"lora_r": 32}))
    pair = ("card_arrival", "card_delivery_estimate")
    folder = simulated(tmp_path, cells, noise=QUIET, examples=4000, watch_pairs=[pair])
    rows = watched_table(gather(load_results(folder))).rows.set_index("id")
    assert rows.loc["settled", "verdict"] == "better"
    assert rows.loc["alike", "verdict"] == "no difference shown"
    difference = 100 * (rows["confused_after"] - rows.loc["lora-bf16", "confused_after"])
    assert rows.loc["settled", "difference_points"] == pytest.approx(difference["settled"], abs=1e-4)


def test_cells_without_figures_keep_their_rows_and_a_note_says_why(tmp_path):
    records = [
        answered(tmp_path, "base", TRUTH, RIGHT, RIGHT, LABELS),
        answered(tmp_path, "lost", TRUTH, RIGHT, RIGHT, LABELS),
        record("oom", status="oom", phase="train"),
        record("random", parameters={"weights": "random"}),
    ]
    lost = next(path for path in (tmp_path / EXAMPLES).iterdir() if path.stem.startswith(records[1]["key"]))
    lost.unlink()
    table = watched_table(evidence_of(tmp_path, records, [PAIR]))
    texts = shown(table)["oom"]
    assert {text for name, text in texts.items() if name not in ("cell", "status")} == {MISSING}
    assert texts["status"] == "oom"
    assert "No figures of lost (no file of examples), oom (oom), random (random weights)." in table.notes


def test_a_label_without_a_test_example_leaves_one_direction_and_none_of_both_leaves_no_share(tmp_path):
    truth = ["arrival"] * 4 + ["fees"] * 2
    records = [answered(tmp_path, "base", truth, ["estimate"] * 6, ["estimate"] * 2 + truth[2:], LABELS)]
    row = watched_table(evidence_of(tmp_path, records, [PAIR])).rows.iloc[1]
    assert row["confused_after"] == row["first_as_second_after"] == 0.5
    assert row[["second_as_first_before", "second_as_first_after"]].isna().all()
    records = [answered(tmp_path, "base", ["fees"] * 4, ["fees"] * 4, ["fees"] * 4, LABELS)]
    table = watched_table(evidence_of(tmp_path, records, [PAIR]))
    assert table.notes == ("No figures of base (no test example).",)
    assert table.rows["confused_after"].isna().all()


def test_several_pairs_stand_one_below_the_other_each_named_once(tmp_path):
    records = [answered(tmp_path, "base", TRUTH, RIGHT, confused(1, 1), LABELS)]
    table = watched_table(evidence_of(tmp_path, records, [PAIR, ("fees", "arrival")]))
    headings = [column.heading for column in table.columns]
    assert [row[headings.index("pair")] for row in table.texts()] == ["arrival\nestimate", "", "fees\narrival", ""]
    assert table.rows["confused_after"].tolist() == pytest.approx([0.2, 0.2, 0, 0])


def test_each_task_has_the_cells_that_ran_it_and_only_those_that_know_both_labels(tmp_path):
    records = [
        answered(tmp_path, "base", TRUTH, RIGHT, confused(1, 0), LABELS),
        answered(
            tmp_path, "other", ["hello", "bye"], ["bye", "bye"], ["hello", "bye"], ["bye", "hello"], name="intents"
        ),
    ]
    table = watched_table(evidence_of(tmp_path, records, [PAIR]))
    assert table.rows["id"].dropna().tolist() == ["base"]
    table = watched_table(evidence_of(tmp_path, records, [("arrival", "hello")]))
    assert table.rows.empty
    assert table.notes == ("The watched pair arrival and hello: no task has both labels.",)


@pytest.mark.parametrize("status", ["crashed", None])
def test_without_figures_of_the_baseline_shares_stand_without_a_verdict(tmp_path, status):
    records = [answered(tmp_path, "nf4", TRUTH, RIGHT, confused(1, 0), LABELS)]
    records += [record("base", status=status, phase="load")] if status else []
    table = watched_table(evidence_of(tmp_path, records, [PAIR]))
    assert table.rows.loc[table.rows["id"] == "nf4", "confused_after"].tolist() == [0.1]
    assert table.rows["verdict"].isna().all()
    assert table.notes[-1] == "Nothing is compared with the baseline: it has no figures."


def test_what_ran_on_another_gpu_or_on_other_examples_is_not_compared_and_a_note_says_why(tmp_path):
    records = [
        answered(tmp_path, name, truth, truth, truth, LABELS)
        for name, truth in (("base", TRUTH), ("t4", TRUTH), ("cut", TRUTH[:8]), ("same", TRUTH))
    ]
    records[1] = answered(tmp_path, "t4", TRUTH, TRUTH, confused(4, 6), LABELS)
    records[1]["environment"]["gpu_name"] = "Tesla T4"
    table = watched_table(evidence_of(tmp_path, records, [PAIR]))
    verdicts = table.rows.dropna(subset="id").set_index("id")["verdict"]
    assert verdicts.drop("base").to_dict() == {
        "t4": "not comparable", "cut": "not comparable", "same": "too few runs"
    }  # fmt: skip
    together = table.rows[table.rows["id"].isna()]
    assert together[["cells_count", "confused_after"]].to_numpy().tolist() == [[2, 0], [1, 0]]
    assert table.notes == (
        "Not in the figures of all cells: t4 (GPU Tesla T4 instead of NVIDIA H100 80GB HBM3).",
        "Not comparable: t4 (GPU Tesla T4 instead of NVIDIA H100 80GB HBM3), cut (another task).",
    )  # fmt: skip


def test_a_label_that_is_unknown_is_a_note(tmp_path):
    records = [answered(tmp_path, "base", TRUTH, RIGHT, RIGHT, LABELS)]
    table = watched_table(evidence_of(tmp_path, records, [("arrival", "estimates")]))
    assert table.rows.empty
    assert "did you mean estimate?" in table.notes[0]
