from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.run.display import display, render
from bench.run.engine import run_plan
from bench.run.progress import Progress
from bench.run.scripted import ScriptedClock, ScriptedExecutor, dies, finishes

from .examples import CPU, GPUS, plan_of

MEASURES = {"stored_bytes": 1.2e8, "tokens_per_s": 900.0, "accuracy_before": 0.1, "accuracy_after": 0.8}


def shown(tmp_path, console, ids=("a", "[bold]b"), slots=(CPU,), **options):
    def script(request, attempt):
        if request.id == "a" and attempt == 1:
            return dies(5.0, -9)
        return finishes("ok", 10.0, measures=MEASURES)

    clock = ScriptedClock()
    with display(console, clock) as observer:
        executor = ScriptedExecutor(clock, script)
        run_plan(plan_of(*ids), tmp_path, slots=slots, executor=executor, clock=clock, observer=observer, **options)
    return console.file.getvalue()


def test_without_a_terminal_there_are_plain_lines_only(tmp_path):
    text = shown(tmp_path, Console(file=io.StringIO(), width=80))
    assert text.splitlines() == [
        "[0/2] a s0: started on cpu",
        "[0/2] a s0: crashed in train, 0:05, will be tried again: the worker was killed..",
        "[0/2] a s0: started on cpu, attempt 2",
        "[1/2] a s0: ok, 0.12 GB, 900 tokens/s, 10.0 → 80.0 %, 0:10",
        "[1/2] [bold]b s0: started on cpu",
        "[2/2] [bold]b s0: ok, 0.12 GB, 900 tokens/s, 10.0 → 80.0 %, 0:10",
    ]


def test_a_baseline_that_runs_once_more_is_counted_and_named(tmp_path):
    def run():
        console, clock = Console(file=io.StringIO(), width=80), ScriptedClock()
        plan = plan_of("lora", "nf4", baseline="lora")
        with display(console, clock) as observer:
            executor = ScriptedExecutor(clock, lambda request, attempt: finishes("ok", 10.0))
            run_plan(plan, tmp_path, slots=(CPU,), executor=executor, clock=clock, observer=observer)
        return console.file.getvalue().splitlines()

    assert run()[-2:] == ["[2/3] lora s0 again: started on cpu", "[3/3] lora s0 again: ok, 0:10"]
    assert run() == ["3 of 3 runs have a result already"]


def test_a_second_run_says_what_it_need_not_do_and_warnings_are_whole(tmp_path):
    shown(tmp_path, Console(file=io.StringIO(), width=80))
    with (tmp_path / "small" / "records.jsonl").open("a") as file:
        file.write("half a record\n")
    text = shown(tmp_path, Console(file=io.StringIO(), width=80))
    warning, kept = text.splitlines()
    assert warning.startswith(f"warning: {tmp_path}/small/records.jsonl:4: skipped a damaged record")
    assert warning.endswith("its cell will run again")
    assert kept == "2 of 2 runs have a result already"


def test_a_stream_that_is_not_unicode_gets_ascii(tmp_path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=stream, width=80)
    with display(console) as observer:
        clock = ScriptedClock()
        executor = ScriptedExecutor(clock, lambda request, attempt: finishes("ok", 10.0, measures=MEASURES))
        run_plan(plan_of("a"), tmp_path, slots=(CPU,), executor=executor, clock=clock, observer=observer)
    stream.flush()
    assert b"10.0 -> 80.0 %" in stream.buffer.getvalue()


def test_on_a_terminal_the_live_view_leaves_finished_cells_behind(tmp_path):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, force_interactive=True, color_system=None)
    text = shown(tmp_path, console, slots=GPUS[:2])
    assert "[2/2]" in text
    assert "/2 runs" in text
    assert "started on" not in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_message_that_the_terminal_cannot_show_does_not_end_the_run(tmp_path, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    clock = ScriptedClock()
    with display(Console(file=stream, width=80), clock) as observer:
        executor = ScriptedExecutor(clock, lambda request, attempt: finishes("oom", 10.0, message="voilà → 内存"))
        run_plan(plan_of("a"), tmp_path, slots=(CPU,), executor=executor, clock=clock, observer=observer)
    stream.flush()
    assert b"oom in score_after, 0:10: voil" in stream.buffer.getvalue()


@pytest.mark.parametrize("width", [80, 200, 30])
def test_the_live_view_fits_the_terminal(width):
    clock = ScriptedClock()
    progress = Progress(clock)
    jobs = plan_of(*(f"smollm2-135m-nf4-dq-bf16-all-linear-number-{n}" for n in range(30))).jobs
    progress.begin(jobs, [], GPUS)
    for slot, job in zip(GPUS, jobs, strict=False):
        progress.start(slot, job)
        progress.hear(slot, {"kind": "progress", "phase": "score_before", "done": 1234, "total": 3080})
    clock.elapsed_s = 5000.0
    console = Console(file=io.StringIO(), width=width)
    console.print(render(progress, width))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == len(GPUS) + 1
    assert max(map(len, lines)) <= width
    if width == 80:
        assert lines[0] == "gpu0 smollm2-135m-nf4-dq-bf16-all-linear-n.. s0: score_before 1234/3080, 1:23:20"
        assert lines[-1].startswith("0/30 runs")
