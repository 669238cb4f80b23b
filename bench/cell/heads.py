"""Run a causal model in two halves: hidden states first, then logits only where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bench.cell.devices import has_flash_attention
from bench.cell.failures import Invalid

# SDPA that is told that attention is causal, instead of shown a mask that says so: its fastest kernels take no mask.
# Transformers makes no masks for an attention that it knows no masks of.
CAUSAL_SDPA = "causal_sdpa"
AttentionInterface.register(CAUSAL_SDPA, sdpa_attention_forward)
MASKED = frozenset({"sdpa", "eager"})


def hidden_states(model: PreTrainedModel, input_ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """Return the last hidden states, [rows, tokens, hidden], of a causal model.

    Args:
        model: the causal model itself, whether or not its layers carry adapters.
        input_ids: [rows, tokens].
        arguments: what else the decoder takes, such as `attention_mask` and `position_ids`.
    """
    states: torch.Tensor = model.get_decoder()(input_ids=input_ids, use_cache=False, **arguments).last_hidden_state
    return states


def attend_causally(model: PreTrainedModel) -> None:
    """Have a model's SDPA attention take no masks, for rows that all start at their first token.

    A model whose attention is causal by its masks only keeps them. So does every model on a GPU without FlashAttention:
    without a mask, Transformers leaves grouped queries to torch, whose only kernel for them there makes all scores.
    """
    if model.device.type == "cuda" and not has_flash_attention(model.device):
        return
    if model.config._attn_implementation == "sdpa":
        padding = getattr(model.config, "pad_token_id", None)
        take_no_masks(model)
        if not _is_causal(model):
            model.set_attn_implementation("sdpa")
            model.config.pad_token_id = padding


def take_no_masks(model: PreTrainedModel) -> None:
    """Have SDPA attend causally by itself; and have nobody look for padding, which waits for the GPU."""
    model.set_attn_implementation(CAUSAL_SDPA)
    model.config.pad_token_id = None


@torch.no_grad()
def _is_causal(model: PreTrainedModel) -> bool:
    """Tell whether a token leaves the states of those before it as they are."""
    rows = torch.zeros(2, 8, dtype=torch.long, device=model.device)
    rows[1, -1] = 1
    training = model.training
    model.eval()
    try:
        one, other = hidden_states(model, rows, **causal(model, rows))[:, :-1].float()
    except (TypeError, AttributeError, IndexError):  # it looks into the mask
        return False
    finally:
        model.train(training)
    return bool((one - other).abs().max() <= 1e-2 * one.abs().max())


@contextmanager
def taking_masks(model: PreTrainedModel) -> Iterator[None]:
    """Lend SDPA to a model whose attention takes no masks, such as flash attention."""
    kind = model.config._attn_implementation
    lent = kind not in MASKED
    if lent:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if lent:
            model.set_attn_implementation(kind)


def causal(model: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Return mask and positions of rows that start at their first token; stated, so that no host sync derives them."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return {
        "attention_mask": mask(model, (positions[:, None] >= positions)[None]),
        "position_ids": positions[None],
    }


def mask(model: PreTrainedModel, sees: torch.Tensor) -> torch.Tensor | None:
    """Turn who sees whom, booleans [rows, tokens, tokens], into what the model's attention takes.

    SDPA takes booleans, eager attention adds zeros and huge negatives; others take none, and are causal by themselves.
    """
    kind = model.config._attn_implementation
    if kind not in MASKED:
        return None
    if kind == "eager":
        zeros = torch.zeros(sees.shape, device=sees.device)
        return zeros.masked_fill_(~sees, torch.finfo(zeros.dtype).min)[:, None]
    return sees[:, None]


def logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Return float32 logits, [..., vocabulary], of hidden states, with the scaling that some architectures add."""
    result: torch.Tensor = model.get_output_embeddings()(states).float()
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        result = result * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        result = result / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        result = torch.tanh(result / cap) * cap
    return result


def check_supported(model: PreTrainedModel, max_length: int) -> None:
    """Refuse a model that does not come apart into a decoder and a head, or whose attention follows no mask given.

    Raises:
        Invalid: it does not come apart, takes no positions, has fewer of them than `max_length`, attends to fewer
            tokens, or keeps a recurrent state.
    """
    if model.config.is_encoder_decoder or model.get_decoder() is model or model.get_output_embeddings() is None:
        raise Invalid(f"{type(model).__name__} is not a decoder with an output head", "use a causal language model")
    config = model.config.get_text_config()
    # ALiBi derives positions from a mask of its own, so that a label's tokens would stand where they do not belong.
    if "position_ids" not in signature(model.get_decoder().forward).parameters or getattr(config, "alibi", False):
        raise Invalid(
            f"{type(model).__name__} takes no token positions", "use a model with rotary or learned positions"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions and positions < max_length:
        raise Invalid(f"the model has {positions} positions, and max_length is {max_length}", "lower max_length")
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < max_length:
        raise Invalid(f"the model attends to {window} tokens, and max_length is {max_length}", "lower max_length")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise Invalid(f"the model has layers of type {', '.join(sorted(kinds))}", "use a model with attention only")
