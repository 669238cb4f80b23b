"""Load a model quantized as a cell asks, and read back from the model that it really is."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bench.cell import sources
from bench.cell.failures import Invalid, first_line
from bench.cell.precision import DTYPES
from bench.matrix.parameters import Parameters


def load(
    parameters: Parameters, device: torch.device, cache_dir: Path | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load the model of a cell onto `device`, quantizing while it loads, and its tokenizer (none with random weights).

    Raises:
        Invalid: the model cannot be found or read, lacks what the cell asks for, or asks to run code of its own
            without `trust_remote_code`.
    """
    dtype = DTYPES[parameters.load_dtype]
    source = sources.find(parameters, cache_dir, device, dtype, trust_remote_code)
    check_unquantized(parameters, source.config)
    # `AutoModel` takes no state dict without a path: with random weights, the class itself is asked.
    loader: Any = AutoModelForCausalLM if source.path else type(sources.skeleton(source.config, trust_remote_code))
    quiet_int8()
    try:
        with _quiet():
            model, found = loader.from_pretrained(
                source.path,
                config=source.config,
                dtype=dtype,
                device_map={"": device},
                attn_implementation=parameters.attn_implementation,
                quantization_config=quantization_config(parameters),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **source.arguments,
            )
    except (OSError, ImportError, ValueError, SafetensorError) as error:
        raise Invalid(f"model {parameters.model!r} cannot be loaded: {first_line(error)}") from error
    # What a checkpoint lacks, `from_pretrained` makes up at random.
    if made_up := sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}):
        raise Invalid(
            f"the weights of model {parameters.model!r} do not fit its config.json: {len(made_up)} tensors are missing "
            f"or have another shape, such as {made_up[0]}",
            sources.WHAT_A_MODEL_IS,
        )
    model.config.use_cache = False
    for module in linear4bit(model):
        never_repack(module)
    return model, source.tokenizer


def never_repack(layer: bnb.nn.Linear4bit) -> None:
    """Keep a 4-bit layer's weights as they are.

    Where a CPU has AVX512-BF16, an evaluation repacks them, and training after it loses the gradient.
    """
    layer.support_avx512bf16_for_cpu = False


def quiet_int8() -> None:
    """Keep int8 layers from saying at every call that they compute in float16."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def check_unquantized(parameters: Parameters, config: PretrainedConfig) -> None:
    """Refuse a model whose weights are quantized as they come.

    Raises:
        Invalid: they are.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise Invalid(f"model {parameters.model!r} is already quantized", "name the model it was quantized from")


def quantization_config(parameters: Parameters) -> BitsAndBytesConfig | None:
    """Translate a cell's settings; every field is stated, since the library's defaults are fp4 and float32."""
    if parameters.four_bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=parameters.quant_type,
            bnb_4bit_use_double_quant=parameters.double_quant,
            bnb_4bit_compute_dtype=DTYPES[parameters.compute_dtype],
        )
    return BitsAndBytesConfig(load_in_8bit=True) if parameters.quant_type == "int8" else None


def linear4bit(model: nn.Module) -> list[bnb.nn.Linear4bit]:
    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]


def linear8bit(model: nn.Module) -> list[bnb.nn.Linear8bitLt]:
    return [module for module in model.modules() if isinstance(module, bnb.nn.Linear8bitLt)]


def verify(model: PreTrainedModel, parameters: Parameters) -> None:
    """Compare what the model holds with what the cell asked for.

    Raises:
        Invalid: any layer differs; the message names the layer and both values.
    """
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head or not isinstance(module, nn.Linear):
            continue
        for what, asked, found in _settings(module, parameters):
            if asked != found:
                raise Invalid(f"{name}: {what} is {found}, and the cell asked for {asked}")
    if parameters.quantized and not (linear4bit(model) or linear8bit(model)):
        raise Invalid(f"no layer of {type(model).__name__} was quantized", "its linear layers are not nn.Linear")


def _settings(module: nn.Linear, parameters: Parameters) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, asked and found value of every setting that can be read back from one linear layer."""
    kinds = {bnb.nn.Linear4bit: "4-bit", bnb.nn.Linear8bitLt: "int8"}
    wanted = "4-bit" if parameters.four_bit else "int8" if parameters.quantized else "16 or 32-bit"
    yield "storage", wanted, kinds.get(type(module), "16 or 32-bit")
    if isinstance(module, bnb.nn.Linear4bit):
        state = module.weight.quant_state
        yield "quant_type", parameters.quant_type, state.quant_type
        yield "double_quant", parameters.double_quant, state.nested
        yield "compute_dtype", DTYPES[parameters.compute_dtype], module.compute_dtype
        yield "load_dtype", DTYPES[parameters.load_dtype], state.dtype
    elif isinstance(module, bnb.nn.Linear8bitLt):
        yield "storage dtype", torch.int8, module.weight.dtype
    else:
        yield "load_dtype", DTYPES[parameters.load_dtype], module.weight.dtype


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars, and advice on how a library was called, out of a worker's log."""
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
