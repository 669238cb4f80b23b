"""One cell, phase by phase: load, verify, score, adapt, train, score, and report."""

from __future__ import annotations

import math
import os
import platform
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, set_seed

from bench.cell import (
    adapters,
    encoding,
    heads,
    meters,
    precision,
    prediction,
    quantize,
    scoring,
    shared,
    sources,
    storage,
    trie,
)
from bench.cell.channel import Send
from bench.cell.devices import synchronize
from bench.cell.encoding import Shape, TokenizedExample
from bench.cell.failures import Diverged, Invalid, Shortage, describe, first_line
from bench.cell.meters import time_s
from bench.cell.ragged import Rows
from bench.cell.tasks import Task, load_task
from bench.cell.train import train
from bench.matrix.cards import card_of
from bench.matrix.parameters import Parameters
from bench.protocol import Phase, Request

PROGRESS_INTERVAL_S = 0.2
MOST_LOSSES = 100_000  # of the first steps; a message has a largest size

# Peaks are reported for three spans; the phases of one span share its columns, and the higher one stands.
SPANS: dict[Phase, str] = {
    "load": "load",
    "score_before": "score",
    "adapt": "train",
    "train": "train",
    "score_after": "score",
}


# The phases that a prediction covers.
PREDICTED: frozenset[Phase] = frozenset({"load", "adapt", "train"})


