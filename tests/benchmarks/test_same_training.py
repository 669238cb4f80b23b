from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import ttest_1samp

from bench.errors import BenchError
from bench.matrix.expand import load_matrix
from bench.run.records import Record
from bench.run.store import append_record
from benchmarks.same_training import BLOCK_STEPS, command, mean_interval, pairs
from tests.run.examples import record

MATRIX = Path(__file__).parents[2] / "benchmarks" / "same_training.yaml"
LOSSES = tuple(3.0 * 0.99**step for step in range(100))


def made(launch: str, losses: tuple[float, ...] = LOSSES, accuracy: float = 0.75, **parameters: Any) -> Record:
    return record(
        id=f"nf4-execution={launch}",
        key=launch + str(parameters),
        parameters={"execution": launch, "lora_dropout": 0.0, **parameters},
        losses=losses,
        measures={"accuracy_after": accuracy, "eval_examples_count": 1000},
        environment={"execution_used": launch},
    )


def scaled(by: float) -> tuple[float, ...]:
    return tuple(loss * by for loss in LOSSES)


def noisy(seed: int) -> tuple[float, ...]:
    return tuple((np.array(LOSSES) + np.random.default_rng(seed).normal(0, 0.05, len(LOSSES))).tolist())


def test_the_matrix_holds_six_pairs_that_cover_every_base_dropout_and_checkpointing() -> None:
    cells = [cell.parameters for cell in load_matrix(MATRIX).cells]

    kinds = {(cell.quant_type, cell.lora_dropout, cell.gradient_checkpointing) for cell in cells}
    assert len(cells) == 12
    assert len(kinds) == 6
    bases = {(base, dropout) for base in ("nf4", "fp4", "none") for dropout in (0, 0.05)}
    assert {kind[:2] for kind in kinds} == bases
    assert {kind[1:] for kind in kinds} == {(dropout, check) for dropout in (0, 0.05) for check in (False, True)}


def test_the_same_losses_agree() -> None:
    (pair,) = pairs([made("eager"), made("cuda_graph")])

    assert pair.agrees
    assert (pair.cell, pair.steps_count, pair.largest_difference, pair.first_difference) == ("nf4", 100, 0.0, None)
    assert pair.mean_difference == pair.low == pair.high == 0.0


@pytest.mark.parametrize(("by", "agrees"), [(1.0005, True), (1.002, False), (0.998, False)])
def test_without_dropout_every_step_is_to_agree(by: float, agrees: bool) -> None:
    (pair,) = pairs([made("eager"), made("cuda_graph", scaled(by))])

    assert pair.agrees == agrees
    assert pair.largest_difference == pytest.approx(abs(by - 1))
    assert pair.first_difference == 1


def test_with_dropout_the_mean_is_to_agree() -> None:
    (pair,) = pairs([made("eager", noisy(0), lora_dropout=0.05), made("cuda_graph", noisy(1), lora_dropout=0.05)])
    (worse,) = pairs([
        made("eager", noisy(0), lora_dropout=0.05),
        made("cuda_graph", tuple(1.05 * loss for loss in noisy(1)), lora_dropout=0.05),
    ])  # fmt: skip

    assert pair.agrees
    assert pair.largest_difference > 1e-2
    assert not worse.agrees


def test_accuracies_that_differ_beyond_their_interval_do_not_agree() -> None:
    (pair,) = pairs([made("eager"), made("cuda_graph", accuracy=0.70)])

    assert not pair.agrees
    assert pair.accuracy_high < 0


def test_only_cells_that_differ_in_execution_alone_are_pairs() -> None:
    failed = record(**{**vars(made("cuda_graph")), "status": "oom"})
    fell_back = record(**{**vars(made("cuda_graph")), "environment": {"execution_used": "eager"}})

    assert not list(pairs([made("eager"), made("cuda_graph", lora_r=4), failed, fell_back]))


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(0).normal(size=100)

    expected = ttest_1samp(values.reshape(-1, BLOCK_STEPS).mean(axis=1), 0).confidence_interval(0.95)

    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(values[:19]) == (-np.inf, np.inf)


def test_the_command_prints_a_row_a_pair_and_says_by_its_code_whether_all_agree(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    folder.mkdir()
    for entry in (made("eager"), made("cuda_graph")):
        append_record(folder / "records.jsonl", entry)

    good = CliRunner().invoke(command, [str(folder), "--out", str(tmp_path / "out.json")])
    append_record(folder / "records.jsonl", made("eager", lora_r=4))
    append_record(folder / "records.jsonl", made("cuda_graph", scaled(1.1), lora_r=4))
    bad = CliRunner().invoke(command, [str(folder)])

    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "yes" in good.output
    assert json.loads((tmp_path / "out.json").read_text())[0]["agrees"] is True


def test_a_folder_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="there is no"):
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    append_record(tmp_path / "records.jsonl", made("eager"))
    with pytest.raises(BenchError, match="no two cells that differ in execution only"):
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
