from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.errors import BenchError
from bench.matrix.cards import CARDS, CONTEXT_BYTES
from bench.matrix.expand import load_matrix
from bench.matrix.kernel_parameters import KernelParameters
from bench.matrix.parameters import Parameters
from bench.protocol import PEAK_PARTS

from .tables.kernel_examples import case, refused, write_kernels

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
    assert len(cells) == 21
    assert set(cells[0]) == {"id", "key", "parameters"}
    assert set(cells[0]["parameters"]) == set(Parameters.model_fields)


@pytest.mark.parametrize(
    ("select", "counted", "warned"),
    [
        ("lora-bf16 and not aa", "1 cell, seeds 0, 1, 2: 3 runs", False),
        ("lora-bf16", "2 cells, seeds 0, 1, 2: 9 runs", False),
        ("nf4 and attention", "4 cells, seeds 0, 1, 2: 12 runs", True),
    ],
)
def test_a_plan_counts_its_cells_and_says_where_the_baseline_is_left_out(select, counted, warned):
    shown = CliRunner().invoke(cli, ["plan", str(ROOT / "matrices" / "default.yaml"), "-k", select]).output
    assert counted in shown
    assert ("without the baseline, lora-bf16" in shown) == warned


def test_a_plan_lists_each_run_and_names_those_of_the_baseline():
    shown = CliRunner().invoke(cli, ["plan", str(ROOT / "matrices" / "cpu.yaml")]).output
    first, *others, last = shown.splitlines()[2:]
    assert first == "   1  lora-bf16  seed 0  (baseline)"
    assert last == "   6  lora-bf16  seed 0  (baseline again, for drift)"
    assert sorted(line.split()[1] for line in others) == ["fp4", "fp4-dq", "nf4", "nf4-dq"]


def test_the_default_matrix_runs_its_baseline_a_second_time_with_other_random_numbers():
    matrix = load_matrix(ROOT / "matrices" / "default.yaml")
    cells = {cell.id: cell for cell in matrix.cells}
    same, again = (cells[id_].parameters.model_dump() for id_ in ("lora-bf16", "lora-bf16-aa"))
    assert [name for name in same if same[name] != again[name]] == ["seed_offset"]
    assert matrix.watch_pairs == (("card_arrival", "card_delivery_estimate"),)


@pytest.mark.parametrize(
    "path",
    sorted(path for path in (ROOT / "matrices").glob("*.yaml") if not path.stem.startswith("kernels")),
    ids=lambda path: path.stem,
)
def test_every_shipped_matrix_opens_with_the_command_that_runs_it_and_can_be_planned(path):
    assert path.read_text().splitlines()[0] == f"# nox -s bench -- matrices/{path.name}"
    assert CliRunner().invoke(cli, ["plan", str(path)]).exit_code == 0


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_matrix_of_kernels_is_told_with_the_command_that_runs_it(command, tmp_path):
    done = bench(command, "matrices/kernels-cpu.yaml", *(["--results", tmp_path / "r"] if command == "run" else []))
    assert done.returncode == 2
    what = "this matrix is of kernels; nox -s kernels -- matrices/kernels-cpu.yaml runs it"
    assert done.stderr == f"error: matrices/kernels-cpu.yaml:6:7: {what}\n"
    assert not (tmp_path / "r").exists()


def test_the_matrix_of_memory_shows_what_each_of_its_axes_does_to_both_models():
    matrix = load_matrix(ROOT / "matrices" / "memory.yaml")
    cells = [cell.parameters.model_dump() for cell in matrix.cells]
    axes = [name for name in Parameters.model_fields if len({str(cell[name]) for cell in cells}) > 1]
    assert axes == ["model", "kbit_upcast", "gradient_checkpointing", "optim", "batch_size", "max_length"]
    assert 24 <= len(cells) <= 40
    pairs = {
        (one["model"], name)
        for one in cells
        for other in cells
        for name in axes
        if [axis for axis in axes if one[axis] != other[axis]] == [name]
    }
    assert pairs == {(model, name) for model in ("qwen2.5-0.5b", "qwen2.5-7b") for name in axes}


def test_params_lists_every_parameter_with_its_meaning():
    shown = CliRunner().invoke(cli, ["params", "--json"])
    rows = {row["name"]: row for row in json.loads(shown.output)}
    assert list(rows) == list(Parameters.model_fields)
    assert all(row["about"] for row in rows.values())
    assert "kbit_upcast" in CliRunner().invoke(cli, ["params"]).output


