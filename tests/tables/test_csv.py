from __future__ import annotations

import math
from io import StringIO

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.tables.cells import cells_table
from bench.tables.csv import to_csv, whole_numbers
from bench.tables.evidence import gather
from bench.tables.load import load_results
from bench.tables.memory import memory_table
from bench.tables.problems import problems_table
from bench.tables.table import Table

from .examples import default_matrix, record, write_result


def read_back(text, **dtypes):
    return pd.read_csv(StringIO(text), dtype={"key": str, **dtypes}, keep_default_na=False, na_values=[""])


@pytest.mark.parametrize("make", [cells_table, memory_table, problems_table])
def test_pandas_reads_back_the_frame_in_full_precision(tmp_path, make):
    records = [*default_matrix(seeds=(0, 1)), record("dead", status="crashed", phase="load", message='a "b",\nc | d')]
    frame = load_results(write_result(tmp_path / "r", records))
    table = make(gather(frame) if make is cells_table else frame)
    found, rows = read_back(to_csv(table)), whole_numbers(table.rows)
    assert list(found) == list(rows)
    for name in rows:
        assert all(same(*pair) for pair in zip(found[name], rows[name], strict=True)), name


def same(found, value):
    if pd.isna(found) or pd.isna(value):
        return pd.isna(found) and pd.isna(value)
    return found == value or math.isclose(found, value, rel_tol=1e-12)


def test_bytes_are_whole_numbers_and_what_is_missing_is_empty(tmp_path):
    records = [record("a", measures={"stored_bytes": 5_547_065_616}), record("b", status="oom", phase="load")]
    lines = to_csv(memory_table(load_results(write_result(tmp_path / "r", records)))).splitlines()
    column = lines[0].split(",").index("stored_bytes")
    assert [line.split(",")[column] for line in lines[1:]] == ["5547065616", ""]


def test_the_csv_is_finer_than_the_table_where_the_table_has_a_detail():
    detail = pd.DataFrame({"a": ["x", "x"], "n_count": [1.0, 2.0]})
    table = Table("t", "T", (), pd.DataFrame({"a": ["x"]}), shown=1, detail=detail)
    assert to_csv(table) == "a,n_count\nx,1\nx,2\n"


@given(st.text(min_size=1).filter(lambda text: not {"\0", "\r"} & {*text}))
def test_any_message_is_one_field(message):
    table = Table("t", "T", (), pd.DataFrame({"a": [1], "message": [message]}))
    assert read_back(to_csv(table), message=str)["message"].tolist() == [message]
