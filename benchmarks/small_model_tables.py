"""The tables of `benchmarks.small_model`: times and accuracies of both sides, measured and extrapolated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.intervals import difference, share_of

WHENS = ("before", "after")


@dataclass(frozen=True)
class Time:
    """A row of the table: seconds on both sides, and whether the recipe's are extrapolated."""

    what: str
    recipe_s: float
    project_s: float
    extrapolated: bool
    ratio: float


def times(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Time]:
    """Return the rows of the table, from the recipe's figures and the project's (`wall_s` among both)."""
    scored, every = theirs["scored_examples_count"], ours["eval_examples_count"]
    partly = scored < every
    rows = [("load", theirs["load_s"], ours["load_s"], False), ("adapters", theirs["adapt_s"], ours["adapt_s"], False)]
    rows.append(("train", theirs["train_s"], ours["train_s"], False))
    rows.append(("one optimizer step, median", theirs["step_p50_s"], ours["step_p50_s"], False))
    whole_s = theirs["wall_s"]
    for when in WHENS:
        taken_s, ours_s = theirs[f"score_{when}_s"], ours[f"score_{when}_s"]
        all_s = taken_s / scored * every
        whole_s += all_s - taken_s
        rows.append((f"score {when} training, one example", taken_s / scored, ours_s / every, False))
        rows.append((f"score {when} training, all {every:,}", all_s, ours_s, partly))
    rows.append(("whole cell, from the start of its process", whole_s, ours["wall_s"], partly))
    return [Time(what, a, b, extrapolated, a / b) for what, a, b, extrapolated in rows]


def accuracies(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return both accuracies with their intervals, and the interval of their difference, before and after training."""
    found: dict[str, Any] = {}
    for when in WHENS:
        a = share_of(theirs[f"accuracy_{when}"], theirs["scored_examples_count"])
        b = share_of(ours[f"accuracy_{when}"], ours["eval_examples_count"])
        low, high = difference(a, b)
        found[when] = {
            "recipe": {**asdict(a), "text": str(a)},
            "project": {**asdict(b), "text": str(b)},
            "difference": {"low": low, "high": high, "contains_zero": low <= 0 <= high},
        }
    return found


def extent(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say in words and numbers what of the recipe was measured and what was extrapolated."""
    scored, every, labels = theirs["scored_examples_count"], ours["eval_examples_count"], ours["labels_count"]
    if scored == every:
        return f"All times are measured; both sides scored all {every:,} test examples."
    return (
        f"The recipe's scoring was measured on {scored:,} of {every:,} test examples, a stratified subset "
        f"({scored * labels:,} of {every * labels:,} requests, {labels} an example, before training and again after). "
        f"Times marked ≈ are extrapolated from it in proportion to the number of examples, by a factor of "
        f"{every / scored:.4g}; the recipe's process itself took {theirs['wall_s']:.1f} s. "
        "All other times, and all of this project's, are measured."
    )


def show(document: dict[str, Any], console: Console) -> None:
    """Print the table, and the lines below it."""
    table = Table(title=document["title"], title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("seconds")
    for heading in ("recipe", "this project", "ratio"):
        table.add_column(heading, justify="right")
    for row in document["times"]:
        mark = "≈ " if row["extrapolated"] else ""
        table.add_row(row["what"], mark + _seconds(row["recipe_s"]), _seconds(row["project_s"]), f"{row['ratio']:.2f}")
    console.print(table)
    console.print(document["extent"])
    for when, both in document["accuracy"].items():
        gap = both["difference"]
        console.print(
            f"Accuracy {when} training: recipe {both['recipe']['text']}, this project {both['project']['text']}. "
            f"95 % interval of the difference: {100 * gap['low']:+.1f} to {100 * gap['high']:+.1f} points, "
            f"{'contains' if gap['contains_zero'] else 'does not contain'} zero."
        )
    console.print("Intervals: Wilson's at 95 %; of the difference, Newcombe's hybrid score as for independent samples.")


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.4g}"
