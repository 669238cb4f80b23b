"""The training loop: the first steps as a user's own loop takes them, the rest as fast as the GPU allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from bench.cell import graphs, meters, steps, storage
from bench.cell.devices import move
from bench.cell.encoding import Batch, Shape, Survey
from bench.cell.failures import Diverged, Invalid
from bench.cell.meters import Step, StepClock
from bench.cell.optim import CAPTURABLE
from bench.cell.steps import Trainee
from bench.matrix.parameters import Parameters

Execution = Literal["eager", "cuda_graph"]
Take = Callable[[Sequence[Batch]], torch.Tensor]

# Steps that every cell takes eagerly; those after warm-up are the eager meter.
EAGER_STEPS = 12
# Steps after which `execution: auto` compares a graph with them.
TRIAL_STEPS = 15
# Losses are looked at once in so many steps, since a look waits for the GPU.
CHECK_STEPS = 8
# Where the GPU works this share of an eager step, a graph has little to gain, and would take memory of its own.
BUSY_ENOUGH = 0.9


@dataclass(frozen=True)
class Training:
    """What a training run did.

    losses: of each step, nats per loss-bearing token.
    eager: meter readings of the first steps, taken eagerly.
    steady: meter readings of the execution that the run settled on; where that is eager, of all steps.
    skipped: steps that the loss scaler left out, since their float16 gradients overflowed.
    gpu_busy_share: kernel time over wall time of an eager step; None where no profiler tells.
    state: bytes of gradients and optimizer state (`storage.training_state`), when the first step had used them.
    largest: of the batches that ran eagerly, which decides the memory peak.
    """

    losses: tuple[float, ...]
    skipped: int
    eager: tuple[Step, ...]
    steady: tuple[Step, ...]
    execution: Execution
    gpu_busy_share: float | None
    state: dict[str, int]
    largest: Shape
    warnings: tuple[str, ...]


def train(
    model: PreTrainedModel,
    batches: Iterable[Sequence[Batch]],
    parameters: Parameters,
    survey: Survey,
    count: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    eager_done: Callable[[], None] = lambda: None,
    replaying: Callable[[], None] = lambda: None,
) -> Training:
    """Train the adapters of a model, as Transformers' `Trainer` would with the same arguments.

    Args:
        model: the causal model whose layers carry adapters; left in training mode.
        batches: for each optimizer step, the batches whose gradients add up.
        parameters: the cell's.
        survey: of the batches.
        count: the number of optimizer steps, which the schedule needs.
        progress: called with the number of steps done and their total.
        eager_done: called before a graph is captured, when memory has seen all that an eager run would show it.
        replaying: called when all that is left of training is replayed from graphs, the optimizer's part included.

    Raises:
        Diverged: a loss is not finite, or every step overflowed.
        Invalid: the cell asks for a CUDA graph without CUDA.
    """
    it = steps.trainee(model, parameters, count)
    on_gpu = it.device.type == "cuda"
    if parameters.execution == "cuda_graph" and not on_gpu:
        raise Invalid("execution: cuda_graph needs a CUDA GPU", "use execution: auto")

    shapes: set[Shape] = set()

    def eagerly(step: Sequence[Batch]) -> torch.Tensor:
        shapes.update(batch.shape for batch in step)
        return steps.take(it, step)

    state = watch_state(it)
    left = iter(batches)
    if on_gpu and parameters.quant_type != "int8":  # int8 layers look at all rows of a batch, those that pad it too
        left = graphs.pad_alike(left, survey)
    losses = Losses(torch.full((count,), math.nan, device=it.device), progress)
    eager, steady = StepClock(it.device), StepClock(it.device)
    run_steps(eagerly, islice(left, min(EAGER_STEPS, count - 1)), losses, eager)
    first, eager_s = len(losses), meters.p50_s(eager.readings())

    busy, replay, warnings = None, None, []
    if on_gpu:
        kernels_s = meters.kernel_time_s(lambda: run_steps(eagerly, islice(left, 1), losses))
        busy = min(1.0, kernels_s / eager_s) if kernels_s and eager_s else None
        if len(losses) < count and _worth_capturing(parameters, busy):
            probe_memory(it, survey.longest)
            shapes.add(survey.longest.shape)
            eager_done()
            try:
                replay = graphs.capture(it, survey)
            except RuntimeError as error:
                warnings.append(f"no CUDA graph, the cell ran eagerly: {str(error).strip().splitlines()[0]}")
    if replay:
        left = graphs.pad_alike(left, survey)
        run_steps(replay.take, islice(left, TRIAL_STEPS), losses, steady)
        graph_s = meters.p50_s(steady.readings())
        if parameters.execution == "auto" and graph_s and eager_s and graph_s > eager_s:
            replay = None
            warnings.append(
                f"a CUDA graph took {graph_s:.3g} s a step, more than {eager_s:.3g} s: the cell ran eagerly"
            )
    if replay and parameters.optim in CAPTURABLE:
        replaying()
    settled = steady if replay else eager
    run_steps(replay.take if replay else eagerly, left, losses, settled)
    losses.check()
    skipped = count - it.schedule.last_epoch
    if skipped == count:
        what = f"the float16 gradients of all {count} steps overflowed, and no step was taken"
        raise Diverged(what, losses.values.tolist())
    return Training(
        tuple(losses.values.tolist()),
        skipped,
        eager.readings()[:first],
        settled.readings(),
        "cuda_graph" if replay else "eager",
        busy,
        state,
        max(shapes, key=lambda shape: (shape.rows * shape.length, shape.width)),
        tuple(warnings),
    )


@dataclass
class Losses:
    """The loss of each step so far, on the device; looked at now and then."""

    values: torch.Tensor
    progress: Callable[[int, int], None]
    number: int = 0

    def __len__(self) -> int:
        return self.number

    def add(self, loss: torch.Tensor) -> None:
        self.values[self.number] = loss
        self.number += 1
        if self.number % CHECK_STEPS == 1:
            self.check()
        self.progress(self.number, len(self.values))

    def check(self) -> None:
        finite = self.values[: self.number].isfinite()
        if not finite.all():
            number = int((~finite).nonzero()[0]) + 1
            losses = self.values[:number].tolist()
            raise Diverged(f"the loss of step {number} of {len(self.values)} is {losses[-1]}", losses)


def probe_memory(it: Trainee, longest: Batch) -> None:
    """Run the longest batch forward and backward, to no effect but on the memory peaks.

    A graph's memory is not a user's, so that peaks are taken before one is captured; the longest batch may come later.
    """
    random = torch.cuda.get_rng_state(it.device)
    steps.forward_backward(it, move(longest, it.device), longest.loss_tokens)
    it.optimizer.zero_grad()
    torch.cuda.set_rng_state(random, it.device)


def watch_state(it: Trainee) -> dict[str, int]:
    """Return what gets the bytes of gradients and optimizer state (`storage.training_state`) in the first update.

    An eager step drops its gradients as soon as the optimizer has used them.
    """
    state: dict[str, int] = {}

    def note(*_: Any) -> None:
        if not state:
            state.update(storage.training_state(it.weights, it.optimizer))

    it.optimizer.register_step_post_hook(note)
    return state


def run_steps(take: Take, batches: Iterable[Sequence[Batch]], losses: Losses, clock: StepClock | None = None) -> None:
    """Take a step for each entry of `batches`, keeping its loss and, where there is a clock, its time."""
    if clock:
        clock.start()
    for step in batches:
        losses.add(take(step))
        if clock:
            clock.tick(step)


def _worth_capturing(parameters: Parameters, busy: float | None) -> bool:
    if parameters.execution == "auto":
        return busy is None or busy < BUSY_ENOUGH
    return parameters.execution == "cuda_graph"
