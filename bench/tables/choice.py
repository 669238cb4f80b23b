"""The rules of a recommendation: of the cells whose accuracy is within a margin of the best, the fastest that fits.

The best is the candidate with the highest mean accuracy, of those with `LEAST_SEEDS` seeds where there are such. Every
other one is compared with it by seed and test example (bench.tables.contrasts), with 95 % intervals, and is

* `within` the margin where its whole interval is,
* `lost` where none of its interval is,
* `open` otherwise, and where the two share fewer than `LEAST_SEEDS` seeds.

The best of the means was lucky, most likely, which makes the others look worse than they are. So `within` errs on the
safe side: with standard errors that are alike, these lower ends hold for the truly best cell too, whichever it is (Hsu
1984, "Constrained simultaneous confidence intervals for multiple comparisons with the best").

The intervals hold for all comparisons together that the answer rests on (Bonferroni): those with the best, and, where
the choice is another cell, those with the choice as well. So where these rules first come to another cell than the
best, they are applied again with the wider intervals of both.

The choice is the fastest of those that are within, by mean tokens/s; of several that are not shown to be slower than
it, the one with the lowest train peak, then with the least stored, then the baseline, then by name. It is no answer
while another cell may deserve it instead, for one of the reasons in `Reason`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from bench.matrix.cards import Card
from bench.matrix.fit import Fit
from bench.tables.behrens_fisher import half_widths
from bench.tables.candidates import fit_of, needs, out_of_question, parameters_of
from bench.tables.contrasts import ALPHA, LEAST_SEEDS, POWER, difference, estimates
from bench.tables.evidence import ACCURACY, SPEED, Evidence, executions

MOST_SEEDS = 100

# Why another cell may deserve the choice. quality: it is faster, and open. better: it is not shown not to be better
# than the choice by more than the margin. fit: it is faster, and not known to fit. speed: it is within the margin, and
# faster though it ran in another way, so that the two cannot be compared.
Reason = Literal["quality", "better", "fit", "speed"]


@dataclass(frozen=True)
class Differences:
    """The accuracy of cells less that of one cell, in points; [cells], NaN for that cell and those left out."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds_count: np.ndarray
    seeds_variance: np.ndarray
    examples_variance: np.ndarray

    @property
    def enough(self) -> np.ndarray:
        """Tell where there are seeds enough for an interval to count."""
        return np.asarray((self.seeds_count >= LEAST_SEEDS) & np.isfinite(self.low))


@dataclass(frozen=True)
class Choice:
    """What the rules come to on one card with one margin; cells by number.

    fits: None for cells that cannot be chosen at all. family: those that fit, or may. comparisons_count: those that the
    intervals hold for together. order: those within the margin, the winner first, then by speed. tied: the fastest and
    those not shown to be slower, where there are such. other_execution: within the margin, and not comparable in speed.
    open: those that keep the choice from being an answer, with the reason.
    """

    card: Card | None
    margin: float
    fits: tuple[Fit | None, ...]
    family: tuple[int, ...] = ()
    best: int | None = None
    comparisons_count: int = 0
    to_best: Differences | None = None
    order: tuple[int, ...] = ()
    tied: tuple[int, ...] = ()
    other_execution: frozenset[int] = frozenset()
    open: tuple[tuple[int, Reason], ...] = ()

    @property
    def winner(self) -> int | None:
        return self.order[0] if self.order else None

    @property
    def answered(self) -> bool:
        return bool(self.order) and not self.open

    @property
    def compared(self) -> bool:
        """Tell whether there is a comparison with an interval that counts."""
        return self.to_best is not None and bool(self.to_best.enough.any())


