from __future__ import annotations

import pytest

from bench.run.progress import Activity
from bench.run.wording import activity_line, duration, finished_line, key_figures

from .examples import plan_of, record

MEASURES = {
    "stored_bytes": 5_547_065_616,
    "tokens_per_s": 12345.6,
    "accuracy_before": 0.112,
    "accuracy_after": 0.86494,
}


def line(width=80, again=False, **changes):
    return finished_line(record(**changes), "[ 3/48]", width, "→", again)


def test_a_finished_cell_shows_its_key_figures():
    words = line(id="nf4-dq", seed=2, measures=MEASURES, wall_s=83.0)
    assert words == "[ 3/48] nf4-dq s2: ok, 5.55 GB, 12,346 tokens/s, 11.2 → 86.5 %, 1:23"


def test_what_was_not_measured_is_left_out():
    assert line(measures={}) == "[ 3/48] nf4 s0: ok, 0:12"
    assert key_figures(record(measures={"stored_bytes": 110_000_000, "tokens_per_s": None}), "→") == ["0.11 GB"]


def test_a_failure_shows_where_and_why_in_one_line():
    words = line(status="oom", phase="train", message="CUDA out of memory\nand much more")
    assert words == "[ 3/48] nf4 s0: oom in train, 0:12: CUDA out of memory"
    assert line(status="timeout", phase="load") == "[ 3/48] nf4 s0: timeout in load, 0:12"


def test_a_long_reason_is_cut():
    words = line(status="crashed", message="reason " * 30)
    assert len(words) == 80
    assert words.endswith("..")


def test_a_crash_says_whether_it_is_tried_again():
    assert line(status="crashed", phase="load", again=True).endswith("crashed in load, 0:12, will be tried again")


def test_a_long_id_is_shortened_to_keep_within_80_columns():
    words = line(id="smollm2-135m-nf4-dq-bf16-all-linear-r16-lr0.0005", measures=MEASURES)
    assert len(words) == 80
    assert words.startswith("[ 3/48] smollm2-135m-nf4")
    assert ".. s0: ok, " in words
    assert len(line(id="x" * 90, measures=MEASURES, width=20)) < 80, "a narrow terminal still tells which cell it is"


def test_a_baseline_that_runs_once_more_is_named_so():
    assert line(repeat=1, measures={}) == "[ 3/48] nf4 s0 again: ok, 0:12"
    assert line(repeat=1, status="oom", phase="load") == "[ 3/48] nf4 s0 again: oom in load, 0:12"
    *_, job = plan_of("nf4-dq", "lora-bf16", baseline="lora-bf16").jobs
    assert activity_line("gpu0", Activity(job, 0.0, "load"), 61.0, 80) == "gpu0 lora-bf16 s0 again: load, 1:01"


def test_a_slot_says_what_it_does():
    (job,) = plan_of("nf4-dq").jobs
    assert activity_line("gpu0", Activity(job, 0.0, "load"), 61.0, 80) == "gpu0 nf4-dq s0: load, 1:01"
    activity = Activity(job, 0.0, "train", 12, 313)
    assert activity_line("gpu0", activity, 3661.0, 80) == "gpu0 nf4-dq s0: train 12/313, 1:01:01"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0:00"), (59.6, "1:00"), (243, "4:03"), (3599.9, "1:00:00"), (90_061, "25:01:01")]
)
def test_durations_read_like_clocks(seconds, words):
    assert duration(seconds) == words
