from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.command import main
from benchmarks.intervals import Share, difference
from benchmarks.small_model import PHASES, command
from benchmarks.small_model_tables import extent, times
from tests.benchmarks.scripts import script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "{folder}"), "there is no {folder}/banking77/train.csv"),
        (("--data", "{folder}/nowhere"), "does not exist"),
        (("--task", "intents", "--eval-examples", "some"), "neither all nor a whole number above zero"),
        (("--task", "intents", "--train-examples", "100000"), "train_examples: 100000 asked for"),
        (("--task", "intents", "--optim", "adam"), "optim"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_users_mistake_is_told_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny: Callable[[str], Path],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["small_model", "--device", "cpu", "--model", str(tiny("llama")), *filled])
    with pytest.raises(SystemExit) as end:
        main(command)

    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message.format(folder=tmp_path) in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_both_sides_run_and_every_figure_is_there(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "small_model.json"
    options = {"task": "intents", "train-examples": 24, "eval-examples": 24, "reference-eval-examples": 12}
    options |= {"model": tiny("llama"), "max-steps": 3, "device": "cpu", "out": out}

    done = script("small_model", *(text for name, value in options.items() for text in (f"--{name}", str(value))))

    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["complete"]
    assert found["environment"]["torch"] == torch.__version__
    theirs, ours = found["recipe"], found["project"]
    assert theirs["steps_count"] == ours["steps_count"] == 3
    assert (theirs["scored_examples_count"], ours["eval_examples_count"]) == (12, 24)
    assert theirs["task_sha256"] == ours["task_sha256"]
    for side in (theirs, ours):
        assert all(side[f"{phase}_s"] > 0 for phase in PHASES)
        assert side["wall_s"] > sum(side[f"{phase}_s"] for phase in PHASES)
    assert found["times"] == [asdict(row) for row in times(theirs, ours)]
    assert found["extent"] == extent(theirs, ours)
    for when in ("before", "after"):
        both = found["accuracy"][when]
        shares = [
            Share(*(both[side][name] for name in ("right", "n", "low", "high"))) for side in ("recipe", "project")
        ]
        assert [share.value for share in shares] == pytest.approx([side[f"accuracy_{when}"] for side in (theirs, ours)])
        low, high = difference(*shares)
        assert both["difference"] == {"low": low, "high": high, "contains_zero": low <= 0 <= high}
    for words in ("12 of 24 test examples", "whole cell", "Accuracy after training"):
        assert words in done.stdout
