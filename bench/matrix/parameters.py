"""The parameters of a cell: their names, types, defaults and meaning, in one place.

Names and meaning are Transformers', PEFT's and bitsandbytes' own wherever they have one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bench.matrix.cards import card_of
from bench.matrix.models import PACKAGED_MODEL, SHAPES
from bench.matrix.rules import Rule

FOUR_BIT = ("nf4", "fp4")
LARGEST_SEED = 2**32 - 1

QuantType = Literal["nf4", "fp4", "int8", "none"]
Dtype = Literal["bfloat16", "float16", "float32"]
Count = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, le=1)]

# Defaults that follow another parameter, where a matrix does not set them.
DERIVED: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {
    "double_quant": ("true with nf4 and fp4", lambda given: given.get("quant_type", "nf4") in FOUR_BIT),
    "load_dtype": ("as compute_dtype", lambda given: given.get("compute_dtype", "bfloat16")),
    "kbit_upcast": ("true where quantized", lambda given: given.get("quant_type", "nf4") != "none"),
}

# Parameters that came after protocol 2 did. A key leaves them out where they have their default, so that a cell keeps
# the records it had before; those are read with that default, so that a name stays here, whatever the protocol.
LATER = ("seed_offset",)

DOUBLE_QUANT_NEEDS = "double_quant: true needs 4-bit weights (quant_type nf4 or fp4)"


def derive(given: Any, derived: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Any]]]) -> Any:
    """Complete what a model of parameters is made from with the defaults that follow from it."""
    if not isinstance(given, Mapping):
        return given
    return {**{name: follow(given) for name, (_, follow) in derived.items()}, **given}


class Parameters(BaseModel):
    """Everything that decides what one cell does, but for the seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field("smollm2-135m", description="packaged model, hub id (owner/name), local folder, or shape name")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: the shape only, on synthetic tokens; memory and speed, never accuracy"
    )
    quant_type: QuantType = Field("nf4", description="data type of the base's weights")
    double_quant: bool = Field(True, description="quantize the block scales too (bnb_4bit_use_double_quant)")
    compute_dtype: Dtype = Field("bfloat16", description="dtype of matrix products, and of autocast in training")
    load_dtype: Dtype = Field("bfloat16", description="dtype of the parameters that stay unquantized")
    target_modules: Literal["all-linear", "attention", "mlp"] | tuple[str, ...] = Field(
        "all-linear", description="layers that get an adapter: a group, or a list of module names"
    )
    lora_r: Count = Field(16, description="rank of the adapters")
    lora_alpha: Count = Field(32, description="scale of the adapters is lora_alpha / lora_r")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout before the adapters")
    use_dora: bool = Field(False, description="decompose weights into magnitude and direction (DoRA)")
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(lora_r)")
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "olora", "pissa"] = Field(
        True, description="how adapters start; true: B is zero, so that training starts at the base model"
    )
    kbit_upcast: bool = Field(
        True, description="cast unquantized parameters to float32, as prepare_model_for_kbit_training does"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    optim: Literal[
        "paged_adamw_8bit", "paged_adamw_32bit", "adamw_8bit", "adamw_torch", "adamw_torch_fused",
        "paged_lion_8bit", "paged_lion_32bit", "lion_8bit", "lion_32bit", "sgd",
    ] = Field("paged_adamw_8bit", description="optimizer")  # fmt: skip
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-4, description="peak learning rate")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="learning rate schedule"
    )
    warmup_ratio: Rate = Field(0.03, description="share of the steps over which the learning rate rises")
    max_grad_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="clip gradients to this norm; 0: do not")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")
    batch_size: Count = Field(32, description="examples a forward pass")
    gradient_accumulation_steps: Count = Field(1, description="forward passes an optimizer step")
    max_length: Annotated[int, Field(ge=8)] = Field(
        256, description="longest sequence in tokens; with random weights, the length of every sequence"
    )
    epochs: Annotated[float, Field(gt=0)] = Field(1.0, description="passes over the training examples")
    max_steps: Count | None = Field(None, description="optimizer steps; wins over epochs")
    execution: Literal["auto", "eager", "cuda_graph"] = Field("auto", description="how a training step is run")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="attention kernel; sdpa trains without a mask, which padding on the right does not need"
    )
    task: str = Field("banking77", description="banking77, intents, or a folder with train.csv and test.csv")
    train_examples: Count | Literal["all"] = Field("all", description="training examples, a fixed stratified subset")
    eval_examples: Count | Literal["all"] = Field("all", description="test examples, a fixed stratified subset")
    vram_limit: int | str | None = Field(
        None, description="memory of the card to run as: bytes, 16GB, 14.5GiB, or a card such as T4"
    )
    timeout: Annotated[float, Field(gt=0)] = Field(3600.0, description="seconds for the whole cell")
    seed_offset: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = Field(
        0, description="added to the seed: another draw of adapters and batches; exceed the span of the seeds"
    )

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, given: Any) -> Any:
        return derive(given, DERIVED)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _sort_modules(cls, value: Any) -> Any:
        # The order of names means nothing, so it must not make another cell.
        if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            if not value:
                raise ValueError("a list of module names cannot be empty")
            return tuple(sorted(set(value)))
        return value

    @field_validator("vram_limit")
    @classmethod
    def _check_limit(cls, value: int | str | None) -> int | str | None:
        if value is None:
            return None
        card = card_of(value)
        # The case and the spaces of a size or a card's name mean nothing, so they must not make another cell.
        return value if isinstance(value, int) else card.name

    @property
    def quantized(self) -> bool:
        return self.quant_type != "none"

    @property
    def four_bit(self) -> bool:
        return self.quant_type in FOUR_BIT


