from __future__ import annotations

import gzip
import re

import pytest
from rich.console import Console

from bench.errors import BenchError
from bench.tables import render, roofline_picture
from bench.tables.picture import INSTALL, can_draw
from bench.tables.render import frame_at, results_at, show, write_tables

from .examples import default_matrix, memory_matrix, record, write_result
from .kernel_examples import CPU, case, refused, small_matrix, write_kernels
from .test_html import FETCHES, Page

needs_matplotlib = pytest.mark.skipif(not can_draw(), reason="needs matplotlib")


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setattr(render, "can_draw", lambda: False)


def shown(path, width=100):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        show(results_at(path), console)
    return capture.get()


def test_every_table_is_written_inside_the_result_folder_and_nothing_else(tmp_path, no_matplotlib):
    folder = write_result(tmp_path / "results" / "default", default_matrix())
    before = set(tmp_path.rglob("*"))
    written = write_tables(results_at(folder))
    tables = folder / "tables"
    with_rows = ("cells", "effects", "comparisons", "quantization", "storage", "memory")
    names = [f"{table}{suffix}" for table in with_rows for suffix in (".md", ".csv")]
    assert written == [tables / name for name in (*names, "report.html")]
    assert set(tmp_path.rglob("*")) - before == {tables, *written}


def test_problems_are_written_while_there_are_any_and_removed_when_there_are_none(tmp_path):
    folder = write_result(tmp_path / "r", [record("a", status="crashed", phase="load", message="boom")])
    assert folder / "tables" / "problems.md" in write_tables(results_at(folder))
    write_result(folder, [record("a", status="crashed", phase="load"), record("a", attempt=2)])
    write_tables(results_at(folder))
    assert not list((folder / "tables").glob("problems.*"))


def test_a_baseline_that_ran_once_more_changes_no_figure_tells_of_drift_and_is_a_problem_where_it_failed(tmp_path):
    folder = write_result(tmp_path / "r", default_matrix())
    tables = csv_files(folder)
    again = record("lora-bf16", repeat=1, position=20, measures={"tokens_per_s": 1.0, "accuracy_after": 0.1})
    write_result(folder, [*default_matrix(), again])
    assert csv_files(folder) == tables
    assert "tokens/s changed by −100.0 %" in (folder / "tables" / "cells.md").read_text()  # noqa: RUF001
    write_result(folder, [*default_matrix(), {**again, "status": "timeout", "message": "not done after 3600 s"}])
    write_tables(results_at(folder))
    assert "not done after 3600 s" in (folder / "tables" / "problems.md").read_text()


def csv_files(folder):
    return {path.name: path.read_bytes() for path in write_tables(results_at(folder)) if path.suffix == ".csv"}


def test_writing_twice_gives_the_same_bytes(tmp_path):
    folder = write_result(tmp_path / "r", default_matrix(seeds=(0, 1)))
    first = [path.read_bytes() for path in write_tables(results_at(folder))]
    assert [path.read_bytes() for path in write_tables(results_at(folder))] == first


def test_each_result_below_a_folder_gets_its_own_tables(tmp_path, no_matplotlib):
    for name in ("one", "two"):
        write_result(tmp_path / name, [record("a", matrix=name)])
    assert len(write_tables(results_at(tmp_path))) == 14
    assert "one: results by cell" in (text := shown(tmp_path))
    assert "two: results by cell" in text


def test_a_table_that_cannot_be_written_is_an_error_that_says_so(tmp_path):
    folder = write_result(tmp_path / "r", default_matrix())
    (folder / "tables").write_text("in the way", encoding="utf-8")
    with pytest.raises(BenchError, match="cannot be written"):
        write_tables(results_at(folder))


def test_without_records_a_sentence_says_what_to_do_and_nothing_is_written(tmp_path):
    folder = write_result(tmp_path / "r", [], tail='{"schema": 1')
    assert "holds no record yet: run its matrix" in (text := " ".join(shown(folder).split()))
    assert "cut short" in text
    assert write_tables(results_at(folder)) == []
    assert not (folder / "tables").exists()


