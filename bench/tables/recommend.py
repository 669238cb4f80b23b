"""Which cell to fine-tune with, what speaks for it, and what would change the answer; the rules are in `choice`."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.errors import BenchError
from bench.matrix.cards import CARDS, Card, card_named
from bench.matrix.limits import read_cards
from bench.matrix.wording import quoted
from bench.tables.candidates import Out, Source
from bench.tables.choice import (
    MOST_SEEDS,
    Choice,
    Chooser,
    Differences,
    Reason,
    comparisons_counts,
    seeds_needed,
    told_apart,
)
from bench.tables.comparable import distinct
from bench.tables.contrasts import Verdict, difference
from bench.tables.evidence import ACCURACY, SPEED, Evidence, gather
from bench.tables.figures import listed
from bench.tables.load import load_results, result_folders
from bench.tables.pool import on_cpu
from bench.tables.table import entries
from bench.tables.wilson import of_cells

MARGIN_POINTS = 0.5
MOST_POINTS = 100
STEP_POINTS = 0.01  # margins that would change the answer are told in these
MOST_MARGINS = 200  # that are tried
SMALLER = 0.95  # a card with less than this share of another's memory is a smaller one, not a version of it

Outcome = Literal["best", "within", "open", "lost", "may not fit", "does not fit"] | Out
Where = Literal["no limit", "larger card", "smaller card", "smallest card", "larger margin", "smaller margin"]

OF_SEEDS_ALONE = (
    "There are no files of examples, so the intervals of accuracy are of the seeds alone: they tell nothing of what "
    "other test examples would have shown."
)
_MARGIN = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*(?:pts?|points?)?", re.ASCII | re.IGNORECASE)
# What some drivers put behind a card's name, as in `NVIDIA H100 80GB HBM3`.
_MEMORY = re.compile(r"\s+(?:[0-9]+GB|HBM[0-9]e?)\b", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,2}(?:[.,][0-9]{1,9})?(?![0-9])", re.ASCII)


@dataclass(frozen=True)
class Standing:
    """Where one cell stands, by its means over seeds; None for what is not known.

    accuracy_half_width_points: of its own 95 % interval. difference_*: of its accuracy to the best one's, with the
    interval that holds for all comparisons together. speed_*_percent: of its tokens/s to the winner's, with a 95 %
    interval, for cells within the margin. need_bytes: the least memory of a card, by `need_source`. headroom_bytes: on
    the card that was asked for. reason: why it cannot be chosen, whatever its accuracy.
    """

    id: str
    key: str
    outcome: Outcome
    reason: str | None
    seeds_count: int
    accuracy_points: float | None
    accuracy_half_width_points: float | None
    tokens_per_s: float | None
    train_peak_bytes: float | None
    stored_bytes: float | None
    need_bytes: int | None
    need_source: Source | None
    headroom_bytes: int | None
    difference_points: float | None = None
    difference_low_points: float | None = None
    difference_high_points: float | None = None
    speed_change_percent: float | None = None
    speed_low_percent: float | None = None
    speed_high_percent: float | None = None
    speed_verdict: Verdict | None = None


@dataclass(frozen=True)
class Doubt:
    """One cell that may deserve the choice instead, for a `Reason`; `difference_*` is of its accuracy to `against`'s.

    seeds_count: that both have. seeds_needed: so many in all settle it with a probability of 80 %, if the difference
    and the variances are as estimated; None where no `MOST_SEEDS` do, where the variance of seeds is not known
    (`margin_points` is None too), and where seeds are not what is missing. margin_points: the least margin that
    `MOST_SEEDS` seeds can show to be kept: by the choice where the cell may be better, and otherwise by the cell.
    """

    id: str
    key: str
    reason: Reason
    against: str
    tokens_per_s: float
    seeds_count: int
    difference_points: float | None = None
    difference_low_points: float | None = None
    difference_high_points: float | None = None
    seeds_needed: int | None = None
    margin_points: float | None = None

    @property
    def of_accuracy(self) -> bool:
        """Tell whether it is a doubt that seeds and test examples settle, if there are enough."""
        return self.reason in ("quality", "better")


@dataclass(frozen=True)
class Change:
    """What is chosen under another limit or margin: the same rules, applied again.

    winner_fits: whether the choice that was asked for fits there; None where it is not known.
    """

    where: Where
    card: str | None
    memory_bytes: int | None
    margin_points: float
    winner: str | None
    answered: bool
    winner_fits: bool | None


@dataclass(frozen=True)
class Recommendation:
    """The choice, what speaks for it, and what would change it.

    winner: the answer where `answered`, or else what is shown so far; None where no cell can be chosen. second: the
    next fastest that is within the margin. best: the id of the cell that accuracy is compared with. tied: ids, the
    winner's among them, that are not shown to differ in speed. others: all cells but the winner. comparisons_count:
    those that the intervals of accuracy hold for together. speeds_from: the GPUs, or CPUs, that tokens/s were measured
    on; `speeds_from_card`: whether that is the card that was asked for, None where none was. host_memory: train peaks
    are of the process, for want of a GPU.
    """

    matrix: str
    answered: bool
    card: str | None
    memory_bytes: int | None
    margin_points: float
    winner: Standing | None
    second: Standing | None
    best: str | None
    tied: tuple[str, ...]
    others: tuple[Standing, ...]
    doubts: tuple[Doubt, ...]
    changes: tuple[Change, ...]
    cells_count: int
    seeds_count: int
    examples_count: int
    comparisons_count: int
    speeds_from: tuple[str, ...]
    speeds_from_card: bool | None
    host_memory: bool
    notes: tuple[str, ...]

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds in all settle every doubt of accuracy; None where there is none, or one that they do not."""
        needed = [doubt.seeds_needed or 0 for doubt in self.doubts if doubt.of_accuracy]
        return max(needed) if needed and all(needed) else None

    @property
    def not_by_seeds(self) -> tuple[str, ...]:
        """The ids of cells whose doubt more seeds are not known to settle."""
        return tuple(doubt.id for doubt in self.doubts if doubt.seeds_needed is None)


