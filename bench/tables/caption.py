"""The lines that stand with every table: what was run, how often, on what."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from bench.matrix.wording import counted, listing
from bench.tables.comparable import distinct

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
# Parameters that a reader needs to know a run by, named where all cells share them.
SHARED = ("model", "weights", "task", "max_length", "batch_size", "epochs", "max_steps", "gradient_checkpointing")

UNKNOWN = "unknown"


def conditions(frame: pd.DataFrame) -> tuple[str, ...]:
    """Say what the runs of one result were, how many there are, and on which hardware, versions and days they ran."""
    return (_runs(frame), _machine(frame))


def warnings_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the doubts that came up while the records were read."""
    return tuple(frame.attrs.get("warnings", ()))


def _runs(frame: pd.DataFrame) -> str:
    cells = counted(len(frame.drop_duplicates(["id", "key"])), "cell")
    seeds = counted(frame["seed"].nunique(), "seed")
    examples = [int(float(count)) for count in distinct(frame, "eval_examples_count")]
    scored = f", {listing([f'{count:,}' for count in sorted(examples)])} examples scored" if examples else ""
    return f"{frame['matrix'].iloc[0]}: {cells}, n = {seeds}{scored}."


def _machine(frame: pd.DataFrame) -> str:
    hardware = _joined(distinct(frame, "gpu_name") or [f"CPU {name}" for name in distinct(frame, "cpu")])
    versions = ", ".join(f"{name} {_joined(distinct(frame, name))}" for name in PACKAGES)
    days = sorted(moment[:10] for moment in distinct(frame, "started_at"))
    return f"{hardware}; {versions}; {' to '.join(dict.fromkeys((days[0], days[-1])))}."


def _joined(names: Iterable[str]) -> str:
    return " and ".join(names) or UNKNOWN
