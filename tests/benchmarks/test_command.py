from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest

from bench.errors import BenchError, Problem
from benchmarks import command
from benchmarks.children import Crashed


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (BenchError([Problem("this is wrong", "do that"), Problem("so is this")]), 2,
         "error: this is wrong; do that\nerror: so is this\n"),
        (Crashed("it broke"), 1, "error: it broke\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (SystemExit(1), 1, ""),
    ],
)  # fmt: skip
def test_how_a_command_ends_is_its_exit_code(
    error: BaseException | None,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    def fails() -> None:
        if error:
            raise error

    monkeypatch.setattr(sys, "argv", ["script"])

    with pytest.raises(SystemExit) as end:
        command.main(fails)

    assert (end.value.code, capsys.readouterr().err) == (code, said)


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("out.json", 0, ""),
        ("missing/out.json", 2, "error: --out: there is no folder missing; make it, or name another file\n"),
        (".", 2, "error: --out: . is a folder; name a file in it\n"),
    ],
)
def test_figures_go_where_out_says(
    given: str, code: int, said: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    @click.command()
    @command.out_option
    def writes(out: Path | None) -> None:
        command.write(out, {"share": float("nan")})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", "--out", given])

    with pytest.raises(SystemExit) as end:
        command.main(writes)

    assert (end.value.code, capsys.readouterr().err) == (code, said)
    assert [json.loads(file.read_text()) for file in tmp_path.iterdir()] == [{"share": None}] * (code == 0)


def test_a_wrong_option_exits_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--nothing"])

    with pytest.raises(SystemExit) as end:
        command.main(click.Command("script"))

    assert end.value.code == 2


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    assert (command.slot_for("cpu").device, command.slot_for(None).device) == ("cpu", "cpu")
    with pytest.raises(BenchError, match="no GPU is visible; use --device cpu"):
        command.slot_for("cuda")
