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

from bench.cell import storage
from bench.cell.precision import DTYPES
from bench.cell.quantize import linear4bit, linear8bit
from tests.cell.examples import load
from tests.cell.test_quantize import FOUR_BIT, KINDS, words

NAMES = ["llama", "qwen2", "odd"]  # tied; untied with biases; widths that are no multiples of a block


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_unquantized_parameters_are_counted_once_in_their_dtype(
    tiny: Callable[[str], Path], name: str, dtype: str
) -> None:
    model = load(tiny(name), quant_type="nf4", compute_dtype=dtype)

    embeddings = {id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    norms = sum(p.numel() for n, p in model.named_parameters() if "norm" in n)
    biases = sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias"))
    assert len(embeddings) == (1 if name == "llama" else 2)
    assert (biases > 0) == (name == "qwen2")
    expected = (sum(embeddings.values()) + norms + biases) * DTYPES[dtype].itemsize
    assert storage.stored(model)["unquantized_bytes"] == expected


@pytest.mark.parametrize("kind", KINDS, ids=words)
@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
def test_components_add_up_to_all_the_memory_and_counts_to_all_the_parameters(
    tiny: Callable[[str], Path], name: str, kind: dict[str, Any]
) -> None:
    model, plain = load(tiny(name), compute_dtype="bfloat16", **kind), load(tiny(name))

    found = storage.stored(model)

    components = ("packed_bytes", "quant_state_bytes", "unquantized_bytes", "buffer_bytes")
    assert found["stored_bytes"] == sum(found[component] for component in components)
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


def test_int8_stores_a_byte_a_weight_and_a_scale_a_row_before_and_after_a_forward(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("qwen2"), quant_type="int8", compute_dtype="bfloat16")
    before = storage.stored(model)

    with torch.inference_mode():
        model(input_ids=torch.arange(2, 30)[None])

    layers = linear8bit(model)
    assert storage.stored(model) == before
    assert before["packed_bytes"] == sum(layer.in_features * layer.out_features for layer in layers)
    assert before["quant_state_bytes"] == sum(4 * layer.out_features for layer in layers)


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
