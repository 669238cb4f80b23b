"""Results whose truth is known: records and examples as a run leaves them, drawn from a model of their noise.

An example is answered right where a sum of normal terms is positive (a probit model with random effects): the level of
the cell, a term of the seed, of the cell with that seed, of the example, of the cell on that example, and of this run
on that example. So the true accuracy, over all seeds and all examples there could be, is exactly what a cell was given.
The loss of a label token is log-normal in the same sum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.matrix.parameters import Parameters
from bench.protocol import EXAMPLES, PROTOCOL_VERSION
from bench.run.records import Record, to_line
from bench.run.store import PLAN, RECORDS, evidence_name, write_atomically
from bench.tables.evidence import Evidence, arrange
from bench.tables.examples import Examples
from bench.tables.load import first_runs, load_results

TOKENS_PER_S = 25_000.0
LOSS_SLOPE = 0.6  # of a loss's logarithm, in standard deviations of the sum of terms
ACCURACY_BEFORE = 0.11
TASK_SHA256 = hashlib.sha256(b"a simulated task").hexdigest()
LABELS = ("card_arrival", "card_delivery_estimate", *(f"label_{number}" for number in range(2, 20)))
ENVIRONMENT = {
    "gpu_name": "NVIDIA H100 80GB HBM3",
    "gpu_memory_bytes": 85_520_809_984,
    "driver_version": "570.86.15",
    "cuda_version": "13.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "python": "3.11.9",
    "cpu": "Intel(R) Xeon(R) Platinum 8480C",
    "execution_used": "cuda_graph",
    "task_sha256": TASK_SHA256,
}


@dataclass(frozen=True)
class SimulatedCell:
    """A cell and what is true of it: its accuracy from 0 to 1, and the logarithm of its speed over `TOKENS_PER_S`.

    `seeds` are those that it has results with; None for all of them.
    """

    id: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    accuracy: float = 0.85
    log_speed: float = 0.0
    stored_bytes: int = 116_000_000
    peak_bytes: int = 4_400_000_000
    seeds: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        return hashlib.sha256(self.id.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Noise:
    """Standard deviations: of the terms of an answer, and of the logarithms of speeds (of a seed, and of a run).

    `log_drift` is how much faster, as a logarithm, a block's last run is than its first.
    """

    example: float = 1.5
    seed: float = 0.05
    run: float = 0.05
    cell_example: float = 0.4
    run_example: float = 0.8
    log_speed_seed: float = 0.003
    log_speed_run: float = 0.004
    log_drift: float = 0.0

    @property
    def total(self) -> float:
        return sqrt(self.example**2 + self.seed**2 + self.run**2 + self.cell_example**2 + self.run_example**2)


@dataclass(frozen=True)
class Drawn:
    """Runs that were drawn, [cells, seeds] or [cells, seeds, examples]; labels as numbers."""

    tokens_per_s: np.ndarray
    truth: np.ndarray
    tokens_count: np.ndarray
    predicted_before: np.ndarray
    predicted_after: np.ndarray
    loss_before: np.ndarray
    loss_after: np.ndarray


BASELINE = SimulatedCell("lora-bf16", {"quant_type": "none"}, stored_bytes=269_000_000, peak_bytes=3_460_000_000)


def true_loss(accuracy: float) -> float:
    """Return the expected loss of a label token, nats, of a cell with this true accuracy."""
    return exp(-LOSS_SLOPE * NormalDist().inv_cdf(accuracy) + LOSS_SLOPE**2 / 2)


def answers(
    accuracies: Sequence[float],
    seeds: int,
    examples: int,
    noise: Noise,
    generator: np.random.Generator,
    matrices: int = 1,
) -> np.ndarray:
    """Draw the sums of terms, float64 [matrices, cells, seeds, examples], in units of their standard deviation."""

    def terms(deviation: float, *shape: int) -> np.ndarray:
        return np.asarray(deviation * generator.standard_normal((matrices, *shape)))

    cells = len(accuracies)
    sums = terms(noise.run_example, cells, seeds, examples)
    sums += noise.total * np.array([NormalDist().inv_cdf(accuracy) for accuracy in accuracies])[:, None, None]
    sums += terms(noise.seed, 1, seeds, 1)
    sums += terms(noise.run, cells, seeds, 1)
    sums += terms(noise.example, 1, 1, examples)
    sums += terms(noise.cell_example, cells, 1, examples)
    return sums / noise.total


def drawn(
    cells: Sequence[SimulatedCell], seeds: int, examples: int, noise: Noise, generator: np.random.Generator
) -> Drawn:
    """Draw what the cells' runs would have shown."""
    (after,) = answers([cell.accuracy for cell in cells], seeds, examples, noise, generator)
    (before,) = answers([ACCURACY_BEFORE] * len(cells), 1, examples, noise, generator).repeat(seeds, axis=2)
    truth = np.arange(examples) % len(LABELS)
    another = (truth + generator.integers(1, len(LABELS), examples)) % len(LABELS)
    wrong = np.where(generator.random(examples) < 0.5, truth ^ 1, another)
    tokens = generator.integers(2, 7, examples)
    log_speed = np.array([[cell.log_speed] for cell in cells]) + noise.log_speed_seed * generator.standard_normal(seeds)
    return Drawn(
        TOKENS_PER_S * np.exp(log_speed + noise.log_speed_run * generator.standard_normal((len(cells), seeds))),
        truth,
        tokens,
        np.where(before > 0, truth, wrong),
        np.where(after > 0, truth, wrong),
        tokens * np.exp(-LOSS_SLOPE * before),
        tokens * np.exp(-LOSS_SLOPE * after),
    )


