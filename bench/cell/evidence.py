"""Keep beside a record what its figures are made of: a row an example, and a row a layer, as Parquet.

The record holds the hash of the file in `examples`, by which a reader can tell that it is the record's own. The files
in `log_likelihoods` and `layers` have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from bench.cell import files
from bench.cell.calibration import confidences
from bench.cell.layers import LayerError
from bench.cell.scoring import Scores
from bench.cell.tasks import Task
from bench.protocol import EXAMPLES, LAYERS, LOG_LIKELIHOODS

SCHEMA = "1"

# By type: codes of a dictionary pack into a few bits; the bytes of floats compress better sorted by their significance.
ENCODINGS = {pa.float32(): "BYTE_STREAM_SPLIT", pa.float64(): "BYTE_STREAM_SPLIT", pa.int32(): "DELTA_BINARY_PACKED"}


def write_examples(folder: Path, name: str, task: Task, before: Scores, after: Scores) -> dict[str, str]:
    """Write the scores of a task's test examples, a row each in their order, and return the hash of the first file.

    `examples/<name>.parquet` has `index`, `label`, `label_tokens_count`, and before and after training `predicted`,
    `log_likelihood` (of the true label, summed over its tokens, nats) and `confidence` (of the predicted label, by a
    softmax over the labels). `log_likelihoods/<name>.parquet` has `index` and the log-likelihoods of all labels,
    `before` and `after`. Labels are in the task's order, which the metadata of both files holds.

    Raises:
        OSError: a file cannot be written.
        ArrowException: the scores cannot be put into Parquet.
    """
    metadata = {"labels": json.dumps(task.labels, ensure_ascii=False), "task_sha256": task.sha256}
    truth = task.truth
    rows = np.arange(len(truth))
    index = pa.array([example.index for example in task.test], pa.int32())
    scores = {"before": before.log_likelihoods, "after": after.log_likelihoods}
    examples = {
        "index": index,
        "label": _labels(truth, task),
        "label_tokens_count": pa.array(before.label_lengths[truth].astype(np.int16)),
        **{f"predicted_{when}": _labels(found.argmax(axis=1), task) for when, found in scores.items()},
        **{f"log_likelihood_{when}": pa.array(found[rows, truth]) for when, found in scores.items()},
        **{f"confidence_{when}": pa.array(confidences(found).astype(np.float32)) for when, found in scores.items()},
    }
    every_label = {
        when: pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
        for when, found in scores.items()
    }
    content = _parquet(examples, metadata)
    files.put(folder / EXAMPLES / f"{name}.parquet", content)
    files.put(folder / LOG_LIKELIHOODS / f"{name}.parquet", _parquet({"index": index, **every_label}, metadata))
    return {"examples_sha256": hashlib.sha256(content).hexdigest()}


def write_layers(folder: Path, name: str, errors: Sequence[LayerError]) -> None:
    """Write `layers/<name>.parquet`, a row a layer in the model's order: the fields of `LayerError` and its ratio.

    Raises:
        OSError: the file cannot be written.
        ArrowException: the errors cannot be put into Parquet.
    """
    columns = {
        "module": pa.array([error.module for error in errors], pa.string()),
        "weights_count": pa.array([error.weights_count for error in errors], pa.int64()),
        **{
            column: pa.array([getattr(error, column) for error in errors], pa.float64())
            for column in ("rmse", "sigma", "rmse_per_sigma")
        },
    }
    files.put(folder / LAYERS / f"{name}.parquet", _parquet(columns, {}))


def _labels(numbers: np.ndarray, task: Task) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), pa.array(task.labels, pa.string()))


def _parquet(columns: Mapping[str, pa.Array], metadata: Mapping[str, str]) -> bytes:
    table = pa.table(dict(columns), metadata={**metadata, "schema": SCHEMA})
    sink = pa.BufferOutputStream()
    parquet.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[field.name for field in table.schema if pa.types.is_dictionary(field.type)],
        column_encoding=dict(_encodings(table.schema)),
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _encodings(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    for field in schema:
        is_list = pa.types.is_fixed_size_list(field.type)
        path, kind = (f"{field.name}.list.element", field.type.value_type) if is_list else (field.name, field.type)
        if kind in ENCODINGS:
            yield path, ENCODINGS[kind]
