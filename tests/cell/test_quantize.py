from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from bench.cell import adapters, encoding, quantize, steps
from bench.cell.encoding import TokenizedExample
from bench.cell.failures import Invalid
from bench.cell.precision import DTYPES
from tests import models
from tests.cell.examples import CPU, load, parameters

FOUR_BIT = [{"quant_type": kind, "double_quant": nested} for kind in ("nf4", "fp4") for nested in (True, False)]
KINDS: list[dict[str, Any]] = [*FOUR_BIT, {"quant_type": "int8"}, {"quant_type": "none"}]


def words(given: dict[str, Any]) -> str:
    return "-".join(str(value) for value in given.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS, ids=words)
def test_every_setting_is_loaded_and_read_back(tiny: Callable[[str], Path], kind: dict[str, Any], dtype: str) -> None:
    asked = parameters(model=str(tiny("qwen2")), compute_dtype=dtype, load_dtype="float32", **kind)

    model, _ = quantize.load(asked, CPU)

    quantize.verify(model, asked)
    layers = {"nf4": bnb.nn.Linear4bit, "fp4": bnb.nn.Linear4bit, "int8": bnb.nn.Linear8bitLt, "none": nn.Linear}
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert {type(module) for module in linear if module is not model.lm_head} == {layers[asked.quant_type]}
    assert len(linear) == 2 * 7 + 1
    for module in quantize.linear4bit(model):
        state = module.weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == (asked.quant_type, asked.double_quant, 64)
        assert module.compute_dtype == DTYPES[dtype]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", models.CONFIGS)
def test_the_output_head_and_the_embeddings_stay_unquantized(tiny: Callable[[str], Path], name: str, kind: str) -> None:
    model = load(tiny(name), quant_type=kind, compute_dtype="bfloat16", attn_implementation="eager")

    for module in (model.get_output_embeddings(), model.get_input_embeddings()):
        assert not isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
        assert module.weight.dtype == torch.bfloat16
    quantize.verify(model, parameters(quant_type=kind, compute_dtype="bfloat16"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_unquantized_parameters_have_the_load_dtype(tiny: Callable[[str], Path], dtype: str) -> None:
    model = load(tiny("qwen2"), quant_type="nf4", compute_dtype="bfloat16", load_dtype=dtype)

    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {DTYPES[dtype]}


TAMPERED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"quant_type": "nf4"}, {"quant_type": "fp4"}, "quant_type is nf4, and the cell asked for fp4"),
    ({"quant_type": "nf4", "double_quant": False}, {"quant_type": "nf4"}, "double_quant is False, .* asked for True"),
    (
        {"quant_type": "nf4", "compute_dtype": "float32"},
        {"quant_type": "nf4", "compute_dtype": "float16"},
        r"compute_dtype is torch\.float32, .* asked for torch\.float16",
    ),
    (
        {"quant_type": "nf4", "load_dtype": "float16"},
        {"quant_type": "nf4", "load_dtype": "float32"},
        r"load_dtype is torch\.float16, .* asked for torch\.float32",
    ),
    ({"quant_type": "none"}, {"quant_type": "nf4"}, "storage is 16 or 32-bit, and the cell asked for 4-bit"),
    ({"quant_type": "none"}, {"quant_type": "int8"}, "storage is 16 or 32-bit, and the cell asked for int8"),
    ({"quant_type": "int8"}, {"quant_type": "nf4"}, "storage is int8, and the cell asked for 4-bit"),
    ({"quant_type": "nf4"}, {"quant_type": "none"}, "storage is 4-bit, and the cell asked for 16 or 32-bit"),
    (
        {"load_dtype": "bfloat16"},
        {"load_dtype": "float32"},
        r"load_dtype is torch\.bfloat16, .* asked for torch\.float32",
    ),
]


@pytest.mark.parametrize(
    ("got", "asked", "message"), TAMPERED, ids=[f"{words(g)} for {words(a)}" for g, a, _ in TAMPERED]
)
def test_a_model_that_is_not_what_was_asked_for_is_refused_with_both_values(
    tiny: Callable[[str], Path], got: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    model = load(tiny("llama"), **got)

    with pytest.raises(Invalid, match=rf"^model\.layers\.0\.self_attn\.q_proj: {message}$"):
        quantize.verify(model, parameters(**asked))


def test_one_layer_left_out_of_quantization_is_found(tiny: Callable[[str], Path]) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", "model.layers.1.mlp.down_proj"],
    )
    model = AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32, quantization_config=config)

    with pytest.raises(Invalid, match=r"^model\.layers\.1\.mlp\.down_proj: storage is 16 or 32-bit"):
        quantize.verify(model, parameters(quant_type="nf4"))


def test_a_model_without_linear_layers_to_quantize_is_refused() -> None:
    class Hollow(nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(Invalid, match="no layer of Hollow was quantized"):
        quantize.verify(Hollow(), parameters(quant_type="nf4"))  # type: ignore[arg-type]


def test_the_repacking_of_weights_that_loses_gradients_on_a_cpu_is_off(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"), quant_type="nf4", compute_dtype="bfloat16")

    assert quantize.linear4bit(model)
    assert not any(module.support_avx512bf16_for_cpu for module in quantize.linear4bit(model))


@pytest.mark.parametrize("name", ["llama", "odd"])
def test_an_evaluation_before_training_changes_no_gradient(tiny: Callable[[str], Path], name: str) -> None:
    given = parameters(model=str(tiny(name)), quant_type="nf4", compute_dtype="bfloat16")
    example = TokenizedExample(tuple(range(2, 30)), (7, 8, 0))

    def gradients(evaluate_first: bool) -> torch.Tensor:
        model, _ = quantize.load(given, CPU)
        if evaluate_first:
            model.eval()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                model(input_ids=torch.arange(2, 30)[None])
        adapters.adapt(model, given)
        with torch.no_grad():
            for number, weight in enumerate(adapters.trainable(model)):
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
        it = steps.trainee(model, given, 1)
        steps.forward_backward(it, encoding.collate([example] * 4), 12)
        return torch.cat([weight.grad.flatten() for weight in it.weights])

    without, after = gradients(False), gradients(True)

    assert without.norm() > 0
    assert torch.cosine_similarity(without, after, dim=0) > 0.999
    torch.testing.assert_close(after.norm(), without.norm(), rtol=0.01, atol=0)


def test_int8_layers_do_not_fill_the_log(tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    model = load(tiny("llama"), quant_type="int8")

    with caplog.at_level(logging.WARNING), torch.inference_mode():
        model(input_ids=torch.arange(2, 30)[None])

    assert caplog.messages == []
