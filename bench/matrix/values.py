"""Turns what a matrix file says into values of parameters, and mistakes into plain words with a fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.matrix.cards import UNIT_BYTES
from bench.matrix.kinds import CARD, LARGEST_WHOLE, NAMES, REFUSED, TEXT, Kind, read_as
from bench.matrix.limits import advice, known_cards
from bench.matrix.tree import Node, scalar
from bench.matrix.vocabulary import Vocabulary
from bench.matrix.wording import closest, described, listing, written

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


def convert(name: str, node: Node, vocabulary: Vocabulary) -> Any:
    """Read the value that parameter `name` takes from `node`.

    Raises:
        Mistake: the parameter does not take it.
    """
    raw = plain(node)
    value = read_as(vocabulary.kinds[name], raw)
    if value is REFUSED:
        slip = ", which is too large" if isinstance(raw, int) and raw > LARGEST_WHOLE else ""
        what = f"{name} takes {takes(name, vocabulary)}, not {described(raw)}{slip}"
        raise Mistake(what, _advice(name, raw, vocabulary))
    return vocabulary.checks[name](value) if name in vocabulary.checks else value


def plain(node: Node) -> Any:
    """Strip a tree of its places: scalars, lists and mappings remain."""
    match node.value:
        case list(items):
            return [plain(item) for item in items]
        case dict(entries):
            return {key: plain(entry.node) for key, entry in entries.items()}
        case value:
            return value


def takes(name: str, vocabulary: Vocabulary) -> str:
    """Say what a parameter takes, as a message does: `nf4, fp4, int8 or none`."""
    return listing([word for kind in vocabulary.kinds[name] for word in kind.words.split(", ")])


def default_of(name: str, vocabulary: Vocabulary) -> str:
    """Write a parameter's default as a file would, or how it follows from others: `true with nf4 and fp4`."""
    if name in vocabulary.derived:
        return vocabulary.derived[name][0]
    default = vocabulary.built_in[name]
    return "none" if default is None else written(default)


# Advice: the value closest to the mistake that the parameter would take.


def _advice(name: str, raw: Any, vocabulary: Vocabulary) -> str:
    kinds = vocabulary.kinds[name]
    if _takes_text(kinds) and isinstance(raw, int | float):
        return "put quotes around it"
    if isinstance(raw, list) and len(raw) > 1:
        names = NAMES in kinds
        return f"write {'the names of modules' if names else 'one value; values to be crossed are listed under axes'}"
    for candidate in _candidates(raw):
        if read_as(kinds, candidate) is not REFUSED:
            return f"write {written(candidate)}"
    if CARD in kinds and (meant := advice(raw)):
        return meant
    examples = [example for kind in kinds for example in kind.examples]
    if isinstance(raw, str) and (near := closest(raw, examples)):
        return f"did you mean {near}?"
    if NAMES in kinds and read_as((NAMES,), [raw]) is not REFUSED:
        return f"write [{raw}]"
    if isinstance(raw, str) and CARD in kinds:
        return known_cards()
    return f"the default is {default_of(name, vocabulary)}"


def _takes_text(kinds: Iterable[Kind]) -> bool:
    return any(kind.words == TEXT.words for kind in kinds)


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
