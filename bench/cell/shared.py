"""Scores of a base model before training, shared by the cells that have the same base: they differ in adapters only.

A file holds the scores. Its name is a hash of all that they depend on, down to the bytes of the quantized weights, so
that a cell which finds one would have computed the same.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from bench.cell import ragged, storage
from bench.cell.ragged import Rows
from bench.cell.scoring import SCORING_VERSION, Scores, rooms
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
        rooms(model),  # they decide how many prompts share a forward, and so the last bits
        [prompts[row] for row in range(len(prompts))],
        [tensor.tolist() for tensor in (labels.tokens, labels.edge_from, labels.edge_token, labels.paths)],
        device,
        [version(package) for package in PACKAGES],
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def read(folder: Path, key: str) -> Scores | None:
    """Return the scores that a file of `folder` holds under `key`; None where there is none, or a damaged one."""
    with suppress(OSError, SafetensorError, KeyError):
        found = load_file(_path(folder, key))
        return Scores(found["log_likelihoods"].numpy(), found["label_lengths"].numpy())
    return None


def write(folder: Path, key: str, scores: Scores) -> None:
    """Leave scores for other cells; where the folder cannot be written, nothing is shared."""
    tensors = {"log_likelihoods": scores.log_likelihoods, "label_lengths": scores.label_lengths}
    with suppress(OSError, SafetensorError):
        ragged.write(_path(folder, key), {name: torch.from_numpy(values) for name, values in tensors.items()})


def _path(folder: Path, key: str) -> Path:
    return folder / f"scores-{key[:32]}.safetensors"
