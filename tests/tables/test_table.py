from __future__ import annotations

import unicodedata

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from bench.tables.table import MISSING, Column, Table, field, informative, legend, printable


def test_values_are_shown_as_a_matrix_would_write_them():
    row = {"flag": True, "rate": 5e-4, "steps": 300, "nothing": None, "text": "nf4"}
    assert [field(name)(row) for name in row] == ["true", "5e-4", "300", MISSING, "nf4"]


def test_a_column_without_a_single_figure_is_left_out():
    rows = pd.DataFrame({"a": [None, 1], "b": [None, None]})
    assert [column.heading for column in informative([Column("A", field("a")), Column("B", field("b"))], rows)] == ["A"]


def test_a_legend_says_each_thing_once():
    assert legend([Column("a", str, about="X."), Column("b", str), Column("c", str, about="X.")]) == "X."


def test_texts_may_be_those_of_the_first_rows_only():
    table = Table("t", "T", (Column("A", field("a")),), pd.DataFrame({"a": [1, 2, 3]}))
    assert (table.texts(2), table.texts()) == ([["1"], ["2"]], [["1"], ["2"], ["3"]])


@given(st.text())
def test_nothing_that_steers_a_terminal_is_left(text):
    assert not {unicodedata.category(char) for char in printable(text) if char != "\n"} & {"Cc", "Cs"}


def test_escape_sequences_lose_their_escape_and_lines_stay_lines():
    assert printable("\x1b[31mred\r\nnext\ttab\n") == " [31mred\nnext tab"
