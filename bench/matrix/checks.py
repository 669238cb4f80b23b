"""Finds the mistakes that show only once the cells are there, and reports each cause once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from bench.errors import Location
from bench.matrix.cross import Crossing, Draft
from bench.matrix.ids import ids_of, varying
from bench.matrix.match import Matcher
from bench.matrix.report import Report
from bench.matrix.rows import Row
from bench.matrix.rules import Rule
from bench.matrix.schema import Declaration
from bench.matrix.values import Unreadable
from bench.matrix.vocabulary import Vocabulary
from bench.matrix.wording import closest, counted, listing, quoted, written

_EXAMPLES = 5
_COMPARED = 10_000


def check_cells(declaration: Declaration, crossing: Crossing, ids: Sequence[str], report: Report) -> None:
    """Report rows that match nothing, cells that mean nothing or are there twice, ids taken twice, a lost baseline."""
    if not crossing.drafts:
        _report_emptiness(declaration, crossing, report)
    for part, row in crossing.idle:
        _report_idle(part, row, crossing, declaration.vocabulary, report)
    certain = [(draft, id_) for draft, id_ in zip(crossing.drafts, ids, strict=True) if _certain(draft)]
    for rule in declaration.vocabulary.rules:
        _check_rule(rule, certain, declaration, report)
    _check_twins(certain, declaration.vocabulary, report)
    _check_ids(crossing.drafts, ids, declaration.vocabulary, report)
    _check_baseline(declaration, crossing, ids, report)


def _certain(draft: Draft) -> bool:
    return draft.sure and (draft.row is None or draft.row.complete)


def _report_emptiness(declaration: Declaration, crossing: Crossing, report: Report) -> None:
    noun = declaration.vocabulary.noun
    if crossing.excluded:
        what = f"exclude leaves none of {counted(len(crossing.excluded), noun)}"
        report.add(declaration.exclude[0].where, what, "exclude fewer")
    elif not report.problems:
        report.add(None, f"the matrix has no {noun}s", "list values under axes, or rows under include")


def _report_idle(part: str, row: Row, crossing: Crossing, vocabulary: Vocabulary, report: Report) -> None:
    cells = [*crossing.drafts, *crossing.excluded]
    absent = [
        f"{name}: {written(value)}"
        for name, value in row.values.items()
        if all(draft.values[name] != value for draft in cells)
    ]
    what = f"no {vocabulary.noun} has {listing(absent) if absent else 'all of these values together'}"
    report.add(row.where, f"{part} matches nothing: {what}", "correct it, or remove it")


def _check_rule(rule: Rule[Any], cells: Iterable[tuple[Draft, str]], declaration: Declaration, report: Report) -> None:
    vocabulary = declaration.vocabulary
    verdicts: dict[tuple[Any, ...], bool] = {}
    broken: dict[Location, list[str]] = defaultdict(list)
    for draft, id_ in cells:
        combination = tuple([draft.values[name] for name in rule.parameters])
        if combination not in verdicts:
            readable = not any(isinstance(value, Unreadable) for value in combination)
            verdicts[combination] = readable and rule.broken(vocabulary.model.model_construct(**draft.values))
        if verdicts[combination]:
            broken[_origin(draft, rule.parameters[0], declaration)].append(id_)
    for where, ids in broken.items():
        report.add(where, f"in {_examples(ids, vocabulary.noun)}, {rule.what}", rule.fix)


def _origin(draft: Draft, name: str, declaration: Declaration) -> Location:
    """Find where a cell has its value of a parameter from, or else the place that best stands for the cell."""
    for override in reversed(draft.overrides):
        if name in override.change.settings:
            return override.change.settings[name].where
    if draft.row is not None:
        return draft.row.settings[name].where if name in draft.row.settings else draft.row.where
    for setting in declaration.axes.get(name, ()):
        if setting.value == draft.values[name]:
            return setting.where
    setting_or_none = declaration.defaults.settings.get(name)
    return setting_or_none.where if setting_or_none else declaration.axes_where


def _examples(ids: Sequence[str], noun: str) -> str:
    return f"{noun} {ids[0]}" if len(ids) == 1 else f"{counted(len(ids), noun)} such as {ids[0]}"


def _check_twins(cells: Iterable[tuple[Draft, str]], vocabulary: Vocabulary, report: Report) -> None:
    noun = vocabulary.noun
    first: dict[tuple[Any, ...], tuple[Draft, str]] = {}
    merged: Counter[Location] = Counter()
    for draft, id_ in cells:
        twin, twin_id = first.setdefault(tuple(vocabulary.significant(draft.values).values()), (draft, id_))
        if twin is draft:
            continue
        if draft.row is None:  # crossed cells differ until overrides make them alike
            merged[(draft.overrides or twin.overrides)[-1].where] += 1
            continue
        which = f"the row {quoted(id_)}" if draft.row.id else "this row"
        other = f"the row in line {twin.row.where.line}" if twin.row else f"the crossed {noun} {twin_id}"
        report.add(draft.row.where, f"{which} is the same {noun} as {other}", "change a parameter of it, or remove it")
    for where, count in merged.items():
        what = f"this override makes {counted(count, noun)} the same as another"
        report.add(where, what, "exclude what is not to run, or narrow when")


def _check_ids(drafts: Sequence[Draft], ids: Sequence[str], vocabulary: Vocabulary, report: Report) -> None:
    crossed = {id_.lower() for draft, id_ in zip(drafts, ids, strict=True) if draft.row is None}
    rows: dict[str, Row] = {}
    for row in (draft.row for draft in drafts):
        if row is None or row.id is None:
            continue
        id_ = row.id.value.lower()
        if id_ in crossed:
            what = f"the id {quoted(row.id.value)} is a crossed {vocabulary.noun}'s already"
            report.add(row.id.where, what, "choose another")
        if id_ in rows:
            what = f"the id {quoted(row.id.value)} is taken by the row in line {rows[id_].where.line}"
            report.add(row.id.where, what, "choose another")
        rows.setdefault(id_, row)


def _check_baseline(declaration: Declaration, crossing: Crossing, ids: Sequence[str], report: Report) -> None:
    baseline = declaration.baseline
    if baseline is None or baseline.value in ids:
        return
    excluded = ids_of(crossing.excluded, varying(declaration.axes), declaration.vocabulary)
    if baseline.value in excluded:
        draft = crossing.excluded[excluded.index(baseline.value)]
        line = declaration.exclude[Matcher.of(declaration.exclude)(draft.values)[0]].where.line
        what = f"the baseline {quoted(baseline.value)} is excluded in line {line}"
        report.add(baseline.where, what, "choose another, or keep it")
        return
    near = closest(baseline.value, ids[:_COMPARED])
    some = ", ".join(ids[:_EXAMPLES]) + (", …" if len(ids) > _EXAMPLES else "")
    report.add(
        baseline.where,
        f"the baseline {quoted(baseline.value)} is no cell's id",
        f"did you mean {near}?" if near else f"the ids are {some}",
    )
