from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from bench.cell import adapters, blueprint, quantize, sources, storage
from bench.matrix.parameters import Parameters
from tests.cell.examples import CPU, parameters
from tests.cell.test_quantize import KINDS, words
from tests.models import CONFIGS

# Sizes that are no multiples of 64, with what an architecture needs besides. `deepseek_v3` keeps a buffer in float32,
# `mixtral`'s experts are one tensor that is not quantized, `opt` has positions and a projection, `falcon` one key head.
SIZES: dict[str, Any] = {
    "vocab_size": 501,
    "hidden_size": 72,
    "intermediate_size": 136,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {},
    "mixtral": {"num_local_experts": 4},
    "phi3": {},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "opt": {"ffn_dim": 136, "word_embed_proj_dim": 48},
    "falcon": {},
    "starcoder2": {},
    "olmo2": {},
    "stablelm": {},
    "deepseek_v3": {
        "moe_intermediate_size": 32, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
        "first_k_dense_replace": 1, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 12, "num_key_value_heads": 6,
    },
}  # fmt: skip


def sizes(model: Any) -> dict[str, int]:
    return {**storage.stored(model), **storage.counts(model), "footprint_bytes": model.get_memory_footprint()}


def agree(asked: Parameters) -> None:
    """Hold the blueprint of a model against the model itself, tensor by tensor and in sum."""
    real, _ = quantize.load(asked, CPU)
    drawn = blueprint.build(asked, sources.shape_config(asked))

    def described(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in named.items()}

    assert described(drawn) == described(real)
    assert sizes(drawn) == sizes(real)
    assert all(tensor.is_meta for tensor in (*drawn.parameters(), *drawn.buffers()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", KINDS, ids=words)
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "gemma2"])
def test_a_blueprint_has_the_bytes_of_the_model(
    tiny: Callable[[str], Path], name: str, kind: dict[str, Any], dtype: str
) -> None:
    agree(parameters(model=str(tiny(name)), compute_dtype=dtype, **kind))


def test_a_model_that_only_attends_eagerly_has_a_blueprint(tiny: Callable[[str], Path]) -> None:
    agree(parameters(model=str(tiny("gemma2")), quant_type="nf4", attn_implementation="eager"))


@pytest.mark.parametrize("kind", KINDS, ids=words)
@pytest.mark.parametrize("name", OTHERS)
def test_architectures_that_nobody_thought_of_have_their_bytes(name: str, kind: dict[str, Any], tmp_path: Path) -> None:
    AutoConfig.for_model(name, **{**SIZES, **OTHERS[name]}).save_pretrained(tmp_path)

    agree(parameters(model=str(tmp_path), weights="random", compute_dtype="bfloat16", **kind))


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=words)
@pytest.mark.parametrize("name", ["llama", "qwen2", "odd"])
def test_adapters_and_the_cast_take_what_they_take_in_the_model(
    tiny: Callable[[str], Path], name: str, kind: dict[str, Any], upcast: bool
) -> None:
    upcast = upcast and kind["quant_type"] != "none"
    asked = parameters(model=str(tiny(name)), compute_dtype="bfloat16", kbit_upcast=upcast, **kind)
    real, _ = quantize.load(asked, CPU)
    drawn = blueprint.build(asked, sources.shape_config(asked))

    adapters.adapt(real, asked)
    blueprint.adapt(drawn, asked)

    assert storage.stored(drawn) == storage.stored(real)
    assert [p.shape for p in adapters.trainable(drawn)] == [p.shape for p in adapters.trainable(real)]
    assert {p.dtype for p in adapters.trainable(drawn)} == {torch.float32}
    assert [type(m).__name__ for m in drawn.modules()] == [type(m).__name__ for m in real.modules()]


@pytest.mark.parametrize("start", [True, "gaussian", "olora"])
@pytest.mark.parametrize("dora", [False, True])
def test_how_adapters_start_and_dora_are_no_obstacle(tiny: Callable[[str], Path], start: Any, dora: bool) -> None:
    asked = parameters(model=str(tiny("llama")), quant_type="nf4", init_lora_weights=start, use_dora=dora)
    real, _ = quantize.load(asked, CPU)
    drawn = blueprint.build(asked, sources.shape_config(asked))

    adapters.adapt(real, asked)
    blueprint.adapt(drawn, asked)

    assert [p.shape for p in adapters.trainable(drawn)] == [p.shape for p in adapters.trainable(real)]


def test_a_7b_model_stores_what_was_measured_on_a_gpu() -> None:
    found = {}
    for nested in (False, True):
        asked = Parameters(model="qwen2.5-7b", weights="random", compute_dtype="float16", double_quant=nested)
        found[nested] = sizes(blueprint.build(asked, sources.shape_config(asked)))

    # nox -s bench -- matrices/qwen2.5-7b-shape.yaml on an H200: results/reference/h200/qwen2.5-7b-shape
    records = Path("results/reference/h200/qwen2.5-7b-shape/records.jsonl").read_text().splitlines()
    for measures in (json.loads(line) for line in records):
        nested = measures["parameters"]["double_quant"]
        if measures["parameters"]["quant_type"] == "none":
            continue
        for name in ("stored_bytes", "footprint_bytes", "packed_bytes", "unquantized_bytes", "quant_state_bytes"):
            assert found[nested][name] == measures["measures"][name]
    assert found[False]["stored_bytes"] - found[True]["stored_bytes"] == 304_078_320
