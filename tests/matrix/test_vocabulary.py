from __future__ import annotations

import pytest

from bench.matrix.cell_vocabulary import CELLS
from bench.matrix.kernel_vocabulary import KERNELS
from bench.matrix.kinds import read_as
from bench.matrix.subjects import COMMANDS
from bench.matrix.vocabulary import Vocabulary

BOTH = pytest.mark.parametrize("vocabulary", [CELLS, KERNELS], ids=lambda vocabulary: vocabulary.subject)


@BOTH
def test_all_parts_of_a_vocabulary_speak_of_its_own_parameters(vocabulary: Vocabulary) -> None:
    names = list(vocabulary.model.model_fields)
    assert list(vocabulary.kinds) == list(vocabulary.built_in) == names
    for part in (vocabulary.checks, vocabulary.derived, vocabulary.later, vocabulary.parts, vocabulary.absent):
        assert set(part) <= set(names)
    assert not {*vocabulary.keys, *vocabulary.foreign_keys} & set(names)
    assert not set(vocabulary.keys) & set(vocabulary.foreign_keys)


@BOTH
def test_defaults_are_values_that_a_file_can_write(vocabulary: Vocabulary) -> None:
    for name, default in vocabulary.built_in.items():
        assert read_as(vocabulary.kinds[name], default) == default
    assert vocabulary.model().model_dump() == vocabulary.built_in


def test_every_kind_of_matrix_has_a_command_that_runs_it() -> None:
    assert list(COMMANDS) == [CELLS.subject, KERNELS.subject]
    assert set(CELLS.keys) == {*KERNELS.keys, *KERNELS.foreign_keys}


def test_what_both_kinds_share_is_written_alike() -> None:
    shared = CELLS.kinds.keys() & KERNELS.kinds.keys() - {"lora_r"}  # of a kernel, zero is none
    assert shared == {"model", "quant_type", "double_quant", "compute_dtype"}
    for name in shared:
        assert [kind.short for kind in CELLS.kinds[name]] == [kind.short for kind in KERNELS.kinds[name]]
        assert CELLS.parts[name] is KERNELS.parts[name]


def test_only_what_an_operation_leaves_alone_is_silent() -> None:
    values = KERNELS.built_in
    assert KERNELS.significant(values) == values
    assert CELLS.significant(CELLS.built_in) == CELLS.built_in
    for operation in ("quantize", "dequantize"):
        others = {**values, "operation": operation}
        left_out = others.keys() - KERNELS.significant(others).keys()
        assert left_out == {"rows", "lora_r"}
