"""The recipe's side of `benchmarks.small_model`, in a process of its own: load, score, adapt, train and score."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from bench.cell import encoding, meters, precision, sources
from bench.cell.channel import Send
from bench.cell.devices import synchronize
from bench.cell.encoding import TokenizedExample
from bench.cell.meters import time_s
from bench.cell.tasks import Example, load_task, subset
from bench.matrix.parameters import Parameters
from bench.protocol import Phase, Request
from benchmarks import recipe
from benchmarks.lm_eval import score_requests

Figures = dict[str, Any]


@dataclass
class Phases:
    """What has been found out so far. A message announces each phase; another, with all figures so far, ends it."""

    device: torch.device
    send: Send
    figures: Figures = field(default_factory=dict)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Time a phase and take its peaks."""
        self.send({"kind": "phase", "phase": phase})
        meters.reset_peaks(self.device)
        started_s = time_s()
        yield
        synchronize(self.device)
        self.figures[f"{phase}_s"] = time_s() - started_s
        self.figures |= {f"{phase}_{name}": value for name, value in meters.peaks(self.device).items()}
        self.send({"kind": "phase", "phase": phase, "figures": self.figures})


def measure(reference_eval_examples: int, request: Request, device: torch.device, send: Send) -> Figures:
    """Go through the phases of the recipe, scoring so many test examples, and return the figures of all.

    Raises:
        Invalid: the cell asks for something that cannot be had.
    """
    parameters = Parameters.model_validate(dict(request.parameters))
    precision.check_supported(parameters, device)
    data_dir = Path(request.data_dir) if request.data_dir else None
    task = load_task(parameters.task, data_dir, parameters.train_examples, parameters.eval_examples)
    phases = Phases(device, send)
    sources.prepare(parameters, None)
    set_seed(request.seed)

    with phases.during("load"):
        model, tokenizer = recipe.load_quantized(parameters, device)
    assert tokenizer is not None  # noqa: S101 - the weights are pretrained
    label_tokens = encoding.encode_labels(tokenizer, task.labels)
    chosen = subset(task.test, reference_eval_examples, "reference_eval_examples")

    def encode(part: tuple[Example, ...]) -> list[TokenizedExample]:
        rows = encoding.encode_examples(tokenizer, part, task.labels, label_tokens, parameters.max_length)
        return [rows[number] for number in range(len(rows))]

    examples, tests = encode(task.train), encode(chosen)
    truth = np.array([task.labels.index(example.label) for example in chosen])
    phases.figures |= {"task_sha256": task.sha256, "scored_examples_count": len(chosen)}

    def score(when: str) -> None:
        model.eval()
        with precision.autocast(parameters, device):
            scores = score_requests(model, [test.prompt for test in tests], label_tokens)
        phases.figures[f"accuracy_{when}"] = float((scores.argmax(axis=1) == truth).mean())

    with phases.during("score_before"):
        score("before")
    with phases.during("adapt"):
        model = recipe.adapt(model, parameters)
    with phases.during("train"):
        timer = recipe.StepTimer(device)
        steps = encoding.steps_count(parameters, len(examples))
        done = recipe.trainer(model, parameters, examples, request.seed, steps, [timer]).train()
        phases.figures |= {
            "steps_count": done.global_step,
            "train_loss_mean": done.training_loss,
            "step_p50_s": float(np.median(timer.seconds())),
        }
    with phases.during("score_after"):
        score("after")
    return phases.figures


def warm_up(request: Request, device: torch.device, _send: Send) -> Figures:
    """Load the model and run it once, in a process that is thrown away: it reads the libraries and weights from disk.

    Whichever side came first would pay for that otherwise.
    """
    model = recipe.load(Parameters.model_validate(dict(request.parameters)), device)
    model(input_ids=torch.zeros(1, 8, dtype=torch.long, device=device))
    synchronize(device)
    return {}
