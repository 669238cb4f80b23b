"""Differences between cells with their uncertainty, from runs that are paired by seed and by test example.

Whatever is compared (a cell with the baseline, an axis averaged over the others, an interaction) is a contrast: a
weighted sum of cells. Of each seed it has one value; their mean is the estimate. Its variance has two levels:

    V = s² / n + max(0, V_examples - V_both)

s² / n is that of the n seeds' values, as in a paired t-test. It holds what the test examples add at random in each
seed, but not what they add alike in all seeds, since all seeds are scored on the same ones: that is the variance of the
mean under resampling of examples (bootstrap), less the part that differs by seed and is in s² / n already. These are
the estimates of the two-way layout with seeds and examples crossed, both random (Owen 2007, "The pigeonhole
bootstrap"). The first part has n - 1 degrees of freedom, the second is as good as known: how far the estimate may then
be off is in `bench.tables.behrens_fisher`. A percentile bootstrap over three seeds would be far too narrow (Hesterberg
2015).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import inf
from typing import Literal

import numpy as np
import pandas as pd
from scipy import sparse, special, stats

from bench.tables.behrens_fisher import half_widths, p_values

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
LEAST_SEEDS = 3  # fewer tell next to nothing of how seeds differ
MOST_FLIPPED = 16  # seeds whose signs are flipped in every way
AT_ONCE = 128  # contrasts whose resamples are in memory together
LIKE_NORMAL = 1e4  # degrees of freedom
ROUNDING = 1e-9  # of a difference: what rounding may leave of a standard error of zero

Verdict = Literal["better", "worse", "no difference shown", "too few runs", "not comparable"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Sample:
    """One measure of all runs.

    observed: [cells, seeds], NaN where there is none. resampled: [resamples, cells, seeds], the same on test examples
    that were drawn again with replacement, in each resample the same ones for all runs; None where examples play no
    part.
    """

    observed: np.ndarray
    resampled: np.ndarray | None = None


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of cells, by their numbers."""

    cells: tuple[int, ...]
    weights: tuple[float, ...]


def difference(of: int, against: int) -> Contrast:
    return Contrast((of, against), (1.0, -1.0))


