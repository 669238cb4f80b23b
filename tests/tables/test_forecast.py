from __future__ import annotations

import json
from dataclasses import replace

from bench.matrix.cards import CARDS, CONTEXT_BYTES, card_of
from bench.matrix.expand import load_matrix
from bench.matrix.plan import describe, plan
from bench.tables.figures import MINUS
from bench.tables.forecast import AT_THE_PEAK, UPCAST, forecast_bars, forecast_json, forecast_table
from bench.tables.headroom import fit_tables
from bench.tables.parts import AT_PEAK
from bench.tables.table import MISSING

from .forecasts import ALL, ANSWERS, ASSUMED, FEW, LONG, SOME, cells_of, column, shown


def test_what_a_cell_needs_has_cudas_context_in_it_and_a_bound_says_so(chosen):
    table = forecast_table(chosen.cells, ANSWERS)
    assert column(table, "needs GB") == {
        "bf16": "14.71", "fp16": "14.71", "bound": "≥ 14.71", "bound-big": "≥ 500.71", "gone": MISSING,
        "limited": "16.71", LONG: "1.71", "longest": "≈ 14.71", "fa2": "14.71",
    }  # fmt: skip
    assert column(table, "train peak GB")["bound"] == "≥ 11.22"
    assert column(table, "train peak GB")["longest"] == "≈ 11.22"
    legend = " ".join(shown.about for shown in table.columns)
    assert "≥: a lower bound. ≈: as if every sequence had max_length tokens" in legend
    assert [*table.rows.loc[0, ["predicted_stored_bytes", "need_bytes"]]] == [7 * 10**9, 14 * 10**9 + CONTEXT_BYTES]


def test_the_smallest_card_that_fits_depends_on_the_dtype_and_is_not_known_from_a_lower_bound(chosen):
    smallest = {"bf16": "RTX 5070 Ti", "fp16": "T4", "bound": "?", "bound-big": "none known", "gone": MISSING,
                "limited": "RTX 5070 Ti", LONG: "RTX 3050 6GB", "longest": "≈ T4", "fa2": "RTX 5070 Ti"}  # fmt: skip
    table = forecast_table(chosen.cells, ANSWERS)
    assert column(table, "smallest that fits") == smallest
    assert "?: not known." in " ".join(shown.about for shown in table.columns)
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
    assert not {"≥", "≈"} & set(" ".join(shown.about for shown in table.columns))
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
    assert {bar.id: bar.sign for bar in bars.bars if bar.sign} == {"bound": "≥ ", "bound-big": "≥ ", "longest": "≈ "}
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


def test_long_ids_break_at_hyphens_and_are_whole_in_the_rows(chosen):
    table = forecast_table(cells_of(chosen, LONG), ANSWERS)
    assert list(table.rows["id"]) == [LONG]
    lines = shown(replace(chosen, cells=tuple(cells_of(chosen, LONG))), 60, [card_of("T4")]).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("qwen"))
    assert "".join(line.split()[0] for line in lines[first : first + 3]) == LONG
    assert all(line.split()[0].endswith(("-", "len256")) for line in lines[first : first + 3])


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
    assert [memory[name]["assumed"] for name in ("bf16", "bound", "longest")] == [None, None, ASSUMED]
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
