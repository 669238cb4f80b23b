"""Launch an operation so often, and so close together where it can be, that a clock sees the device and not Python."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any, Literal

import torch

from bench.cell.devices import synchronize
from bench.cell.failures import first_line, is_out_of_memory
from bench.cell.kernels import Operation, rotated

Launch = Literal["cuda_graph", "queued", "eager", "host"]

# Operands and results rotate through so many times the GPU's L2 cache, so that each is in memory when its turn comes.
# The cache does not forget what is oldest first: through twice its size, a fused product on 7 MB was 12 % faster. Where
# arithmetic takes longer than memory, that changes nothing, and rounds that are as long would lower the GPU's clock.
CACHES_ROTATED = {"memory": 16, "arithmetic": 2}
# A launch on a GPU is taken to last at least so long when their number is chosen.
SHORTEST_S = 5e-6
ROUND_S = 5e-4
# A graph holds so many launches at most. With an adapter, Python takes a millisecond to record one.
MOST_LAUNCHES, MOST_ADAPTED_LAUNCHES = 1024, 192
# Launches of a round that Python makes; operands go on rotating from round to round.
PYTHON_LAUNCHES = {"queued": 16, "eager": 4}
CPU_SETS = 4
# What the GPU spins before a round begins, while the host queues the round: about 0.2 and 5 ms.
HOLD_CYCLES = {"cuda_graph": 400_000, "queued": 10_000_000}
# Roughly an H100's, to choose a number of launches.
BYTES_PER_S, FLOPS_PER_S = 3e12, 7e14


@dataclass(frozen=True)
class Round:
    """Launches of an operation that are timed together.

    play: queues `launches_count` launches.
    hold: keeps a GPU busy until the host has queued the round that follows; nothing on a CPU.
    """

    play: Callable[[], None]
    hold: Callable[[], None]
    launches_count: int
    launch: Launch
    rotated_bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A place in the queue of a GPU. The later one less the earlier one is the time between them, in s a launch."""

    event: torch.cuda.Event
    launches_count: int

    def __sub__(self, earlier: Mark) -> float:
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event) / 1e3 / self.launches_count)


class Clock:
    """A timer for pytest-benchmark, which calls it before and after a round and takes the difference.

    On a GPU it puts events into the queue, and waits for them only when the difference is taken; on a CPU it is
    `time.perf_counter`. Differences are divided by `launches_count`, which is to be set before a round.
    """

    __name__ = "gpu_seconds_per_launch"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.launches_count = 1
        if device.type != "cuda":
            self.__name__ = "perf_counter"

    def __call__(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter() / self.launches_count
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return Mark(event, self.launches_count)


class Recorder:
    """Records rounds as CUDA graphs, all in one stream and one pool of memory; on a CPU, plays them from Python.

    Memory of a graph's own pool would go back to CUDA with the graph, and be asked for again by the next one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type != "cuda":
            return
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.anchor = torch.cuda.CUDAGraph()  # holds the pool while no other graph does
        with self._recording(self.anchor):
            torch.zeros(1, device=device)

    @contextmanager
    def round_of(self, operation: Operation) -> Iterator[Round]:
        """Yield a round of an operation; what it holds is free again afterwards.

        Raises:
            RuntimeError: a kernel refuses the operands, or memory does not suffice.
        """
        if self.device.type != "cuda":
            turned, numbers = rotated(operation, CPU_SETS), count()
            yield Round(lambda: turned.launch(next(numbers)), _nothing, 1, "host", CPU_SETS * operation.set_bytes)
            return
        cache = cache_bytes(self.device) or 0
        launches, sets = plan(operation, cache)
        turned, numbers = rotated(operation, sets), count()
        results_count = max(1, math.ceil(rotated_bytes(operation, cache) / max(1, operation.result_bytes)))
        launch: Launch = operation.launched
        graph, warnings = self._captured(turned, launches, results_count) if launch == "cuda_graph" else (None, ())
        if graph:
            play: Callable[[], None] = graph.replay
        else:
            launch = "queued" if launch == "queued" else "eager"
            launches = min(launches, PYTHON_LAUNCHES[launch])
            play = partial(_play, turned, numbers, launches, results_count)
        cycles = HOLD_CYCLES.get(launch)
        hold = partial(torch.cuda._sleep, cycles) if cycles else _nothing
        try:
            yield Round(play, hold, launches, launch, sets * operation.set_bytes, warnings)
        finally:
            if graph:
                synchronize(self.device)
                graph.reset()

    def _captured(
        self, operation: Operation, launches: int, results_count: int
    ) -> tuple[torch.cuda.CUDAGraph | None, tuple[str, ...]]:
        """Return a graph of so many launches, or none and why."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):  # what is set up at a first launch cannot be recorded
            operation.launch(0)
        synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with self._recording(graph):
                _play(operation, count(), launches, results_count)
        except RuntimeError as error:
            # Ending a capture that failed is an error of its own, which hides the cause.
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            if is_out_of_memory(cause):
                raise cause from None
            return None, (f"no CUDA graph, launched from Python: {first_line(cause)}",)
        return graph, ()

    @contextmanager
    def _recording(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        # `torch.cuda.graph` would collect garbage and empty the cache each time, which takes longer than the rest.
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool)
            try:
                yield
            finally:
                graph.capture_end()


def plan(operation: Operation, cache_bytes: int) -> tuple[int, int]:
    """Return how many launches a round on a GPU has, and how many sets of operands they cycle through."""
    least_s = max(SHORTEST_S, operation.moved_bytes / BYTES_PER_S, operation.flops_count / FLOPS_PER_S)
    most = MOST_ADAPTED_LAUNCHES if operation.adapted else MOST_LAUNCHES
    sets = min(most, max(1, math.ceil(rotated_bytes(operation, cache_bytes) / operation.set_bytes)))
    if operation.launched != "cuda_graph":
        return PYTHON_LAUNCHES[operation.launched], sets
    return min(most, max(sets, math.ceil(ROUND_S / least_s))), sets


def rotated_bytes(operation: Operation, cache_bytes: int) -> int:
    """Return the size of what is to lie between two launches on the same operands."""
    bound = "arithmetic" if operation.flops_count / FLOPS_PER_S > operation.moved_bytes / BYTES_PER_S else "memory"
    return CACHES_ROTATED[bound] * cache_bytes


def cache_bytes(device: torch.device) -> int | None:
    """Return the size of a GPU's L2 cache; None on a CPU."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else None


def _play(operation: Operation, numbers: Iterator[int], launches: int, results_count: int) -> None:
    # Results that are kept for a while are not written over each other's place in the cache.
    kept: deque[Any] = deque(maxlen=results_count)
    for number in islice(numbers, launches):
        kept.append(operation.launch(number))


def _nothing() -> None:
    pass
