from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from bench.tables.cells import cells_table
from bench.tables.evidence import gather
from bench.tables.load import load_results
from bench.tables.memory import memory_table
from bench.tables.problems import problems_table
from bench.tables.storage import storage_table
from bench.tables.table import Column, Table, field
from bench.tables.terminal import fitting, fold, pieces, print_table

from .examples import default_matrix, memory_matrix, record, write_result

FULL = Path("results/default/tables/cells.md")


def lines_of(table, width, *, color=False):
    console = Console(width=width, record=True, force_terminal=color, color_system="truecolor" if color else None)
    with console.capture() as capture:
        print_table(table, console, FULL)
    return capture.get().splitlines()


def table_of(folder, records, make=cells_table, **kwargs):
    frame = load_results(write_result(folder / "r", records, **kwargs))
    return make(gather(frame) if make is cells_table else frame)


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
@pytest.mark.parametrize("make", [cells_table, storage_table, memory_table])
def test_at_common_widths_no_line_is_too_long_and_every_id_is_whole(tmp_path, width, make):
    table = table_of(tmp_path, default_matrix(seeds=(0, 1)), make)
    lines = lines_of(table, width)
    assert max(map(cell_len, lines)) <= width
    for cell_id in table.rows["id"]:
        assert sum(line.startswith(f"{cell_id} ") for line in lines) == 1
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (storage_table, ["packed", "quant. state", "unquantized", "stored", "HF footprint", "off by"]),
        (memory_table, ["predicted", "measured", "residual %", "short", "status"]),
    ],
)
def test_the_tables_of_memory_keep_what_matters_at_80_characters(tmp_path, make, columns):
    table = table_of(tmp_path, memory_matrix(), make)
    shown = [table.columns[index].heading.replace("\n", " ") for index in fitting(table.columns, table.texts(), 80)]
    assert set(columns) <= set(shown)


def test_where_the_main_columns_do_not_fit_long_ids_are_folded_and_every_figure_is_whole(tmp_path):
    long = [f"nf4-lora_dropout=0.05-ckpt-execution=cuda_graph-{number}" for number in range(2)]
    figures = {"stored_bytes": 111_700_000, "packed_bytes": 53_100_000, "unquantized_bytes": 56_700_000,
               "quant_state_bytes": 1_900_000, "buffer_bytes": 100, "footprint_bytes": 109_800_000}  # fmt: skip
    table = table_of(tmp_path, [record(cell_id, measures=figures) for cell_id in long], storage_table)
    lines = lines_of(table, 80)
    assert max(map(cell_len, lines)) <= 80
    rows = [line for line in lines if line.startswith("nf4-") and line.split()[1:]]
    assert all(line.split()[1:] == ["53.1", "1.9", "56.7", "111.7", "109.8"] for line in rows)
    assert len(rows) == 2


@settings(max_examples=15, deadline=None)
@given(width=st.integers(20, 200), message=st.text(max_size=300), cell_id=st.text("abc-üß漢", min_size=1, max_size=60))
def test_no_line_is_ever_longer_than_the_console(tmp_path_factory, width, message, cell_id):
    records = [record(cell_id, status="oom", phase="train", message=message, hint="try less")]
    folder = tmp_path_factory.mktemp("r")
    for make in (cells_table, storage_table, memory_table, problems_table):
        assert max(map(cell_len, lines_of(table_of(folder, records, make), width))) <= width


def test_a_narrow_terminal_says_which_columns_it_hides_and_where_they_are(tmp_path):
    table = table_of(tmp_path, default_matrix())
    text = " ".join(" ".join(lines_of(table, 80)).split())
    kept = fitting(table.columns, table.texts(), 80)
    hidden = [column.heading.replace("\n", " ") for index, column in enumerate(table.columns) if index not in kept]
    assert len(hidden) > 2
    assert f"hidden at this width: {', '.join(hidden)}; {FULL} has all." in text


LONG = [f"qwen2.5-0.5b-no-upcast-ckpt-paged_adamw_8bit-bs{number}-len256" for number in (4, 16)]


@pytest.mark.parametrize(("width", "is_whole"), [(80, False), (100, False), (130, True)])
def test_long_ids_are_folded_at_their_hyphens_only_where_the_table_does_not_fit_beside_them(tmp_path, width, is_whole):
    figures = {"stored_bytes": 111_700_000, "packed_bytes": 53_100_000, "unquantized_bytes": 56_700_000,
               "quant_state_bytes": 1_900_000, "buffer_bytes": 100, "footprint_bytes": 109_800_000}  # fmt: skip
    table = table_of(tmp_path, [record(cell_id, measures=figures) for cell_id in LONG], storage_table)
    lines = lines_of(table, width)
    ids = [line.split()[0] for line in lines if line.startswith(("qwen", "paged", "bs", "len"))]
    assert "".join(ids) == "".join(LONG)
    assert (len(ids) == len(LONG)) == is_whole
    assert all(line.endswith(("-", "len256")) for line in ids)


