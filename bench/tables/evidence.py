"""What the runs of one result show, arranged so that cells can be compared: by cell, by seed and by test example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from bench.matrix.wording import closest, listing, quoted
from bench.tables.comparable import Cell, incomparable, left_out, left_out_notes
from bench.tables.contrasts import Better, Contrast, Sample, decided, estimates
from bench.tables.examples import Examples, load_examples
from bench.tables.figures import listed
from bench.tables.load import PARAMETER_NAMES, first_runs
from bench.tables.pool import CELL, QUALITY, on_cpu, pool_seeds, train_peaks

RESAMPLES = 1000
RESAMPLING_SEED = 0
UNKNOWN_EXECUTION = "unknown"


@dataclass(frozen=True)
class Compared:
    """A measure in which cells are compared.

    `name` is its column. A difference in it is of kind `exact` (no noise: bytes), `ratio` (compared as logarithms,
    shown in percent) or `difference`. `label` and `unit` are what a reader sees; `scale` turns raw values into that
    unit. Of an exact measure, a difference below the share `least` of its values counts as none.
    """

    name: str
    label: str
    unit: str
    better: Better
    kind: Literal["exact", "ratio", "difference"]
    scale: float = 1.0
    least: float = 0.0


STORED = Compared("stored_bytes", "stored", "MB", "lower", "exact", 1e-6)
# Less of a peak is a matter of a tensor's dtype, or of how long the longest batch of a seed happens to be.
PEAK = Compared("train_peak_bytes", "train peak", "MB", "lower", "exact", 1e-6, least=0.001)
SLIGHT = "A train peak that differs by less than 0.1 % counts as the same."
HOST_PEAK = Compared("train_peak_bytes", "train peak", "%", "lower", "ratio")
SPEED = Compared("tokens_per_s", "tokens/s", "%", "higher", "ratio")
ACCURACY = Compared("accuracy_after", "accuracy", "points", "higher", "difference", 100.0)
LOSS = Compared("heldout_loss_after", "held-out loss", "nats", "lower", "difference")


@dataclass(frozen=True)
class Watched:
    """A pair of labels that the matrix watches: of the examples of either, how many are taken for the other."""

    names: tuple[str, str]

    @property
    def compared(self) -> Compared:
        one, other = self.names
        return Compared(f"confused:{one}:{other}", f"{one} or {other} confused", "points", "lower", "difference", 100.0)


@dataclass(frozen=True)
class Evidence:
    """All that tables compare cells by.

    runs: the frame of `load_results`, without the baseline's repeats, its index a RangeIndex; `repeats`: those. Runs
    under other conditions than the rest of their cell are in `runs`, and in nothing else (`counted` has the others).
    cells: a row a cell (`pool_seeds`), whose numbers contrasts use. seeds: those that occur, in ascending order.
    samples: of each compared measure its values by cell and seed. groups: of each measure what must be equal in two
    cells for a comparison (None where a cell has no value, or ran under other conditions than the rest). apart: cells
    without a run under the baseline's conditions, and what differs.
    """

    runs: pd.DataFrame
    repeats: pd.DataFrame
    cells: pd.DataFrame
    seeds: tuple[int, ...]
    measures: tuple[Compared, ...]
    samples: Mapping[str, Sample]
    groups: Mapping[str, Sequence[object]]
    apart: Mapping[Cell, str]
    examples: tuple[Examples, ...] = ()
    watched: tuple[Watched, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counted(self) -> pd.DataFrame:
        """The runs that means and comparisons are of."""
        return self.runs[~left_out(self.runs)]

    def comparable(self, one: int, other: int, measure: Compared) -> bool:
        """Tell whether two cells, by number, may be compared in a measure."""
        group = self.groups[measure.name]
        return group[one] is not None and group[one] == group[other]

    def found(self, measure: Compared, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """Estimate contrasts as one family, with verdicts; in the unit of the measure."""
        sample = self.samples[measure.name]
        found = decided(estimates(sample, contrasts), measure.better, exact=measure.kind == "exact")
        if measure.least and len(found):
            slight = found["estimate"].abs() < measure.least * np.nanmean(sample.observed)
            found["verdict"] = found["verdict"].mask(slight, "no difference shown")
        return in_unit(found, measure)


def gather(frame: pd.DataFrame) -> Evidence:
    """Arrange a result, a frame of `load_results` with at least one row, with the examples beside its records."""
    return arrange(frame, *load_examples(first_runs(frame).reset_index(drop=True)))


def arrange(frame: pd.DataFrame, examples: tuple[Examples, ...], doubts: Sequence[str] = ()) -> Evidence:
    """Arrange a result with the examples that its first runs scored; `doubts` are sentences on them."""
    runs = first_runs(frame).reset_index(drop=True)
    repeats = frame[frame["repeat"] > 0]
    cells = pool_seeds(runs).reset_index()
    counts = ~left_out(runs)
    seeds = tuple(sorted(runs["seed"][counts].unique().tolist()))
    examples = _of_runs(examples, counts.to_numpy())
    watched, unknown = _watched(frame.attrs.get("watch_pairs", ()), examples)
    runs["train_peak_bytes"] = train_peaks(runs)
    runs.loc[runs["weights"] == "random", QUALITY] = np.nan
    counted = runs[counts]
    peak = HOST_PEAK if on_cpu(counted).any() else PEAK
    measures = (STORED, peak, SPEED, ACCURACY, LOSS)
    places = _places(runs, cells, seeds)
    apart = incomparable(runs)
    own_places = places[0][counts], places[1][counts]
    samples = {measure.name: _sample(counted, measure, own_places, (len(cells), len(seeds))) for measure in measures}
    for measure, statistic in _statistics(watched).items():
        values = _by_examples(examples, places, (len(cells), len(seeds)), statistic)
        own = samples[measure.name].observed if measure.name in samples else values[0]
        samples[measure.name] = Sample(own, values[1:] if examples else None)
    return Evidence(
        runs=runs,
        repeats=repeats,
        cells=cells,
        seeds=seeds,
        measures=(*measures, *(pair.compared for pair in watched)),
        samples=samples,
        groups=_groups(counted, cells, samples, apart),
        apart=apart,
        examples=examples,
        watched=watched,
        notes=(*left_out_notes(runs), *doubts, *unknown, *_without_value(counted)),
    )


def in_unit(found: pd.DataFrame, measure: Compared) -> pd.DataFrame:
    """Turn estimates of a measure into its unit; of a ratio, whose estimates are of logarithms, into percent."""
    names = ["estimate", "low", "high", "lowest", "highest", "minimum_detectable"]
    if measure.kind == "ratio":
        return found.assign(**{name: 100 * np.expm1(found[name]) for name in names})
    return found.assign(**{name: measure.scale * found[name] for name in names})


def resampling(count: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Return how often each of `count` examples is drawn, float32 [1 + resamples, count]; in the first, each once."""
    generator = np.random.default_rng(RESAMPLING_SEED)
    weights = np.ones((1 + resamples, count), np.float32)
    for row in weights[1:]:
        row[:] = np.bincount(generator.integers(0, count, count), minlength=count)
    return weights


