from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from bench.cell.evidence import write_examples, write_layers
from bench.cell.layers import LayerError
from bench.cell.scoring import Scores
from bench.cell.tasks import Example, Task
from bench.protocol import EXAMPLES, LAYERS, LOG_LIKELIHOODS

# A part of a larger test file, so that neither rows nor labels are numbered as their places suggest.
TESTS = (Example(2, "wo?", "où, «là»"), Example(3, "how much?", "fees"), Example(9, "and this?", "fees"))
TASK = Task("t", ("arrival", "fees", "lost", "où, «là»"), (Example(0, "a", "lost"),), TESTS)
LENGTHS = np.array([1, 2, 3, 4])
BEFORE = Scores(np.log(np.array([[1, 2, 3, 4], [5, 1, 2, 2], [1, 7, 1, 1]], dtype=np.float32) / 10), LENGTHS)
AFTER = Scores(np.log(np.array([[1, 1, 1, 7], [1, 1, 1, 1], [2, 4, 2, 2]], dtype=np.float32) / 100), LENGTHS)
ERRORS = (LayerError("model.layers.0.q_proj", 4096, 0.01, 0.1), LayerError("model.layers.0.k_proj", 2048, 0.03, 0.2))


def written(folder: Path, name: str = "nf4") -> tuple[pa.Table, pa.Table]:
    write_examples(folder, name, TASK, BEFORE, AFTER)
    examples, log_likelihoods = (
        parquet.read_table(folder / kind / f"{name}.parquet") for kind in (EXAMPLES, LOG_LIKELIHOODS)
    )
    return examples, log_likelihoods


def test_an_example_is_a_row(tmp_path: Path) -> None:
    examples, _ = written(tmp_path)

    rows = examples.to_pylist()
    assert [row["index"] for row in rows] == [2, 3, 9]
    assert [row["label"] for row in rows] == ["où, «là»", "fees", "fees"]
    assert [row["label_tokens_count"] for row in rows] == [4, 2, 2]
    assert [row["predicted_before"] for row in rows] == ["où, «là»", "arrival", "fees"]
    assert [row["predicted_after"] for row in rows] == ["où, «là»", "arrival", "fees"]
    for when, likelihoods, confidences in (
        ("before", [0.4, 0.1, 0.7], [0.4, 0.5, 0.7]),
        ("after", [0.07, 0.01, 0.04], [0.7, 0.25, 0.4]),
    ):
        np.testing.assert_allclose([row[f"log_likelihood_{when}"] for row in rows], np.log(likelihoods), rtol=1e-6)
        np.testing.assert_allclose([row[f"confidence_{when}"] for row in rows], confidences, rtol=1e-6)


def test_columns_have_the_types_that_readers_count_on(tmp_path: Path) -> None:
    examples, log_likelihoods = written(tmp_path)

    label = pa.dictionary(pa.int32(), pa.string())
    assert dict(zip(examples.schema.names, examples.schema.types, strict=True)) == {
        "index": pa.int32(),
        "label": label,
        "label_tokens_count": pa.int16(),
        "predicted_before": label,
        "predicted_after": label,
        "log_likelihood_before": pa.float32(),
        "log_likelihood_after": pa.float32(),
        "confidence_before": pa.float32(),
        "confidence_after": pa.float32(),
    }
    every = pa.list_(pa.float32(), len(TASK.labels))
    assert log_likelihoods.schema.types == [pa.int32(), every, every]
    assert log_likelihoods.schema.names == ["index", "before", "after"]


@pytest.mark.parametrize("column", ["label", "predicted_before", "predicted_after"])
def test_codes_of_labels_are_their_places_in_the_task(tmp_path: Path, column: str) -> None:
    examples, _ = written(tmp_path)

    for chunk in examples[column].chunks:
        assert tuple(chunk.dictionary.to_pylist()) == TASK.labels


def test_log_likelihoods_come_back_to_the_bit(tmp_path: Path) -> None:
    _, log_likelihoods = written(tmp_path)

    assert log_likelihoods["index"].to_pylist() == [2, 3, 9]
    for when, scores in (("before", BEFORE), ("after", AFTER)):
        np.testing.assert_array_equal(
            np.array(log_likelihoods[when].to_pylist(), dtype=np.float32), scores.log_likelihoods
        )


def test_both_files_say_what_they_are_of(tmp_path: Path) -> None:
    for table in written(tmp_path):
        told = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        assert tuple(json.loads(told["labels"])) == TASK.labels
        assert (told["task_sha256"], told["schema"]) == (TASK.sha256, "1")


def test_the_hash_is_that_of_the_file_and_the_same_every_time(tmp_path: Path) -> None:
    told = [write_examples(tmp_path / folder, "nf4", TASK, BEFORE, AFTER) for folder in ("one", "other")]

    file = tmp_path / "one" / EXAMPLES / "nf4.parquet"
    assert told[0] == told[1] == {"examples_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert write_examples(tmp_path, "nf4", TASK, AFTER, BEFORE) != told[0]


def test_an_older_file_is_replaced_and_no_draft_stays(tmp_path: Path) -> None:
    write_examples(tmp_path, "nf4-s0", TASK, AFTER, AFTER)
    write_layers(tmp_path, "nf4-s0", ())
    write_layers(tmp_path, "nf4-s0", ERRORS)

    examples, _ = written(tmp_path, "nf4-s0")

    assert examples["confidence_before"].to_pylist() == pytest.approx([0.4, 0.5, 0.7])
    assert parquet.read_table(tmp_path / LAYERS / "nf4-s0.parquet").num_rows == len(ERRORS)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == [f"{kind}/nf4-s0.parquet" for kind in sorted((EXAMPLES, LAYERS, LOG_LIKELIHOODS))]


def test_where_a_file_cannot_be_replaced_no_draft_stays(tmp_path: Path) -> None:
    in_the_way = tmp_path / LAYERS / "nf4.parquet"
    (in_the_way / "folder").mkdir(parents=True)

    with pytest.raises(OSError, match=r"nf4\.parquet"):
        write_layers(tmp_path, "nf4", ERRORS)

    assert list(in_the_way.parent.iterdir()) == [in_the_way]


@pytest.mark.parametrize("errors", [ERRORS, ()], ids=["some", "none"])
def test_a_layer_is_a_row(tmp_path: Path, errors: tuple[LayerError, ...]) -> None:
    write_layers(tmp_path, "nf4", errors)

    table = parquet.read_table(tmp_path / LAYERS / "nf4.parquet")
    assert table.to_pylist() == [
        {
            "module": error.module,
            "weights_count": error.weights_count,
            "rmse": error.rmse,
            "sigma": error.sigma,
            "rmse_per_sigma": error.rmse / error.sigma,
        }
        for error in errors
    ]
    assert table.schema.types == [pa.string(), pa.int64(), pa.float64(), pa.float64(), pa.float64()]
    assert table.schema.metadata[b"schema"] == b"1"


def test_the_examples_of_a_large_task_take_little_room(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = tuple(f"what_a_customer_may_ask_{number:02}" for number in range(77))
    task = Task("t", labels, TESTS, tuple(Example(row, "", labels[row % 77]) for row in range(3080)))
    before, after = (
        Scores(-random.gamma(6, 3, (3080, 77)).astype(np.float32), np.arange(3, 80)) for _ in ("before", "after")
    )

    write_examples(tmp_path, "nf4", task, before, after)

    assert (tmp_path / EXAMPLES / "nf4.parquet").stat().st_size < 80_000
    assert (tmp_path / LOG_LIKELIHOODS / "nf4.parquet").stat().st_size < 3080 * 77 * 2 * 4
