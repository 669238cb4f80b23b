from __future__ import annotations

import pytest

from benchmarks.kernel_groups import OTHER
from benchmarks.step_prediction_gap import explain


def groups(**figures):
    """Groups by name, each a count and milliseconds."""
    return {name.replace("_", " "): {"count": count, "total_s": ms / 1e3} for name, (count, ms) in figures.items()}


STEP = groups(matmul=(10, 100.0), dequantize=(4, 20.0), attention=(2, 30.0), optimizer=(1, 5.0)) | {
    OTHER: {"count": 1, "total_s": 1e-3}
}
LINEAR = groups(matmul=(8, 90.0), dequantize=(4, 20.0))
ALONE = [groups(matmul=(2, 20.0), dequantize=(1, 4.0)), groups(matmul=(2, 22.0), dequantize=(1, 5.0))]
LAUNCHES = [3, 1]


def figures(**changes):
    return {
        "environment": {"gpu_name": "NVIDIA H100"},
        "eager_step_p50_s": 0.180,
        "graph_step_p50_s": None,
        "kernels_s": 0.156,
        "groups": STEP,
        "linear_groups": LINEAR,
        "alone": ALONE,
        **changes,
    }


def check_sum(gap):
    parts = (gap.linear_s, gap.rest_s, gap.idle_s or 0.0, gap.not_explained_s)
    assert sum(parts) == pytest.approx(gap.step_s, abs=1e-12)
    for kind, total_s in ((True, gap.linear_s), (False, gap.rest_s)):
        assert sum(row.measured_s for row in gap.rows if row.linear is kind) == pytest.approx(total_s)


def test_an_eager_step_is_linear_layers_the_rest_and_an_idle_gpu():
    gap = explain(0.090, LAUNCHES, figures())

    assert gap is not None
    assert (gap.execution, gap.traced, gap.step_s) == ("eager", True, 0.180)
    assert gap.share == gap.as_json()["predicted_share"] == pytest.approx(0.5)
    assert gap.alone_s == pytest.approx(3 * 0.024 + 0.027)
    assert gap.linear_s == pytest.approx(0.110)
    assert gap.rest_s == pytest.approx(0.010 + 0.030 + 0.005)
    assert gap.idle_s == pytest.approx(0.180 - 0.156)
    assert gap.not_explained_s == pytest.approx(0.001)  # the kernel of no known group
    check_sum(gap)
    rows = {(row.group, row.linear): row for row in gap.rows}
    assert set(rows) == {
        ("matmul", True), ("dequantize", True), ("matmul", False), ("attention", False), ("optimizer", False)
    }  # fmt: skip
    assert (rows["matmul", True].count, rows["matmul", True].alone_count) == (8, 8)
    assert rows["dequantize", True].alone_s == pytest.approx(0.017)
    assert rows["matmul", False].count == 2
    assert rows["matmul", False].alone_s is None


def test_of_a_graph_with_the_update_what_is_left_is_not_explained():
    gap = explain(0.090, LAUNCHES, figures(graph_step_p50_s=0.150, update_in_graph=True))

    assert gap is not None
    assert (gap.execution, gap.step_s, gap.idle_s) == ("graph", 0.150, None)
    assert gap.not_explained_s == pytest.approx(0.150 - 0.156 + 0.001)
    check_sum(gap)


def test_a_graph_waits_for_an_update_that_python_launches():
    given = figures(graph_step_p50_s=0.200, update_in_graph=False, graph_update_p50_s=0.045)

    gap = explain(0.090, LAUNCHES, given)

    assert gap is not None
    assert gap.idle_s == pytest.approx(0.045 - 0.005)  # but for the optimizer's own kernels
    assert gap.not_explained_s == pytest.approx(0.200 - 0.156 - 0.040 + 0.001)
    check_sum(gap)


def test_a_step_shorter_than_its_kernels_has_no_idle_time():
    gap = explain(0.090, LAUNCHES, figures(eager_step_p50_s=0.150))

    assert gap is not None
    assert gap.idle_s == 0
    assert gap.not_explained_s == pytest.approx(-0.005)
    check_sum(gap)


def test_a_cpu_has_no_idle_time_to_be_told():
    gap = explain(0.090, LAUNCHES, figures(environment={}))

    assert gap is not None
    assert gap.idle_s is None
    check_sum(gap)


def test_where_nothing_was_traced_the_launches_alone_stand_in():
    gap = explain(0.090, LAUNCHES, figures(linear_groups=None))

    assert gap is not None
    assert not gap.traced
    assert gap.linear_s == gap.alone_s
    check_sum(gap)
    crowded = explain(0.090, [30, 10], figures(linear_groups=None))
    assert crowded is not None
    assert crowded.linear_s == pytest.approx(0.120)  # the step's own matmul and dequantize, no more
    check_sum(crowded)


def test_launches_that_did_not_run_alone_leave_the_rest_to_be_told():
    gap = explain(0.090, LAUNCHES, figures(alone=[ALONE[0], None]))

    assert gap is not None
    assert gap.alone_s is None
    assert {row.alone_s for row in gap.rows} == {None}
    check_sum(gap)


@pytest.mark.parametrize(
    "changes",
    [
        {"linear_groups": None, "alone": [None, None]},
        {"linear_groups": None, "groups": {}, "alone": [{}, {}], "kernels_s": None},
    ],
)
def test_without_kernels_nothing_is_explained(changes):
    assert explain(0.090, LAUNCHES, figures(**changes)) is None
