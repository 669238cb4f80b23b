"""What `benchmarks.large_shape` measures, each part in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear
from transformers import set_seed

from bench.cell import adapters, encoding, graphs, heads, meters, precision, quantize, steps, train
from bench.cell.channel import Send
from bench.cell.devices import synchronize
from bench.cell.encoding import Batch, Survey, TokenizedExample
from bench.cell.meters import StepClock, time_s
from bench.cell.steps import Trainee
from bench.cell.worker import Report
from bench.protocol import Request
from benchmarks.flops import count_work
from benchmarks.large_shape_settings import BLOCK_STEPS, ROUND, SEED, WARMUP_STEPS, Settings

Figures = dict[str, Any]

# Products [m, k] x [k, n] whose best median is the peak.
SIZES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192), (16384, 16384, 8192)),
    "cpu": ((256, 256, 256), (512, 512, 512)),
}
MATMUL_WARMUP, MATMUL_TIMED = 50, 50


def matmul(_: Settings, report: Report) -> Figures:
    """Measure how fast matrices in bfloat16 are multiplied, laid out as a linear layer has them."""
    torch.manual_seed(SEED)
    device, sizes = report.device, []
    for m, k, n in SIZES[device.type]:
        # Random numbers: zeros switch fewer transistors, so that the GPU need not lower its clock.
        rows, weight = (torch.randn(size, k, device=device, dtype=torch.bfloat16) for size in (m, n))
        for _step in range(MATMUL_WARMUP):
            linear(rows, weight)
        clock = StepClock(device)
        clock.start()
        for _step in range(MATMUL_TIMED):
            linear(rows, weight)
            clock.tick(())
        p50_s = float(np.median([reading.seconds for reading in clock.readings()]))
        sizes.append({"m": m, "k": k, "n": n, "p50_s": p50_s, "tflops_per_s": 2 * m * k * n / p50_s / 1e12})
    return {"sizes": sizes, **max(sizes, key=lambda size: size["tflops_per_s"])}


def trainer(settings: Settings, report: Report) -> Figures:
    """Take the steps as the published recipe does, with Transformers' `Trainer`."""
    from benchmarks import recipe  # not above: the other parts are to hold no more in memory than a cell does

    count = WARMUP_STEPS + settings.steps
    parameters = settings.cell(count)
    set_seed(SEED)
    model = recipe.load(parameters, report.device)
    examples = _examples(settings, model.config.get_text_config().vocab_size)
    timer = recipe.StepTimer(report.device)
    loop = recipe.trainer(model, parameters, examples, SEED, count, [timer])
    meters.reset_peaks(report.device)
    loop.train()
    return {**speed(_between_s(timer.marks_s), settings.parameters), **_peak(report.device)}


def ours(settings: Settings, report: Report) -> Figures:
    """Take the steps as a cell does, eagerly; then measure what its meters cost."""
    it, batches, survey = _ready(settings, report.device, WARMUP_STEPS + settings.steps + settings.metered_steps)
    meters.reset_peaks(report.device)
    steps_s = _clocked(lambda step: steps.take(it, step), batches, settings, report)
    figures = {**speed(steps_s, settings.parameters), **_peak(report.device)}
    batch = survey.longest
    return {
        **figures,
        "logits_share": batch.loss_tokens / batch.real_tokens,
        "work": asdict(count_work(it.model)),
        "meters": _meters_cost(it, batches, settings.meter_rounds, report),
    }


def graph(settings: Settings, report: Report) -> Figures:
    """Take the steps as a cell does that runs them as a CUDA graph, after the eager ones before the capture."""
    it, batches, survey = _ready(settings, report.device, 2 * WARMUP_STEPS + settings.steps)
    for step in islice(batches, WARMUP_STEPS):
        steps.take(it, step)
    meters.reset_peaks(report.device)
    replay = graphs.capture(it, survey)
    steps_s = _clocked(replay.take, batches, settings, report)
    return {**speed(steps_s, settings.parameters), **_peak(report.device)}


PARTS: dict[str, Callable[[Settings, Report], Figures]] = {
    "matmul": matmul,
    "trainer": trainer,
    "ours": ours,
    "graph": graph,
}


