from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.matrix.kernels import load_kernels as load_kernel_matrix
from bench.matrix.parameters import Parameters
from bench.matrix.select import select_cells
from bench.tables.kernels import load_kernels
from benchmarks.step_prediction_timings import (
    KERNEL_MATRIX,
    ROOT,
    Linear,
    Missing,
    alternatives,
    common_words,
    how_to_time,
    predict,
    refuse,
)
from tests.tables.kernel_examples import case, refused, write_kernels

ROWS = 4096
QWEN = (
    Linear("q_proj", 28, 3584, 3584, True, 16),
    Linear("k_proj", 28, 512, 3584, True, 16),
    Linear("v_proj", 28, 512, 3584, True, 16),
    Linear("o_proj", 28, 3584, 3584, False, 16),
)


def cell(**given):
    return Parameters(model="qwen2.5-7b", weights="random", kbit_upcast=False, **given)


def timed(tmp_path, *cases, **more):
    return load_kernels(write_kernels(tmp_path, cases, **more))


def training(name="nf4-dq", **more):
    return case(name, **{"operation": "forward_backward", "rows": ROWS, "lora_r": 16, **more})


def test_a_prediction_is_the_launches_times_the_time_of_one(tmp_path):
    timings = timed(tmp_path, training(median_s=2e-3), training(layer="k_proj", median_s=5e-4))

    found = predict(cell(gradient_accumulation_steps=2), ROWS, QWEN, timings)

    assert found.linear_s == pytest.approx(2 * 28 * (2 * 2e-3 + 2 * 5e-4))
    assert [(part.layer, part.timed_layer, part.launches_count) for part in found.parts] == [
        ("q_proj", "q_proj", 56), ("k_proj", "k_proj", 56), ("v_proj", "k_proj", 56), ("o_proj", "q_proj", 56),
    ]  # fmt: skip
    assert [(launch["layer"], count) for launch, count in found.launches] == [("q_proj", 112), ("k_proj", 112)]
    assert found.notes == ("o_proj: by the timing of q_proj, which has a bias",)
    as_json = found.as_json()
    assert as_json["linear_s"] == pytest.approx(sum(layer["total_s"] for layer in as_json["layers"]))


def test_checkpointing_adds_a_forward(tmp_path):
    timings = timed(
        tmp_path,
        training(median_s=2e-3),
        case("nf4-dq", rows=ROWS, lora_r=16, median_s=3e-4),
        case("nf4-dq", rows=ROWS),
    )

    found = predict(cell(gradient_checkpointing=True), ROWS, QWEN[:1], timings)

    assert found.linear_s == pytest.approx(28 * 2.3e-3)
    assert [(part.operation, part.p50_s) for part in found.parts] == [
        ("forward_backward", pytest.approx(2e-3)),
        ("forward", pytest.approx(3e-4)),
    ]
    assert [launch["operation"] for launch, _ in found.launches] == ["forward_backward", "forward"]


def test_a_layer_s_own_timing_comes_before_that_of_its_like(tmp_path):
    own, other = (
        training(layer="v_proj", median_s=7e-4, info={"out_features": 512, "in_features": 3584}),
        training(layer="k_proj", median_s=5e-4),
    )
    foreign = training(model="another", layer="v_proj", median_s=1.0, info={"out_features": 512, "in_features": 3584})
    timings = timed(tmp_path, foreign, other, own)

    assert predict(cell(), ROWS, QWEN[2:3], timings).parts[0].p50_s == pytest.approx(7e-4)
    assert predict(cell(), ROWS, QWEN[1:2], timings).parts[0].p50_s == pytest.approx(5e-4)


def test_another_model_s_layer_of_the_shape_will_do_and_is_named(tmp_path):
    timings = timed(tmp_path, training(model="another", layer="up", info={"out_features": 512, "in_features": 3584}))

    found = predict(cell(), ROWS, QWEN[1:2], timings)

    assert found.notes == ("k_proj: by the timing of another up, which has the same shape",)
    assert [launch["layer"] for launch, _ in found.launches] == ["k_proj"]
    assert [launch["model"] for launch, _ in found.launches] == ["qwen2.5-7b"]


@pytest.mark.parametrize(
    "other",
    [
        {"rows": 512}, {"lora_r": 0}, {"compute_dtype": "float16"}, {"operation": "forward"}, {"name": "nf4"},
        {"name": "fp4-dq"}, {"layer": "k_proj"},
    ],
)  # fmt: skip
def test_a_timing_of_other_settings_is_none(tmp_path, other):
    with pytest.raises(Missing, match="q_proj"):
        predict(cell(), ROWS, QWEN[:1], timed(tmp_path, training(**other)))


