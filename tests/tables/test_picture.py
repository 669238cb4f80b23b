from __future__ import annotations

import struct
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from bench.tables.bars import Bar, Bars, memory_bars
from bench.tables.load import load_results
from bench.tables.picture import LONGEST_LINE, MOST_BARS, WIDTH, _figure, _folded, can_draw, draw

from .examples import memory_matrix, write_result

pytestmark = pytest.mark.skipif(not can_draw(), reason="needs matplotlib")


@pytest.fixture
def bars(tmp_path):
    return memory_bars(load_results(write_result(tmp_path / "r", memory_matrix(seeds=(0, 1)))))


def texts(figure):
    of_axes = [label for axes in figure.axes for label in (*axes.texts, *axes.get_yticklabels())]
    return [label.get_text() for label in (*of_axes, *figure.texts, *figure.legends[0].get_texts())]


def inches(figure, artist):
    box = artist.get_window_extent()
    return box.y0 / figure.dpi, box.y1 / figure.dpi


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_drawing_twice_gives_the_same_bytes_with_no_date_in_them(bars, kind):
    picture = draw(bars, kind)
    assert draw(bars, kind) == picture
    assert b"dc:date" not in picture
    assert b"Matplotlib v" not in picture


def test_the_svg_is_xml_and_the_png_has_the_width_it_should(bars):
    assert ET.fromstring(draw(bars, "svg")).tag.endswith("svg")  # noqa: S314
    width, _ = struct.unpack(">II", draw(bars, "png")[16:24])
    assert width == WIDTH * 160


def test_the_parts_of_a_bar_are_drawn_from_zero_one_after_another_to_its_total(bars):
    axes = _figure(bars).axes[0]
    assert axes.get_xlim()[0] == 0
    for row, bar in enumerate(bars.bars):
        drawn = [patch for patch in axes.patches if round(patch.get_y() + patch.get_height() / 2) == row]
        edges = [0.0, *(patch.get_x() + patch.get_width() for patch in drawn)]
        assert [patch.get_x() for patch in drawn] == pytest.approx(edges[:-1])
        assert edges[-1] * 1e9 == pytest.approx(bar.total_bytes)


def test_the_picture_says_totals_statuses_conditions_and_the_rule_of_the_limit(bars):
    said = "\n".join(texts(_figure(bars)))
    for words in ("10.25", "≥ 10.25", "17.05  oom", "measured peak", "cap (vram_limit)", "head & logits",
                  "vram_limit T4: torch may hold 15.40 GB", "n = 1 to 2 seeds", "Parts are those live at the moment",
                  "default: predicted peak of training"):  # fmt: skip
        assert words in said


def test_nothing_stands_outside_of_the_picture_and_ids_do_not_reach_into_the_bars(bars):
    long = Bar(
        "kbit_upcast=false-ckpt-optim=adamw_torch_fused-max_length=512-batch_size=16", {"base": 9e9}, status="oom"
    )
    figure = _figure(Bars(bars.title, bars.parts, (*bars.bars, long), bars.caption))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    left, right = axes.get_window_extent().x0, figure.bbox.width
    for label in axes.get_yticklabels():
        assert 0 <= label.get_window_extent().x0 < label.get_window_extent().x1 <= left
    for text in (*axes.texts, *figure.texts, *figure.legends[0].get_texts()):
        assert 0 <= text.get_window_extent().x0 < text.get_window_extent().x1 <= right


@pytest.fixture
def two_models():
    small = [Bar(f"s{at}", {"base": 4e8, "activations": at * 1e8}, model="hub/small", measured_bytes=5e8)
             for at in range(1, 4)]  # fmt: skip
    large = [Bar(f"l{at}", {"base": 5e9, "activations": at * 1e9}, model="hub/large") for at in range(1, 3)]
    unknown = Bar("dead", {}, model="/home/" + "models/" * 30, status="crashed")
    return Bars("t", ("base", "activations"), (*small, *large, unknown), ("caption",))


