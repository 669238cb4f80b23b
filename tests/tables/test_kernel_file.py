from __future__ import annotations

import gzip
import json
import os

import pytest

from bench.errors import BenchError
from bench.tables.kernel_file import kernels_file, kernels_files, read
from bench.tables.kernels import load_kernels

from .kernel_examples import case, document, peaks, refused, write_kernels

OURS = "give the kernels.json that nox -s kernels writes"


def written(folder, content):
    path = folder / "kernels.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_cases_peaks_refusals_and_what_is_foreign_are_told_apart(tmp_path):
    foreign = [{"name": "test_other", "extra_info": {}}, {"name": "no extra"}]
    content = document([case("nf4"), case("none")], refusals=[refused()])
    content["benchmarks"] += foreign
    found = read(written(tmp_path, content))
    assert [one.extra_info.parameters.quant_type for one in found.cases] == ["nf4", "none"]
    assert len(found.peaks) == len(peaks())
    assert [one.status for one in found.refused] == ["invalid"]
    assert found.foreign_count == 2


def test_a_gzipped_file_is_the_same_whatever_its_name(tmp_path):
    folder = write_kernels(tmp_path / "r", [case()])
    for name in ("kernels.json.gz", "renamed.json"):
        (tmp_path / name).write_bytes(gzip.compress((folder / "kernels.json").read_bytes()))
        assert read(tmp_path / name) == read(folder / "kernels.json")


def test_a_folder_means_its_file_and_the_plain_one_before_the_gzipped_one(tmp_path):
    folder = write_kernels(tmp_path / "r", [case()])
    (folder / "kernels.json.gz").write_bytes(gzip.compress(b"{}"))
    assert kernels_file(folder) == folder / "kernels.json"
    (folder / "kernels.json").unlink()
    assert kernels_file(folder) == folder / "kernels.json.gz"
    assert kernels_files(folder) == [folder / "kernels.json.gz"]


def test_all_results_below_a_folder_are_found_by_name_and_other_files_are_not(tmp_path):
    folders = [write_kernels(tmp_path / name, [case()]) for name in ("b", "a/deep")]
    (tmp_path / "other.json").write_text("{}")
    assert kernels_files(tmp_path) == [folders[1] / "kernels.json", folders[0] / "kernels.json"]
    assert kernels_files(tmp_path / "other.json") == [tmp_path / "other.json"]
    written(tmp_path, b"").rename(tmp_path / "records.jsonl")
    assert kernels_files(tmp_path / "records.jsonl") == []
    assert kernels_files(tmp_path / "nothing") == []


def test_where_there_is_none_an_error_says_what_makes_one(tmp_path):
    with pytest.raises(BenchError, match=r"no kernels\.json here; run nox -s kernels first"):
        load_kernels(tmp_path)
    with pytest.raises(BenchError, match="nothing: the result of kernel benchmarks does not exist"):
        load_kernels(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        ([], f"is not of the kernel benchmarks: it lacks benchmarks or matrix; {OURS}"),
        ({"benchmarks": {}}, "is not of the kernel benchmarks"),
        ({"benchmarks": [], "version": "5.3.1"}, "is not of the kernel benchmarks"),
        (document([]), "holds no kernel benchmark"),
        (gzip.compress(b"{}", mtime=0)[:-4], "is damaged or cut short: it cannot be decompressed"),
        (gzip.compress(b"{}" * 50, mtime=0)[:15] + b"garbage", "is damaged or cut short"),
    ],
)
def test_a_file_that_is_none_of_ours_is_an_error_that_says_so(tmp_path, content, words):
    path = written(tmp_path, content)
    with pytest.raises(BenchError) as caught:
        load_kernels(path)
    assert str(caught.value).startswith(f"{path}: {words}")
    assert caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: one["extra_info"].pop("flops_count"), "cases.0.extra_info.flops_count: Field required"),
        (lambda one: one["extra_info"]["parameters"].update(rows="many"), "cases.0.extra_info.parameters.rows"),
        (lambda one: one["extra_info"].update(launch="rocket"), "cases.0.extra_info.launch"),
        (lambda one: one["extra_info"].update(moved_bytes=0), "cases.0.extra_info.moved_bytes"),
        (lambda one: one["stats"].update(median=0.0), "cases.0.stats.median"),
        (lambda one: one["stats"].update(iqr=float("nan")), "cases.0.stats.iqr"),
        (lambda one: one.pop("stats"), "cases.0.stats: Field required"),
    ],
)
def test_a_damaged_case_is_named_with_its_field(tmp_path, change, words):
    damaged = case()
    change(damaged)
    with pytest.raises(BenchError, match=r"is damaged: .*; make it anew: nox -s kernels") as caught:
        load_kernels(written(tmp_path, document([damaged])))
    assert words in str(caught.value)


def test_of_many_damages_the_first_are_told(tmp_path):
    content = document([case() for _ in range(20)])
    for one in content["benchmarks"]:
        one["stats"].pop("rounds")
    with pytest.raises(BenchError) as caught:
        load_kernels(written(tmp_path, content))
    assert len(caught.value.problems) == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path):
    path = written(tmp_path, document([case()]))
    path.chmod(0)
    with pytest.raises(BenchError, match="cannot be read"):
        load_kernels(path)


def test_a_newer_file_is_left_to_a_newer_program(tmp_path):
    file = write_kernels(tmp_path / "r", [case()]) / "kernels.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 2}))

    with pytest.raises(BenchError, match="is of schema 2, and this program reads 1; install the version that reads it"):
        load_kernels(file)
