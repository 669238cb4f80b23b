"""Accuracy as lm-evaluation-harness takes it: a forward for every label of every example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REQUESTS_BATCH = 64


@torch.inference_mode()
def score_requests(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], labels: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Return float32 [prompts, labels], the log-likelihood of each label's tokens after each prompt.

    As `HFLM._loglikelihood_tokens` of lm-evaluation-harness does it: a request for every prompt and label, the longest
    first, padded on the right into batches without a mask, logits for every token, and one number brought to the host
    for each request. Its comparison with the greedy answer is left out. Its cache of one-token answers would serve
    none of these, since an end token closes every label.

    Args:
        model: a causal model in evaluation mode, called in whatever autocast context is active.
        prompts: tokens of each prompt; none may be empty.
        labels: tokens of each label.
    """
    result = np.empty((len(prompts), len(labels)), dtype=np.float32)
    requests = [(row, column) for row in range(len(prompts)) for column in range(len(labels))]
    requests.sort(key=lambda request: len(prompts[request[0]]) + len(labels[request[1]]), reverse=True)
    for start in range(0, len(requests), REQUESTS_BATCH):
        chunk = requests[start : start + REQUESTS_BATCH]
        rows = [torch.tensor((*prompts[row], *labels[column][:-1])) for row, column in chunk]
        input_ids = pad_sequence(rows, batch_first=True).to(model.device)
        log_probabilities = model(input_ids=input_ids, use_cache=False).logits.log_softmax(-1, dtype=torch.float32)
        for (row, column), found in zip(chunk, log_probabilities, strict=True):
            first = len(prompts[row]) - 1
            tokens = torch.tensor(labels[column], device=found.device)[:, None]
            result[row, column] = found[first : first + len(tokens)].gather(1, tokens).sum().item()
    return result