def test_models_that_differ_much_have_a_panel_each_with_their_own_axis_between_the_same_edges(two_models):
    figure = _figure(two_models)
    figure.draw_without_rendering()
    small, large, unknown = figure.axes
    assert [axes.get_xlim()[1] for axes in (small, large)] == pytest.approx([700 * 1.02, 7 * 1.02])
    assert [axes.get_xlabel() for axes in (small, large)] == ["MB (1e6 bytes)", "GB (1e9 bytes)"]
    assert not unknown.xaxis.get_visible()
    assert len({(box.x0, box.x1) for box in (axes.get_window_extent() for axes in figure.axes)}) == 1
    said = texts(figure)
    assert {"hub/small", "hub/large", "total MB", "total GB", "700.0", "7.00", "–  crashed"} <= set(said)  # noqa: RUF001
    assert said.count("base") == 1


def test_panels_and_their_headings_follow_one_another_and_none_covers_another(two_models):
    figure = _figure(two_models)
    figure.draw_without_rendering()
    spans = [inches(figure, axes) for axes in figure.axes]
    headings = [inches(figure, text) for text in figure.texts if text.get_text().startswith(("hub/", "/home/"))]
    edges = [edge for heading, span in zip(headings, spans, strict=True) for edge in (*heading[::-1], *span[::-1])]
    assert edges == sorted(edges, reverse=True)
    labels = [inches(figure, axes.xaxis.label) for axes in figure.axes[:2]]
    assert all(label[0] > heading[1] for label, heading in zip(labels, headings[1:], strict=True))
    assert all(0 <= box.x0 < box.x1 <= figure.bbox.width for box in (text.get_window_extent() for text in figure.texts))


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_panels_too_give_the_same_bytes_each_time(two_models, kind):
    assert draw(two_models, kind) == draw(two_models, kind)


def test_across_panels_too_only_so_many_bars_are_drawn():
    bars = tuple(Bar(f"c{at}", {"base": 1e9 * (1 + 9 * (at >= 50))}, model=f"m{at // 50}") for at in range(200))
    figure = _figure(Bars("t", ("base",), bars, ()))
    assert [len(axes.get_yticks()) for axes in figure.axes] == [50, MOST_BARS - 50]
    assert f"The first {MOST_BARS} of 200 cells." in texts(figure)


def test_dollars_and_unknown_letters_in_an_id_are_text(bars, recwarn):
    odd = Bar("$x$-\\frac-漢", {"base": 1e9})
    picture = draw(Bars("$\\alpha$", ("base",), (odd,), ("a $ b",)), "svg")
    assert ET.fromstring(picture) is not None  # noqa: S314
    assert not list(recwarn)


def test_of_very_many_cells_the_first_are_drawn_and_the_caption_says_so():
    many = tuple(Bar(f"cell-{number}", {"base": 1e9}) for number in range(1000))
    figure = _figure(Bars("t", ("base",), many, ()))
    assert len(figure.axes[0].patches) == MOST_BARS
    assert f"The first {MOST_BARS} of 1,000 cells." in texts(figure)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("nf4-dq", ["nf4-dq"]),
        ("a" * 30 + "-" + "b" * 30, ["a" * 30 + "-", "b" * 30]),
        ("a" * 60, ["a" * 30, "a" * 30]),
        ("a" * 60 + "-" + "b" * 60, ["a" * (LONGEST_LINE - 1) + "…", "b" * (LONGEST_LINE - 1)]),
    ],
)
def test_long_ids_take_two_lines_broken_at_a_dash_where_there_is_one(text, lines):
    assert _folded(text).split("\n") == lines


def test_the_user_s_own_style_of_matplotlib_changes_nothing(bars):
    import matplotlib as mpl

    picture = draw(bars, "svg")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "none"}):
        assert draw(bars, "svg") == picture


def test_a_notebook_s_backend_that_is_not_installed_keeps_nobody_from_drawing(monkeypatch):
    code = "from bench.tables.picture import can_draw; import os; print(can_draw(), os.environ['MPLBACKEND'])"
    monkeypatch.setenv("MPLBACKEND", "module://not_installed.backend_inline")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "True module://not_installed.backend_inline\n"
