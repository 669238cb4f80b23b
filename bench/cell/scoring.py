"""Score every label of every example exactly: the log-likelihood of its tokens after the prompt, in one forward.

The label trie is appended to each prompt. A node sees the prompt and its ancestors, and stands at the position it
would have if its label were written out, so a causal model computes for it what it would compute in a forward of that
label alone (the tree attention of SpecInfer, Miao et al. 2024). One forward then serves all labels of a batch. The
exception is int8, whose layers choose outlier columns over everything in a forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import f1_score
from transformers import PreTrainedModel

from bench.cell import heads, meters
from bench.cell.calibration import expected_calibration_error
from bench.cell.devices import move, to_device
from bench.cell.ragged import Rows
from bench.cell.trie import Trie, build

# Part of what shared scores are found by: raise it when the same model is no longer scored to the same bits.
SCORING_VERSION = 1

# Logits of one chunk: in 16 bits as the head gives them, in 32, and as much again in the log-softmax.
BYTES_PER_LOGIT = 10
# The same where whole distributions are compared: with the other model's in 32 bits, and both and their terms in 64.
BYTES_PER_COMPARED_LOGIT = 64
# The most room for the widest activations of a layer, and for the logits of one chunk. On a GPU they decide how many
# examples are scored at a time: many, or Python could not launch a small model's layers as fast as they run.
ACTIVATION_BYTES = {"cuda": 4 * 1024**3, "cpu": 1024**3}
LOGITS_BYTES = 1024**3
MAX_ROWS = {"cuda": 512, "cpu": 16}
# What they may take of the memory that the model leaves.
ACTIVATION_SHARE, LOGITS_SHARE = 0.25, 0.1


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods, float32 [examples, labels], of each label's tokens after each prompt, summed over the tokens."""

    log_likelihoods: np.ndarray
    label_lengths: np.ndarray

    def measures(self, truth: np.ndarray, when: str) -> dict[str, float]:
        """Return accuracy, macro-F1 (over the labels that occur), the mean loss per token of the true labels, and ECE.

        `truth` holds the number of each example's own label; the names end in `when`.
        """
        rows = np.arange(len(truth))
        predicted = self.log_likelihoods.argmax(axis=1)
        loss = -self.log_likelihoods[rows, truth].sum(dtype=np.float64) / self.label_lengths[truth].sum()
        return {
            f"accuracy_{when}": float((predicted == truth).mean()),
            f"macro_f1_{when}": float(
                f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
            ),
            f"heldout_loss_{when}": float(loss),
            f"expected_calibration_error_{when}": expected_calibration_error(self.log_likelihoods, truth),
        }


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    prompts: Rows[tuple[int, ...]],
    trie: Trie,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score all labels of a trie after each prompt.

    Args:
        model: a causal model in evaluation mode, called in whatever autocast context is active.
        prompts: tokens of each prompt; none may be empty.
        trie: the labels.
        progress: called with the number of prompts done and their total.
    """
    trie = move(trie, model.device)
    by_length = _by_length(prompts)
    parts = []
    with heads.taking_masks(model):
        for rows in _batches(model, [len(prompts[row]) for row in by_length], len(trie.tokens), BYTES_PER_LOGIT):
            parts.append(log_likelihoods(model, [prompts[row] for row in by_length[rows]], trie))
            progress(rows.stop, len(prompts))
    found = torch.cat(parts).cpu().numpy()
    result = np.empty_like(found)
    result[by_length] = found
    return Scores(result, trie.lengths.cpu().numpy())


@torch.inference_mode()
def next_tokens(model: PreTrainedModel, prompts: Rows[tuple[int, ...]]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield the numbers of a few prompts at a time, and what follows each: log-probabilities, float32 [rows, tokens].

    The arguments are those of `score`; the tokens are the whole vocabulary. The same prompts always share a forward,
    whatever is done with what is yielded.
    """
    nothing = move(build(()), model.device)
    by_length = _by_length(prompts)
    lengths = [len(prompts[row]) for row in by_length]
    with heads.taking_masks(model):
        for rows in _batches(model, lengths, 0, BYTES_PER_COMPARED_LOGIT):
            states = _states(model, [prompts[row] for row in by_length[rows]], nothing)
            yield by_length[rows], heads.logits(model, states[:, -1]).log_softmax(-1)


