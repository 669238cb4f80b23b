from __future__ import annotations

from io import StringIO

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.tables.csv import to_csv
from bench.tables.kernel_fused import fused_table
from bench.tables.kernel_layers import MOST_CASES, layers_table
from bench.tables.kernel_overheads import overheads_table
from bench.tables.kernel_refused import refused_table
from bench.tables.kernel_settings import settings_table
from bench.tables.kernels import load_kernels
from bench.tables.markdown import to_markdown
from bench.tables.terminal import fitting, print_table

from .kernel_examples import SETTINGS, case, crossed, peaks, refused, small_matrix, whole_matrix, write_kernels


def loaded(folder, cases, **about):
    return load_kernels(write_kernels(folder / "r", cases, **about))


def table_of(folder, cases, **about):
    return layers_table(loaded(folder, cases, **about))


def shown(table):
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return [dict(zip(headings, row, strict=True)) for row in table.texts()]


def test_the_price_and_the_loss_stand_side_by_side(tmp_path):
    info = {"moved_bytes": 26_100_000, "flops_count": 12_840_000_000, "scratch_bytes": 25_690_112}
    cases = [case("none", median_s=16e-6), case("nf4", median_s=20e-6, spread=0.05, info=info)]
    told = peaks(copy=2.61e12, matmul={"bfloat16": 642e12}, drift=0.0)
    row = shown(table_of(tmp_path, cases, of_peaks=told))[1]
    assert row == {
        "layer": "", "quant.": "nf4", "time µs": "20.0", "IQR %": "5.3", "against 16-bit": "+25.0 %", "GB/s": "1,305",
        "% of copy": "50", "TFLOP/s": "642", "% of matmul": "100", "RMSE/σ Gaussian": "0.0932",  # noqa: RUF001
        "RMSE/σ SmolLM2": "0.0941", "path": "dequantized", "scratch MB": "25.7",  # noqa: RUF001
    }  # fmt: skip


@pytest.mark.parametrize(("median_s", "unit"), [(1e-6, "TFLOP/s"), (1.0, "GFLOP/s")])
def test_the_unit_of_operations_is_that_of_the_fastest_case_and_the_legend_names_it(tmp_path, median_s, unit):
    table = table_of(tmp_path, [case(median_s=median_s)])
    assert unit in shown(table)[0]
    told = {column.about.split(":")[0] for column in table.columns if "products" in column.about}
    assert told == {unit}


def test_a_path_is_told_of_4_bit_forwards_only_and_quantizing_has_no_flops(tmp_path):
    cases = [case("nf4", rows=1), case("nf4"), case("none"), case("nf4", operation="forward_backward"),
             case("nf4", operation="dequantize")]  # fmt: skip
    told = shown(table_of(tmp_path, cases))
    assert [row["path"] for row in told] == ["fused", "dequantized", "–", "–", "–"]  # noqa: RUF001
    assert told[-1]["TFLOP/s"] == "–"  # noqa: RUF001
    assert [row["layer"] for row in told] == [
        "q_proj forward 1 row", "q_proj forward 512 rows", "", "q_proj forward_backward 512 rows", "q_proj dequantize",
    ]  # fmt: skip


def test_cases_that_differ_in_quantization_alone_are_named_once_together(tmp_path):
    cases = [case(name, lora_r=rank) for rank in (0, 16) for name in SETTINGS]
    labels = [row["layer"] for row in shown(table_of(tmp_path, cases))]
    assert labels == ["q_proj", *[""] * 5, "q_proj", "r=16", *[""] * 4]


def test_the_csv_has_every_case_and_all_that_is_known_of_it(tmp_path):
    frame = loaded(tmp_path, whole_matrix(), refusals=[refused()])
    table = layers_table(frame)
    rows = pd.read_csv(StringIO(to_csv(table)))
    assert len(rows) == len(frame) - 1
    assert set(frame) - set(rows) == {"status", "message", "hint"}
    assert rows["p50_s"].tolist() == frame["p50_s"].dropna().tolist()


