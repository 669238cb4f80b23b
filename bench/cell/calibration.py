"""How far a model's confidence is from how often it is right."""

from __future__ import annotations

import numpy as np

BINS = 15


def expected_calibration_error(log_likelihoods: np.ndarray, truth: np.ndarray, bins: int = BINS) -> float:
    """Return the mean gap between confidence and accuracy over bins of confidence, 0 to 1.

    The expected calibration error of Guo et al. (2017), eq. 3: sum over bins of n_b / n · |accuracy_b - confidence_b|.
    Bins are equally wide and closed on the right.

    Args:
        log_likelihoods: [examples, labels], up to a constant a row.
        truth: [examples], the number of each example's own label.
        bins: how many.
    """
    confidence = confidences(log_likelihoods)
    right = log_likelihoods.argmax(axis=1) == truth
    bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def confidences(log_likelihoods: np.ndarray) -> np.ndarray:
    """Return the probability of each row's likeliest label, float64 [examples], by a softmax over the labels."""
    rows = log_likelihoods.astype(np.float64)
    confidence: np.ndarray = 1 / np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1)
    return confidence
