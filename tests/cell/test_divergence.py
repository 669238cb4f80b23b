from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.cell import scoring
from bench.cell.divergence import compare_labels, compare_next_tokens, divergences
from bench.cell.scoring import Scores
from tests.cell.examples import load
from tests.cell.test_reference import held_out


def test_the_divergence_of_known_distributions() -> None:
    reference_rows = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.25, 0.75]]).log()
    found = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.75, 0.25]]).log()

    divergence = divergences(reference_rows, found)

    expected = [0.0, 0.9 * np.log(1.8) + 0.1 * np.log(0.2), 0.25 * np.log(1 / 3) + 0.75 * np.log(3)]
    assert divergence.dtype == torch.float64
    np.testing.assert_allclose(divergence, expected, rtol=1e-6, atol=1e-12)
    assert divergence[0] == 0.0


@given(st.integers(0, 2**32 - 1), st.integers(2, 3000), st.sampled_from([1e-6, 1e-3, 1.0, 30.0]), st.floats(-50, 50))
def test_a_divergence_is_never_below_zero_and_does_not_change_with_a_constant(
    seed: int, outcomes: int, noise: float, constant: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    one = torch.randn(3, outcomes, generator=random).log_softmax(-1)
    other = (one + noise * torch.randn(3, outcomes, generator=random)).log_softmax(-1)

    divergence = divergences(one, other)

    assert (divergence >= 0).all()
    assert (divergences(one, one) == 0).all()
    shifted = divergences(one.double(), other.double() + constant)
    np.testing.assert_allclose(shifted, divergence, rtol=1e-6, atol=1e-12)


def test_labels_of_known_tables_are_compared() -> None:
    half = np.log([0.5, 0.5])
    of_reference = Scores(np.array([half, [0.0, -5.0], [-3.0, 0.0]], np.float32), np.array([1, 1]))
    found = Scores(np.array([half - 7, [-9.0, -8.0], [-3.0, 0.0]], np.float32), np.array([1, 1]))

    measures = compare_labels(of_reference, found)

    p, q = 1 / (1 + np.exp(-5)), 1 / (1 + np.e)
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert measures["label_kl_before"] == pytest.approx(expected / 3, rel=1e-6)
    assert measures["label_agreement_before"] == pytest.approx(2 / 3)


@pytest.fixture
def next_tokens(tiny: Callable[[str], Path]) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    prompts = held_out().next_token_prompts
    found = torch.empty(24, 512)
    for rows, part in scoring.next_tokens(load(tiny("llama")), prompts):
        found[rows] = part
    return found, prompts


def test_a_model_agrees_with_itself(
    tiny: Callable[[str], Path], next_tokens: tuple[torch.Tensor, list[tuple[int, ...]]]
) -> None:
    found, prompts = next_tokens

    measures = compare_next_tokens(load(tiny("llama")), prompts, found)

    assert measures == {"next_token_prompts_count": 24, "next_token_kl_before": 0.0, "next_token_agreement_before": 1.0}


def test_a_quantized_models_next_tokens_differ_by_what_numpy_finds(
    tiny: Callable[[str], Path], next_tokens: tuple[torch.Tensor, list[tuple[int, ...]]]
) -> None:
    of_reference, prompts = next_tokens
    model = load(tiny("llama"), quant_type="nf4")
    found = np.empty((24, 512))
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            found[row] = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1).numpy()

    measures = compare_next_tokens(model, prompts, of_reference)

    log_p = of_reference.double().numpy()
    expected = (np.exp(log_p) * (log_p - found)).sum(1).mean()
    assert measures["next_token_kl_before"] == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-3
    assert measures["next_token_agreement_before"] == (log_p.argmax(1) == found.argmax(1)).mean()