def simulated(
    folder: Path,
    cells: Sequence[SimulatedCell],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    examples: int = 400,
    noise: Noise | None = None,
    random_seed: int = 0,
    files: bool = True,
    sentinels: bool = False,
    watch_pairs: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write a result, its first cell the baseline: a plan, records, and with `files` the examples of each run.

    With `sentinels` the baseline runs once more at the end of each seed's block, with the same answers.
    """
    noise, generator = noise or Noise(), np.random.default_rng(random_seed)
    runs = drawn(cells, len(seeds), examples, noise, generator)
    folder.mkdir(parents=True, exist_ok=True)
    if files:
        (folder / EXAMPLES).mkdir(exist_ok=True)
    lines = []
    for number, seed in enumerate(seeds):
        jobs = [(place, 0) for place, cell in enumerate(cells) if cell.seeds is None or seed in cell.seeds]
        jobs += [(0, 1)] * sentinels
        for position, (place, repeat) in enumerate(jobs, start=1):
            hashed = {}
            if files:
                path = folder / EXAMPLES / f"{evidence_name(cells[place].key, seed, repeat)}.parquet"
                hashed["examples_sha256"] = _write_examples(path, runs, (place, number))
            drift = noise.log_drift * (position - 1) / max(1, len(jobs) - 1)
            if repeat:
                drift += noise.log_speed_run * generator.standard_normal()
            lines.append(
                to_line(
                    Record(
                        id=cells[place].id,
                        key=cells[place].key,
                        seed=seed,
                        attempt=1,
                        status="ok",
                        phase="score_after",
                        message=None,
                        hint=None,
                        matrix="simulated",
                        parameters=Parameters(**cells[place].parameters).model_dump(mode="json"),
                        protocol=PROTOCOL_VERSION,
                        started_at="2026-01-15T20:45:12Z",
                        wall_s=61.2,
                        slot="gpu0",
                        last_peak_allocated_bytes=None,
                        measures=_measures(cells[place], runs, (place, number), drift),
                        environment={**ENVIRONMENT, **hashed},
                        repeat=repeat,
                        position=position,
                    )
                )
            )
    (folder / RECORDS).write_bytes(b"".join(lines))
    ids = [{"id": cell.id, "key": cell.key} for cell in cells]
    plan = {"schema": 1, "baseline": cells[0].id, "seeds": [*seeds], "watch_pairs": watch_pairs, "cells": ids}
    write_atomically(folder / PLAN, json.dumps(plan))
    return folder


def evidence_of(
    folder: Path,
    cells: Sequence[SimulatedCell],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    examples: int = 400,
    noise: Noise | None = None,
    random_seed: int = 0,
) -> Evidence:
    """Return what `gather` would of `simulated`, without its Parquet files: the examples stay in memory."""
    simulated(folder, cells, seeds=seeds, examples=examples, noise=noise, random_seed=random_seed, files=False)
    frame = load_results(folder)
    runs = drawn(cells, len(seeds), examples, noise or Noise(), np.random.default_rng(random_seed))
    places = {cell.id: number for number, cell in enumerate(cells)}
    numbers = {seed: number for number, seed in enumerate(seeds)}
    rows = first_runs(frame)[["id", "seed"]].itertuples(index=False, name=None)
    of_runs = tuple(np.array([(places[id_], numbers[seed]) for id_, seed in rows]).T)
    found = Examples(
        rows=np.arange(len(of_runs[0])),
        labels=LABELS,
        truth=runs.truth,
        tokens_count=runs.tokens_count,
        predicted_before=runs.predicted_before[of_runs],
        predicted_after=runs.predicted_after[of_runs],
        loss_after=runs.loss_after[of_runs],
    )
    return arrange(frame, (found,))


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return F1 averaged over the labels that occur in either."""
    counts = [np.bincount(numbers, minlength=len(LABELS)) for numbers in (truth, predicted, truth[truth == predicted])]
    total = counts[0] + counts[1]
    return float((2 * counts[2][total > 0] / total[total > 0]).mean())


def _measures(cell: SimulatedCell, runs: Drawn, run: tuple[int, int], drift: float) -> dict[str, float]:
    speed = float(runs.tokens_per_s[run]) * exp(drift)
    before, after = runs.predicted_before[run], runs.predicted_after[run]
    return {
        "stored_bytes": cell.stored_bytes,
        "footprint_bytes": cell.stored_bytes - 6_600_000,
        "train_peak_allocated_bytes": cell.peak_bytes,
        "tokens_per_s": speed,
        "examples_per_s": speed / 25.4,
        "step_p50_s": 0.0281,
        "step_p95_s": 0.0337,
        "eval_examples_count": len(runs.truth),
        "labels_count": len(LABELS),
        "accuracy_before": float((before == runs.truth).mean()),
        "accuracy_after": float((after == runs.truth).mean()),
        "macro_f1_before": macro_f1(runs.truth, before),
        "macro_f1_after": macro_f1(runs.truth, after),
        "heldout_loss_before": float(runs.loss_before[run].sum() / runs.tokens_count.sum()),
        "heldout_loss_after": float(runs.loss_after[run].sum() / runs.tokens_count.sum()),
    }


def _write_examples(path: Path, runs: Drawn, run: tuple[int, int]) -> str:
    """Write a run's examples as `bench.cell.evidence.write_examples` does, and return the hash of the file."""

    def labels(numbers: np.ndarray) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), pa.array(LABELS))

    columns = {
        "index": pa.array(np.arange(len(runs.truth)), pa.int32()),
        "label": labels(runs.truth),
        "label_tokens_count": pa.array(runs.tokens_count, pa.int16()),
        "predicted_before": labels(runs.predicted_before[run]),
        "predicted_after": labels(runs.predicted_after[run]),
        "log_likelihood_before": pa.array(-runs.loss_before[run], pa.float32()),
        "log_likelihood_after": pa.array(-runs.loss_after[run], pa.float32()),
        "confidence_before": pa.array(np.full(len(runs.truth), 0.3), pa.float32()),
        "confidence_after": pa.array(np.full(len(runs.truth), 0.9), pa.float32()),
    }
    metadata = {"labels": json.dumps(LABELS), "task_sha256": TASK_SHA256, "schema": "1"}
    pq.write_table(pa.table(columns, metadata=metadata), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
