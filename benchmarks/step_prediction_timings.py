"""What the linear layers of a step take by kernel timings: how many of each there are, times the time of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import BenchError, Problem
from bench.matrix.kernels import load_kernels
from bench.matrix.parameters import Parameters

KERNEL_MATRIX = Path("matrices/kernels.yaml")
ROOT = Path(__file__).parents[1]

# Cases of which any one will do.
Alternatives = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Linear:
    """Linear layers of a model that are alike; `layer` is the end of their names, `lora_r` 0 without an adapter."""

    layer: str
    layers_count: int
    out_features: int
    in_features: int
    bias: bool
    lora_r: int

    @property
    def shape(self) -> str:
        return f"{self.out_features}x{self.in_features}"


@dataclass(frozen=True)
class Part:
    """What like layers take of a step in one operation: `launches_count` launches of `p50_s` each.

    `case` is the id of the timing, and `timed_layer` the layer that it is of, which has the same shape.
    """

    layer: str
    shape: str
    operation: str
    launches_count: int
    case: str
    timed_layer: str
    p50_s: float

    @property
    def total_s(self) -> float:
        return self.launches_count * self.p50_s


@dataclass(frozen=True)
class Prediction:
    """What a cell's linear layers take of a step. `launches` are the distinct ones: their parameters, and how many."""

    parts: tuple[Part, ...]
    launches: tuple[tuple[dict[str, Any], int], ...]
    notes: tuple[str, ...]

    @property
    def linear_s(self) -> float:
        return math.fsum(part.total_s for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        return {
            "linear_s": self.linear_s,
            "layers": [{**asdict(part), "total_s": part.total_s} for part in self.parts],
            "notes": list(self.notes),
        }


class Missing(Exception):
    """Timings that a prediction lacks: the parameters of each case, and what became of it where it was refused."""

    def __init__(self, cases: Sequence[tuple[dict[str, Any], str | None]]) -> None:
        self.cases = tuple(cases)
        super().__init__(", ".join(case["layer"] for case, _ in cases))


def passes(parameters: Parameters) -> dict[str, int]:
    """Return how often a step runs each operation of a linear layer."""
    steps = parameters.gradient_accumulation_steps
    # Checkpointing runs the forward once more, before the backward.
    return {"forward_backward": steps} | ({"forward": steps} if parameters.gradient_checkpointing else {})


def wanted(parameters: Parameters, rows: int, linear: Iterable[Linear]) -> Iterator[tuple[Linear, dict[str, Any], int]]:
    """Yield like layers with the parameters of the case that times them in an operation, and the launches in a step."""
    for operation, count in passes(parameters).items():
        for one in linear:
            yield (
                one,
                {
                    "operation": operation,
                    "model": parameters.model,
                    "layer": one.layer,
                    "quant_type": parameters.quant_type,
                    "double_quant": parameters.double_quant,
                    "compute_dtype": parameters.compute_dtype,
                    "rows": rows,
                    "lora_r": one.lora_r,
                },
                count * one.layers_count,
            )


def predict(parameters: Parameters, rows: int, linear: Sequence[Linear], timings: pd.DataFrame) -> Prediction:
    """Add up what the linear layers of a step take. `timings` are as `bench.tables.kernels.load_kernels` returns them.

    Layers of one shape share a timing: that of the layer's own name and model, where there is one.

    Raises:
        Missing: a layer has no timing.
    """
    parts: list[Part] = []
    launches: dict[tuple[Any, ...], tuple[dict[str, Any], int]] = {}
    missing: list[tuple[dict[str, Any], str | None]] = []
    notes = dict.fromkeys(not_timed(parameters))
    biases = {one.layer: one.bias for one in linear}
    for one, case, count in wanted(parameters, rows, linear):
        timing = find(one, case, timings)
        if timing is None:
            missing.append((case, refusal(case, timings)))
            continue
        own_model = timing["model"] == parameters.model
        name = str(timing["layer"])
        parts.append(
            Part(one.layer, one.shape, case["operation"], count, str(timing["id"]), name, float(timing["p50_s"]))
        )
        if not own_model:
            notes[f"{one.layer}: by the timing of {timing['model']} {name}, which has the same shape"] = None
        elif (timed_bias := biases.get(name.rpartition(".")[2], False)) != one.bias:
            notes[f"{one.layer}: by the timing of {name}, which has {'a' if timed_bias else 'no'} bias"] = None
        launch = {**case, "layer": name if own_model else one.layer}
        key = tuple(launch.values())
        launches[key] = (launch, launches.get(key, (launch, 0))[1] + count)
    if missing:
        raise Missing(missing)
    return Prediction(tuple(parts), tuple(launches.values()), tuple(notes))


def find(one: Linear, case: Mapping[str, Any], timings: pd.DataFrame) -> pd.Series[Any] | None:
    """Return the timing of a layer of this shape in these settings that is closest to it by model and name, if any."""
    settings = [name for name in case if name not in ("model", "layer")]
    shape = {"out_features": one.out_features, "in_features": one.in_features, "status": "ok"}
    same = timings
    for name, value in {**{name: case[name] for name in settings}, **shape}.items():
        same = same[(same[name] == value).fillna(value=False).astype(bool)]
    if same.empty:
        return None
    near = 2 * (same["model"] == case["model"]).astype(int) + (same["layer"] == case["layer"]).astype(int)
    best: pd.Series[Any] = same.loc[near.idxmax()]
    return best


def refusal(case: Mapping[str, Any], timings: pd.DataFrame) -> str | None:
    """Return why the case of that very layer was refused; None where it was not tried."""
    same = timings[timings["status"] != "ok"]
    for name, value in case.items():
        same = same[(same[name] == value).fillna(value=False).astype(bool)]
    return None if same.empty else f"{same.iloc[0]['status']}: {same.iloc[0]['message']}"


def not_timed(parameters: Parameters) -> Iterator[str]:
    """Yield what a cell's linear layers do beside what the kernel benchmarks time."""
    if parameters.kbit_upcast:
        yield "kbit_upcast: norms hand the linear layers float32 inputs, and the timings are of the compute dtype's"
    if parameters.load_dtype != parameters.compute_dtype:
        yield f"load_dtype: inputs are {parameters.load_dtype}, and the timings are of {parameters.compute_dtype} ones"
    if parameters.use_dora:
        yield "use_dora: the timings are of plain LoRA"
    if parameters.lora_dropout:
        yield "lora_dropout: the timings are of adapters without dropout"


# What is missing ------------------------------------------------------------------------------------------------------


def refuse(path: Path, missing: Mapping[str, Missing], needed: Iterable[Alternatives]) -> BenchError:
    """Return an error with a line for each cell that lacks timings; the last says how to time all that is `needed`."""
    lines = [f"{path} lacks timings for cell {cell}: {_words(found.cases)}" for cell, found in missing.items()]
    return BenchError([*map(Problem, lines[:-1]), Problem(lines[-1], how_to_time(needed))])


def alternatives(parameters: Parameters, rows: int, linear: Iterable[Linear]) -> Iterator[Alternatives]:
    """Yield the cases of which a prediction needs one each, since their layers have one shape."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one, case, _ in wanted(parameters, rows, linear):
        settings = (value for name, value in case.items() if name != "layer")
        found.setdefault((one.shape, *settings), []).append(case)
    yield from map(tuple, found.values())


def how_to_time(needed: Iterable[Alternatives]) -> str:
    """Return the command that times one case of each; those that the shipped matrix lacks are written out as rows."""
    ids = {tuple(case.parameters.model_dump().items()): case.id for case in load_kernels(ROOT / KERNEL_MATRIX).cases}
    known: list[str] = []
    rows: list[str] = []
    for cases in dict.fromkeys(tuple(tuple(case.items()) for case in cases) for cases in needed):
        id_ = next((ids[case] for case in cases if case in ids), None)
        if id_ is not None:
            known.append(id_)
        else:
            rows.append("{" + ", ".join(f"{name}: {_yaml(value)}" for name, value in cases[0]) + "}")
    if known and not rows:
        return f"time all that is needed: nox -s kernels -- {KERNEL_MATRIX} -k '{common_words(known)}'"
    beside = f"{KERNEL_MATRIX} has {', '.join(known)}, not the others: " if known else ""
    return f"{beside}time all that is needed with a matrix of kernels that has include: [{', '.join(rows)}]"


def common_words(ids: Sequence[str]) -> str:
    """Return an expression that selects cases, and as few others as the words do that all their ids have."""
    parts = [dict.fromkeys(id_.split("-")) for id_ in ids]
    return " and ".join(word for word in parts[0] if all(word in others for others in parts)) or " or ".join(ids)


def _words(cases: Iterable[tuple[Mapping[str, Any], str | None]]) -> str:
    """Name cases by layer, and once what they have in common."""
    by_settings: dict[str, list[str]] = {}
    for case, why in cases:
        quantized = f"{case['quant_type']}{' with double quantization' if case['double_quant'] else ''}"
        adapter = f"lora_r {case['lora_r']}" if case["lora_r"] else "no adapter"
        settings = f"({case['operation']}, {quantized}, {case['compute_dtype']}, {case['rows']} rows, {adapter})"
        by_settings.setdefault(f"of {case['model']} {settings}", []).append(
            case["layer"] + (f" [{why}]" if why else "")
        )
    return "; ".join(f"{', '.join(layers)} {settings}" for settings, layers in by_settings.items())


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
