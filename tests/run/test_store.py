from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.run.records import to_line
from bench.run.store import (
    Planned,
    append_record,
    evidence_name,
    log_name,
    read_plan,
    read_records,
    remove_drafts,
    set_aside,
    write_atomically,
    write_plan,
)

from .examples import plan_of, record

NOW = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
RECORDS = [record(seed=seed, message="naïve → \u2028 text") for seed in range(3)]
LINES = [to_line(entry) for entry in RECORDS]
DATA = b"".join(LINES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.jsonl"


def complete_lines(cut: int) -> int:
    """How many records are whole in the first `cut` bytes; a line's newline may be missing."""
    return sum(cut >= len(b"".join(LINES[: number + 1])) - 1 for number in range(len(LINES)))


def test_records_come_back_in_their_order(path):
    for entry in RECORDS:
        append_record(path, entry)
    assert path.read_bytes() == DATA
    assert read_records(path).records == tuple(RECORDS)
    assert read_records(path).warnings == ()


def test_no_file_holds_no_records(path):
    assert read_records(path).records == ()
    assert not path.exists()


def test_a_file_cut_at_any_byte_loses_no_earlier_line_and_takes_the_next_record(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of them take their time
    for cut in range(len(DATA) + 1):
        path.write_bytes(DATA[:cut])
        whole = complete_lines(cut)
        contents = read_records(path)
        assert contents.records == tuple(RECORDS[:whole])
        torn = cut > 0 and cut not in {len(b"".join(LINES[:n])) - end for n in (1, 2, 3) for end in (0, 1)}
        assert len(contents.warnings) == torn
        assert path.read_bytes() == DATA[:cut], "reading changes nothing"
        append_record(path, record(seed=9))
        contents = read_records(path)
        assert (contents.records, contents.warnings) == ((*RECORDS[:whole], record(seed=9)), ())


@given(garbage=st.binary(max_size=300), cut=st.integers(0, len(DATA)))
def test_whatever_a_torn_tail_holds_no_whole_line_is_lost(tmp_path_factory, garbage, cut):
    path = tmp_path_factory.mktemp("store") / "records.jsonl"
    path.write_bytes(DATA[:cut] + garbage)
    whole = sum(cut >= len(b"".join(LINES[: number + 1])) for number in range(len(LINES)))
    assert read_records(path).records[:whole] == tuple(RECORDS[:whole])
    append_record(path, record(seed=9))
    contents = read_records(path)
    assert contents.records[:whole] == tuple(RECORDS[:whole])
    assert contents.records[-1] == record(seed=9)


def test_a_damaged_line_in_the_middle_is_named_skipped_and_kept(path):
    half = LINES[1][:80] + b"\n"
    path.write_bytes(LINES[0] + half + b"\xff\xfe\n" + LINES[2])
    contents = read_records(path)
    assert contents.records == (RECORDS[0], RECORDS[2])
    first, second = contents.warnings
    assert first.startswith(f"{path}:2: skipped a damaged record")
    assert second.startswith(f"{path}:3: skipped a damaged record")
    append_record(path, record(seed=9))
    assert path.read_bytes() == LINES[0] + half + b"\xff\xfe\n" + LINES[2] + to_line(record(seed=9))


def test_blank_lines_and_windows_line_ends_are_no_damage(path):
    path.write_bytes(b"\n".join(LINES).replace(b"\n", b"\r\n"))
    assert read_records(path).records == tuple(RECORDS)
    assert read_records(path).warnings == ()


def test_a_record_of_a_newer_schema_is_refused(path):
    path.write_bytes(LINES[0] + b'{"schema": 99}\n')
    with pytest.raises(BenchError, match=r"records\.jsonl:2:1: a record of schema 99"):
        read_records(path)


def test_an_append_is_one_write_and_on_the_disk_before_it_returns(path, monkeypatch):
    calls = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append(("write", bytes(data))) or write(fd, data))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("fsync",)) or fsync(fd))
    append_record(path, RECORDS[0])
    assert calls == [("write", LINES[0]), ("fsync",)]


