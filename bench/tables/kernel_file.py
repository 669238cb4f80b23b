"""The file of the kernel benchmarks: pytest-benchmark's own JSON, and in `extra_info` what was timed."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.errors import BenchError, Location, Problem

KERNELS = "kernels.json"
# As it is, and as it is kept where space counts.
NAMES = (KERNELS, f"{KERNELS}.gz")
SCHEMA = 1  # of what is in `extra_info`, `matrix` and `refused`; files without it are of schema 1
MOST_PROBLEMS = 5  # told of one damaged file

_GZIP = b"\x1f\x8b"
_OURS = f"give the {KERNELS} that nox -s kernels writes"
_ANEW = "make it anew: nox -s kernels"


class _Part(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, protected_namespaces=())


class Settings(_Part):
    operation: str
    model: str
    layer: str
    quant_type: str
    double_quant: bool
    compute_dtype: str
    rows: int | None
    lora_r: int | None

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if self.operation.startswith("forward") and (self.rows is None or self.lora_r is None):
            raise ValueError("a forward has rows and lora_r")
        return self


class Measured(_Part):
    """What a case says beside its times; `load_kernels` says what each figure is."""

    id: str
    parameters: Settings
    out_features: int
    in_features: int
    flops_count: int = Field(ge=0)
    moved_bytes: int = Field(gt=0)
    stored_bytes: int
    scratch_bytes: int | None
    fused: bool | None
    launches_count: int
    launch: Literal["cuda_graph", "queued", "eager", "host"]
    rotated_bytes: int
    cache_bytes: int | None
    weight_error: float | None
    smollm2_weight_error: float | None
    warnings: list[str]


class Peak(_Part):
    """`repeat` is 0 at the start of the session, and 1 at its end."""

    peak: Literal["copy", "matmul"]
    compute_dtype: str
    moved_bytes: int = Field(gt=0)
    flops_count: int
    repeat: Literal[0, 1]


class Stats(_Part):
    """Seconds of one launch, over `rounds` rounds."""

    median: float = Field(gt=0)
    q1: float
    q3: float
    iqr: float = Field(ge=0)
    min: float
    rounds: int = Field(ge=1)


class Case(_Part):
    extra_info: Measured
    stats: Stats


class TimedPeak(_Part):
    extra_info: Peak
    stats: Stats


class Refused(_Part):
    id: str
    parameters: Settings
    status: Literal["invalid", "oom", "crashed"]
    message: str
    hint: str | None


class Machine(_Part):
    model_config = ConfigDict(extra="allow")

    gpu: str | None
    cpu: Any = None


class Matrix(_Part):
    name: str
    about: str


class Document(_Part):
    """A whole file, its benchmarks parted: of cases, of the machine's peaks, and the number of any others."""

    machine_info: Machine
    datetime: str
    matrix: Matrix
    cases: list[Case]
    peaks: list[TimedPeak]
    refused: list[Refused]
    foreign_count: int


def kernels_files(path: str | os.PathLike[str]) -> list[Path]:
    """List the files that `path` means: itself, the one in that folder, or all those below it; there may be none."""
    start = Path(path)
    if start.is_file():
        return [start] if start.name.endswith((".json", ".json.gz")) else []
    if found := file_in(start):
        return [found]
    folders = {found.parent for name in NAMES for found in start.rglob(name)}
    return [file for folder in sorted(folders) if (file := file_in(folder))]


def kernels_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that `path` means: itself, or the one in that folder.

    Raises:
        BenchError: there is none.
    """
    start = Path(path)
    if start.is_file():
        return start
    if found := file_in(start):
        return found
    what = f"no {KERNELS} here" if start.is_dir() else "the result of kernel benchmarks does not exist"
    fix = "run nox -s kernels first, or give the folder that its results are in"
    raise BenchError([Problem(what, fix, Location(str(start)))])


def file_in(folder: Path) -> Path | None:
    """Return the file of kernel benchmarks that lies in a folder, if there is one."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read(file: Path) -> Document:
    """Read a file, gzipped or not.

    Raises:
        BenchError: it cannot be read, is not of the kernel benchmarks, or is damaged.
    """
    where = Location(str(file))
    content = _json(file, where)
    if not isinstance(content, dict) or not isinstance(content.get("benchmarks"), list) or "matrix" not in content:
        raise BenchError([Problem("is not of the kernel benchmarks: it lacks benchmarks or matrix", _OURS, where)])
    if content.get("schema", SCHEMA) != SCHEMA:
        what = f"is of schema {content['schema']}, and this program reads {SCHEMA}"
        raise BenchError([Problem(what, "install the version that reads it", where)])
    parted: dict[str, list[Any]] = {"cases": [], "peaks": [], "foreign": []}
    for benchmark in content["benchmarks"]:
        parted[_kind(benchmark)].append(benchmark)
    whole = {"refused": [], **content, **parted, "foreign_count": len(parted["foreign"])}
    try:
        document = Document.model_validate(whole)
    except ValidationError as error:
        problems = [
            Problem(f"is damaged: {'.'.join(map(str, one['loc']))}: {one['msg']}", _ANEW, where)
            for one in error.errors()[:MOST_PROBLEMS]
        ]
        raise BenchError(problems) from error
    if not document.cases and not document.refused:
        raise BenchError([Problem("holds no kernel benchmark", _ANEW, where)])
    return document


def _kind(benchmark: Any) -> str:
    info = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
    if not isinstance(info, dict):
        return "foreign"
    return "peaks" if "peak" in info else "cases" if "id" in info else "foreign"


def _json(file: Path, where: Location) -> Any:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BenchError([Problem(f"cannot be read: {error.strerror}", "see to its permissions", where)]) from error
    try:
        return json.loads(gzip.decompress(data) if data.startswith(_GZIP) else data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BenchError([Problem("is damaged or cut short: it cannot be decompressed", _ANEW, where)]) from error
    except (ValueError, RecursionError) as error:
        raise BenchError([Problem(f"is no JSON: {error}", _ANEW, where)]) from error
