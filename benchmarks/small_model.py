"""What a cell of this project saves on a small model, against the published recipe and lm-evaluation-harness.

    python3 -m benchmarks.small_model --data DIR --out small_model.json

The same fine-tuning twice on one GPU, each in a process of its own: by `python -m bench run`, and by the recipe of
`benchmarks.recipe` (`Trainer`) with its accuracy taken as lm-evaluation-harness takes it, a forward for every label of
every example. That takes so long that only a stratified subset of the test part is scored so, and the time of all of
it is extrapolated in proportion; the output says which figures are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
import yaml

from bench.cell.failures import Invalid
from bench.cell.tasks import Task, load_task
from bench.errors import BenchError
from bench.matrix.expand import load_matrix
from bench.matrix.models import PACKAGED_MODEL
from bench.matrix.plan import Job, plan
from bench.protocol import Device, Request
from bench.run.data import find_data
from bench.run.environment import machine_facts, slot_facts
from bench.run.executor import Message
from bench.run.local import worker_environment
from bench.run.records import Record
from bench.run.slots import Slot
from bench.run.store import RECORDS, read_records
from benchmarks import children
from benchmarks.children import Crashed
from benchmarks.command import CONTEXT, console, main, out_option, slot_for, write
from benchmarks.lm_eval import REQUESTS_BATCH
from benchmarks.small_model_tables import accuracies, extent, show, times

NAME, CELL = "small-model", "nf4-dq"
PHASES = ("load", "score_before", "adapt", "train", "score_after")

Document = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What both sides are given: a matrix of one cell, its job, the task, and where to run."""

    matrix: Path
    job: Job
    task: Task
    data_dir: Path | None
    slot: Slot
    reference_eval_examples: int

    @property
    def request(self) -> Request:
        parameters = self.job.cell.parameters.model_dump(mode="json")
        data_dir = str(self.data_dir) if self.data_dir else None
        return Request(self.job.cell.id, self.job.seed, parameters, self.slot.device, data_dir)


def set_up(
    folder: Path, values: Mapping[str, Any], seed: int, data: Path | None, device: Device | None, reference: int
) -> Setup:
    """Write the matrix into `folder` and check all that a user may have got wrong, before anything is run.

    The model is left to the warm-up, which needs it first.

    Raises:
        BenchError: a value is wrong, data are missing, or there is no GPU.
    """
    matrix = folder / "matrix.yaml"
    rows = [{"id": CELL, "quant_type": "nf4", "double_quant": True}]
    document = {"schema": 1, "name": NAME, "about": "What does one cell take?", "defaults": dict(values)}
    matrix.write_text(yaml.safe_dump({**document, "include": rows, "seeds": [seed]}))
    try:
        chosen = plan(load_matrix(matrix))
    except BenchError as error:  # the file is not the user's
        raise BenchError(replace(problem, where=None) for problem in error.problems) from error
    job, parameters = chosen.jobs[0], chosen.jobs[0].cell.parameters
    slot, data_dir = slot_for(device), find_data(chosen, data)
    try:
        task = load_task(parameters.task, data_dir, parameters.train_examples, parameters.eval_examples)
    except Invalid as error:
        raise BenchError(str(error), error.fix) from error
    return Setup(matrix, job, task, data_dir, slot, min(reference, len(task.test)))


def run_project(setup: Setup) -> tuple[float, Record]:
    """Run the cell by `python -m bench run`; return the seconds that the command took, tables included, and its record.

    Raises:
        Crashed: it left no record.
    """
    results = setup.matrix.parent / "results"
    command = [sys.executable, "-P", "-m", "bench", "run", str(setup.matrix), "--results", str(results)]
    data = ["--data", str(setup.data_dir)] if setup.data_dir else []
    environment = worker_environment(setup.slot, os.environ)
    started_s = time.perf_counter()
    done = subprocess.run([*command, *data], env=environment, text=True, stdout=subprocess.PIPE)
    command_s = time.perf_counter() - started_s
    records = read_records(results / NAME / RECORDS).records
    if not records:
        raise Crashed(f"bench run ended with code {done.returncode} and left no record", done.stdout or None)
    return command_s, records[-1]


def run_child(role: str, setup: Setup, tell: Callable[[Message], None] = lambda message: None) -> Mapping[str, Any]:
    """Run a process of this module and return its measures; `tell` is called with every message as it comes.

    Raises:
        BenchError: it cannot run with these settings, or memory ran out.
        Crashed: it ended otherwise.
    """
    told = ("--child", role, "--reference-eval-examples", str(setup.reference_eval_examples))
    return children.measures(role, children.run("benchmarks.small_model", told, setup.request, setup.slot, tell=tell))


