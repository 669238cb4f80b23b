"""What the 16-bit model answers to a task's held-out prompts, to tell by comparison what quantization alone does.

It is computed once for a run's cells with the same model and prompts, in a process of its own, since a cell's memory
figures are those of a fresh process. A file keeps it; a failure is kept too, so that it costs no cell more than one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.cell import encoding, heads, meters, precision, quantize, ragged, scoring, shared, sources, trie
from bench.cell.channel import Send
from bench.cell.devices import to_device
from bench.cell.failures import Shortage, describe
from bench.cell.ragged import Rows
from bench.cell.scoring import SCORING_VERSION, Scores
from bench.cell.tasks import Task, load_task, subset
from bench.matrix.models import PACKAGED_MODEL
from bench.matrix.parameters import Parameters
from bench.protocol import Request

# Part of what a reference is found by: raise it when its file holds something else.
REFERENCE_VERSION = 1

# Prompts whose next token is compared, a fixed stratified subset: each costs a number for every token of a vocabulary.
NEXT_TOKEN_PROMPTS = 256

Progress = Callable[[int, int], None]


class Unavailable(Exception):
    """There is no reference; the message says why, and how to try again."""


@dataclass(frozen=True)
class HeldOut:
    """A task's test part as tokens: its prompts in the task's order, and its labels."""

    task: Task
    prompts: Rows[tuple[int, ...]]
    labels: tuple[tuple[int, ...], ...]

    @property
    def next_token_rows(self) -> list[int]:
        """The numbers of the prompts whose next token is compared."""
        count = min(NEXT_TOKEN_PROMPTS, len(self.task.test))
        chosen = {example.index for example in subset(self.task.test, count, "next_token_prompts")}
        return [row for row, example in enumerate(self.task.test) if example.index in chosen]

    @property
    def next_token_prompts(self) -> list[tuple[int, ...]]:
        return [self.prompts[row] for row in self.next_token_rows]


@dataclass(frozen=True)
class Reference:
    """The 16-bit model's scores, in a file that also holds its next tokens."""

    path: Path
    key: str
    scores: Scores

    def next_tokens(self) -> torch.Tensor:
        """Return the log-probabilities of the token after each of `next_token_prompts`, float32 [prompts, tokens].

        They are mapped into memory, for as long as somebody holds them.
        """
        return load_file(self.path)["next_tokens"]


def encode(tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int, cache_dir: Path | None = None) -> HeldOut:
    """Return the tokens of a task's labels and test part.

    Raises:
        Invalid: the tokenizer cannot tell the labels apart, or `max_length` has no room for a prompt.
    """
    labels = encoding.encode_labels(tokenizer, task.labels)
    tests = encoding.encode_examples(tokenizer, task.test, task.labels, labels, max_length, cache_dir)
    return HeldOut(task, tests.prompts, labels)


def sixteen_bit(parameters: Parameters, device: torch.device) -> Parameters:
    """Return the parameters of the 16-bit model of a cell: unquantized, in bfloat16 where the device has it."""
    has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = "bfloat16" if has_bfloat16 else "float16"
    return parameters.model_copy(
        update={
            "quant_type": "none",
            "double_quant": False,
            "kbit_upcast": False,
            "compute_dtype": dtype,
            "load_dtype": dtype,
            "vram_limit": None,
        }
    )


