"""What is found out about a base before training, shared by the cells that have the same: they differ in adapters.

A file holds it. Its name is a hash of all that it depends on, down to the bytes of the quantized weights, so that a
cell which finds one would have computed the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from bench.cell import ragged, storage
from bench.cell.layers import LayerError
from bench.cell.ragged import Rows
from bench.cell.scoring import SCORING_VERSION, Scores, rooms
from bench.cell.trie import Trie
from bench.matrix.parameters import Parameters

# Part of what a base is found by: raise it when its layers or its comparisons are computed otherwise.
BASE_VERSION = 1

PACKAGES = ("torch", "transformers", "bitsandbytes")


@dataclass(frozen=True)
class Base:
    """A base model: its scores, how far they are from the 16-bit model's, and how far its weights are.

    `measures` are empty where there was no 16-bit model to compare with, and `layers` where nothing was quantized or
    compared.
    """

    scores: Scores
    measures: Mapping[str, float | int]
    layers: Sequence[LayerError]


def key(
    model: PreTrainedModel,
    prompts: Rows[tuple[int, ...]],
    trie: Trie,
    parameters: Parameters,
    reference_key: str | None = None,
) -> str:
    """Return a hash of all that a base's figures depend on: its bytes, the tokens, the arithmetic, the machine.

    `trie` is that of the labels' tokens. `reference_key` is that of the 16-bit model's answers that they are compared
    with, if there are any.
    """
    facts = (
        BASE_VERSION,
        SCORING_VERSION,
        storage.sha256(model),
        model.config.to_json_string(use_diff=False),
        parameters.quant_type,
        parameters.compute_dtype,
        parameters.attn_implementation,
        rooms(model),  # they decide how many prompts share a forward, and so the last bits
        [prompts[row] for row in range(len(prompts))],
        [tensor.tolist() for tensor in (trie.tokens, trie.edge_from, trie.edge_token, trie.paths)],
        reference_key,
        machine(model.device),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def machine(device: torch.device) -> tuple[str, ...]:
    """Return what decides the last bits of a result beside the model: the card, or the number of threads, and versions.

    Nothing is placed on a GPU for it.
    """
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} threads"
    return (name, *(version(package) for package in PACKAGES))


def read(folder: Path, key: str) -> Base | None:
    """Return what a file of `folder` holds under `key`; None where there is none, or a damaged one."""
    with suppress(OSError, SafetensorError, KeyError, TypeError, ValueError):
        found = load_file(_path(folder, key))
        facts = json.loads(found["facts"].numpy().tobytes())
        scores = Scores(found["log_likelihoods"].numpy(), found["label_lengths"].numpy())
        return Base(scores, facts["measures"], tuple(LayerError(*layer) for layer in facts["layers"]))
    return None


def write(folder: Path, key: str, base: Base) -> None:
    """Leave what was found out for other cells; where the folder cannot be written, nothing is shared."""
    facts = {"measures": dict(base.measures), "layers": [astuple(layer) for layer in base.layers]}
    tensors = {
        "log_likelihoods": base.scores.log_likelihoods,
        "label_lengths": base.scores.label_lengths,
        "facts": np.frombuffer(bytearray(json.dumps(facts).encode()), np.uint8),
    }
    with suppress(OSError, SafetensorError):
        ragged.write(_path(folder, key), {name: torch.from_numpy(values) for name, values in tensors.items()})


def _path(folder: Path, key: str) -> Path:
    return folder / f"base-{key[:32]}.safetensors"
