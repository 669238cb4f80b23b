"""Kernel benchmarks to a tidy DataFrame: one row for each case, with its rates against the machine's peaks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.matrix.wording import counted
from bench.tables.kernel_file import Case, Machine, Refused, Settings, TimedPeak, kernels_file, read

PARAMETERS = [*Settings.model_fields]
# What a case shares with the unquantized one that it is compared with.
BESIDE_QUANTIZATION = [name for name in PARAMETERS if name not in ("quant_type", "double_quant")]
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
TEXTS = ("id", "status", "message", "hint")
SECONDS = {"p50_s": "median", "p25_s": "q1", "p75_s": "q3", "iqr_s": "iqr", "min_s": "min"}
SIZES = ("out_features", "in_features")
FIGURES = (
    *SIZES, "launches_count", "flops_count", "moved_bytes", "stored_bytes", "scratch_bytes",
    "rotated_bytes", "cache_bytes", "weight_error", "smollm2_weight_error",
)  # fmt: skip
REMARKS = ("fused", "launch", "warnings")
NAN = float("nan")


@dataclass(frozen=True)
class Peaks:
    """The most that the machine did in this session.

    copy_bytes_per_s: read and written; NaN where it was not measured. matmul_flops_per_s: by dtype. drift: what the
    measurement at the session's end found more than that at its start, as a share, by its name (`copy`,
    `matmul bfloat16`).
    """

    copy_bytes_per_s: float
    matmul_flops_per_s: Mapping[str, float]
    drift: Mapping[str, float]


def load_kernels(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a result of the kernel benchmarks: a folder that holds `kernels.json`, or the file itself, gzipped or not.

    A row is a case; those that were refused come last. Columns:

    - `id`, `status` (ok, invalid, oom, crashed), `message`, `hint`;
    - its parameters: `operation, model, layer, quant_type, double_quant, compute_dtype, rows, lora_r`; the last two are
      missing where they say nothing (quantize, dequantize);
    - `out_features`, `in_features` of the layer;
    - `p50_s, p25_s, p75_s, iqr_s, min_s` of one launch, over `rounds_count` rounds of `launches_count` launches;
    - `flops_count` of one launch, 0 for quantize and dequantize, and `moved_bytes`, the fewest that it can move;
    - `stored_bytes` of the weight with its quantization state, and `scratch_bytes`, the most that a launch allocates
      beside its operands and results (NaN on a CPU);
    - `rotated_bytes` of all operands that launches cycle through, and `cache_bytes` (NaN on a CPU);
    - `weight_error`, `smollm2_weight_error`: RMSE/sigma of Gaussian weights, and of SmolLM2-135M's;
    - `fused`: True where a 4-bit weight was multiplied without a dequantized copy, None where that says nothing;
      `launch` (cuda_graph, queued, eager, host); `warnings`, a line each, or None;
    - `bytes_per_s`, `flops_per_s`, their shares of the machine's peaks, `copy_share` and `matmul_share` (of the same
      dtype), and `time_ratio_16bit`: `p50_s` over that of the case that differs only in being unquantized. All NaN of
      eager launches, whose time is mostly the host's.

    Figures are float64, NaN where there is none. attrs: `matrix`, `about`, `gpu` (None without one), `cpu`, `versions`
    by package, `peaks` (a `Peaks`), `datetime` (ISO 8601), `warnings` (sentences on what was left out).

    Raises:
        BenchError: there is no such file, it cannot be read, is not of the kernel benchmarks, or is damaged.
    """
    file = kernels_file(path)
    document = read(file)
    peaks = _peaks(document.peaks)
    frame = _with_rates(_frame([*map(_measured, document.cases), *map(_refused, document.refused)]), peaks)
    foreign = document.foreign_count
    frame.attrs = {
        "matrix": document.matrix.name,
        "about": document.matrix.about,
        "gpu": document.machine_info.gpu,
        "cpu": _cpu(document.machine_info),
        "versions": _versions(document.machine_info),
        "peaks": peaks,
        "datetime": document.datetime,
        "warnings": [f"{file}: {counted(foreign, 'benchmark')} of no kernel, left out."] if foreign else [],
    }
    return frame


