from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from bench.matrix.cards import CARDS, card_of
from bench.matrix.fit import Fit
from bench.tables.figures import MINUS
from bench.tables.headroom import fit_tables, headroom

from .forecasts import ALL, ANSWERS, ASSUMED, FEW, LONG, SOME, cells_of, column, shown


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


def test_a_card_too_small_for_the_longest_texts_may_do_for_the_real_ones(chosen):
    cells = cells_of(chosen, "fp16", "longest")
    (grid,) = fit_tables(cells, ANSWERS, [card_of("8GB"), card_of("T4")], 200)
    assert column(grid, "8GB") == {"fp16": f"{MINUS}6.7", "longest": "?"}
    assert column(grid, "16.1 GB T4") == {"fp16": "+1.4", "longest": "+1.4"}
    assert any(line.startswith("?: not known") for line in grid.caption)


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
    assert "set compute_dtype (and load_dtype, if it is set) to float16 to run there" in text
    assert "set attn_implementation: sdpa to run there" in text
    assert text.count("?: not known, since") == 1
    assert "note: bound, bound-big: a lower bound only; its code is not followed." in text
    assert f"note: longest: {ASSUMED}." in text
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


@pytest.mark.parametrize(
    ("found", "text"),
    [(Fit(True, 2_100_000_000), "+2.1"), (Fit(True, 0), "+0.0"), (Fit(False, -1), f"{MINUS}0.0"),
     (Fit(False, -1_400_000_000), f"{MINUS}1.4"), (Fit(None, None), "?"), (Fit(False, None), MINUS),
     (Fit(False, 5, "no bfloat16"), "no bf16"), (Fit(False, 5, "no FlashAttention 2"), "no FA2")],
)  # fmt: skip
def test_headroom_always_has_its_sign(found, text):
    assert headroom(found) == text
