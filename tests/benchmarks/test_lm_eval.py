from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.cell import scoring, trie
from benchmarks.lm_eval import REQUESTS_BATCH, score_requests
from tests.cell.examples import examples, load

LABELS = ((7, 8, 0), (7, 9, 9, 0), (20, 0), (7, 8, 30, 31, 0), (40, 41, 0))


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_requests_one_by_one_score_as_the_trie_does(tiny: Callable[[str], Path], name: str) -> None:
    model = load(tiny(name))
    prompts = [example.prompt for example in examples(30)]
    assert len(prompts) * len(LABELS) > 2 * REQUESTS_BATCH

    plain = score_requests(model, prompts, LABELS)

    np.testing.assert_allclose(plain, scoring.score(model, prompts, trie.build(LABELS)).log_likelihoods, atol=1e-4)
