"""Make a loaded model trainable: freeze it, cast what the cell wants cast, and put LoRA adapters in."""

from __future__ import annotations

import re

from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bench.cell.failures import Invalid, is_out_of_memory
from bench.matrix.parameters import Parameters

# A group of linear layers is told by the name of a module above them, as Transformers' architectures name these.
GROUPS = {
    "attention": re.compile(r"(^|\.)\w*(attn|attention)\w*\."),
    "mlp": re.compile(r"(^|\.)\w*(mlp|feed_forward|ffn|moe|experts)\w*\."),
}


def adapt(model: PreTrainedModel, parameters: Parameters) -> PeftModel:
    """Return the model with LoRA adapters in float32 on the cell's target modules, everything else frozen.

    Raises:
        Invalid: the model has no such modules, or PEFT refuses the combination.
    """
    config = lora_config(model, parameters)
    if parameters.kbit_upcast:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if parameters.gradient_checkpointing:
        # Random numbers need keeping only where there are any, and a CUDA graph cannot keep them.
        keep = parameters.lora_dropout > 0 or drops_out(model)
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": keep})
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        raise Invalid(f"PEFT refuses these adapters: {error}") from error


def lora_config(model: PreTrainedModel, parameters: Parameters) -> LoraConfig:
    """Return a cell's adapters as PEFT describes them.

    Raises:
        Invalid: the model has no such modules.
    """
    return LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=target_names(model, parameters.target_modules),
        r=parameters.lora_r,
        lora_alpha=parameters.lora_alpha,
        lora_dropout=parameters.lora_dropout,
        use_dora=parameters.use_dora,
        use_rslora=parameters.use_rslora,
        init_lora_weights=parameters.init_lora_weights,
    )


def target_names(model: PreTrainedModel, target: str | tuple[str, ...]) -> list[str]:
    """Return the full names of the linear layers that a `target_modules` value means, the output head never included.

    Raises:
        Invalid: nothing matches, or a name in a list matches nothing.
    """
    head = model.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)  # GPT-2's linear layers are Conv1D where they are not quantized
    linear = [name for name, module in model.named_modules() if isinstance(module, kinds) and module is not head]
    endings = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    if isinstance(target, tuple):
        for wanted in target:
            if not any(_ends_with(name, wanted) for name in linear):
                raise Invalid(
                    f"target_modules: {type(model).__name__} has no linear layer {wanted!r}", f"it has {endings}"
                )
        return [name for name in linear if any(_ends_with(name, wanted) for wanted in target)]
    chosen = linear if target == "all-linear" else [name for name in linear if GROUPS[target].search(name)]
    if not chosen:
        raise Invalid(
            f"target_modules: {type(model).__name__} has no linear layers known as {target}",
            f"list names instead, of {endings}",
        )
    return chosen


def drops_out(model: PreTrainedModel) -> bool:
    """Whether the base itself has dropout, in layers of its own or inside its attention, as GPT-2 and OPT do."""
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(rates) or bool(getattr(model.config.get_text_config(), "attention_dropout", 0.0))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _ends_with(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")
