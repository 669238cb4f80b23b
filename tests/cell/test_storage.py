from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from bench.cell import adapters, quantize, storage
from bench.cell.precision import DTYPES
from bench.cell.quantize import linear4bit, linear8bit
from bench.protocol import DTYPE_NAMES, MEASURES, PLACES
from tests.cell.examples import CPU, examples, load, run, wanted
from tests.cell.test_quantize import FOUR_BIT, KINDS, words
from tests.models import POSITIONS, VOCABULARY, config

NAMES = ["llama", "qwen2", "odd"]  # tied; untied with biases; widths that are no multiples of a block
PLACED = [f"{place}_{dtype}_bytes" for place in PLACES for dtype in DTYPE_NAMES]

# The elements of unquantized parameters of tiny models with 4-bit linear layers, by place.
ELEMENTS: dict[str, dict[str, int]] = {
    "llama": {"embedding": VOCABULARY * 64, "norm": 5 * 64},
    "odd": {"embedding": VOCABULARY * 60, "head": VOCABULARY * 60, "norm": 5 * 60},
    "qwen2": {"embedding": VOCABULARY * 64, "head": VOCABULARY * 64, "norm": 5 * 64, "bias": 2 * (64 + 32 + 32)},
    "gemma2": {"embedding": VOCABULARY * 64, "norm": 9 * 64},
    # Learned positions; norms and every linear layer have biases.
    "gpt2": {"embedding": (VOCABULARY + POSITIONS) * 64, "norm": 10 * 64, "bias": 2 * (192 + 64 + 256 + 64)},
    "gpt_neox": {
        "embedding": VOCABULARY * 64, "head": VOCABULARY * 64, "norm": 10 * 64, "bias": 2 * (192 + 64 + 128 + 64),
    },
}  # fmt: skip


def tensors_within(root: object) -> Iterator[torch.Tensor]:
    """Yield every tensor that can be reached from an object, found by Python's own garbage collector."""
    seen, left = set(), [root]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, type) or type(thing).__name__ in ("module", "function"):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            yield thing
        left += gc.get_referents(thing)


def distinct_bytes(model: nn.Module) -> int:
    """Return the bytes of all memory that the model's tensors stand on, each counted once."""
    blocks = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_within(model)
    }
    return sum(blocks.values())


def assert_all_adds_up(found: dict[str, int]) -> None:
    documented = [measure.name for measure in MEASURES]
    components = ("packed_bytes", "quant_state_bytes", "unquantized_bytes", "buffer_bytes")
    assert set(found) <= set(documented)
    assert found["stored_bytes"] == sum(found[component] for component in components)
    assert found["quant_state_bytes"] == found["absmax_bytes"] + found["nested_absmax_bytes"] + found["code_bytes"]
    assert found["unquantized_bytes"] == sum(found.get(name, 0) for name in PLACED)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", FOUR_BIT, ids=words)
