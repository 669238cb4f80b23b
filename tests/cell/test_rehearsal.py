from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell import allocator, rehearsal, sources
from bench.cell.encoding import Shape
from bench.cell.rehearsal import Kernels, Rehearsal, least, rehearse, with_optimizer
from bench.matrix.parameters import Parameters
from bench.protocol import PEAK_PARTS
from tests.cell.examples import parameters

SHAPE = Shape(4, 64, 8)
KERNELS = Kernels(flash_attention=True, workspace_bytes=0)
MODES: dict[str, dict[str, Any]] = {
    "nf4": {"quant_type": "nf4", "compute_dtype": "bfloat16"},
    "nf4-upcast": {"quant_type": "nf4", "compute_dtype": "bfloat16", "kbit_upcast": True},
    "fp4-fp16": {"quant_type": "fp4", "compute_dtype": "float16", "double_quant": False},
    "int8": {"quant_type": "int8", "compute_dtype": "bfloat16"},
    "none": {"quant_type": "none", "compute_dtype": "bfloat16"},
    "float32": {"quant_type": "none", "compute_dtype": "float32"},
    "checkpointing": {"quant_type": "nf4", "compute_dtype": "bfloat16", "gradient_checkpointing": True},
    "dropout": {"quant_type": "nf4", "compute_dtype": "bfloat16", "lora_dropout": 0.1},
    "dora": {"quant_type": "nf4", "compute_dtype": "bfloat16", "use_dora": True},
    "eager": {"quant_type": "nf4", "compute_dtype": "bfloat16", "attn_implementation": "eager"},
    "accumulation": {"quant_type": "nf4", "compute_dtype": "bfloat16", "gradient_accumulation_steps": 2},
}
MODES["int8"]["kbit_upcast"] = True
for mode in MODES.values():
    mode.setdefault("kbit_upcast", False)


def rehearsed(model: str, shape: Shape = SHAPE, kernels: Kernels = KERNELS, **given: Any) -> Rehearsal:
    asked = parameters(model=model, **given)
    return rehearse(asked, sources.shape_config(asked), shape, kernels)


def balance(events: tuple[int, ...]) -> set[int]:
    """Return the allocations that are made in a span and outlive it, by number."""
    alive: set[int] = set()
    for event in events:
        if event > 0:
            alive.add(event - 1)
        else:
            alive.discard(-event - 1)
    return alive


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "qwen2", "odd", "gpt2", "gpt_neox", "granite", "cohere"])
def test_a_step_leaves_what_it_found_but_for_gradients(tiny: Callable[[str], Path], name: str, mode: str) -> None:
    found = rehearsed(str(tiny(name)), **MODES[mode])

    kept = balance(found.first)
    named = {part: sum(found.sizes[number] for number in kept if found.parts[number] == part) for part in PEAK_PARTS}
    weights = sum(shape.numel() for shape in found.weights)
    assert named["gradient"] == 4 * weights > 0
    # Biases that `kbit_upcast` has put into float32 go back to what the layer computes in, once.
    assert named["activation"] < 100_000
    assert named["dequantized"] == named["head"] == 0
    assert balance((*found.first, *found.clear)) == {n for n in kept if found.parts[n] != "gradient"}
    assert balance(found.following) == set()
    assert bool(found.following) == (mode == "accumulation")


def test_the_same_rehearsal_gives_the_same_events(tiny: Callable[[str], Path]) -> None:
    one, other = (rehearsed(str(tiny("qwen2")), **MODES["checkpointing"]) for _ in range(2))

    assert one == other


def _saved_per_layer(**given: Any) -> tuple[float, Shape, dict[str, int]]:
    """Return what one more layer of SmolLM2-135M keeps for the backward pass, adapters' copies left out."""
    asked = Parameters(model="smollm2-135m", weights="random", **given)
    shape = Shape(4, 256, 8)
    peaks = []
    for layers in (2, 3):
        config = sources.shape_config(asked)
        config.num_hidden_layers = layers
        found = rehearse(asked, config, shape, KERNELS)
        alive: dict[int, int] = {}
        most = 0
        made = 0
        for event in found.first:
            if event > 0:
                alive[event - 1] = found.sizes[event - 1]
                made = event
            else:
                alive.pop(-event - 1, None)
            if found.parts[made - 1] == "head" and event > 0:  # the loss: all layers have left what they keep
                kept = sum(size for number, size in alive.items() if found.parts[number] == "activation")
                most = max(most, kept)
        peaks.append(most)
    weights = {"r": asked.lora_r}
    return peaks[1] - peaks[0], shape, weights


@pytest.mark.parametrize("case", ["upcast", "no-upcast", "none", "checkpointing"])
def test_activations_follow_the_formulas_of_the_docstring(case: str) -> None:
    given: dict[str, dict[str, Any]] = {
        "upcast": {"kbit_upcast": True},
        "no-upcast": {"kbit_upcast": False},
        "none": {"quant_type": "none"},
        "checkpointing": {"kbit_upcast": True, "gradient_checkpointing": True},
    }
    found, shape, _ = _saved_per_layer(**given[case])

    tokens, h, m, q, k, heads, rank = shape.rows * shape.length, 576, 1536, 576, 192, 9, 16
    element = 4 if case in ("upcast", "checkpointing") else 2
    inputs = {"upcast": 10 * h + 2 * m, "no-upcast": 4 * h + 2 * m, "none": 10 * h + 2 * q + 2 * m}
    norms, attention = 2 * (4 * h + 4), 4 * q + 4 * k + 4 * heads
    middle, mlp = 14 * rank, 3 * element * m
    # The adapters' copies in the compute dtype: A and B of seven layers.
    copies = 2 * rank * (2 * (h + q) + 2 * (h + k) + 3 * (h + m))
    if case == "checkpointing":
        expected = tokens * element * h + copies
    else:
        expected = tokens * (norms + attention + inputs[case] + middle + mlp) + copies
    assert found == pytest.approx(expected, abs=64)  # a few single numbers


