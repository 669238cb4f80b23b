from __future__ import annotations

import json
from dataclasses import replace

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
from bench.tables.forecast import (
    AT_THE_PEAK,
    UPCAST,
    fit_tables,
    forecast_bars,
    forecast_json,
    forecast_table,
    headroom,
    show_forecast,
)
from bench.tables.parts import AT_PEAK
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
  - {{id: longest, lora_r: 6, compute_dtype: float16}}
  - {{id: fa2, lora_r: 7, compute_dtype: float16, attn_implementation: flash_attention_2, vram_limit: 20500000000}}
"""
AT_MOST = "every sequence is taken to have max_length tokens"


def predicted(gb: float, note: str | None = None, at_most: str | None = None) -> Prediction:
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
        at_most,
    )


ANSWERS = {
    "bf16": predicted(14),
    "fp16": predicted(14),
    "bound": predicted(14, "its code is not followed"),
    "bound-big": predicted(500, "its code is not followed"),
    "gone": Refusal("model 'x/y' cannot be loaded", "name another"),
    "limited": predicted(16),
    LONG: predicted(1),
    "longest": predicted(14, at_most=AT_MOST),
    "fa2": predicted(14),
}
FEW = ("bf16", "fp16")


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


def shown(chosen, width, cards=ALL):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        show_forecast(chosen, ANSWERS, cards, console)
    return capture.get()


def test_what_a_cell_needs_has_cudas_context_in_it_and_a_bound_says_so(chosen):
    table = forecast_table(chosen.cells, ANSWERS)
    assert column(table, "needs GB") == {
        "bf16": "14.71", "fp16": "14.71", "bound": "≥ 14.71", "bound-big": "≥ 500.71", "gone": MISSING,
        "limited": "16.71", LONG: "1.71", "longest": "≤ 14.71", "fa2": "14.71",
    }  # fmt: skip
    assert column(table, "train peak GB")["bound"] == "≥ 11.22"
    assert column(table, "train peak GB")["longest"] == "≤ 11.22"
    legend = " ".join(shown.about for shown in table.columns)
    assert "≥: a lower bound. ≤: an upper bound." in legend
    assert [*table.rows.loc[0, ["predicted_stored_bytes", "need_bytes"]]] == [7 * 10**9, 14 * 10**9 + CONTEXT_BYTES]


def test_the_smallest_card_that_fits_depends_on_the_dtype_and_is_not_known_from_a_lower_bound(chosen):
    smallest = {"bf16": "RTX 5070 Ti", "fp16": "T4", "bound": "?", "bound-big": "none known", "gone": MISSING,
                "limited": "RTX 5070 Ti", LONG: "RTX 3050 6GB", "longest": "T4", "fa2": "RTX 5070 Ti"}  # fmt: skip
    table = forecast_table(chosen.cells, ANSWERS)
    assert column(table, "smallest that fits") == smallest
    assert "?: only a lower bound" in " ".join(shown.about for shown in table.columns)
    alone = forecast_table(cells_of(chosen, "bf16"), ANSWERS)
    assert "?" not in " ".join(shown.about for shown in alone.columns)


def test_the_smallest_card_is_of_all_known_ones_whatever_the_headroom_is_asked_for(chosen):
    few = replace(chosen, cells=tuple(cells_of(chosen, *FEW)))
    text = " ".join(shown(few, 120, [card_of("H200")]).split())
    assert "RTX 5070 Ti" in text
    assert "Smallest that fits: of all known cards, whatever --card names." in text


def test_a_limit_counts_memory_only_since_a_run_under_it_may_be_on_any_card(chosen):
    table = forecast_table(chosen.cells, ANSWERS)
    limits = {name: text for name, text in column(table, "limit").items() if text != MISSING}
    assert limits == {"limited": f"T4 {MINUS}0.6", "fa2": "20.5 GB +5.8"}
    assert any("by memory only" in shown.about for shown in table.columns)


def test_a_refused_cell_is_a_row_with_its_reason_and_stands_in_no_grid(chosen):
    table = forecast_table(chosen.cells, ANSWERS)
    assert column(table, "not predicted")["gone"] == "model 'x/y' cannot be loaded; name another"
    (grid,) = fit_tables(chosen.cells, ANSWERS, SOME, 200)
    assert "gone" not in set(grid.rows["id"])
    only = forecast_table(cells_of(chosen, "gone"), ANSWERS)
    assert [shown.heading for shown in only.columns] == ["id", "not predicted"]
    assert fit_tables(cells_of(chosen, "gone"), ANSWERS, ALL, 80) == []


def test_cells_that_were_all_predicted_show_no_column_for_reasons_limits_or_bounds(chosen):
    table = forecast_table(cells_of(chosen, "bf16", "fp16"), ANSWERS)
    headings = [shown.heading for shown in table.columns]
    assert not {"not predicted", "limit"} & set(headings)
    assert "≥" not in " ".join(shown.about for shown in table.columns)
    assert not {"≥", "≤"} & set(" ".join(shown.about for shown in table.columns))
    names = [heading.replace("-\n", "").replace("\n", " ") for heading in headings]
    assert names[6:] == [part.name for part in AT_PEAK]


def test_the_parts_have_the_names_of_the_bars_and_add_up_to_the_peak(chosen):
    table = forecast_table(chosen.cells, ANSWERS)
    bars = forecast_bars(chosen, ANSWERS)
    known = table.rows[table.rows["id"] != "gone"]
    assert bars.title == "m: predicted peak of training"
    assert bars.parts == tuple(part.name for part in AT_PEAK)
    assert [bar.id for bar in bars.bars] == list(known["id"])
    assert [bar.total_bytes for bar in bars.bars] == list(known["predicted_train_peak_allocated_bytes"])
    assert [bar.sizes_bytes["workspace & rounding"] for bar in bars.bars] == list(known["workspace & rounding"])
    assert [bar.id for bar in bars.bars if bar.is_lower_bound] == ["bound", "bound-big"]
    caps = {bar.id: bar.cap_bytes for bar in bars.bars if bar.cap_bytes}
    t4 = CARDS["T4"].memory_bytes
    assert caps == {"limited": t4 - CONTEXT_BYTES, "fa2": 20_500_000_000 - CONTEXT_BYTES}
    assert forecast_bars(replace(chosen, cells=tuple(cells_of(chosen, "gone"))), ANSWERS) is None


def test_bars_stand_between_the_table_and_the_headroom(chosen):
    text = shown(chosen, 120)
    places = [text.index(title) for title in ("Predicted memory", "m: predicted peak of training", "Headroom in GB")]
    assert places == sorted(places)
    assert "┊ cap" in text


def test_what_the_parts_are_is_said_and_the_cast_only_where_there_is_one(chosen, tmp_path):
    assert forecast_table(chosen.cells, ANSWERS).caption[:2] == (AT_THE_PEAK, UPCAST)
    path = tmp_path / "plain.yaml"
    path.write_text("schema: 1\ninclude: [{id: bf16, kbit_upcast: false}, {id: gone}]\n")
    plain = plan(load_matrix(path))
    assert forecast_table(cells_of(plain, "bf16"), ANSWERS).caption == (AT_THE_PEAK,)
    assert forecast_table(cells_of(plain, "gone"), ANSWERS).caption == ()


def test_hidden_columns_are_named_and_json_has_them(chosen):
    text = " ".join(shown(chosen, 80).split())
    assert "hidden at this width: " in text
    assert f"{', '.join(part.name for part in AT_PEAK)}; --json has all." in text
    assert "hidden" not in shown(chosen, 200)


def test_the_grid_goes_by_memory_and_cards_that_are_alike_share_a_column(chosen):
    (grid,) = fit_tables(chosen.cells, ANSWERS, SOME, 200)
    headings = [shown.heading.replace("\n", " ") for shown in grid.columns]
    assert headings == ["id", "16.1 GB T4", "20GB", "25.8 GB RTX 3090 A30", "150.8 GB H200"]
    assert column(grid, "16.1 GB T4") == {
        "bf16": "no bf16", "fp16": "+1.4", "bound": "no bf16", "bound-big": "no bf16", "limited": "no bf16",
        LONG: "no bf16", "longest": "+1.4", "fa2": "no FA2",
    }  # fmt: skip
    assert column(grid, "20GB") == {
        "bf16": "+5.3", "fp16": "+5.3", "bound": "?", "bound-big": MINUS, "limited": "+3.3", LONG: "+18.3",
        "longest": "+5.3", "fa2": "+5.3",
    }  # fmt: skip


def test_cards_of_one_size_that_differ_in_bfloat16_stand_apart(chosen):
    cards = [card_of(name) for name in ("P100", "V100-16GB", "RTX 4080", "RTX A4000")]
    (grid,) = fit_tables(chosen.cells, ANSWERS, cards, 200)
    assert [shown.heading.splitlines()[1:] for shown in grid.columns] == [
        [], ["RTX 4080", "RTX A4000"], ["P100", "V100-16GB"],
    ]  # fmt: skip


def test_a_number_of_bytes_is_written_as_gigabytes(chosen):
    cards = [card_of(size) for size in (20 * 10**9, 20_500_000_000, "20gb")]
    (grid,) = fit_tables(chosen.cells, ANSWERS, cards, 200)
    assert [shown.heading for shown in grid.columns] == ["id", "20 GB\n20GB", "20.5 GB"]


@pytest.mark.parametrize("width", [40, 80, 100, 160])
def test_blocks_of_the_grid_are_no_wider_than_the_console_and_hold_every_card_once(chosen, width):
    tables = fit_tables(chosen.cells, ANSWERS, ALL, width)
    names = [name for table in tables for shown in table.columns[1:] for name in shown.heading.splitlines()[1:]]
    assert sorted(names) == sorted(CARDS)
    assert [table.title for table in tables] == ["Headroom in GB", *["Headroom in GB, continued"] * (len(tables) - 1)]
    assert [bool(table.caption) for table in tables] == [*[False] * (len(tables) - 1), True]
    assert max(cell_len(line) for line in shown(chosen, width).splitlines()) <= width


@pytest.mark.parametrize(("width", "names"), [(60, FEW), (80, FEW), (80, (LONG,)), (160, (*FEW, "limited", "fa2"))])
def test_few_cells_on_many_cards_are_a_row_a_card_in_one_table(chosen, width, names):
    (grid,) = fit_tables(cells_of(chosen, *names), ANSWERS, ALL, width)
    assert ["".join(shown.heading.split()) for shown in grid.columns] == ["card", "memoryGB", *names]
    texts = grid.texts()
    cards = [name for row in texts for name in row[0].replace("\n", " ").split(", ")]
    assert sorted(cards) == sorted(CARDS)
    by_card = dict(zip((row[0] for row in texts), texts, strict=True))
    if names == FEW:
        assert by_card["T4"] == ["T4", "16.1", "no bf16", "+1.4"]
    few = replace(chosen, cells=tuple(cells_of(chosen, *names)))
    lines = shown(few, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert not any("…" in line for line in lines)
    assert any(line.startswith("H100 NVL ") for line in lines)


def test_where_one_block_holds_all_cards_cells_stay_rows(chosen):
    (grid,) = fit_tables(cells_of(chosen, *FEW), ANSWERS, SOME, 100)
    assert grid.columns[0].heading == "id"


def test_the_rule_is_stated_once_and_signs_are_explained_where_they_occur(chosen):
    text = " ".join(shown(chosen, 100).split())
    rule = "Headroom: the card's memory less the need, which has 0.71 GB for CUDA's context in it"
    assert text.count(rule) == 1
    assert text.count("no bf16: cards before Ampere have no bfloat16 arithmetic") == 1
    assert "set compute_dtype: float16 to run there" in text
    assert "set attn_implementation: sdpa to run there" in text
    assert text.count("?: only a lower bound of the need is known, and it would fit") == 1
    assert "note: bound, bound-big: a lower bound only; its code is not followed." in text
    assert f"note: longest: at most this, and the headroom at least; {AT_MOST}." in text
    older = [card for card in SOME if card.has_bfloat16 and card.name != "H200"]
    (plain,) = fit_tables(cells_of(chosen, "fp16"), ANSWERS, older, 200)
    assert len(plain.caption) == 2


@pytest.mark.parametrize(("card", "said"), [("H100", True), ("RTX 5090", True), ("A30", False), ("20GB", False)])
def test_cards_with_larger_workspaces_are_told_to_be_counted_in_the_headroom_only(chosen, card, said):
    (grid,) = fit_tables(cells_of(chosen, "fp16"), ANSWERS, [card_of("T4"), card_of(card)], 200)
    assert any("workspaces take 0.05 GB more" in line for line in grid.caption) == said


@pytest.mark.parametrize(
    ("names", "card", "said"),
    [
        (("bf16", "fp16"), "T4", True),
        (("bf16", "fp16"), "A30", False),
        (("bf16",), "T4", False),
        (("fa2",), "T4", False),
    ],
)
def test_cards_without_flash_attention_are_told_to_be_predicted_less_well(chosen, names, card, said):
    (grid,) = fit_tables(cells_of(chosen, *names), ANSWERS, [card_of(card)], 200)
    assert any("FlashAttention" in line for line in grid.caption) == said


def test_long_ids_break_at_hyphens_and_are_whole_in_the_rows(chosen):
    table = forecast_table(cells_of(chosen, LONG), ANSWERS)
    assert list(table.rows["id"]) == [LONG]
    lines = shown(replace(chosen, cells=tuple(cells_of(chosen, LONG))), 60, [card_of("T4")]).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("qwen"))
    assert "".join(line.split()[0] for line in lines[first : first + 3]) == LONG
    assert all(line.split()[0].endswith(("-", "len256")) for line in lines[first : first + 3])


@pytest.mark.parametrize(
    ("found", "text"),
    [(Fit(True, 2_100_000_000), "+2.1"), (Fit(True, 0), "+0.0"), (Fit(False, -1), f"{MINUS}0.0"),
     (Fit(False, -1_400_000_000), f"{MINUS}1.4"), (Fit(None, None), "?"), (Fit(False, None), MINUS),
     (Fit(False, 5, "no bfloat16"), "no bf16"), (Fit(False, 5, "no FlashAttention 2"), "no FA2")],
)  # fmt: skip
def test_headroom_always_has_its_sign(found, text):
    assert headroom(found) == text


def test_json_is_the_plan_with_the_bytes_of_each_cell(chosen):
    made = json.loads(json.dumps(forecast_json(chosen, ANSWERS, SOME)))
    memory = {cell["id"]: cell.pop("memory") for cell in made["cells"]}
    assert made.pop("context_bytes") == CONTEXT_BYTES
    assert made == json.loads(json.dumps(describe(chosen)))
    measures = {name.removeprefix("predicted_"): value for name, value in ANSWERS["bf16"].measures.items()}
    needed = measures.pop("needed_bytes")
    assert {name: memory["bf16"].get(name) for name in measures} == measures
    assert memory["bf16"]["need_bytes"] == needed + CONTEXT_BYTES
    assert not any("needed" in name for name in memory["bf16"])
    assert [memory[name]["at_most"] for name in ("bf16", "bound", "longest")] == [None, None, AT_MOST]
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
    assert memory["fa2"]["fits"]["T4"]["reason"] == "no FlashAttention 2"
    assert memory["fa2"]["limit"]["reason"] is None
    assert memory["gone"] == {"message": "model 'x/y' cannot be loaded", "hint": "name another"}
