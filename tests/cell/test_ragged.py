from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.cell import ragged

ROWS = [(1, 2, 3), (), (2**31 - 1,), (0, 0)]


def kept(folder: Path, key: str = "key") -> list[tuple[int, ...]]:
    """Return the rows of a file that must be there."""
    return list(ragged.keep(folder, key, lambda: pytest.fail("made again")))


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9).map(tuple), max_size=9))
def test_rows_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, ...]]) -> None:
    folder = tmp_path_factory.mktemp("rows")

    assert list(ragged.keep(folder, "key", lambda: rows)) == rows
    assert kept(folder) == rows


def test_rows_are_mapped_into_memory_and_not_read(tmp_path: Path) -> None:
    ragged.keep(tmp_path, "key", lambda: [tuple(range(10_000))])

    found = ragged.keep(tmp_path, "key", list)

    assert len(found[0]) == 10_000
    assert "key.safetensors" in Path("/proc/self/maps").read_text()


def test_each_key_has_its_own_rows(tmp_path: Path) -> None:
    ragged.keep(tmp_path, "one", lambda: ROWS)
    ragged.keep(tmp_path, "other", lambda: ROWS[:1])

    assert (kept(tmp_path, "one"), kept(tmp_path, "other")) == (ROWS, ROWS[:1])


@pytest.mark.parametrize("content", [b"", b"torn", b"\xff" * 100], ids=["empty", "torn", "noise"])
def test_a_damaged_file_is_made_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.safetensors"
    path.write_bytes(content)

    assert list(ragged.keep(tmp_path, "key", lambda: ROWS)) == ROWS
    assert kept(tmp_path) == ROWS


def test_a_file_cut_short_is_made_again(tmp_path: Path) -> None:
    ragged.keep(tmp_path, "key", lambda: ROWS)
    path = tmp_path / "key.safetensors"
    path.write_bytes(path.read_bytes()[:-4])

    assert list(ragged.keep(tmp_path, "key", lambda: ROWS[:2])) == ROWS[:2]
    assert kept(tmp_path) == ROWS[:2]


def test_a_file_of_other_tensors_is_made_again(tmp_path: Path) -> None:
    ragged.write(tmp_path / "key.safetensors", {"something": torch.zeros(3)})

    assert list(ragged.keep(tmp_path, "key", lambda: ROWS)) == ROWS
    assert kept(tmp_path) == ROWS


def test_rows_are_there_where_the_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    assert list(ragged.keep(tmp_path / "file" / "folder", "key", lambda: ROWS)) == ROWS


def test_a_write_that_fails_leaves_no_draft_and_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.safetensors"
    ragged.write(path, {"numbers": torch.ones(3)})
    before = path.read_bytes()

    def fail(self: Path, _: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        ragged.write(path, {"numbers": torch.zeros(3)})

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_users_of_a_cache_may_read_what_it_keeps(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    ragged.keep(tmp_path, "key", lambda: ROWS)

    assert (tmp_path / "key.safetensors").stat().st_mode == plain.stat().st_mode