def test_params_of_kernels_are_their_own():
    rows = json.loads(CliRunner().invoke(cli, ["params", "--kernels", "--json"]).output)
    assert [row["name"] for row in rows] == list(KernelParameters.model_fields)
    assert "OUTxIN" in CliRunner().invoke(cli, ["params", "--kernels"]).output


@pytest.mark.parametrize("width", [80, 100, 160])
def test_params_cuts_no_value_at_any_common_width(width):
    listed = json.loads(CliRunner().invoke(cli, ["params", "--json"]).output)
    shown = CliRunner().invoke(cli, ["params"], env={"COLUMNS": str(width)}).output
    assert max(map(len, shown.splitlines())) <= width
    words = set(shown.split())
    for row in listed:
        short = {word for word in row["about"].split() if len(word) <= 12}  # longer ones may be folded
        assert {row["name"], *row["type"].split(), *row["default"].split(), *short} <= words
    assert "…" not in shown


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
        (["--seeds", "0,1000"], "lora-bf16 and lora-bf16-aa would make the same run"),
        (["-k", "nf4 and ("], "-k"),
        (["-k", "nf5"], "nf5"),
        (["--gpus", "7"], "GPU 7 does not exist"),
        (["--add-seeds", "0"], "0 is not in the range"),
        (
            ["--add-seeds", "2", "--seeds", "0"],
            "--add-seeds goes on from the seeds that a result has, and --seeds does",
        ),
        (["--add-seeds", "2", "--fresh"], "--add-seeds goes on from the seeds that a result has, and --fresh does not"),
        (["--add-seeds", "2"], "has no records to add seeds to; run it without --add-seeds first"),
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


def test_tables_of_kernels_are_shown_written_and_printed_as_json(tmp_path):
    folder = write_kernels(tmp_path / "kernels", [case("none"), case("nf4")], refusals=[refused()])
    shown = CliRunner().invoke(cli, ["tables", str(folder)])
    assert shown.exit_code == 0
    assert "kernels: time against 16-bit" in shown.output
    assert (folder / "tables" / "report.html").is_file()
    rows = json.loads(CliRunner().invoke(cli, ["tables", str(folder / "kernels.json"), "--json"]).output)
    assert [(row["quant_type"], row["status"]) for row in rows] == [("none", "ok"), ("nf4", "ok"), ("nf4", "invalid")]
    assert rows[1]["time_ratio_16bit"] == pytest.approx(rows[1]["p50_s"] / rows[0]["p50_s"])