def estimates(sample: Sample, contrasts: Sequence[Contrast], confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Estimate contrasts from the seeds in which every cell of a contrast has a value.

    A row a contrast, in their order; NaN where nothing is known:

    * `estimate`, `low`, `high`: the mean over seeds and its interval of this `confidence`.
    * `p`: two-sided, of no difference.
    * `p_exact`: of all ways to flip the seeds' signs, the share with a mean at least as far from zero; exact, for this
      test set. NaN with fewer seeds than could reach 5 %, or more than `MOST_FLIPPED`.
    * `minimum_detectable`: of a test of this contrast alone, as the function of this name has it.
    * `seeds_count`, `lowest`, `highest`: how many seeds, and their extreme values.
    * `standard_error`, and the parts of its square: `seeds_variance` of one seed's value, and `examples_variance`,
      which more seeds do not lessen. `degrees_of_freedom`: those of the Student's t that gives this interval.

    With one seed the interval is of the test examples alone: it tells these runs apart, not the cells. Without
    resamples of a cell it is of the seeds alone. Where nothing varies and yet something differs, as with few seeds of
    a coarse measure, the variance is not known: neither interval nor p.
    """
    weights = _matrix(contrasts, len(sample.observed))
    missing = _meets(weights, np.isnan(sample.observed))
    per_seed = np.where(missing, np.nan, weights @ np.nan_to_num(sample.observed))
    known = ~missing
    n = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, per_seed, 0).sum(axis=1) / n
        spread = np.where(known, per_seed - mean[:, None], 0)
        seeds_variance = np.where(n > 1, (spread**2).sum(axis=1) / (n - 1), np.nan)
        of_seeds = seeds_variance / n
    examples_variance = _examples_variance(sample, weights, known)
    half = half_widths(of_seeds, examples_variance, np.maximum(n - 1, 1), confidence)
    error = _standard_error(of_seeds, examples_variance)
    unknown = (error <= ROUNDING * np.abs(mean)) & (mean != 0)
    half = np.where(unknown, np.nan, half)
    p = p_values(np.abs(mean), of_seeds, examples_variance, np.maximum(n - 1, 1))
    return pd.DataFrame(
        {
            "estimate": mean,
            "low": mean - half,
            "high": mean + half,
            # Nothing varies, and nothing differs.
            "p": np.select([unknown, (error == 0) & (mean == 0)], [np.nan, 1.0], p),
            "p_exact": _sign_flip_p(per_seed, n),
            "minimum_detectable": np.where(unknown, np.nan, minimum_detectable(of_seeds, examples_variance, n)),
            "seeds_count": n,
            "lowest": np.fmin.reduce(per_seed, axis=1),
            "highest": np.fmax.reduce(per_seed, axis=1),
            "standard_error": error,
            "degrees_of_freedom": _degrees_of_freedom(half, error, n, confidence),
            "seeds_variance": seeds_variance,
            "examples_variance": examples_variance,
        }
    )  # fmt: skip


def minimum_detectable(of_seeds: np.ndarray, of_examples: np.ndarray, seeds_count: np.ndarray) -> np.ndarray:
    """Return the true difference that a test of it alone, at 5 %, finds with a probability of 80 %.

    As of Student's noncentral t, with the degrees of freedom of the one that gives the same 95 % interval.

    Args:
        of_seeds: [contrasts] the variance of their mean over seeds: `seeds_variance` over the number of seeds.
        of_examples: [contrasts] `examples_variance`; NaN: none, as in `of_seeds`.
        seeds_count: [contrasts].
    """
    half = half_widths(of_seeds, of_examples, np.maximum(seeds_count - 1, 1), CONFIDENCE)
    error = _standard_error(of_seeds, of_examples)
    freedom = _degrees_of_freedom(half, error, seeds_count, CONFIDENCE)
    as_normal = ~(freedom < LIKE_NORMAL)
    student = np.where(as_normal, LIKE_NORMAL, freedom)
    noncentrality = special.nctdtrinc(student, 1 - POWER, stats.t.ppf(1 - ALPHA / 2, student))
    normal = stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)
    return np.asarray(np.where(as_normal, normal, noncentrality) * error)


def decided(found: pd.DataFrame, better: Better, *, exact: bool = False) -> pd.DataFrame:
    """Add `p_holm`, `verdict` and `test` to estimates that are one family: one measure, all that it is compared in.

    `test` tells which test the decision is by: `t`, `t and sign flip`, or `none`.

    A difference is shown where its p-value, corrected by Holm (1979) over the family, is at most 5 %; where the exact
    test has seeds enough to get there, it has to agree. Fewer than `LEAST_SEEDS` seeds are too few. An `exact` measure,
    such as stored bytes, has no noise: its sign decides, where it is the same in all seeds.
    """
    counts = found["seeds_count"]
    if exact:
        low, high = np.sign(found["lowest"]), np.sign(found["highest"])
        signs = low.where(low == high, 0.0)
        nothing = dict.fromkeys(("p", "p_exact", "p_holm", "minimum_detectable"), np.nan)
        ends = {"low": found["lowest"], "high": found["highest"]}
        return found.assign(**nothing, **ends, verdict=_verdicts(signs, better, counts > 0), test="none")
    tested = (counts >= LEAST_SEEDS) & found["p"].notna()
    family = max(int(tested.sum()), 1)
    both = tested & found["p_exact"].notna() & (2.0 ** (1 - counts) <= ALPHA / family)
    p = found["p"].where(~both, found[["p", "p_exact"]].max(axis=1))
    p_holm = pd.Series(np.nan, found.index)
    if tested.any():
        p_holm[tested] = holm(p[tested].to_numpy(float))
    signs = np.sign(found["estimate"]).where(p_holm <= ALPHA, 0.0)
    tests: np.ndarray = np.select([found["p"].isna(), both], ["none", "t and sign flip"], "t")
    return found.assign(p_holm=p_holm, verdict=_verdicts(signs, better, tested), test=tests)


def holm(p: np.ndarray) -> np.ndarray:
    """Correct the p-values of a family (Holm 1979): where nothing differs, any of them is below 5 % in at most 5 %.

    It is statsmodels' `multipletests`, which collects garbage at every call, and is too slow for that.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def _verdicts(signs: Iterable[float], better: Better, enough: Iterable[bool]) -> np.ndarray:
    verdicts = [_verdict(sign, better, is_enough) for sign, is_enough in zip(signs, enough, strict=True)]
    return np.array(verdicts, dtype=object)


def _verdict(sign: float, better: Better, enough: bool) -> Verdict:
    if not enough:
        return "too few runs"
    if sign == 0:
        return "no difference shown"
    return "better" if (sign > 0) == (better == "higher") else "worse"


def _matrix(contrasts: Sequence[Contrast], cells: int) -> sparse.csr_array:
    rows = [row for row, contrast in enumerate(contrasts) for _ in contrast.cells]
    columns = [cell for contrast in contrasts for cell in contrast.cells]
    weights = [weight for contrast in contrasts for weight in contrast.weights]
    return sparse.csr_array((weights, (rows, columns)), shape=(len(contrasts), cells))


def _meets(weights: sparse.csr_array, missing: np.ndarray) -> np.ndarray:
    """Tell for each contrast, and each column of `missing`, [cells, columns], whether one of its cells is missing."""
    return np.asarray((abs(weights) @ missing.astype(float)) > 0)


def _examples_variance(sample: Sample, weights: sparse.csr_array, known: np.ndarray) -> np.ndarray:
    """Return the variance that all seeds share, since they are scored on the same test examples; NaN where unknown.

    It is that of the seeds whose examples are there. With one seed, it is all of what its examples add.
    """
    if sample.resampled is None:
        return np.full(len(known), np.nan)
    resamples, cells, seeds = sample.resampled.shape
    missing = np.isnan(sample.resampled[:1]).any(axis=0)
    flat = np.nan_to_num(sample.resampled.transpose(1, 2, 0)).reshape(cells, -1)
    known = known.copy()
    known[_meets(weights, missing)] = False
    usable = np.asarray(known.any(axis=1))
    found = np.full(len(known), np.nan)
    for start in range(0, len(known), AT_ONCE):
        rows = start + np.flatnonzero(usable[start : start + AT_ONCE])
        if len(rows):
            found[rows] = _shared_variance((weights[rows] @ flat).reshape(-1, seeds, resamples), known[rows])
    return found


def _shared_variance(resampled: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the variance of the mean over known seeds, less the part that is each seed's own.

    resampled: [contrasts, seeds, resamples]. known: [contrasts, seeds].
    """
    n = known.sum(axis=1)
    mean = np.einsum("csr,cs->cr", resampled, known / n[:, None])
    resampled -= mean[:, None]
    own = (resampled.var(axis=2, ddof=1) * known).sum(axis=1) / (n * np.maximum(n - 1, 1))
    return np.asarray(np.maximum(0.0, mean.var(axis=1, ddof=1) - own))


def _standard_error(of_seeds: np.ndarray, of_examples: np.ndarray) -> np.ndarray:
    # What is not known adds nothing: one seed shows no spread of seeds, and a measure may have no examples.
    unknown = np.isnan(of_seeds) & np.isnan(of_examples)
    return np.where(unknown, np.nan, np.sqrt(np.nan_to_num(of_seeds) + np.nan_to_num(of_examples)))


def _degrees_of_freedom(half: np.ndarray, error: np.ndarray, n: np.ndarray, confidence: float) -> np.ndarray:
    """Return those with which Student's t is `half` / `error` at this confidence; where there is no error, n - 1."""
    tail = 1 - (1 - confidence) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        critical = half / error
    normal = stats.norm.ppf(tail) * (1 + 1e-9)
    student = special.stdtridf(tail, np.where(critical > normal, critical, 2 * normal))
    least = np.where(n > 1, n - 1.0, inf)
    return np.asarray(np.where(np.isnan(critical), least, np.where(critical > normal, np.maximum(student, least), inf)))


def _sign_flip_p(per_seed: np.ndarray, n: np.ndarray) -> np.ndarray:
    found = np.full(len(n), np.nan)
    for row in np.flatnonzero((n <= MOST_FLIPPED) & (2.0 ** (1 - n) <= ALPHA)):
        values = per_seed[row][~np.isnan(per_seed[row])]
        flipped = np.abs(values[0] + _signs(len(values) - 1) @ values[1:])  # the other half are their negatives
        found[row] = (flipped >= flipped[0] * (1 - 1e-12)).mean()
    return found


@lru_cache(maxsize=2)
def _signs(count: int) -> np.ndarray:
    """Return all rows of `count` signs, the first one without a minus."""
    return np.array(list(product((1.0, -1.0), repeat=count)))
