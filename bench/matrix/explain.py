"""The list of parameters that a matrix may set, which `qlora-bench params` prints for those of cells."""

from __future__ import annotations

from dataclasses import dataclass

from bench.matrix.cell_vocabulary import CELLS
from bench.matrix.values import default_of
from bench.matrix.vocabulary import Vocabulary


@dataclass(frozen=True)
class ParameterRow:
    """One parameter: its name, what it takes (`nf4 | fp4 | int8 | none`), its default, and what it does."""

    name: str
    type: str
    default: str
    about: str


def rows(vocabulary: Vocabulary = CELLS) -> list[ParameterRow]:
    """Every parameter, in the order in which ids and the documentation name them."""
    return [
        ParameterRow(
            name,
            " | ".join(kind.short for kind in vocabulary.kinds[name]),
            default_of(name, vocabulary),
            info.description or "",
        )
        for name, info in vocabulary.model.model_fields.items()
    ]
