"""Results of kernel benchmarks as pytest-benchmark writes them, with invented times, for tests to change.

Times come from a crude model of a GPU, with a little noise that is the same every time. They say nothing of real ones.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

from pytest_benchmark.stats import Stats

LAYERS = ("q_proj", "k_proj", "gate_proj", "down_proj")
SHAPES = {
    model: dict(zip(LAYERS, ((hidden, hidden), (narrow, hidden), (wide, hidden), (hidden, wide)), strict=True))
    for model, hidden, narrow, wide in (
        ("qwen2.5-7b", 3584, 512, 18944), ("llama-3.1-8b", 4096, 1024, 14336), ("smollm2-135m", 576, 192, 1536)
    )
}  # fmt: skip
SETTINGS = {
    "none": ("none", False), "nf4": ("nf4", False), "nf4-dq": ("nf4", True),
    "fp4": ("fp4", False), "fp4-dq": ("fp4", True), "int8": ("int8", False),
}  # fmt: skip
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
ERRORS = {"none": 0.0, "nf4": 0.0932, "nf4-dq": 0.0933, "fp4": 0.1247, "fp4-dq": 0.1248, "int8": 0.0089}
COPY_BYTES_PER_S = 2.61e12
MATMUL_FLOPS_PER_S = {"bfloat16": 642e12, "float16": 655e12, "float32": 49e12}
CACHE_BYTES = 50 * 2**20
OVERHEAD_S = 2.2e-6
MOST_FUSED_ROWS = 16
GPU = {
    "processor": "x86_64", "machine": "x86_64", "python_compiler": "GCC 13.3.0", "python_implementation": "CPython",
    "python_implementation_version": "3.12.3", "python_version": "3.12.3", "python_build": ["main", "Jan 1 2026"],
    "release": "6.8.0", "system": "Linux", "cpu": {"brand_raw": "Intel(R) Xeon(R) Platinum 8480C", "count": 16},
    "gpu": "NVIDIA H100 80GB HBM3", "gpu_name": "NVIDIA H100 80GB HBM3", "cuda_version": "13.0",
    "torch": "2.11.0", "transformers": "5.17.0", "peft": "0.21.0", "bitsandbytes": "0.50.2",
}  # fmt: skip
CPU = {**GPU, "gpu": None, "gpu_name": None, "cuda_version": None}


def parameters(name="nf4", **others):
    quant_type, double_quant = SETTINGS[name]
    settings = {
        "operation": "forward", "model": "qwen2.5-7b", "layer": "q_proj", "quant_type": quant_type,
        "double_quant": double_quant, "compute_dtype": "bfloat16", "rows": 512, "lora_r": 0,
    } | others  # fmt: skip
    of_weights = settings["operation"] in ("quantize", "dequantize")
    return settings | ({"rows": None, "lora_r": None} if of_weights else {})


def id_of(settings):
    quantization = settings["quant_type"] + ("-dq" if settings["double_quant"] else "")
    parts = [
        settings["operation"],
        settings["model"],
        settings["layer"],
        quantization,
        SHORT[settings["compute_dtype"]],
    ]
    if settings["rows"]:
        parts += [str(settings["rows"]), *([f"r{settings['lora_r']}"] if settings["lora_r"] else [])]
    return "-".join(parts)


def name_of(settings):
    return settings["quant_type"] + ("-dq" if settings["double_quant"] else "")


def timed(info, median_s, name, *, spread=0.004, rounds=20):
    """A benchmark as pytest-benchmark's JSON has it; `spread` is about the IQR over the median."""
    stats = Stats()
    for at in range(rounds):
        stats.update(median_s * (1 + spread * (2 * at / max(1, rounds - 1) - (rounds > 1))))
    return {
        "group": None, "name": name, "fullname": f"benchmarks/kernels/test_kernels.py::{name}", "params": None,
        "param": None, "extra_info": info,
        "options": {"disable_gc": False, "timer": "clock", "min_rounds": 5, "max_time": 1.0, "min_time": 5e-06,
                    "warmup": False},
        "stats": {**stats.as_dict(), "data": stats.data, "iterations": 1},
    }  # fmt: skip


def case(name="nf4", *, median_s=None, spread=0.004, rounds=20, info=None, **others):
    """One case; `info` changes what it says of itself, `others` its parameters."""
    settings = parameters(name, **others)
    said = described(settings) | (info or {})
    took = seconds(settings, said) if median_s is None else median_s
    jitter = 1 if median_s is not None else 1 + 0.002 * (2 * random.Random(said["id"]).random() - 1)  # noqa: S311
    return timed(said, took * jitter, f"test_kernel[{said['id']}]", spread=spread, rounds=rounds)


def described(settings):
    out_features, in_features = SHAPES.get(settings["model"], {}).get(settings["layer"], (1024, 1024))
    size, name = out_features * in_features, name_of(settings)
    wide = 4 if settings["compute_dtype"] == "float32" else 2
    stored = {"none": wide * size, "int8": size + 4 * out_features}.get(
        name, size // 2 + (size // 64 + 4 * size // 16384 + 1028 if settings["double_quant"] else size // 16)
    )
    rows, rank = settings["rows"] or 0, settings["lora_r"] or 0
    operands = wide * rows * (in_features + out_features)
    training = settings["operation"] == "forward_backward"
    moved = (1 + training) * (stored + operands) if rows else stored + wide * size
    four_bit_forward = settings["operation"] == "forward" and settings["quant_type"] in ("nf4", "fp4")
    fused = rows <= MOST_FUSED_ROWS if four_bit_forward else None
    copied = rows and settings["quant_type"] != "none" and not fused
    return {
        "id": id_of(settings), "parameters": settings,
        "out_features": out_features, "in_features": in_features,
        "flops_count": (4 if training else 2) * rows * size + (6 if training else 2) * rows * rank
        * (in_features + out_features),
        "moved_bytes": moved + (3 if training else 1) * 4 * rank * (in_features + out_features),
        "stored_bytes": stored, "scratch_bytes": wide * size if copied else 0, "fused": fused,
        "launches_count": 40, "launch": "eager" if name == "int8" else "cuda_graph",
        "rotated_bytes": 4 * CACHE_BYTES, "cache_bytes": CACHE_BYTES,
        "weight_error": ERRORS[name], "smollm2_weight_error": 1.01 * ERRORS[name], "warnings": [],
    }  # fmt: skip


