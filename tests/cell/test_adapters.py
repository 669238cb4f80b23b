from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed

from bench.cell import adapters, encoding, steps
from bench.cell.encoding import TokenizedExample
from bench.cell.failures import Invalid
from tests.cell.examples import load, parameters
from tests.models import CONFIGS

EXAMPLES = [TokenizedExample(tuple(range(2, 12 + row)), (7 + row, 0)) for row in range(4)]

# Names of the linear layers below one decoder layer.
ATTENTION = {
    **{name: {f"self_attn.{letter}_proj" for letter in "qkvo"} for name in CONFIGS},
    "gpt_neox": {"attention.query_key_value", "attention.dense"},
    "gpt2": {"attn.c_attn", "attn.c_proj"},
}
MLP = {
    **{name: {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} for name in CONFIGS},
    "gpt_neox": {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
    "gpt2": {"mlp.c_fc", "mlp.c_proj"},
}
LAYERS = {**dict.fromkeys(CONFIGS, "model.layers"), "gpt_neox": "gpt_neox.layers", "gpt2": "transformer.h"}


def adapted(model: PreTrainedModel) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def gradients(model: PreTrainedModel, **given: Any) -> tuple[float, torch.Tensor]:
    """Return loss and gradients of a model whose adapters are not at their start."""
    with torch.no_grad():
        for number, weight in enumerate(adapters.trainable(model)):
            weight.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    it = steps.trainee(model, parameters(**given), 1)
    torch.manual_seed(0)
    loss = steps.forward_backward(it, encoding.collate(EXAMPLES), 8)
    return loss.item(), torch.cat([weight.grad.flatten() for weight in it.weights])


@pytest.mark.parametrize("quant_type", ["none", "nf4", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_group_of_targets_is_exactly_its_layers_and_never_the_head(
    tiny: Callable[[str], Path], name: str, quant_type: str
) -> None:
    model = load(tiny(name), quant_type=quant_type, attn_implementation="eager")
    groups = {"attention": ATTENTION[name], "mlp": MLP[name], "all-linear": ATTENTION[name] | MLP[name]}

    for group, wanted in groups.items():
        names = adapters.target_names(model, group)
        assert len(names) == len(set(names))
        assert set(names) == {f"{LAYERS[name]}.{layer}.{module}" for layer in (0, 1) for module in wanted}
    adapters.adapt(model, parameters(quant_type=quant_type))

    assert adapted(model) == set(names)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("q_proj", "v_proj"), {f"model.layers.{n}.self_attn.{m}_proj" for n in (0, 1) for m in "qv"}),
        (("mlp.up_proj",), {f"model.layers.{n}.mlp.up_proj" for n in (0, 1)}),
        (("model.layers.1.self_attn.o_proj",), {"model.layers.1.self_attn.o_proj"}),
    ],
)
def test_a_list_of_targets_is_exactly_the_layers_that_end_so(
    tiny: Callable[[str], Path], names: tuple[str, ...], wanted: set[str]
) -> None:
    model = load(tiny("llama"))

    adapters.adapt(model, parameters(target_modules=names))

    assert adapted(model) == wanted


@pytest.mark.parametrize("wrong", ["query", "roj", "layers", "embed_tokens", "lm_head"])
def test_a_name_that_no_linear_layer_has_is_refused_with_those_there_are(
    tiny: Callable[[str], Path], wrong: str
) -> None:
    with pytest.raises(Invalid, match=f"LlamaForCausalLM has no linear layer '{wrong}'") as caught:
        adapters.adapt(load(tiny("llama")), parameters(target_modules=("q_proj", wrong)))
    assert caught.value.fix == "it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


def test_a_group_that_a_model_does_not_have_is_refused_with_the_names_there_are() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", **sizes))

    with pytest.raises(Invalid, match="has no linear layers known as mlp") as caught:
        adapters.adapt(model, parameters(target_modules="mlp"))
    assert "fc1, fc2" in str(caught.value.fix)


@pytest.mark.parametrize("quant_type", ["none", "nf4", "int8"])
def test_only_adapters_train_and_they_are_float32(tiny: Callable[[str], Path], quant_type: str) -> None:
    given = {"quant_type": quant_type, "compute_dtype": "bfloat16"}
    model = load(tiny("qwen2"), **given)

    adapters.adapt(model, parameters(**given, lora_r=4, target_modules="attention"))

    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained == [name for name, _ in model.named_parameters() if ".lora_" in name]
    assert {weight.dtype for weight in adapters.trainable(model)} == {torch.float32}
    widths = {"q": (64, 64), "k": (64, 32), "v": (64, 32), "o": (64, 64)}
    assert sum(weight.numel() for weight in adapters.trainable(model)) == 2 * 4 * sum(sum(w) for w in widths.values())


