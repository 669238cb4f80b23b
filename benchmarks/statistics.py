"""Whether the statistics of the tables keep what they promise: simulated results of known truth, and how they decide.

    python3 -m benchmarks.statistics [--matrices N] [--records N] [--out FILE.json]

False verdicts where nothing differs; how often intervals hold the true difference, whatever kind of noise dominates;
how often a planted difference is found, beside theory; and the time that many records take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from statsmodels.stats.power import TTestPower

from bench.tables.comparisons import comparisons_table
from bench.tables.contrasts import (
    ALPHA,
    CONFIDENCE,
    POWER,
    Contrast,
    Sample,
    decided,
    difference,
    estimates,
    minimum_detectable,
)
from bench.tables.drift import drift
from bench.tables.effects import effects_table
from bench.tables.evidence import (
    ACCURACY,
    LOSS,
    SPEED,
    Compared,
    gather,
    resampled_accuracy,
    resampled_loss,
    resampling,
)
from bench.tables.examples import Examples
from bench.tables.load import load_results
from bench.tables.pareto import front
from benchmarks.command import CONTEXT, console, main, out_option, write
from benchmarks.intervals import Share, share_of
from benchmarks.simulated import BASELINE, LABELS, LOSS_SLOPE, Noise, SimulatedCell, answers, simulated, true_loss

SCHEMA = 1
RANDOM_SEED = 20_260_115
CELLS_COUNT = 8  # beside the baseline
EXAMPLES_COUNT = 400
TYPICAL_ACCURACY = 0.85
PAIRS_PER_MATRIX = 2  # pairs of cells for each matrix asked for, where a pair is all that is needed
RUNS_AT_ONCE = 6000  # in memory
# By seeds. With three, intervals that are safe whatever dominates cover more where both kinds of noise count.
COVERED = {3: (0.93, 0.98), 5: (0.93, 0.97), 8: (0.93, 0.97)}
AROUND = 0.05  # how far from the theory, which takes variances as known, power may be

# Where the noise of a difference comes from. In the last one a seed's spread, often small by chance, misleads most.
REGIMES: Mapping[str, Noise] = {
    "seeds": Noise(run=0.3, cell_example=0.0, run_example=0.3),
    "run and example": Noise(run=0.0, cell_example=0.0, run_example=1.5),
    "cell and example": Noise(run=0.0, cell_example=1.5, run_example=0.1),
    "all kinds": Noise(run=0.1, cell_example=0.8, run_example=0.8),
    "seeds, some examples": Noise(run=0.25, cell_example=0.5, run_example=0.1),
}


@dataclass(frozen=True)
class Check:
    """How often something happened, and between which shares it should have."""

    what: str
    share: Share
    least: float
    most: float

    @property
    def holds(self) -> bool:
        """Tell whether the binomial interval has a share that is as it should be."""
        return self.share.low <= self.most and self.share.high >= self.least


@click.command(context_settings=CONTEXT)
@click.option("--matrices", default=1000, show_default=True, type=click.IntRange(1), metavar="N",
              help="Simulate N matrices without any difference, and 2 N pairs of cells for the rest.")  # fmt: skip
@click.option("--records", default=10_000, show_default=True, type=click.IntRange(24), metavar="N",
              help="Load and analyse N records, three of a cell, and tell the time.")  # fmt: skip
@out_option
def command(matrices: int, records: int, out: Path | None) -> None:
    """Check the statistics of the tables against results whose truth is known."""
    terminal, checks = console(), {}
    for title, find in SECTIONS.items():
        checks[title] = list(find(matrices, np.random.default_rng(RANDOM_SEED)))
        show(title, checks[title], terminal)
        write(out, _figures(matrices, checks, {}))
    seconds = timed(records)
    terminal.print(f"Seconds for {records:,} records, 3 seeds a cell, without files of examples", style="bold")
    for what, taken in seconds.items():
        terminal.print(f" {what}: {taken:.2f}")
    write(out, _figures(matrices, checks, seconds))


def false_verdicts(matrices: int, generator: np.random.Generator) -> Iterator[Check]:
    """Count verdicts where nothing differs: matrices with any of them, and single ones.

    The single ones of a matrix depend on each other, through the baseline, so that their interval is a little narrow.
    """
    cases = [(3, "all kinds"), (5, "all kinds"), (3, "seeds, some examples")]
    for seeds_count, regime in cases:
        found: dict[str, list[np.ndarray]] = {}
        accuracies = [TYPICAL_ACCURACY] * (1 + CELLS_COUNT)
        for samples in batches(matrices, accuracies, seeds_count, REGIMES[regime], generator):
            for measure, sample in samples.items():
                found.setdefault(measure.label, []).extend(_verdicts(measure, sample))
        for label, verdicts in found.items():
            wrong = np.isin(verdicts, ("better", "worse"))
            what = f"{label}, {seeds_count} seeds, {regime}"
            yield Check(f"{what}: matrices with any", share_of(wrong.any(axis=1).mean(), len(wrong)), 0, ALPHA)
            yield Check(f"{what}: verdicts", share_of(wrong.mean(), wrong.size), 0, ALPHA)


def coverage(matrices: int, generator: np.random.Generator) -> Iterator[Check]:
    """Count the intervals that hold the true difference."""
    accuracies = [TYPICAL_ACCURACY, TYPICAL_ACCURACY + 0.02]
    truth = {ACCURACY: accuracies[1] - accuracies[0], LOSS: true_loss(accuracies[1]) - true_loss(accuracies[0])}
    for regime, noise in REGIMES.items():
        for seeds_count in COVERED:
            found = pairs(matrices * PAIRS_PER_MATRIX, accuracies, seeds_count, noise, generator)
            for measure, true in truth.items():
                frame = found[measure]
                covered = (frame["low"] <= true) & (frame["high"] >= true)
                shared = (frame["examples_variance"] / frame["standard_error"] ** 2).mean()
                what = f"{measure.label}, {seeds_count} seeds, {regime} (examples {shared:.0%} of the variance)"
                yield Check(what, share_of(covered.mean(), len(covered)), *COVERED[seeds_count])


def power(matrices: int, generator: np.random.Generator) -> Iterator[Check]:
    """Count the planted differences that are found: of tokens/s beside theory, and those said to be found in 80 %."""
    count = matrices * PAIRS_PER_MATRIX
    contrasts = [Contrast((cell,), (1.0,)) for cell in range(count)]
    for seeds_count in (3, 5, 8):
        for wanted in (0.5, POWER):
            size = TTestPower().solve_power(None, seeds_count, ALPHA, wanted)
            frame = estimates(Sample(generator.normal(size, 1, (count, seeds_count))), contrasts)
            what = f"tokens/s, {seeds_count} seeds, {size:.2f} standard deviations"
            yield Check(what, share_of((frame["p"] <= ALPHA).mean(), count), wanted - AROUND, wanted + AROUND)
    for regime in ("seeds", "cell and example", "all kinds"):
        for seeds_count in (3, 5, 8):
            alike = pairs(count, [TYPICAL_ACCURACY] * 2, seeds_count, REGIMES[regime], generator)[ACCURACY]
            parts = alike[["seeds_variance", "examples_variance"]].mean().to_numpy()
            size = float(minimum_detectable(parts[:1] / seeds_count, parts[1:], np.array([seeds_count]))[0])
            planted = [TYPICAL_ACCURACY - size / 2, TYPICAL_ACCURACY + size / 2]
            frame = pairs(count, planted, seeds_count, REGIMES[regime], generator)[ACCURACY]
            what = f"accuracy, {seeds_count} seeds, {regime}, the minimum detectable {100 * size:.1f} points"
            yield Check(what, share_of((frame["p"] <= ALPHA).mean(), count), POWER - AROUND, POWER + AROUND)


SECTIONS: dict[str, Callable[[int, np.random.Generator], Iterator[Check]]] = {
    "False better or worse where nothing differs": false_verdicts,
    f"{CONFIDENCE:.0%} intervals that hold the true difference": coverage,
    "Planted differences that are found": power,
}


def batches(
    matrices: int, accuracies: Sequence[float], seeds_count: int, noise: Noise, generator: np.random.Generator
) -> Iterator[dict[Compared, Sample]]:
    """Yield samples of independent matrices, as many at once as fit; a matrix's cells follow one another."""
    at_once = max(1, RUNS_AT_ONCE // (len(accuracies) * seeds_count))
    truth = np.arange(EXAMPLES_COUNT) % len(LABELS)
    tokens = generator.integers(2, 7, EXAMPLES_COUNT)
    weights = resampling(EXAMPLES_COUNT)
    for start in range(0, matrices, at_once):
        count = min(at_once, matrices - start)
        sums = answers(accuracies, seeds_count, EXAMPLES_COUNT, noise, generator, count).reshape(-1, EXAMPLES_COUNT)
        predicted, loss = np.where(sums > 0, truth, truth - 1), tokens * np.exp(-LOSS_SLOPE * sums)
        runs = Examples(np.arange(len(sums)), LABELS, truth, tokens, predicted, predicted, loss)
        speeds = generator.normal(0, noise.log_speed_run, (count, len(accuracies), seeds_count))
        speeds += generator.normal(0, noise.log_speed_seed, (count, 1, seeds_count))
        samples = {SPEED: Sample(speeds.reshape(-1, seeds_count))}
        for measure, statistic in {ACCURACY: resampled_accuracy, LOSS: resampled_loss}.items():
            values = statistic(runs, weights).reshape(len(weights), -1, seeds_count)
            samples[measure] = Sample(values[0].astype(float), values[1:])
        yield samples


def pairs(
    count: int, accuracies: Sequence[float], seeds_count: int, noise: Noise, generator: np.random.Generator
) -> dict[Compared, pd.DataFrame]:
    """Estimate the difference of the second cell to the first in independent matrices of two cells."""
    found: dict[Compared, list[pd.DataFrame]] = {}
    for samples in batches(count, accuracies, seeds_count, noise, generator):
        for measure, sample in samples.items():
            contrasts = [difference(cell + 1, cell) for cell in range(0, len(sample.observed), 2)]
            found.setdefault(measure, []).append(estimates(sample, contrasts))
    return {measure: pd.concat(frames, ignore_index=True) for measure, frames in found.items()}


def timed(records_count: int) -> dict[str, float]:
    """Return the seconds in which a result is loaded and each kind of analysis is done."""
    axes: dict[str, Sequence[Any]] = {
        "quant_type": ("nf4", "fp4"),
        "double_quant": (False, True),
        "target_modules": ("all-linear", "attention"),
        "lora_r": range(1, 1 + records_count // 24),
    }
    crossed = product(*axes.values())
    cells = [SimulatedCell(f"c{number}", dict(zip(axes, values, strict=True))) for number, values in enumerate(crossed)]
    steps: dict[str, Callable[[Any], Any]] = {
        "load": load_results,
        "gather": gather,
        "comparisons": comparisons_table,
        "effects": effects_table,
        "front": front,
        "drift": drift,
    }
    seconds = {}
    with TemporaryDirectory() as folder:
        given: Any = simulated(Path(folder), (BASELINE, *cells), examples=20, files=False)
        for name, step in steps.items():
            start = time.perf_counter()
            result = step(given)
            seconds[name] = time.perf_counter() - start
            given = result if name in ("load", "gather") else given
    return {**seconds, "all": sum(seconds.values())}


def show(title: str, checks: Iterable[Check], terminal: Console) -> None:
    """Print shares beside what they should be."""
    table = Table("what", title=title, title_justify="left", title_style="bold", header_style="bold", box=None)
    for heading in ("found %", "95 % interval", "should be %"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for check in checks:
        share = check.share
        interval = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
        nominal = f"{100 * check.least:.0f} to {100 * check.most:.0f}" if check.least else f"≤ {100 * check.most:.0f}"
        table.add_row(check.what, f"{100 * share.value:.1f}", interval, nominal, "" if check.holds else "✗")
    terminal.print(table)
    terminal.print()


def _verdicts(measure: Compared, sample: Sample) -> Iterator[np.ndarray]:
    """Yield the verdicts of each matrix, a family of its own."""
    cells = 1 + CELLS_COUNT
    firsts = range(0, len(sample.observed), cells)
    found = estimates(sample, [difference(first + cell, first) for first in firsts for cell in range(1, cells)])
    for start in range(0, len(found), CELLS_COUNT):
        yield decided(found.iloc[start : start + CELLS_COUNT], measure.better)["verdict"].to_numpy()


def _figures(matrices: int, checks: Mapping[str, Sequence[Check]], seconds: Mapping[str, float]) -> dict[str, Any]:
    sections = {title: [asdict(check) for check in found] for title, found in checks.items()}
    return {"schema": SCHEMA, "matrices": matrices, "checks": sections, "seconds": dict(seconds)}


if __name__ == "__main__":
    main(command)
