"""Turns what a matrix file says into values of parameters, and mistakes into plain words with a fix."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.matrix.cards import UNIT_BYTES
from bench.matrix.kinds import CARD, KINDS, LARGEST_WHOLE, NAMES, REFUSED, read_as
from bench.matrix.limits import advice, known_cards
from bench.matrix.models import PACKAGED_MODEL, SHAPES, is_known
from bench.matrix.parameters import DERIVED, Parameters
from bench.matrix.tasks import FILES, TASKS
from bench.matrix.tree import Node, scalar
from bench.matrix.wording import closest, described, listing, quoted, written

_TEXTS = ("model", "revision", "task")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_BOOLEAN_WORDS = {
    **dict.fromkeys(("yes", "y", "on", "true", "1"), True),
    **dict.fromkeys(("no", "n", "off", "false", "0"), False),
}


class Mistake(Exception):
    """A value that its parameter does not take: what is wrong, and how to fix it."""

    def __init__(self, what: str, fix: str) -> None:
        self.what, self.fix = what, fix
        super().__init__(what)


@dataclass(frozen=True, eq=False)
class Unreadable:
    """Stands for a value that was reported as a mistake, so that the rest of the file can still be checked.

    It equals nothing but itself.
    """

    raw: str


def convert(name: str, node: Node) -> Any:
    """Read the value that parameter `name` takes from `node`.

    Raises:
        Mistake: the parameter does not take it.
    """
    raw = plain(node)
    value = read_as(KINDS[name], raw)
    if value is REFUSED:
        slip = ", which is too large" if isinstance(raw, int) and raw > LARGEST_WHOLE else ""
        raise Mistake(f"{name} takes {takes(name)}, not {described(raw)}{slip}", _advice(name, raw))
    return CHECKS[name](value) if name in CHECKS else value


def plain(node: Node) -> Any:
    """Strip a tree of its places: scalars, lists and mappings remain."""
    match node.value:
        case list(items):
            return [plain(item) for item in items]
        case dict(entries):
            return {key: plain(entry.node) for key, entry in entries.items()}
        case value:
            return value


def takes(name: str) -> str:
    """Say what a parameter takes, as a message does: `nf4, fp4, int8 or none`."""
    return listing([word for kind in KINDS[name] for word in kind.words.split(", ")])


def default_of(name: str) -> str:
    """Write a parameter's default as a file would, or how it follows from others: `true with nf4 and fp4`."""
    if name in DERIVED:
        return DERIVED[name][0]
    default = Parameters.model_fields[name].default
    return "none" if default is None else written(default)


# Advice: the value closest to the mistake that the parameter would take.


def _advice(name: str, raw: Any) -> str:
    if name in _TEXTS and isinstance(raw, int | float):
        return "put quotes around it"
    if isinstance(raw, list) and len(raw) > 1:
        names = NAMES in KINDS[name]
        return f"write {'the names of modules' if names else 'one value; values to be crossed are listed under axes'}"
    for candidate in _candidates(raw):
        if read_as(KINDS[name], candidate) is not REFUSED:
            return f"write {written(candidate)}"
    if CARD in KINDS[name] and (meant := advice(raw)):
        return meant
    examples = [example for kind in KINDS[name] for example in kind.examples]
    if isinstance(raw, str) and (near := closest(raw, examples)):
        return f"did you mean {near}?"
    if NAMES in KINDS[name] and read_as((NAMES,), [raw]) is not REFUSED:
        return f"write [{raw}]"
    if isinstance(raw, str) and CARD in KINDS[name]:
        return known_cards()
    return f"the default is {default_of(name)}"


def _candidates(raw: Any) -> Iterator[Any]:
    text = written(raw).strip()
    if text.lower() in _BOOLEAN_WORDS:
        yield _BOOLEAN_WORDS[text.lower()]
    if raw is None:
        yield "none"
    elif isinstance(raw, list):
        yield from raw
    elif isinstance(raw, float) and raw.is_integer():
        yield int(raw)
    elif isinstance(raw, str):
        yield text
        yield from _numbers(text)
        yield from _sizes(text)


def _numbers(text: str) -> Iterator[Any]:
    number = scalar(re.sub(r"(?<=\d)[_,](?=\d)", "", text).lstrip("0") or "0")
    if isinstance(number, int | float) and not isinstance(number, bool):
        yield number
    if isinstance(number, float) and number.is_integer():
        yield int(number)


def _sizes(text: str) -> Iterator[str]:
    for unit in UNIT_BYTES:
        for ending in (unit, unit.removesuffix("B")):
            if ending and text.lower().endswith(ending.lower()):
                yield text[: -len(ending)].strip() + unit


# What a type cannot say: whether a model or a task exists.


def _check_model(name: str) -> str:
    folder = os.path.expanduser(name)  # noqa: PTH111
    if is_known(name) or os.path.isdir(folder) or _HUB_ID.fullmatch(name):  # noqa: PTH112 - never raises, whatever the text
        return name
    known = [PACKAGED_MODEL, *(shape for shape in SHAPES if shape != PACKAGED_MODEL)]
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        raise Mistake(f"there is no folder {quoted(name)}", "give its path from the folder you are in, or a hub id")
    near = closest(name, known)
    fix = f"did you mean {near}?" if near else f"the short names are {listing(known, 'and')}."
    raise Mistake(f"there is no model {quoted(name)}", f"{fix} A model of the hub is written owner/name")


def _check_task(name: str) -> str:
    if name in TASKS:
        return name
    folder = os.path.expanduser(name)  # noqa: PTH111
    if os.path.isdir(folder):  # noqa: PTH112
        missing = [file for file in FILES if not os.path.isfile(os.path.join(folder, file))]  # noqa: PTH113, PTH118
        if missing:
            what = f"the folder {quoted(name)} holds no {listing(missing, 'and no')}"
            raise Mistake(what, "a task is a folder with train.csv and test.csv, each with the columns text and label")
        return name
    near = closest(name, TASKS)
    known = f"{', '.join(TASKS)}, or a folder with {listing(FILES, 'and')}"
    fix = f"did you mean {near}?" if near else f"write {known}"
    raise Mistake(f"there is no task {quoted(name)}", fix)


CHECKS: dict[str, Callable[[Any], Any]] = {"model": _check_model, "task": _check_task}
