"""Records to a tidy DataFrame: one row for each result, cell and seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import BenchError, Location, Problem
from bench.matrix.parameters import LATER, Parameters
from bench.matrix.wording import counted
from bench.protocol import MEASURES
from bench.run.records import Record
from bench.run.store import PLAN, RECORDS, Planned, read_plan, read_records
from bench.tables.figures import listed

MEASURE_NAMES = tuple(measure.name for measure in MEASURES)
PARAMETER_NAMES = tuple(Parameters.model_fields)
RECORD_NAMES = ("matrix", "id", "key", "seed", "repeat", "attempt", "status", "phase", "message", "hint")
RUN_NAMES = ("position", "protocol", "started_at", "wall_s", "slot", "last_peak_allocated_bytes", "warnings")
ENVIRONMENT_NAMES = (
    "gpu_name",
    "gpu_memory_bytes",
    "driver_version",
    "cuda_version",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "python",
    "qlora_bench",
    "cpu",
    "execution_used",
    "prediction_note",
    "task_sha256",
    "examples_sha256",
)
COLUMNS = (
    *RECORD_NAMES, "is_baseline", *PARAMETER_NAMES, *MEASURE_NAMES, *RUN_NAMES, *ENVIRONMENT_NAMES, "result"
)  # fmt: skip
# Records from before these parameters were made with what is their default.
LATER_DEFAULTS = {name: Parameters.model_fields[name].default for name in LATER}
NUMBERS = frozenset(MEASURE_NAMES) | {"wall_s", "last_peak_allocated_bytes", "gpu_memory_bytes"}


def load_results(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a result folder, a file of records, or every result below a folder, into a tidy DataFrame.

    A row is the last attempt at one cell with one seed; where the baseline ran once more at the end of a seed's block,
    that is a row of its own, with `repeat` 1 (`first_runs` leaves these out). Rows stand in the order of the plan,
    whatever the order in which the runs ended: the baseline, then the other cells as the matrix has them, a cell's
    seeds by their number and its repeats after them.
    Cells that the matrix had in an earlier version only are left out, and an id is what the matrix calls its cell now.
    Of a result without a plan every cell is there, in the order in which they first appeared.
    Columns: `matrix, id, key, seed, repeat, attempt, status, phase, message, hint, is_baseline`, every parameter, every
    measure of `bench.protocol.MEASURES` (float64, NaN where there is none, units in the names), when and where it ran
    (`position`: its place, from 1, in its seed's block of the plan that it was run from; `started_at` tells the order
    in which runs began), the environment, and `result`, the folder. Sentences on records that were left out, could not
    be read, or are yet to come are in `attrs["warnings"]`; the matrix's pairs of labels that are easily confused, as
    tuples of two, in `attrs["watch_pairs"]`.
    A result that has no record yet gives no row.

    Raises:
        BenchError: there is no result at `path`, it cannot be read, or it was written by a newer version.
    """
    records: list[tuple[Path, str | None, Record]] = []
    warnings: list[str] = []
    pairs: list[tuple[str, str]] = []
    for folder in result_folders(path):
        try:
            contents = read_records(folder / RECORDS)
        except OSError as error:
            raise BenchError(
                f"{folder / RECORDS} cannot be read: {error.strerror}", "see to its permissions"
            ) from error
        planned, doubts = _planned(folder / PLAN)
        last = _last_attempts(contents.records)
        known = last if planned is None else _as_planned(last, planned)
        records += [(folder, planned.baseline if planned else None, record) for record in known]
        warnings += [*contents.warnings, *doubts, *_left_out(len(last) - len(known)), *_not_run(planned, known)]
        pairs += planned.watch_pairs if planned else ()
    frame = _frame(records)
    frame.attrs["warnings"] = warnings
    frame.attrs["watch_pairs"] = tuple(dict.fromkeys(pairs))
    return frame


