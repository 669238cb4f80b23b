from __future__ import annotations

import pytest

from bench.tables.caption import conditions
from bench.tables.load import load_results

from .examples import record, write_result

SHAPE = {"model": "qwen2.5-7b", "weights": "random", "batch_size": 4, "gradient_accumulation_steps": 4}


def recipe(folder, *cells):
    records = [record(f"c{number}", parameters=parameters) for number, parameters in enumerate(cells)]
    return conditions(load_results(write_result(folder / "r", records)))[1:-1]


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        ([{}], "smollm2-135m, banking77, batch 32, 1 epoch, max_length 256."),
        (
            [{"epochs": 0.5}, {"epochs": 0.5, "lora_r": 8}],
            "smollm2-135m, banking77, batch 32, 0.5 epochs, max_length 256.",
        ),
        ([{"batch_size": 8}, {"task": "intents"}], "smollm2-135m, 1 epoch, max_length 256."),
        ([{"max_steps": 30}, {}], "smollm2-135m, banking77, batch 32, max_length 256."),
        (
            [{**SHAPE, "max_steps": 32, "gradient_checkpointing": True, "vram_limit": "T4"}],
            "qwen2.5-7b, random weights, batch 4, gradient accumulation 4, 32 steps, max_length 256, "
            "gradient checkpointing, vram_limit T4.",
        ),
        (
            [{"train_examples": 500, "weights": "random"}, {"train_examples": 500}],
            "smollm2-135m, banking77, 500 training examples, batch 32, 1 epoch, max_length 256.",
        ),
    ],
)
def test_what_all_cells_share_is_said_in_one_line_and_what_varies_or_says_nothing_is_not(tmp_path, cells, line):
    assert recipe(tmp_path, *cells) == (line,)


def test_where_cells_share_nothing_there_is_no_line(tmp_path):
    other = {"model": "smollm2-360m", "weights": "random", "task": "intents", "batch_size": 8, "epochs": 2.0}
    assert recipe(tmp_path, {}, {**other, "max_length": 128}) == ()


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([("a", 0)], "1 cell, n = 1 seed."),
        ([("a", 0), ("a", 1), ("b", 0), ("b", 1)], "2 cells, n = 2 seeds."),
        ([("a", 0), ("a", 1), ("b", 5)], "2 cells, n = 1 to 2 seeds."),
        ([("a", 0), ("b", 1)], "2 cells, n = 1 seed."),
    ],
)
def test_n_is_how_many_seeds_a_cell_has(tmp_path, runs, words):
    records = [record(id_, seed, parameters={"weights": "random"}) for id_, seed in runs]
    assert conditions(load_results(write_result(tmp_path / "r", records)))[0] == f"default: {words}"
