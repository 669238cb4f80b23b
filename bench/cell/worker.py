"""One cell, phase by phase: ask the 16-bit model, load, verify, score, adapt, train, score, and report."""

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
import pyarrow as pa
import torch
from transformers import PreTrainedModel, set_seed

from bench.cell import (
    adapters,
    divergence,
    encoding,
    evidence,
    heads,
    layers,
    meters,
    precision,
    prediction,
    quantize,
    reference,
    scoring,
    shared,
    sources,
    storage,
)
from bench.cell.channel import Send
from bench.cell.devices import synchronize
from bench.cell.encoding import Shape, TokenizedExample
from bench.cell.failures import Diverged, Invalid, Shortage, describe, first_line
from bench.cell.meters import time_s
from bench.cell.ragged import Rows
from bench.cell.reference import HeldOut, Reference
from bench.cell.scoring import Scores
from bench.cell.shared import Base
from bench.cell.tasks import load_task
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
    except Exception as error:
        warn_of(report, "prediction of memory", error)
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
    check_limit(parameters.vram_limit, device)
    data_dir, cache_dir = sources.folders(request)
    sources.prepare(parameters, cache_dir)
    examples: Rows[TokenizedExample] | None = None
    quality = None
    if parameters.weights == "pretrained":
        task = load_task(parameters.task, data_dir, parameters.train_examples, parameters.eval_examples)
        report.provenance["task_sha256"] = task.sha256
        quantize.check_unquantized(parameters, sources.shape_config(parameters, request.trust_remote_code))
        tokenizer = sources.find_tokenizer(parameters, cache_dir, request.trust_remote_code)
        held_out = reference.encode(tokenizer, task, parameters.max_length, cache_dir)
        examples = encoding.encode_examples(
            tokenizer, task.train, task.labels, held_out.label_tokens, parameters.max_length, cache_dir
        )
        # Until here this process has put nothing on the GPU, which the 16-bit model may need for itself.
        in_16_bits = ask_in_16_bits(request, parameters, held_out, report)
        quality = Quality(request, parameters, held_out, in_16_bits)
    context_bytes = measures["context_bytes"] = meters.context_bytes(device)
    if parameters.vram_limit is not None and context_bytes is not None:
        measures["cap_bytes"] = cap(parameters.vram_limit, context_bytes, device)
    set_seed(request.seed)

    with report.during("load"):
        model, _ = quantize.load(parameters, device, cache_dir, request.trust_remote_code)
    with report.during("verify"):
        quantize.verify(model, parameters)
        heads.check_supported(model, parameters.max_length)
        measures["footprint_bytes"] = model.get_memory_footprint()
        stored = storage.stored(model)
        measures.update(stored, **storage.counts(model))

    if parameters.quant_type == "int8":
        report.warnings.append("int8 layers compute in float16, whatever compute_dtype says")
    if examples is None:
        examples = encoding.synthetic_examples(model.config.get_text_config().vocab_size, parameters.max_length)
    before = quality.before(model, report) if quality else None
    with report.during("adapt"):
        adapters.adapt(model, parameters)
        unquantized = storage.unquantized(model)
        measures["upcast_bytes"] = sum(unquantized.values()) - stored["unquantized_bytes"]
        measures.update({f"train_{name}": size for name, size in unquantized.items()})
        measures["adapter_bytes"] = sum(p.numel() * p.element_size() for p in adapters.trainable(model))
        measures["trainable_parameters_count"] = sum(p.numel() for p in adapters.trainable(model))
    with report.during("train"):
        measures.update(train_cell(model, examples, parameters, request.seed, report))
    if quality and before:
        quality.after(model, before, report)


def ask_in_16_bits(request: Request, parameters: Parameters, held_out: HeldOut, report: Report) -> Reference | None:
    """Return what the 16-bit model says to the same prompts; None, and a warning, where it cannot be had.

    Cells that share nothing are not compared with it.
    """
    if request.shared_dir is None:
        return None
    with report.during("reference"):
        try:
            key = reference.key(parameters, held_out, report.device)
            return reference.obtain(Path(request.shared_dir), key, request, report.progress)
        except reference.Unavailable as error:
            report.warnings.append(f"no 16-bit reference: {error}")
        except Exception as error:
            warn_of(report, "16-bit reference", error)
    return None


