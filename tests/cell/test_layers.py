from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bench.cell import layers, quantize
from bench.cell.layers import LayerError, summary, weight_errors
from tests import models
from tests.cell.examples import CPU, parameters

FOUR_BIT = [{"quant_type": kind, "double_quant": nested} for kind in ("nf4", "fp4") for nested in (True, False)]
Q_PROJ = "model.layers.0.self_attn.q_proj"


def words(given: dict[str, Any]) -> str:
    return "-".join(str(value) for value in given.values())


def errors_of(folder: Path, **given: Any) -> tuple[LayerError, ...]:
    asked = parameters(model=str(folder), **given)
    model, _ = quantize.load(asked, CPU)
    return weight_errors(model, asked, None)


def expected(weight: torch.Tensor, quant_type: str, double_quant: bool = False) -> tuple[float, float]:
    """Return RMSE and deviation of a weight [out, in] that is quantized and dequantized here, in float64."""
    if quant_type == "int8":
        codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
        after = bnb.int8_vectorwise_dequant(codes, scales)
    else:
        packed, state = bnb.quantize_4bit(
            weight.contiguous(), blocksize=64, compress_statistics=double_quant, quant_type=quant_type
        )
        after = bnb.dequantize_4bit(packed, state)
    error = after.double() - weight.double()
    return error.square().mean().sqrt().item(), weight.double().std(correction=0).item()


def check(found: tuple[LayerError, ...], weights: Mapping[str, torch.Tensor], **given: Any) -> None:
    for layer in found:
        weight = weights[f"{layer.module}.weight"]
        rmse, sigma = expected(weight, **given)
        assert layer.weights_count == weight.numel()
        assert layer.rmse == pytest.approx(rmse, rel=1e-5)
        assert layer.sigma == pytest.approx(sigma, rel=1e-5)


