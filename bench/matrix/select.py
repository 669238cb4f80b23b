"""Selects cells by an expression over their ids, in the manner of pytest's -k: `nf4 and not (fp16 or attention)`."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, TypeVar

from bench.errors import BenchError
from bench.matrix.wording import closest, counted, quoted

Test: TypeAlias = Callable[[str], bool]

DEEPEST = 50
_EXAMPLES = 5
_OPERATORS = ("and", "or", "not", "(", ")")
_TOKEN = re.compile(r"[()]|[A-Za-z0-9._+=-]+|\S")
_WORD = re.compile(r"[A-Za-z0-9._+=-]+")


class HasId(Protocol):
    """A cell, or a case of a matrix of kernels."""

    @property
    def id(self) -> str: ...


HasIdT = TypeVar("HasIdT", bound=HasId)


def select_cells(cells: Sequence[HasIdT], expression: str, noun: str = "cell") -> tuple[HasIdT, ...]:
    """Return the cells whose ids match, in their order; a word matches the ids that contain it, whatever the case.

    `noun` is what a message calls one of them.

    Raises:
        BenchError: the expression cannot be read, or selects nothing.
    """
    tokens = _TOKEN.findall(expression.lower())
    try:
        test = _parse(deque(tokens))
    except ValueError as error:
        fix = "write words of ids, joined by and, or, not and parentheses: 'nf4 and not fp16'"
        raise BenchError(f"-k {quoted(expression)} cannot be read: {error}", fix) from None
    chosen = tuple(cell for cell in cells if test(cell.id.lower()))
    if not chosen:
        raise BenchError(f"-k {quoted(expression)} selects none of {counted(len(cells), noun)}", _advice(cells, tokens))
    return chosen


def _advice(cells: Sequence[HasId], tokens: Sequence[str]) -> str:
    ids = [cell.id.lower() for cell in cells]
    parts = {part for id_ in ids for part in (id_, *id_.split("-"))}
    for token in tokens:
        if token not in _OPERATORS and not any(token in id_ for id_ in ids) and (near := closest(token, parts)):
            return f"did you mean {near}?"
    return f"the ids are {', '.join(cell.id for cell in cells[:_EXAMPLES])}{', …' if len(cells) > _EXAMPLES else ''}"


def _parse(tokens: deque[str]) -> Test:
    test = _either(tokens, 0)
    if tokens:
        raise ValueError("a ) has no (" if tokens[0] == ")" else f"{quoted(tokens[0])} needs and or or before it")
    return test


def _either(tokens: deque[str], depth: int) -> Test:
    tests = [_both(tokens, depth)]
    while tokens and tokens[0] == "or":
        tokens.popleft()
        tests.append(_both(tokens, depth))
    return lambda id_: any(test(id_) for test in tests)


def _both(tokens: deque[str], depth: int) -> Test:
    tests = [_one(tokens, depth)]
    while tokens and tokens[0] == "and":
        tokens.popleft()
        tests.append(_one(tokens, depth))
    return lambda id_: all(test(id_) for test in tests)


def _one(tokens: deque[str], depth: int) -> Test:
    wanted = True
    while tokens and tokens[0] == "not":
        tokens.popleft()
        wanted = not wanted
    test = _word_or_group(tokens, depth)
    return lambda id_: test(id_) is wanted


def _word_or_group(tokens: deque[str], depth: int) -> Test:
    if not tokens:
        raise ValueError("it ends where a word is expected")
    token = tokens.popleft()
    if token == "(":  # noqa: S105 - a parenthesis, no secret
        if depth == DEEPEST:
            raise ValueError(f"parentheses are nested more than {DEEPEST} deep")
        test = _either(tokens, depth + 1)
        if not tokens or tokens.popleft() != ")":
            raise ValueError("a ( is not closed")
        return test
    if token in _OPERATORS:
        raise ValueError(f"{quoted(token)} stands where a word is expected")
    if not _WORD.fullmatch(token):
        raise ValueError(f"{quoted(token)} is in no id")
    return lambda id_: token in id_
