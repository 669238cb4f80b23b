from __future__ import annotations

import pytest

from bench.errors import BenchError
from bench.run.data import find_data

from .examples import plan_of

BANKING = plan_of("a", "b", task="banking77")


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("QLORA_BENCH_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "banking77").mkdir()
    for name in ("train.csv", "test.csv"):
        (tmp_path / "banking77" / name).touch()
    return tmp_path


def test_without_a_folder_the_hub_is_asked():
    assert find_data(BANKING, None) is None


def test_a_folder_is_made_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert find_data(BANKING, type(folder)(folder.name)) == folder


def test_the_variable_does_as_well_and_the_option_wins(folder, monkeypatch):
    monkeypatch.setenv("QLORA_BENCH_DATA", str(folder))
    assert find_data(BANKING, None) == folder
    monkeypatch.setenv("QLORA_BENCH_DATA", "/nowhere")
    assert find_data(BANKING, folder) == folder


def test_every_missing_file_is_named_with_what_to_do(folder):
    for name in ("train.csv", "test.csv"):
        (folder / "banking77" / name).unlink()
    with pytest.raises(BenchError) as caught:
        find_data(BANKING, folder)
    fix = "put it there, or leave --data out to take the task from the hub"
    missing = [f"--data: there is no {folder}/banking77/{name}; {fix}" for name in ("train.csv", "test.csv")]
    assert [str(problem) for problem in caught.value.problems] == missing


def test_the_variable_is_named_where_it_is_to_blame(monkeypatch):
    monkeypatch.setenv("QLORA_BENCH_DATA", "/nowhere")
    with pytest.raises(BenchError, match="QLORA_BENCH_DATA: there is no /nowhere/banking77"):
        find_data(BANKING, None)


def test_cells_that_read_no_such_task_need_no_files(tmp_path):
    assert find_data(plan_of("a", task="intents"), tmp_path) == tmp_path
    assert find_data(plan_of("a", task="banking77", weights="random"), tmp_path) == tmp_path
