"""The list of parameters that `qlora-bench params` prints."""

from __future__ import annotations

from dataclasses import dataclass

from bench.matrix.kinds import KINDS
from bench.matrix.parameters import Parameters
from bench.matrix.values import default_of


@dataclass(frozen=True)
class ParameterRow:
    """One parameter: its name, what it takes (`nf4 | fp4 | int8 | none`), its default, and what it does."""

    name: str
    type: str
    default: str
    about: str


def rows() -> list[ParameterRow]:
    """Every parameter, in the order in which ids and the documentation name them."""
    return [
        ParameterRow(name, " | ".join(kind.short for kind in KINDS[name]), default_of(name), info.description or "")
        for name, info in Parameters.model_fields.items()
    ]