@dataclass(frozen=True)
class Quality:
    """How good a model is at the task's test part, before and after training, and what quantization alone did to it."""

    request: Request
    parameters: Parameters
    held_out: HeldOut
    reference: Reference | None

    def before(self, model: PreTrainedModel, report: Report) -> Scores:
        """Score the base, or take what a cell with the same base has left; the phase is left out then."""
        base = self._base(model, report)
        # Training starts with the same blocks in the allocator, whether or not the base was scored here.
        torch.cuda.empty_cache()
        report.measures.update(base.measures)
        report.measures.update(layers.summary(base.layers))
        if self.request.evidence_dir and base.layers:
            with warned_of(report, "the layers' errors"):
                evidence.write_layers(Path(self.request.evidence_dir), self.request.evidence_name, base.layers)
        report.measures.update(self._measures(base.scores, "before"))
        return base.scores

    def after(self, model: PreTrainedModel, before: Scores, report: Report) -> None:
        """Score the trained model, and keep what every example got before and after."""
        with report.during("score_after"):
            scores = self._score(model, report)
            report.measures.update(self._measures(scores, "after"))
        if self.request.evidence_dir:
            with warned_of(report, "the scores of the examples"):
                report.provenance |= evidence.write_examples(
                    Path(self.request.evidence_dir), self.request.evidence_name, self.held_out.task, before, scores
                )

    def _base(self, model: PreTrainedModel, report: Report) -> Base:
        """Return what is found out about the base, here or by a cell with the same one."""
        report.provenance["score_before_reused"] = False
        if self.request.shared_dir is None:
            return self._find_out(model, report)[0]
        folder = Path(self.request.shared_dir)
        reference_key = self.reference.key if self.reference else None
        key = shared.key(model, self.held_out.prompts, self.held_out.label_trie, self.parameters, reference_key)
        if found := shared.read(folder, key):
            report.provenance["score_before_reused"] = True
            return found
        base, is_complete = self._find_out(model, report)
        if is_complete:
            shared.write(folder, key, base)
        return base

    def _find_out(self, model: PreTrainedModel, report: Report) -> tuple[Base, bool]:
        """Score the base, compare it, and tell whether nothing failed on the way.

        Both comparisons stand outside of the phase, whose peaks and time are those of scoring alone.
        """
        errors = self._weight_errors(model, report)
        with report.during("score_before"):
            scores = self._score(model, report)
        compared = self._compared(model, scores, report)
        return Base(scores, compared or {}, errors or ()), errors is not None and compared is not None

    def _weight_errors(self, model: PreTrainedModel, report: Report) -> tuple[layers.LayerError, ...] | None:
        """Compare the weights with the checkpoint's; None where that fails."""
        _, cache_dir = sources.folders(self.request)
        try:
            return layers.weight_errors(model, self.parameters, cache_dir)
        except Exception as error:
            warn_of(report, "errors of weights", error)
            return None
        finally:
            torch.cuda.empty_cache()

    def _compared(self, model: PreTrainedModel, scores: Scores, report: Report) -> dict[str, float | int] | None:
        """Compare a scored base with the 16-bit model; empty where there is none, None where that fails."""
        if self.reference is None:
            return {}
        try:
            with precision.autocast(self.parameters, report.device):
                next_tokens = divergence.compare_next_tokens(
                    model, self.held_out.next_token_prompts, self.reference.next_tokens()
                )
            return {**divergence.compare_labels(self.reference.scores, scores), **next_tokens}
        except Exception as error:
            warn_of(report, "comparison with the 16-bit model", error)
            return None

    def _score(self, model: PreTrainedModel, report: Report) -> Scores:
        model.eval()
        with precision.autocast(self.parameters, report.device):
            return scoring.score(model, self.held_out.prompts, self.held_out.label_trie, report.progress)

    def _measures(self, scores: Scores, when: str) -> dict[str, float]:
        """Return the figures under names that end in `when`.

        Raises:
            Diverged: the loss is not finite, so that the figures mean nothing.
        """
        task = self.held_out.task
        found = scores.measures(task.truth, when)
        if not math.isfinite(loss := found[f"heldout_loss_{when}"]):
            raise Diverged(f"the held-out loss {when} training is {loss}")
        return {"eval_examples_count": len(task.test), "labels_count": len(task.labels), **found}


@contextmanager
def warned_of(report: Report, what: str) -> Iterator[None]:
    """Turn a file that cannot be written into a warning: the record has the figures that it would have explained."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        report.warnings.append(f"{what} could not be kept: {error}")


def warn_of(report: Report, what: str, error: Exception) -> None:
    """Turn the error being handled into a warning that there is no `what`: the cell's own result stands without it."""
    traceback.print_exc(file=sys.stderr)
    report.warnings.append(f"no {what}: {type(error).__name__}: {first_line(error)}")


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


def check_limit(vram_limit: int | str | None, device: torch.device) -> None:
    """Refuse the memory of a card that cannot be played.

    Raises:
        Invalid: there is no GPU, or the limit is above its memory.
    """
    if vram_limit is None:
        return
    if device.type != "cuda":
        raise Invalid("vram_limit needs a CUDA GPU", "run this cell on one, or leave vram_limit out")
    limit, total = card_of(vram_limit).memory_bytes, meters.card_bytes(device)
    if limit > total:
        raise Invalid(
            f"vram_limit is {limit / 1e9:.2f} GB, and {torch.cuda.get_device_name(device)} has {total / 1e9:.2f} GB",
            "lower vram_limit, or take a larger card",
        )


def cap(vram_limit: int | str, context_bytes: int, device: torch.device) -> int:
    """Run as if on a card with less memory; return the cap on torch's allocator in bytes.

    Args:
        vram_limit: the card's memory, as in a matrix.
        context_bytes: what CUDA takes of it, by `meters.context_bytes`.
        device: where the cell runs.

    Raises:
        Invalid: the limit is below what CUDA itself takes.
    """
    limit = card_of(vram_limit).memory_bytes
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