def _measured(case: Case) -> dict[str, Any]:
    info, stats = case.extra_info, case.stats
    return {
        "id": info.id,
        "status": "ok",
        **info.parameters.model_dump(),
        **{name: getattr(stats, field) for name, field in SECONDS.items()},
        "rounds_count": stats.rounds,
        **{name: getattr(info, name) for name in (*FIGURES, *REMARKS)},
        "warnings": "\n".join(info.warnings) or None,
    }


def _refused(case: Refused) -> dict[str, Any]:
    parameters = case.parameters.model_dump()
    return {**{name: getattr(case, name) for name in TEXTS}, **parameters}


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    numbers = (*SECONDS, "rounds_count", *FIGURES)
    frame = pd.DataFrame([*rows], columns=[*TEXTS, *PARAMETERS, *numbers, *REMARKS], dtype=object)
    objects = [*TEXTS, *REMARKS]
    frame[objects] = frame[objects].astype(object).where(frame[objects].notna(), None)
    whole = dict.fromkeys((*SIZES, "rows", "lora_r"), "Int64")
    types = dict.fromkeys(numbers, "float64") | whole | {"double_quant": "bool"}
    return frame.astype(types)


def _with_rates(frame: pd.DataFrame, peaks: Peaks) -> pd.DataFrame:
    kernels_s = frame["p50_s"].where(frame["launch"] != "eager")
    flops_per_s = (frame["flops_count"] / kernels_s).where(frame["flops_count"] > 0)
    bytes_per_s = frame["moved_bytes"] / kernels_s
    unquantized = frame.loc[frame["quant_type"] == "none", [*BESIDE_QUANTIZATION, "p50_s"]]
    base = frame[BESIDE_QUANTIZATION].merge(
        unquantized.dropna().drop_duplicates(BESIDE_QUANTIZATION), how="left", on=BESIDE_QUANTIZATION
    )
    return frame.assign(
        bytes_per_s=bytes_per_s,
        flops_per_s=flops_per_s,
        copy_share=bytes_per_s / peaks.copy_bytes_per_s,
        matmul_share=flops_per_s / frame["compute_dtype"].map(peaks.matmul_flops_per_s).astype("float64"),
        time_ratio_16bit=kernels_s / base["p50_s"].to_numpy(),
    )


def _peaks(timed: Iterable[TimedPeak]) -> Peaks:
    """Find the highest rate of each kind over its sizes, in the two measurements apart and in both."""
    rates: dict[str, dict[int, float]] = {}
    for peak in timed:
        info = peak.extra_info
        is_copy = info.peak == "copy"
        name = info.peak if is_copy else f"{info.peak} {info.compute_dtype}"
        rate = (info.moved_bytes if is_copy else info.flops_count) / peak.stats.median
        of_name = rates.setdefault(name, {})
        of_name[info.repeat] = max(rate, of_name.get(info.repeat, 0.0))
    best = {name: max(by_repeat.values()) for name, by_repeat in rates.items()}
    return Peaks(
        copy_bytes_per_s=best.pop("copy", NAN),
        matmul_flops_per_s={name.removeprefix("matmul "): rate for name, rate in best.items()},
        drift={name: by_repeat[1] / by_repeat[0] - 1 for name, by_repeat in rates.items() if len(by_repeat) > 1},
    )


def _versions(machine: Machine) -> dict[str, str]:
    told = machine.model_extra or {}
    return {name: str(told[name]) for name in PACKAGES if told.get(name)}


def _cpu(machine: Machine) -> str | None:
    """Return the processor's name, which pytest-benchmark has under `brand_raw`."""
    name = machine.cpu.get("brand_raw") if isinstance(machine.cpu, dict) else machine.cpu
    return str(name) if name else None
