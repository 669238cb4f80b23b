from __future__ import annotations

import json

from bench.tables.json import to_json
from bench.tables.load import load_results

from .examples import default_matrix, record, write_result


def test_rows_are_objects_with_null_for_what_is_missing_and_whole_bytes(tmp_path):
    records = [*default_matrix(), record("dead", status="crashed", phase="load", environment={})]
    rows = json.loads(to_json(load_results(write_result(tmp_path / "r", records))))
    others = [entry["id"] for entry in records if entry["id"] != "lora-bf16"]
    assert [row["id"] for row in rows] == ["lora-bf16", *others]
    assert repr(rows[1]["stored_bytes"]) == "116413952"
    assert rows[0]["max_steps"] is None
    assert rows[-1]["tokens_per_s"] is None
    assert rows[-1]["gpu_name"] is None
    assert [row["id"] for row in rows if row["is_baseline"]] == ["lora-bf16"]


def test_no_record_is_an_empty_array(tmp_path):
    assert json.loads(to_json(load_results(write_result(tmp_path / "r", [])))) == []