class Chooser:
    """Applies the rules to one evidence, on any card and with any margin; cells are compared once."""

    def __init__(self, evidence: Evidence) -> None:
        cells = evidence.cells
        self.evidence = evidence
        self.ids = [str(id_) for id_ in cells["id"]]
        self.out = out_of_question(evidence)
        self.needs = needs(evidence)
        self.parameters = parameters_of(evidence)
        self.executions = executions(evidence)
        self.accuracy = cells["accuracy_after"].to_numpy(float)
        self.speed = cells["tokens_per_s"].to_numpy(float)
        self.seeds_count = (~np.isnan(evidence.samples[ACCURACY.name].observed)).sum(axis=1)
        thrift = cells[["train_peak_bytes", "stored_bytes"]].fillna(math.inf).assign(other=~cells["is_baseline"])
        self._thrift = list(thrift.assign(id=self.ids).itertuples(index=False, name=None))
        self._differences: dict[tuple[int, tuple[int, ...], int], Differences] = {}
        self._slower: dict[tuple[int, ...], pd.DataFrame] = {}

    def choose(self, card: Card | None, margin: float) -> Choice:
        """Apply the rules; `margin` in points."""
        fits = tuple(None if out else self.fit(number, card) for number, out in enumerate(self.out))
        sure = np.array([fit is not None and fit.fits is True for fit in fits])
        unsure = np.array([fit is not None and fit.fits is None for fit in fits])
        if not sure.any():
            return Choice(card, margin, fits)
        enough = sure & (self.seeds_count >= LEAST_SEEDS)
        best = int(np.where(enough if enough.any() else sure, self.accuracy, -np.inf).argmax())
        family = tuple(np.flatnonzero(sure | unsure).tolist())
        found = Choice(card, margin, fits, family, best)
        with_best, with_both = comparisons_counts(family)
        first = self._chosen(found, best, sure, unsure, with_best)
        return first if first.winner == best else self._chosen(found, best, sure, unsure, with_both)

    def _chosen(self, found: Choice, best: int, sure: np.ndarray, unsure: np.ndarray, comparisons_count: int) -> Choice:
        """Apply the rules to the cells that fit (`sure`), or may, once the best of these is found."""
        family, margin = found.family, found.margin
        to_best = self.differences(best, family, comparisons_count)
        within = sure & to_best.enough & (to_best.low >= -margin)
        lost = to_best.enough & (to_best.high < -margin)
        within[best] = True

        shown = np.flatnonzero(within)
        kinds = self.executions[shown].tolist()
        alike = self.executions == max(dict.fromkeys(kinds), key=kinds.count)
        by_speed = sorted(shown[alike[shown]].tolist(), key=lambda number: (-self.speed[number], self._thrift[number]))
        tied = self._tied(by_speed)
        order = [*tied, *(number for number in by_speed if number not in tied)]
        faster = self.speed > self.speed[by_speed[0]]
        doubts: dict[Reason, np.ndarray] = {
            "quality": sure & faster & ~within & ~lost,
            "better": sure & ~lost & self._may_be_better(order[0], family, margin, comparisons_count),
            "speed": within & faster & ~alike,
            "fit": unsure & faster & ~lost,
        }
        opened: dict[int, Reason] = {}
        for reason, doubted in doubts.items():
            for number in np.flatnonzero(doubted).tolist():
                opened.setdefault(number, reason)
        return replace(
            found,
            comparisons_count=comparisons_count,
            to_best=to_best,
            order=tuple(order),
            tied=tuple(tied) if len(tied) > 1 else (),
            other_execution=frozenset(shown.tolist()) - frozenset(order),
            open=tuple(opened.items()),
        )

    def fit(self, number: int, card: Card | None) -> Fit:
        return Fit(True, None) if card is None else fit_of(self.needs[number], self.parameters[number], card)

    def differences(self, against: int, family: tuple[int, ...], comparisons_count: int) -> Differences:
        """Compare the accuracy of a family of cells with that of one of them.

        The intervals hold for so many comparisons together.
        """
        key = (against, family, comparisons_count)
        if key not in self._differences:
            self._differences[key] = self._compared(*key)
        return self._differences[key]

    def _compared(self, against: int, family: tuple[int, ...], comparisons_count: int) -> Differences:
        others = [number for number in family if number != against]
        arrays = {name: np.full(len(self.ids), np.nan) for name in Differences.__dataclass_fields__}
        if others:
            contrasts = [difference(number, against) for number in others]
            found = estimates(self.evidence.samples[ACCURACY.name], contrasts, 1 - ALPHA / comparisons_count)
            scale = ACCURACY.scale
            for name in ("estimate", "low", "high"):
                arrays[name][others] = scale * found[name]
            arrays["seeds_count"][others] = found["seeds_count"]
            arrays["seeds_variance"][others] = scale**2 * found["seeds_variance"]
            arrays["examples_variance"][others] = scale**2 * found["examples_variance"]
        return Differences(**arrays)

    def _tied(self, by_speed: Sequence[int]) -> list[int]:
        """Return the fastest and those that are not shown to be slower, the thriftiest first."""
        fastest, *others = by_speed
        key = tuple(by_speed)
        if key not in self._slower:
            contrasts = [difference(number, fastest) for number in others]
            self._slower[key] = self.evidence.found(SPEED, contrasts) if others else pd.DataFrame({"verdict": []})
        verdicts = self._slower[key]["verdict"]
        alike = [number for number, verdict in zip(others, verdicts, strict=True) if verdict != "worse"]
        return sorted([fastest, *alike], key=self._thrift.__getitem__)

    def _may_be_better(self, winner: int, family: tuple[int, ...], margin: float, comparisons_count: int) -> np.ndarray:
        """Tell which cells are not shown not to be better than the winner by more than the margin.

        Of a cell with too few seeds nothing is shown: it stands back behind a winner that has enough. One whose seeds
        all differ by the same does not, though it has no interval either.
        """
        found = self.differences(winner, family, comparisons_count)
        few = (self.seeds_count[winner] < LEAST_SEEDS) | (found.seeds_count >= LEAST_SEEDS)
        not_shown = np.isin(np.arange(len(self.ids)), family) & few
        not_shown[winner] = False
        return np.where(found.enough, found.high > margin, not_shown)


