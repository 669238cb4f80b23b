"""How far a base's distributions are from the 16-bit model's, over a task's labels and over the next token."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from bench.cell import scoring
from bench.cell.devices import to_device
from bench.cell.scoring import Scores


def compare_labels(reference: Scores, found: Scores) -> dict[str, float]:
    """Return how far a base's distributions over the labels are from the 16-bit model's, as a mean over examples."""
    of_reference, of_found = (torch.from_numpy(scores.log_likelihoods) for scores in (reference, found))
    return {
        "label_kl_before": divergences(of_reference, of_found).mean().item(),
        "label_agreement_before": (of_reference.argmax(-1) == of_found.argmax(-1)).double().mean().item(),
    }


@torch.inference_mode()
def compare_next_tokens(
    model: PreTrainedModel, prompts: list[tuple[int, ...]], reference: torch.Tensor
) -> dict[str, float | int]:
    """Return how far a base's next tokens are from the 16-bit model's, as a mean over prompts.

    Args:
        model: the base in evaluation mode, called in whatever autocast context is active.
        prompts: `HeldOut.next_token_prompts`.
        reference: what the 16-bit model says to them, by `Reference.next_tokens`.
    """
    divergence, agreement = [], []
    for rows, found in scoring.next_tokens(model, prompts):
        wanted = to_device(reference[rows], model.device)
        with torch.autocast(model.device.type, enabled=False):
            divergence.append(divergences(wanted, found))
        agreement.append(wanted.argmax(-1) == found.argmax(-1))
    return {
        "next_token_prompts_count": len(prompts),
        "next_token_kl_before": torch.cat(divergence).mean().item(),
        "next_token_agreement_before": torch.cat(agreement).double().mean().item(),
    }


def divergences(reference: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence KL(reference || found) of each row, float64, nats.

    Both are log-probabilities, [rows, outcomes], up to a constant a row: they are normalized in float64, since what
    rounding in float32 leaves of a row's sum could pass for a divergence below zero.
    """
    p, q = (rows.double().log_softmax(-1) for rows in (reference, found))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0.0)
