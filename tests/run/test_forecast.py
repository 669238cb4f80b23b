from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.run.forecast import Prediction, Refusal, predictions, refused

from .examples import plan_of
from .test_local import alive, wait_for

START = """
import json, os, sys, time
question = json.load(sys.stdin)
def answer(cell, **measures):
    begin(cell)
    print(json.dumps(dict(kind="prediction", id=cell["id"], measures=measures, note=None)), flush=True)
def begin(cell):
    print(json.dumps(dict(kind="predicting", id=cell["id"])), flush=True)
"""
EACH = "for cell in question['cells']: answer(cell, predicted_needed_bytes=cell['parameters']['lora_r'])"


def ask(*ids: str, code: str = EACH, **options):
    return predictions(plan_of(*ids).cells, command=(sys.executable, "-c", START + code), **options)


def test_every_cell_gets_its_answer_in_the_order_of_the_plan():
    backwards = EACH.replace("question['cells']", "reversed(question['cells'])")
    for code in (EACH, backwards):
        found = ask("a", "b", "c", code=code)
        assert [*found.items()] == [
            (name, Prediction({"predicted_needed_bytes": rank})) for rank, name in enumerate("abc", start=1)
        ]


def test_a_refusal_and_a_lower_bound_are_told_apart_from_a_prediction():
    code = """
print(json.dumps(dict(kind="refusal", id="a", message="no such model", hint="name another")))
print(json.dumps(dict(kind="prediction", id="b", measures={"predicted_needed_bytes": 5}, note="no masks")))
"""
    assert ask("a", "b", code=code) == {
        "a": Refusal("no such model", "name another"),
        "b": Prediction({"predicted_needed_bytes": 5}, "no masks"),
    }


@pytest.mark.parametrize("trusted", [False, True])
def test_the_worker_gets_every_parameter_and_whether_code_is_trusted(trusted):
    code = "answer(question['cells'][0], trusted=question['trust_remote_code'], **question['cells'][0]['parameters'])"
    (cell,) = plan_of("a").cells
    measures = ask("a", code=code, trust_remote_code=trusted)["a"].measures
    assert measures == {"trusted": trusted, **cell.parameters.model_dump(mode="json")}


def test_the_worker_sees_no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code = "answer(question['cells'][0], devices=os.environ['CUDA_VISIBLE_DEVICES'])"
    assert ask("a", code=code)["a"].measures == {"devices": ""}


def test_what_is_worked_on_is_told():
    told = []
    backwards = EACH.replace("question['cells']", "reversed(question['cells'])")
    ask("a", "b", "c", code=backwards, tell=lambda number, cell_id: told.append((number, cell_id)))
    assert told == [(1, "a"), (1, "c"), (2, "b"), (3, "a")]  # the first before the worker says which it begins with


def test_what_the_worker_says_beside_its_answers_is_passed_over():
    code = "print('downloading'); print('[1]'); print(json.dumps({'kind': 'prediction', 'id': 'other'}))\n" + EACH
    assert list(ask("a", code=code)) == ["a"]


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("raise ValueError('what a pity')", "exit code 1); this is no fault of the matrix; the worker's last words:"),
        ("os.kill(os.getpid(), 9)", "the worker was killed by SIGKILL; the host may have run out of memory"),
        ("sys.exit(0)", "the worker ended without a result (exit code 0)"),
    ],
)
def test_a_worker_that_dies_is_told_with_the_cell_and_its_last_words(ending, words):
    with pytest.raises(BenchError) as caught:
        ask("a", "b", "c", code=f"answer(question['cells'][0])\nbegin(question['cells'][2])\n{ending}")
    (problem,) = caught.value.problems
    assert problem.what.startswith("the memory of c was not predicted: ")
    assert words in str(problem)
    assert ("what a pity" in str(problem)) == ("pity" in ending)


def test_the_worker_and_its_log_are_gone_when_all_is_answered(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    pid = ask("a", code="answer(question['cells'][0], pid=os.getpid()); time.sleep(60)")["a"].measures["pid"]
    assert not alive(pid)
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_ctrl_c_ends_the_worker(tmp_path):
    path = tmp_path / "pid"
    asking = f"""
import sys
from bench.run.forecast import predictions
from tests.run.examples import plan_of
code = "import os, time; print(os.getpid(), file=open({str(path)!r}, 'w')); time.sleep(60)"
predictions(plan_of("a").cells, command=(sys.executable, "-c", code))
"""
    root = str(Path(__file__).parents[2])
    asker = subprocess.Popen([sys.executable, "-c", asking], cwd=root, stderr=subprocess.PIPE, text=True)
    assert wait_for(lambda: path.exists() and path.read_text().strip(), within_s=60)
    worker = int(path.read_text())
    assert alive(worker)
    asker.send_signal(signal.SIGINT)
    assert asker.communicate(timeout=60)[1].rstrip().endswith("KeyboardInterrupt")
    assert not alive(worker)


def test_each_reason_of_refusals_is_one_problem():
    answers = {
        "a": Refusal("no model x", "name another"),
        "b": Prediction({}),
        "c": Refusal("no model x", "name another"),
        "d": Refusal("no model y"),
    }
    assert [str(problem) for problem in refused(answers, Path("m.yaml"))] == [
        "m.yaml: a and 1 more: no model x; name another",
        "m.yaml: d: no model y",
    ]
