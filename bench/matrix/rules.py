"""Combinations of values that type-check one by one and mean nothing together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Rule(Generic[ModelT]):
    """One such combination, as a mistake: what is wrong, and how to fix it.

    `parameters` are those that `broken` looks at; the first of them is the one to blame.
    """

    parameters: tuple[str, ...]
    broken: Callable[[ModelT], bool]
    what: str
    fix: str
