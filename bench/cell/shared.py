"""Scores of a base model before training, shared by the cells that have the same base: they differ in adapters only.

A file holds the scores. Its name is a hash of all that they depend on, down to the bytes of the quantized weights, so
that a cell which finds one would have computed the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from bench.cell import ragged, storage
from bench.cell.ragged import Rows
from bench.cell.scoring import SCORING_VERSION, Scores
from bench.cell.trie import Trie
from bench.matrix.parameters import Parameters

PACKAGES = ("torch", "transformers", "bitsandbytes")


def key(model: PreTrainedModel, prompts: Rows[tuple[int, ...]], labels: Trie, parameters: Parameters) -> str:
    """Return a hash of all that the scores of a model depend on: its bytes, the tokens, the arithmetic, the machine."""
    on_gpu = model.device.type == "cuda"
    device = torch.cuda.get_device_name(model.device) if on_gpu else f"{torch.get_num_threads()} threads"
    facts = (
        SCORING_VERSION,
        storage.sha256(model),
        model.config.to_json_string(use_diff=False),
        parameters.quant_type,
        parameters.compute_dtype,
        parameters.attn_implementation,
        parameters.vram_limit,  # room decides how many prompts share a forward, and so the last bits
        [prompts[row] for row in range(len(prompts))],
        [tensor.tolist() for tensor in (labels.tokens, labels.edge_from, labels.edge_token, labels.lengths)],
        device,
        [version(package) for package in PACKAGES],
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def scores(folder: Path, key: str, compute: Callable[[], Scores]) -> tuple[Scores, bool]:
    """Return the scores that a file of `folder` holds under `key`, and whether it did; else compute and write them.

    A damaged file counts as none. Where the folder cannot be written, nothing is shared.
    """
    path = folder / f"scores-{key[:32]}.safetensors"
    with suppress(OSError, SafetensorError, KeyError):
        found = load_file(path)
        return Scores(found["log_likelihoods"].numpy(), found["label_lengths"].numpy()), True
    computed = compute()
    with suppress(OSError, SafetensorError):
        tensors = {"log_likelihoods": computed.log_likelihoods, "label_lengths": computed.label_lengths}
        ragged.write(path, {name: torch.from_numpy(values) for name, values in tensors.items()})
    return computed, False
