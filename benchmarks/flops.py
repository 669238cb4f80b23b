"""Floating point operations of a training step with LoRA adapters on a frozen base, by formula and by the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who only computes with a count does without torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Work:
    """What a token meets in a model: weights of the frozen linear layers, of the output head, and of the adapters.

    `attention_width` is the number of query heads times their width.
    """

    base_weights_count: int
    head_weights_count: int
    adapter_weights_count: int
    attention_width: int
    layers_count: int


def model_flops_per_token(work: Work, length: int, logits_share: float) -> float:
    """Return the floating point operations that training takes for a token, none of them done twice.

    A linear layer of w weights takes 2w for a token forward, 2w for the gradient of its input and 2w for that of its
    weights (Kaplan et al. 2020, section 2.1). The base is frozen, so that its N weights need the first two: 4N. The n
    weights of the adapters need all three: 6n. The output head, frozen too, takes 4 a weight, for the `logits_share` of
    the tokens whose logits are made. Embeddings are looked up, which takes none.

    Attention takes 2sa for the scores and 2sa for the weighted sum, in sequences of s tokens and a layer of width a;
    half of that where a token sees only those before it: 2sa. Backward takes twice as much, since both factors of each
    product have a gradient: 6sa a layer. Chowdhery et al. 2022 (PaLM), appendix B, have 12sa: they do not halve.

    Not counted, as there: norms, activations, softmax, and the dequantization of weights.
    """
    linear = 4 * work.base_weights_count + 6 * work.adapter_weights_count
    head = 4 * work.head_weights_count * logits_share
    return linear + head + 6 * length * work.attention_width * work.layers_count


def recomputed_flops_per_token(work: Work, length: int) -> float:
    """Return what gradient checkpointing adds: the forward of every layer once more, the output head not among them.

    Torch stops recomputing when it has all that it needs, before a layer's last product, of an adapter; that product
    is counted here, though it is not taken.
    """
    linear = 2 * (work.base_weights_count + work.adapter_weights_count)
    return linear + 2 * length * work.attention_width * work.layers_count


def count_work(model: PreTrainedModel) -> Work:
    """Count the weights of a dense model whose layers carry LoRA adapters, quantized or not."""
    from torch import nn

    from bench.cell import adapters

    head = model.get_output_embeddings()
    base = [
        module.in_features * module.out_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    ]
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    return Work(
        sum(base),
        head.in_features * head.out_features,
        sum(weight.numel() for weight in adapters.trainable(model)),
        heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        config.num_hidden_layers,
    )