def test_a_damaged_file_of_kernels_exits_with_2_and_writes_nothing(tmp_path):
    path = tmp_path / "kernels.json"
    path.write_text('{"benchmarks": [3], "matrix": {}}')
    done = bench("tables", path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [path]


# Memory ---------------------------------------------------------------------------------------------------------------

# Stands in for the worker that predicts: every cell needs ten billion bytes, and the one named `gone` is refused.
PREDICTS = """
import json, sys
from bench.protocol import PEAK_PARTS
names = ("footprint", "stored", "train_peak_allocated", *(f"peak_{part}" for part in PEAK_PARTS))
measures = {f"predicted_{name}_bytes": 10**6 for name in names} | {"predicted_needed_bytes": 10**10}
question = json.load(sys.stdin)
print("trusted" if question["trust_remote_code"] else "not trusted", file=open("trust", "w"))
for cell in question["cells"]:
    message = dict(kind="prediction", id=cell["id"], measures=measures, note=None)
    if cell["id"].startswith("gone"):
        message = dict(kind="refusal", id=cell["id"], message="there is no such model", hint="name another")
    print(json.dumps(message), flush=True)
"""
DEFAULT = str(ROOT / "matrices" / "default.yaml")


@pytest.fixture
def predicts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.run.forecast.PREDICT_COMMAND", (sys.executable, "-c", PREDICTS))
    return tmp_path


@pytest.mark.usefixtures("predicts")
def test_a_plan_of_memory_shows_each_cell_and_each_card():
    done = CliRunner().invoke(cli, ["plan", DEFAULT, "--memory"])
    assert done.exit_code == 0
    assert done.output.startswith("default: Which 4-bit settings")
    assert "21 cells, seeds 0, 1, 2: 66 runs" in done.output
    assert "default: predicted peak of training" in done.output
    assert "nf4-dq-bf16-all-linear" in done.output
    assert all(name in done.output for name in CARDS)
    assert "predicting" not in done.output


@pytest.mark.usefixtures("predicts")
def test_a_plan_of_memory_is_asked_for_some_cards_only():
    done = CliRunner().invoke(cli, ["plan", DEFAULT, "--memory", "-k", "lora", "--card", "rtx 3090", "--card", "20GB"])
    assert done.exit_code == 0
    assert "RTX 3090" in done.output
    assert "20GB" in done.output
    assert "H100" not in done.output


@pytest.mark.usefixtures("predicts")
def test_a_plan_of_memory_without_the_baseline_says_nothing_of_changes():
    done = CliRunner().invoke(cli, ["plan", DEFAULT, "--memory", "-k", "nf4 and attention"])
    assert done.exit_code == 0
    assert "without the baseline" not in done.output


@pytest.mark.usefixtures("predicts")
def test_a_plan_of_memory_in_json_is_the_plan_with_a_forecast_in_each_cell():
    plain, done = (CliRunner().invoke(cli, ["plan", DEFAULT, "--json", *more]) for more in ([], ["--memory"]))
    made, stated = json.loads(done.output), json.loads(plain.output)
    assert [cell["id"] for cell in made["cells"]] == [cell["id"] for cell in stated["cells"]]
    assert all(cell["memory"]["need_bytes"] == 10**10 + made["context_bytes"] for cell in made["cells"])
    assert not any("needed" in name for cell in made["cells"] for name in cell["memory"])
    assert all(set(cell["memory"]["fits"]) == set(CARDS) for cell in made["cells"])
    assert "memory" not in stated["cells"][0]


@pytest.mark.parametrize("flag", [[], ["--trust-remote-code"]])
def test_a_model_is_trusted_only_where_the_command_says_so(predicts, flag):
    assert CliRunner().invoke(cli, ["plan", DEFAULT, "--memory", "-k", "lora", *flag]).exit_code == 0
    assert (predicts / "trust").read_text().strip() == ("trusted" if flag else "not trusted")


def test_no_matrix_can_allow_code(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("schema: 1\ndefaults: {trust_remote_code: true}\naxes: {quant_type: [nf4]}\n")
    done = bench("plan", path)
    assert done.returncode == 2
    assert "trust_remote_code" in done.stderr


def test_what_can_be_predicted_is_shown_beside_what_cannot_and_the_exit_code_tells(predicts):
    path = predicts / "m.yaml"
    path.write_text("schema: 1\ninclude: [{id: gone}, {id: gone-too, lora_r: 8}, {id: here, lora_r: 4}]\n")
    done = CliRunner().invoke(cli, ["plan", str(path), "--memory"])
    assert done.exit_code == 2
    assert "not predicted: there is no such model; name another" in done.output
    made = CliRunner().invoke(cli, ["plan", str(path), "--memory", "--json"])
    assert made.exit_code == 2
    assert [cell["memory"].get("hint") for cell in json.loads(made.output)["cells"]] == ["name another"] * 2 + [None]
    done = CliRunner().invoke(cli, ["plan", str(path), "--memory", "-k", "gone"])
    assert isinstance(done.exception, BenchError)
    assert str(done.exception) == f"{path}: gone and 1 more: there is no such model; name another"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "--card", "T5"], "--card: 'T5' is neither a card nor a size such as 20GB; did you mean T4?"),
        (["--memory", "--card", "GTX 4090"], "--card: 'GTX 4090' is neither a card nor a size such as 20GB; did you"),
        (["--memory", "--card", "500MB"], "--card: nothing can run in '500MB'; write more than the 0.71 GB"),
        (["--memory", "--card", "0GB"], "--card: '0GB' is neither a card nor a size such as 20GB; write a size above"),
        (["--card", "T4"], "--card T4 says nothing without --memory: a plan reads no model and no task; add --memory"),
        (["--data", "x"], "--data x says nothing without --memory"),
    ],
)
def test_a_wrong_card_exits_with_2(arguments, words):
    done = bench("plan", DEFAULT, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {words}" in done.stderr


def test_ctrl_c_ends_a_plan_of_memory_and_its_worker(tmp_path):
    path = tmp_path / "pid"
    worker = f"import os, time; print(os.getpid(), file=open({str(path)!r}, 'w')); time.sleep(60)"
    code = f"""
import sys, bench.run.forecast
bench.run.forecast.PREDICT_COMMAND = (sys.executable, "-c", {worker!r})
sys.argv[1:] = ["plan", {DEFAULT!r}, "--memory"]
from bench.cli import main
main()
"""
    run = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (path.exists() and path.read_text().strip()):
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=60)[1] == b""
    assert run.returncode == 130
    assert not Path(f"/proc/{path.read_text().strip()}").exists()


