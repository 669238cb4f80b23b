from __future__ import annotations

import pytest

from bench.cell.evidence import write_layers
from bench.cell.layers import LayerError
from bench.protocol import LAYERS
from bench.run.store import evidence_name
from bench.tables.evidence import gather
from bench.tables.load import load_results
from bench.tables.quantization import quantization_table
from bench.tables.table import MISSING

from .answers import shown
from .examples import BF16, NF4, default_matrix, quality, record, write_result

EXACT = {"label_kl_before": 0.0, "label_agreement_before": 1.0, "next_token_kl_before": 0.0,
         "next_token_agreement_before": 1.0, "next_token_prompts_count": 256,
         "expected_calibration_error_before": 0.21}  # fmt: skip
ROUNDED = {"label_kl_before": 0.0312, "label_agreement_before": 0.914, "next_token_kl_before": 0.0441,
           "next_token_agreement_before": 0.883, "next_token_prompts_count": 256,
           "expected_calibration_error_before": 0.223, "weight_error": 0.0912, "weight_error_max": 0.1034,
           "weight_error_layers_count": 210}  # fmt: skip
LAYER_ERRORS = [
    LayerError("model.layers.0.self_attn.q_proj", 100, 0.02, 0.2),
    LayerError("model.layers.1.mlp.up_proj", 300, 0.1, 0.8),
    LayerError("model.layers.0.mlp.up_proj", 300, 0.1, 0.8),
    LayerError("model.layers.2.mlp.up_proj", 300, 0.01, 0.8),
]


def base(seed=0, **fields):
    return record(
        "base", seed, parameters={"quant_type": "none"}, measures={**BF16, **quality(0.87), **EXACT}, **fields
    )


def nf4(cell_id="nf4", seed=0, figures=None, parameters=None, **fields):
    measures = {**NF4, **quality(0.86), **ROUNDED, **(figures or {})}
    return record(cell_id, seed, parameters=parameters, measures=measures, **fields)


def table_of(folder, records, layers=()):
    write_result(folder, records, baseline="base")
    for entry in layers:
        write_layers(folder, evidence_name(entry["key"], entry["seed"], 0), LAYER_ERRORS)
    return quantization_table(gather(load_results(folder)))


def test_a_base_is_a_row_and_the_16_bit_one_shows_no_error_no_divergence_and_full_agreement(tmp_path):
    records = [base(), nf4(), nf4("nf4-r8", parameters={"lora_r": 8}), nf4("nf4-attention")]
    table = table_of(tmp_path, records, layers=records[1:])
    assert table.title == "default: what quantization alone did, before training"
    assert shown(table)["base (baseline)"] == {
        "base": "base (baseline)", "quant_type": "none", "weight error RMSE/σ": "0.0000",  # noqa: RUF001
        "worst layer": "0.0000", "label KL nats": "0.0000", "label agree %": "100.0", "next-token KL nats": "0.0000",
        "next-token agree %": "100.0", "accuracy %": "11.2 ± 1.1", "macro-F1": "0.080", "held-out loss": "3.900",
        "ECE %": "21.0", "stored MB": "269.0", "HF footprint MB": "269.0", "worst layers": MISSING,
    }  # fmt: skip
    assert shown(table)["nf4 + 2"] == {
        "base": "nf4 + 2", "quant_type": "nf4", "weight error RMSE/σ": "0.0912",  # noqa: RUF001
        "worst layer": "0.1034", "label KL nats": "0.0312", "label agree %": "91.4", "next-token KL nats": "0.0441",
        "next-token agree %": "88.3", "accuracy %": "11.2 ± 1.1", "macro-F1": "0.080", "held-out loss": "3.900",
        "ECE %": "22.3", "stored MB": "116.4", "HF footprint MB": "109.8",
        "worst layers": "model.layers.0.mlp.up_proj 0.1250\nmodel.layers.1.mlp.up_proj 0.1250\n"
                        "model.layers.0.self_attn.q_proj 0.1000",
    }  # fmt: skip
    assert table.rows.loc[1, ["ids", "cells_count"]].tolist() == ["nf4,nf4-r8,nf4-attention", 3]
    assert table.rows.loc[1, "worst_layer_2_rmse_per_sigma"] == pytest.approx(0.125)
    assert "3,080 test examples, 77 labels, 256 prompts for the next token; 2 different bases." in table.caption[-1]
    assert table.notes == ()