def read_margin(text: str) -> float:
    """Read points of accuracy: `0.5pt`, `0.5 points` or `0.5`.

    Raises:
        BenchError: it is none, or more than there are.
    """
    match = _MARGIN.fullmatch(text.strip())
    if match and float(match[1]) <= MOST_POINTS:
        return float(match[1])
    number = _NUMBER.match(text.strip())
    meant = number[0].replace(",", ".") if number else "0.5"
    fix = f"write {meant}pt: points of accuracy, of which 85.5 % has 0.5 more than 85.0 %"
    raise BenchError(f"--quality-within: {quoted(text)} is no margin", fix)


def read_limit(text: str) -> Card:
    """Read the name of a card or a size, as `plan --card` does.

    Raises:
        BenchError: it is neither.
    """
    (card,) = read_cards([text], "--fits")
    return card


def gather_one(path: str | os.PathLike[str]) -> Evidence:
    """Gather the one result that there is at `path`.

    Raises:
        BenchError: there is none, or more than one, or it has no record yet.
    """
    folders = result_folders(path)
    if len(folders) > 1:
        what = f"{path} holds {len(folders):,} results, and cells of one are compared: {listed(folders)}"
        raise BenchError(what, "give one of these folders")
    frame = load_results(folders[0])
    if frame.empty:
        raise BenchError(f"{folders[0]} holds no record yet", "run its matrix to go on")
    return gather(frame)


def recommend(evidence: Evidence, *, card: Card | None = None, margin: float = MARGIN_POINTS) -> Recommendation:
    """Choose a cell of one result.

    card: what it has to fit; None for no limit. margin: points of accuracy that may be given up for speed.

    Raises:
        BenchError: no cell has an accuracy to judge its quality by.
    """
    chooser = Chooser(evidence)
    lacking = [out.reason for out in chooser.out if out and out.outcome == "no figure"]
    if lacking and all(chooser.out):
        what = f"{evidence.runs['result'].iloc[0]}: nothing to choose by: {lacking[0]}"
        raise BenchError(what, "run a matrix with pretrained weights and test examples")
    choice = chooser.choose(card, margin)
    found = standings(chooser, choice)
    speeds_from = _hardware(chooser)
    return Recommendation(
        matrix=str(evidence.runs["matrix"].iloc[0]),
        answered=choice.answered,
        card=card.name if card else None,
        memory_bytes=card.memory_bytes if card else None,
        margin_points=margin,
        winner=None if choice.winner is None else found[choice.winner],
        second=found[choice.order[1]] if len(choice.order) > 1 else None,
        best=None if choice.best is None else chooser.ids[choice.best],
        tied=tuple(chooser.ids[number] for number in choice.tied),
        others=tuple(standing for number, standing in enumerate(found) if number != choice.winner),
        doubts=tuple(_doubts(chooser, choice)),
        changes=(*_limits(chooser, choice), *_margins(chooser, choice)),
        cells_count=len(found),
        seeds_count=len(evidence.seeds),
        examples_count=int(np.nan_to_num(evidence.cells["scored_count"].max())),
        comparisons_count=choice.comparisons_count,
        speeds_from=speeds_from,
        speeds_from_card=None if card is None else _is_card(card, speeds_from),
        host_memory=bool(on_cpu(evidence.runs).any()),
        notes=(*evidence.notes, *([OF_SEEDS_ALONE] if choice.compared and not evidence.examples else [])),
    )


