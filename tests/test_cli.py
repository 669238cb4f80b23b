from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.matrix.parameters import Parameters

ROOT = Path(__file__).parent.parent
BENCH = (sys.executable, "-m", "bench")


@pytest.fixture
def matrix(tiny, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""\
schema: 1
name: tiny
defaults:
  model: {tiny("llama")}
  task: intents
  train_examples: 24
  eval_examples: 12
  batch_size: 4
  max_steps: 3
  compute_dtype: float32
  optim: adamw_torch
axes:
  quant_type: [nf4, none]
baseline: none
"""
    )
    return path


def bench(*arguments, cwd=ROOT):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [*BENCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=240)


def records(results):
    return [json.loads(line) for line in (results / "tiny" / "records.jsonl").read_text().splitlines()]


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def worker_of(run, deadline_s=60):
    """Return the process id of the worker that `run` has started."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.02)
    raise AssertionError("no worker was started")


def test_a_plan_in_json_names_every_cell_and_imports_neither_torch_nor_pandas():
    code = (
        "import sys; from bench.cli import cli\n"
        "cli(['plan', 'matrices/default.yaml', '--json'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'pandas', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    cells = json.loads(done.stdout)["cells"]
    assert len(cells) == 19
    assert set(cells[0]) == {"id", "key", "parameters"}
    assert set(cells[0]["parameters"]) == set(Parameters.model_fields)


@pytest.mark.parametrize(
    ("select", "counted", "warned"),
    [("lora", "1 cell, seed 0: 1 run", False), ("nf4 and attention", "4 cells, seed 0: 4 runs", True)],
)
def test_a_plan_counts_its_cells_and_says_where_the_baseline_is_left_out(select, counted, warned):
    shown = CliRunner().invoke(cli, ["plan", str(ROOT / "matrices" / "default.yaml"), "-k", select]).output
    assert counted in shown
    assert ("without the baseline, lora-bf16" in shown) == warned


@pytest.mark.parametrize("path", sorted((ROOT / "matrices").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_matrix_opens_with_the_command_that_runs_it_and_can_be_planned(path):
    assert path.read_text().splitlines()[0] == f"# nox -s bench -- matrices/{path.name}"
    assert CliRunner().invoke(cli, ["plan", str(path)]).exit_code == 0


def test_params_lists_every_parameter_with_its_meaning():
    shown = CliRunner().invoke(cli, ["params", "--json"])
    rows = {row["name"]: row for row in json.loads(shown.output)}
    assert list(rows) == list(Parameters.model_fields)
    assert all(row["about"] for row in rows.values())
    assert "kbit_upcast" in CliRunner().invoke(cli, ["params"]).output


def test_mistakes_are_told_all_at_once_and_nothing_is_written(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("schema: 1\ndefaults:\n  learning_rat: 2e-4\naxes:\n  quant_type: [nf5]\n")
    done = bench("run", path, "--results", tmp_path / "results")
    assert done.returncode == 2
    assert f"{path}:3:3: " in done.stderr
    assert "learning_rate" in done.stderr
    assert f"{path}:5:16: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "one"], "--seeds"),
        (["--seeds", "0-4294967295"], "4,294,967,296 seeds"),
        (["-k", "nf4 and ("], "-k"),
        (["-k", "nf5"], "nf5"),
        (["--gpus", "7"], "GPU 7 does not exist"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_option_exits_with_2_and_writes_nothing(tmp_path, arguments, words):
    done = bench("run", "matrices/default.yaml", "--results", tmp_path / "results", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_two_matrices_of_one_name_are_refused_since_they_would_share_a_folder(tmp_path):
    done = bench("run", "matrices/cpu.yaml", "matrices/cpu.yaml", "--results", tmp_path / "results")
    assert done.returncode == 2
    assert "two matrices have the name cpu" in done.stderr
    assert not (tmp_path / "results").exists()


def test_tables_of_a_folder_without_results_exits_with_2(tmp_path):
    done = CliRunner().invoke(cli, ["tables", str(tmp_path)])
    assert done.exit_code != 0
    assert bench("tables", tmp_path).returncode == 2


@pytest.mark.slow
def test_a_run_writes_below_its_folder_only_goes_on_after_a_torn_record_and_has_nothing_to_do_twice(matrix, tmp_path):
    here, results = tmp_path / "here", tmp_path / "results"
    here.mkdir()
    done = bench("run", matrix, "--results", results, cwd=here)
    assert done.returncode == 0, done.stderr
    assert [(record["id"], record["status"]) for record in records(results)] == [("none", "ok"), ("nf4", "ok")]
    assert files_below(here) == set()
    assert {"tiny/matrix.yaml", "tiny/environment.json", "tiny/tables/cells.md", "tiny/tables/cells.csv"} <= (
        files_below(results)
    )
    assert "nf4" in done.stdout

    path = results / "tiny" / "records.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[: len(second) // 2])
    done = bench("run", matrix, "--results", results)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(first)
    assert [(record["id"], record["status"]) for record in records(results)] == [("none", "ok"), ("nf4", "ok")]

    before = path.read_bytes()
    assert bench("run", matrix, "--results", results).returncode == 0
    assert path.read_bytes() == before
    shown = CliRunner().invoke(cli, ["tables", str(results / "tiny"), "--json"])
    assert [row["id"] for row in json.loads(shown.output)] == ["none", "nf4"]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_tried_again_and_an_interrupted_run_goes_on(matrix, tmp_path):
    results = tmp_path / "results"
    command = [*BENCH, "run", str(matrix), "--results", str(results)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    killed = worker_of(run)
    os.kill(killed, signal.SIGKILL)
    while not (results / "tiny" / "records.jsonl").exists():
        time.sleep(0.05)
    assert worker_of(run) != killed
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert [record["status"] for record in records(results)] == ["crashed", "interrupted"]
    assert "SIGKILL" in records(results)[0]["message"]

    done = bench("run", matrix, "--results", results)
    assert done.returncode == 0, done.stderr
    assert [(r["id"], r["attempt"], r["status"]) for r in records(results)[2:]] == [("none", 3, "ok"), ("nf4", 1, "ok")]