def seconds(settings, info):
    """How long a launch would take on a GPU of the simplest kind."""
    name, size = name_of(settings), info["out_features"] * info["in_features"]
    peak = 0.85 * MATMUL_FLOPS_PER_S[settings["compute_dtype"]]
    copy = 0.8 * COPY_BYTES_PER_S
    decode = (info["stored_bytes"] + 2 * size) / copy + OVERHEAD_S * (1 + settings["double_quant"])
    if settings["operation"] == "dequantize":
        return decode
    if settings["operation"] == "quantize":
        return 3 * decode
    passes = 2 if settings["operation"] == "forward_backward" else 1
    multiply = math.hypot(info["moved_bytes"] / passes / copy, info["flops_count"] / passes / peak) + OVERHEAD_S
    if info["fused"]:
        multiply *= 1.2 + 0.25 * math.sqrt(settings["rows"]) + 0.2 * settings["double_quant"]
    elif name == "int8":
        multiply += 45e-6
    elif name != "none":
        multiply += decode * (1.02 if settings["quant_type"] == "fp4" else 1)
    return passes * (multiply + (14e-6 if settings["lora_r"] else 0))


def peaks(drift=0.003, copy=COPY_BYTES_PER_S, matmul=MATMUL_FLOPS_PER_S):
    """The machine's peaks at the start and at the end, where each is higher by `drift`; the second size is slower."""
    found = []
    for repeat, factor in ((0, 1.0), (1, 1 + drift)):
        names = ("test_peak", "test_peak_again")
        moved = 2 * 2**30
        info = {"peak": "copy", "compute_dtype": "bfloat16", "size": None, "moved_bytes": moved, "flops_count": 0}
        found.append(timed({**info, "repeat": repeat}, moved / copy / factor, f"{names[repeat]}[copy]"))
        for (dtype, rate), (size, share) in itertools.product(matmul.items(), ((4096, 0.93), (8192, 1.0))):
            info = {"peak": "matmul", "compute_dtype": dtype, "size": size, "moved_bytes": 6 * size**2}
            flops = 2 * size**3
            name = f"{names[repeat]}[{SHORT[dtype]}-{size}]"
            said = {**info, "flops_count": flops, "repeat": repeat}
            found.append(timed(said, flops / (rate * share) / factor, name))
    return found


def refused(name="nf4", status="invalid", message="q_proj: no such layer", hint="it has k_proj", **others):
    settings = parameters(name, **others)
    return {"id": id_of(settings), "parameters": settings, "status": status, "message": message, "hint": hint}


def document(cases, *, machine=GPU, of_peaks=None, refusals=(), name="kernels"):
    first, last = (
        [peak for peak in (peaks() if of_peaks is None else of_peaks) if peak["extra_info"]["repeat"] == repeat]
        for repeat in (0, 1)
    )
    return {
        "machine_info": machine,
        "commit_info": {"id": "0" * 40, "time": "2026-11-22T10:00:00+00:00", "dirty": False, "branch": "main"},
        "benchmarks": [*first, *cases, *last],
        "datetime": "2026-11-22T12:00:00.000000+00:00",
        "version": "5.3.1",
        "matrix": {"name": name, "about": "What one quantized layer costs."},
        "refused": list(refusals),
    }


def write_kernels(folder: Path, cases, **about):
    """A folder with the result of kernel benchmarks, as their command leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernels.json").write_text(json.dumps(document(cases, **about)), encoding="utf-8")
    return folder


def crossed(models, layers, rows, *, ranks=(0, 16), names=SETTINGS, dtypes=("bfloat16",), training_from=512):
    """All operations over models, layers, settings and rows; quantization last, so that what is compared is close."""
    found = []
    for model, layer, dtype in itertools.product(models, layers, dtypes):
        where = {"model": model, "layer": layer, "compute_dtype": dtype}
        for operation, least in (("forward", 1), ("forward_backward", training_from)):
            several = itertools.product([count for count in rows if count >= least], ranks, names)
            found += [
                case(name, operation=operation, rows=count, lora_r=rank, **where) for count, rank, name in several
            ]
        for operation in ("quantize", "dequantize"):
            found += [case(name, operation=operation, **where) for name in names if name != "none"]
    return found


ROWS = (1, 4, 16, 512, 4096, 16384)


def whole_matrix():
    """About as many cases as the matrix for GPUs has: three models, two dtypes, and a ladder of rows."""
    ladder = [
        case(name, rows=rows, layer=layer)
        for layer in LAYERS for rows in (8, 32, 64, 128, 256) for name in ("nf4", "nf4-dq", "none")
    ]  # fmt: skip
    return [
        *crossed(["qwen2.5-7b"], LAYERS, ROWS, dtypes=("bfloat16", "float16")),
        *crossed(["llama-3.1-8b", "smollm2-135m"], LAYERS, ROWS),
        *ladder,
        *(case(name, compute_dtype="float32") for name in ("nf4", "none")),
    ]


def small_matrix():
    """Two layers of one model at three counts of rows."""
    return crossed(["qwen2.5-7b"], ("q_proj", "gate_proj"), (1, 16, 512))