def standings(chooser: Chooser, choice: Choice) -> list[Standing]:
    """Say of every cell where it stands, in the order of the evidence."""
    evidence = chooser.evidence
    cells = entries(evidence.cells[["key", "accuracy_after", "tokens_per_s", "train_peak_bytes", "stored_bytes"]])
    widths, _ = of_cells(evidence, ACCURACY, evidence.cells["accuracy_after"], evidence.cells["scored_count"])
    half = ACCURACY.scale * widths.to_numpy()
    speeds = _speeds(chooser, choice)
    return [
        Standing(
            id=chooser.ids[number],
            key=str(row["key"]),
            outcome=_outcome(chooser, choice, number),
            reason=_reason(chooser, choice, number),
            seeds_count=int(chooser.seeds_count[number]),
            accuracy_points=_known(ACCURACY.scale * row["accuracy_after"]),
            accuracy_half_width_points=_known(half[number]),
            tokens_per_s=_known(row["tokens_per_s"]),
            train_peak_bytes=_known(row["train_peak_bytes"]),
            stored_bytes=_known(row["stored_bytes"]),
            need_bytes=chooser.needs[number].bytes,
            need_source=chooser.needs[number].source,
            headroom_bytes=fit.headroom_bytes if (fit := choice.fits[number]) else None,
            **_difference(choice.to_best, number),
            **speeds.get(number, {}),
        )
        for number, row in enumerate(cells)
    ]


def _hardware(chooser: Chooser) -> tuple[str, ...]:
    """Name what the cells that can be chosen ran on; it is the same for all, where all know it."""
    cells, runs = chooser.evidence.cells, chooser.evidence.runs
    keys = cells["key"][[out is None for out in chooser.out]]
    timed = runs[(runs["status"] == "ok") & runs["key"].isin(keys)]
    return (*distinct(timed, "gpu_name"), *(f"CPU {name}" for name in distinct(timed[on_cpu(timed)], "cpu")))


def _is_card(card: Card, hardware: tuple[str, ...]) -> bool:
    names = [{card_named(name), card_named(_MEMORY.sub("", name))} for name in hardware]
    return bool(names) and all(card.name in spelled for spelled in names)


def _outcome(chooser: Chooser, choice: Choice, number: int) -> Outcome:
    fit, out = choice.fits[number], chooser.out[number]
    if out:
        return out.outcome
    if fit is None or not fit.fits:
        return "does not fit" if fit is None or fit.fits is False else "may not fit"
    if number == choice.best:
        return "best"
    if choice.to_best is None or number in choice.order or number in choice.other_execution:
        return "within"
    return "lost" if choice.to_best.enough[number] and choice.to_best.high[number] < -choice.margin else "open"


def _reason(chooser: Chooser, choice: Choice, number: int) -> str | None:
    fit, out = choice.fits[number], chooser.out[number]
    if out:
        return out.reason
    if number in choice.other_execution:
        return f"ran as {chooser.executions[number]}, the choice as {chooser.executions[choice.winner]}"
    return fit.reason if fit else None


def _speeds(chooser: Chooser, choice: Choice) -> dict[int, dict[str, Any]]:
    if len(choice.order) < 2:
        return {}
    winner, *others = choice.order
    found = chooser.evidence.found(SPEED, [difference(number, winner) for number in others])
    return {
        number: {
            "speed_change_percent": _known(row["estimate"]),
            "speed_low_percent": _known(row["low"]),
            "speed_high_percent": _known(row["high"]),
            "speed_verdict": row["verdict"],
        }
        for number, row in zip(others, entries(found), strict=True)
    }


def _doubts(chooser: Chooser, choice: Choice) -> Iterator[Doubt]:
    if choice.winner is None or choice.best is None:
        return
    keys = chooser.evidence.cells["key"].tolist()
    for reason in dict.fromkeys(reason for _, reason in choice.open):
        numbers = [number for number, why in choice.open if why == reason]
        against = choice.winner if reason == "better" else choice.best
        found = chooser.differences(against, choice.family, choice.comparisons_count)
        # A faster cell that is shown to be within the margin is the choice, and is then compared with all others too.
        count = comparisons_counts(choice.family)[1] if reason == "quality" else choice.comparisons_count
        # What the choice gives up against the cell, or the cell against the best: to be shown to be below the margin.
        given_up = found.estimate[numbers] * (1 if reason == "better" else -1)
        variances = found.seeds_variance[numbers], found.examples_variance[numbers]
        needed = seeds_needed(abs(choice.margin - given_up), *variances, count)
        needed = np.where(found.enough[numbers], needed, np.nan)
        widest = told_apart(np.full(given_up.shape, MOST_SEEDS), *variances, count)
        for place, number in enumerate(numbers):
            of_accuracy = reason in ("quality", "better")
            yield Doubt(
                id=chooser.ids[number],
                key=str(keys[number]),
                reason=reason,
                against=chooser.ids[against],
                tokens_per_s=float(chooser.speed[number]),
                seeds_count=int(np.nan_to_num(found.seeds_count[number])),
                seeds_needed=int(needed[place]) if of_accuracy and math.isfinite(needed[place]) else None,
                margin_points=_known(max(0.0, given_up[place] + widest[place])) if of_accuracy else None,
                **_difference(found, number),
            )


