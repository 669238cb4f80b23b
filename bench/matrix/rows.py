"""Reads mappings from parameters to values: the rows, defaults and axes of a matrix file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.errors import Location
from bench.matrix.report import Report
from bench.matrix.subjects import KIND
from bench.matrix.tree import Entry, Node, sort_of
from bench.matrix.values import Mistake, Unreadable, convert, plain
from bench.matrix.vocabulary import Vocabulary
from bench.matrix.wording import closest, quoted, written

LONGEST_ID = 100

# Keys that mean something elsewhere.
_NO_PARAMETERS = {
    "id": "only rows of include have an id",
    "<<": "write the values out, or put them into defaults",
}
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]*")


@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter's value, `Unreadable` if it was a mistake, and where it stands."""

    value: Any
    where: Location


@dataclass(frozen=True)
class Row:
    """A mapping from parameters to values. It is not `complete` if a key of it was unknown."""

    where: Location
    settings: Mapping[str, Setting] = field(default_factory=dict)
    complete: bool = True
    id: Setting | None = None

    @property
    def values(self) -> dict[str, Any]:
        return {name: setting.value for name, setting in self.settings.items()}

    @property
    def readable(self) -> dict[str, Any]:
        return {name: value for name, value in self.values.items() if not isinstance(value, Unreadable)}

    @property
    def sound(self) -> bool:
        """Whether every key and value of the row could be read."""
        return self.complete and len(self.readable) == len(self.settings)


def read_row(node: Node, vocabulary: Vocabulary, report: Report, *, with_id: bool = False) -> Row:
    """Read a mapping of one value each; mistakes go to `report`."""
    entries = dict(entries_of(node))
    id_entry = entries.pop("id", None) if with_id else None
    names = {key: _parameter_named(key, entry, entries, vocabulary, report) for key, entry in entries.items()}
    settings = {
        name: Setting(_read_value(name, entries[key].node, vocabulary, report, quiet=name != key), entries[key].where)
        for key, name in names.items()
        if name is not None
    }
    complete = all(name == key for key, name in names.items())
    return Row(node.where, settings, complete, _read_id(id_entry, report) if id_entry else None)


def read_axes(node: Node, vocabulary: Vocabulary, report: Report) -> dict[str, tuple[Setting, ...]]:
    """Read a mapping of a list of values each; mistakes go to `report`."""
    entries = entries_of(node)
    axes = {}
    for key, entry in entries.items():
        if (name := _parameter_named(key, entry, entries, vocabulary, report)) is not None:
            axes[name] = _read_axis(name, entry.node, vocabulary, report, quiet=name != key)
    return axes


def entries_of(node: Node) -> dict[str, Entry]:
    return node.value if isinstance(node.value, dict) else {}


def _parameter_named(
    key: str, entry: Entry, siblings: Mapping[str, Entry], vocabulary: Vocabulary, report: Report
) -> str | None:
    """Return `key` if it is a parameter; otherwise, once reported, the one it stands for, if that is free."""
    if key in vocabulary.kinds:
        return key
    guess = None
    if key in (KIND, *vocabulary.keys):
        advice = f"{key} is a part of the matrix: move it to the left, to where axes stands"
    elif key in _NO_PARAMETERS:
        advice = _NO_PARAMETERS[key]
    else:
        guess = None if key in vocabulary.foreign else closest(key, vocabulary.kinds)
        advice = f"did you mean {guess}?" if guess else vocabulary.advice
    report.add(entry.where, f"unknown parameter {quoted(key)}", advice)
    return guess if guess not in siblings else None


def _read_value(name: str, node: Node, vocabulary: Vocabulary, report: Report, *, quiet: bool) -> Any:
    try:
        return convert(name, node, vocabulary)
    except Mistake as mistake:
        if not quiet:  # a guessed name is blamed for nothing more
            report.add(node.where, mistake.what, mistake.fix)
        return Unreadable(written(plain(node)))


def _read_axis(name: str, node: Node, vocabulary: Vocabulary, report: Report, *, quiet: bool) -> tuple[Setting, ...]:
    if not isinstance(node.value, list):
        fix = "list the values: [a, b]" if isinstance(node.value, dict) else f"write [{written(node.value)}]"
        report.add(node.where, f"the axis {name} takes a list of values, not {sort_of(node)}", fix)
        return (Setting(_read_value(name, node, vocabulary, report, quiet=True), node.where),)
    if not node.value:
        report.add(node.where, f"the axis {name} has no values", "list one or more, or remove the axis")
        return (Setting(Unreadable(""), node.where),)
    values: dict[Any, Setting] = {}
    for item in node.value:
        value = _read_value(name, item, vocabulary, report, quiet=quiet)
        if value in values:
            first = values[value].where
            place = f"line {first.line}, column {first.column}"
            what = f"duplicate value {written(value)} in the axis {name}, first in {place}"
            report.add(item.where, what, "remove one of the two")
        values.setdefault(value, Setting(value, item.where))
    return tuple(values.values())


def _read_id(entry: Entry, report: Report) -> Setting:
    node = entry.node
    if not isinstance(node.value, str):
        fix = (
            "write a short name"
            if node.value is None or isinstance(node.value, list | dict)
            else "put quotes around it"
        )
        report.add(node.where, f"an id is text, not {sort_of(node)}", fix)
    elif not _ID.fullmatch(node.value):
        safe = re.sub(r"[^A-Za-z0-9._+=-]+", "-", node.value).strip("-._+=")
        fix = f"write {safe}" if safe else "write letters and digits, as in lora-bf16"
        report.add(
            node.where, f"an id becomes a file name and takes letters, digits and . _ + = -, not {sort_of(node)}", fix
        )
    elif len(node.value) > LONGEST_ID:
        report.add(node.where, f"the id is longer than {LONGEST_ID} characters", "shorten it")
    return Setting(str(plain(node)), node.where)