def test_of_very_many_cases_the_table_has_those_that_matter_and_says_which(tmp_path):
    cases = whole_matrix()
    table = table_of(tmp_path, cases)
    assert 100 < len(table.rows) <= MOST_CASES
    assert set(table.rows["layer"]) == {"q_proj", "k_proj", "gate_proj", "down_proj"}
    kept = table.rows.groupby("operation")["rows"].unique().map(lambda rows: sorted(rows.dropna())).to_dict()
    assert kept == {"forward": [1, 16384], "forward_backward": [512, 16384], "quantize": [], "dequantize": []}
    assert table.caption[-1] == (
        f"Here are {len(table.rows)} of {len(cases):,} cases, those of qwen2.5-7b in bfloat16 without adapters at the "
        "fewest and the most rows; layers.csv has all."
    )
    assert len(to_markdown(table).splitlines()) < MOST_CASES + 30


def test_of_even_more_layers_the_first_are_there(tmp_path):
    cases = [case(name, layer=f"{number}x64") for number in range(1, 160) for name in ("none", "nf4")]
    table = table_of(tmp_path, cases)
    assert len(table.rows) == MOST_CASES
    assert "at the fewest and the most rows, the first 200 of them; layers.csv has all." in table.caption[-1]


def test_a_small_result_is_there_in_full(tmp_path):
    table = table_of(tmp_path, small_matrix())
    assert len(table.rows) == len(small_matrix())
    assert "Here are" not in " ".join(table.caption)


def test_refused_cases_are_rows_of_their_own_table(tmp_path):
    told = [refused(), refused("none", status="oom", message="2 GB short", hint=None, rows=16384)]
    frame = loaded(tmp_path, [case()], refusals=told)
    assert len(layers_table(frame).rows) == 1
    assert refused_table(frame).texts() == [
        ["forward-qwen2.5-7b-q_proj-nf4-bf16-512", "invalid", "q_proj: no such layer", "it has k_proj"],
        ["forward-qwen2.5-7b-q_proj-none-bf16-16384", "oom", "2 GB short", "–"],  # noqa: RUF001
    ]
    assert refused_table(loaded(tmp_path, [case()])).rows.empty
    assert layers_table(loaded(tmp_path, [], refusals=told)).rows.empty


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("r"), whole_matrix())


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("make", [overheads_table, settings_table, fused_table, layers_table])
def test_at_common_widths_no_line_is_too_long_and_no_figure_is_folded(whole, make, width):
    table = make(whole)
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        print_table(table, console, "results/kernels/tables/x.md")
    lines = capture.get().splitlines()
    assert max(map(cell_len, lines)) <= width
    assert sum(line.rstrip().endswith("%") and len(line.split()) == 1 for line in lines) == 0
    columns = fitting(table.columns, table.texts(table.shown), width)
    assert len(columns) >= 6


def test_what_a_reader_wants_first_is_there_at_80_characters(whole):
    table = overheads_table(whole)
    kept = [table.columns[index].heading for index in fitting(table.columns, table.texts(table.shown), 80)]
    assert kept == ["layers of", "rows", "r", "nf4", "nf4-dq", "fp4", "fp4-dq", "int8"]


def test_one_layer_of_a_written_shape_is_named_by_it(tmp_path):
    told = shown(table_of(tmp_path, crossed(["qwen2.5-7b"], ["4096x11008"], (1,), ranks=(0,), names=("none", "nf4"))))
    assert told[0]["layer"] == "4096x11008 forward 1 row"


def test_the_fewest_and_the_most_rows_are_those_of_the_model_that_is_shown(tmp_path):
    cases = [one for one in whole_matrix() if (said := one["extra_info"]["parameters"])["model"] != "qwen2.5-7b"
             or said["rows"] not in (1, 16384)]  # fmt: skip

    rows = layers_table(load_kernels(write_kernels(tmp_path / "r", cases))).rows

    assert set(rows["model"]) == {"qwen2.5-7b"}
    assert set(rows.loc[rows["operation"] == "forward", "rows"]) == {4, 4096}
