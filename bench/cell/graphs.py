"""Training steps as CUDA graphs: the launches of a step are recorded once and replayed, so that Python costs nothing.

A graph has fixed shapes, so batches are padded to one of a few lengths, each with a graph of its own; eager steps on a
GPU are padded alike, so that both compute the same to the last bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate

import torch

from bench.cell import optim
from bench.cell.devices import to_device
from bench.cell.encoding import IGNORE_INDEX, Batch, Survey
from bench.cell.steps import Trainee, advance, forward_backward, update

MAX_GRAPHS = 5
WARMUP_PASSES = 1


@dataclass(frozen=True)
class Bucket:
    """A graph of forward and backward, and the batch that it reads when replayed."""

    batch: Batch
    graph: torch.cuda.CUDAGraph

    def replay(self, batch: Batch) -> None:
        for name in ("input_ids", "positions", "targets"):
            place = getattr(self.batch, name)
            place.copy_(to_device(getattr(batch, name), place.device))
        self.graph.replay()


@dataclass(frozen=True)
class Replay:
    """A captured training step. `buckets` are by length; `update` is a replay too where it can be one."""

    it: Trainee
    buckets: dict[int, Bucket]
    update: Callable[[], None]
    loss: torch.Tensor
    loss_tokens: torch.Tensor

    def take(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Take one optimizer step on batches that `pad_alike` has padded.

        Returns its loss, nats per loss-bearing token, overwritten by the next step.
        """
        self.loss.zero_()
        self.loss_tokens.fill_(sum(batch.loss_tokens for batch in batches))
        for batch in batches:
            self.buckets[batch.input_ids.shape[1]].replay(batch)
        advance(self.it, self.update)
        return self.loss


def capture(it: Trainee, survey: Survey) -> Replay:
    """Capture the steps of a run that has begun.

    Weights, optimizer, loss scale and random numbers stay as they are, also where the capture fails.

    Raises:
        RuntimeError: something in the step cannot be captured, such as a host sync, or memory does not suffice.
    """
    device = it.device
    loss, loss_tokens = torch.zeros((), device=device), torch.ones((), device=device)
    pool = torch.cuda.graph_pool_handle()
    # A stream of its own: a graph keeps the address of its stream's cuBLAS workspace, and torch frees that workspace
    # when any other graph of the same stream is destroyed (github.com/pytorch/pytorch/issues/193402).
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    restore = _snapshot(it)

    def record(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_PASSES):
                run()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            run()
        return graph

    def passes(batch: Batch) -> None:
        loss.add_(forward_backward(it, batch, loss_tokens))

    def update_and_clear() -> None:
        update(it)
        torch._foreach_zero_([weight.grad for weight in it.weights if weight.grad is not None])

    buckets = {}
    try:
        # The longest first, so that the shared pool is large enough for the others.
        for length in sorted(choose_lengths(survey.lengths), reverse=True):
            batch = _empty(survey.rows, length, survey.width, device)
            buckets[length] = Bucket(batch, record(partial(passes, batch)))
        updater = record(update_and_clear).replay if it.parameters.optim in optim.CAPTURABLE else update_and_clear
    finally:
        # Where a capture fails, torch leaves its stream current. bitsandbytes' optimizers and quantization always work
        # on the default one, and what runs on another does not wait for them.
        torch.cuda.set_stream(current)
        torch.cuda.synchronize(device)
        restore()
    return Replay(it, buckets, updater, loss, loss_tokens)


def pad_alike(steps: Iterable[Sequence[Batch]], survey: Survey) -> Iterator[list[Batch]]:
    """Pad the batches of a run to as many examples and label tokens each, and to one of a few lengths."""
    lengths = choose_lengths(survey.lengths)
    for step in steps:
        yield [
            batch.padded(survey.rows, next(n for n in lengths if n >= batch.input_ids.shape[1]), survey.width)
            for batch in step
        ]


def choose_lengths(lengths: Counter[int], most: int = MAX_GRAPHS) -> list[int]:
    """Return at most `most` lengths to which batches are padded, such that the padded tokens are fewest."""
    ordered = sorted(lengths)
    below = [0, *accumulate(lengths[length] for length in ordered)]

    @cache
    def best(stop: int, left: int) -> tuple[float, tuple[int, ...]]:
        """Cost and choice for the `stop` shortest lengths with `left` graphs."""
        if stop == 0:
            return 0, ()
        if left == 0:
            return float("inf"), ()
        options = (
            (cost + (below[stop] - below[start]) * ordered[stop - 1], (*chosen, ordered[stop - 1]))
            for start in range(stop)
            for cost, chosen in [best(start, left - 1)]
        )
        return min(options)

    return list(best(len(ordered), most)[1])


def _empty(rows: int, length: int, width: int, device: torch.device) -> Batch:
    """Return a batch to be overwritten; its one loss-bearing token keeps the warm-up's loss finite."""
    targets = torch.full((rows, width), IGNORE_INDEX, device=device)
    targets[0, 0] = 0
    zeros = torch.zeros(rows, width, dtype=torch.long, device=device)
    return Batch(torch.zeros(rows, length, dtype=torch.long, device=device), zeros, targets, 0, 0, 1)


def _snapshot(it: Trainee) -> Callable[[], None]:
    """Remember all that a step changes; the returned function puts it back in place, with gradients at zero."""
    random = torch.cuda.get_rng_state(it.device)
    state = [value for entry in it.optimizer.state.values() for value in entry.values() if torch.is_tensor(value)]
    scale = [value for name in ("_scale", "_growth_tracker") if (value := getattr(it.scaler, name, None)) is not None]
    tensors = [*(weight.detach() for weight in it.weights), *state, *scale]
    copies = [tensor.clone() for tensor in tensors]

    def restore() -> None:
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)
        for weight in it.weights:
            if weight.grad is not None:
                weight.grad.zero_()
        torch.cuda.set_rng_state(random, it.device)

    return restore
