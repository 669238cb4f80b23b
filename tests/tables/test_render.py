from __future__ import annotations

import pytest
from rich.console import Console

from bench.errors import BenchError
from bench.tables import render
from bench.tables.picture import INSTALL, can_draw
from bench.tables.render import results_at, show, write_tables

from .examples import default_matrix, memory_matrix, record, write_result

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
    assert written == [tables / name for name in names]
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
    assert len(write_tables(results_at(tmp_path))) == 12
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
