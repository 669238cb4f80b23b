"""The rule of `vram_limit`, in words and in the figures of the runs that had one."""

from __future__ import annotations

import pandas as pd

from bench.tables.figures import sized

OF_NEED = "what the cap lacks of the predicted need (needs less context and cap)"
OF_ALLOCATION = "what was missing for the allocation at which memory ran out"


def short_of_need(rows: pd.DataFrame) -> pd.Series[float]:
    """Return the bytes that the allocator's cap lacks of the predicted need; NaN where it lacks nothing, or is none."""
    short = rows["predicted_needed_bytes"] - rows["cap_bytes"]
    return short.where(short > 0)


def limit_rules(frame: pd.DataFrame) -> tuple[str, ...]:
    """Say for each `vram_limit` of a result what its runs were allowed, and what the limit does not hold back."""
    capped = frame[frame["vram_limit"].notna() & frame["cap_bytes"].notna()]
    return tuple(_rule(str(limit), runs) for limit, runs in capped.groupby("vram_limit", sort=False))


def _rule(limit: str, runs: pd.DataFrame) -> str:
    allowed = f"vram_limit {limit}: torch may hold {_range(runs['cap_bytes'])}"
    told = runs[runs["context_bytes"].notna()]
    if told.empty:
        return f"{allowed}."
    card = _range(told["cap_bytes"] + told["context_bytes"])
    return (
        f"{allowed}, the card's {card} less the {_range(told['context_bytes'])} that CUDA took before the model; "
        f"{_on_top(told)}."
    )


def _on_top(runs: pd.DataFrame) -> str:
    more = (runs["train_outside_torch_bytes"] - runs["context_bytes"]).max()
    managed = runs["optimizer_managed_bytes"].max()
    paged = f", {sized(managed)} of optimizer state is managed" if managed > 0 else ""
    so_far = f" (up to {sized(more)} here{paged})" if more > 0 else ""
    return f"what CUDA loads later and managed memory come on top{so_far}"


def _range(sizes: pd.Series[float]) -> str:
    low, high = sized(sizes.min()), sized(sizes.max())
    return high if low == high else f"{low} to {high}"
