from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from bench.tables.bars import Bar, Bars, memory_bars
from bench.tables.load import load_results
from bench.tables.terminal_bars import CAP, MEASURED, apportioned, drawn, print_bars

from .examples import default_matrix, memory_matrix, write_result

PARTS = ("base", "adapters", "activations")


def lines_of(bars, width, *, color=False):
    console = Console(width=width, force_terminal=color, color_system="truecolor" if color else None)
    with console.capture() as capture:
        print_bars(bars, console)
    return capture.get().splitlines()


def bars_of(folder, records):
    return memory_bars(load_results(write_result(folder / "r", records)))


def stack(*sizes, **kwargs):
    return Bar("a", dict(zip(PARTS, sizes, strict=False)), **kwargs)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("records", [memory_matrix(), default_matrix()])
def test_at_common_widths_a_cell_is_a_line_and_none_is_too_long(tmp_path, width, records):
    bars = bars_of(tmp_path, records)
    lines = lines_of(bars, width)
    assert max(map(cell_len, lines)) <= width
    for bar, total in zip(bars.bars, bars.totals(), strict=True):
        (line,) = [line for line in lines if line.startswith(f"{bar.id} ")]
        assert total in line
    assert not any("…" in line for line in lines)


def test_parts_have_the_length_of_their_share_and_the_markers_stand_over_them():
    bar = stack(50, 10, 20, measured_bytes=80, cap_bytes=100)
    bars = Bars("t", PARTS, (bar,), ())
    assert drawn(bar, bars, 20).plain == "██████████╱╱▒▒▒▒┃   ┊"  # noqa: RUF001


def test_the_longest_bar_has_room_for_its_marker():
    bar = stack(60, 0, 40, measured_bytes=100)
    assert drawn(bar, Bars("t", PARTS, (bar,), ()), 10).plain == "██████▒▒▒▒┃"


def test_the_legend_names_what_occurs_and_nothing_else(tmp_path):
    legend = " ".join(lines_of(bars_of(tmp_path, memory_matrix()), 80)[-2:])
    for name in ("█ base", "▒ activations", "· workspace & rounding", f"{MEASURED} measured peak", f"{CAP} cap"):
        assert name in legend
    stored = lines_of(bars_of(tmp_path, default_matrix()), 80)[-1]
    assert stored == "█ packed  ╳ quantization state  ▚ unquantized  · buffers"  # noqa: RUF001


def test_colour_adds_nothing_that_the_characters_do_not_say(tmp_path):
    bars = bars_of(tmp_path, memory_matrix())
    coloured, plain = (lines_of(bars, 100, color=color) for color in (True, False))
    assert "\x1b[38;2;0;114;178m" in "".join(coloured)
    assert "\x1b" not in "".join(plain)


def test_long_ids_are_folded_at_hyphens_and_lose_nothing():
    name = "kbit_upcast=false-optim=paged_adamw_8bit-max_length=512-batch_size=16"
    bars = Bars("t", PARTS, (Bar(name, {"base": 5e9}), Bar("a", {"base": 1e9})), ())
    lines = lines_of(bars, 80)
    assert max(map(cell_len, lines)) <= 80
    shown = [line[:40].strip() for line in lines[1:4]]
    assert "".join(shown) == name
    assert [line[-1] for line in shown[:-1]] == ["-", "-"]


# With shares of nothing and of equal bytes, which meet at the edges of rounding.
SIZES = st.lists(st.integers(0, 10**11) | st.sampled_from([0, 10**9, 5 * 10**9]), min_size=3, max_size=3).filter(any)


@settings(max_examples=300, deadline=None)
@given(sizes=SIZES, length=st.integers(10, 200), others=st.integers(0, 10**11))
def test_parts_get_whole_characters_near_their_share_that_add_up_and_none_more_than_a_larger_one(sizes, length, others):
    bar = stack(*sizes)
    bars = Bars("t", PARTS, (bar, stack(others)), ())
    shares = [size * length / bars.end_bytes for size in sizes]
    counts = apportioned([size * (length / bars.end_bytes) for size in sizes])
    assert sum(counts) == len(drawn(bar, bars, length).plain.rstrip(" "))
    assert abs(sum(counts) - sum(shares)) <= 0.5 + 1e-6
    assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))
    for large, few in zip(sizes, counts, strict=True):
        assert all(few >= count for size, count in zip(sizes, counts, strict=True) if size < large)


def test_a_small_part_does_not_take_the_character_of_a_larger_one():
    bar = stack(457, 18, 122)
    bars = Bars("t", PARTS, (bar, stack(1000)), ())
    assert [drawn(bar, bars, length).plain.rstrip() for length in (1, 2, 5, 20)] == [
        "█", "█", "██▒", "█████████▒▒▒",
    ]  # fmt: skip


def test_models_that_differ_much_are_blocks_each_with_its_own_scale_and_unit(tmp_path):
    small = Bar("small", {"base": 4e8, "activations": 1e8}, model="135m", measured_bytes=5e8)
    large = Bar("large", {"base": 5e9}, model="7b", status="oom")
    assert [line.rstrip() for line in lines_of(Bars("t", PARTS, (small, large), ()), 39)] == [
        "t",
        "",
        "135m, in MB",
        "small  ████████████████▒▒▒▒┃  500.0",
        "",
        "7b, in GB",
        "large  ████████████████████    5.00 oom",
        "",
        "█ base  ╱ adapters  ▒ activations",  # noqa: RUF001
        "┃ measured peak",
    ]


@settings(max_examples=50, deadline=None)
@given(
    width=st.integers(20, 200),
    sizes=st.lists(st.integers(0, 10**11), min_size=3, max_size=3).filter(any),
    measured=st.none() | st.integers(1, 10**11),
    cap=st.none() | st.integers(1, 10**12),
    cell_id=st.text("abc-üß漢", min_size=1, max_size=60),
)
def test_no_line_is_ever_longer_than_the_console(width, sizes, measured, cap, cell_id):
    bar = Bar(cell_id, dict(zip(PARTS, sizes, strict=True)), measured_bytes=measured, cap_bytes=cap)
    assert max(map(cell_len, lines_of(Bars("title", PARTS, (bar,), ()), width)), default=0) <= width
