"""Where the GPU is busy anyway: a training step of this project beside one of Transformers' `Trainer`.

    python3 -m benchmarks.large_shape [--graph] [--out FILE.json]

It takes a large model's shape with random weights (nothing to download), gradient checkpointing, bfloat16 and LoRA of
rank 16 on all linear layers. Each part runs in a fresh process: `matmul` measures what the GPU reaches in products of
matrices, `trainer` and `ours` take the same steps on the same examples, `graph` (on request) takes ours as a CUDA
graph. `ours` also measures what the meters cost.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from bench.errors import BenchError
from bench.matrix.models import SHAPES
from bench.matrix.parameters import Parameters
from bench.protocol import Device, Request
from bench.run.environment import machine_facts, slot_facts
from bench.run.slots import Slot
from benchmarks import children
from benchmarks.command import CONTEXT, console, main, out_option, slot_for, write
from benchmarks.large_shape_settings import BLOCK_STEPS, ROUND, SEED, WARMUP_STEPS, Settings, settings_of
from benchmarks.large_shape_tables import derive, show

PARTS = ("matmul", "trainer", "ours", "graph")


def _shape(_context: click.Context, _option: click.Parameter, model: str) -> str:
    if model in SHAPES or (Path(model).expanduser() / "config.json").is_file():
        return model
    raise click.BadParameter(f"{model!r} is no folder with a config.json, and none of {', '.join(SHAPES)}")


count = click.IntRange(min=1)


@click.command(context_settings={**CONTEXT, "show_default": True})
@click.option("--model", default="qwen2.5-7b", callback=_shape, metavar="NAME",
              help=f"Shape of the model: {', '.join(SHAPES)}, or a folder with a config.json.")  # fmt: skip
@click.option("--batch-size", default=16, type=count, help="Examples a step.")
@click.option("--max-length", default=512, type=click.IntRange(min=16), help="Tokens of every example.")
@click.option("--steps", default=10, type=count, help=f"Timed steps a side, after {WARMUP_STEPS} to warm up.")
@click.option("--quant-type", default="nf4", type=click.Choice(["nf4", "fp4", "none"]), help="The base's data type.")
@click.option("--double-quant/--no-double-quant", default=None, help="Default: as a cell has it, on with 4 bits.")
@click.option("--optim", default="paged_adamw_8bit", help="Optimizer.",
              type=click.Choice(get_args(Parameters.model_fields["optim"].annotation)))  # fmt: skip
@click.option("--device", default="cuda", type=click.Choice(get_args(Device)), help="Where to train.")
@click.option("--graph", is_flag=True, help="Measure ours as a CUDA graph too.")
@click.option("--meter-rounds", default=2, type=count,
              help=f"Rounds of {len(ROUND)} blocks of {BLOCK_STEPS} steps, meters on, off, off, on.")  # fmt: skip
@out_option
@click.option("--part", type=click.Choice(PARTS), hidden=True)
def command(
    device: Device, steps: int, meter_rounds: int, graph: bool, out: Path | None, part: str | None, **given: Any
) -> None:
    """Compare training steps of this project with those of Transformers' Trainer, on a large model's shape."""
    if part:
        from benchmarks import large_shape_parts

        children.work(partial(large_shape_parts.measure, part, steps, meter_rounds))
        return
    if graph and device == "cpu":
        raise BenchError("--graph needs a CUDA GPU", "leave it out")
    settings, slot = settings_of(device, steps, meter_rounds, **given), slot_for(device)
    terminal = console()
    found: dict[str, Any] = {"settings": asdict(settings), "environment": {**machine_facts(), **slot_facts(slot)}}
    for name in [name for name in PARTS if graph or name != "graph"]:
        try:
            found[name] = run_part(name, settings, slot)
        except BenchError as error:
            if name != "graph":
                raise
            found["graph_failed"] = str(error)
        if "ours" in found:
            found["derived"] = derive(found)
        write(out, found)
        terminal.print(f"{name}: done", style="dim")
    show(found, terminal)


def run_part(part: str, settings: Settings, slot: Slot) -> dict[str, Any]:
    """Run one part in a fresh process and return its figures.

    Raises:
        BenchError: the part cannot run with these settings, or memory ran out.
        Crashed: it ended otherwise.
    """
    told = ("--part", part, "--steps", str(settings.steps), "--meter-rounds", str(settings.meter_rounds))
    request = Request(part, SEED, settings.parameters, settings.device)
    return dict(children.measures(part, children.run("benchmarks.large_shape", told, request, slot)))


if __name__ == "__main__":
    main(command)
