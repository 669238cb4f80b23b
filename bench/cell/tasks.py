"""Read a task: texts with one label each, in a training and a test part."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from bench.cell.failures import Invalid
from bench.matrix.tasks import FILES, PARTS, TASKS, KnownTask

TEXT_COLUMNS = ("text",)
LABEL_COLUMNS = ("label_text", "label", "category", "intent")  # the hub's own `label` is a number


@dataclass(frozen=True)
class Example:
    """A text and its label; `index` is its row in the file, the same in every cell, and pairs results."""

    index: int
    text: str
    label: str


@dataclass(frozen=True)
class Task:
    """A classification task. `labels` are those of both parts, sorted; `sha256` covers every text and label used."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for example in (*self.train, *self.test):
            digest.update(f"{example.index}\0{example.text}\0{example.label}\0".encode())
        return digest.hexdigest()

    @property
    def truth(self) -> np.ndarray:
        """The number of each test example's own label among `labels`, int64 [examples]."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        return np.array([numbers[example.label] for example in self.test], dtype=np.int64)


def load_task(
    name: str, data_dir: Path | None, train_examples: int | str = "all", eval_examples: int | str = "all"
) -> Task:
    """Load a task by its name or folder, cut to a fixed stratified subset of each part where asked.

    A name is looked for in the package, then under `data_dir` (or `QLORA_BENCH_DATA`), then on the hub.

    Raises:
        Invalid: nothing is found, a file cannot be read, or it has fewer examples than asked for.
    """
    train, test = _read(name, data_dir or _environment_dir())
    labels = tuple(sorted({example.label for example in (*train, *test)}))
    if len(labels) < 2:
        raise Invalid(f"task {name!r} has one label only, {labels[0]!r}", "a task needs at least two")
    return Task(
        name, labels, subset(train, train_examples, "train_examples"), subset(test, eval_examples, "eval_examples")
    )


def is_at_hand(name: str, data_dir: Path | None) -> bool:
    """Tell whether a task can be read without the hub."""
    folder = data_dir or _environment_dir()
    return name not in TASKS or TASKS[name].shipped or (folder is not None and (folder / name).is_dir())


def subset(examples: tuple[Example, ...], count: int | str, parameter: str) -> tuple[Example, ...]:
    """Return `count` examples whose labels have the shares they have in all of them; the same ones every time.

    Examples of a label are put in a fixed random order and take the quantiles (i + 1/2) / n of it; the lowest `count`
    quantiles over all labels are kept, in the order of the file.

    Raises:
        Invalid: there are fewer than `count`.
    """
    if not isinstance(count, int):
        return examples
    if count > len(examples):
        raise Invalid(f"{parameter}: {count} asked for, and the task has {len(examples)}", "write all")
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_label[example.label].append(example)
    order = random.Random(0)  # noqa: S311
    ranked: list[tuple[float, float, Example]] = []
    for label in sorted(by_label):
        group = by_label[label]
        order.shuffle(group)
        ranked += [((rank + 0.5) / len(group), order.random(), example) for rank, example in enumerate(group)]
    chosen = sorted(ranked, key=lambda row: row[:2])[:count]
    return tuple(sorted((example for *_, example in chosen), key=lambda example: example.index))


# Reading --------------------------------------------------------------------------------------------------------------


def _environment_dir() -> Path | None:
    return Path(folder) if (folder := os.environ.get("QLORA_BENCH_DATA")) else None


def _read(name: str, data_dir: Path | None) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    if name not in TASKS:
        return _read_folder(Path(name).expanduser())
    if TASKS[name].shipped:
        with resources.as_file(resources.files("bench.cell") / "data" / name) as folder:
            return _read_folder(folder)
    if data_dir and is_at_hand(name, data_dir):
        return _read_folder(data_dir / name)
    return _read_hub(TASKS[name])


def _read_folder(folder: Path) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    train, test = (read_csv(folder / file) for file in FILES)
    return train, test


def read_csv(path: Path) -> tuple[Example, ...]:
    """Read a CSV file (RFC 4180: quoted texts may hold commas, quotes and newlines) with a text and a label column.

    Raises:
        Invalid: the file, a column or a label is missing, or the file is not UTF-8.
    """
    csv.field_size_limit(2**31 - 1)  # a text may be long; it is cut where it is tokenized
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        text, label = (_column(path, columns, names) for names in (TEXT_COLUMNS, LABEL_COLUMNS))
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise Invalid(f"{path}:{reader.line_num + 1}: {error}", "write it as CSV, as spreadsheets export it") from error
    for line, row in rows:
        if None in row or None in row.values():
            raise Invalid(
                f"{path}:{line}: a row with another number of fields than the header's {len(columns)}",
                "put a text that holds commas or newlines in double quotes, and write a double quote in it twice",
            )
        if not row[label].strip():
            raise Invalid(f"{path}:{line}: a row without a {label}", "fill it in")
    return _examples(str(path), ((row[text], row[label]) for _, row in rows))


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise Invalid(f"{path} does not exist", "a task is a folder with train.csv and test.csv") from error
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error}", "a task is a folder with train.csv and test.csv") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Invalid(f"{path}:{line}: not UTF-8", "save the file as UTF-8") from error


def _column(path: Path, columns: Iterable[str], accepted: tuple[str, ...]) -> str:
    for name in accepted:
        if name in columns:
            return name
    raise Invalid(
        f"{path}:1: no column {' or '.join(accepted)}; it has {', '.join(map(repr, columns)) or 'none'}",
        "the first line names the columns: text,label",
    )


def _read_hub(task: KnownTask) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    try:
        import datasets

        train, test = (
            _examples(
                part, ((row["text"], row["label_text"]) for row in datasets.load_dataset(task.hub_id, split=part))
            )
            for part in PARTS
        )
    except Exception as error:
        raise Invalid(
            f"task {task.name!r} is not in a data folder, and the hub did not give {task.hub_id}: {error}",
            f"pass --data DIR (or set QLORA_BENCH_DATA) where DIR/{task.name}/ holds train.csv and test.csv",
        ) from error
    return train, test


def _examples(part: str, rows: Iterable[tuple[str, str]]) -> tuple[Example, ...]:
    examples = tuple(Example(index, text, label.strip()) for index, (text, label) in enumerate(rows))
    if not examples:
        raise Invalid(f"{part} holds no examples", "add rows below the header")
    return examples
