from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.cell import adapters, encoding, quantize, steps
from bench.cell.graphs import MAX_GRAPHS, choose_lengths, pad_alike
from tests.cell.examples import CPU, examples, wanted

counts = st.dictionaries(st.integers(1, 12).map(lambda n: 8 * n), st.integers(1, 50), min_size=1, max_size=7)


def padded(lengths: Counter[int], chosen: list[int]) -> int:
    """Return the tokens of all batches, each padded to the next length that was chosen."""
    return sum(count * min(c for c in chosen if c >= length) for length, count in lengths.items())


@pytest.mark.parametrize(
    ("lengths", "most", "chosen"),
    [
        ({64: 100}, 5, [64]),
        ({64: 1, 72: 1}, 5, [64, 72]),
        ({64: 1, 72: 1, 512: 1}, 2, [72, 512]),
        ({64: 100, 72: 1, 80: 1}, 2, [64, 80]),
        ({64: 1, 72: 100, 80: 1}, 1, [80]),
    ],
)
def test_lengths_that_pad_least_are_chosen(lengths: dict[int, int], most: int, chosen: list[int]) -> None:
    assert choose_lengths(Counter(lengths), most) == chosen


@given(counts, st.integers(1, MAX_GRAPHS))
def test_no_other_choice_pads_less(lengths: dict[int, int], most: int) -> None:
    counted = Counter(lengths)
    found = choose_lengths(counted, most)

    assert found == sorted(set(found))
    assert len(found) <= most
    assert max(found) == max(lengths)
    others = (
        [*choice, max(lengths)]
        for size in range(min(most, len(lengths)))
        for choice in combinations(sorted(set(lengths) - {max(lengths)}), size)
    )
    assert padded(counted, found) == min(padded(counted, other) for other in others)


def test_batches_of_a_run_are_padded_to_a_few_shapes() -> None:
    data, asked = examples(90), wanted(Path("any"), gradient_accumulation_steps=2)
    survey = encoding.survey(data, asked, 0)

    natural = list(encoding.steps(data, asked, 0))
    alike = list(pad_alike(natural, survey))

    assert [len(step) for step in alike] == [len(step) for step in natural]
    shapes = {(batch.input_ids.shape, batch.targets.shape[1]) for step in alike for batch in step}
    assert {(rows, width) for (rows, _), width in shapes} == {(survey.rows, survey.width)}
    assert len(shapes) <= MAX_GRAPHS
    assert {length for (_, length), _ in shapes} <= set(survey.lengths)
    assert next(pad_alike(alike, survey))[0].input_ids.shape == alike[0][0].input_ids.shape


def test_padding_alike_changes_neither_loss_nor_gradients(tiny: Callable[[str], Path]) -> None:
    data, asked = examples(5), wanted(tiny("qwen2"), quant_type="nf4", init_lora_weights=False, batch_size=3)
    model, _ = quantize.load(asked, CPU)
    adapters.adapt(model, asked)
    it = steps.trainee(model, asked, 1)
    natural = list(encoding.steps(data, asked, 0))[1][0]  # an epoch's last batch is smaller
    ((alike,),) = pad_alike([[natural]], encoding.survey(data, asked, 0))
    assert len(alike.input_ids) > len(natural.input_ids)

    found = []
    for batch in (natural, alike):
        loss = steps.forward_backward(it, batch, batch.loss_tokens)
        found.append((loss, [weight.grad.clone() for weight in it.weights]))
        it.optimizer.zero_grad()

    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