def key(parameters: Parameters, held_out: HeldOut, device: torch.device) -> str:
    """Return a hash of all that a reference depends on, as far as it can be told without loading the model."""
    asked = sixteen_bit(parameters, device)
    facts = (
        REFERENCE_VERSION,
        SCORING_VERSION,
        asked.model,
        asked.revision,
        _identity(asked),
        asked.compute_dtype,
        asked.attn_implementation,
        held_out.labels,
        [held_out.prompts[row] for row in range(len(held_out.prompts))],
        held_out.next_token_rows,
        shared.machine(device),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _identity(parameters: Parameters) -> Any:
    """Return what tells a checkpoint from another of the same name: its hash, its commit, or sizes and times of files.

    The configuration of a hub model must have been read, so that it is in the cache.
    """
    if parameters.model == PACKAGED_MODEL:
        return sources.PACKAGED_SHA256
    place = sources.place(parameters.model)
    if (folder := Path(place)).is_dir():
        return sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    config = try_to_load_from_cache(place, "config.json", revision=parameters.revision)
    return Path(config).parent.name if isinstance(config, str) else None


# In a cell ------------------------------------------------------------------------------------------------------------


def obtain(folder: Path, key: str, request: Request, progress: Progress = lambda done, total: None) -> Reference:
    """Return the reference that `folder` holds under `key`; where there is none, have it computed.

    Cells that need the same one at the same time wait for the first of them.

    Args:
        folder: what cells of a run share.
        key: by the function of that name.
        request: the cell's own.
        progress: called with the number of prompts scored and their total, where it is computed now.

    Raises:
        Unavailable: it could not be computed, now or earlier, or not be kept.
    """
    path = folder / f"reference-{key[:32]}.safetensors"
    failure = path.with_suffix(".json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, or this process has ended
            if found := _read(path, key):
                return found
            if (reason := _failure(failure)) is None:
                reason = _have_computed(request, path, progress)
                if found := _read(path, key):
                    return found
                reason = reason or f"{path} cannot be read"
                failure.write_text(json.dumps({"reason": reason}) + "\n", encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"{error}; see to it that {folder} can be written") from error
    raise Unavailable(f"{reason}; remove {failure} to try again")


def _read(path: Path, key: str) -> Reference | None:
    with suppress(OSError, SafetensorError, KeyError):
        found = load_file(path)
        if "next_tokens" in found:
            return Reference(path, key, Scores(found["log_likelihoods"].numpy(), found["label_lengths"].numpy()))
    return None


def _failure(path: Path) -> str | None:
    """Return why an earlier cell got no reference; None where none has tried."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    return None


def _have_computed(request: Request, path: Path, progress: Progress) -> str | None:
    """Have a process of its own compute a reference, wait for it, and return what failed there, if anything did.

    The process imports what this one imports, computes with as many threads, and ends when this one does.
    """
    device = torch.device(request.device)
    parameters = sixteen_bit(Parameters.model_validate(dict(request.parameters)), device)
    asked = replace(request, parameters=parameters.model_dump(mode="json"), evidence_dir=None)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "QLORA_BENCH_PARENT": str(os.getpid()),
    }
    command = (sys.executable, "-P", "-m", "bench.cell", "reference", str(path))
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        with suppress(BrokenPipeError), cast(IO[str], process.stdin) as stdin:
            stdin.write(asked.to_json())
        for line in cast(IO[str], process.stdout):
            if not line.endswith("\n"):  # it was ended while it spoke
                break
            message = json.loads(line)
            if message["kind"] == "end":
                reason: str | None = message["message"]
                return reason
            progress(message["done"], message["total"])
    if process.returncode < 0:
        return f"its process was ended by {signal.Signals(-process.returncode).name}"
    return f"its process ended with code {process.returncode} (the cell's log may say why)"


# In the process of its own --------------------------------------------------------------------------------------------


def answer(request: Request, path: Path, send: Send) -> None:
    """Compute a reference and write it to `path`; send the progress, and an end whose message says what failed."""
    shortages: list[Shortage] = []
    try:
        compute(request, path, lambda done, total: send({"kind": "progress", "done": done, "total": total}), shortages)
        send({"kind": "end", "message": None})
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        shortage = shortages[-1] if shortages and isinstance(error, torch.OutOfMemoryError) else None
        send({"kind": "end", "message": describe(error, "reference", shortage)[1]})


def compute(request: Request, path: Path, progress: Progress, shortages: list[Shortage]) -> None:
    """Load the model of a request as it is asked for, and write what it answers to `path`.

    Allocations that find no memory are noted in `shortages`.
    """
    parameters = Parameters.model_validate(dict(request.parameters))
    device = torch.device("cuda", 0) if request.device == "cuda" else torch.device("cpu")
    meters.watch_out_of_memory(device, shortages.append)
    data_dir, cache_dir = sources.folders(request)
    task = load_task(parameters.task, data_dir, parameters.train_examples, parameters.eval_examples)
    tokenizer = sources.find_tokenizer(parameters, cache_dir, request.trust_remote_code)
    held_out = encode(tokenizer, task, parameters.max_length, cache_dir)
    model, _ = quantize.load(parameters, device, cache_dir, request.trust_remote_code)
    heads.check_supported(model, parameters.max_length)
    model.eval()
    with precision.autocast(parameters, device):
        scores = scoring.score(model, held_out.prompts, trie.build(held_out.labels), progress)
        next_tokens = _next_tokens(model, held_out.next_token_prompts)
    ragged.write(
        path,
        {
            "log_likelihoods": torch.from_numpy(scores.log_likelihoods),
            "label_lengths": torch.from_numpy(scores.label_lengths),
            "next_tokens": next_tokens,
        },
    )


def _next_tokens(model: PreTrainedModel, prompts: list[tuple[int, ...]]) -> torch.Tensor:
    parts = [(rows, found.cpu()) for rows, found in scoring.next_tokens(model, prompts)]
    result = torch.empty(len(prompts), parts[0][1].shape[1])
    for rows, found in parts:
        result[rows] = found
    return result


# Comparison -----------------------------------------------------------------------------------------------------------


def compare_labels(reference: Scores, found: Scores) -> dict[str, float]:
    """Return how far a base's distributions over the labels are from the 16-bit model's, as a mean over examples."""
    of_reference, of_found = (torch.from_numpy(scores.log_likelihoods) for scores in (reference, found))
    return {
        "label_kl_before": divergences(of_reference, of_found).mean().item(),
        "label_agreement_before": (of_reference.argmax(-1) == of_found.argmax(-1)).double().mean().item(),
    }


@torch.inference_mode()
def compare_next_tokens(
    model: PreTrainedModel, prompts: list[tuple[int, ...]], reference: torch.Tensor
) -> dict[str, float | int]:
    """Return how far a base's next tokens are from the 16-bit model's, as a mean over prompts.

    Args:
        model: the base in evaluation mode, called in whatever autocast context is active.
        prompts: `HeldOut.next_token_prompts`.
        reference: what the 16-bit model says to them, by `Reference.next_tokens`.
    """
    divergence, agreement = [], []
    for rows, found in scoring.next_tokens(model, prompts):
        wanted = to_device(reference[rows], model.device)
        with torch.autocast(model.device.type, enabled=False):
            divergence.append(divergences(wanted, found))
        agreement.append(wanted.argmax(-1) == found.argmax(-1))
    return {
        "next_token_prompts_count": len(prompts),
        "next_token_kl_before": torch.cat(divergence).mean().item(),
        "next_token_agreement_before": torch.cat(agreement).double().mean().item(),
    }


def divergences(reference: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence KL(reference || found) of each row, float64, nats.

    Both are log-probabilities, [rows, outcomes], up to a constant a row: they are normalized in float64, since what
    rounding in float32 leaves of a row's sum could pass for a divergence below zero.
    """
    p, q = (rows.double().log_softmax(-1) for rows in (reference, found))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0.0)
