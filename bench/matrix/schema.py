"""Reads a matrix file part by part: every value checked by itself, every mistake reported where it stands.

What only shows once the cells are there (an exclude that matches nothing, a cell that means nothing) is found by
`bench.matrix.checks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench.errors import Location
from bench.matrix.document import Document
from bench.matrix.parameters import LARGEST_SEED
from bench.matrix.report import Report
from bench.matrix.rows import Row, Setting, entries_of, read_axes, read_row
from bench.matrix.subjects import KIND
from bench.matrix.tree import Entry, Node, sort_of
from bench.matrix.vocabulary import Vocabulary
from bench.matrix.wording import closest, listing, quoted, written

SCHEMA = 1
LONGEST_NAME = 100

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_OVERRIDE_KEYS = ("when", "set")
_EXAMPLE_ROW = "{quant_type: nf4}"
_EXAMPLE_PAIR = "[card_arrival, card_delivery_estimate]"
_PAIR = 2


@dataclass(frozen=True)
class Override:
    """Cells that match `when` take the values of `change`."""

    where: Location
    when: Row
    change: Row


@dataclass(frozen=True)
class Declaration:
    """A matrix file, nothing crossed yet; `axes` maps parameters to their values in the file's order."""

    vocabulary: Vocabulary
    name: str
    about: str
    defaults: Row
    axes: Mapping[str, tuple[Setting, ...]]
    axes_where: Location
    exclude: tuple[Row, ...]
    overrides: tuple[Override, ...]
    include: tuple[Row, ...]
    baseline: Setting | None
    seeds: tuple[int, ...]
    watch_pairs: tuple[tuple[str, str], ...]


def read_declaration(document: Document, vocabulary: Vocabulary, report: Report) -> Declaration:
    """Read every part of a matrix. Mistakes go to `report`; what could be read is returned."""
    top = _known_keys(document.root, vocabulary, report)
    _check_schema(top.get("schema"), report)
    return Declaration(
        vocabulary=vocabulary,
        name=_read_name(top.get("name"), document.path.stem, report),
        about=_read_about(top.get("about"), report),
        defaults=read_row(_mapping("defaults", top.get("defaults"), report), vocabulary, report),
        axes=read_axes(_mapping("axes", top.get("axes"), report), vocabulary, report),
        axes_where=top["axes"].where if "axes" in top else Location(report.file),
        exclude=tuple(_read_exclude(node, vocabulary, report) for node in _rows("exclude", top.get("exclude"), report)),
        overrides=tuple(
            override
            for node in _rows("overrides", top.get("overrides"), report)
            if (override := _read_override(node, vocabulary, report)) is not None
        ),
        include=tuple(_read_include(node, vocabulary, report) for node in _rows("include", top.get("include"), report)),
        baseline=_read_baseline(top.get("baseline"), report),
        seeds=_read_seeds(top.get("seeds"), report),
        watch_pairs=_read_watch_pairs(top.get("watch_pairs"), report),
    )


def _known_keys(top: Mapping[str, Entry], vocabulary: Vocabulary, report: Report) -> dict[str, Entry]:
    """Find the parts by name; a misspelt one, once reported, is read as the one it stands for, if that is free."""
    known = {key: entry for key, entry in top.items() if key in vocabulary.keys}
    for key, entry in top.items():
        if key in vocabulary.foreign_keys:
            what = f"a matrix of {vocabulary.subject} has no {key}"
            report.add(entry.where, what, vocabulary.foreign_keys[key])
        elif key != KIND and key not in vocabulary.keys:
            meant = None if key in vocabulary.kinds else closest(key, vocabulary.keys)
            report.add(entry.where, f"unknown key {quoted(key)}", _advice_for_key(key, meant, vocabulary))
            if meant is not None:
                known.setdefault(meant, entry)
    return known


def _advice_for_key(key: str, meant: str | None, vocabulary: Vocabulary) -> str:
    if key in vocabulary.kinds:
        return f"{key} is a parameter: move it under defaults or axes"
    return f"did you mean {meant}?" if meant else f"the keys are {listing(vocabulary.keys, 'and')}"