MEANINGLESS: tuple[Rule[Parameters], ...] = (
    Rule(
        ("double_quant", "quant_type"),
        lambda p: p.double_quant and not p.four_bit,
        DOUBLE_QUANT_NEEDS,
        "set double_quant: false for this cell, or exclude it",
    ),
    Rule(
        ("kbit_upcast", "quant_type"),
        lambda p: p.kbit_upcast and not p.quantized,
        "kbit_upcast: true needs quantized weights",
        "set kbit_upcast: false for this cell, and load_dtype: float32 if it is to be in float32",
    ),
    Rule(
        ("init_lora_weights", "quant_type"),
        lambda p: p.init_lora_weights == "pissa" and p.quantized,
        "init_lora_weights: pissa rewrites the base's weights, which must be unquantized",
        "use init_lora_weights: olora, or quant_type: none",
    ),
    Rule(
        ("init_lora_weights", "quant_type"),
        lambda p: p.init_lora_weights == "orthogonal" and p.quantized,
        "init_lora_weights: orthogonal needs unquantized weights",
        "use init_lora_weights: true, or quant_type: none",
    ),
    Rule(
        ("init_lora_weights", "lora_r"),
        lambda p: p.init_lora_weights == "orthogonal" and p.lora_r % 2 == 1,
        "init_lora_weights: orthogonal needs an even lora_r",
        "raise lora_r by one",
    ),
    Rule(
        ("attn_implementation", "compute_dtype"),
        lambda p: p.attn_implementation == "flash_attention_2" and p.compute_dtype == "float32",
        "attn_implementation: flash_attention_2 has no float32 kernel",
        "use attn_implementation: sdpa, or a 16-bit compute_dtype",
    ),
    *(
        Rule(
            ("model", "weights"),
            lambda p, name=name: p.model == name and p.weights == "pretrained",  # type: ignore[misc]
            f"model: {name} is a shape without weights",
            f"write model: {shape.hub_id} to download it, or weights: random",
        )
        for name, shape in SHAPES.items()
        if name != PACKAGED_MODEL
    ),
)