def measure(setup: Setup, keep: Callable[[Document], None], say: Callable[[str], None]) -> Document:
    """Run both sides; `keep` gets all figures so far whenever there are new ones, `say` a line on each phase."""
    parameters, facts = setup.job.cell.parameters, slot_facts(setup.slot)
    document: Document = {
        "complete": False,
        "title": f"{parameters.model} on {parameters.task}, {CELL}, on {facts['gpu_name'] or 'a CPU'}",
        "settings": {
            "seed": setup.job.seed,
            "train_examples_count": len(setup.task.train),
            "eval_examples_count": len(setup.task.test),
            "reference_eval_examples_count": setup.reference_eval_examples,
            "requests_batch": REQUESTS_BATCH,
            "parameters": setup.request.parameters,
        },
        "environment": {**machine_facts(), **facts},
    }
    run_child("warm-up", setup)
    say("warm-up: libraries and weights read once, not timed")

    command_s, record = run_project(setup)
    ours = {"wall_s": record.wall_s, "command_s": command_s, **record.environment}
    ours |= children.measures("bench run", record)
    document["project"] = {**ours, "warnings": list(record.warnings)}
    keep(document)
    for phase in PHASES:
        say(f"this project: {phase} {ours[f'{phase}_s']:.2f} s")
    say(f"this project: whole cell {ours['wall_s']:.2f} s, accuracy {100 * ours['accuracy_after']:.1f} %")

    def hear(message: Message) -> None:
        if figures := message.get("figures"):
            document["recipe"] = {**figures, "wall_s": time.perf_counter() - started_s}
            say(f"recipe: {message['phase']} {figures[message['phase'] + '_s']:.2f} s")
            keep(document)

    started_s = time.perf_counter()
    run_child("recipe", setup, hear)
    theirs = document["recipe"]
    say(f"recipe: process {theirs['wall_s']:.2f} s, accuracy {100 * theirs['accuracy_after']:.1f} %")
    if theirs["task_sha256"] != ours["task_sha256"]:
        raise Crashed("the two sides did not see the same examples: the task changed in between", "run it again")

    document |= {
        "times": [asdict(row) for row in times(theirs, ours)],
        "accuracy": accuracies(theirs, ours),
        "extent": extent(theirs, ours),
        "complete": True,
    }
    keep(document)
    return document


# Command line ---------------------------------------------------------------------------------------------------------


def _count_or_all(_context: click.Context, _option: click.Parameter, text: str) -> int | str:
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise click.BadParameter(f"{text!r} is neither all nor a whole number above zero")
    return text if text == "all" else int(text)


@click.command(context_settings=CONTEXT)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Where tasks lie, as DIR/banking77/train.csv.")  # fmt: skip
@click.option("--task", default="banking77", show_default=True, help="banking77, intents, or a folder.")
@click.option("--model", default=PACKAGED_MODEL, show_default=True, help="The packaged model, a hub id, or a folder.")
@click.option("--reference-eval-examples", default=616, show_default=True, type=click.IntRange(min=1),
              help="Test examples that the recipe scores, at most; a stratified subset.")  # fmt: skip
@click.option("--train-examples", default="all", show_default=True, callback=_count_or_all, help="all, or a number.")
@click.option("--eval-examples", default="all", show_default=True, callback=_count_or_all, help="all, or a number.")
@click.option("--optim", default="adamw_torch_fused", show_default=True, help="Optimizer of both sides.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Optimizer steps, instead of one epoch.")
@click.option("--seed", default=0, show_default=True, help="Seed of both sides.")
@click.option("--device", type=click.Choice(get_args(Device)), help="Default: the first GPU where there is one.")
@out_option
@click.option("--child", "role", type=click.Choice(["recipe", "warm-up"]), hidden=True)
def command(
    data: Path | None, task: str, model: str, reference_eval_examples: int, train_examples: int | str,
    eval_examples: int | str, optim: str, max_steps: int | None, seed: int, device: Device | None, out: Path | None,
    role: str | None,
) -> None:  # fmt: skip
    """Time one QLoRA cell on a small model: the published recipe with lm-evaluation-harness, and this project."""
    if role:
        from benchmarks import small_model_recipe

        recipe = partial(small_model_recipe.measure, reference_eval_examples)
        children.work(recipe if role == "recipe" else small_model_recipe.warm_up)
        return
    values: Document = {
        "model": model,
        "task": task,
        "compute_dtype": "bfloat16",
        "target_modules": "all-linear",
        "lora_r": 16,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "epochs": 1.0,
        "optim": optim,
        "train_examples": train_examples,
        "eval_examples": eval_examples,
        **({"max_steps": max_steps} if max_steps else {}),
    }
    with tempfile.TemporaryDirectory(prefix="small-model-") as folder:
        setup = set_up(Path(folder), values, seed, data, device, reference_eval_examples)
        document = measure(setup, partial(write, out), click.echo)
    show(document, console())


if __name__ == "__main__":
    main(command)
