from __future__ import annotations

import pytest

from bench.tables.csv import to_csv
from bench.tables.kernel_fused import fused_table
from bench.tables.kernels import load_kernels

from .kernel_examples import case, refused, write_kernels


def table_of(folder, cases, **about):
    return fused_table(load_kernels(write_kernels(folder / "r", cases, **about)))


def shown(table):
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return [list(zip(headings, row, strict=True)) for row in table.texts()]


def ladder(fused, name="nf4", **others):
    """Cases by rows, fused or not, that take twice as long as unquantized ones where they are, and else three times."""
    return [
        one
        for rows, is_fused in fused.items()
        for one in (
            case("none", rows=rows, median_s=1e-6, **others),
            case(name, rows=rows, median_s=(2 if is_fused else 3) * 1e-6, info={"fused": is_fused}, **others),
        )
    ]


def test_the_last_fused_rows_and_the_first_dequantized_above_stand_with_their_times(tmp_path):
    (row,) = shown(table_of(tmp_path, ladder({1: True, 512: False, 32: True, 64: False})))
    assert row == [
        ("layer", "q_proj"), ("out × in", "3584 × 3584"), ("4-bit type", "nf4"), ("fused up to", "32"),  # noqa: RUF001
        ("against 16-bit", "+100.0 %"), ("dequantized from", "64"), ("against 16-bit", "+200.0 %"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fused", "ends"),
    [({1: True, 4: True}, ("4", None)), ({1: False, 4: False}, (None, "1")), ({4: True}, ("4", None))],
)
def test_where_one_path_was_not_seen_there_is_nothing_of_it(tmp_path, fused, ends):
    row = dict(shown(table_of(tmp_path, ladder(fused)))[0])
    assert (row.get("fused up to"), row.get("dequantized from")) == ends


def test_rows_dequantized_below_the_fused_ones_are_a_note(tmp_path):
    table = table_of(tmp_path, ladder({1: True, 4: False, 16: True, 32: False}))
    assert table.notes == ("Also dequantized at fewer rows than the fused kernel reaches: qwen2.5-7b q_proj nf4.",)
    row = dict(shown(table)[0])
    assert (row["fused up to"], row["dequantized from"]) == ("16", "32")


def test_each_layer_dtype_and_type_has_its_row_without_adapters(tmp_path):
    cases = [
        *ladder({1: True, 16: False}),
        *ladder({1: True, 16: False}, "nf4-dq"),
        *ladder({1: True, 16: True}, compute_dtype="float16"),
        *ladder({1: False, 16: False}, lora_r=16),
        *ladder({1: True, 16: False}, layer="k_proj"),
    ]
    table = table_of(tmp_path, cases)
    rows = table.rows[["layer", "compute_dtype", "quantization", "fused_rows", "dequantized_rows"]].fillna(0)
    assert rows.to_numpy().tolist() == [
        ["q_proj", "bfloat16", "nf4", 1, 16],
        ["q_proj", "bfloat16", "nf4-dq", 1, 16],
        ["q_proj", "float16", "nf4", 16, 0],
        ["k_proj", "bfloat16", "nf4", 1, 16],
    ]
    assert table.rows["label"].tolist() == ["q_proj", "bfloat16", "q_proj float16", "k_proj bfloat16"]
    assert "label" not in to_csv(table)


def test_where_nobody_knows_there_is_no_table(tmp_path):
    assert table_of(tmp_path, [case(info={"fused": None}), case("none")]).rows.empty
    assert table_of(tmp_path, [], refusals=[refused()]).rows.empty


def test_a_layer_without_a_16_bit_time_shows_its_rows_alone(tmp_path):
    headings = [heading for heading, _ in shown(table_of(tmp_path, [case(rows=1), case(rows=512)]))[0]]
    assert headings == ["layer", "out × in", "4-bit type", "fused up to", "dequantized from"]  # noqa: RUF001
