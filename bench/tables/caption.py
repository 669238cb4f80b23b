"""The lines that stand with every table: what was run, how often, on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from bench.matrix.wording import counted, listing, short_float
from bench.tables.comparable import distinct

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
# What a reader needs to know a run by, said where all cells share it; an empty text where a value says nothing.
SHARED: dict[str, Callable[[Any], str]] = {
    "model": str,
    "weights": lambda weights: "random weights" if weights == "random" else "",
    "task": str,
    "train_examples": lambda examples: "" if examples == "all" else f"{examples} training examples",
    "batch_size": lambda size: f"batch {size}",
    "gradient_accumulation_steps": lambda steps: "" if steps == 1 else f"gradient accumulation {steps}",
    "epochs": lambda epochs: f"{short_float(epochs)} epoch{'' if epochs == 1 else 's'}",
    "max_steps": lambda steps: counted(steps, "step"),
    "max_length": lambda length: f"max_length {length}",
    "gradient_checkpointing": lambda used: "gradient checkpointing" if used else "",
    "vram_limit": lambda limit: f"vram_limit {limit}",
}

UNKNOWN = "unknown"


def conditions(frame: pd.DataFrame) -> tuple[str, ...]:
    """Say what the runs of one result were, how many there are, and on which hardware, versions and days they ran."""
    return tuple(line for line in (_runs(frame), _shared(frame), _machine(frame)) if line)


def warnings_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the doubts that came up while the records were read."""
    return tuple(frame.attrs.get("warnings", ()))


def _runs(frame: pd.DataFrame) -> str:
    per_cell = frame.groupby(["id", "key"])["seed"].nunique()
    cells = counted(len(per_cell), "cell")
    fewest, most = per_cell.min(), per_cell.max()
    seeds = f"{fewest} to {counted(most, 'seed')}" if fewest < most else counted(most, "seed")
    examples = [int(float(count)) for count in distinct(frame, "eval_examples_count")]
    scored = f", {listing([f'{count:,}' for count in sorted(examples)])} examples scored" if examples else ""
    return f"{frame['matrix'].iloc[0]}: {cells}, n = {seeds}{scored}."


def _shared(frame: pd.DataFrame) -> str:
    unused = {"task"} if (frame["weights"] == "random").all() else set()
    if frame["max_steps"].notna().any():  # they win over epochs
        unused.add("epochs")
    values = {name: frame[name].unique().tolist() for name in SHARED if name not in unused}
    words = [SHARED[name](value) for name, (value, *others) in values.items() if not others and not pd.isna(value)]
    return f"{', '.join(filter(None, words))}." if any(words) else ""


def _machine(frame: pd.DataFrame) -> str:
    hardware = _joined(distinct(frame, "gpu_name") or [f"CPU {name}" for name in distinct(frame, "cpu")])
    versions = ", ".join(f"{name} {_joined(distinct(frame, name))}" for name in PACKAGES)
    days = sorted(moment[:10] for moment in distinct(frame, "started_at"))
    return f"{hardware}; {versions}; {' to '.join(dict.fromkeys((days[0], days[-1])))}."


def _joined(names: Iterable[str]) -> str:
    return " and ".join(names) or UNKNOWN
