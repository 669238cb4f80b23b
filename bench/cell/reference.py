"""What the 16-bit model answers to a task's held-out prompts, to tell by comparison what quantization alone does.

It is computed once for a run's cells with the same model and prompts, in a process of its own, since a cell's memory
figures are those of a fresh process. A file keeps it. A failure that another try would only repeat is kept too, so that
one cell pays for it. No cell gives more than half of its `timeout` to waiting and computing together; it then goes on
without a reference, and a computation that took so long is a failure that is kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.cell import encoding, heads, meters, precision, quantize, ragged, scoring, shared, sources, trie
from bench.cell.channel import Send
from bench.cell.failures import Shortage, describe
from bench.cell.meters import time_s
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

# Of a cell's timeout, what it spends at most on waiting for a reference and on having it computed.
TIMEOUT_SHARE = 0.5
LOCK_POLL_S = 0.2

SIGNAL_NAMES: dict[int, str] = {number.value: number.name for number in signal.Signals}
# What others send to end a process, such as the kernel where the host has no more memory: another try may go well.
FROM_OUTSIDE: frozenset[int] = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGKILL})

Progress = Callable[[int, int], None]


class Unavailable(Exception):
    """There is no reference; the message says why, and how to try again."""


@dataclass(frozen=True)
class HeldOut:
    """A task's test part as tokens: its prompts and its labels, both in the task's order."""

    task: Task
    prompts: Rows[tuple[int, ...]]
    label_tokens: tuple[tuple[int, ...], ...]

    @cached_property
    def label_trie(self) -> trie.Trie:
        return trie.build(self.label_tokens)

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
    label_tokens = encoding.encode_labels(tokenizer, task.labels)
    tests = encoding.encode_examples(tokenizer, task.test, task.labels, label_tokens, max_length, cache_dir)
    return HeldOut(task, tests.prompts, label_tokens)


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
        held_out.label_tokens,
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
        request: the cell's own, whose `timeout` bounds this.
        progress: called with the number of prompts scored and their total, where it is computed now.

    Raises:
        Unavailable: it could not be computed, now or earlier, or not in time, or not be kept.
    """
    path = folder / f"reference-{key[:32]}.safetensors"
    failure = path.with_suffix(".json")
    parameters = Parameters.model_validate(dict(request.parameters))
    deadline = Deadline(time_s() + TIMEOUT_SHARE * parameters.timeout, parameters.timeout)
    with _locked(path.with_suffix(".lock"), deadline):
        if found := _read(path, key):
            return found
        if (reason := _failure(failure)) is None:
            reason = _have_computed(request, parameters, path, deadline, progress)
            if found := _read(path, key):
                return found
            reason = reason or f"{path} cannot be read"
            with _writing(folder):
                failure.write_text(json.dumps({"reason": reason}) + "\n", encoding="utf-8")
    raise Unavailable(f"{reason}; remove {failure} to try again")


@dataclass(frozen=True)
class Deadline:
    """When a cell goes on without a reference, by `time_s`, and the `timeout` of which that is a share."""

    at_s: float
    timeout_s: float

    @property
    def left_s(self) -> float:
        return self.at_s - time_s()

    def __str__(self) -> str:
        return f"within half of a cell's timeout of {self.timeout_s:g} s; raise timeout"


@contextmanager
def _locked(path: Path, deadline: Deadline) -> Iterator[None]:
    """Hold the lock on a file, which ends with the process at the latest.

    Raises:
        Unavailable: the file cannot be written, or somebody else still holds the lock at the deadline.
    """
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    with lock:
        while not _has_locked(lock):
            if deadline.left_s <= 0:
                raise Unavailable(f"another cell did not have it {deadline}")
            time.sleep(LOCK_POLL_S)
        yield


def _has_locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise Unavailable(f"{lock.name} cannot be locked: {error}; see to it that its file system has locks") from error
    return True


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{error}; see to it that {folder} can be written") from error


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


def _have_computed(
    request: Request, parameters: Parameters, path: Path, deadline: Deadline, progress: Progress
) -> str | None:
    """Have a process of its own compute a reference, wait for it, and return what failed there, if anything did.

    The process imports what this one imports, computes with as many threads, and ends when this one does, or at the
    deadline.

    Raises:
        Unavailable: it failed in a way that another try may not: it cannot be started, or somebody else ended it.
    """
    plain = sixteen_bit(parameters, torch.device(request.device))
    asked = replace(request, parameters=plain.model_dump(mode="json"), evidence_dir=None)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "QLORA_BENCH_PARENT": str(os.getpid()),
    }
    command = (sys.executable, "-P", "-m", "bench.cell", "reference", str(path))
    try:
        # What others print at its start is passed over, whatever its encoding.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        why = f"its process cannot be started: {error}"
        raise Unavailable(f"{why}; see to it that {sys.executable} can run, and one process more") from error
    killer = threading.Timer(max(0.0, deadline.left_s), process.kill)
    killer.start()
    try:
        with process:
            with suppress(BrokenPipeError), cast(IO[str], process.stdin) as stdin:
                stdin.write(asked.to_json())
            for line in cast(IO[str], process.stdout):
                match _parsed(line):
                    case {"kind": "end", "message": None | str() as reason}:
                        return reason
                    case {"kind": "progress", "done": int() as done, "total": int() as total}:
                        progress(done, total)
    finally:
        killer.cancel()
    if process.returncode >= 0:
        return f"its process ended with code {process.returncode} (the cell's log may say why)"
    number = -process.returncode
    if number == signal.SIGKILL and deadline.left_s <= 0:
        return f"it was not computed {deadline}"
    reason = f"its process was ended by {SIGNAL_NAMES.get(number, f'signal {number}')}"
    if number in FROM_OUTSIDE:
        raise Unavailable(f"{reason}; the next cell that needs it tries again")
    return reason


def _parsed(line: str) -> Any:
    """Return what a line says; None where it is not JSON, as where a library prints it, or where it is torn."""
    with suppress(ValueError):
        return json.loads(line)
    return None


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
        scores = scoring.score(model, held_out.prompts, held_out.label_trie, progress)
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
