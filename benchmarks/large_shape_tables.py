"""The table of `benchmarks.large_shape`, and what follows from its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.flops import Work, model_flops_per_token, recomputed_flops_per_token

TITLES = {"trainer": "Trainer", "ours": "ours", "graph": "ours, CUDA graph"}


def derive(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what follows from the figures of the parts: utilisation, and the ratio to `Trainer`.

    MFU is the model's operations over what the GPU could have done in the time, at the measured peak: the same
    operations for every side, those of logits for label tokens. HFU counts all that a side computes: what is
    recomputed, and in `Trainer` the logits of all tokens (Chowdhery et al. 2022, appendix B).
    """
    theirs, own = found["trainer"], found["ours"]
    work, length, share = Work(**own["work"]), found["settings"]["parameters"]["max_length"], own["logits_share"]
    model = model_flops_per_token(work, length, share)
    all_logits = model_flops_per_token(work, length, 1.0)
    recomputed = recomputed_flops_per_token(work, length)
    peak = found["matmul"]["tflops_per_s"] * 1e12
    sides = {part: found[part] for part in TITLES if part in found}
    return {
        "model_flops_per_token": model,
        "recomputed_flops_per_token": recomputed,
        "trainer_more_logits_flops_per_token": all_logits - model,
        "mfu": {part: side["tokens_per_s"] * model / peak for part, side in sides.items()},
        "hfu": {
            part: side["tokens_per_s"] * ((all_logits if part == "trainer" else model) + recomputed) / peak
            for part, side in sides.items()
        },
        "tokens_per_s_over_trainer": {
            part: side["tokens_per_s"] / theirs["tokens_per_s"] for part, side in sides.items() if part != "trainer"
        },
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the table and what stands beside it."""
    derived = found["derived"]
    sides = {part: found[part] for part in TITLES if part in found}
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for part in sides:
        table.add_column(TITLES[part], justify="right")
    rows: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
        "step p50, s": lambda _, side: f"{side['step_p50_s']:.4f}",
        "tokens/s": lambda _, side: f"{side['tokens_per_s']:,.1f}",
        "MFU, %": lambda part, _: f"{100 * derived['mfu'][part]:.1f}",
        "HFU, %": lambda part, _: f"{100 * derived['hfu'][part]:.1f}",
        "peak GB": lambda _, side: f"{side['peak_bytes'] / 1e9:.2f}",
    }
    for name, text in rows.items():
        table.add_row(name, *(text(part, side) for part, side in sides.items()))
    console.print(heading(found["settings"]), style="bold")
    console.print(table)
    for line in notes(found):
        console.print(line)


def heading(settings: Mapping[str, Any]) -> str:
    """Say in one line what was run."""
    cell = settings["parameters"]
    quantization = cell["quant_type"] + (" with double quantization" if cell["double_quant"] else "")
    return (
        f"{cell['model']}, random weights, {quantization}, {cell['optim']}, "
        f"{cell['batch_size']} x {cell['max_length']} tokens a step"
    )


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines below the table."""
    peak, own, derived, environment = found["matmul"], found["ours"], found["derived"], found["environment"]
    yield (
        f"{environment['gpu_name'] or environment['cpu']}: {peak['tflops_per_s']:.1f} TFLOP/s measured, a bfloat16 "
        f"product of {peak['m']} x {peak['k']} and {peak['k']} x {peak['n']}, the best of {len(peak['sizes'])} sizes."
    )
    for part, ratio in derived["tokens_per_s_over_trainer"].items():
        spreads = "; ".join(
            f"{TITLES[side]} {found[side]['step_p50_s']:.4f} s, quartiles {found[side]['step_p25_s']:.4f} to "
            f"{found[side]['step_p75_s']:.4f}, n = {found[side]['timed_steps_count']}"
            for side in (part, "trainer")
        )
        yield f"{TITLES[part]} / Trainer in tokens/s: {ratio:.3f} ({spreads})."
    label_tokens = round(own["logits_share"] * found["settings"]["parameters"]["max_length"])
    more = derived["trainer_more_logits_flops_per_token"] / (
        derived["model_flops_per_token"] + derived["recomputed_flops_per_token"]
    )
    yield (
        f"One reason for a ratio above 1: ours makes logits for the {label_tokens} label tokens of a sequence only; "
        f"Trainer makes them for all, {100 * more:.1f} % more operations than ours takes."
    )
    yield (
        f"MFU: {derived['model_flops_per_token'] / 1e9:.3f} GFLOP a token on every side, nothing twice. HFU: with the "
        f"{derived['recomputed_flops_per_token'] / 1e9:.3f} GFLOP that checkpointing recomputes, and Trainer's logits."
    )
    cost = own["meters"]
    yield (
        f"Meters on / off, time of a step: {cost['ratio_p50']:.4f} (median; {cost['ratio_min']:.4f} to "
        f"{cost['ratio_max']:.4f}, n = {len(cost['ratios'])} pairs of blocks of {cost['steps_per_block_count']} steps, "
        "in the order on, off, off, on)."
    )
    if "graph_failed" in found:
        yield f"No CUDA graph: {found['graph_failed']}"
