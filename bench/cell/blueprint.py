"""A model's blueprint: built on the meta device, quantized and adapted as a cell's model is, without memory or weights.

Every tensor is there with its shape and dtype, so that what counts a real model's bytes counts a blueprint's as well.
The libraries' own code decides what is quantized and what gets adapters; nothing is downloaded but a configuration.
"""

from __future__ import annotations

from copy import deepcopy

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import dot_natural_key
from transformers.modeling_utils import get_total_byte_count, local_torch_dtype
from transformers.quantizers.auto import AutoHfQuantizer

from bench.cell import adapters, quantize
from bench.cell.precision import DTYPES
from bench.matrix.parameters import Parameters

META = torch.device("meta")
BLOCK_SIZE = 64  # of 4-bit weights; bitsandbytes' own, which Transformers does not let one choose


def build(parameters: Parameters, config: PretrainedConfig) -> PreTrainedModel:
    """Return the base of a cell as it is after loading, on the meta device.

    Raises:
        Exception: whatever the architecture's own code raises where there is no data to look at.
    """
    model = outline(parameters, config)
    fill(model, parameters)
    return model


def outline(parameters: Parameters, config: PretrainedConfig) -> PreTrainedModel:
    """Return the modules of a cell's base, those of quantized layers included, with nothing quantized yet."""
    dtype, config = DTYPES[parameters.load_dtype], deepcopy(config)  # which the quantizer writes into
    # Flash attention needs its package even to be described; SDPA takes the same memory.
    attention = "eager" if parameters.attn_implementation == "eager" else "sdpa"
    with META:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=hasattr(config, "auto_map"),  # who read such a configuration was allowed to
        )
    if settings := quantize.quantization_config(parameters):
        with local_torch_dtype(dtype, type(model).__name__):
            quantizer = AutoHfQuantizer.from_config(settings)
            quantizer.preprocess_model(model, dtype=dtype, device_map={"": "cpu"})
            quantizer.postprocess_model(model)
        model.hf_quantizer = quantizer
    model.config.use_cache = False
    return model


def warmup_bytes(model: PreTrainedModel) -> int:
    """Return what `from_pretrained` allocates before it loads an outline, and frees at once, to have it at hand."""
    places = dict.fromkeys(model.state_dict(), META)
    return int(get_total_byte_count(model, places, getattr(model, "hf_quantizer", None))[META])


def fill(model: PreTrainedModel, parameters: Parameters) -> None:
    """Make each tensor of an outline anew, as loading does: whole, in its own dtype, then quantized if it is to be.

    Loading goes by the names of a checkpoint in their natural order, which decides where in memory gaps are left.
    """
    dtypes = model._get_dtype_plan(DTYPES[parameters.load_dtype])
    # bitsandbytes keeps the first table of codes that it needs for good, and one without data would serve nobody.
    bnb.functional.name2qmap.setdefault("dynamic", bnb.functional.create_dynamic_map())

    def dtype_of(name: str, tensor: torch.Tensor) -> torch.dtype:
        return next((dtype for part, dtype in dtypes.items() if part in name), tensor.dtype)

    made: dict[int, nn.Parameter] = {}  # a tied weight is one tensor in several places
    owners = {
        f"{prefix}.{name}": (module, name) for prefix, module in model.named_modules() for name in module._parameters
    }
    for full_name in sorted(owners, key=dot_natural_key):
        module, name = owners[full_name]
        if (old := module._parameters[name]) is not None:
            if id(old) not in made:
                made[id(old)] = _parameter(module, name, old, dtype_of(full_name, old), parameters)
            module._parameters[name] = made[id(old)]
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                kept = name in module._non_persistent_buffers_set  # such buffers are in no checkpoint
                dtype = buffer.dtype if kept else dtype_of(f"{prefix}.{name}", buffer)
                module._buffers[name] = torch.empty_like(buffer, dtype=dtype)
    for quantized in quantize.linear4bit(model):
        quantized.quant_state = quantized.weight.quant_state


def adapt(model: PreTrainedModel, parameters: Parameters) -> None:
    """Give a blueprint the cell's adapters, and cast what the cell wants cast.

    How adapters start is left out of account: it decides their values, not their sizes.
    """
    with META:
        adapters.adapt(model, parameters.model_copy(update={"init_lora_weights": True}))


def _parameter(
    module: nn.Module, name: str, old: nn.Parameter, dtype: torch.dtype, parameters: Parameters
) -> nn.Parameter:
    if isinstance(module, bnb.nn.Linear4bit) and name == "weight":
        full = torch.empty(old.shape, dtype=DTYPES[parameters.load_dtype], device=META)
        packed, state = bnb.functional.quantize_4bit(
            full,
            blocksize=BLOCK_SIZE,
            compress_statistics=parameters.double_quant,
            quant_type=parameters.quant_type,
        )
        params4bit: nn.Parameter = bnb.nn.Params4bit(
            packed,
            quant_state=state,
            compress_statistics=parameters.double_quant,
            quant_type=parameters.quant_type,
            bnb_quantized=True,
            module=module,
        )
        return params4bit
    if isinstance(module, bnb.nn.Linear8bitLt) and name == "weight":
        rows = torch.empty(old.shape[0], dtype=torch.float32, device=META)
        whole = torch.empty(old.shape, dtype=torch.int8, device=META)
        int8: nn.Parameter = bnb.nn.Int8Params(whole, requires_grad=False, CB=whole, SCB=rows)
        return int8
    return nn.Parameter(torch.empty(old.shape, dtype=dtype, device=META), requires_grad=old.requires_grad)
