"""What one sort of matrix can say: its parameters, what they take, what goes together, and how messages name things."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from bench.matrix.kinds import Kind
from bench.matrix.rules import Rule

# The parts that every matrix has, beside `kind`.
KEYS = ("schema", "name", "about", "defaults", "axes", "exclude", "overrides", "include")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A set of parameters, with all that reading, crossing, checking and naming have to know of it.

    subject: what a matrix is of, as its `kind` says, such as cells; `noun`: one of them in a message, such as cell.
    model: the parameters in the order of ids, with their types, defaults and descriptions.
    kinds: the ways in which each parameter's value can be written.
    checks: what a way of writing cannot tell; they return the value, or raise `values.Mistake`.
    derived: defaults that follow other parameters: in words, and from the values that are set.
    later: parameters that a key leaves out where they have their default.
    rules: combinations that mean nothing.
    silent: names the parameters that, with these values, make no difference.
    parts: what ids write for a value; parameters that are not here write name=value.
    absent: what stands for a value whose part is empty where the whole id would be.
    keys: the parts of a file beside `kind`; `foreign_keys`: those of other matrices, and what to do without each.
    foreign: parameters of other matrices; none of these is taken for a misspelt one of this.
    advice: where the parameters are listed, for a name that is none of them.
    limit_option: the option that lifts the limit of cells, if there is one.
    """

    subject: str
    noun: str
    model: type[BaseModel]
    kinds: Mapping[str, tuple[Kind, ...]]
    checks: Mapping[str, Callable[[Any], Any]]
    derived: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Any]]]
    later: tuple[str, ...]
    rules: tuple[Rule[Any], ...]
    silent: Callable[[Mapping[str, Any]], Collection[str]]
    parts: Mapping[str, Callable[[Any], str]]
    absent: Mapping[str, str]
    keys: tuple[str, ...]
    foreign_keys: Mapping[str, str]
    foreign: frozenset[str]
    advice: str
    limit_option: str | None

    @cached_property
    def built_in(self) -> dict[str, Any]:
        """The default of every parameter where nothing else is said."""
        return {name: info.default for name, info in self.model.model_fields.items()}

    def significant(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values that make a difference: all of them, less those of silent parameters."""
        silent = self.silent(values)
        return {name: value for name, value in values.items() if name not in silent} if silent else values
