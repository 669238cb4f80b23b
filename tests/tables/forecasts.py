"""A plan with a cell of each kind, and what is predicted of it."""

from __future__ import annotations

from rich.console import Console

from bench.matrix.cards import CARDS, card_of
from bench.protocol import PEAK_PARTS
from bench.run.forecast import Prediction, Refusal
from bench.tables.forecast import show_forecast

ALL = tuple(CARDS.values())
SOME = tuple(card_of(name) for name in ("H200", "T4", "RTX 3090", "20GB", "A30"))
LONG = "qwen2.5-0.5b-no-upcast-ckpt-optim=paged_adamw_8bit-bs16-len256"

MATRIX = f"""\
schema: 1
name: m
defaults: {{model: qwen2.5-7b, weights: random}}
include:
  - {{id: bf16}}
  - {{id: fp16, compute_dtype: float16}}
  - {{id: bound, lora_r: 1}}
  - {{id: bound-big, lora_r: 2}}
  - {{id: gone, lora_r: 3}}
  - {{id: limited, lora_r: 4, vram_limit: T4}}
  - {{id: {LONG}, lora_r: 5}}
  - {{id: longest, lora_r: 6, compute_dtype: float16}}
  - {{id: fa2, lora_r: 7, compute_dtype: float16, attn_implementation: flash_attention_2, vram_limit: 20500000000}}
"""
ASSUMED = "every sequence is taken to have max_length tokens"


def predicted(gb: float, note: str | None = None, assumed: str | None = None) -> Prediction:
    parts = {f"predicted_peak_{part}_bytes": int(gb * 1e8) for part in PEAK_PARTS}
    parts["predicted_peak_workspace_bytes"] = 2 * 8_519_680
    return Prediction(
        {
            "predicted_footprint_bytes": int(gb * 4e8),
            "predicted_stored_bytes": int(gb * 5e8),
            "predicted_train_peak_allocated_bytes": sum(parts.values()),
            "predicted_needed_bytes": int(gb * 1e9),
            **parts,
        },
        note,
        assumed,
    )


ANSWERS = {
    "bf16": predicted(14),
    "fp16": predicted(14),
    "bound": predicted(14, "its code is not followed"),
    "bound-big": predicted(500, "its code is not followed"),
    "gone": Refusal("model 'x/y' cannot be loaded", "name another"),
    "limited": predicted(16),
    LONG: predicted(1),
    "longest": predicted(14, assumed=ASSUMED),
    "fa2": predicted(14),
}
FEW = ("bf16", "fp16")


def cells_of(chosen, *names):
    return [cell for cell in chosen.cells if cell.id in names]


def column(table, heading):
    """Map the ids to what a column shows."""
    number = [shown.heading.replace("\n", " ") for shown in table.columns].index(heading)
    return {row["id"]: texts[number] for row, texts in zip(table.rows.to_dict("records"), table.texts(), strict=True)}


def shown(chosen, width, cards=ALL):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        show_forecast(chosen, ANSWERS, cards, console)
    return capture.get()
