"""What the scripts' command lines have in common: the device, the file of figures, and how they end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from bench.cli import CRASHED, INTERRUPTED, WRONG
from bench.errors import BenchError
from bench.protocol import Device, finite
from bench.run.gpus import visible_gpus
from bench.run.slots import Slot, slots_for
from bench.run.store import write_atomically
from benchmarks.children import Crashed

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
FILE_WIDTH = 120  # where neither a terminal nor COLUMNS tells


def _checked(_context: click.Context, _option: click.Parameter, out: Path | None) -> Path | None:
    if out and not out.absolute().parent.is_dir():
        raise BenchError(f"--out: there is no folder {out.parent}", "make it, or name another file")
    if out and out.is_dir():
        raise BenchError(f"--out: {out} is a folder", "name a file in it")
    return out


out_option = click.option("--out", type=click.Path(path_type=Path), metavar="FILE.json", callback=_checked,
                          help="Write all figures here as well, as they come.")  # fmt: skip


def slot_for(device: Device | None) -> Slot:
    """Return the first GPU, or the CPU where it is asked for; with None, the CPU where there is no GPU.

    Raises:
        BenchError: a GPU is asked for, and there is none.
    """
    slot = slots_for(() if device == "cpu" else visible_gpus())[0]
    if device == "cuda" != slot.device:
        raise BenchError("--device cuda: no GPU is visible", "use --device cpu, or see what nvidia-smi says")
    return slot


def write(out: Path | None, figures: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write figures as JSON, if they are asked for."""
    if out:
        write_atomically(out, json.dumps(finite(figures), indent=1, allow_nan=False) + "\n")


def console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH)


def main(command: click.Command) -> NoReturn:
    """Run a command line and exit: with 1 where a process crashed, 2 for a user's mistake, 130 after Ctrl-C."""
    code = 0
    try:
        command(standalone_mode=False)
    except click.Abort:
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BenchError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        code = CRASHED if isinstance(error, Crashed) else WRONG
    sys.exit(code)