@pytest.fixture
def copy(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Give a copy of a tiny model's folder that a test may change."""
    return lambda name: Path(shutil.copytree(tiny(name), tmp_path / name))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    # Read whole and replaced, since a loaded model may still be mapped to the old file.
    changed = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
    file.unlink()
    save_file(changed, file, metadata={"format": "pt"})


# What is compared -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "odd", "qwen2", "gemma2", "cohere", "gpt_neox"])
@pytest.mark.parametrize("kind", [*FOUR_BIT, {"quant_type": "int8"}], ids=words)
def test_errors_are_those_of_quantizing_the_checkpoint(
    tiny: Callable[[str], Path], name: str, kind: dict[str, Any]
) -> None:
    folder = tiny(name)
    model, _ = quantize.load(asked := parameters(model=str(folder), attn_implementation="eager", **kind), CPU)

    found = weight_errors(model, asked, None)

    quantized = [name for name, module in model.named_modules() if hasattr(module, "source_cls")]
    assert [layer.module for layer in found] == quantized
    assert len(found) == 2 * (4 if name == "gpt_neox" else 7)
    check(found, load_file(folder / "model.safetensors"), **kind)


@pytest.mark.parametrize("kind", [*FOUR_BIT, {"quant_type": "int8"}], ids=words)
def test_gpt2_keeps_its_weights_transposed(tiny: Callable[[str], Path], kind: dict[str, Any]) -> None:
    found = errors_of(tiny("gpt2"), **kind)

    stored = load_file(tiny("gpt2") / "model.safetensors")
    assert {layer.module.split(".", 3)[-1] for layer in found} == {
        "attn.c_attn",
        "attn.c_proj",
        "mlp.c_fc",
        "mlp.c_proj",
    }
    assert len(found) == 2 * 4
    assert stored["transformer.h.0.attn.c_proj.weight"].shape == (64, 64)  # which no shape tells from its transpose
    check(found, {name: tensor.T for name, tensor in stored.items() if tensor.dim() == 2}, **kind)


@pytest.mark.parametrize("load_dtype", ["bfloat16", "float16"])
def test_the_reference_is_the_checkpoint_before_the_cast(tiny: Callable[[str], Path], load_dtype: str) -> None:
    folder = tiny("llama")  # in float32
    stored = load_file(folder / "model.safetensors")

    found = errors_of(folder, quant_type="nf4", load_dtype=load_dtype)

    weight = stored[f"{Q_PROJ}.weight"]
    packed, state = bnb.quantize_4bit(
        weight.to(getattr(torch, load_dtype)), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    error = bnb.dequantize_4bit(packed, state).double() - weight.double()
    assert found[0].module == Q_PROJ
    assert found[0].rmse == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)
    assert found[0].sigma == pytest.approx(weight.double().std(correction=0).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_slices_change_nothing(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    whole = errors_of(tiny(name), quant_type=kind)

    monkeypatch.setattr(layers, "SLICE_ELEMENTS", 7 * 64)  # the last slice of a layer is shorter
    sliced = errors_of(tiny(name), quant_type=kind)

    for one, other in zip(whole, sliced, strict=True):
        assert other.rmse == pytest.approx(one.rmse, rel=1e-6)
        assert other.sigma == pytest.approx(one.sigma, rel=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_forward_pass_changes_nothing(tiny: Callable[[str], Path], kind: str) -> None:
    asked = parameters(model=str(tiny("llama")), quant_type=kind)
    model, _ = quantize.load(asked, CPU)
    before = weight_errors(model, asked, None)

    with torch.inference_mode():
        model.eval()(input_ids=torch.arange(2, 30)[None])

    assert weight_errors(model, asked, None) == before


# How large the errors are ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a model whose smallest layer has 131,072 Gaussian weights."""
    return models.save("llama", tmp_path_factory.mktemp("gaussian"), hidden_size=512, intermediate_size=1024)


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.0920), ("fp4", 0.1218)])
def test_gaussian_weights_have_the_error_of_their_data_type(gaussian: Path, kind: str, error: float) -> None:
    plain, nested = (errors_of(gaussian, quant_type=kind, double_quant=double_quant) for double_quant in (False, True))

    assert {layer.weights_count for layer in plain} == {512 * 256, 512 * 512, 512 * 1024}
    for layer in plain:
        assert layer.rmse_per_sigma == pytest.approx(error, abs=0.002)
    added = summary(nested)["weight_error"] - summary(plain)["weight_error"]
    assert 0 < added < 1e-4  # 8 bits for a scale are nearly enough


def test_int8_errs_far_less(gaussian: Path) -> None:
    for layer in errors_of(gaussian, quant_type="int8"):
        assert 0.005 < layer.rmse_per_sigma < 0.02


# Where the checkpoint is ----------------------------------------------------------------------------------------------


def test_a_checkpoint_in_several_files(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("qwen2"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny("qwen2")).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2

    assert errors_of(tmp_path, quant_type="nf4") == errors_of(tiny("qwen2"), quant_type="nf4")


@pytest.mark.parametrize("revision", [None, "main", "dev", "c" * 40])
def test_a_hub_model_is_read_from_the_cache(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny("llama"), repository / "snapshots" / ("c" * 40))
    (repository / "refs").mkdir()
    for name in ("main", "dev"):
        (repository / "refs" / name).write_text("c" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    named = parameters(model="someone/tiny", revision=revision, quant_type="nf4")
    model, _ = quantize.load(named, CPU)

    found = weight_errors(model, named, None)

    assert found == errors_of(tiny("llama"), quant_type="nf4")
    assert len(found) == 2 * 7


def test_a_checkpoint_without_the_prefix_of_the_base_model(copy: Callable[[str], Path]) -> None:
    folder = copy("llama")
    with_prefix = errors_of(folder, quant_type="nf4")
    rewrite(folder, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()})

    assert errors_of(folder, quant_type="nf4") == with_prefix
    assert with_prefix


@pytest.mark.slow
def test_the_packaged_model_is_compared_with_its_checkpoint(smollm2: Path, all_threads: None) -> None:
    asked = parameters(model="smollm2-135m", quant_type="nf4", compute_dtype="bfloat16")
    model, _ = quantize.load(asked, CPU, smollm2)

    found = summary(weight_errors(model, asked, smollm2))

    assert found["weight_error_layers_count"] == 30 * 7
    assert 0.09 < found["weight_error"] < found["weight_error_max"] < 0.12


# What is left out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: tensor for name, tensor in tensors.items() if Q_PROJ not in name},
        lambda tensors: {name.replace("q_proj", "query") if Q_PROJ in name else name: t for name, t in tensors.items()},
        lambda tensors: {name: t[:, :60] if Q_PROJ in name else t for name, t in tensors.items()},
        lambda tensors: {name: t.flatten() if Q_PROJ in name else t for name, t in tensors.items()},
        lambda tensors: {name: t * 0 if Q_PROJ in name else t for name, t in tensors.items()},
        lambda tensors: {name: t * 0 + 0.1 if Q_PROJ in name else t for name, t in tensors.items()},
    ],
    ids=["missing", "renamed", "narrower", "flat", "zero", "constant"],
)
def test_a_layer_that_cannot_be_compared_is_left_out(
    copy: Callable[[str], Path], change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    asked = parameters(model=str(folder := copy("llama")), quant_type="nf4")
    model, _ = quantize.load(asked, CPU)
    whole = weight_errors(model, asked, None)
    assert whole[0].module == Q_PROJ

    rewrite(folder, change)

    assert weight_errors(model, asked, None) == whole[1:]


def test_nothing_is_compared_without_safetensors(copy: Callable[[str], Path]) -> None:
    asked = parameters(model=str(folder := copy("llama")), quant_type="nf4")
    model, _ = quantize.load(asked, CPU)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    assert weight_errors(model, asked, None) == ()


@pytest.mark.parametrize("given", [{"quant_type": "none"}, {"quant_type": "nf4", "weights": "random"}], ids=words)
def test_nothing_is_compared_where_there_is_nothing_to_compare(
    tiny: Callable[[str], Path], given: dict[str, Any]
) -> None:
    assert errors_of(tiny("llama"), **given) == ()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_a_layer_whose_error_is_no_number_is_kept(copy: Callable[[str], Path], value: float) -> None:
    asked = parameters(model=str(folder := copy("llama")), quant_type="nf4")
    model, _ = quantize.load(asked, CPU)
    whole = weight_errors(model, asked, None)

    rewrite(folder, lambda tensors: {name: t * 0 + value if Q_PROJ in name else t for name, t in tensors.items()})

    broken, *others = weight_errors(model, asked, None)
    assert (broken.module, tuple(others)) == (Q_PROJ, whole[1:])
    assert math.isnan(broken.rmse_per_sigma)
    assert all(math.isnan(summary((*others, broken))[name]) for name in ("weight_error", "weight_error_max"))


# Their summary --------------------------------------------------------------------------------------------------------


def test_the_mean_of_layers_is_weighted_by_their_size() -> None:
    errors = (LayerError("a", 100, 0.1, 1.0), LayerError("b", 300, 0.6, 2.0))

    assert [error.rmse_per_sigma for error in errors] == [0.1, 0.3]
    assert summary(errors) == {
        "weight_error": pytest.approx(0.25),
        "weight_error_max": 0.3,
        "weight_error_layers_count": 2,
    }
    assert summary(()) == {}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_that_is_no_number_shows_in_a_summary_wherever_it_stands(place: int) -> None:
    errors = [LayerError("a", 100, 0.1, 1.0), LayerError("b", 300, 0.6, 2.0)]
    errors.insert(place, LayerError("c", 100, math.nan, 0.0))

    found = summary(errors)

    assert math.isnan(found["weight_error"])
    assert math.isnan(found["weight_error_max"])
    assert found["weight_error_layers_count"] == 3
