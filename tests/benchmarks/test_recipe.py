from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from bench.cell import encoding, steps
from benchmarks import recipe
from tests.cell.examples import examples, load


def test_the_recipes_batches_bear_the_loss_that_a_cells_do(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    chosen = examples(6)
    batch = encoding.collate(chosen)

    theirs = model(**recipe.collate(recipe.rows(chosen))).loss

    torch.testing.assert_close(theirs, steps.loss_sum(model, batch) / batch.loss_tokens, rtol=1e-5, atol=1e-5)