def measure(part: str, steps: int, meter_rounds: int, request: Request, device: torch.device, send: Send) -> Figures:
    """Measure one part and return its figures.

    Raises:
        Invalid: the device cannot compute with such settings.
    """
    settings = Settings(request.parameters, request.device, steps, meter_rounds)
    precision.check_supported(settings.cell(1), device)
    return PARTS[part](settings, Report(send, device, phase="train"))


def speed(steps_s: Sequence[float], parameters: Mapping[str, Any]) -> Figures:
    """Return quartiles of the time of the steps after warm-up, and the tokens of a step over the median.

    Every token is a real one.
    """
    timed_s = list(steps_s[WARMUP_STEPS:])
    p25, p50, p75 = np.percentile(timed_s, [25, 50, 75])
    tokens = parameters["batch_size"] * parameters["max_length"]
    return {
        "steps_s": timed_s,
        "timed_steps_count": len(timed_s),
        "step_p25_s": float(p25),
        "step_p50_s": float(p50),
        "step_p75_s": float(p75),
        "tokens_per_step_count": tokens,
        "tokens_per_s": tokens / float(p50),
    }


def _examples(settings: Settings, vocab_size: int) -> list[TokenizedExample]:
    """Return as many examples as the longest part takes, so that no epoch ends and every batch is full."""
    count = 2 * WARMUP_STEPS + settings.steps + settings.metered_steps
    batch_size, length = settings.parameters["batch_size"], settings.parameters["max_length"]
    return encoding.synthetic_examples(vocab_size, length, count * batch_size)


def _ready(settings: Settings, device: torch.device, count: int) -> tuple[Trainee, Iterator[list[Batch]], Survey]:
    """Load and adapt a model as a cell does, for `count` steps."""
    parameters = settings.cell(count)
    set_seed(SEED)
    model, _ = quantize.load(parameters, device)
    quantize.verify(model, parameters)
    heads.check_supported(model, parameters.max_length)
    examples = _examples(settings, model.config.get_text_config().vocab_size)
    adapters.adapt(model, parameters)
    batches = encoding.steps(examples, parameters, SEED)
    return steps.trainee(model, parameters, count), batches, encoding.survey(examples, parameters, SEED)


def _clocked(
    take: Callable[[Sequence[Batch]], torch.Tensor],
    batches: Iterator[list[Batch]],
    settings: Settings,
    report: Report,
) -> list[float]:
    """Return the seconds of each step from the end of the one before, waiting for the GPU as `Trainer`'s clock does."""
    count = WARMUP_STEPS + settings.steps
    losses = _losses(count, report)
    synchronize(report.device)
    marks_s = [time_s()]
    for step in islice(batches, count):
        losses.add(take(step))
        synchronize(report.device)
        marks_s.append(time_s())
    return _between_s(marks_s)


def _between_s(marks_s: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(marks_s)]


def _meters_cost(it: Trainee, batches: Iterator[list[Batch]], rounds: int, report: Report) -> Figures:
    """Return the time of blocks of steps with all meters on and off, and the ratio on / off of each pair of blocks.

    On is the loop of `bench.cell.train`. Each block looks at its losses once, twice as often as a cell does.
    """

    def block_s(on: bool) -> float:
        some, losses, clock = islice(batches, BLOCK_STEPS), _losses(BLOCK_STEPS, report), StepClock(it.device)
        synchronize(it.device)
        started_s = time_s()
        if on:
            train.run_steps(lambda step: steps.take(it, step), some, losses, clock)
        else:
            for step in some:
                steps.take(it, step)
        synchronize(it.device)
        return time_s() - started_s

    order = ROUND * rounds
    blocks = [(on, block_s(on)) for on in order]
    on_s, off_s = ([seconds for on, seconds in blocks if on is wanted] for wanted in (True, False))
    # Each pair is two neighbours in time: on, off and then off, on.
    ratios = [on / off for on, off in zip(on_s, off_s, strict=True)]
    return {
        "steps_per_block_count": BLOCK_STEPS,
        "on_s": on_s,
        "off_s": off_s,
        "ratios": ratios,
        "ratio_p50": float(np.median(ratios)),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def _losses(count: int, report: Report) -> train.Losses:
    return train.Losses(torch.full((count,), float("nan"), device=report.device), report.progress)


def _peak(device: torch.device) -> Figures:
    """Return the most memory since the reset: of tensors on a GPU, of the process without one."""
    return {"peak_bytes": meters.peaks(device)["peak_allocated_bytes" if device.type == "cuda" else "peak_rss_bytes"]}