def _check_schema(entry: Entry | None, report: Report) -> None:
    if entry is None:
        report.add(None, "schema is missing", f"write schema: {SCHEMA} in the first line")
    elif entry.node.value is True or not isinstance(entry.node.value, int):
        report.add(entry.node.where, f"schema takes a version number, not {sort_of(entry.node)}", f"write {SCHEMA}")
    elif entry.node.value != SCHEMA:
        what = f"this program reads matrices of schema {SCHEMA}, not {sort_of(entry.node)}"
        report.add(entry.node.where, what, f"write {SCHEMA}, or install the version that reads the other")


def _read_name(entry: Entry | None, stem: str, report: Report) -> str:
    name = entry.node.value if entry else stem
    where = entry.node.where if entry else None
    if not isinstance(name, str):
        report.add(
            where, f"name takes text, not {sort_of(entry.node) if entry else ''}", "write a short name in quotes"
        )
        return stem
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:LONGEST_NAME] or "my-matrix"
        what = f"name becomes a folder's name and takes letters, digits and . _ -, not the text {quoted(name)}"
        report.add(where, what, f"write name: {safe}")
    return name


def _read_about(entry: Entry | None, report: Report) -> str:
    if entry is None or entry.node.value is None:
        return ""
    if not isinstance(entry.node.value, str):
        report.add(entry.node.where, f"about takes text, not {sort_of(entry.node)}", "write a sentence, in quotes")
        return ""
    return entry.node.value.strip()


def _read_baseline(entry: Entry | None, report: Report) -> Setting | None:
    if entry is None or entry.node.value is None:
        return None
    if not isinstance(entry.node.value, str):
        what = f"baseline takes the id of a cell, not {sort_of(entry.node)}"
        report.add(entry.node.where, what, "write one id, in quotes if it looks like a number")
        return None
    return Setting(entry.node.value, entry.node.where)


def _read_seeds(entry: Entry | None, report: Report) -> tuple[int, ...]:
    if entry is None:
        return (0,)
    node = entry.node
    if not isinstance(node.value, list):
        fix = (
            f"write [{written(node.value)}]"
            if isinstance(node.value, int)
            else "write [0], or [0, 1, 2] to run each cell three times"
        )
        report.add(node.where, f"seeds takes a list of whole numbers, not {sort_of(node)}", fix)
        return (0,)
    if not node.value:
        report.add(node.where, "seeds has no values", "write [0], or remove it")
    seeds: dict[int, None] = {}
    for item in node.value:
        seed = item.value
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
            what = f"a seed is a whole number from 0 to {LARGEST_SEED}, not {sort_of(item)}"
            report.add(item.where, what, "write 0, 1, 2 and so on")
        elif seed in seeds:
            report.add(item.where, f"duplicate seed {seed}", "remove one of the two")
        else:
            seeds[seed] = None
    return tuple(seeds)


def _read_watch_pairs(entry: Entry | None, report: Report) -> tuple[tuple[str, str], ...]:
    if entry is None or entry.node.value is None:
        return ()
    if not isinstance(entry.node.value, list):
        what = f"watch_pairs takes a list of pairs of labels, not {sort_of(entry.node)}"
        report.add(entry.node.where, what, f"write [{_EXAMPLE_PAIR}]")
        return ()
    first: dict[frozenset[str], Location] = {}
    pairs = []
    for node in entry.node.value:
        if (pair := _read_pair(node, report)) is None:
            continue
        labels = frozenset(pair)
        if labels in first:
            place = f"line {first[labels].line}, column {first[labels].column}"
            report.add(node.where, f"duplicate pair {written(pair)}, first in {place}", "remove one of the two")
        else:
            first[labels] = node.where
            pairs.append(pair)
    return tuple(pairs)


def _read_pair(node: Node, report: Report) -> tuple[str, str] | None:
    """Read two different labels; whether the task has them is not known before its texts are read."""
    if not isinstance(node.value, list) or len(node.value) != _PAIR:
        count = f" of {len(node.value)}" if isinstance(node.value, list) and node.value else ""
        what = f"a pair of watch_pairs is a list of two labels, not {sort_of(node)}{count}"
        report.add(node.where, what, f"write it like {_EXAMPLE_PAIR}")
        return None
    labels = [label for item in node.value if (label := _read_label(item, report)) is not None]
    if len(labels) < _PAIR:
        return None
    one, other = labels
    if one == other:
        report.add(node.value[1].where, f"a pair takes two labels, not {quoted(one)} twice", "write another label")
        return None
    return one, other


