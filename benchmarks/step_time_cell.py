"""The steps of one cell, in a process of its own: eagerly, in parts, under torch's profiler, and as a CUDA graph."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import set_seed

from bench.cell import adapters, encoding, graphs, heads, meters, optim, precision, quantize, sources, steps
from bench.cell.channel import Send
from bench.cell.devices import move, synchronize
from bench.cell.encoding import Batch, Survey
from bench.cell.failures import Diverged, first_line
from bench.cell.meters import StepClock, time_s
from bench.cell.steps import Trainee
from bench.cell.worker import cap, check_limit, provenance
from bench.matrix.parameters import Parameters
from bench.protocol import Device, Request
from benchmarks.kernel_groups import by_group, collect

# The range around the profiled step, by which its end is found among the host's calls.
STEP = "one optimizer step"
SYNCHRONIZE = re.compile(r"^cu\w*Synchronize$")

ON_A_CPU = (
    "On a CPU there are no kernels and no graph: the table counts torch's operators, each without those that it calls, "
    "and their time is the host's, with the profiler's own in it. An 8-bit optimizer quantizes its state by the same "
    "operators that quantize weights."
)


@dataclass(frozen=True)
class Counts:
    """Steps of a cell: untimed before each kind of execution, timed eagerly twice over, timed as a graph."""

    warmup: int
    eager: int
    graph: int

    @property
    def total(self) -> int:
        return 2 * self.warmup + 2 * self.eager + 1 + self.graph


COUNTS: dict[Device, Counts] = {"cuda": Counts(5, 10, 30), "cpu": Counts(1, 3, 0)}


def measure(
    request: Request,
    device: torch.device,
    _send: Send,
    counts: Counts | None = None,
    record: Callable[[Trainee, Sequence[Batch]], list[Any]] | None = None,
) -> dict[str, Any]:
    """Load and adapt a cell's model and time its steps; return the measures, and as `environment` what they depend on.

    A measure that ends in `_p50_s` is the median of the readings of that name, which are there too. Those of the graph
    are None without one. `counts` stand in place of the device's `COUNTS`, and `record` in place of `record_step`.

    Raises:
        Invalid: the cell asks for something that cannot be had.
        Diverged: a loss is not finite.
    """
    counts = counts or COUNTS[request.device]
    parameters = Parameters.model_validate({**request.parameters, "max_steps": counts.total})
    precision.check_supported(parameters, device)
    check_limit(parameters.vram_limit, device)
    if parameters.vram_limit is not None and (context_bytes := meters.context_bytes(device)) is not None:
        cap(parameters.vram_limit, context_bytes, device)
    sources.prepare(parameters, sources.default_cache_dir())
    set_seed(request.seed)
    model, _ = quantize.load(parameters, device, sources.default_cache_dir())
    quantize.verify(model, parameters)
    heads.check_supported(model, parameters.max_length)
    adapters.adapt(model, parameters)

    examples = encoding.synthetic_examples(model.config.get_text_config().vocab_size, parameters.max_length)
    # All batches are there before the first step, so that no step waits for one.
    batches = iter(list(encoding.steps(examples, parameters, request.seed)))
    it = steps.trainee(model, parameters, counts.total)
    for step in islice(batches, counts.warmup):
        steps.take(it, step)
    readings = {"eager_step": eager_s(it, islice(batches, counts.eager))}
    readings |= parts_s(it, islice(batches, counts.eager))
    events = (record or record_step)(it, next(batches))
    kernels, synchronizations = collect(kernel_runs(events, device)), synchronizations_count(events, device)
    del events  # of a large model there are hundreds of thousands
    survey = encoding.survey(examples, parameters, request.seed)
    replayed, notes = graph_s(it, survey, batches, counts)
    readings |= replayed
    if device.type == "cuda" and not kernels:
        notes.append("torch's profiler saw no kernels: this process may not be allowed to profile the GPU")
    medians = {name: median(values) if values else None for name, values in readings.items()}
    return {
        "environment": provenance(device),
        **{f"{name}_p50_s": value for name, value in medians.items()},
        "kernels_count": sum(kernel.count for kernel in kernels) if kernels else None,
        "kernels_s": math.fsum(kernel.total_s for kernel in kernels) if kernels else None,
        "synchronizations_count": synchronizations,
        "update_in_graph": is_captured(parameters) if replayed["graph_step"] else None,
        "groups": by_group(kernels),
        "kernels": [asdict(kernel) for kernel in kernels],
        "readings_s": readings,
        "notes": notes,
    }


def eager_s(it: Trainee, batches: Iterable[Sequence[Batch]]) -> list[float]:
    """Return the seconds of eager steps, each begun on an idle device."""
    clock = StepClock(it.device)
    for step in batches:
        clock.start()
        loss = steps.take(it, step)
        clock.tick(step)
    check(loss)
    return [reading.seconds for reading in clock.readings()]


def parts_s(it: Trainee, batches: Iterable[Sequence[Batch]]) -> dict[str, list[float]]:
    """Return the seconds of the two parts of eager steps: until the device is done, and until Python is (`host`)."""
    found: dict[str, list[float]] = defaultdict(list)
    for step in batches:
        for name, run in (
            ("eager_forward_backward", partial(forward_backward, it, step)),
            ("eager_update", partial(steps.advance, it, partial(steps.update, it))),
        ):
            synchronize(it.device)
            started_s = time_s()
            run()
            found[f"{name}_host"].append(time_s() - started_s)
            synchronize(it.device)
            found[name].append(time_s() - started_s)
        it.optimizer.zero_grad()
    return dict(found)


def forward_backward(it: Trainee, step: Sequence[Batch]) -> None:
    """Do the part of `steps.take` that comes before the update."""
    loss_tokens = sum(batch.loss_tokens for batch in step)
    for batch in step:
        steps.forward_backward(it, move(batch, it.device), loss_tokens)


def record_step(it: Trainee, step: Sequence[Batch]) -> list[Any]:
    """Take a step under torch's profiler; return what that saw."""

    def run() -> None:
        with record_function(STEP):
            steps.take(it, step)

    return record_events(run, it.device)