def test_the_conditions_and_doubts_are_said_once_in_the_terminal(tmp_path):
    folder = write_result(tmp_path / "r", [*default_matrix(), record("x", status="oom", phase="load")], tail="{")
    text = " ".join(shown(folder).split())
    assert all(f"default: {name}" in text for name in ("results", "storage", "training memory", "problems"))
    assert text.count("19 cells, n = 1 seed") == 1
    assert text.count("cut short") == 1


@needs_matplotlib
def test_pictures_stand_beside_the_tables_and_are_the_same_each_time(tmp_path):
    folder = write_result(tmp_path / "r", memory_matrix())
    pictures = [path for path in write_tables(results_at(folder)) if path.suffix in (".svg", ".png")]
    assert [path.name for path in pictures] == ["memory.svg", "memory.png"]
    first = [path.read_bytes() for path in pictures]
    write_tables(results_at(folder))
    assert [path.read_bytes() for path in pictures] == first
    assert not list((folder / "tables").glob(".*"))


@needs_matplotlib
def test_pictures_of_what_is_no_longer_known_are_removed(tmp_path):
    folder = write_result(tmp_path / "r", memory_matrix())
    write_tables(results_at(folder))
    write_result(folder, [record("a", status="crashed", phase="start")])
    write_tables(results_at(folder))
    assert not list((folder / "tables").glob("memory.[ps][nv]g"))


def test_without_matplotlib_a_line_says_how_to_get_the_pictures(tmp_path, no_matplotlib):
    folder = write_result(tmp_path / "r", memory_matrix())
    assert not [path for path in write_tables(results_at(folder)) if path.suffix in (".svg", ".png")]
    text = shown(folder)
    assert "█ base" in text
    assert text.count(INSTALL) == 1


@needs_matplotlib
def test_with_matplotlib_that_line_is_not_there(tmp_path):
    assert INSTALL not in shown(write_result(tmp_path / "r", memory_matrix()))


def test_the_bars_stand_below_the_table_of_memory(tmp_path):
    text = shown(write_result(tmp_path / "r", memory_matrix()))
    places = [text.index(f"default: {words}") for words in ("training memory", "predicted peak", "problems")]
    assert places == sorted(places)


# Kernels --------------------------------------------------------------------------------------------------------------

KERNEL_TABLES = ("overheads", "settings", "fused", "layers")


def written_names(path):
    return [file.name for file in write_tables(results_at(path))]


def test_tables_of_kernels_are_written_beside_their_file_and_nothing_else(tmp_path, no_matplotlib):
    folder = write_kernels(tmp_path / "results" / "kernels", small_matrix(), refusals=[refused()])
    before = set(tmp_path.rglob("*"))
    written = write_tables(results_at(folder))
    names = [f"{table}{suffix}" for table in (*KERNEL_TABLES, "refused") for suffix in (".md", ".csv")]
    assert written == [folder / "tables" / name for name in (*names, "report.html")]
    assert set(tmp_path.rglob("*")) - before == {folder / "tables", *written}


@needs_matplotlib
def test_the_roofline_stands_beside_them_and_everything_is_the_same_each_time(tmp_path):
    folder = write_kernels(tmp_path / "r", small_matrix())
    written = write_tables(results_at(folder))
    assert [path.name for path in written[-3:]] == ["roofline.svg", "roofline.png", "report.html"]
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_tables(results_at(folder))] == first
    write_kernels(folder, [case(operation="quantize")])
    write_tables(results_at(folder))
    assert not list((folder / "tables").glob("roofline.*"))


def test_a_file_of_kernels_may_be_named_itself_and_gzipped(tmp_path, no_matplotlib):
    folder = write_kernels(tmp_path / "r", small_matrix())
    names = written_names(folder)
    (folder / "kept.json.gz").write_bytes(gzip.compress((folder / "kernels.json").read_bytes()))
    assert written_names(folder / "kept.json.gz") == written_names(folder / "kernels.json") == names
    (folder / "kernels.json").rename(folder / "other.json")
    with pytest.raises(BenchError, match=r"no records\.jsonl here or below"):
        results_at(folder)


