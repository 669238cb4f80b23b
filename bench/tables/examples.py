"""What runs scored, example by example, from the Parquet files beside their records."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.protocol import EXAMPLES
from bench.run.store import evidence_name
from bench.tables.figures import listed

ASKED = ("index", "label", "label_tokens_count")
COLUMNS = (*ASKED, "predicted_before", "predicted_after", "log_likelihood_after")

# A run's columns.
Answers = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Examples:
    """What runs said to their test examples, which are the same for all of them.

    rows: [runs] their rows in the frame. labels: all labels of the task. truth, tokens_count: [examples] the number of
    the example's label, and that label's tokens. predicted_before and predicted_after: [runs, examples] numbers of
    labels. loss_after: [runs, examples] nats of the true label after training, summed over its tokens.
    """

    rows: np.ndarray
    labels: tuple[str, ...]
    truth: np.ndarray
    tokens_count: np.ndarray
    predicted_before: np.ndarray
    predicted_after: np.ndarray
    loss_after: np.ndarray


def load_examples(runs: pd.DataFrame) -> tuple[tuple[Examples, ...], tuple[str, ...]]:
    """Read the examples of runs, a frame of `load_results` with a RangeIndex: an `Examples` for each set of examples.

    Runs whose models part labels into other tokens are in one of their own. The second is a sentence on each kind of
    file that cannot be used: missing (where other runs have theirs), torn, or of another run than the record tells.
    """
    with_folder = {result for result in runs["result"].unique() if (Path(result) / EXAMPLES).is_dir()}
    scored = runs[
        (runs["status"] == "ok")
        & runs["accuracy_after"].notna()
        & (runs["weights"] != "random")
        & runs["result"].isin(with_folder)
    ]
    by_examples: dict[tuple[Any, ...], list[tuple[int, Answers]]] = defaultdict(list)
    problems: dict[str, list[str]] = defaultdict(list)
    names = scored[["result", "id", "key", "seed", "repeat", "examples_sha256"]]
    for row, result, id_, key, seed, repeat, sha256 in names.itertuples(name=None):
        path = Path(result) / EXAMPLES / f"{evidence_name(key, seed, repeat)}.parquet"
        try:
            labels, answers = _read(path, sha256)
            asked = (labels, *(answers[name].tobytes() for name in ASKED))
            by_examples[asked].append((row, answers))
        except FileNotFoundError:
            problems["is missing"].append(f"{id_} s{seed}")
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            problems[f"cannot be used ({_line(error)})"].append(f"{id_} s{seed}")
    sentences = [
        f"The file of examples {what}: {listed(names)}. These runs are not in the confusions, and intervals take what "
        "test examples add from other seeds, if there are any."
        for what, names in problems.items()
        if by_examples or what != "is missing"
    ]
    return tuple(_stacked(asked[0], found) for asked, found in by_examples.items()), tuple(sentences)


def _read(path: Path, sha256: Any) -> tuple[tuple[str, ...], Answers]:
    """Read a run's labels and its columns, in which labels are numbers."""
    content = path.read_bytes()
    if isinstance(sha256, str) and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("it is not the one that its record was written with")
    table = pq.read_table(io.BytesIO(content))
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ValueError(f"it has no column {missing[0]}")
    if not table.num_rows:
        raise ValueError("it has no rows")
    if b"labels" not in (table.schema.metadata or {}):
        raise ValueError("it does not tell the labels")
    labels = tuple(json.loads(table.schema.metadata[b"labels"]))
    number_of = {label: number for number, label in enumerate(labels)}
    answers = {name: _numbers(table[name].combine_chunks(), number_of) for name in COLUMNS}
    if lost := [name for name, values in answers.items() if not np.isfinite(values).all()]:
        raise ValueError(f"its {lost[0]} is not finite everywhere")
    return labels, answers


def _numbers(column: pa.Array, number_of: Mapping[str, int]) -> np.ndarray:
    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    if not pa.types.is_dictionary(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if unknown := [label for label in column.dictionary.to_pylist() if label not in number_of]:
        raise ValueError(f"it has a label {unknown[0]!r} that the task has not")
    numbers = np.array([number_of[label] for label in column.dictionary.to_pylist()], dtype=np.int64)
    return np.asarray(numbers[column.indices.to_numpy(zero_copy_only=False)])


def _stacked(labels: tuple[str, ...], runs: list[tuple[int, Answers]]) -> Examples:
    asked = runs[0][1]

    def stacked(name: str) -> np.ndarray:
        return np.stack([answers[name] for _, answers in runs])

    return Examples(
        rows=np.array([row for row, _ in runs]),
        labels=labels,
        truth=asked["label"],
        tokens_count=asked["label_tokens_count"],
        predicted_before=stacked("predicted_before"),
        predicted_after=stacked("predicted_after"),
        loss_after=-stacked("log_likelihood_after"),
    )


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
