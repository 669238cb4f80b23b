from __future__ import annotations

import itertools
import struct
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bench.tables.kernels import load_kernels
from bench.tables.palette import QUANTIZATIONS
from bench.tables.picture import WIDTH, can_draw
from bench.tables.roofline import Line, Panel, Point, Roofline, roofline
from bench.tables.roofline_picture import _figure, draw

from .kernel_examples import case, small_matrix, whole_matrix, write_kernels

pytestmark = pytest.mark.skipif(not can_draw(), reason="needs matplotlib")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return roofline(load_kernels(write_kernels(tmp_path_factory.mktemp("r"), whole_matrix())))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return roofline(load_kernels(write_kernels(tmp_path_factory.mktemp("r"), small_matrix())))


def lines_of(axes, quantization):
    return next(line for line in axes.lines if line.get_color() == QUANTIZATIONS[quantization])


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_drawing_twice_gives_the_same_bytes_with_no_date_in_them(small, kind):
    picture = draw(small, kind)
    assert draw(small, kind) == picture
    assert b"dc:date" not in picture
    assert b"Matplotlib v" not in picture


def test_the_svg_is_xml_and_the_png_has_the_width_it_should(small):
    assert ET.fromstring(draw(small, "svg")).tag.endswith("svg")  # noqa: S314
    width, _ = struct.unpack(">II", draw(small, "png")[16:24])
    assert width == WIDTH * 160


def test_a_row_of_panels_shares_its_axes_and_every_point_lies_within_them(whole):
    figure = _figure(whole)
    assert len(figure.axes) == len(whole.panels)
    for axes, panel in zip(figure.axes, whole.panels, strict=True):
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for point in itertools.chain.from_iterable(line.points for line in panel.lines):
            assert left < point.flops_per_byte < right
            assert low < point.flops_per_s / 1e12 < high
    limits = [(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes]
    assert len(set(limits)) == len(whole.operations)


def test_the_roof_runs_along_the_slope_and_then_flat(whole):
    axes = _figure(whole).axes[0]
    roof = axes.lines[0]
    ridge = whole.matmul_flops_per_s / whole.copy_bytes_per_s
    assert roof.get_xdata()[1] == pytest.approx(ridge)
    assert roof.get_ydata()[1:] == pytest.approx([whole.matmul_flops_per_s / 1e12] * 2)
    assert roof.get_ydata()[0] == pytest.approx(whole.copy_bytes_per_s * axes.get_xlim()[0] / 1e12)


def test_a_line_is_broken_at_rows_that_only_others_have(whole):
    axes = _figure(whole).axes[0]
    rows = [1, 4, 8, 16, 32, 64, 128, 256, 512, 4096, 16384]
    drawn = np.array(rows)[np.isfinite(np.array(lines_of(axes, "fp4").get_ydata(), float))]
    assert drawn.tolist() == [1, 4, 16, 512, 4096, 16384]
    assert np.isfinite(np.array(lines_of(axes, "nf4").get_ydata(), float)).all()


def test_nothing_stands_outside_and_no_label_of_rows_touches_another(whole):
    figure = _figure(whole)
    figure.draw_without_rendering()
    texts = [*figure.texts, *figure.legends[0].get_texts(), *(axes._left_title for axes in figure.axes)]
    for text in texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.texts]
        assert len(boxes) >= 2
        assert axes.texts[-1].get_text() == "16,384"
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(box.y1 < axes._left_title.get_window_extent().y0 for box in boxes)


def test_what_a_reader_needs_is_said(whole):
    figure = _figure(whole)
    said = "\n".join(text.get_text() for text in (*figure.texts, *figure.legends[0].get_texts()))
    for words in ("kernels: roofline of qwen2.5-7b in bfloat16", "not quantized", "nf4-dq", "measured peaks",
                  "forward_backward", "NVIDIA H100 80GB HBM3", "Quantize and dequantize multiply nothing"):  # fmt: skip
        assert words in said
    assert {figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()} == {"FLOP per byte", "TFLOP/s"}


def test_one_point_without_any_peak_is_drawn_too(tmp_path):
    found = roofline(load_kernels(write_kernels(tmp_path / "r", [case(median_s=1.0)], of_peaks=[])))
    figure = _figure(found)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["nf4"]
    assert figure.axes[0].get_ylabel() == "GFLOP/s"
    assert draw(found, "svg")


def test_dollars_in_a_name_are_text(recwarn):
    point = Point(1, 1.0, 1e12)
    panel = Panel("$op$", "$x$-\\frac-漢", (Line("$q$", (point,)),))
    picture = draw(Roofline("$\\alpha$", (panel,), 1e12, 1e14, ("a $ b",)), "svg")
    assert ET.fromstring(picture) is not None  # noqa: S314
    assert not list(recwarn)
