"""What several tests of cells need: parameters, loaded models, and the plain way to score a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bench.cell import quantize
from bench.matrix.parameters import FOUR_BIT, Parameters

CPU = torch.device("cpu")


def parameters(**given: Any) -> Parameters:
    """Return parameters in float32 and unquantized unless `given` says otherwise."""
    kind = given.setdefault("quant_type", "none")
    given.setdefault("compute_dtype", "float32")
    given.setdefault("double_quant", kind in FOUR_BIT)
    return Parameters(**given)


def load(folder: Path, device: torch.device = CPU, **given: Any) -> PreTrainedModel:
    """Load a model as a cell does, in evaluation mode."""
    return quantize.load(parameters(model=str(folder), **given), device)[0].eval()


@torch.inference_mode()
def plain_scores(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], labels: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Return log-likelihoods [prompts, labels] by one forward per prompt and label, through the model's own head."""
    scores = torch.zeros(len(prompts), len(labels))
    for row, prompt in enumerate(prompts):
        for column, label in enumerate(labels):
            ids = torch.tensor([[*prompt, *label]], device=model.device)
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
            chosen = logits.log_softmax(-1)[torch.arange(len(label)), list(label)]
            scores[row, column] = chosen.sum()
    return scores.numpy()