def test_at_80_characters_long_ids_leave_room_for_the_main_columns(tmp_path):
    figures = {"stored_bytes": 4.57e8, "train_peak_allocated_bytes": 1.28e9, "tokens_per_s": 2825.0}
    table = table_of(tmp_path, [record(cell_id, measures=figures) for cell_id in LONG])
    heads = " ".join(lines_of(table, 80)[1:3])
    assert all(name in heads for name in ("stored", "peak GB", "tokens/s", "status"))


@pytest.mark.parametrize(
    ("name", "characters", "lines"),
    [
        ("nf4-dq-bf16", 24, ["nf4-dq-bf16"]),
        ("bs4-len256-ckpt", 11, ["bs4-len256-", "ckpt"]),
        ("nf4-dq (baseline)", 12, ["nf4-dq", "(baseline)"]),
        ("a--b", 3, ["a--", "b"]),
        ("paged_adamw_8bit-bs4", 12, ["paged_adamw_", "8bit-", "bs4"]),
        ("", 12, [""]),
    ],
)
def test_a_name_breaks_after_hyphens_and_at_spaces_and_within_a_word_only_where_it_must(name, characters, lines):
    assert fold(pieces(name), characters).split("\n") == lines


@given(st.text("ab-_ 漢", max_size=60), st.integers(2, 40))
def test_a_folded_name_is_no_wider_than_asked_for_and_loses_nothing_but_spaces(name, characters):
    lines = fold(pieces(name), characters).split("\n")
    assert max(map(cell_len, lines)) <= characters
    assert "".join("".join(lines).split()) == "".join(name.split())


def test_a_wide_terminal_hides_nothing(tmp_path):
    assert not any("hidden" in line for line in lines_of(table_of(tmp_path, default_matrix()), 240))


def test_the_narrower_the_fewer_columns_and_those_that_stay_at_80_are_the_main_ones(tmp_path):
    table = table_of(tmp_path, default_matrix())
    counts = [len(fitting(table.columns, table.texts(), width)) for width in range(60, 241, 20)]
    assert counts == sorted(counts)
    shown = [table.columns[index].heading.replace("\n", " ") for index in fitting(table.columns, table.texts(), 80)]
    assert shown == ["id", "stored GB", "train peak GB", "tokens/s", "accuracy % before → after", "status"]


def test_a_long_message_wraps_below_its_row_in_full(tmp_path):
    message = "CUDA out of memory: " + " ".join(f"word{n}" for n in range(60))
    records = [record("nf4-dq", status="oom", phase="train", message=message, hint="halve batch_size")]
    lines = lines_of(table_of(tmp_path, records, problems_table), 80)
    text = " ".join(line.strip() for line in lines)
    assert f"message: {message}" in text
    assert "hint: halve batch_size" in text


@pytest.mark.parametrize(("full", "where"), [(FULL, f" in {FULL}"), (None, "")])
def test_a_table_may_show_its_first_rows_only_and_says_how_many_more_there_are(full, where):
    rows = pd.DataFrame({"a": [f"name-{number}" for number in range(1_500)]})
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        print_table(Table("t", "T", (Column("a", field("a"), "left"),), rows, shown=2), console, full)
    assert capture.get().splitlines() == ["T", "a     ", "──────", "name-0", "name-1", f"… and 1,498 more{where}", ""]


@pytest.mark.parametrize("shown", [3, 4, None])
def test_a_table_that_shows_all_its_rows_says_nothing_of_more(shown):
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        print_table(Table("t", "T", (Column("a", field("a")),), pd.DataFrame({"a": [1, 2, 3]}), shown=shown), console)
    assert "more" not in capture.get()
    assert "3" in capture.get()


def test_square_brackets_and_escapes_in_a_message_are_text(tmp_path):
    records = [record("a", status="crashed", phase="load", message="[red]no[/] \x1b[2J [bold")]
    text = "\n".join(lines_of(table_of(tmp_path, records, problems_table), 100))
    assert "[red]no[/]" in text
    assert "\x1b" not in text


def test_status_is_coloured_and_reads_the_same_without_colour(tmp_path):
    table = table_of(tmp_path, default_matrix())
    coloured, plain = (lines_of(table, 100, color=color) for color in (True, False))
    assert "\x1b[32mok" in "".join(coloured)
    assert "\x1b" not in "".join(plain)


def test_a_torn_record_shows_as_a_note(tmp_path):
    text = " ".join(lines_of(table_of(tmp_path, default_matrix(), tail="{"), 100))
    assert "note: " in text
    assert "cut short" in text
