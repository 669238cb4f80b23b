from __future__ import annotations

import pytest

from bench.tables.kernel_caption import conditions, doubts, largest_drift
from bench.tables.kernels import load_kernels

from .kernel_examples import CACHE_BYTES, CPU, case, peaks, refused, timed, write_kernels


def loaded(folder, cases, **about):
    return load_kernels(write_kernels(folder / "r", cases, **about))


def test_the_caption_says_what_was_timed_on_what_against_which_peaks_and_how(tmp_path):
    frame = loaded(tmp_path, [case(), case(rounds=5)], refusals=[refused()], of_peaks=peaks(drift=0.01))
    assert conditions(frame) == (
        "kernels: 2 cases timed, 1 refused; n = 5 to 20 rounds of 40 launches.",
        "NVIDIA H100 80GB HBM3; torch 2.11.0, transformers 5.17.0, peft 0.21.0, bitsandbytes 0.50.2; 2026-11-22.",
        "Measured peaks: copy 2.64 TB/s, matmul bfloat16 648 TFLOP/s, float16 662 TFLOP/s and float32 49.5 TFLOP/s; at "
        "the end of the session copy +1.0 %, matmul bfloat16 +1.0 %, matmul float16 +1.0 %, matmul float32 +1.0 % "
        "against its start.",
        "Times by CUDA events around replays of a CUDA graph, on operands that rotate through more than the L2 cache "
        "(52 MB).",
    )


def test_on_a_cpu_it_is_the_host_s_clock_and_no_cache_is_told_of(tmp_path):
    info = {"launch": "host", "cache_bytes": None, "scratch_bytes": None, "fused": None}
    told = conditions(loaded(tmp_path, [case(info=info)], machine=CPU, of_peaks=[]))
    assert told[1].startswith("CPU Intel(R) Xeon(R) Platinum 8480C; ")
    assert told[2:] == ("Times by the host's clock.",)


def test_a_result_without_any_time_still_has_a_caption(tmp_path):
    told = conditions(loaded(tmp_path, [], refusals=[refused()], of_peaks=[]))
    assert told[0] == "kernels: 0 cases timed, 1 refused."
    assert len(told) == 2


def test_what_is_beyond_doubt_has_no_note(tmp_path):
    assert doubts(loaded(tmp_path, [case("nf4"), case("none")])) == ()


@pytest.mark.parametrize(
    ("cases", "note"),
    [
        (
            [case(info={"rotated_bytes": CACHE_BYTES - 1}), case("none")],
            "1 case with operands that all fit into the L2 cache, so that they ran out of it, faster than in a model: "
            "forward-qwen2.5-7b-q_proj-nf4-bf16-512.",
        ),
        (
            [case("int8"), case("int8", rows=1), case("none")],
            "int8: 2 cases launched eagerly, since the operation waits for the host, "
            "which takes most of their time: they have no rates, and are compared with nothing.",
        ),
        (
            [case("none", spread=0.0511), *(case(spread=0.06, rows=rows) for rows in (1, 2, 3, 4))],
            "5 cases with an IQR above 5 % of the median: forward-qwen2.5-7b-q_proj-none-bf16-512, "
            "forward-qwen2.5-7b-q_proj-nf4-bf16-1, forward-qwen2.5-7b-q_proj-nf4-bf16-2 and 2 more.",
        ),
        (
            [case(info={"warnings": ["The clock was low."]}), case("none", info={"warnings": ["The clock was low."]})],
            "The clock was low: forward-qwen2.5-7b-q_proj-nf4-bf16-512, forward-qwen2.5-7b-q_proj-none-bf16-512.",
        ),
    ],
)
def test_each_doubt_is_told_with_its_cases(tmp_path, cases, note):
    assert doubts(loaded(tmp_path, cases)) == (note,)


def test_a_spread_of_just_5_percent_is_none(tmp_path):
    assert doubts(loaded(tmp_path, [case(spread=0.047), case("none")])) == ()


def test_peaks_that_drifted_are_named_and_those_that_did_not_are_not(tmp_path):
    told = [*peaks(drift=0.0)[:-1], *peaks(drift=-0.03)[-1:]]
    frame = loaded(tmp_path, [case()], of_peaks=told)
    assert largest_drift(frame) == pytest.approx(0.03)
    assert doubts(frame) == (
        "Peaks drifted during the session, so that times of its ends compare less well: matmul float32 −3.0 %.",  # noqa: RUF001
    )


def test_peaks_that_were_not_measured_are_told_of(tmp_path):
    frame = loaded(tmp_path, [case(), case(compute_dtype="float32")], of_peaks=[])
    assert doubts(frame) == (
        "The copy bandwidth was not measured, so there is no share of it.",
        "The peak of matmul was not measured for bfloat16 and float32, so there is no share of it.",
    )
    assert largest_drift(frame) == 0


def test_what_was_left_out_of_the_file_is_told(tmp_path):
    (note,) = doubts(loaded(tmp_path, [case(), timed({}, 1.0, "test_other")]))
    assert "1 benchmark of no kernel" in note
