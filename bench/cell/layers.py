"""How far each quantized layer's weights are from the checkpoint's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from bench.cell import sources
from bench.matrix.parameters import Parameters

# Compared at a time: three float32 tensors of so many elements are alive at once, and a 16-bit one.
SLICE_ELEMENTS = 4 * 1024**2
# A variance below this share of the mean square is what rounding leaves of constant weights: their sums within rows are
# float32.
ROUNDING = 1e-6


@dataclass(frozen=True)
class LayerError:
    """A quantized layer: `rmse` is the root mean square of its weights' errors, `sigma` its own weights' deviation.

    Both are NaN or infinite where weights are, or where their squares overflow.
    """

    module: str
    weights_count: int
    rmse: float
    sigma: float

    @property
    def rmse_per_sigma(self) -> float:
        return self.rmse / self.sigma if self.sigma else math.nan


def summary(errors: Sequence[LayerError]) -> dict[str, float | int]:
    """Return the measures of a model's layers: their mean weighted by size, their largest, and how many they are.

    Nothing is returned for no layers. A layer whose error is NaN makes both figures NaN.
    """
    if not errors:
        return {}
    ratios = [error.rmse_per_sigma for error in errors]
    return {
        "weight_error": float(np.average(ratios, weights=[error.weights_count for error in errors])),
        "weight_error_max": float(np.max(ratios)),  # the built-in max() may pass over NaN
        "weight_error_layers_count": len(errors),
    }


@torch.inference_mode()
def weight_errors(model: PreTrainedModel, parameters: Parameters, cache_dir: Path | None) -> tuple[LayerError, ...]:
    """Compare each quantized layer with the tensor of the checkpoint that it was loaded from, in the model's order.

    The layer is what bitsandbytes dequantizes. The checkpoint's values are taken as they are stored, before the cast to
    `load_dtype` that quantization starts from, so the error holds that rounding too. Errors and deviations are those of
    float32 values, their sums float64. On the model's device there are one dequantized layer and 64 MiB at a time.

    A layer is left out where the checkpoint has no tensor of its name and shape, as where Transformers renames or joins
    tensors while it loads, and where its weights are constant, such as zero. Nothing is returned for random weights, or
    a checkpoint without safetensors.

    Raises:
        Invalid: the checkpoint is no longer where the model was loaded from.
    """
    if not parameters.quantized or parameters.weights == "random":
        return ()
    files = _files(*sources.checkpoint(parameters, cache_dir))
    found: list[tuple[str, int]] = []
    sums: list[torch.Tensor] = []
    for name, module in model.named_modules():
        tensor = next((tensor for tensor in _names(name, model.base_model_prefix) if tensor in files), None)
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt) and tensor:
            of_layer = _sums(module, files[tensor], tensor)
            if of_layer is not None:
                found.append((name, module.in_features * module.out_features))
                sums.append(of_layer)
    if not sums:
        return ()
    # One transfer for all layers.
    errors = (_error(*layer, *of_layer) for layer, of_layer in zip(found, torch.stack(sums).tolist(), strict=True))
    return tuple(error for error in errors if error.sigma != 0 or not math.isfinite(error.rmse))


def _error(module: str, weights_count: int, squared_error: float, total: float, squared: float) -> LayerError:
    mean_square = squared / weights_count
    variance = mean_square - (total / weights_count) ** 2
    sigma = 0.0 if variance < ROUNDING * mean_square else math.sqrt(variance)  # NaN is not below anything
    return LayerError(module, weights_count, math.sqrt(squared_error / weights_count), sigma)


# A layer --------------------------------------------------------------------------------------------------------------


def _sums(module: nn.Linear, file: Path, tensor: str) -> torch.Tensor | None:
    """Return the sums of squared errors, of weights and of squared weights, float64 [3] on the layer's device.

    None is returned where the checkpoint's tensor has another shape than the layer.
    """
    shape = [module.out_features, module.in_features]
    # GPT-2's Conv1D keeps its weight as [in, out]; Transformers transposes it when it quantizes.
    transposed = issubclass(getattr(module, "source_cls", nn.Linear), Conv1D)
    with safe_open(file, framework="pt") as checkpoint:
        stored = checkpoint.get_slice(tensor)
        if stored.get_shape() != (shape[::-1] if transposed else shape):
            return None
        dequantized = _dequantized(module)
        at_once = max(1, SLICE_ELEMENTS // module.in_features)
        sums = torch.zeros(3, dtype=torch.float64, device=module.weight.device)
        for start in range(0, module.out_features, at_once):
            rows = slice(start, start + at_once)
            piece = stored[:, rows].T if transposed else stored[rows]
            # Cast where the layer is, since a cast before the copy would double what is copied.
            original = piece.to(module.weight.device).float()
            sums += _row_sums(dequantized(rows).float() - original, original)
    return sums


def _row_sums(error: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Sum within rows in float32 and over them in float64, which needs no copy of the weights in float64."""
    by_row = (error.square_().sum(1), original.sum(1), original.square().sum(1))
    return torch.stack(by_row).double().sum(1)


def _dequantized(module: nn.Linear) -> Callable[[slice], torch.Tensor]:
    """Return what gives rows of a layer's weights as it computes with them."""
    if isinstance(module, bnb.nn.Linear4bit):
        whole: torch.Tensor = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        return lambda rows: whole[rows]
    int8: bnb.nn.Linear8bitLt = module
    weight: bnb.nn.Int8Params = int8.weight
    # Row scales sit on the weight until the first forward, then in the layer's state.
    scales = weight.SCB if weight.SCB is not None else int8.state.SCB
    return lambda rows: bnb.functional.int8_vectorwise_dequant(weight.data[rows], scales[rows])


# Its tensor in the checkpoint -----------------------------------------------------------------------------------------


def _names(module: str, prefix: str) -> Iterator[str]:
    """Yield the names that a module's weight may have in a checkpoint: with the base model's prefix and without."""
    yield f"{module}.weight"
    yield f"{module.removeprefix(f'{prefix}.')}.weight"
    yield f"{prefix}.{module}.weight"


def _files(path: str, revision: str | None) -> dict[str, Path]:
    """Return the safetensors file of each tensor of a folder or of a hub model in the cache."""
    if single := _file(path, revision, SAFE_WEIGHTS_NAME):
        with safe_open(single, framework="pt") as checkpoint:
            return dict.fromkeys(checkpoint.keys(), single)
    if index := _file(path, revision, SAFE_WEIGHTS_INDEX_NAME):
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return {tensor: index.with_name(name) for tensor, name in names.items()}
    return {}


def _file(path: str, revision: str | None, name: str) -> Path | None:
    if Path(path).is_dir():
        return file if (file := Path(path) / name).is_file() else None
    found = try_to_load_from_cache(path, name, revision=revision)
    return Path(found) if isinstance(found, str) else None
