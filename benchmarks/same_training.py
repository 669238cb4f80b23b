"""Does a CUDA graph change the training? Compare cells that differ in nothing but how their steps were launched.

    python3 -m bench run benchmarks/same_training.yaml --data DIR
    python3 -m benchmarks.same_training results/same_training

Both cells of a pair saw the same batches from the same start. Without dropout their losses are to agree step by step;
with it their masks differ, so that only the mean of the differences is to be zero within its uncertainty.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from bench.errors import BenchError
from bench.run.records import Record
from bench.run.store import RECORDS, read_records
from benchmarks.command import CONTEXT, console, main, out_option, write
from benchmarks.intervals import CONFIDENCE, difference, share_of

# Losses of a step that are this close, relative to the eager one, count as the same where nothing is random.
TOLERANCE = 1e-3
# Neighbouring steps share a model that a difference has changed: means of so many steps are taken as independent.
BLOCK_STEPS = 10


@dataclass(frozen=True)
class Pair:
    """Two cells, one eager and one replayed, and how far apart they are.

    largest_difference: of the losses of a step, relative to the eager one.
    first_difference: the number of the first step whose losses differ in any bit that the record keeps; None if none.
    mean_difference, low, high: of the losses relative to their mean, with the 95 % interval from blocks of steps.
    accuracy_low, accuracy_high: the 95 % interval of the difference in accuracy after training.
    """

    cell: str
    dropout: float
    steps_count: int
    largest_difference: float
    first_difference: int | None
    mean_difference: float
    low: float
    high: float
    eager_accuracy: float
    graph_accuracy: float
    examples_count: int
    accuracy_low: float
    accuracy_high: float

    @property
    def agrees(self) -> bool:
        losses = self.low <= 0 <= self.high if self.dropout else self.largest_difference <= TOLERANCE
        return losses and self.accuracy_low <= 0 <= self.accuracy_high


def pairs(records: Sequence[Record]) -> Iterator[Pair]:
    """Yield the pairs among records, in their order; cells without a partner, or that failed, are left out."""
    done = [record for record in records if record.status == "ok" and record.losses]
    for eager in done:
        for graph in done:
            if (
                _launch(eager) == "eager"
                and _launch(graph) == "cuda_graph"
                and eager.seed == graph.seed
                and _others(eager.parameters) == _others(graph.parameters)
            ):
                yield compare(eager, graph)


def compare(eager: Record, graph: Record) -> Pair:
    """Compare two records of as many steps each."""
    ours, theirs = np.array(graph.losses), np.array(eager.losses)
    apart = np.flatnonzero(ours != theirs)
    relative = (ours - theirs) / theirs.mean()
    low, high = mean_interval(relative)
    count = int(eager.measures["eval_examples_count"])
    eager_accuracy, graph_accuracy = (float(record.measures["accuracy_after"]) for record in (eager, graph))
    accuracy_low, accuracy_high = difference(share_of(graph_accuracy, count), share_of(eager_accuracy, count))
    return Pair(
        eager.id.removesuffix("-execution=eager"),
        float(eager.parameters["lora_dropout"]),
        len(ours),
        float(np.abs(ours / theirs - 1).max()),
        int(apart[0]) + 1 if len(apart) else None,
        float(relative.mean()),
        low,
        high,
        eager_accuracy,
        graph_accuracy,
        count,
        accuracy_low,
        accuracy_high,
    )


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean, by Student's t over the means of blocks of `BLOCK_STEPS` values."""
    whole = len(values) // BLOCK_STEPS
    if whole < 2:
        return -np.inf, np.inf
    means = values[: whole * BLOCK_STEPS].reshape(whole, BLOCK_STEPS).mean(axis=1)
    half = t.ppf((1 + CONFIDENCE) / 2, whole - 1) * means.std(ddof=1) / np.sqrt(whole)
    return float(means.mean() - half), float(means.mean() + half)


def _launch(record: Record) -> str:
    return str(record.environment.get("execution_used"))


def _others(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "execution"}


def show(found: Sequence[Pair], console: Console) -> None:
    """Print a row for each pair, and what the columns are."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("cell")
    for heading in ("largest\ndiff.", "mean diff. x 1000\n(95 % interval)", "accuracy %\neager, graph", "agrees"):
        table.add_column(heading, justify="right")
    for pair in found:
        table.add_row(
            pair.cell,
            f"{pair.largest_difference:.1e}",
            f"{1e3 * pair.mean_difference:+.2f} ({1e3 * pair.low:+.2f} to {1e3 * pair.high:+.2f})",
            f"{100 * pair.eager_accuracy:.1f}, {100 * pair.graph_accuracy:.1f}",
            "yes" if pair.agrees else "no",
        )
    console.print(table)
    console.print(
        f"Losses of {found[0].steps_count} steps: graph less eager, relative. Without dropout a pair agrees where none "
        f"is above {TOLERANCE:g}; with it, where the interval of the mean contains zero (Student's t over blocks of "
        f"{BLOCK_STEPS} steps). In both cases the interval of the difference in accuracy (Newcombe's hybrid score, as "
        f"for independent samples) must contain zero."
    )


@click.command(context_settings=CONTEXT)
@click.argument("result", type=click.Path(path_type=Path))
@out_option
def command(result: Path, out: Path | None) -> None:
    """Compare the cells of RESULT that differ in `execution` only; exit with 1 where a pair does not agree."""
    path = result / RECORDS
    if not path.is_file():
        raise BenchError(f"there is no {path}", "give the result folder of benchmarks/same_training.yaml")
    found = list(pairs(read_records(path).records))
    if not found:
        raise BenchError(
            f"{path} holds no two cells that differ in execution only, one eager and one replayed",
            "run benchmarks/same_training.yaml on a CUDA GPU",
        )
    show(found, console())
    write(out, [asdict(pair) | {"agrees": pair.agrees} for pair in found])
    sys.exit(not all(pair.agrees for pair in found))


if __name__ == "__main__":
    main(command)