@pytest.mark.parametrize("name", NAMES)
def test_a_4_bit_layer_stores_what_the_formula_says(
    tiny: Callable[[str], Path], name: str, kind: dict[str, Any], dtype: str
) -> None:
    model = load(tiny(name), compute_dtype=dtype, **kind)

    found = storage.stored(model)

    weights = [module.in_features * module.out_features for module in linear4bit(model)]
    blocks = [math.ceil(n / 64) for n in weights]
    nested = sum(n + 4 * math.ceil(n / 256) + 64 + 1024 + 4 for n in blocks)
    plain = sum(4 * n + 64 for n in blocks)
    assert len(weights) == 14
    assert found["packed_bytes"] == sum(math.ceil(n / 2) for n in weights)
    assert found["quant_state_bytes"] == (nested if kind["double_quant"] else plain)
    scale_bytes = 1 if kind["double_quant"] else 4
    assert found["absmax_bytes"] == scale_bytes * sum(blocks)
    assert found["nested_absmax_bytes"] == (sum(4 * math.ceil(n / 256) for n in blocks) if kind["double_quant"] else 0)
    assert found["code_bytes"] == len(weights) * (64 + (1024 + 4 if kind["double_quant"] else 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_unquantized_parameters_are_counted_once_in_their_place_and_dtype(
    tiny: Callable[[str], Path], name: str, dtype: str
) -> None:
    asked = wanted(tiny(name), quant_type="nf4", compute_dtype=dtype, attn_implementation="eager")
    model, _ = quantize.load(asked, CPU)

    found = storage.stored(model)

    expected = {f"{place}_{dtype}_bytes": n * DTYPES[dtype].itemsize for place, n in ELEMENTS[name].items()}
    assert {name: size for name, size in found.items() if name in PLACED} == expected == storage.unquantized(model)
    assert found["unquantized_bytes"] == sum(expected.values())

    adapters.adapt(model, asked)  # casts what is unquantized

    expected = {f"{place}_float32_bytes": n * 4 for place, n in ELEMENTS[name].items()}
    assert storage.unquantized(model) == expected


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_unquantized_linear_layers_have_a_place_of_their_own(tiny: Callable[[str], Path], name: str) -> None:
    quantized, plain = (load(tiny(name), quant_type=kind, compute_dtype="float16") for kind in ("nf4", "none"))

    linear = 2 * storage.counts(quantized)["quantized_parameters_count"]
    assert storage.unquantized(plain) == {**storage.unquantized(quantized), "linear_float16_bytes": linear}


def test_a_parameter_of_no_known_kind_is_told_as_other(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    before = storage.unquantized(model)

    model.model.layers[0].gate = nn.Parameter(torch.ones(3, dtype=torch.float16))

    assert storage.unquantized(model) == {**before, "other_float16_bytes": 6}


@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
def test_a_model_without_memory_has_the_bytes_of_a_real_one(tiny: Callable[[str], Path], name: str) -> None:
    with torch.device("meta"):
        described = AutoModelForCausalLM.from_config(config(name), dtype=torch.bfloat16)

    assert storage.stored(described) == storage.stored(load(tiny(name), compute_dtype="bfloat16"))


@pytest.mark.parametrize("kind", KINDS, ids=words)
@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
def test_components_add_up_to_all_the_memory_and_counts_to_all_the_parameters(
    tiny: Callable[[str], Path], name: str, kind: dict[str, Any]
) -> None:
    model, plain = load(tiny(name), compute_dtype="bfloat16", **kind), load(tiny(name))

    found = storage.stored(model)

    assert_all_adds_up(found)
    assert found["stored_bytes"] == distinct_bytes(model)
    counts = storage.counts(model)
    assert counts["parameters_count"] == sum(p.numel() for p in plain.parameters())
    quantized = [
        name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    ]
    assert len(quantized) == (0 if kind["quant_type"] == "none" else 8 if name == "gpt2" else 14)
    assert counts["quantized_modules_count"] == len(quantized)
    assert counts["quantized_parameters_count"] == sum(
        plain.get_parameter(f"{name}.weight").numel() for name in quantized
    )


@pytest.mark.parametrize("upcast", [True, False], ids=["upcast", "as loaded"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS, ids=words)
@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
def test_a_model_with_adapters_stores_the_base_as_cast_and_the_adapters(
    tiny: Callable[[str], Path], name: str, kind: dict[str, Any], dtype: str, upcast: bool
) -> None:
    asked = wanted(tiny(name), load_dtype=dtype, compute_dtype=dtype, kbit_upcast=upcast, use_dora=True, **kind)
    model, _ = quantize.load(asked, CPU)
    before = storage.stored(model)

    adapted = adapters.adapt(model, asked)

    found = storage.stored(model)
    adapter_bytes = sum(parameter.nbytes for parameter in storage.adapter_parameters(model))
    assert_all_adds_up(found)
    assert found["stored_bytes"] + adapter_bytes == distinct_bytes(model)
    assert adapter_bytes == sum(parameter.nbytes for parameter in adapters.trainable(model))
    doubled = upcast and dtype == "bfloat16"
    assert found["unquantized_bytes"] == before["unquantized_bytes"] * (2 if doubled else 1)
    for component in ("packed_bytes", "quant_state_bytes", "buffer_bytes"):
        assert found[component] == before[component]
    assert storage.stored(adapted) == found


def test_int8_stores_a_byte_a_weight_and_a_scale_a_row_before_and_after_a_forward(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("qwen2"), quant_type="int8", compute_dtype="bfloat16")
    before = storage.stored(model)

    with torch.inference_mode():
        model(input_ids=torch.arange(2, 30)[None])

    layers = linear8bit(model)
    assert storage.stored(model) == before
    assert before["packed_bytes"] == sum(layer.in_features * layer.out_features for layer in layers)
    assert before["quant_state_bytes"] == before["absmax_bytes"] == sum(4 * layer.out_features for layer in layers)


def test_nothing_is_packed_in_an_unquantized_model(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("qwen2"), compute_dtype="bfloat16")

    found = storage.stored(model)

    assert found["packed_bytes"] == found["quant_state_bytes"] == 0
    assert found["unquantized_bytes"] == 2 * sum(p.numel() for p in model.parameters())
    assert found["stored_bytes"] == model.get_memory_footprint()


def test_the_footprint_misses_what_double_quantization_saves(tiny: Callable[[str], Path]) -> None:
    plain, nested = (load(tiny("llama"), quant_type="nf4", double_quant=nested) for nested in (False, True))

    assert plain.get_memory_footprint() == nested.get_memory_footprint()
    assert storage.stored(plain)["stored_bytes"] > plain.get_memory_footprint()
    # Here the nested codes, one a layer, cost more than they save; it takes a large model to gain.
    assert storage.stored(plain)["stored_bytes"] != storage.stored(nested)["stored_bytes"]


@pytest.mark.parametrize("kind", KINDS, ids=words)
def test_two_loads_of_a_model_have_one_hash(tiny: Callable[[str], Path], kind: dict[str, Any]) -> None:
    hashes = {storage.sha256(load(tiny("qwen2"), **kind)) for _ in range(2)}

    assert len(hashes) == 1


def test_every_byte_that_a_model_computes_with_changes_its_hash(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("qwen2"), quant_type="nf4")
    tensors = [*model.parameters(), *model.buffers(), *storage.quantization_state(model)]
    whole = storage.sha256(model)

    for tensor in tensors:
        last = tensor.detach().view(-1).view(torch.uint8)[-1:]
        last ^= 1
        assert storage.sha256(model) != whole
        last ^= 1
    assert storage.sha256(model) == whole


def test_a_hash_is_that_of_the_bytes_however_they_are_cut(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny("odd"), quant_type="fp4")
    whole = storage.sha256(model)
    monkeypatch.setattr(storage, "HASHED_AT_ONCE_BYTES", 100)

    assert storage.sha256(model) == whole


# What training adds ---------------------------------------------------------------------------------------------------


def tables_bytes(name: str) -> int:
    """Return the bytes of bitsandbytes' two tables of 8-bit codes, 256 in float32 each, which an optimizer has once."""
    return 2 * 256 * 4 if "8bit" in name else 0


@pytest.mark.parametrize(
    ("name", "small_bytes", "element_bytes", "block_bytes"),
    [
        # Per element of a small and of a large weight, and per 256 elements of a large one: float32 scales.
        ("adamw_8bit", 8, 2, 8),
        ("paged_adamw_8bit", 8, 2, 8),  # nothing is paged on a CPU
        ("paged_adamw_32bit", 8, 8, 0),
        ("adamw_torch", 8, 8, 0),
        ("lion_8bit", 4, 1, 4),
        ("lion_32bit", 4, 4, 0),
        ("sgd", 0, 0, 0),
    ],
)
def test_gradients_and_optimizer_state_have_the_bytes_of_their_kind(
    tiny: Callable[[str], Path], name: str, small_bytes: int, element_bytes: int, block_bytes: int
) -> None:
    given: dict[str, Any] = {"quant_type": "nf4", "lora_r": 64, "optim": name, "max_steps": 3}

    found = run(tiny("llama"), examples(12), **given).state

    asked = wanted(tiny("llama"), **given)
    model, _ = quantize.load(asked, CPU)
    adapters.adapt(model, asked)
    sizes = [weight.numel() for weight in adapters.trainable(model)]
    small, large = [n for n in sizes if n < 4096], [n for n in sizes if n >= 4096]
    assert small
    assert large
    counters = 4 * len(sizes) if name == "adamw_torch" else 0  # a step count each, a tensor
    assert found == {
        "gradient_bytes": 4 * sum(sizes),
        "optimizer_bytes": small_bytes * sum(small)
        + element_bytes * sum(large)
        + block_bytes * sum(math.ceil(n / 256) for n in large)
        + tables_bytes(name)
        + counters,
        "optimizer_managed_bytes": 0,
    }


def test_a_weight_without_a_gradient_has_none_and_no_state() -> None:
    used, unused = (nn.Parameter(torch.ones(1000)) for _ in range(2))
    optimizer = torch.optim.AdamW([used, unused], foreach=False)
    used.sum().backward()
    optimizer.step()

    found = storage.training_state([used, unused], optimizer)

    assert found == {"gradient_bytes": 4000, "optimizer_bytes": 8004, "optimizer_managed_bytes": 0}
