"""The measured step beside the prediction: what linear layers take in it, what all else does, and what is left.

Measured apart from each other are the kernel timings, the time of the step, the kernels of a step under the profiler,
of them those that the linear layers launched, and the kernels of these layers' launches alone. All else is a difference
of two of these: the rest of the model (all kernels of the step less the linear layers'), the time in which the GPU is
idle (the step less all its kernels; of a graph, the update less the optimizer's), and what the step does to the linear
layers (in the step against alone).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.kernel_groups import GROUP_NAMES, OTHER

# Kernels by group, each with `count` and `total_s`.
Groups = Mapping[str, Mapping[str, float]]
ROUNDING = 1e-9
OPTIMIZER = "optimizer"
NOTHING: Mapping[str, float] = {"count": 0, "total_s": 0.0}


@dataclass(frozen=True)
class Row:
    """Kernels of a group: of the linear layers in a step, or of the rest of the model; `alone` are launches alone."""

    group: str
    linear: bool
    count: float
    measured_s: float
    alone_count: float | None = None
    alone_s: float | None = None


@dataclass(frozen=True)
class Gap:
    """A step's time in parts; `linear_s`, `rest_s`, `idle_s` and `not_explained_s` add up to `step_s`.

    execution: of the step: `graph`, or `eager` where there is none.
    traced: whether the linear layers' kernels were told by what launched them; else they are those of launches alone.
    predicted_s: what the linear layers take by kernel timings.
    alone_s: what the kernels of the same launches take alone, in the process of the step; None if they did not run.
    linear_s: what the linear layers' kernels take in the step.
    rest_s: what the other kernels take, but for those of unknown group.
    idle_s: what an eager step takes longer than its kernels; of a graph whose update is not in it, what that update
        takes longer than the optimizer's kernels. None where the graph holds the whole step, which leaves a GPU next to
        no idle time, and on a CPU, where an operator's time has the profiler's own in it.
    not_explained_s: kernels of unknown group, and what is left of the step then.
    """

    execution: str
    traced: bool
    step_s: float
    predicted_s: float
    alone_s: float | None
    linear_s: float
    rest_s: float
    idle_s: float | None
    not_explained_s: float
    rows: tuple[Row, ...]

    @property
    def share(self) -> float:
        """What of the step the prediction accounts for."""
        return self.predicted_s / self.step_s

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "predicted_share": self.share}


def explain(predicted_s: float, launches: Sequence[int], figures: Mapping[str, Any]) -> Gap | None:
    """Take a measured step apart; None where nothing is known of its kernels, or of those of linear layers.

    Args:
        predicted_s: what the linear layers take by kernel timings.
        launches: how often a step has each of the launches in `figures["alone"]`.
        figures: what `step_prediction_cell.measure` returns.
    """
    step_s, execution = step_of(figures)
    groups: Groups = figures["groups"]
    alone = total(figures["alone"], launches)
    traced: Groups | None = figures["linear_groups"]
    linear = traced or within(groups, alone or {})
    if not linear:
        return None
    rest = {group: left for group in groups if any((left := less(groups, linear, group)).values())}
    linear_s, all_s = seconds(linear), seconds(groups)
    unknown_s = rest.get(OTHER, {"total_s": 0.0})["total_s"]
    idle_s = idle(figures, all_s) if "gpu_name" in figures["environment"] else None
    rows = [
        *(row(group, True, linear, alone) for group in GROUP_NAMES if group in linear or group in (alone or {})),
        *(row(group, False, rest) for group in GROUP_NAMES if group in rest and group != OTHER),
    ]
    return Gap(
        execution,
        bool(traced),
        step_s,
        predicted_s,
        None if alone is None else seconds(alone),
        linear_s,
        all_s - linear_s - unknown_s,
        idle_s,
        step_s - all_s - (idle_s or 0.0) + unknown_s,
        tuple(rows),
    )


def row(group: str, linear: bool, measured: Groups, alone: Groups | None = None) -> Row:
    in_step = measured.get(group, NOTHING)
    by_itself = {} if alone is None else alone.get(group, NOTHING)
    return Row(group, linear, in_step["count"], in_step["total_s"], by_itself.get("count"), by_itself.get("total_s"))


def step_of(figures: Mapping[str, Any]) -> tuple[float, str]:
    """Return the time of a step and how it was launched: as a graph, or eagerly where there is none."""
    graph_s = figures["graph_step_p50_s"]
    return (figures["eager_step_p50_s"], "eager") if graph_s is None else (graph_s, "graph")


def idle(figures: Mapping[str, Any], kernels_s: float) -> float | None:
    """Return how long a GPU waits for Python in a step; None where a graph holds the whole step."""
    step_s, execution = step_of(figures)
    if execution == "eager":
        return max(0.0, step_s - kernels_s)
    if figures["update_in_graph"]:
        return None
    return max(0.0, float(figures["graph_update_p50_s"] - figures["groups"].get(OPTIMIZER, NOTHING)["total_s"]))


def total(alone: Sequence[Groups | None], launches: Sequence[int]) -> dict[str, dict[str, float]] | None:
    """Add up the groups of launches, each as often as a step has it; None where one of them is missing."""
    found: dict[str, dict[str, float]] = {}
    for groups, count in zip(alone, launches, strict=True):
        if groups is None:
            return None
        for group, figures in groups.items():
            sums = found.setdefault(group, dict(NOTHING))
            for name, value in figures.items():
                sums[name] += count * value
    return found


def within(groups: Groups, alone: Groups) -> dict[str, Mapping[str, float]]:
    """Return the kernels of launches alone as far as the step has so many."""
    return {
        group: {name: min(value, groups[group][name]) for name, value in figures.items()}
        for group, figures in alone.items()
        if group in groups
    }


def less(groups: Groups, part: Groups, group: str) -> dict[str, float]:
    """Return what is left of a group without a part of it."""
    left = {name: value - part.get(group, NOTHING)[name] for name, value in groups[group].items()}
    # Sums of the same kernels in another order differ in the last bits.
    return {name: 0.0 if abs(value) < ROUNDING * groups[group][name] else value for name, value in left.items()}


def seconds(groups: Groups) -> float:
    return math.fsum(figures["total_s"] for figures in groups.values())