# A statistic takes examples and weights, [resamples, examples], and returns [resamples, runs].
Statistic = Callable[[Examples, np.ndarray], np.ndarray]


def resampled_accuracy(examples: Examples, weights: np.ndarray) -> np.ndarray:
    right = (examples.predicted_after == examples.truth).astype(np.float32)
    return _ratio(weights @ right.T, weights.sum(axis=1))


def resampled_loss(examples: Examples, weights: np.ndarray) -> np.ndarray:
    return _ratio(
        weights @ examples.loss_after.T.astype(np.float32), weights @ examples.tokens_count.astype(np.float32)
    )


def resampled_confusions(names: tuple[str, str]) -> Statistic:
    def statistic(examples: Examples, weights: np.ndarray) -> np.ndarray:
        if not set(names) <= set(examples.labels):
            return np.full((len(weights), len(examples.rows)), np.nan, np.float32)
        one, other = (examples.labels.index(name) for name in names)
        of_pair = np.isin(examples.truth, (one, other))
        taken_for = np.where(examples.truth == one, other, one)
        confused = (examples.predicted_after == taken_for).astype(np.float32)[:, of_pair]
        shares = _ratio(weights[:, of_pair] @ confused.T, weights[:, of_pair].sum(axis=1))
        # A draw without any example of the pair tells nothing: the real share, in the first row, stands for it.
        return np.where(np.isnan(shares), shares[:1], shares)

    return statistic


def _ratio(sums: np.ndarray, totals: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / totals[:, None])


def _statistics(watched: Iterable[Watched]) -> dict[Compared, Statistic]:
    return {
        ACCURACY: resampled_accuracy,
        LOSS: resampled_loss,
        **{pair.compared: resampled_confusions(pair.names) for pair in watched},
    }


def _of_runs(examples: Sequence[Examples], counts: np.ndarray) -> tuple[Examples, ...]:
    """Leave out the examples of runs, by their rows, that do not count."""
    if counts.all():
        return tuple(examples)
    of_runs = ("rows", "predicted_before", "predicted_after", "loss_after")
    kept = [replace(part, **{name: getattr(part, name)[counts[part.rows]] for name in of_runs}) for part in examples]
    return tuple(part for part in kept if len(part.rows))