@dataclass
class Report:
    """What a cell has found out so far, and where it stands; the worker's only mutable state."""

    send: Send
    device: torch.device
    phase: Phase = "start"
    measures: dict[str, float | int | None] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    frozen: set[str] = field(default_factory=set)
    shortage: Shortage | None = None
    largest: Shape | None = None
    last_progress_s: float = 0.0

    def message(self, kind: str, **content: Any) -> None:
        frozen = self.phase in self.frozen
        peak = (
            self.measures["train_peak_allocated_bytes"] if frozen else meters.peaks(self.device)["peak_allocated_bytes"]
        )
        self.send({"kind": kind, "phase": self.phase, "peak_allocated_bytes": peak, **content})

    def progress(self, done: int, total: int) -> None:
        if done == total or time_s() - self.last_progress_s >= PROGRESS_INTERVAL_S:
            self.last_progress_s = time_s()
            self.message("progress", done=done, total=total)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Run a phase: announce it, time it, and take its memory, also where it fails."""
        self.phase = phase
        meters.reset_peaks(self.device)
        self.message("phase")
        started_s = time_s()
        try:
            yield
            synchronize(self.device)
            self.measures[f"{phase}_s"] = time_s() - started_s
        finally:
            if (span := SPANS.get(phase)) and span not in self.frozen:
                self.take_memory(span)

    def freeze_memory(self, span: str) -> None:
        """Take the memory of a span as it stands: what its phase does from here on is not counted."""
        self.take_memory(span)
        self.frozen.add(span)

    def take_memory(self, span: str) -> None:
        """Add the peaks of a phase, and what the process takes at its end, to those of a span; the highest stand."""
        for name, value in {**meters.peaks(self.device), **meters.taken(self.device)}.items():
            told = [known for known in (self.measures.get(f"{span}_{name}"), value) if known is not None]
            self.measures[f"{span}_{name}"] = max(told, default=None)

    def note_shortage(self, shortage: Shortage) -> None:
        self.shortage = shortage


def work(request: Request, send: Send) -> None:
    """Run one cell and send its messages; whatever happens, the last one is its end."""
    report = Report(send, torch.device("cuda", 0) if request.device == "cuda" else torch.device("cpu"))
    try:
        report.provenance = {**provenance(report.device), "trust_remote_code": request.trust_remote_code}
        run_cell(request, report)
        predict_cell(request, report)
        report.message("end", status="ok", message=None, hint=None, **_results(report))
    except Exception as error:  # whatever went wrong is this cell's result
        traceback.print_exc(file=sys.stderr)
        if isinstance(error, Diverged):
            report.losses = error.losses or report.losses
        # An error that torch's allocator did not raise is not about what the allocator lacked at some earlier time.
        shortage = report.shortage if isinstance(error, torch.OutOfMemoryError) else None
        status, message, hint = describe(error, report.phase, shortage)
        if status == "oom":
            report.measures["short_bytes"] = shortage.short_bytes if shortage else None
            hint = predict_cell(request, report, shortage) or hint
        report.message("end", status=status, message=message, hint=hint, **_results(report))


def predict_cell(request: Request, report: Report, shortage: Shortage | None = None) -> str | None:
    """Put what was predicted beside what was measured; for a cell that lacked memory, return what would suffice.

    Nothing is known of the peak on a CPU, where torch counts no allocations. A prediction that fails is a warning.
    """
    parameters = Parameters.model_validate(dict(request.parameters))
    try:
        config = sources.shape_config(parameters, request.trust_remote_code)
        if report.device.type == "cpu":
            report.measures.update(prediction.predict_storage(parameters, config))
            return None
        kernels = prediction.kernels_of(report.device)
        # A cell that lacks memory before its first step has read its task and its tokenizer.
        shape = report.largest or prediction.expected_shape(parameters, [request.seed], request, hub=True)[0]
        predicted = prediction.predict(parameters, config, shape, kernels)
        report.measures.update(predicted.measures)
        report.provenance["prediction_note"] = predicted.note
        if shortage is None or predicted.note or report.phase not in PREDICTED:
            return None
        context_bytes = int(report.measures.get("context_bytes") or 0)
        return prediction.what_suffices(parameters, config, shape, kernels, shortage.limit_bytes, context_bytes)
    except Exception as error:  # the cell's own result stands
        traceback.print_exc(file=sys.stderr)
        report.warnings.append(f"no prediction of memory: {type(error).__name__}: {first_line(error)}")
        return None


def _results(report: Report) -> dict[str, Any]:
    return {
        "measures": report.measures,
        "losses": [float(f"{loss:.6g}") for loss in report.losses[:MOST_LOSSES]],
        "environment": report.provenance,
        "warnings": report.warnings,
    }


def run_cell(request: Request, report: Report) -> None:
    """Go through the phases of one cell, filling the report on the way."""
    parameters = Parameters.model_validate(dict(request.parameters))
    device, measures = report.device, report.measures
    precision.check_supported(parameters, device)
    meters.watch_out_of_memory(device, report.note_shortage)
    context_bytes = measures["context_bytes"] = meters.context_bytes(device)
    if parameters.vram_limit is not None:
        measures["cap_bytes"] = cap(parameters.vram_limit, context_bytes, device)
    data_dir, cache_dir = sources.folders(request)
    shared_dir = Path(request.shared_dir) if request.shared_dir else None
    sources.prepare(parameters, cache_dir)
    task = None
    if parameters.weights == "pretrained":
        task = load_task(parameters.task, data_dir, parameters.train_examples, parameters.eval_examples)
        report.provenance["task_sha256"] = task.sha256
    set_seed(request.seed)

    with report.during("load"):
        model, tokenizer = quantize.load(parameters, device, cache_dir, request.trust_remote_code)
    with report.during("verify"):
        quantize.verify(model, parameters)
        heads.check_supported(model, parameters.max_length)
        measures["footprint_bytes"] = model.get_memory_footprint()
        stored = storage.stored(model)
        measures.update(stored, **storage.counts(model))

    if parameters.quant_type == "int8":
        report.warnings.append("int8 layers compute in float16, whatever compute_dtype says")
    examples: Rows[TokenizedExample]
    quality = None
    if task is None or tokenizer is None:
        examples = encoding.synthetic_examples(model.config.get_text_config().vocab_size, parameters.max_length)
    else:
        label_tokens = encoding.encode_labels(tokenizer, task.labels)
        examples, tests = (
            encoding.encode_examples(tokenizer, part, task.labels, label_tokens, parameters.max_length, cache_dir)
            for part in (task.train, task.test)
        )
        quality = Quality(task, tests.prompts, trie.build(label_tokens), parameters)

    if quality:
        measures.update(quality.before(model, shared_dir, report))
    with report.during("adapt"):
        adapters.adapt(model, parameters)
        unquantized = storage.unquantized(model)
        measures["upcast_bytes"] = sum(unquantized.values()) - stored["unquantized_bytes"]
        measures.update({f"train_{name}": size for name, size in unquantized.items()})
        measures["adapter_bytes"] = sum(p.numel() * p.element_size() for p in adapters.trainable(model))
        measures["trainable_parameters_count"] = sum(p.numel() for p in adapters.trainable(model))
    with report.during("train"):
        measures.update(train_cell(model, examples, parameters, request.seed, report))
    if quality:
        measures.update(quality.after(model, report))


@dataclass(frozen=True)
class Quality:
    """How good a model is at the task's test part: accuracy, macro-F1 and held-out loss, before and after training."""

    task: Task
    prompts: Rows[tuple[int, ...]]
    labels: trie.Trie
    parameters: Parameters

    def before(self, model: PreTrainedModel, shared_dir: Path | None, report: Report) -> dict[str, float]:
        """Score the base, or take the scores that a cell with the same base has left; the phase is left out then."""
        key = shared.key(model, self.prompts, self.labels, self.parameters) if shared_dir else ""
        scores = shared.read(shared_dir, key) if shared_dir else None
        report.provenance["score_before_reused"] = scores is not None
        if scores is None:
            with report.during("score_before"):
                scores = self._score(model, report)
            if shared_dir:
                shared.write(shared_dir, key, scores)
        return self._measures(scores, "before")

    def after(self, model: PreTrainedModel, report: Report) -> dict[str, float]:
        with report.during("score_after"):
            return self._measures(self._score(model, report), "after")

    def _score(self, model: PreTrainedModel, report: Report) -> scoring.Scores:
        model.eval()
        with precision.autocast(self.parameters, report.device):
            return scoring.score(model, self.prompts, self.labels, report.progress)

    def _measures(self, scores: scoring.Scores, when: str) -> dict[str, float]:
        """Return the figures under names that end in `when`.

        Raises:
            Diverged: the loss is not finite, so that the figures mean nothing.
        """
        numbers = {label: number for number, label in enumerate(self.task.labels)}
        truth = np.array([numbers[example.label] for example in self.task.test])
        found = scores.measures(truth, when)
        if not math.isfinite(loss := found[f"heldout_loss_{when}"]):
            raise Diverged(f"the held-out loss {when} training is {loss}")
        return {"eval_examples_count": len(truth), "labels_count": len(self.task.labels), **found}


