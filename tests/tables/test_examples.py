from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bench.cell.evidence import write_examples
from bench.cell.scoring import Scores
from bench.cell.tasks import Example, Task
from bench.protocol import EXAMPLES
from bench.run.store import evidence_name
from bench.tables.examples import load_examples
from bench.tables.load import first_runs, load_results

from .evidences import BASELINE, LABELS, SimulatedCell, evidence, simulated
from .examples import record, write_result

CELLS = (BASELINE, SimulatedCell("nf4"))


def loaded(folder):
    return load_examples(first_runs(load_results(folder)).reset_index(drop=True))


def path_of(folder, cell=CELLS[1], seed=0):
    return folder / EXAMPLES / f"{evidence_name(cell.key, seed, 0)}.parquet"


def rewrite(path, change):
    """Write a file again with another table; the record keeps its hash, so drop that from the records."""
    pq.write_table(change(pq.read_table(path)), path)
    records = path.parents[1] / "records.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    for line in lines:
        del line["environment"]["examples_sha256"]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_a_cell_writes_is_read_back(tmp_path):
    labels = ("a", "b", "c")
    task = Task("t", labels, (), tuple(Example(10 + n, f"text {n}", label) for n, label in enumerate("abca")))
    before, after = (
        Scores(np.random.default_rng(n).normal(-5, 1, (4, 3)).astype(np.float32), np.array([1, 2, 3])) for n in (0, 1)
    )
    entry = record("cell", measures={"accuracy_after": 0.5})
    hashed = write_examples(tmp_path / "r", evidence_name(entry["key"], 0, 0), task, before, after)
    entry["environment"] = {**entry["environment"], **hashed}
    (found,), doubts = loaded(write_result(tmp_path / "r", [entry]))
    assert doubts == ()
    assert (found.rows.tolist(), found.labels) == ([0], labels)
    assert found.truth.tolist() == [0, 1, 2, 0]
    assert found.tokens_count.tolist() == [1, 2, 3, 1]
    assert found.predicted_before.tolist() == [before.log_likelihoods.argmax(axis=1).tolist()]
    assert found.predicted_after.tolist() == [after.log_likelihoods.argmax(axis=1).tolist()]
    assert found.loss_after[0] == pytest.approx(-after.log_likelihoods[range(4), [0, 1, 2, 0]])


def test_files_and_memory_hold_the_same(tmp_path):
    folder = simulated(tmp_path / "r", CELLS, examples=30, random_seed=7)
    (read,), doubts = loaded(folder)
    (kept,) = evidence(CELLS, examples=30, random_seed=7).examples
    assert doubts == ()
    for name in ("rows", "truth", "tokens_count", "predicted_before", "predicted_after"):
        np.testing.assert_array_equal(getattr(read, name), getattr(kept, name))
    np.testing.assert_allclose(read.loss_after, kept.loss_after, rtol=1e-6)
    assert read.labels == LABELS


def test_a_result_without_any_file_has_no_examples_and_no_doubt(tmp_path):
    assert loaded(simulated(tmp_path / "r", CELLS, examples=30, files=False)) == ((), ())
    folder = simulated(tmp_path / "empty", CELLS, examples=30, files=False)
    (folder / EXAMPLES).mkdir()
    assert loaded(folder) == ((), ())


def test_a_missing_file_is_named_with_its_seed(tmp_path):
    folder = simulated(tmp_path / "r", CELLS, examples=30)
    path_of(folder, seed=1).unlink()
    (found,), (doubt,) = loaded(folder)
    assert len(found.rows) == 5
    assert doubt == (
        "The file of examples is missing: nf4 s1. These runs are not in the confusions, and intervals take what test "
        "examples add from other seeds, if there are any."
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is not the one that its record was written with"),
        (b"PAR1 torn", "it is not the one that its record was written with"),
    ],
)
def test_a_file_that_is_not_its_records_is_not_used(tmp_path, content, why):
    folder = simulated(tmp_path / "r", CELLS, examples=30)
    path_of(folder).write_bytes(content)
    (found,), (doubt,) = loaded(folder)
    assert len(found.rows) == 5
    assert f"cannot be used ({why}): nf4 s0." in doubt


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda table: table.drop_columns("label"), "it has no column label"),
        (lambda table: table.slice(0, 0), "it has no rows"),
        (lambda table: table.replace_schema_metadata({}), "it does not tell the labels"),
        (lambda table: table.replace_schema_metadata({"labels": '["other"]'}),
         "it has a label 'card_arrival' that the task has not"),
    ],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_not_used(tmp_path, change, why):
    folder = simulated(tmp_path / "r", CELLS, examples=30)
    rewrite(path_of(folder), change)
    (found,), (doubt,) = loaded(folder)
    assert len(found.rows) == 5
    assert f"cannot be used ({why}): nf4 s0." in doubt


def test_a_torn_file_without_a_hash_is_not_used(tmp_path):
    folder = simulated(tmp_path / "r", CELLS, examples=30)
    rewrite(path_of(folder), lambda table: table)
    path_of(folder).write_bytes(path_of(folder).read_bytes()[:-40])
    _, (doubt,) = loaded(folder)
    assert "cannot be used (" in doubt
    assert str(Path(folder)) not in doubt


def test_labels_need_no_dictionary(tmp_path):
    folder = simulated(tmp_path / "r", CELLS, examples=30)
    (before,), _ = loaded(folder)
    rewrite(path_of(folder, CELLS[0]), lambda table: table.set_column(1, "label", table["label"].cast("string")))
    (found,), doubts = loaded(folder)
    assert doubts == ()
    np.testing.assert_array_equal(found.truth, before.truth)


def test_runs_that_scored_other_examples_are_kept_apart(tmp_path):
    folder = simulated(tmp_path / "r", CELLS, examples=30)
    for seed in range(3):
        pq.write_table(pq.read_table(path_of(folder, seed=seed)).slice(5), path_of(folder, seed=seed))
    rewrite(path_of(folder), lambda table: table)
    first, second = loaded(folder)[0]
    assert (first.rows.tolist(), first.predicted_after.shape) == ([0, 1, 2], (3, 30))
    assert (second.rows.tolist(), second.predicted_after.shape) == ([3, 4, 5], (3, 25))


def test_the_baselines_second_run_is_not_among_them(tmp_path):
    (found,), _ = loaded(simulated(tmp_path / "r", CELLS, examples=30, sentinels=True))
    assert len(found.rows) == 6
