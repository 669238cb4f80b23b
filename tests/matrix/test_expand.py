from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.matrix.expand import MOST_CELLS, expand, load_matrix
from bench.matrix.parameters import Parameters

from .examples import DESIGN, SMALL, load, mistakes

LARGE = """\
schema: 1
axes:
  lora_r: [{}]
  lora_alpha: [{}]
"""


def crossing(rows: int, columns: int) -> str:
    return LARGE.format(*(", ".join(map(str, range(1, count + 1))) for count in (rows, columns)))


def test_expand_gives_the_cells_in_order(tmp_path: Path) -> None:
    matrix = load(tmp_path, DESIGN)
    assert expand(matrix) == matrix.cells


def test_every_cell_is_one_that_the_model_of_a_cell_makes_of_the_same_values(tmp_path: Path) -> None:
    for cell in load(tmp_path, DESIGN).cells:
        assert Parameters(**cell.parameters.model_dump(mode="json")) == cell.parameters


def test_a_crossing_beyond_the_limit_is_refused_with_the_flag_that_lifts_it(tmp_path: Path) -> None:
    assert mistakes(tmp_path, crossing(200, 1000)) == [
        "m.yaml:2:1: the axes cross to 200,000 cells, and 10,000 is the limit; "
        "list fewer values, or lift the limit with --max-cells 200000"
    ]
    assert len(load(tmp_path, crossing(101, 100), max_cells=10_100).cells) == 10_100
    assert mistakes(tmp_path, crossing(2, 2), max_cells=3)[0].startswith("m.yaml:2:1: the axes cross to 4 cells")


def test_other_mistakes_stand_beside_a_refused_crossing(tmp_path: Path) -> None:
    assert len(mistakes(tmp_path, crossing(200, 1000) + "seeds: 3\n")) == 2


def test_a_refused_crossing_costs_nothing_however_large_it_is(tmp_path: Path) -> None:
    def seconds(axes: int) -> float:
        names = ["lora_r", "lora_alpha", "batch_size", "gradient_accumulation_steps", "max_steps", "train_examples"]
        values = ", ".join(map(str, range(1, 101)))
        path = tmp_path / "large.yaml"
        path.write_text("schema: 1\naxes:\n" + "".join(f"  {name}: [{values}]\n" for name in names[:axes]))
        start = time.perf_counter()
        if axes == 2:
            assert len(load_matrix(path).cells) == MOST_CELLS
        else:
            with pytest.raises(BenchError):
                load_matrix(path)
        return time.perf_counter() - start

    expanded = seconds(2)
    assert seconds(6) < expanded


def test_the_time_of_a_crossing_grows_with_its_cells_and_not_faster(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    def seconds(columns: int) -> float:
        start = time.perf_counter()
        load(tmp_path, crossing(100, columns))
        return time.perf_counter() - start

    few, many = min(seconds(10) for _ in range(3)), seconds(100)
    record_property("seconds for 1,000 and 10,000 cells", (few, many))
    assert many < 60 * few


def test_reading_a_matrix_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(SMALL)
    code = (
        "import sys; from bench.matrix.expand import load_matrix; from bench.matrix.plan import plan;"
        "plan(load_matrix(sys.argv[1]));"
        "print(*{'torch', 'transformers', 'pandas', 'numpy', 'rich', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
