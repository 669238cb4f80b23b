from __future__ import annotations

import pytest

from bench.protocol import DTYPE_NAMES, PLACES
from bench.tables.load import load_results
from bench.tables.storage import storage_table

from .examples import BF16, NF4, components, memory_matrix, record, storage, write_result


def table_of(folder, records):
    return storage_table(load_results(write_result(folder / "r", records, baseline=None)))


def shown(table):
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in table.texts()}


def test_a_record_without_components_is_shown_by_its_sums_in_gigabytes(tmp_path):
    measures = {
        **storage(3_262_644_224, 407_843_136, 2_180_656_128),
        "parameters_count": 7_615_616_512,
        "quantized_parameters_count": 6_525_288_448,
    }
    table = table_of(tmp_path, [record("nf4", measures=measures)])
    assert table.title == "default: storage of the loaded base in GB"
    assert shown(table)["nf4"] == {
        "id": "nf4", "4/8-bit %": "85.7", "packed": "3.263", "quant. state": "0.408", "unquantized": "2.181",
        "buffers": "<0.001", "stored": "5.851", "HF footprint": "5.443", "status": "ok",
    }  # fmt: skip


def test_a_small_model_is_shown_in_megabytes_and_the_files_keep_every_byte(tmp_path):
    table = table_of(tmp_path, [record("nf4", measures=NF4), record("bf16", measures=BF16)])
    assert table.title == "default: storage of the loaded base in MB"
    assert [row[1:4] for row in table.texts()] == [["78.9", "53.1", "6.6"], ["0.0", "0.0", "0.0"]]
    parts = ["packed_bytes", "quant_state_bytes", "unquantized_bytes", "buffer_bytes"]
    assert (table.rows[parts].sum(axis=1) == table.rows["stored_bytes"]).all()


def test_components_and_places_stand_beside_the_sums_that_they_add_up_to(tmp_path):
    table = table_of(tmp_path, memory_matrix())
    row = shown(table)["nf4-dq"]
    assert [row[name] for name in ("absmax", "quant. state", "embedding", "head", "unquantized")] == [
        "0.104", "0.104", "1.090", "1.090", "2.181",
    ]  # fmt: skip
    rows = table.rows.set_index("id").drop(index="nf4-dead")
    state = ["absmax_bytes", "nested_absmax_bytes", "code_bytes"]
    assert (rows[state].sum(axis=1) == rows["quant_state_bytes"]).all()
    assert (rows[[f"{place}_bytes" for place in PLACES]].sum(axis=1) == rows["unquantized_bytes"]).all()


def test_a_place_is_the_sum_over_its_dtypes_and_the_csv_has_the_dtypes_that_a_cell_has(tmp_path):
    mixed = components(7, norm_float32=1_000_000, norm_bfloat16=500_000, embedding_bfloat16=200)
    table = table_of(tmp_path, [record("a", measures=mixed), record("b", measures=components(7, head_float16=9))])
    assert table.rows["norm_bytes"].dropna().tolist() == [1_500_000]
    by_dtype = {f"{place}_{dtype}_bytes" for place in PLACES for dtype in DTYPE_NAMES}
    assert by_dtype & set(table.rows) == {
        "norm_float32_bytes", "norm_bfloat16_bytes", "embedding_bfloat16_bytes", "head_float16_bytes",
    }  # fmt: skip
    headings = [column.heading for column in table.columns]
    assert [name for name in PLACES if name in headings] == ["embedding", "head", "norm"]


def test_a_prediction_that_holds_is_zero_bytes_off_and_one_that_does_not_is_a_note(tmp_path):
    records = memory_matrix()
    assert {row["off by"] for row in shown(table_of(tmp_path, records)).values()} == {"0 B", "–"}  # noqa: RUF001
    assert table_of(tmp_path, records).notes == ()
    records[1]["measures"]["predicted_stored_bytes"] -= 1024
    table = table_of(tmp_path, records)
    assert shown(table)["nf4-dq"]["off by"] == "−1,024 B"  # noqa: RUF001
    assert table.notes == ("Stored bytes are not what was predicted: nf4-dq (−1,024 B).",)  # noqa: RUF001


@pytest.mark.parametrize("status", ["invalid", "crashed"])
def test_a_cell_that_never_loaded_stays_with_dashes_and_its_status(tmp_path, status):
    records = [record("nf4", measures=NF4), record("bad", status=status, phase="verify")]
    assert set(table_of(tmp_path, records).texts()[1][1:-1]) == {"–"}  # noqa: RUF001
