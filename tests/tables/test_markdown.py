from __future__ import annotations

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bench.tables.cells import cells_table
from bench.tables.evidence import gather
from bench.tables.load import load_results
from bench.tables.markdown import escape, to_markdown
from bench.tables.table import Column, Table, field, printable

from .examples import default_matrix, write_result

TEXTS = st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=4)


def table_of(rows):
    columns = (Column("id", field("a"), "left"), Column("a long\nheading", field("b")))
    return Table("t", "A table", columns, pd.DataFrame(rows, columns=["a", "b"], dtype=object), ("Caption.",))


def parsed_rows(markdown):
    """The text of every cell, row by row, the heading first, as a Markdown parser reads them."""
    rows = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append(token)
    return rows


def test_the_default_matrix_parses_back_to_the_same_rows_and_columns(tmp_path):
    table = cells_table(gather(load_results(write_result(tmp_path / "r", default_matrix()))))
    rows = parsed_rows(to_markdown(table).split("default: 18 cells")[0])
    assert len(rows) == 19
    assert {len(row) for row in rows} == {len(table.columns)}
    assert rows[0][5].content == "stored GB"


@given(TEXTS)
def test_any_text_parses_back_to_the_same_number_of_columns_in_every_row(texts):
    rows = parsed_rows(to_markdown(table_of(texts)).rpartition("\n\nCaption.")[0])
    assert [len(row) for row in rows] == [2] * (len(texts) + 1)


@given(
    st.text(min_size=1, max_size=40)
    .map(printable)
    .filter(lambda text: text and text.isprintable() and text == text.strip())
)
def test_escaped_text_reads_as_it_was(text):
    (paragraph,) = [token for token in MarkdownIt("commonmark").parse(f"x {escape(text)}") if token.type == "inline"]
    assert "".join(child.content for child in paragraph.children) == f"x {text}"


def test_pipes_newlines_and_tags_are_escaped_and_ordinary_names_are_not():
    assert escape("a|b\n<module> __init__ double_quant") == r"a\|b<br>\<module\> \_\_init\_\_ double_quant"


def test_title_caption_legend_and_notes_stand_around_the_table():
    table = Table(
        "t", "T", (Column("id", field("a"), "left", about="Legend."),), pd.DataFrame({"a": ["x"]}), ("C.",), ("N.",)
    )
    assert to_markdown(table) == "# T\n\n| id |\n| --- |\n| x |\n\nC.\n\nLegend.\n\n**Note:** N.\n"