def _read_label(node: Node, report: Report) -> str | None:
    if isinstance(node.value, str) and node.value:
        return node.value
    readable = isinstance(node.value, int | float)
    fix = "put quotes around it" if readable else f"write a label of the task, as in {_EXAMPLE_PAIR}"
    report.add(node.where, f"a label is text, not {sort_of(node)}", fix)
    return None


def _mapping(name: str, entry: Entry | None, report: Report) -> Node:
    """Return the mapping under a key; an empty one where the key is missing, or has nothing under it."""
    if entry is None or entry.node.value is None:
        return Node({}, entry.where if entry else Location(report.file))
    if not isinstance(entry.node.value, dict):
        fix = f"write parameter: {'[values]' if name == 'axes' else 'value'}, without -"
        report.add(entry.node.where, f"{name} takes a mapping, not {sort_of(entry.node)}", fix)
    return entry.node


def _rows(name: str, entry: Entry | None, report: Report) -> list[Node]:
    """Return the mappings listed under a key; none where the key is missing, or has nothing under it."""
    if entry is None or entry.node.value is None:
        return []
    if not isinstance(entry.node.value, list):
        report.add(entry.node.where, f"{name} takes a list of rows, not {sort_of(entry.node)}", "begin each row with -")
        return []
    for node in entry.node.value:
        if not isinstance(node.value, dict):
            example = f"{{when: {_EXAMPLE_ROW}, set: {{lora_r: 8}}}}" if name == "overrides" else _EXAMPLE_ROW
            what = f"a row of {name} is a mapping, not {sort_of(node)}"
            report.add(node.where, what, f"write it like {example}")
    return [node for node in entry.node.value if isinstance(node.value, dict)]


def _read_exclude(node: Node, vocabulary: Vocabulary, report: Report) -> Row:
    if not node.value:
        what = f"an empty row would exclude every {vocabulary.noun}"
        report.add(node.where, what, f"write what to leave out, like {_EXAMPLE_ROW}")
    return read_row(node, vocabulary, report)


def _read_include(node: Node, vocabulary: Vocabulary, report: Report) -> Row:
    if not node.value:
        report.add(node.where, "an empty row says nothing", f"write an id or a parameter, like {_EXAMPLE_ROW}")
    row = read_row(node, vocabulary, report, with_id=True)
    return row if node.value else replace(row, complete=False)


def _read_override(node: Node, vocabulary: Vocabulary, report: Report) -> Override | None:
    parts = {}
    for key, entry in entries_of(node).items():
        meant = key if key in _OVERRIDE_KEYS else closest(key, _OVERRIDE_KEYS)
        if meant != key:
            fix = f"did you mean {meant}?" if meant else "the keys are when and set"
            report.add(entry.where, f"unknown key {quoted(key)} in a row of overrides", fix)
        if meant:
            parts[meant] = entry
    matches_all = f"an empty when matches every {vocabulary.noun}"
    when = _read_part("when", parts, node, matches_all, "put the values into defaults", vocabulary, report)
    change = _read_part(
        "set", parts, node, "an empty set changes nothing", "write parameter: value", vocabulary, report
    )
    return Override(node.where, when, change) if when and change else None


def _read_part(
    name: str, parts: Mapping[str, Entry], row: Node, empty: str, fix: str, vocabulary: Vocabulary, report: Report
) -> Row | None:
    if name not in parts:
        what = f"a row of overrides has a when and a set, and {name} is missing"
        report.add(row.where, what, f"write it like {{when: {_EXAMPLE_ROW}, set: {{lora_r: 8}}}}")
        return None
    node = parts[name].node
    if not isinstance(node.value, dict):
        report.add(node.where, f"{name} takes a mapping, not {sort_of(node)}", f"write it like {_EXAMPLE_ROW}")
        return None
    if not node.value:
        report.add(node.where, empty, fix)
    return read_row(node, vocabulary, report)
