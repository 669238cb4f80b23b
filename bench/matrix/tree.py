"""Builds a tree in which every key and value knows its line and column, from YAML.

It is built from PyYAML's events rather than by its constructors: no tag can make an object, and scalars follow YAML
1.2's core schema, in which `off`, `yes`, `012` and dates are text and `2e-4` is a number. Depth and size, with aliases
written out, are bounded before memory is spent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import yaml

from bench.errors import Location
from bench.matrix.report import Report
from bench.matrix.wording import described, quoted

MOST_NODES = 250_000
DEEPEST = 16
_LONGEST_NUMBER = 300  # longer ones are text: nothing needs them, and Python may refuse to print them

Scalar: TypeAlias = str | int | float | bool | None

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` of a mapping."""

    where: Location
    node: Node


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it begins: a scalar, a list of nodes, or a mapping from text to entries."""

    value: Scalar | list[Node] | dict[str, Entry]
    where: Location


def scalar(text: str) -> Scalar:
    """Resolve a plain scalar by YAML 1.2's core schema; a number with leading zeros is text, though."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def sort_of(node: Node) -> str:
    """Name a node as a message does; a list is not written out."""
    return "a list" if isinstance(node.value, list) else described(node.value)


class _Built(NamedTuple):
    """A finished node, with how many nodes and levels it comes to when its aliases are written out."""

    node: Node
    size: int = 1
    height: int = 0


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    where: Location
    items: list[Node] | dict[str, Entry]
    anchor: str | None
    key: Node | None = None
    size: int = 1
    height: int = 1


@dataclass(slots=True)
class TreeBuilder:
    """Takes the events of one YAML stream; `root` is the tree at their end. Mistakes go to `report`."""

    report: Report
    root: Node | None = None
    documents: int = 0
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, _Built | None] = field(default_factory=dict)  # None: its value has not ended yet

    def take(self, event: yaml.Event) -> None:
        mark = event.start_mark
        where = Location(self.report.file, mark.line + 1, mark.column + 1) if mark else Location(self.report.file)
        self._refuse_tag(getattr(event, "tag", None), where)
        match event:
            case yaml.ScalarEvent():
                value = scalar(event.value) if event.implicit[0] else event.value
                self._finish(_Built(Node(value, where)), event.anchor)
            case yaml.SequenceStartEvent():
                self._open(_Open(where, [], event.anchor))
            case yaml.MappingStartEvent():
                self._open(_Open(where, {}, event.anchor))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                done = self.stack.pop()
                self._finish(_Built(Node(done.items, done.where), done.size, done.height), done.anchor)
            case yaml.AliasEvent():
                self._place(self._named(event.anchor or "", where))
            case yaml.DocumentStartEvent():
                self._count_document(where)

    def _refuse_tag(self, tag: str | None, where: Location) -> None:
        if tag is not None:
            short = tag.replace("tag:yaml.org,2002:", "!!")
            self.report.add(where, f"the tag {quoted(short)} has no meaning in a matrix", "remove it")

    def _count_document(self, where: Location) -> None:
        self.documents += 1
        if self.documents > 1:
            fix = "remove the line ---, or put each matrix into a file of its own"
            self.report.fail(where, "a second YAML document begins here, and a matrix is one", fix)

    def _open(self, opened: _Open) -> None:
        if opened.anchor is not None:
            self.anchors[opened.anchor] = None
        self._refuse_depth(len(self.stack) + 1, opened.where)
        self.stack.append(opened)

    def _refuse_depth(self, depth: int, where: Location) -> None:
        if depth > DEEPEST:
            what = f"lists and mappings are nested more than {DEEPEST} deep"
            self.report.fail(where, what, "no part of a matrix needs that")

    def _finish(self, built: _Built, anchor: str | None) -> None:
        if anchor is not None:
            self.anchors[anchor] = built
        self._place(built)

    def _named(self, anchor: str, where: Location) -> _Built:
        if anchor not in self.anchors:
            fix = f"name a value above with &{anchor}, or put quotes around text that begins with *"
            self.report.fail(where, f"the alias *{anchor} has no anchor", fix)
        if (target := self.anchors[anchor]) is None:
            self.report.fail(where, f"the alias *{anchor} stands inside the value that it names", "write the value out")
        return target._replace(node=replace(target.node, where=where))

    def _place(self, built: _Built) -> None:
        node = built.node
        self._refuse_depth(len(self.stack) + built.height, node.where)
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        parent.size += built.size
        parent.height = max(parent.height, built.height + 1)
        if parent.size > MOST_NODES:
            what = f"the file has more than {MOST_NODES:,} values, aliases written out"
            self.report.fail(node.where, what, "cross values with axes instead")
        if isinstance(parent.items, list):
            parent.items.append(node)
        elif parent.key is None:
            parent.key = node
        else:
            self._add_entry(parent.items, parent.key, node)
            parent.key = None

    def _add_entry(self, entries: dict[str, Entry], key: Node, node: Node) -> None:
        if not isinstance(key.value, str):
            what = f"a key is text, not {sort_of(key)}"
            self.report.add(key.where, what, "write the name of a parameter or of a part of the matrix")
        elif key.value in entries:
            what = f"duplicate key {quoted(key.value)}, first in line {entries[key.value].where.line}"
            self.report.add(key.where, what, "remove one of the two")
        else:
            entries[key.value] = Entry(key.where, node)
