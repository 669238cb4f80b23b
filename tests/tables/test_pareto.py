from __future__ import annotations

import numpy as np
import pytest

from bench.tables.evidence import gather
from bench.tables.load import load_results
from bench.tables.pareto import front

from .examples import H100, NF4, quality, record, training, write_result


def cell(cell_id, peak, tokens_per_s, accuracy, **fields):
    return record(cell_id, measures={**NF4, **training(peak, tokens_per_s, 0.1), **quality(accuracy)}, **fields)


def on_front(folder, records):
    evidence = gather(load_results(write_result(folder / "r", records, baseline="base")))
    return set(evidence.cells["id"][front(evidence)])


def test_what_another_cell_beats_is_not_on_the_front_and_ties_are(tmp_path):
    assert on_front(
        tmp_path,
        [
            cell("base", 3e9, 100.0, 0.85),
            cell("small", 2e9, 80.0, 0.85),
            cell("equal", 2e9, 80.0, 0.85),
            cell("beaten-by-small", 2e9, 80.0, 0.849),
            cell("beaten-by-base", 4e9, 100.0, 0.85),
            cell("accurate", 5e9, 10.0, 0.86),
        ],
    ) == {"base", "small", "equal", "accurate"}


def test_cells_that_cannot_be_compared_do_not_beat_one_another(tmp_path):
    worst, known = (9e9, 1.0, 0.1), {**H100, "task_sha256": "abc"}
    assert on_front(
        tmp_path,
        [
            cell("base", 3e9, 100.0, 0.85, environment=known),
            cell("eager", *worst, environment={**known, "execution_used": "eager"}),
            cell("other-task", *worst, environment={**known, "task_sha256": "f00"}),
            cell("other-gpu", 1e9, 900.0, 0.99, environment={**known, "gpu_name": "NVIDIA H200"}),
        ],
    ) == {"base", "eager", "other-task"}


@pytest.mark.parametrize("status", ["oom", "crashed"])
def test_cells_without_all_three_figures_are_not_on_it_and_keep_no_other_off(tmp_path, status):
    random = {"weights": "random"}
    assert on_front(
        tmp_path,
        [
            cell("base", 3e9, 100.0, 0.85),
            cell("failed", 1e9, 900.0, 0.99, status=status),
            cell("random", 1e9, 900.0, 0.99, parameters=random),
            record("unscored", measures=training(1e9, 900.0, 0.1)),
        ],
    ) == {"base"}


def test_a_cell_with_the_settings_of_another_and_other_seeds_takes_no_part(tmp_path):
    again = cell("again", 1e9, 900.0, 0.99, parameters={"seed_offset": 1000})
    assert on_front(tmp_path, [cell("base", 3e9, 100.0, 0.85), again]) == {"base"}


def test_a_seed_offset_alone_makes_no_twin(tmp_path):
    other = cell("other", 1e9, 900.0, 0.99, parameters={"seed_offset": 1000, "lora_r": 2})
    assert on_front(tmp_path, [cell("base", 3e9, 100.0, 0.85), other]) == {"other"}


def test_on_many_cells_it_agrees_with_the_definition(tmp_path):
    generator = np.random.default_rng(0)
    figures = generator.integers(1, 30, (700, 3))
    records = [cell(f"c{number}", *map(float, row[:2]), row[2] / 100) for number, row in enumerate(figures)]
    expected = {
        f"c{number}"
        for number, (peak, speed, accuracy) in enumerate(figures)
        if not any(
            p <= peak and s >= speed and a >= accuracy and (p, s, a) != (peak, speed, accuracy) for p, s, a in figures
        )
    }
    assert on_front(tmp_path, records) == expected
