"""The table of quantization: what it alone did to a model, before any training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.matrix.wording import counted, listing
from bench.protocol import LAYERS
from bench.run.store import evidence_name
from bench.tables.caption import conditions, warnings_of
from bench.tables.cells import id_text
from bench.tables.comparable import left_out_notes
from bench.tables.evidence import Evidence
from bench.tables.figures import listed, number, number_column, unit_for
from bench.tables.pool import CELL, chosen
from bench.tables.table import MISSING, Column, Row, Table, entries, field, informative
from bench.tables.wilson import half_widths

# What makes a base another one, and what is measured of it.
BASE = ["model", "revision", "quant_type", "double_quant", "compute_dtype", "load_dtype"]
WEIGHTS = ["weight_error", "weight_error_max", "weight_error_layers_count"]
REFERENCE = [
    "label_kl_before", "label_agreement_before",
    "next_token_kl_before", "next_token_agreement_before", "next_token_prompts_count",
]  # fmt: skip
SCORES = ["accuracy_before", "macro_f1_before", "heldout_loss_before", "expected_calibration_error_before"]
FIGURES = [*WEIGHTS, *REFERENCE, *SCORES, "eval_examples_count", "labels_count", "stored_bytes", "footprint_bytes"]
WORST_LAYERS = 3
LAST_DIGITS = 1e-6  # in which scores may differ by the order of additions
MEANING = "A row is a base as loaded, before adapters and training; + 3: three more cells have it and its figures."
WEIGHT_ERROR = (
    "Weight error: RMSE of a layer's dequantized weights over the standard deviation (σ) of the 16-bit ones, mean over "  # noqa: RUF001
    "layers by size, and of the worst layer; 0 where nothing is quantized."
)
LABEL = (
    "Label KL, agree: divergence of the distribution over labels from the 16-bit model's, mean over test examples, and "
    "the share with the same likeliest label."
)
NEXT = "Next-token KL, agree: the same of the token after a prompt, over the whole vocabulary."
ACCURACY = "Accuracy: ± half its 95 % Wilson interval over the test examples."
LOSS = "Held-out loss: nats per label token."
ECE = "ECE: expected calibration error, in 15 bins of confidence."
STORED = (
    "Stored: every tensor of the loaded base, quantization state included. HF footprint: get_memory_footprint(), blind "
    "to that state."
)
WORST = f"Worst layers: the {WORST_LAYERS} with the largest weight error."


def quantization_table(evidence: Evidence) -> Table:
    """Tabulate the bases of a result before training: a row for each that differs in its settings or its figures.

    Cells with random weights, and those that ended before they were scored, have no row.
    """
    scored = evidence.cells[(evidence.cells["weights"] != "random") & evidence.cells["accuracy_before"].notna()]
    rows, layers = _with_layers(evidence, _bases(scored)) if len(scored) else (pd.DataFrame(), [])
    return Table(
        name="quantization",
        title=f"{evidence.runs['matrix'].iloc[0]}: what quantization alone did, before training",
        columns=informative(_columns(rows), rows) if len(rows) else (),
        rows=rows,
        caption=(*conditions(evidence.runs), *_scored(rows)),
        notes=(
            *_without_reference(rows),
            *layers,
            *_without_figures(evidence),
            *_by_seed(evidence.counted),
            *left_out_notes(evidence.runs),
            *warnings_of(evidence.runs),
        ),
    )


def _bases(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each different base, that of its first cell; `cells` are the numbers of all."""
    if cells["weight_error"].notna().any():
        unquantized = cells["quant_type"] == "none"
        cells = cells.assign(**{name: cells[name].mask(unquantized & cells[name].isna(), 0.0) for name in WEIGHTS})
    # Means over other numbers of seeds may differ in their last digits.
    rounded = [name for name in FIGURES if not name.endswith("_bytes")]
    alike = cells[[*BASE, *FIGURES]].astype(dict.fromkeys(rounded, "float32"))
    base = alike.groupby([*BASE, *FIGURES], dropna=False, sort=False).ngroup()
    by_base = cells.assign(cell=cells.index).groupby(base)
    first = by_base[["matrix", *CELL, "is_baseline", *BASE, *FIGURES]].head(1)
    return first.assign(
        cells_count=by_base.size().to_numpy(),
        ids=by_base["id"].agg(",".join).to_numpy(),
        accuracy_before_half_width=half_widths(first["accuracy_before"], first["eval_examples_count"]),
        cells=by_base["cell"].agg(list).to_numpy(),
    ).reset_index(drop=True)


