"""Records as a run writes them, with invented figures: the default matrix on an H100, for tests to change."""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path

from bench.matrix.parameters import Parameters
from bench.protocol import PEAK_PARTS

H100 = {
    "gpu_name": "NVIDIA H100 80GB HBM3",
    "gpu_memory_bytes": 85_520_809_984,
    "driver_version": "570.86.15",
    "cuda_version": "13.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "python": "3.11.9",
    "qlora_bench": "0.1.0",
    "cpu": "Intel(R) Xeon(R) Platinum 8480C",
}
CPU = {**H100, "gpu_name": None, "gpu_memory_bytes": None, "driver_version": None, "cuda_version": None}
SHORT = {"bfloat16": "bf16", "float16": "fp16"}
BASELINE = "lora-bf16"


def record(cell_id, seed=0, *, parameters=None, measures=None, environment=None, **fields):
    key = f"{zlib.crc32(cell_id.encode()):08x}"
    return {
        "schema": 1,
        "id": cell_id,
        "key": key,
        "seed": seed,
        "attempt": 1,
        "status": "ok",
        "phase": "score_after",
        "message": None,
        "hint": None,
        "matrix": "default",
        "parameters": Parameters(**(parameters or {})).model_dump(mode="json"),
        "protocol": 1,
        "started_at": "2025-11-21T20:45:12Z",
        "wall_s": 61.2,
        "slot": "gpu0",
        "last_peak_allocated_bytes": None,
        "measures": measures or {},
        "environment": H100 if environment is None else environment,
        **fields,
    }


def storage(packed, state, unquantized, buffers=512):
    footprint = packed + unquantized + buffers
    return {
        "packed_bytes": packed,
        "quant_state_bytes": state,
        "unquantized_bytes": unquantized,
        "buffer_bytes": buffers,
        "footprint_bytes": footprint,
        "stored_bytes": footprint + state,
        "parameters_count": 134_515_008,
        "quantized_parameters_count": 106_168_320 if packed else 0,
    }


def components(absmax, nested=0, code=12_544, **places):
    """Quantization state and unquantized parameters by component; places as in `embedding_bfloat16=1_000`."""
    return {
        "absmax_bytes": absmax,
        "nested_absmax_bytes": nested,
        "code_bytes": code,
        "quant_state_bytes": absmax + nested + code,
        "unquantized_bytes": sum(places.values()),
        **{f"{place}_bytes": size for place, size in places.items()},
    }


def predicted(**parts):
    """A predicted peak by its parts, in bytes; parts that are not given are zero."""
    sizes = dict.fromkeys(PEAK_PARTS, 0) | parts
    return {
        "predicted_train_peak_allocated_bytes": sum(sizes.values()),
        **{f"predicted_peak_{part}_bytes": size for part, size in sizes.items()},
    }


def training(peak, tokens_per_s, step_s, adapters=9_768_960):
    return {
        "adapter_bytes": adapters,
        "train_peak_allocated_bytes": peak,
        "train_peak_rss_bytes": 2_400_000_000,
        "tokens_per_s": tokens_per_s,
        "step_p50_s": step_s,
        "step_p95_s": 1.2 * step_s,
    }


def quality(after, loss=0.41, examples=3080):
    return {
        "eval_examples_count": examples,
        "labels_count": 77,
        "accuracy_before": 0.112,
        "accuracy_after": after,
        "macro_f1_before": 0.08,
        "macro_f1_after": after - 0.002,
        "heldout_loss_before": 3.9,
        "heldout_loss_after": loss,
    }


NF4 = storage(53_084_160, 6_635_520, 56_693_760)
BF16 = storage(0, 0, 269_030_016)
INT8 = storage(106_168_320, 921_600, 56_693_760)


T4 = {"vram_limit": "T4", "weights": "random", "model": "qwen2.5-7b", "load_dtype": "float16"}
# A 7B model under a T4's cap: what was taken before the model, and what CUDA loaded later.
CAP = {"cap_bytes": 15_397_289_984, "context_bytes": 708_837_376, "train_outside_torch_bytes": 918_552_576}