def _limits(chooser: Chooser, choice: Choice) -> Iterator[Change]:
    """Say what is chosen without the limit, and on cards of more and of less memory."""
    if not any(need.bytes for need in chooser.needs):
        return
    by_memory = sorted(CARDS.values(), key=lambda card: card.memory_bytes)
    if choice.card is None:
        smallest = next((card for card in by_memory if _fits(chooser, choice.winner, card)), None)
        if smallest:
            yield _change("smallest card", chooser.choose(smallest, choice.margin), choice, chooser)
        return
    memory_bytes = choice.card.memory_bytes
    unlimited = chooser.choose(None, choice.margin)
    if unlimited.family:
        yield _change("no limit", unlimited, choice, chooser)
    # Cards that run less than this one would change more than the memory.
    alike = [card for card in by_memory if card.has_bfloat16 >= choice.card.has_bfloat16]
    larger = (chooser.choose(card, choice.margin) for card in alike if card.memory_bytes > memory_bytes)
    if found := next((other for other in larger if other.winner is not None and _differs(other, choice)), None):
        yield _change("larger card", found, choice, chooser)
    smaller = next((card for card in reversed(alike) if card.memory_bytes < SMALLER * memory_bytes), None)
    if smaller and choice.winner is not None:
        yield _change("smaller card", chooser.choose(smaller, choice.margin), choice, chooser)


def _margins(chooser: Chooser, choice: Choice) -> Iterator[Change]:
    """Find the next larger margin with another answer, and the largest smaller one without this answer."""
    if choice.winner is None or choice.best is None or len(choice.family) < 2:
        return
    waiting: set[float] = set()
    for count in comparisons_counts(choice.family):
        to_best = chooser.differences(choice.best, choice.family, count)
        waiting |= _critical(-to_best.low) | _critical(to_best.high)
    tried = choice.margin
    for _ in range(MOST_MARGINS):
        tried = min((margin for margin in waiting if tried < margin <= MOST_POINTS), default=math.inf)
        if tried == math.inf:
            break
        found = chooser.choose(choice.card, tried)
        if found.answered and _differs(found, choice):
            yield _change("larger margin", found, choice, chooser)
            break
        waiting |= _critical(_ruled_out(chooser, found, [number for number, why in found.open if why == "better"]))
    if choice.answered:
        rivals = [number for number in choice.family if (fit := choice.fits[number]) and fit.fits]
        given_up = max(_critical(_ruled_out(chooser, choice, rivals)), default=0.0)
        if STEP_POINTS <= given_up <= choice.margin:
            found = chooser.choose(choice.card, round(given_up - STEP_POINTS, 2))
            if _differs(found, choice):
                yield _change("smaller margin", found, choice, chooser)


def _ruled_out(chooser: Chooser, choice: Choice, numbers: list[int]) -> np.ndarray:
    """Return by how many points, at most, cells are better than the choice; NaN where nothing is shown."""
    if choice.winner is None:
        return np.array([])
    found = chooser.differences(choice.winner, choice.family, choice.comparisons_count)
    return np.where(found.enough, found.high, np.nan)[numbers]


def _critical(margins: Iterable[float]) -> set[float]:
    """Round margins up to what is told of them."""
    return {round(math.ceil(margin / STEP_POINTS) * STEP_POINTS, 2) for margin in margins if math.isfinite(margin)}


def _differs(found: Choice, choice: Choice) -> bool:
    return (found.winner, found.answered) != (choice.winner, choice.answered)


def _change(where: Where, found: Choice, choice: Choice, chooser: Chooser) -> Change:
    return Change(
        where=where,
        card=found.card.name if found.card else None,
        memory_bytes=found.card.memory_bytes if found.card else None,
        margin_points=found.margin,
        winner=None if found.winner is None else chooser.ids[found.winner],
        answered=found.answered,
        winner_fits=_fits(chooser, choice.winner, found.card),
    )


def _fits(chooser: Chooser, number: int | None, card: Card | None) -> bool | None:
    return None if number is None else chooser.fit(number, card).fits


def _difference(found: Differences | None, number: int) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "difference_points": _known(found.estimate[number]),
        "difference_low_points": _known(found.low[number]),
        "difference_high_points": _known(found.high[number]),
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