def record_events(run: Callable[[], None], device: torch.device) -> list[Any]:
    """Run something under torch's profiler, to its end on the device; return the profiler's events."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        run()
        synchronize(device)
    return list(profiler.events() or ())


def host_events(events: Iterable[Any]) -> list[Any]:
    return [event for event in events if event.device_type == DeviceType.CPU]


def kernel_runs(events: Sequence[Any], device: torch.device) -> Iterator[tuple[str, float]]:
    """Yield name and seconds of each kernel among a profiler's events; on a CPU, of each operator."""
    host = host_events(events)
    if device.type != "cuda":
        yield from ((event.name, event.self_cpu_time_total / 1e6) for event in host if not annotates(event))
        return
    # The host's ranges appear on the GPU too, and are no kernels.
    ranges = {event.name for event in host}
    for event in events:
        if event.device_type == DeviceType.CUDA and event.name not in ranges and not annotates(event):
            yield event.name, event.time_range.elapsed_us() / 1e6


def synchronizations_count(events: Sequence[Any], device: torch.device) -> int | None:
    """Return how often the host called for a synchronization in the step that `record_step` took; None on a CPU."""
    if device.type != "cuda":
        return None
    host = host_events(events)
    end: float = max(event.time_range.end for event in host if event.name == STEP)
    return sum(bool(SYNCHRONIZE.search(event.name)) and bool(event.time_range.end <= end) for event in host)


def annotates(event: Any) -> bool:
    """Whether a profiler's event is a named range, such as that of `Optimizer.step`, and not work of its own."""
    return bool(event.is_user_annotation)


def graph_s(
    it: Trainee, survey: Survey, batches: Iterator[Sequence[Batch]], counts: Counts
) -> tuple[dict[str, list[float]], list[str]]:
    """Return the seconds of steps taken as a CUDA graph and of their parts, and why there are none if so.

    The update ends with the gradients at zero, be it a graph too or not. As in `bench.cell.train`, nobody waits between
    steps.
    """
    found: dict[str, list[float]] = {"graph_step": [], "graph_forward_backward": [], "graph_update": []}
    if it.device.type != "cuda":
        return found, [ON_A_CPU]
    if it.parameters.execution == "eager":
        return found, ["no CUDA graph, since execution is eager"]
    try:
        replay = graphs.capture(it, survey)
    except RuntimeError as error:
        return found, [f"no CUDA graph: {first_line(error)}"]

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    starts, updates = [], []

    def update() -> None:
        before = mark()
        replay.update()
        updates.append((before, mark()))

    timed = replace(replay, update=update)
    for step in islice(batches, counts.warmup):
        replay.take(step)
    clock = StepClock(it.device)
    clock.start()
    for step in islice(batches, counts.graph):
        starts.append(mark())
        loss = timed.take(step)
        clock.tick(step)
    check(loss)
    found["graph_step"] = [reading.seconds for reading in clock.readings()]
    for start, (before, after) in zip(starts, updates, strict=True):
        found["graph_forward_backward"].append(start.elapsed_time(before) / 1e3)
        found["graph_update"].append(before.elapsed_time(after) / 1e3)
    return found, []


def is_captured(parameters: Parameters) -> bool:
    """Whether the update is part of what a graph replays; else the host launches it, as in an eager step."""
    return parameters.optim in optim.CAPTURABLE


def check(loss: torch.Tensor) -> None:
    """Refuse figures of a training that computed nothing.

    Raises:
        Diverged: the loss is not finite.
    """
    if not math.isfinite(value := loss.item()):
        raise Diverged(f"the loss of the last timed step is {value}")