def seven_b(state, peak_bytes, **parts):
    """Storage and a predicted peak of a 7B model in 4 bits, and a measured peak."""
    places = {"embedding_float16": 1_089_994_752, "head_float16": 1_089_994_752,
              "norm_float16": 408_576, "bias_float16": 258_048}  # fmt: skip
    packed = {"packed_bytes": 3_262_644_224, "buffer_bytes": 512}
    sums = components(state, **places)
    stored = sum(packed.values()) + sums["quant_state_bytes"] + sums["unquantized_bytes"]
    return {
        **packed, **sums, **CAP,
        "stored_bytes": stored, "predicted_stored_bytes": stored, "footprint_bytes": 5_443_300_864,
        "parameters_count": 7_615_616_512, "quantized_parameters_count": 6_525_288_448,
        "upcast_bytes": 2_180_656_128, "adapter_bytes": 161_480_704,
        "train_peak_allocated_bytes": peak_bytes,
        **predicted(base=stored + 2_180_656_128, adapter=161_480_704, **parts),
    }  # fmt: skip


PARTS = {"gradient": 161_480_704, "optimizer": 82_003_968, "activation": 700_000_000, "head": 900_000_000,
         "dequantized": 135_790_592, "workspace": 67_108_864, "rounding": 9_000_000}  # fmt: skip


def memory_matrix(seeds=(0,)):
    """Cells of a 7B model under a T4's cap: one foreseen to the byte, one out of memory, one with a lower bound."""
    dq = {**T4, "double_quant": True}
    return [
        *(record("nf4", seed, parameters=T4, measures=seven_b(407_830_528, 10_248_170_688, **PARTS)) for seed in seeds),
        *(record("nf4-dq", seed, parameters=dq, measures=seven_b(103_739_648, 9_944_079_808, **PARTS))
          for seed in seeds),
        record("nf4-long", parameters={**T4, "max_length": 1024}, status="oom", phase="train",
               message="1.25 GB more were asked for", hint="halve batch_size",
               measures={**seven_b(407_830_528, 14_900_000_000, **{**PARTS, "activation": 7_500_000_000}),
                         "short_bytes": 752_000_000}),
        record("nf4-dora", parameters={**T4, "use_dora": True},
               measures=seven_b(407_830_528, 10_500_000_000, **PARTS),
               environment={**H100, "prediction_note": "a CUDA kernel without a meta counterpart"}),
        record("nf4-dead", parameters=T4, status="crashed", phase="start", environment={}),
    ]  # fmt: skip


def default_matrix(seeds=(0,)):
    """The 18 cells of the default matrix, all ok."""
    cells = [
        record(
            f"{quant}{'-dq' if double else ''}-{SHORT[dtype]}-{targets}",
            seed,
            parameters={
                "quant_type": quant, "double_quant": double, "compute_dtype": dtype, "target_modules": targets,
                "load_dtype": dtype,
            },
            measures={
                **(storage(53_084_160, 1_748_220, 56_693_760) if double else NF4),
                **training(2_412_345_678 + 310_000_000 * (targets == "all-linear"),
                           24_105.3 - 900 * double + 7 * seed, 0.0281 + 0.001 * double),
                **quality(0.861 - 0.01 * (quant == "fp4") - 0.02 * (targets == "attention") + 0.001 * seed),
            },
        )
        for quant, double, dtype, targets in itertools.product(
            ("nf4", "fp4"), (False, True), ("bfloat16", "float16"), ("all-linear", "attention")
        )
        for seed in seeds
    ]  # fmt: skip
    rows = [
        record("int8", seed, parameters={"quant_type": "int8"},
               measures={**INT8, **training(2_800_000_000, 9_120.0, 0.0712), **quality(0.866, 0.398)})
        for seed in seeds
    ]  # fmt: skip
    rows += [
        record(BASELINE, seed, parameters={"quant_type": "none"},
               measures={**BF16, **training(2_901_000_000, 25_011.0 + 11 * seed, 0.0239), **quality(0.868, 0.391)})
        for seed in seeds
    ]  # fmt: skip
    return cells + rows


def write_result(folder: Path, records, baseline=BASELINE, tail="", planned=None):
    """A result folder as a run leaves it; `tail` is what a crash left behind the last line.

    `planned` are records of the cells that the matrix has: those of `records` if none are given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry) + "\n" for entry in records) + tail
    (folder / "records.jsonl").write_text(text, encoding="utf-8")
    cells = {entry["key"]: entry["id"] for entry in (records if planned is None else planned)}
    plan = {"schema": 1, "baseline": baseline, "cells": [{"id": id_, "key": key} for key, id_ in cells.items()]}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return folder