def first_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out the runs that repeat a baseline to show drift, so that what is left is a row a cell and seed."""
    first: pd.DataFrame = frame[frame["repeat"] == 0].reset_index(drop=True)
    first.attrs = dict(frame.attrs)
    return first


def result_folders(path: str | os.PathLike[str]) -> list[Path]:
    """List the result folders that `path` means: itself, that of a file of records, or all those below it, by name.

    Raises:
        BenchError: there is none.
    """
    start = Path(path)
    if start.is_file() and start.name == RECORDS:
        return [start.parent]
    if not start.is_dir():
        what = "is no folder of results" if start.exists() else "does not exist"
        raise BenchError([Problem(f"the result {what}", f"give a folder that holds {RECORDS}", Location(str(start)))])
    if (start / RECORDS).is_file():
        return [start]
    if folders := sorted(found.parent for found in start.rglob(RECORDS)):
        return folders
    fix = "run a matrix first (qlora-bench run MATRIX), or give the folder that its results are in"
    raise BenchError([Problem(f"no {RECORDS} here or below", fix, Location(str(start)))])


def _planned(path: Path) -> tuple[Planned | None, list[str]]:
    try:
        planned = read_plan(path)
        return planned, [] if planned else [
            f"{path} is missing, so the baseline is unknown; running the matrix writes it."
        ]
    except (OSError, ValueError) as error:
        return None, [f"{path} cannot be read, so the baseline is unknown: {error}"]


def _last_attempts(records: Iterable[Record]) -> list[Record]:
    # A dictionary keeps the place of the first attempt, and the value of the last.
    return list({record.job: record for record in records}.values())


def _as_planned(records: Iterable[Record], planned: Planned) -> list[Record]:
    in_order = sorted(planned.ids.items(), key=lambda cell: cell[1] != planned.baseline)
    place = {key: number for number, (key, _) in enumerate(in_order)}
    known = [replace(record, id=planned.ids[record.key]) for record in records if record.key in place]
    return sorted(known, key=lambda record: (place[record.key], record.repeat, record.seed))


def _left_out(count: int) -> list[str]:
    verb = "is" if count == 1 else "are"
    return [f"{counted(count, 'record')} of an earlier version of the matrix {verb} not shown."] if count else []


def _not_run(planned: Planned | None, known: Iterable[Record]) -> list[str]:
    run = {record.key for record in known}
    ids = [id_ for key, id_ in planned.ids.items() if key not in run] if planned and run else []
    return [f"Planned and not run yet: {listed(ids)}."] if ids else []


def _frame(records: Sequence[tuple[Path, str | None, Record]]) -> pd.DataFrame:
    rows = [_flat(*entry) for entry in records]
    names = tuple(dict.fromkeys(COLUMNS) | dict.fromkeys(name for row in rows for name in row))
    columns = zip(*([row.get(name) for name in names] for row in rows), strict=True) if rows else [()] * len(names)
    return pd.DataFrame({name: _column(name, values) for name, values in zip(names, columns, strict=True)})


def _flat(folder: Path, baseline: str | None, record: Record) -> dict[str, Any]:
    return {
        **{name: _plain(value) for name, value in record.environment.items()},
        **LATER_DEFAULTS,
        **{name: _plain(value) for name, value in record.parameters.items()},
        **{name: record.measures.get(name) for name in MEASURE_NAMES},
        **{name: _plain(getattr(record, name)) for name in (*RECORD_NAMES, *RUN_NAMES)},
        "warnings": "\n".join(record.warnings) or None,
        "is_baseline": record.id == baseline,
        "result": str(folder),
    }


def _plain(value: Any) -> Any:
    """Turn lists, such as target modules, into text, so that values compare; and text into what every file can hold."""
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if isinstance(value, dict):
        value = str(value)
    return _text(value) if isinstance(value, str) else value


@lru_cache(maxsize=10_000)  # most texts of a record stand in many
def _text(value: str) -> str:
    # Half a surrogate pair has no UTF-8, and CSV as Python writes it would take a lone \r for the end of a row.
    return value.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")


def _column(name: str, values: Sequence[Any]) -> pd.Series[Any]:
    if name in NUMBERS:
        return pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").astype("float64")
    if name == "is_baseline":
        return pd.Series(values, dtype=bool)
    given = [value for value in values if value is not None]
    if given and all(type(value) is int and abs(value) < 2**63 for value in given):
        return pd.Series(values, dtype="int64" if len(given) == len(values) else "Int64")
    return pd.Series(values, dtype=None if given else object)