def comparisons_counts(family: Sequence[int]) -> tuple[int, int]:
    """Return how many comparisons an answer rests on where the choice is the best, and where it is another cell.

    Each of the two is compared with all others; the one between them is the same.
    """
    with_best = max(len(family) - 1, 0)
    return with_best, max(2 * with_best - 1, 0)


def seeds_needed(
    gap: np.ndarray, seeds_variance: np.ndarray, examples_variance: np.ndarray, comparisons_count: int
) -> np.ndarray:
    """Return how many seeds tell on which side of the margin differences lie that are `gap` away from it.

    Both variances are of one contrast, as `estimates` has them, in squares of the gap's unit; the numbers are the least
    that tell it with a probability of 80 %. NaN where no `MOST_SEEDS` do, or the variance of seeds is not known.
    """
    few, many = np.full(gap.shape, LEAST_SEEDS), np.full(gap.shape, MOST_SEEDS)
    reached = told_apart(many, seeds_variance, examples_variance, comparisons_count) <= gap
    while (few < many).any():
        middle = (few + many) // 2
        enough = told_apart(middle, seeds_variance, examples_variance, comparisons_count) <= gap
        few, many = np.where(enough, few, np.minimum(middle + 1, many)), np.where(enough, middle, many)
    return np.where(reached, few, np.nan)


def told_apart(
    seeds_count: np.ndarray, seeds_variance: np.ndarray, examples_variance: np.ndarray, comparisons_count: int
) -> np.ndarray:
    """Return how far from the margin a difference must be so that `seeds_count` seeds tell it with 80 % probability.

    That is half the width of the simultaneous interval, as `estimates` makes it, and the quantile of Student's t for
    the probability, in standard errors, with one degree of freedom less than there are seeds. NaN where the variance of
    seeds is not known.
    """
    of_seeds, freedom = seeds_variance / seeds_count, seeds_count - 1
    half = half_widths(of_seeds, examples_variance, freedom, 1 - ALPHA / max(comparisons_count, 1))
    error = np.sqrt(of_seeds + np.nan_to_num(examples_variance))
    return np.asarray(half + stats.t.ppf(POWER, freedom) * error)