def test_tables_of_kernels_stand_in_the_order_in_which_a_reader_wants_them(tmp_path, no_matplotlib):
    text = shown(write_kernels(tmp_path / "r", small_matrix(), refusals=[refused()]))
    titles = ("time against 16-bit", "what each setting does", "where the fused", "what each layer costs", "refused")
    places = [text.index(f"kernels: {words}") for words in titles]
    assert places == sorted(places)
    assert " ".join(text.split()).count("n = 20 rounds of 40 launches") == 1
    assert text.count(roofline_picture.INSTALL) == 1


def test_where_every_case_was_refused_it_is_that_table_alone(tmp_path):
    folder = write_kernels(tmp_path / "r", [], refusals=[refused()])
    assert written_names(folder) == ["refused.md", "refused.csv", "report.html"]
    assert "q_proj: no such layer" in shown(folder)


def test_results_of_cells_and_of_kernels_are_both_found_below_a_folder(tmp_path, no_matplotlib):
    write_result(tmp_path / "cells", [record("a", matrix="cells")])
    write_kernels(tmp_path / "kernels", small_matrix())
    assert [result.matrix for result in results_at(tmp_path)] == ["cells", "kernels"]
    assert [result.matrix for result in results_at(tmp_path / "kernels")] == ["kernels"]
    text = shown(tmp_path)
    assert "cells: results by cell" in text
    assert "kernels: time against 16-bit" in text


def test_rows_are_those_of_one_kind_of_result(tmp_path):
    cells = write_result(tmp_path / "cells", [record("a"), record("b")])
    kernels = write_kernels(tmp_path / "kernels", [case(), case("none")])
    assert frame_at(cells)["id"].tolist() == ["a", "b"]
    assert frame_at(kernels)["quant_type"].tolist() == ["nf4", "none"]
    with pytest.raises(BenchError, match=r"rows make no single table: .*cells, .*kernels\.json; give one"):
        frame_at(tmp_path)
    with pytest.raises(BenchError, match="does not exist"):
        frame_at(tmp_path / "nothing")


def test_a_host_s_times_make_tables_without_what_only_a_gpu_has(tmp_path):
    info = {"launch": "host", "fused": None, "scratch_bytes": None, "cache_bytes": None}
    folder = write_kernels(tmp_path / "r", [case(name, info=info) for name in ("none", "nf4", "fp4")], machine=CPU)
    names = written_names(folder)
    assert "overheads.md" in names
    assert "fused.md" not in names
    layers = (folder / "tables" / "layers.md").read_text()
    assert "scratch" not in layers
    assert "Times by the host's clock." in layers


# The report -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda folder: write_kernels(folder, small_matrix()), lambda folder: write_result(folder, memory_matrix())]
)
def test_the_report_has_every_table_the_picture_and_nothing_to_fetch(tmp_path, make):
    folder = make(tmp_path / "r")
    written = write_tables(results_at(folder))
    text = written[-1].read_text(encoding="utf-8")
    page = Page(text)
    tables = [path.stem for path in written if path.suffix == ".md"]
    assert page.links == [link for link in page.links if link.startswith("#")]
    assert set(tables) <= set(page.ids)
    assert page.tags.count("table") == len(tables)
    assert page.tags.count("svg") == (1 if can_draw() else 0)
    assert not re.search(FETCHES, text)
    assert "script" not in page.tags


def test_the_report_says_conditions_and_doubts_once(tmp_path):
    folder = write_result(tmp_path / "r", [*default_matrix(), record("x", status="oom", phase="load")], tail="{")
    page = Page(write_tables(results_at(folder))[-1].read_text(encoding="utf-8"))
    assert page.text.count("19 cells, n = 1 seed") == 1
    assert page.text.count("cut short") == 1
