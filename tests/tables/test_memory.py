from __future__ import annotations

from bench.tables.load import load_results
from bench.tables.memory import memory_table

from .examples import BF16, NF4, record, storage, write_result


def table_of(folder, records):
    return memory_table(load_results(write_result(folder / "r", records, baseline=None)))


def test_a_7b_model_is_shown_in_gigabytes_whose_parts_add_up(tmp_path):
    measures = {
        **storage(3_262_644_224, 407_843_136, 2_180_656_128),
        "adapter_bytes": 80_740_352,
        "parameters_count": 7_615_616_512,
        "quantized_parameters_count": 6_525_288_448,
    }
    table = table_of(tmp_path, [record("nf4", measures=measures)])
    assert table.title == "Memory of default, in GB"
    (row,) = table.texts()
    assert row == ["nf4", "85.7", "3.263", "0.408", "2.181", "<0.001", "5.851", "5.443", "0.081", "ok"]


def test_a_small_model_is_shown_in_megabytes_and_the_files_keep_every_byte(tmp_path):
    table = table_of(tmp_path, [record("nf4", measures=NF4), record("bf16", measures=BF16)])
    assert table.title == "Memory of default, in MB"
    assert [row[1:4] for row in table.texts()] == [["78.9", "53.1", "6.6"], ["0.0", "0.0", "0.0"]]
    parts = ["packed_bytes", "quant_state_bytes", "unquantized_bytes", "buffer_bytes"]
    assert (table.rows[parts].sum(axis=1) == table.rows["stored_bytes"]).all()


def test_a_cell_that_never_loaded_stays_with_dashes_and_its_status(tmp_path):
    records = [record("nf4", measures=NF4), record("bad", status="invalid", phase="verify")]
    assert set(table_of(tmp_path, records).texts()[1][1:-1]) == {"–"}  # noqa: RUF001
