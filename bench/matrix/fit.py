"""Whether a cell fits a card, from what is predicted of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.matrix.cards import CONTEXT_BYTES, WORKSPACES, Card, one_workspace_bytes, workspace_bytes
from bench.matrix.parameters import Parameters

NO_BFLOAT16 = "no bfloat16"
NO_FLASH_ATTENTION_2 = "no FlashAttention 2"


@dataclass(frozen=True)
class Fit:
    """The answer for one cell on one card.

    `fits` is None where it is not known. `headroom_bytes` is what the card has over what is needed, negative where it
    does not fit; None where only a lower bound is known, or where the cell may or may not fit. `reason` says what
    besides memory keeps the cell off the card.
    """

    fits: bool | None
    headroom_bytes: int | None
    reason: str | None = None


def need_bytes(measures: Mapping[str, int], card: Card | None = None) -> int:
    """Return the least memory of a card on which a cell trains, CUDA's context included.

    `measures` hold `predicted_needed_bytes`, with cuBLAS workspaces as most cards have them; with a `card` whose
    capability is known, its own stand in their place.
    """
    need = measures["predicted_needed_bytes"] + CONTEXT_BYTES
    return need if card is None else need - WORKSPACES * one_workspace_bytes() + workspace_bytes(card)


def fit(
    measures: Mapping[str, int],
    parameters: Parameters,
    card: Card,
    *,
    lower_bound: bool = False,
    longest_texts: bool = False,
) -> Fit:
    """Tell whether a cell fits a card: its need is at most the card's memory, and the card runs what it asks for.

    `lower_bound` says that the predicted need is one, and `longest_texts` that it is for the longest texts that the
    cell may have: then a card that is too small for these may do for the real ones.
    """
    headroom = card.memory_bytes - need_bytes(measures, card)
    reason = _reason(parameters, card)
    is_open = longest_texts if headroom < 0 else lower_bound
    fits = False if reason else None if is_open else headroom >= 0
    return Fit(fits, None if is_open or lower_bound else headroom, reason)


def _reason(parameters: Parameters, card: Card) -> str | None:
    if not card.has_bfloat16 and "bfloat16" in (parameters.compute_dtype, parameters.load_dtype):
        return NO_BFLOAT16
    if not card.has_flash_attention_2 and parameters.attn_implementation == "flash_attention_2":
        return NO_FLASH_ATTENTION_2
    return None
