from __future__ import annotations

from benchmarks.small_model_tables import extent, times

# fmt: off
THEIRS = {
    "load_s": 2.0, "adapt_s": 1.0, "train_s": 30.0, "step_p50_s": 0.3, "wall_s": 60.0,
    "score_before_s": 8.0, "score_after_s": 12.0, "accuracy_before": 0.25, "accuracy_after": 0.75,
    "scored_examples_count": 4,
}
OURS = {
    "load_s": 1.0, "adapt_s": 0.5, "train_s": 10.0, "step_p50_s": 0.03, "wall_s": 20.0,
    "score_before_s": 2.0, "score_after_s": 4.0, "accuracy_before": 0.2, "accuracy_after": 0.8,
    "eval_examples_count": 20, "labels_count": 5,
}
# fmt: on


def test_scoring_is_extrapolated_to_every_example_and_the_rest_is_as_measured() -> None:
    rows = {row.what: row for row in times(THEIRS, OURS)}

    before, after = rows["score before training, all 20"], rows["score after training, all 20"]
    whole = rows["whole cell, from the start of its process"]
    assert (before.recipe_s, after.recipe_s) == (40.0, 60.0)
    assert whole.recipe_s == 60.0 - 8.0 - 12.0 + 40.0 + 60.0
    assert {row.what for row in rows.values() if row.extrapolated} == {before.what, after.what, whole.what}
    assert rows["train"].recipe_s == 30.0
    assert all(row.ratio == row.recipe_s / row.project_s for row in rows.values())
    assert "4 of 20 test examples" in extent(THEIRS, OURS)


def test_where_every_example_was_scored_nothing_is_extrapolated() -> None:
    theirs = {**THEIRS, "scored_examples_count": 20}

    rows = times(theirs, OURS)

    assert not any(row.extrapolated for row in rows)
    assert rows[-1].recipe_s == THEIRS["wall_s"]
    assert "All times are measured" in extent(theirs, OURS)