def test_a_full_disk_is_an_error_and_what_was_written_stays(path, monkeypatch):
    append_record(path, RECORDS[0])
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:50]))
    with pytest.raises(OSError, match="No space left"):
        append_record(path, RECORDS[1])
    monkeypatch.undo()
    assert read_records(path).records == (RECORDS[0],)
    append_record(path, RECORDS[1])
    assert path.read_bytes() == LINES[0] + LINES[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_without_room_says_so(path):
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        append_record(path, RECORDS[0])
    assert caught.value.errno == errno.ENOSPC


def test_records_are_set_aside_under_names_that_are_free(path):
    assert set_aside(path.parent, NOW) is None
    names = []
    for entry in RECORDS[:2]:
        append_record(path, entry)
        names.append(set_aside(path.parent, NOW))
    assert not path.exists()
    assert [name.name for name in names] == ["records-20250102-030405-1.jsonl", "records-20250102-030405-2.jsonl"]
    assert [read_records(name).records for name in names] == [(RECORDS[0],), (RECORDS[1],)]


def test_what_is_kept_beside_records_is_set_aside_with_them_under_the_same_number(path):
    folder = path.parent
    (folder / "layers-20250102-030405-1").mkdir()
    for name in ("examples", "layers", "logs"):
        (folder / name).mkdir()
        (folder / name / "k1-s0.parquet").write_text(name)
    append_record(path, RECORDS[0])
    assert set_aside(folder, NOW) == folder / "records-20250102-030405-2.jsonl"
    kept = {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*.parquet")}
    assert kept == {
        "examples-20250102-030405-2/k1-s0.parquet": "examples",
        "layers-20250102-030405-2/k1-s0.parquet": "layers",
        "logs/k1-s0.parquet": "logs",
    }


def test_files_of_a_run_are_told_apart_by_cell_seed_and_repeat():
    assert [evidence_name("k1", 0, 0), evidence_name("k1", 0, 1)] == ["k1-s0", "k1-s0-again"]
    assert [log_name("nf4", 3, 0), log_name("nf4", 3, 1)] == ["nf4-s3.log", "nf4-s3-again.log"]


def test_of_a_folder_drafts_alone_are_removed(tmp_path):
    remove_drafts(tmp_path)
    kept = [tmp_path / "examples" / "k1-s0.parquet", tmp_path / "logs" / ".k1-s0.parquet.7"]
    drafts = [tmp_path / name / ".k1-s0.parquet.4711" for name in ("examples", "log_likelihoods", "layers")]
    for path in (*kept, *drafts):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_drafts(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_file_is_replaced_whole_and_byte_for_byte(tmp_path):
    path = tmp_path / "matrix.yaml"
    write_atomically(path, "old")
    write_atomically(path, "\ufeffname: ü\r\n")
    assert path.read_bytes() == "\ufeffname: ü\r\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["matrix.yaml"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444


def test_a_plan_holds_every_cell_of_its_matrix_and_is_read_back(tmp_path):
    path = tmp_path / "plan.json"
    write_plan(path, replace(plan_of("a", "b").matrix, watch_pairs=(("x", "y"),)))
    assert json.loads(path.read_text()) == {
        "schema": 1,
        "baseline": None,
        "watch_pairs": [["x", "y"]],
        "cells": [{"id": "a", "key": "key of a"}, {"id": "b", "key": "key of b"}],
    }
    assert read_plan(path) == Planned(None, {"key of a": "a", "key of b": "b"}, (("x", "y"),))


def test_a_plan_of_an_earlier_version_has_no_pairs_to_watch(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"schema": 1, "baseline": "a", "cells": [{"id": "a", "key": "k"}]}')
    assert read_plan(path) == Planned("a", {"k": "a"}, ())


def test_where_no_plan_was_written_there_is_none(tmp_path):
    assert read_plan(tmp_path / "plan.json") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "7",
        '{"schema": 2}',
        '{"schema": 1, "baseline": null}',
        '{"schema": 1, "baseline": null, "cells": [], "watch_pairs": [["a"]]}',
        '{"schema": 1, "baseline": null, "cells": [], "watch_pairs": 7}',
        "[" * 100_000,
    ],
)
def test_a_damaged_plan_or_one_of_another_schema_is_an_error(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\S"):
        read_plan(path)
