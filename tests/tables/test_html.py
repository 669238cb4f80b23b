from __future__ import annotations

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.tables.html import MOST_ROWS, to_html
from bench.tables.kernel_layers import layers_table
from bench.tables.kernels import load_kernels
from bench.tables.table import Column, Table, field, printable

from .kernel_examples import small_matrix, write_kernels

FETCHES = r"""(?:src|href)\s*=\s*["']?[^"'#\s]|url\((?!#)|@import"""
VOID = {"meta", "br", "path", "use", "rect"}
SVG = """<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg width="9pt" height="9pt" viewBox="0 0 9 9"><path d="M0 0"/></svg>
"""


class Page(HTMLParser):
    """What a page is made of; every tag has to be closed where it was opened."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.cells, self.ids, self.links, self.text = [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def table_of(texts, name="t", **about):
    rows = pd.DataFrame({"a": texts, "b": texts}, dtype=object)
    columns = (Column("id", field("a"), "left"), Column("a long\nheading", field("b")))
    return Table(name, f"Table {name}", columns, rows, ("Caption.",), **about)


def test_every_table_has_its_heading_rows_caption_and_a_link_to_it():
    page = Page(to_html("The <title> & more", [table_of(["x"], "one"), table_of(["y", "z"], "two")], {}))
    assert page.cells == [["id", "a long heading"], ["x", "x"], ["id", "a long heading"], ["y", "y"], ["z", "z"]]
    assert page.ids == ["one", "two"]
    assert page.links == ["#one", "#two"]
    assert page.text.count("The <title> & more") == 2
    assert [page.tags.count(tag) for tag in ("h1", "h2", "table")] == [1, 2, 2]
    assert page.text.count("Caption.") == 2


def test_the_page_needs_nothing_else_and_may_fetch_nothing(tmp_path):
    table = layers_table(load_kernels(write_kernels(tmp_path / "r", small_matrix())))
    text = to_html("t", [table], {"layers": SVG})
    assert "default-src 'none'" in text
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(FETCHES, text)
    assert len(page.cells) == len(table.rows) + 1


def test_a_picture_stands_below_its_table_without_the_prolog_of_a_file():
    text = to_html("t", [table_of(["x"], "one"), table_of(["y"], "two")], {"one": SVG})
    assert "<?xml" not in text
    assert text.count("<!DOCTYPE") == 1
    places = [text.index(words) for words in ("Table one", "<svg", "Table two")]
    assert places == sorted(places)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_no_text_gets_out_of_its_cell(texts):
    page = Page(to_html(texts[0], [table_of(texts)], {}, texts))
    assert [len(row) for row in page.cells] == [2] * (len(texts) + 1)


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "a & b", "[x](javascript:alert)", "<svg", "</td>", "&lt;"]
)
def test_markup_in_a_cell_a_title_or_a_note_is_text(text):
    page = Page(to_html(text, [table_of([text])], {}, [text]))
    assert page.cells[1] == [text, text]
    assert page.text.count(text) == 5
    assert not {"script", "svg"} & set(page.tags)


@given(st.text(min_size=1, max_size=40).map(printable).filter(lambda text: text and text.isprintable()))
def test_a_cell_reads_as_it_was(text):
    (_, row) = Page(to_html("t", [table_of([text])], {})).cells
    assert [cell.strip() for cell in row] == [text.strip()] * 2


def test_lines_of_a_cell_stay_lines():
    assert "first<br>second" in to_html("t", [table_of(["first\nsecond"])], {})


def test_of_a_very_long_table_the_first_rows_are_there_and_it_says_where_all_are():
    page = Page(to_html("t", [table_of([f"row {number}" for number in range(MOST_ROWS + 1_000)], "long")], {}))
    assert len(page.cells) == MOST_ROWS + 1
    assert "… and 1,000 more rows in long.md" in page.text


def test_notes_stand_with_their_table_and_at_the_end():
    page = Page(to_html("t", [table_of(["x"], notes=("of the table",))], {}, ["of the whole"]))
    assert page.text.index("Note: of the table") < page.text.index("Note: of the whole")