def train_cell(
    model: PreTrainedModel, examples: Rows[TokenizedExample], parameters: Parameters, seed: int, report: Report
) -> dict[str, float | None]:
    """Train on a seed's batches and return what the meters and the losses say."""
    count = encoding.steps_count(parameters, len(examples))
    survey = encoding.survey(examples, parameters, seed)
    report.provenance["batches_sha256"] = survey.sha256
    report.largest = Shape(survey.rows, max(survey.lengths), survey.width)
    batches = encoding.steps(examples, parameters, seed)
    done = train(
        model,
        batches,
        parameters,
        survey,
        count,
        progress=report.progress,
        eager_done=lambda: report.freeze_memory("train"),
        replaying=lambda: report.message("replay"),
    )
    report.losses = done.losses
    report.largest = done.largest
    report.provenance |= {"execution_used": done.execution, "attention_used": model.config._attn_implementation}
    report.warnings += done.warnings
    if done.skipped:
        report.warnings.append(f"{done.skipped} of {count} steps overflowed in float16 and were left out")
    tenth = max(1, len(done.losses) // 10)
    eager = meters.throughput(done.eager)
    return {
        "steps_count": len(done.losses) - done.skipped,
        "skipped_steps_count": done.skipped,
        **done.state,
        "train_loss_first": float(np.mean(done.losses[:tenth])),
        "train_loss_last": float(np.mean(done.losses[-tenth:])),
        "gpu_busy_share": done.gpu_busy_share,
        "eager_step_p50_s": eager.get("step_p50_s"),
        "tokens_per_s_eager": eager.get("tokens_per_s"),
        **meters.throughput(done.steady),
    }


def cap(vram_limit: int | str, context_bytes: int | None, device: torch.device) -> int:
    """Run as if on a card with less memory; return the cap on torch's allocator in bytes.

    Args:
        vram_limit: the card's memory, as in a matrix.
        context_bytes: what CUDA takes of it, by `meters.context_bytes`.
        device: where the cell runs.

    Raises:
        Invalid: there is no GPU, or the limit is above its memory or below what CUDA itself takes.
    """
    limit = card_of(vram_limit).memory_bytes
    if context_bytes is None:
        raise Invalid("vram_limit needs a CUDA GPU", "run this cell on one, or leave vram_limit out")
    total = meters.card_bytes(device)
    if limit > total:
        raise Invalid(
            f"vram_limit is {limit / 1e9:.2f} GB, and {torch.cuda.get_device_name(device)} has {total / 1e9:.2f} GB",
            "lower vram_limit, or take a larger card",
        )
    capped = meters.cap_memory(limit, context_bytes, device)
    if capped <= 0:
        raise Invalid(f"vram_limit is {limit / 1e9:.2f} GB, and CUDA alone takes more", "raise vram_limit")
    return capped


def provenance(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on beside the parameters: hardware and versions, as this process sees them."""
    packages = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    found: dict[str, Any] = {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "cuda_version": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    if device.type == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu_name": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
        }
    return found
