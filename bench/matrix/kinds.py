"""What each parameter takes, read off the annotations of its model, such as `Parameters`.

The messages about a matrix, the list of parameters and the model of a cell therefore cannot disagree.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from bench.matrix.cards import LEAST_BYTES, card_named, size_of
from bench.matrix.parameters import LARGEST_SEED

# Counts beyond this are slips of the keyboard; the memory of a card in bytes is far below.
LARGEST_WHOLE = 10**15

REFUSED: Any = object()

Bounds: TypeAlias = tuple[tuple[str, float], ...]

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}
_BOUNDS_IN_WORDS: dict[Bounds, tuple[str, str]] = {
    (("gt", 0),): ("above zero", "> 0"),
    (("ge", 0),): ("of zero or more", ">= 0"),
    (("ge", 8),): ("of 8 or more", ">= 8"),
    (("ge", 0), ("le", 1)): ("from 0 to 1", "from 0 to 1"),
    (("ge", 0), ("le", LARGEST_SEED)): (f"from 0 to {LARGEST_SEED}", f"from 0 to {LARGEST_SEED}"),
    (("ge", 0), ("lt", 1)): ("from 0 to below 1", "from 0 to below 1"),
}


@dataclass(frozen=True)
class Kind:
    """One of the ways in which a value can be written."""

    words: str  # in a message: a whole number above zero
    short: str  # in the list of parameters: whole number > 0
    read: Callable[[Any], Any]  # from what stands in the file to the value, or REFUSED
    examples: tuple[str, ...] = ()  # words that a misspelt one may have meant


def kinds_of(model: type[BaseModel], special: Mapping[str, tuple[Kind, ...]]) -> dict[str, tuple[Kind, ...]]:
    """Return how each parameter of a model can be written; `special` are those of which its annotation says too little.

    The order is the model's own.
    """
    annotations = get_type_hints(model, include_extras=True)
    return {name: special.get(name) or _kinds(annotations[name]) for name in model.model_fields}


def read_as(kinds: tuple[Kind, ...], value: Any) -> Any:
    """Return the value of the first kind that takes it, or REFUSED."""
    return next((read for kind in kinds if (read := kind.read(value)) is not REFUSED), REFUSED)


def _only_if(condition: Callable[[Any], bool]) -> Callable[[Any], Any]:
    return lambda value: value if condition(value) else REFUSED


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value == value.strip() and value.isprintable()


def _choice(choices: tuple[str, ...]) -> Kind:
    is_choice = _only_if(lambda value: isinstance(value, str) and value in choices)
    return Kind(", ".join(choices), " | ".join(choices), is_choice, choices)


def _whole(bounds: Bounds) -> Kind:
    words, signs = _BOUNDS_IN_WORDS[bounds]
    is_whole = _only_if(
        lambda value: _is_number(value) and isinstance(value, int) and _within(value, bounds) and value <= LARGEST_WHOLE
    )
    return Kind(f"a whole number {words}", f"whole number {signs}", is_whole)


def _number(bounds: Bounds) -> Kind:
    words, signs = _BOUNDS_IN_WORDS[bounds]

    def read(value: Any) -> Any:
        # Adding zero turns -0.0, which would be a cell of its own, into 0.0.
        return float(value) + 0.0 if _is_number(value) and _within(value, bounds) else REFUSED

    return Kind(f"a number {words}", f"number {signs}", read)


def _within(value: float, bounds: Bounds) -> bool:
    return all(_COMPARE[name](value, limit) for name, limit in bounds)


def _read_names(value: Any) -> Any:
    # The order of names means nothing, so it must not make another cell.
    return tuple(sorted(set(value))) if isinstance(value, list) and value and all(map(_is_text, value)) else REFUSED


def _read_size(value: Any) -> Any:
    size = size_of(value) if _is_text(value) else None
    return size.name if size and size.memory_bytes >= LEAST_BYTES else REFUSED


def _read_bytes(value: Any) -> Any:
    size = _whole((("gt", 0),)).read(value)
    return size if size is REFUSED or size >= LEAST_BYTES else REFUSED


def _read_card(value: Any) -> Any:
    return (card_named(value) if isinstance(value, str) else None) or REFUSED


TRUTH = Kind("true, false", "true | false", _only_if(lambda value: isinstance(value, bool)))
NONE = Kind("none", "none", lambda value: None if value in (None, "none") else REFUSED, ("none",))
TEXT = Kind("text", "text", _only_if(_is_text))
NAMES = Kind("a list of module names", "[module names]", _read_names)
SIZE = Kind("a size such as 16GB", "16GB | 14.5GiB", _read_size)
CARD = Kind("a card such as T4", "card", _read_card)
BYTES = Kind(f"{LEAST_BYTES // 10**6} million bytes or more", "bytes", _read_bytes)


def _kinds(annotation: Any, bounds: Bounds = ()) -> tuple[Kind, ...]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(arguments[0], _bounds(arguments[1].metadata))
    if origin in (Union, UnionType):
        return tuple(kind for argument in arguments for kind in _kinds(argument))
    if origin is Literal:
        return (_choice(arguments),)
    if origin is tuple:
        return (NAMES,)
    simple: dict[Any, Callable[[], Kind]] = {
        bool: lambda: TRUTH,
        int: lambda: _whole(bounds),
        float: lambda: _number(bounds),
        str: lambda: TEXT,
        NoneType: lambda: NONE,
    }
    return (simple[annotation](),)


def _bounds(metadata: list[Any]) -> Bounds:
    return tuple((name, getattr(bound, name)) for bound in metadata for name in _COMPARE if hasattr(bound, name))