def test_a_layer_without_an_adapter_takes_a_timing_without_one(tmp_path):
    timings = timed(tmp_path, training(median_s=2e-3), training(lora_r=0, median_s=1e-3))
    plain = Linear("q_proj", 28, 3584, 3584, True, 0)

    assert predict(cell(), ROWS, [plain], timings).linear_s == pytest.approx(28e-3)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"kbit_upcast": True}, "kbit_upcast"),
        ({"load_dtype": "float32"}, "load_dtype"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_dropout": 0.1}, "lora_dropout"),
    ],
)
def test_what_a_cell_does_besides_is_noted(tmp_path, given, word):
    parameters = cell().model_copy(update=given)

    assert [note.split(":")[0] for note in predict(parameters, ROWS, QWEN[:1], timed(tmp_path, training())).notes] == [
        word
    ]


# What is missing ------------------------------------------------------------------------------------------------------


def missing_of(parameters, timings):
    with pytest.raises(Missing) as caught:
        predict(parameters, ROWS, QWEN, timings)
    return caught.value


def test_what_is_missing_is_named_with_the_command_that_times_it(tmp_path):
    timings = timed(
        tmp_path, training(), refusals=[refused("nf4-dq", "oom", "out of memory", "take fewer rows", layer="k_proj",
                                                operation="forward_backward", rows=ROWS, lora_r=16)]
    )  # fmt: skip
    parameters = cell()

    error = refuse(Path("k.json"), {"nf4": missing_of(parameters, timings)}, alternatives(parameters, ROWS, QWEN))

    assert isinstance(error, BenchError)
    (problem,) = error.problems
    assert problem.what == (
        "k.json lacks timings for cell nf4: k_proj [oom: out of memory], v_proj of qwen2.5-7b "
        "(forward_backward, nf4 with double quantization, bfloat16, 4096 rows, lora_r 16)"
    )
    assert problem.fix is not None
    expression = problem.fix.split("'")[1]
    assert f"nox -s kernels -- {KERNEL_MATRIX} -k '{expression}'" in problem.fix
    selected = {case.id for case in select_cells(load_kernel_matrix(ROOT / KERNEL_MATRIX).cases, expression)}
    expected = {f"forward_backward-qwen2.5-7b-{layer}-nf4-dq-bf16-4096-r16" for layer in ("q_proj", "k_proj")}
    assert expected <= selected
    assert len(selected) <= 4


def test_each_cell_has_a_line_and_the_last_the_advice(tmp_path):
    timings = timed(tmp_path, training("fp4"))
    cells = {"one": cell(), "other": cell(quant_type="none")}
    found = {name: missing_of(parameters, timings) for name, parameters in cells.items()}

    needed = [cases for parameters in cells.values() for cases in alternatives(parameters, ROWS, QWEN)]
    problems = refuse(Path("k.json"), found, needed).problems

    assert ["cell one" in problems[0].what, "cell other" in problems[1].what] == [True, True]
    assert problems[0].fix is None
    assert problems[1].fix is not None
    assert "(forward_backward, none, bfloat16, 4096 rows, lora_r 16)" in problems[1].what


def test_cases_that_the_shipped_matrix_lacks_are_written_out():
    parameters = cell(lora_r=7)
    odd = [Linear("q_proj", 28, 3584, 3584, True, 7)]

    assert how_to_time(alternatives(parameters, ROWS, odd)) == (
        "time all that is needed with a matrix of kernels that has include: [{operation: forward_backward, "
        "model: qwen2.5-7b, layer: q_proj, quant_type: nf4, double_quant: true, compute_dtype: bfloat16, rows: 4096, "
        "lora_r: 7}]"
    )
    mixed = how_to_time([*alternatives(parameters, ROWS, odd), *alternatives(cell(), ROWS, QWEN[:1])])
    assert mixed.startswith(
        f"{KERNEL_MATRIX} has forward_backward-qwen2.5-7b-q_proj-nf4-dq-bf16-4096-r16, not the others: time all"
    )


def test_words_that_all_ids_have_select_them():
    assert common_words(["forward-7b-q_proj-nf4-16", "forward-7b-k_proj-none-16"]) == "forward and 7b and 16"
    assert common_words(["a-b", "c-d"]) == "a-b or c-d"