def _places(runs: pd.DataFrame, cells: pd.DataFrame, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each run the number of its cell and that of its seed; -1 where `seeds` has it not."""
    numbers = {cell: number for number, cell in enumerate(cells[CELL].itertuples(index=False, name=None))}
    of_seed = {seed: number for number, seed in enumerate(seeds)}
    return (
        np.array([numbers[cell] for cell in runs[CELL].itertuples(index=False, name=None)]),
        np.array([of_seed.get(seed, -1) for seed in runs["seed"]]),
    )


def _sample(
    runs: pd.DataFrame, measure: Compared, places: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]
) -> Sample:
    values = np.full(shape, np.nan)
    raw = runs[measure.name].where(runs["status"] == "ok").to_numpy(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        values[places] = np.log(raw) if measure.kind == "ratio" else raw
    return Sample(np.where(np.isfinite(values), values, np.nan))


def _by_examples(
    examples: Sequence[Examples],
    places: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, int],
    statistic: Statistic,
) -> np.ndarray:
    """Return a statistic of all runs, [1 + resamples, cells, seeds]: the first on the real examples."""
    values = np.full((1 + RESAMPLES, *shape), np.nan, np.float32)
    for part in examples:
        cells, seeds = (place[part.rows] for place in places)
        values[:, cells, seeds] = statistic(part, resampling(len(part.truth)))
    return values


def _groups(
    runs: pd.DataFrame, cells: pd.DataFrame, samples: Mapping[str, Sample], apart: Mapping[Cell, str]
) -> dict[str, list[object]]:
    ids = list(cells[CELL].itertuples(index=False, name=None))
    tested = _tested_on(runs).reindex(ids)
    kinds = {
        STORED.name: ["all"] * len(ids),
        # With other batches of its own, a cell has another peak.
        PEAK.name: cells["seed_offset"].tolist(),
        SPEED.name: cells["execution_used"].tolist(),
        # Nats per token of the model's own tokenizer.
        LOSS.name: [None if on is None else (on, model) for on, model in zip(tested, cells["model"], strict=True)],
    }
    return {
        name: [
            None if cell in apart or np.isnan(values).all() else kind
            for cell, values, kind in zip(ids, sample.observed, kinds.get(name, tested), strict=True)
        ]
        for name, sample in samples.items()
    }


def _tested_on(runs: pd.DataFrame) -> pd.Series[Any]:
    """Return the test examples of each cell, as something that is equal where they are; None where its runs differ.

    A task's hash covers its training examples too, and a cell with fewer of these may be compared. So it counts only
    where runs that ask for the same examples have different hashes: the data changed in between.
    """
    asked = runs["task"].astype(str) + "\0" + runs["eval_examples"].astype(str)
    hashes = runs["task_sha256"].astype(object)
    changed = hashes.groupby(asked + "\0" + runs["train_examples"].astype(str)).transform("nunique") > 1
    tested = asked.where(~changed, asked + "\0" + hashes.fillna("unknown").astype(str)).astype(object)
    kinds = pd.Series(pd.factorize(tested)[0], runs.index).groupby([runs[name] for name in CELL], sort=False)
    first = tested[~runs.duplicated(CELL)].set_axis(kinds.first().index)
    return first.where(kinds.min() == kinds.max(), None)


def _watched(pairs: Sequence[Sequence[str]], examples: Sequence[Examples]) -> tuple[tuple[Watched, ...], list[str]]:
    """Find the watched pairs among the labels that were scored; say which have none."""
    labels = dict.fromkeys(label for part in examples for label in part.labels)
    if pairs and not labels:
        return (), ["No watched pairs: there is no file of examples to count their confusions in."]
    found, doubts = [], []
    for one, other in pairs:
        unknown = [name for name in (one, other) if name not in labels]
        if not unknown:
            found.append(Watched((one, other)))
            continue
        near = [close for name in unknown if (close := closest(name, labels))]
        fix = f"did you mean {listing(near)}?" if near else "correct watch_pairs in the matrix and run it again"
        missing = listing([quoted(name) for name in unknown])
        doubts.append(f"The watched pair {one} and {other}: the task has no label {missing}; {fix}")
    return tuple(found), doubts


def _without_value(runs: pd.DataFrame) -> Iterator[str]:
    """Name the runs that ended ok without a figure they should have: NaN, infinite, or left out."""
    scored = runs[(runs["status"] == "ok") & (runs["weights"] != "random") & (runs["eval_examples_count"] > 0)]
    for measure in (ACCURACY, LOSS):
        lost = scored[~np.isfinite(scored[measure.name])]
        if len(lost):
            names = [f"{id_} s{seed}" for id_, seed in lost[["id", "seed"]].itertuples(index=False, name=None)]
            yield f"No {measure.label} in the record of {listed(names)}, though it ended ok: left out."


def executions(evidence: Evidence) -> np.ndarray:
    """Return how the timed steps of each cell ran; speeds are compared only where this is the same."""
    return np.asarray(evidence.cells["execution_used"].fillna(UNKNOWN_EXECUTION), dtype=object)


def twins_of(evidence: Evidence) -> list[str | None]:
    """Return of each cell with a seed_offset the id of the cell that it is but for that; None for all others."""
    cells = evidence.cells
    settings = [name for name in PARAMETER_NAMES if name not in ("seed_offset", "timeout")]
    again = cells["seed_offset"] > 0
    if not again.any():
        return [None] * len(cells)
    alike = cells["id"].where(~again).groupby([cells[name] for name in settings], dropna=False).transform("first")
    return [twin if offset and isinstance(twin, str) else None for twin, offset in zip(alike, again, strict=True)]
