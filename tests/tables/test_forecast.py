from __future__ import annotations

import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.matrix.cards import CARDS, CONTEXT_BYTES, card_of
from bench.matrix.expand import load_matrix
from bench.matrix.fit import Fit
from bench.matrix.plan import describe, plan
from bench.protocol import PEAK_PARTS
from bench.run.forecast import Prediction, Refusal
from bench.tables.figures import MINUS
from bench.tables.forecast import fit_tables, forecast_json, forecast_table, headroom, show_forecast
from bench.tables.table import MISSING

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
"""


def predicted(gb: float, note: str | None = None) -> Prediction:
    parts = {f"predicted_peak_{part}_bytes": int(gb * 1e8) for part in PEAK_PARTS}
    return Prediction(
        {
            "predicted_footprint_bytes": int(gb * 4e8),
            "predicted_stored_bytes": int(gb * 5e8),
            "predicted_train_peak_allocated_bytes": sum(parts.values()),
            "predicted_needed_bytes": int(gb * 1e9),
            **parts,
            "predicted_peak_workspace_bytes": 2 * 8_519_680,
        },
        note,
    )


ANSWERS = {
    "bf16": predicted(14),
    "fp16": predicted(14),
    "bound": predicted(14, "its code is not followed"),
    "bound-big": predicted(500, "its code is not followed"),
    "gone": Refusal("model 'x/y' cannot be loaded", "name another"),
    "limited": predicted(16),
    LONG: predicted(1),
}


@pytest.fixture
def chosen(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(MATRIX)
    return plan(load_matrix(path))


def cells_of(chosen, *names):
    return [cell for cell in chosen.cells if cell.id in names]


def column(table, heading):
    """Map the ids to what a column shows."""
    number = [shown.heading.replace("\n", " ") for shown in table.columns].index(heading)
    return {row["id"]: texts[number] for row, texts in zip(table.rows.to_dict("records"), table.texts(), strict=True)}


def shown(chosen, width, cards=ALL, **options):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        show_forecast(chosen.cells, ANSWERS, cards, console, **options)
    return capture.get()


def test_what_a_cell_needs_has_cudas_context_in_it_and_a_lower_bound_says_so(chosen):
    table = forecast_table(chosen.cells, ANSWERS, ALL, 40)
    assert column(table, "needs GB") == {
        "bf16": "14.71", "fp16": "14.71", "bound": "≥ 14.71", "bound-big": "≥ 500.71", "gone": MISSING,
        "limited": "16.71", LONG: "1.71",
    }  # fmt: skip
    assert column(table, "train peak GB")["bound"] == "≥ 12.60"
    assert [*table.rows.loc[0, ["predicted_stored_bytes", "need_bytes"]]] == [7 * 10**9, 14 * 10**9 + CONTEXT_BYTES]


def test_the_smallest_card_that_fits_depends_on_the_dtype_and_is_not_known_from_a_lower_bound(chosen):
    smallest = {"bf16": "RTX 5080", "fp16": "T4", "bound": "?", "bound-big": "none", "gone": MISSING,
                "limited": "RTX 5080", LONG: "RTX 3080"}  # fmt: skip
    assert column(forecast_table(chosen.cells, ANSWERS, ALL, 40), "smallest that fits") == smallest
    (only,) = {*column(forecast_table(cells_of(chosen, "bf16"), ANSWERS, SOME, 40), "smallest that fits").values()}
    assert only == "20GB"


def test_a_limit_counts_memory_only_since_a_run_under_it_may_be_on_any_card(chosen):
    table = forecast_table(chosen.cells, ANSWERS, ALL, 40)
    assert column(table, "limit") == {
        name: f"T4 {MINUS}0.6" if name == "limited" else MISSING for name in [cell.id for cell in chosen.cells]
    }


def test_a_refused_cell_is_a_row_with_its_reason_and_stands_in_no_grid(chosen):
    table = forecast_table(chosen.cells, ANSWERS, ALL, 40)
    assert column(table, "not predicted")["gone"] == "model 'x/y' cannot be loaded; name another"
    (grid,) = fit_tables(chosen.cells, ANSWERS, SOME, 200, 40)
    assert "gone" not in set(grid.rows["id"])
    only = forecast_table(cells_of(chosen, "gone"), ANSWERS, ALL, 40)
    assert [shown.heading for shown in only.columns] == ["id", "not predicted"]
    assert fit_tables(cells_of(chosen, "gone"), ANSWERS, ALL, 80, 40) == []


def test_cells_that_were_all_predicted_show_no_column_for_reasons_limits_or_bounds(chosen):
    table = forecast_table(cells_of(chosen, "bf16", "fp16"), ANSWERS, ALL, 40)
    headings = [shown.heading for shown in table.columns]
    assert not {"not predicted", "limit"} & set(headings)
    assert "≥" not in " ".join(shown.about for shown in table.columns)
    assert len(headings) == 6 + len(PEAK_PARTS)


def test_the_grid_goes_by_memory_and_cards_that_are_alike_share_a_column(chosen):
    (grid,) = fit_tables(chosen.cells, ANSWERS, SOME, 200, 80)
    headings = [shown.heading.replace("\n", " ") for shown in grid.columns]
    assert headings == ["id", "16.1 GB T4", "20GB", "25.8 GB RTX 3090 A30", "150.8 GB H200"]
    assert column(grid, "16.1 GB T4") == {
        "bf16": "no bf16", "fp16": "+1.4", "bound": "no bf16", "bound-big": "no bf16", "limited": "no bf16",
        LONG: "no bf16",
    }  # fmt: skip
    assert column(grid, "20GB") == {
        "bf16": "+5.3", "fp16": "+5.3", "bound": "?", "bound-big": MINUS, "limited": "+3.3", LONG: "+18.3",
    }  # fmt: skip


def test_cards_of_one_size_that_differ_in_bfloat16_stand_apart(chosen):
    cards = [card_of(name) for name in ("P100", "V100-16GB", "RTX 4080", "RTX A4000")]
    (grid,) = fit_tables(chosen.cells, ANSWERS, cards, 200, 80)
    assert [shown.heading.splitlines()[1:] for shown in grid.columns] == [
        [], ["RTX 4080", "RTX A4000"], ["P100", "V100-16GB"],
    ]  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 100, 160, 400])
def test_blocks_of_the_grid_are_no_wider_than_the_console_and_hold_every_card_once(chosen, width):
    tables = fit_tables(chosen.cells, ANSWERS, ALL, width, 24)
    names = [name for table in tables for shown in table.columns[1:] for name in shown.heading.splitlines()[1:]]
    assert sorted(names) == sorted(CARDS)
    assert [table.title for table in tables] == ["Headroom in GB", *["Headroom in GB, continued"] * (len(tables) - 1)]
    assert [bool(table.caption) for table in tables] == [*[False] * (len(tables) - 1), True]
    assert max(cell_len(line) for line in shown(chosen, width).splitlines()) <= width


def test_the_rule_is_stated_once_and_signs_are_explained_where_they_occur(chosen):
    text = " ".join(shown(chosen, 100).split())
    rule = (
        "Fits: predicted need ≤ the card's memory less 0.71 GB for CUDA's context (measured on an H200; cards differ)."
    )
    assert text.count(rule) == 1
    assert text.count("no bf16: the card has no bfloat16 arithmetic") == 1
    assert text.count("?: only a lower bound") == 1
    assert "note: bound, bound-big: a lower bound only; its code is not followed." in text
    newer = [card for card in SOME if card.has_bfloat16]
    (plain,) = fit_tables(cells_of(chosen, "fp16"), ANSWERS, newer, 200, 80)
    assert len(plain.caption) == 2


@pytest.mark.parametrize(
    ("names", "card", "said"),
    [(("bf16", "fp16"), "T4", True), (("bf16", "fp16"), "A30", False), (("bf16",), "T4", False)],
)
def test_cards_without_flash_attention_are_told_to_be_predicted_less_well(chosen, names, card, said):
    (grid,) = fit_tables(cells_of(chosen, *names), ANSWERS, [card_of(card)], 200, 80)
    assert any("FlashAttention" in line for line in grid.caption) == said


def test_long_ids_break_at_hyphens_and_are_whole_in_the_rows(chosen):
    table = forecast_table(cells_of(chosen, LONG), ANSWERS, ALL, 24)
    assert table.texts()[0][0].split("\n") == [
        "qwen2.5-0.5b-no-upcast-",
        "ckpt-",
        "optim=paged_adamw_8bit-",
        "bs16-len256",
    ]
    assert list(table.rows["id"]) == [LONG]


@pytest.mark.parametrize(
    ("found", "text"),
    [(Fit(True, 2_100_000_000), "+2.1"), (Fit(True, 0), "+0.0"), (Fit(False, -1), f"{MINUS}0.0"),
     (Fit(False, -1_400_000_000), f"{MINUS}1.4"), (Fit(None, None), "?"), (Fit(False, None), MINUS),
     (Fit(False, 5, "no bfloat16"), "no bf16")],
)  # fmt: skip
def test_headroom_always_has_its_sign(found, text):
    assert headroom(found) == text


def test_json_is_the_plan_with_the_bytes_of_each_cell(chosen):
    made = json.loads(json.dumps(forecast_json(chosen, ANSWERS, SOME)))
    memory = {cell["id"]: cell.pop("memory") for cell in made["cells"]}
    assert made.pop("context_bytes") == CONTEXT_BYTES
    assert made == json.loads(json.dumps(describe(chosen)))
    measures = {name.removeprefix("predicted_"): value for name, value in ANSWERS["bf16"].measures.items()}
    assert memory["bf16"].items() >= measures.items()
    assert (memory["bf16"]["note"], memory["bound"]["note"]) == (None, "its code is not followed")
    assert set(memory["bf16"]["fits"]) == {card.name for card in SOME}
    need = 14 * 10**9 + CONTEXT_BYTES
    assert memory["bf16"]["fits"]["A30"] == {"fits": True, "headroom_bytes": 24576 * 2**20 - need, "reason": None}
    assert memory["bf16"]["fits"]["T4"] == {
        "fits": False, "headroom_bytes": 15360 * 2**20 - need, "reason": "no bfloat16",
    }  # fmt: skip
    assert memory["bound"]["fits"]["A30"] == {"fits": None, "headroom_bytes": None, "reason": None}
    assert memory["bound-big"]["fits"]["A30"] == {"fits": False, "headroom_bytes": None, "reason": None}
    assert memory["bf16"]["limit"] is None
    assert memory["limited"]["limit"]["fits"] is False
    assert memory["gone"] == {"message": "model 'x/y' cannot be loaded", "hint": "name another"}
