from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.cell import adapters, encoding, quantize, steps
from benchmarks.flops import Work, count_work, model_flops_per_token, recomputed_flops_per_token
from tests.cell.examples import CPU, parameters
from tests.models import VOCABULARY

BATCH_SIZE, LENGTH, RANK = 2, 32, 16

# By hand, of the tiny Llama: width 64, of its MLP 128, 4 query and 2 key heads of 16, 2 layers.
LAYER = (64 * 64) + 2 * (64 * 32) + (64 * 64) + 3 * (64 * 128)
ADAPTERS = RANK * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
HEAD = 64 * VOCABULARY
TINY = Work(2 * LAYER, HEAD, 2 * ADAPTERS, attention_width=64, layers_count=2)


def counted(run: Callable[[], Any]) -> tuple[int, int]:
    """Return the operations that torch counts in linear layers and in attention."""
    with FlopCounterMode(display=False) as counter:
        run()
    by_operation = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    attention = by_operation.pop("aten.bmm", 0)
    assert set(by_operation) <= {"aten.mm", "aten.addmm"}
    return sum(by_operation.values()), attention


def test_a_token_of_a_small_model_takes_the_operations_counted_by_hand() -> None:
    work = Work(1000, 500, 10, attention_width=8, layers_count=3)

    # 4 x 1000 and 6 x 10, 4 x 500 for every fourth token, 6 x 16 x 8 x 3 of attention.
    assert model_flops_per_token(work, 16, 0.25) == 4000 + 60 + 500 + 2304
    assert recomputed_flops_per_token(work, 16) == 2000 + 20 + 768


@pytest.mark.parametrize("quant_type", ["none", "nf4"])
def test_the_weights_of_a_model_are_those_counted_by_hand(tiny: Callable[[str], Path], quant_type: str) -> None:
    asked = parameters(model=str(tiny("llama")), quant_type=quant_type, lora_r=RANK)
    model, _ = quantize.load(asked, CPU)
    adapters.adapt(model, asked)

    assert count_work(model) == TINY


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_operations_are_those_that_torch_counts(tiny: Callable[[str], Path], name: str, checkpointing: bool) -> None:
    asked = parameters(
        model=str(tiny(name)), attn_implementation="eager", lora_r=RANK, gradient_checkpointing=checkpointing,
        batch_size=BATCH_SIZE, max_length=LENGTH, max_steps=1,
    )  # fmt: skip
    model, _ = quantize.load(asked, CPU)
    adapters.adapt(model, asked)
    batch = next(encoding.steps(encoding.synthetic_examples(VOCABULARY, LENGTH), asked, 0))[0]
    it = steps.trainee(model, asked, 1)
    tokens, share = batch.real_tokens, batch.loss_tokens / batch.real_tokens
    # Eager attention computes what the mask then hides, which is the other half.
    attention = 2 * tokens * LENGTH * TINY.attention_width * TINY.layers_count

    # Forward, with the logits of all tokens.
    with torch.no_grad():
        forward = counted(lambda: model(input_ids=batch.input_ids))
    weights = TINY.base_weights_count + TINY.head_weights_count + TINY.adapter_weights_count
    assert forward == (2 * tokens * weights, 2 * attention)

    # A step.
    linear, products = counted(lambda: steps.forward_backward(it, batch, batch.loss_tokens))
    expected = model_flops_per_token(TINY, LENGTH, share)
    if checkpointing:
        expected += recomputed_flops_per_token(TINY, LENGTH)
    passes = 4 if checkpointing else 3
    assert products == passes * 2 * attention
    assert linear + passes * attention == tokens * expected - untaken(tokens, checkpointing)


def untaken(tokens: int, checkpointing: bool) -> int:
    """Return the operations of the formula that torch leaves out, counted by hand."""
    if checkpointing:  # the last product of each layer, of the adapter on down_proj, is not recomputed
        return 2 * tokens * 2 * RANK * 64
    # What comes before the first weight that trains needs no gradient: q, k and v of the first layer and their A.
    return 2 * tokens * (64 * 64 + 2 * 64 * 32 + 3 * RANK * 64)
