"""What several tests of cells need: parameters, loaded models, and the plain way to score a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, set_seed

from bench.cell import adapters, encoding, quantize
from bench.cell.encoding import TokenizedExample
from bench.cell.train import Training, train
from bench.matrix.parameters import FOUR_BIT, Parameters
from tests.models import VOCABULARY

CPU = torch.device("cpu")
STEPS = 20


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
            scores[row, column] = chosen.sum().item()
    return scores.numpy()


def examples(count: int, seed: int = 0) -> list[TokenizedExample]:
    """Return examples of different lengths whose label can be told from the prompt's first token."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        kind, length = int(random.integers(0, 4)), int(random.integers(4, 20))
        prompt = (10 + kind, *random.integers(20, VOCABULARY, length).tolist())
        made.append(TokenizedExample(prompt, (*range(2 + kind, 3 + 2 * kind), 0)))
    return made


def wanted(folder: Path, **given: Any) -> Parameters:
    return parameters(**{"model": str(folder), "max_steps": STEPS, "batch_size": 4, "learning_rate": 5e-3, **given})


def run(
    folder: Path, data: Sequence[TokenizedExample], seed: int = 0, device: torch.device = CPU, **given: Any
) -> Training:
    """Load, adapt and train as a cell does."""
    asked = wanted(folder, **given)
    set_seed(seed)
    model, _ = quantize.load(asked, device)
    adapters.adapt(model, asked)
    survey = encoding.survey(data, asked, seed)
    return train(model, encoding.steps(data, asked, seed), asked, survey, encoding.steps_count(asked, len(data)))