@pytest.mark.slow
def test_memory_is_predicted_without_a_gpu_and_the_parts_of_its_peak_add_up(matrix):
    done = bench("plan", matrix, "--memory", "--json", "--card", "T4")
    assert done.returncode == 0, done.stderr
    for cell in json.loads(done.stdout)["cells"]:
        memory = cell["memory"]
        parts = [memory[f"peak_{part}_bytes"] for part in PEAK_PARTS]
        assert sum(parts) == memory["train_peak_allocated_bytes"] <= memory["need_bytes"] - CONTEXT_BYTES
        assert memory["fits"]["T4"]["headroom_bytes"] > 10**9
        assert memory["note"] is None


@pytest.mark.slow
def test_a_run_writes_below_its_folder_only_goes_on_after_a_torn_record_and_has_nothing_to_do_twice(matrix, tmp_path):
    here, results = tmp_path / "here", tmp_path / "results"
    here.mkdir()
    done = bench("run", matrix, "--results", results, cwd=here)
    assert done.returncode == 0, done.stderr
    runs = [(record["id"], record["repeat"], record["status"]) for record in records(results)]
    assert runs == [("none", 0, "ok"), ("nf4", 0, "ok"), ("none", 1, "ok")]
    assert files_below(here) == set()
    assert {"tiny/matrix.yaml", "tiny/environment.json", "tiny/tables/cells.md", "tiny/tables/cells.csv"} <= (
        files_below(results)
    )
    assert "nf4" in done.stdout

    path = results / "tiny" / "records.jsonl"
    first, second, again = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + again + second[: len(second) // 2])
    done = bench("run", matrix, "--results", results)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(first + again)
    assert [(record["id"], record["status"]) for record in records(results)][2:] == [("nf4", "ok")]

    before = path.read_bytes()
    assert bench("run", matrix, "--results", results).returncode == 0
    assert path.read_bytes() == before
    shown = CliRunner().invoke(cli, ["tables", str(results / "tiny"), "--json"])
    assert [(row["id"], row["repeat"]) for row in json.loads(shown.output)] == [("none", 0), ("none", 1), ("nf4", 0)]


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
    finished = [(made["id"], made["repeat"], made["attempt"], made["status"]) for made in records(results)[2:]]
    assert finished == [("none", 0, 3, "ok"), ("nf4", 0, 1, "ok"), ("none", 1, 1, "ok")]


def with_seeds(results, *seeds):
    """Give the records of seed 0 other seeds, too, as if they had been run with these."""
    path = results / "tiny" / "records.jsonl"
    made = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**entry, "seed": seed}) + "\n" for seed in seeds for entry in made))


def interrupted(*arguments):
    """Interrupt a run once its first worker is there, and return in one line what it has printed."""
    command = [*BENCH, *map(str, arguments)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    worker_of(run)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    return " ".join(said.split())


@pytest.mark.slow
def test_seeds_are_added_to_those_of_a_result_and_an_interruption_says_how_to_go_on(matrix, tmp_path):
    results = tmp_path / "results"
    assert bench("run", matrix, "--results", results).returncode == 0
    with_seeds(results, 0, 1)
    other = tmp_path / "other.yaml"
    other.write_text(matrix.read_text().replace("name: tiny", "name: other"))
    shutil.copytree(results / "tiny", results / "other")
    said = interrupted("run", matrix, other, "--results", results, "--add-seeds", 2)
    assert said.startswith("tiny: adds seeds 2-3 to 0-1 other: adds seeds 2-3 to 0-1 ")
    assert said.endswith("; tiny, run alone, goes on with --seeds 0-3 instead of --add-seeds")
    said = interrupted("run", matrix, "--results", results, "--add-seeds", 2)
    assert said.endswith("; tiny goes on with --seeds 0-2 instead of --add-seeds")

    done = bench("run", matrix, "--results", results, "--add-seeds", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny: adds no seeds yet, since some are unfinished (2): give the command again")
    assert {record["seed"] for record in records(results)} == {0, 1, 2}