def _with_layers(evidence: Evidence, bases: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Add the worst layers of each base from the first file that can be read, and say where there is none."""
    paths = _layer_files(evidence)
    worst: list[dict[str, object]] = []
    problems: dict[str, list[str]] = defaultdict(list)
    for row in entries(bases):
        # An unquantized base has no layers to compare, and records of an earlier version have no file.
        expected = row["quant_type"] != "none" and row["weight_error"] > 0
        layers, problem = _first_readable(path for cell in row["cells"] for path in paths.get(cell, ()))
        if expected and problem:
            problems[problem].append(str(row["id"]))
        worst.append(
            {
                name: value
                for place, layer in enumerate(layers if expected else (), start=1)
                for name, value in zip(_names(place), layer, strict=True)
            }
        )
    names = [name for place in range(1, WORST_LAYERS + 1) for name in _names(place)]
    told = [f"Worst layers are not known, as their file {what}: {listed(ids)}." for what, ids in problems.items()]
    return bases.drop(columns="cells").join(pd.DataFrame(worst, columns=names, index=bases.index)), told


def _layer_files(evidence: Evidence) -> dict[int, list[Path]]:
    """Map the number of a cell to the files of layers that its runs have."""
    runs = evidence.counted
    there = {path for folder in runs["result"].unique() for path in (Path(folder) / LAYERS).glob("*.parquet")}
    if not there:
        return {}
    found: dict[int, list[Path]] = defaultdict(list)
    numbers = pd.MultiIndex.from_frame(evidence.cells[CELL]).get_indexer(pd.MultiIndex.from_frame(runs[CELL]))
    for cell, folder, key, seed in zip(numbers, runs["result"], runs["key"], runs["seed"], strict=True):
        path = Path(folder) / LAYERS / f"{evidence_name(key, int(seed), 0)}.parquet"
        if path in there:
            found[int(cell)].append(path)
    return found


def _first_readable(paths: Iterable[Path]) -> tuple[list[tuple[str, float]], str | None]:
    """Return the worst layers by the first file that can be read, or what is the matter with the last that cannot."""
    problem: str | None = "is missing"
    for path in paths:
        try:
            return _worst(path), None
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            problem = f"cannot be read ({(str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')})"
    return [], problem


def _worst(path: Path) -> list[tuple[str, float]]:
    table = pq.read_table(path, columns=["module", "rmse_per_sigma"])
    layers = zip(table["module"].to_pylist(), table["rmse_per_sigma"].to_pylist(), strict=True)
    return sorted(layers, key=lambda layer: (-layer[1], layer[0]))[:WORST_LAYERS]


def _names(place: int) -> tuple[str, str]:
    return f"worst_layer_{place}", f"worst_layer_{place}_rmse_per_sigma"


def _columns(rows: pd.DataFrame) -> Iterator[Column]:
    yield Column("base", _base, "left", about=MEANING)
    for name in chosen(rows, [name for name in BASE if len(rows[name].unique()) > 1]):
        yield Column(name, field(name), "left", priority=8)
    yield number_column(rows, "weight_error", "weight error\nRMSE/σ", decimals=4, about=WEIGHT_ERROR)  # noqa: RUF001
    yield number_column(rows, "weight_error_max", "worst\nlayer", decimals=4, priority=4, about=WEIGHT_ERROR)
    yield number_column(rows, "label_kl_before", "label\nKL nats", decimals=4, about=LABEL)
    yield _percent("label_agreement_before", "label\nagree %", 0, LABEL)
    yield number_column(rows, "next_token_kl_before", "next-token\nKL nats", decimals=4, priority=2, about=NEXT)
    yield _percent("next_token_agreement_before", "next-token\nagree %", 2, NEXT)
    yield Column("accuracy %", _accuracy, priority=1, about=ACCURACY)
    yield number_column(rows, "macro_f1_before", "macro-F1", decimals=3, priority=5)
    yield number_column(rows, "heldout_loss_before", "held-out\nloss", decimals=3, priority=3, about=LOSS)
    yield _percent("expected_calibration_error_before", "ECE %", 3, ECE)
    unit = unit_for(rows["stored_bytes"].max())
    for name, heading in (("stored_bytes", "stored"), ("footprint_bytes", "HF footprint")):
        head, about = f"{heading}\n{unit.name}", f"{unit.about} {STORED}"
        yield number_column(rows, name, head, scale=unit.bytes, decimals=unit.decimals, priority=6, about=about)
    yield Column("worst layers", _worst_layers, "left", priority=9, about=WORST)


def _base(row: Row) -> str:
    more = row["cells_count"] - 1
    return f"{id_text(row)} + {more}" if more else id_text(row)


def _percent(name: str, heading: str, priority: int, about: str) -> Column:
    return Column(heading, lambda row: number(100 * row[name], 1), priority=priority, about=about)


def _accuracy(row: Row) -> str:
    share, width = (number(100 * row[name], 1) for name in ("accuracy_before", "accuracy_before_half_width"))
    return share if width == MISSING else f"{share} ± {width}"


def _worst_layers(row: Row) -> str:
    layers = [[row[name] for name in _names(place)] for place in range(1, WORST_LAYERS + 1)]
    return "\n".join(f"{module} {number(error, 4)}" for module, error in layers if not pd.isna(module)) or MISSING


def _scored(rows: pd.DataFrame) -> Iterator[str]:
    counts = [
        (noun, listing([f"{int(count):,}" for count in sorted(rows[name].dropna().unique())]))
        for name, noun in (
            ("eval_examples_count", "test examples"), ("labels_count", "labels"),
            ("next_token_prompts_count", "prompts for the next token"),
        )
        if name in rows
    ]  # fmt: skip
    if told := [f"{count} {noun}" for noun, count in counts if count]:
        yield f"Scored before training: {', '.join(told)}; {counted(len(rows), 'different base')}."


def _without_reference(rows: pd.DataFrame) -> Iterator[str]:
    lost = rows[rows["label_kl_before"].isna()] if len(rows) else rows
    if len(lost):
        of_whom = "any run" if len(lost) == len(rows) else listed(list(lost["id"]))
        yield f"No 16-bit reference for {of_whom}, so no KL and no agreement."


def _without_figures(evidence: Evidence) -> Iterator[str]:
    lost = evidence.cells[(evidence.cells["weights"] != "random") & evidence.cells["accuracy_before"].isna()]
    if len(lost):
        told = [f"{id_} ({status})" for id_, status in lost[["id", "status"]].itertuples(index=False, name=None)]
        yield f"Ended before scoring: {listed(told)}."


def _by_seed(runs: pd.DataFrame) -> Iterator[str]:
    """Name the cells whose figures before training differ by seed, which they should not."""
    by_cell = runs[runs["status"] == "ok"].groupby(CELL, sort=False)[[*REFERENCE, *SCORES]]
    differing = (by_cell.max() - by_cell.min() > LAST_DIGITS).any(axis=1)
    if differing.any():
        ids = [id_ for id_, _ in differing[differing].index]
        yield f"Figures before training differ by seed, so they are means: {listed(ids)}."
