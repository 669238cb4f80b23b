"""Reference loops: always the same work, of the same kind as a hot path's, so that a machine slows both down alike."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from scipy import stats

NAMES = ("nf4", "fp4", "int8", "none")
RECORDS_COUNT = 3000
ROWS_COUNT = 300
FRAME = pd.DataFrame({
    "name": [NAMES[number % 4] for number in range(ROWS_COUNT)],
    "rank": [number % 31 for number in range(ROWS_COUNT)],
    "value": np.linspace(0, 1, ROWS_COUNT),
})  # fmt: skip


def records_loop() -> int:
    """Work on dictionaries, texts, JSON and lists: the reference of what reads a matrix or records."""
    made = [
        {"id": f"cell-{number % 977}", "name": NAMES[number % 4], "rank": number % 31, "values": [number, number / 7]}
        for number in range(RECORDS_COUNT)
    ]
    records = json.loads(json.dumps(made))
    records.sort(key=lambda record: (record["name"], -record["rank"], record["id"]))
    ids: dict[tuple[str, int], list[str]] = {}
    texts_count = 0
    for record in records:
        ids.setdefault((record["name"], record["rank"]), []).append(record["id"].upper())
        changed = {**record, "seed": record["rank"]}
        texts_count += len({name: value for name, value in changed.items() if isinstance(value, str)})
    return texts_count + sum(len(",".join(sorted(group))) for group in ids.values())


def frames_loop() -> float:
    """Work on small frames, arrays and distributions: the reference of what analyses."""
    total = 0.0
    for left_out in range(4):
        frame = FRAME[FRAME["rank"] != left_out].reset_index(drop=True)
        frame["log"] = 2 * np.log1p(frame["value"])
        total += float(frame.groupby(["name", "rank"], sort=False)["log"].mean().max())
        frame = frame.sort_values(["rank", "name"])
        frame = frame.assign(upper=frame["log"].where(frame["value"] > 0.5, 0))
        total += sum(len(name) for name, _ in frame[["name", "log"]].head(40).itertuples(index=False, name=None))
        total += sum(float(frame["upper"].to_numpy()[start : start + 100].mean()) for start in range(40))
        total += float(stats.t.ppf(0.975, np.arange(1, 20)).sum())
        total += len(pd.concat([frame, frame]).drop_duplicates(["name", "rank"]))
    return total
