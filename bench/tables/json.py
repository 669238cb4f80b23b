"""Results as JSON, for other programs."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from bench.tables.csv import whole_numbers


def to_json(frame: pd.DataFrame) -> str:
    """Write the rows of a frame as a JSON array of objects; null for what is missing or not finite."""
    rows = whole_numbers(frame).to_dict("records")
    return json.dumps([{name: _value(value) for name, value in row.items()} for row in rows], allow_nan=False, indent=1)


def _value(value: Any) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