def log_likelihoods(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], trie: Trie) -> torch.Tensor:
    """Return float32 [prompts, labels]: one forward over prompts padded on the left, each followed by the trie."""
    edges = _edges(model, _states(model, prompts, trie), trie)
    with torch.autocast(model.device.type, enabled=False):
        return edges @ trie.paths


def _states(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], trie: Trie) -> torch.Tensor:
    """Return the hidden states of a trie's places after each prompt, [prompts, places, hidden]."""
    device = model.device
    longest = max(map(len, prompts))
    nodes = len(trie.tokens)
    padded = np.zeros((len(prompts), longest + nodes), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        padded[row, longest - len(prompt) : longest] = prompt
    input_ids = to_device(torch.from_numpy(padded), device)
    input_ids[:, longest:] = trie.tokens
    pads = to_device(torch.tensor([longest - len(prompt) for prompt in prompts]), device)

    states = heads.hidden_states(
        model,
        input_ids,
        attention_mask=heads.mask(model, _sees(pads, longest, trie)),
        position_ids=_positions(pads, longest, trie),
    )
    return states[:, longest - 1 :]


def rooms(model: PreTrainedModel) -> tuple[int, int]:
    """Return the bytes that activations and logits may take: the same for a model and a card, whoever else uses it."""
    activations, logits = ACTIVATION_BYTES[model.device.type], LOGITS_BYTES
    if model.device.type == "cuda":
        left = max(0, meters.capacity_bytes(model.device) - model.get_memory_footprint())
        activations, logits = min(activations, int(ACTIVATION_SHARE * left)), min(logits, int(LOGITS_SHARE * left))
    return activations, logits


def _edges(model: PreTrainedModel, states: torch.Tensor, trie: Trie) -> torch.Tensor:
    """Return the log-probability of each edge, float32 [rows, edges], making logits for a few places at a time.

    `states` are the hidden states of the trie's places, [rows, places, hidden].
    """
    rows, places, _ = states.shape
    vocabulary = model.config.get_text_config().vocab_size
    at_once = max(1, rooms(model)[1] // (rows * vocabulary * BYTES_PER_LOGIT))
    pieces = []
    for start in range(0, places, at_once):
        stop = min(start + at_once, places)
        edges = slice(trie.first_edge[start], trie.first_edge[stop])
        local = trie.edge_from[edges] - start
        log_probabilities = heads.logits(model, states[:, start:stop]).log_softmax(-1)
        pieces.append(log_probabilities[:, local, trie.edge_token[edges]])
    return torch.cat(pieces, dim=1)


def _positions(pads: torch.Tensor, longest: int, trie: Trie) -> torch.Tensor:
    """Return [rows, tokens]: places in the prompt, then prompt length + depth."""
    columns = torch.cat([torch.arange(longest, device=pads.device), longest + trie.depth])
    return (columns - pads[:, None]).clamp(min=0)


def _sees(pads: torch.Tensor, longest: int, trie: Trie) -> torch.Tensor:
    """Return who sees whom, booleans [rows, tokens, tokens].

    Padding sees itself, since a softmax over nothing is not a number; nothing else sees it.
    """
    total = longest + len(trie.tokens)
    columns = torch.arange(total, device=pads.device)
    sees = columns[:, None] >= columns
    sees[longest:, longest:] = trie.sees
    real = columns >= pads[:, None]
    return (sees & real[:, None, :]) | torch.eye(total, dtype=torch.bool, device=pads.device)


def _by_length(prompts: Rows[tuple[int, ...]]) -> list[int]:
    return sorted(range(len(prompts)), key=lambda row: len(prompts[row]))


def _batches(model: PreTrainedModel, lengths: Sequence[int], nodes: int, logit_bytes: int) -> Iterator[slice]:
    """Cut prompts, shortest first, into slices of one forward each, as large as memory's share for it allows."""
    config = model.config.get_text_config()
    width = 4 * max(getattr(config, "intermediate_size", 0) or 0, 4 * config.hidden_size)
    activations, logits = rooms(model)
    tokens = activations // (width * 4)
    most = min(MAX_ROWS[model.device.type], logits // (config.vocab_size * logit_bytes))
    start = 0
    while start < len(lengths):
        stop = start + 1
        while stop < len(lengths) and stop - start < most and (stop - start + 1) * (lengths[stop] + nodes) <= tokens:
            stop += 1
        yield slice(start, stop)
        start = stop