@pytest.mark.parametrize(
    ("name", "allocated"),
    [
        ("adamw_torch", 8),
        ("adamw_torch_fused", 8),
        ("adamw_8bit", 2),
        ("paged_adamw_8bit", 0),
        ("paged_adamw_32bit", 0),
        ("lion_32bit", 4),
        ("lion_8bit", 1),
        ("sgd", 0),
    ],
)
def test_optimizers_keep_what_they_keep(tiny: Callable[[str], Path], name: str, allocated: int) -> None:
    found = rehearsed(str(tiny("llama")), quant_type="nf4", compute_dtype="bfloat16", lora_r=4096)
    asked = parameters(model="", quant_type="nf4", optim=name, lora_r=4096)

    run = with_optimizer(found, asked)

    weights = sum(shape.numel() for shape in found.weights)
    state = sum(size for size, part in zip(run.sizes, run.parts, strict=True) if part == "optimizer")
    # 8 bits: a scale of 32 for each 256 elements of each state; tables of 256 numbers each, and step counts.
    states = 2 if "adamw" in name else 1
    scales = 4 * states * weights // 256 if "8bit" in name else 0
    assert state == pytest.approx(allocated * weights + scales, abs=2048 + 4 * len(found.weights))
    assert run.sizes[: len(found.sizes)] == found.sizes


def test_two_steps_are_all_there_is_to_a_run(tiny: Callable[[str], Path]) -> None:
    found = rehearsed(str(tiny("qwen2")), **MODES["accumulation"])
    run = with_optimizer(found, parameters(model="", quant_type="nf4", optim="adamw_torch"))
    step = run.events[len(found.load) : len(found.load) + (len(run.events) - len(found.load)) // 2]

    two, many = (allocator.replay((*found.load, *step * steps), run.sizes) for steps in (2, 6))

    assert (two.requested, two.allocated, two.reserved) == (many.requested, many.allocated, many.reserved)


def test_without_flash_attention_masks_and_other_kernels_take_memory_too(tiny: Callable[[str], Path]) -> None:
    flash, without = (
        with_optimizer(
            rehearsed(str(tiny("qwen2")), kernels=Kernels(kind, 0), quant_type="nf4", compute_dtype="float16"),
            parameters(model="", quant_type="nf4"),
        )
        for kind in (True, False)
    )

    one, other = (allocator.replay(run.events, run.sizes).requested for run in (flash, without))
    assert one < other < 2 * one


def test_each_thread_has_a_workspace_of_each_library(tiny: Callable[[str], Path]) -> None:
    kernels = Kernels(True, 1000)

    def workspaces(name: str, **given: Any) -> list[int]:
        found = rehearsed(str(tiny(name)), kernels=kernels, quant_type="nf4", compute_dtype="bfloat16", **given)
        return sorted(size for size, part in zip(found.sizes, found.parts, strict=True) if part == "workspace")

    lt = rehearsal.LT_WORKSPACE_BYTES
    assert workspaces("llama") == [1000, 1000]
    assert workspaces("qwen2") == [1000, 1000, lt]  # its layers add biases
    assert workspaces("qwen2", gradient_checkpointing=True) == [1000, 1000, lt, lt]


def test_what_is_needed_at_least_is_all_but_activations(tiny: Callable[[str], Path]) -> None:
    asked = parameters(model=str(tiny("llama")), quant_type="nf4", compute_dtype="bfloat16")
    config = sources.shape_config(asked)

    bound = least(asked, config, SHAPE, KERNELS)
    whole = rehearse(asked, config, SHAPE, KERNELS)

    assert bound.weights == whole.weights
    assert bound.load == whole.load
    sums = {part: sum(bound.sizes[n] for n in balance(bound.first) if bound.parts[n] == part) for part in PEAK_PARTS}
    assert sums["gradient"] == 4 * sum(shape.numel() for shape in bound.weights)
    assert not {"activation", "dequantized"} & {bound.parts[event - 1] for event in bound.first if event > 0}
    assert max(size for size, part in zip(bound.sizes, bound.parts, strict=True) if part == "head") == 4 * 32 * 512


def test_no_memory_is_taken_for_all_this() -> None:
    asked = Parameters(model="llama-3.1-8b", weights="random", max_length=8, batch_size=1)

    rehearse(asked, sources.shape_config(asked), Shape(1, 8, 7), KERNELS)

    assert not torch.is_autocast_enabled()
    assert not torch.cuda.is_initialized()


def test_a_batch_of_as_many_tokens_as_the_vocabulary_has_is_no_head(tiny: Callable[[str], Path]) -> None:
    def heads(shape: Shape) -> int:
        found = rehearsed(str(tiny("llama")), shape, quant_type="nf4", compute_dtype="bfloat16")
        return sum(size for size, part in zip(found.sizes, found.parts, strict=True) if part == "head")

    assert heads(Shape(4, 128, 8)) == heads(Shape(4, 136, 8)) > 0  # 512 tokens, and 512 words
