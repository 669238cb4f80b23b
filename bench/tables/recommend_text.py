"""A recommendation as a reader sees it in a terminal, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from bench.matrix.cards import CARDS
from bench.matrix.wording import counted, listing, short_float
from bench.protocol import finite
from bench.tables.choice import MOST_SEEDS, Reason
from bench.tables.contrasts import LEAST_SEEDS
from bench.tables.figures import GB, listed, number, signed, sized
from bench.tables.headroom import EXPLAINED, LACKING, size_text
from bench.tables.recommend import Change, Doubt, Outcome, Recommendation, Standing, Where
from bench.tables.table import printable

INDENT = 2  # of a paragraph, and of its lines beside the first
MOST_LINES = 24  # of cells, or of doubts; the rest is counted
NOT_REACHED = "the evidence does not reach"
NO_SPREAD = "the same in every seed, so that nothing tells how sure it is"
UNNAMED = "hardware that the records do not name"


@dataclass(frozen=True)
class Line:
    """A paragraph; one that is indented belongs to the one before that is not."""

    text: str
    indented: bool = False
    style: str = ""


def show_recommendation(found: Recommendation, console: Console) -> None:
    """Print a recommendation, the answer first, wrapped to the console."""
    for line in describe(found):
        first = " " * INDENT if line.indented else ""
        rest = first + " " * INDENT if line.indented else ""
        text = Text(printable(line.text), style=line.style)
        for place, wrapped in enumerate(text.wrap(console, console.width - len(rest))):
            wrapped.rstrip()
            console.print(Text(rest if place else first) + wrapped)


def to_json(found: Recommendation) -> str:
    """Write a recommendation as a JSON object, with `seeds_needed` for all doubts of accuracy together."""
    of_doubts = {"seeds_needed": found.seeds_needed, "not_by_seeds": found.not_by_seeds}
    return json.dumps(finite({**asdict(found), **of_doubts}), allow_nan=False, indent=1)


def describe(found: Recommendation) -> list[Line]:
    """Write a recommendation in words, the answer first."""
    sections = {
        "Why": _why(found),
        "In doubt": _doubts(found),
        "Second": _second(found),
        f"The others{_against(found)}": _others(found),
        "What would change this": [CHANGES[change.where](change, found) for change in found.changes],
    }
    lines = [Line(_headline(found), style="bold")]
    if found.winner:
        lines.append(Line(f"speeds: {_speeds(found)}"))
    for title, texts in sections.items():
        if shown := list(texts):
            lines += [Line(title, style="bold"), *(Line(text, indented=True) for text in shown)]
    lines.append(Line(_basis(found), style="dim"))
    return [*lines, *(Line(f"note: {note}", style="yellow") for note in (*found.notes, *_hints(found)))]


def _headline(found: Recommendation) -> str:
    card = _card(found.card, found.memory_bytes) if found.card else ""
    if found.winner is None:
        fitting = [one for one in found.others if one.outcome in ("does not fit", "may not fit")]
        why = f"none is known to fit {card}".rstrip() if fitting else "none ended with figures to compare"
        return f"No cell can be recommended: {why}"
    if found.answered and not found.comparisons_count:
        return f"{found.winner.id}: the only cell there is to choose{f' that fits {card}' if card else ''}"
    fastest = f"the fastest cell that {f'fits {card} and ' if card else ''}is {_within_margin(found)}"
    if found.answered:
        return f"{found.winner.id}: {fastest}"
    return f"{NOT_REACHED.capitalize()} to name {fastest}; so far: {found.winner.id}"


def _within_margin(found: Recommendation) -> str:
    return f"within {_points(found.margin_points)} of the best accuracy"


def _speeds(found: Recommendation) -> str:
    """Say where the speeds were measured, and that another card may order cells otherwise."""
    measured = f"measured on {listing(found.speeds_from, 'and') or UNNAMED}"
    if found.card is None or found.speeds_from_card:
        return measured
    card = size_text(found.card)
    if found.card in CARDS:
        return f"{measured}, not on {card}, where their order may differ"
    return f"{measured}; on another card, of {card}, their order may differ"


def _why(found: Recommendation) -> Iterator[str]:
    if found.winner is None:
        needs = [
            (one.need_bytes, one.id)
            for one in found.others
            if one.outcome == "does not fit" and one.need_bytes and not one.reason
        ]
        if needs:
            least, id_ = min(needs)
            yield f"{id_} needs the least: {sized(least)}"
        return
    winner = found.winner
    yield f"{winner.id}: {_figures(winner)}"
    if winner.need_bytes:
        left = f", which leaves {sized(winner.headroom_bytes)}" if winner.headroom_bytes is not None else ""
        yield f"needs {_need(winner)}{left}"
    if found.comparisons_count and winner.id == found.best:
        yield "its mean accuracy is the highest"
    elif winner.difference_points is not None:
        yield f"accuracy to that of {found.best}, the highest: {_difference(winner)}"
    if found.tied:
        others = [id_ for id_ in found.tied if id_ != winner.id]
        yield f"not shown to differ in speed: {listed(others)}; of these it has the lowest train peak, or is as low"


def _doubts(found: Recommendation) -> Iterator[str]:
    """Say what is in doubt: each reason once, and the cells that it holds for."""
    untold = [doubt for doubt in found.doubts if _too_few(doubt)]
    for reason in dict.fromkeys(doubt.reason for doubt in found.doubts if not _too_few(doubt)):
        of_reason = [doubt for doubt in found.doubts if doubt.reason == reason and not _too_few(doubt)]
        yield REASONS[reason](of_reason[0], found)
        yield from (f"{doubt.id}: {_doubt(doubt)}" for doubt in of_reason[:MOST_LINES])
        yield from _more(of_reason)
    yield from _grouped((doubt.id, f"too few runs: {counted(doubt.seeds_count, 'seed')}") for doubt in untold)
    judged = [doubt for doubt in found.doubts if doubt.of_accuracy]
    if judged:
        yield _seeds(judged, found)
    reasons = {doubt.reason for doubt in found.doubts}
    if beyond := [text for reason, text in BEYOND_SEEDS.items() if reason in reasons]:
        yield f"more seeds do not tell {listing(beyond)}"


def _too_few(doubt: Doubt) -> bool:
    return doubt.of_accuracy and doubt.seeds_count < LEAST_SEEDS


REASONS: dict[Reason, Callable[[Doubt, Recommendation], str]] = {
    "quality": lambda doubt, found: (
        f"faster, and not told whether they are within {_points(found.margin_points)} of {doubt.against}:"
    ),
    "better": lambda doubt, found: (
        f"may be better than {doubt.against} by more than {_points(found.margin_points)}, which would then be too far "
        "from the best:"
    ),
    "speed": lambda doubt, found: "faster, but their steps ran in another way; run all with one execution to compare:",
    "fit": lambda doubt, found: f"faster, and not known to fit; a run with vram_limit: {found.card} tells:",
}


# What more seeds do not tell.
BEYOND_SEEDS: dict[Reason, str] = {
    "speed": "which is faster of cells that ran in different ways",
    "fit": "which cells fit",
}


def _doubt(doubt: Doubt) -> str:
    speed = f"{number(doubt.tokens_per_s, 0)} tokens/s"
    if not doubt.of_accuracy:
        return speed
    interval = _interval(doubt.difference_points, doubt.difference_low_points, doubt.difference_high_points)
    if doubt.difference_low_points is None:
        return f"{speed}, {interval} points; {NO_SPREAD}"
    told = f"{doubt.seeds_needed} seeds tell" if doubt.seeds_needed else f"not even {MOST_SEEDS} seeds tell"
    return f"{speed}, {interval} points; {told}"


def _seeds(judged: Sequence[Doubt], found: Recommendation) -> str:
    """Say what would settle the doubts of accuracy."""
    if any(map(_too_few, judged)):
        how = _command(LEAST_SEEDS - found.seeds_count)
        return f"with {LEAST_SEEDS} seeds of every cell{how} it can be told how many settle this"
    if any(doubt.difference_low_points is None for doubt in judged):
        return f"with more seeds{_command(1)} it can be told how many settle this"
    if found.seeds_needed is None:
        bear = max(doubt.margin_points or 0.0 for doubt in judged)
        bear = min([bear, *(change.margin_points for change in found.changes if change.where == "larger margin")])
        return (
            f"{number(found.examples_count, 0)} test examples are too few to tell what is this close to the margin, "
            f"even with {MOST_SEEDS} seeds; they bear one of {number(math.ceil(bear * 10) / 10, 1)} points"
        )
    return (
        f"{found.seeds_needed} seeds in all{_command(found.seeds_needed - found.seeds_count)} tell each difference of "
        "accuracy with a probability of 80 %, if the differences and their variances are as they look now"
    )


def _command(more_seeds: int) -> str:
    return f" (qlora-bench run MATRIX --add-seeds {more_seeds})" if more_seeds > 0 else ""


def _second(found: Recommendation) -> Iterator[str]:
    if found.second:
        yield f"{found.second.id}: {_figures(found.second)}"
        winner = found.winner.id if found.winner else ""
        against = winner if winner == found.best else f"{winner} (accuracy: {found.best})"
        yield f"against {against}: {_within(found.second)}"
    elif found.winner and found.comparisons_count:
        yield "no other cell is shown to be within the margin"


def _others(found: Recommendation) -> Iterator[str]:
    told = {found.second.key if found.second else "", *(doubt.key for doubt in found.doubts)}
    others = [one for one in found.others if one.key not in told]
    larger = [one for one in others if one.outcome == "does not fit" and one.need_bytes and not one.reason]
    if len(larger) > 1:
        others = [one for one in others if one not in larger]
        yield f"{listed([one.id for one in larger])}: {_do_not_fit(larger, found)}"
    yield from _grouped((one.id, OUTCOMES[one.outcome](one, found)) for one in others)


def _against(found: Recommendation) -> str:
    speed = f"tokens/s: against {found.winner.id}; " if found.winner else ""
    return f" ({speed}accuracy: against that of {found.best})" if found.comparisons_count else ""


def _within(one: Standing) -> str:
    if one.speed_change_percent is None:
        return one.reason or "within the margin"
    speed = f"tokens/s {_interval(one.speed_change_percent, one.speed_low_percent, one.speed_high_percent)} %"
    shown = "" if one.speed_verdict in ("better", "worse") else f" ({one.speed_verdict})"
    accuracy = "" if one.difference_points is None else f"; accuracy {_difference(one)}"
    return f"{speed}{shown}{accuracy}"


def _hints(found: Recommendation) -> list[str]:
    """Say how cells that a card does not run could be made to run there."""
    reasons = [reason for reason in LACKING if any(one.reason == reason for one in found.others)]
    return [EXPLAINED[LACKING[reason]].removeprefix(f"{LACKING[reason]}: ") for reason in reasons]


def _does_not_fit(one: Standing, found: Recommendation) -> str:
    if one.reason:
        return f"{one.reason} on {found.card}"
    of = f", and the card has {sized(found.memory_bytes)}" if found.memory_bytes else ""
    return f"does not fit: needs {_need(one)}{of}"


def _do_not_fit(larger: Sequence[Standing], found: Recommendation) -> str:
    """Say it of several cells at once, each of which has its own need."""
    sources = listing(sorted({str(one.need_source) for one in larger}))
    ends = sorted(one.need_bytes or 0 for one in larger)
    least, most = (number(end / GB, 2) for end in (ends[0], ends[-1]))
    needs = f"{least} GB" if least == most else f"{least} to {most} GB"
    return f"do not fit: need {needs} ({sources}), and the card has {sized(_or_nan(found.memory_bytes))}"


def _may_not_fit(one: Standing) -> str:
    return f"may not fit: needs {_need(one)} or more" if one.need_bytes else "may not fit: its need is not known"


def _open(one: Standing) -> str:
    if one.seeds_count < LEAST_SEEDS or one.difference_points is None:
        return f"too few runs: {counted(one.seeds_count, 'seed')}"
    if one.difference_low_points is None:
        return f"accuracy not decided: {_difference(one)}, {NO_SPREAD}"
    return f"accuracy not decided: {_difference(one)}"


OUTCOMES: dict[Outcome, Callable[[Standing, Recommendation], str]] = {
    "best": lambda one, found: _within(one),
    "within": lambda one, found: _within(one),
    "open": lambda one, found: _open(one),
    "lost": lambda one, found: f"accuracy lost: {_difference(one)}",
    "may not fit": lambda one, found: _may_not_fit(one),
    "does not fit": _does_not_fit,
    "failed": lambda one, found: f"failed: {one.reason}",
    "not comparable": lambda one, found: f"not comparable: {one.reason}",
    "no figure": lambda one, found: f"left out: {one.reason}",
    "same settings": lambda one, found: str(one.reason),
}


def _larger_card(change: Change, found: Recommendation) -> str:
    return f"on {_card(change.card, change.memory_bytes)}: {_chosen(change, found)}"


def _smaller_card(change: Change, found: Recommendation) -> str:
    fits = {True: "fits", False: "does not fit", None: "may not fit"}[change.winner_fits]
    winner = found.winner.id if found.winner else ""
    return f"on {_card(change.card, change.memory_bytes)}, {winner} {fits}; there: {_chosen(change, found)}"


def _smallest_card(change: Change, found: Recommendation) -> str:
    winner = found.winner.id if found.winner else ""
    return f"{winner} fits {_card(change.card, change.memory_bytes)} or more; there: {_chosen(change, found)}"


def _other_margin(change: Change, found: Recommendation) -> str:
    return f"with a margin of {_points(change.margin_points)}: {_chosen(change, found)}"


CHANGES: dict[Where, Callable[[Change, Recommendation], str]] = {
    "no limit": lambda change, found: f"without a limit of memory: {_chosen(change, found)}",
    "larger card": _larger_card,
    "smaller card": _smaller_card,
    "smallest card": _smallest_card,
    "larger margin": _other_margin,
    "smaller margin": _other_margin,
}


def _chosen(change: Change, found: Recommendation) -> str:
    if change.winner is None:
        return "no cell"
    if found.winner and (change.winner, change.answered) == (found.winner.id, found.answered):
        return "the same"
    return change.winner if change.answered else f"{NOT_REACHED} (so far: {change.winner})"


def _basis(found: Recommendation) -> str:
    """Say what the figures and intervals rest on."""
    together = (
        f" Differences of accuracy are paired by seed and test example, in points; their intervals hold for all "
        f"{counted(found.comparisons_count, 'comparison')} together (Bonferroni)."
        if found.comparisons_count
        else ""
    )
    speeds = f" Speeds: {_speeds(found)}."
    peak = " Train peak: host memory, for want of a GPU." if found.host_memory else ""
    return (
        f"{found.matrix}: {counted(found.cells_count, 'cell')}, n = {counted(found.seeds_count, 'seed')}, "
        f"{number(found.examples_count, 0)} test examples. Intervals and ±: 95 %.{together}{speeds}{peak}"
    )


def _figures(one: Standing) -> str:
    half = one.accuracy_half_width_points
    spread = f" ± {number(half, 1)}" if half is not None else ""
    figures = [
        f"accuracy {number(_or_nan(one.accuracy_points), 1)}{spread} %",
        f"{number(_or_nan(one.tokens_per_s), 0)} tokens/s",
        f"train peak {sized(_or_nan(one.train_peak_bytes))}",
    ]
    return ", ".join(figures)


def _need(one: Standing) -> str:
    return f"{number(_or_nan(one.need_bytes) / GB, 2)} GB ({one.need_source})"


def _difference(one: Standing) -> str:
    interval = _interval(one.difference_points, one.difference_low_points, one.difference_high_points)
    return f"{interval} points"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    text = signed(_or_nan(value), 1)
    return text if low is None or high is None else f"{text} [{signed(low, 1)} to {signed(high, 1)}]"


def _grouped(told: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Write what is told of ids, those of which the same is told together."""
    ids: dict[str, list[str]] = {}
    for id_, text in told:
        ids.setdefault(text, []).append(id_)
    yield from (f"{listed(names)}: {text}" for text, names in list(ids.items())[:MOST_LINES])
    yield from _more(list(ids))


def _more(shown: Sequence[object]) -> Iterator[str]:
    if len(shown) > MOST_LINES:
        yield f"and {len(shown) - MOST_LINES:,} more; --json has all"


def _points(margin: float) -> str:
    return "1 point" if margin == 1 else f"{short_float(margin)} points"


def _card(name: str | None, memory_bytes: int | None) -> str:
    text = size_text(name or "")
    return text if not memory_bytes or text[:1].isdecimal() else f"{text} ({number(memory_bytes / GB, 1)} GB)"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
