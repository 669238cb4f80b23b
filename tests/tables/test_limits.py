from __future__ import annotations

from bench.tables.limits import limit_rules
from bench.tables.load import load_results

from .examples import CAP, T4, record, write_result


def rules(folder, *measures, limit="T4"):
    records = [
        record(f"c{number}", parameters={**T4, "vram_limit": limit}, measures=entry)
        for number, entry in enumerate(measures)
    ]
    return limit_rules(load_results(write_result(folder / "r", records)))


def test_without_a_limit_there_is_no_rule(tmp_path):
    assert limit_rules(load_results(write_result(tmp_path / "r", [record("a", measures=CAP)]))) == ()


def test_a_record_of_before_contexts_were_measured_has_the_cap_only(tmp_path):
    assert rules(tmp_path, {"cap_bytes": 15_397_289_984}) == ("vram_limit T4: torch may hold 15.40 GB.",)


def test_contexts_that_differ_are_a_range_and_managed_memory_has_its_size(tmp_path):
    other = {**CAP, "context_bytes": 750_000_000, "cap_bytes": 15_356_127_360, "optimizer_managed_bytes": 330_000_000}
    assert rules(tmp_path, CAP, other) == (
        "vram_limit T4: torch may hold 15.36 GB to 15.40 GB, the card's 16.11 GB less the 0.71 GB to 0.75 GB that CUDA "
        "took before the model; what CUDA loads later and managed memory come on top (up to 0.21 GB here, 0.33 GB of "
        "optimizer state is managed).",
    )


def test_where_nvml_told_nothing_no_figure_stands_in_the_rule(tmp_path):
    (rule,) = rules(tmp_path, {**CAP, "train_outside_torch_bytes": None})
    assert "what CUDA loads later and managed memory come on top." in rule