@pytest.mark.parametrize("quant_type", ["nf4", "int8"])
@pytest.mark.parametrize("upcast", [True, False])
def test_the_upcast_turns_16_bit_parameters_into_32_bits_and_nothing_else(
    tiny: Callable[[str], Path], quant_type: str, upcast: bool
) -> None:
    given = {"quant_type": quant_type, "compute_dtype": "bfloat16", "kbit_upcast": upcast}
    model = load(tiny("qwen2"), **given)
    packed = torch.uint8 if quant_type == "nf4" else torch.int8

    adapters.adapt(model, parameters(**given))

    base = {name: weight.dtype for name, weight in model.named_parameters() if ".lora_" not in name}
    linear = {name for name, dtype in base.items() if dtype == packed}
    assert len(linear) == 14
    assert {dtype for name, dtype in base.items() if name not in linear} == {
        torch.float32 if upcast else torch.bfloat16
    }


def test_adapters_start_at_the_base_model(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    ids = torch.arange(2, 30)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits

    adapters.adapt(model, parameters())

    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quant_type", ["nf4", "int8"])
def test_adapters_start_alike_whatever_holds_the_base(tiny: Callable[[str], Path], quant_type: str) -> None:
    def start(**given: Any) -> list[torch.Tensor]:
        set_seed(3)
        model = load(tiny("llama"), **given)
        adapters.adapt(model, parameters(**given))
        return adapters.trainable(model)

    for one, other in zip(start(), start(quant_type=quant_type, compute_dtype="bfloat16"), strict=True):
        # PEFT makes adapters in the dtype of the base, where that is no integer, and casts them to float32 then.
        torch.testing.assert_close(one, other, rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("given", "scale"),
    [
        ({"lora_r": 16, "lora_alpha": 32}, 2.0),
        ({"lora_r": 4, "lora_alpha": 2}, 0.5),
        ({"lora_r": 16, "lora_alpha": 32, "use_rslora": True}, 8.0),
    ],
)
def test_adapters_have_the_rank_and_scale_asked_for(
    tiny: Callable[[str], Path], given: dict[str, Any], scale: float
) -> None:
    model = load(tiny("llama"))

    adapters.adapt(model, parameters(**given))

    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer, LoraLayer)
    assert layer.scaling == {"default": scale}
    assert layer.lora_A["default"].weight.shape == (given["lora_r"], 64)


@pytest.mark.parametrize(
    "given",
    [
        {"use_dora": True, "quant_type": "nf4"},
        {"use_dora": True},
        {"use_rslora": True, "quant_type": "fp4"},
        {"init_lora_weights": "gaussian", "quant_type": "nf4"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "olora", "quant_type": "nf4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": False, "quant_type": "nf4"},
        {"lora_dropout": 0.1, "quant_type": "nf4"},
    ],
    ids=str,
)
def test_every_variant_of_adapters_gets_gradients(tiny: Callable[[str], Path], given: dict[str, Any]) -> None:
    model = load(tiny("llama"), quant_type=given.get("quant_type", "none"))
    asked = parameters(**given)

    adapters.adapt(model, asked)
    it = steps.trainee(model, asked, 1)
    steps.forward_backward(it, encoding.collate(EXAMPLES), 8)

    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in it.weights)
    assert sum(weight.grad.abs().sum() for weight in it.weights) > 0
    assert any(isinstance(module, nn.Dropout) and module.p == 0.1 for module in model.modules()) == (
        "lora_dropout" in given
    )


@pytest.mark.parametrize("start", ["pissa", "orthogonal"])
def test_a_combination_that_peft_refuses_is_invalid(tiny: Callable[[str], Path], start: str) -> None:
    quantized = load(tiny("llama"), quant_type="int8")

    with pytest.raises(Invalid, match="PEFT refuses these adapters"):
        adapters.adapt(quantized, parameters(init_lora_weights=start))


def test_memory_that_runs_out_in_peft_is_not_taken_for_a_refusal(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(adapters, "get_peft_model", run_out)

    with pytest.raises(torch.OutOfMemoryError):
        adapters.adapt(load(tiny("llama")), parameters())


@pytest.mark.parametrize("quant_type", ["none", "nf4", "int8"])
@pytest.mark.parametrize(
    ("name", "dropout"),
    [("llama", 0.0), ("llama", 0.2), ("qwen2", 0.0), ("gpt_neox", 0.0), ("gpt2", 0.0)],  # GPT-2 has dropout of its own
)
def test_checkpointing_changes_neither_loss_nor_gradients(
    tiny: Callable[[str], Path], name: str, dropout: float, quant_type: str
) -> None:
    def run(checkpointing: bool) -> tuple[float, torch.Tensor]:
        given = {"quant_type": quant_type, "gradient_checkpointing": checkpointing, "lora_dropout": dropout}
        model = load(tiny(name), **given)
        adapters.adapt(model, parameters(**given))
        assert model.is_gradient_checkpointing == checkpointing
        return gradients(model, **given)

    (loss, plain), (again, recomputed) = run(False), run(True)

    assert again == pytest.approx(loss, rel=1e-6)
    assert plain.norm() > 0
    torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6)


def test_checkpointing_recomputes_layers_in_the_backward_pass(tiny: Callable[[str], Path]) -> None:
    calls = []
    model = load(tiny("llama"), gradient_checkpointing=True)
    adapters.adapt(model, parameters(gradient_checkpointing=True))
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, _: calls.append(module.training))

    gradients(model, gradient_checkpointing=True)

    assert calls.count(True) == 2  # beside one in evaluation mode, before training