def test_bases_that_differ_in_a_setting_or_in_a_figure_only_are_rows_of_their_own(tmp_path):
    records = [
        base(),
        nf4("a"),
        nf4("b", parameters={"compute_dtype": "float16"}),
        nf4("c", figures={"label_kl_before": 0.04}),
        nf4("d", figures={"weight_error": 0.0912 * (1 + 1e-15)}),
    ]
    table = table_of(tmp_path, records, layers=records[1:])
    assert table.rows["ids"].tolist() == ["base", "a,d", "b", "c"]


def test_where_no_weight_was_compared_nothing_is_said_of_weights_not_even_of_the_16_bit_ones(tmp_path):
    table = table_of(tmp_path, default_matrix())
    headings = {column.heading for column in table.columns}
    assert not headings & {"weight error\nRMSE/σ", "worst layers", "label\nKL nats"}  # noqa: RUF001
    assert table.notes == ("No 16-bit reference for any run, so no KL and no agreement.",)


def test_a_base_without_a_reference_has_dashes_and_a_note(tmp_path):
    lost = nf4("fp4", parameters={"quant_type": "fp4"})
    for name in EXACT:
        del lost["measures"][name]
    table = table_of(tmp_path, [base(), nf4(), lost], layers=[nf4(), lost])
    assert shown(table)["fp4"]["label KL nats"] == shown(table)["fp4"]["next-token agree %"] == MISSING
    assert table.notes == ("No 16-bit reference for fp4, so no KL and no agreement.",)


def test_a_file_of_layers_that_is_missing_or_torn_is_a_note_unless_another_cell_of_the_base_has_it(tmp_path):
    fp4 = {"quant_type": "fp4"}
    records = [base(), nf4("a"), nf4("b"), nf4("c", parameters=fp4), nf4("d", parameters={"compute_dtype": "float16"})]
    write_result(tmp_path, records, baseline="base")
    for entry in records[1:4]:
        write_layers(tmp_path, evidence_name(entry["key"], 0, 0), LAYER_ERRORS)
    for entry in (records[1], records[3]):
        path = tmp_path / LAYERS / f"{evidence_name(entry['key'], 0, 0)}.parquet"
        path.write_bytes(path.read_bytes()[:-20])
    table = quantization_table(gather(load_results(tmp_path)))
    rows = table.rows.set_index("id")
    assert rows.loc["a", "worst_layer_1"] == "model.layers.0.mlp.up_proj"
    assert rows.loc[["base", "c", "d"], "worst_layer_1"].isna().all()
    torn, missing = table.notes
    assert torn.startswith("Worst layers are not known, as their file cannot be read (")
    assert torn.endswith("): c.")
    assert missing == "Worst layers are not known, as their file is missing: d."


def test_a_cell_that_failed_after_it_was_scored_counts_and_one_that_failed_before_is_a_note(tmp_path):
    records = [
        base(),
        nf4("oom", status="oom", phase="train"),
        record("dead", status="crashed", phase="load"),
        record("random", parameters={"weights": "random"}, measures={**NF4, **quality(0.5)}),
    ]
    table = table_of(tmp_path, records, layers=records[1:2])
    assert table.rows["id"].tolist() == ["base", "oom"]
    assert table.notes == ("Ended before scoring: dead (crashed).",)


def test_figures_that_differ_by_seed_are_means_and_a_note_says_so(tmp_path):
    records = [base(), base(1), nf4(), nf4(seed=1, figures={"label_kl_before": 0.0314})]
    table = table_of(tmp_path, records, layers=records[2:])
    assert table.rows.loc[1, "label_kl_before"] == pytest.approx(0.0313)
    assert table.notes == ("Figures before training differ by seed, so they are means: nf4.",)


@pytest.mark.parametrize(
    "only",
    [
        record("base", status="crashed", phase="load"),
        record("base", parameters={"weights": "random"}, measures={**NF4, "tokens_per_s": 9.0}),
    ],
)
def test_where_nothing_was_scored_there_is_no_table(tmp_path, only):
    table = table_of(tmp_path, [only])
    assert table.rows.empty
    assert table.columns == ()
