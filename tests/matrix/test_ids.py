from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.matrix.cell_vocabulary import CELLS
from bench.matrix.expand import load_matrix
from bench.matrix.ids import key_of
from bench.matrix.parameters import LATER, Parameters
from bench.protocol import PROTOCOL_VERSION

from .examples import ids, load


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("{quant_type: [none, int8], compute_dtype: [bfloat16, float32]}", "none-bf16 none-fp32 int8-bf16 int8-fp32"),
        ("{double_quant: [true, false]}", "dq no-dq"),
        ("{double_quant: [true, false], gradient_checkpointing: [false, true]}", "dq dq-ckpt no-dq-no-ckpt ckpt"),
        ("{quant_type: [nf4], double_quant: [true], lora_r: [8]}", "nf4-dq-r8"),
        ("{quant_type: [nf4], lora_r: [8, 16], lora_alpha: [4, 8]}", "r8-a4 r8-a8 r16-a4 r16-a8"),
        ("{lora_r: [8], compute_dtype: [float16]}", "fp16-r8"),
        ("{load_dtype: [float16, float32]}", "load-fp16 load-fp32"),
        ("{target_modules: [all-linear, [v_proj, q_proj]]}", "all-linear q_proj+v_proj"),
        ("{learning_rate: [5e-4, 2.5e-4, 1]}", "lr5e-4 lr2.5e-4 lr1"),
        ("{batch_size: [8, 32], max_length: [128, 256]}", "bs8-len128 bs8-len256 bs32-len128 bs32-len256"),
        ("{kbit_upcast: [true, false]}", "upcast no-upcast"),
        (
            "{vram_limit: [T4, RTX 3090, 14.5GiB, 16000000000, none]}",
            "vram-t4 vram-rtx-3090 vram-14.5gib vram-16000000000 vram-none",
        ),
        ("{model: [smollm2-135m, Qwen/Qwen2.5-7B]}", "smollm2-135m Qwen2.5-7B"),
        ("{optim: [sgd], max_steps: [none, 5]}", "max_steps=none max_steps=5"),
        ("{lora_dropout: [0.05], use_dora: [true]}", "lora_dropout=0.05-use_dora=true"),
        ("{task: [banking77, intents]}", "task=banking77 task=intents"),
    ],
)
def test_an_id_is_short_and_names_what_varies(tmp_path: Path, axes: str, expected: str) -> None:
    assert ids(load(tmp_path, f"schema: 1\naxes: {axes}\n")) == expected.split()


def test_an_id_tells_what_an_override_made_of_the_cell(tmp_path: Path) -> None:
    text = (
        "schema: 1\naxes: {quant_type: [nf4, fp4]}\noverrides: [{when: {quant_type: fp4}, set: {quant_type: none}}]\n"
    )
    assert ids(load(tmp_path, text)) == ["nf4", "none"]


def test_a_row_without_an_id_is_named_by_the_axes_and_by_what_it_sets(tmp_path: Path) -> None:
    text = "schema: 1\naxes: {quant_type: [nf4, fp4]}\ninclude: [{lora_r: 8}, {quant_type: int8, weight_decay: 0.1}]\n"
    assert ids(load(tmp_path, text)) == ["nf4", "fp4", "nf4-r8", "int8-weight_decay=0.1"]


def test_made_ids_that_would_be_alike_end_in_their_keys_whatever_their_order(tmp_path: Path) -> None:
    models = "[a/Llama, b/Llama, b/llama, c/Other]"
    matrix = load(tmp_path, f"schema: 1\naxes: {{model: {models}}}\n")
    names = {cell.parameters.model: cell.id for cell in matrix.cells}
    assert names["c/Other"] == "Other"
    assert all(re.fullmatch("[Ll]lama-[0-9a-f]{8}", names[name]) for name in ("a/Llama", "b/Llama", "b/llama"))
    turned = load(tmp_path, f"schema: 1\naxes: {{model: {models[:-1].replace('[', '[c/Another, ')}]}}\n")
    assert {cell.parameters.model: cell.id for cell in turned.cells} == {**names, "c/Another": "Another"}


def test_a_made_id_gives_way_to_a_rows_own(tmp_path: Path) -> None:
    text = "schema: 1\naxes: {quant_type: [nf4, fp4]}\ninclude: [{lora_r: 8}, {id: nf4-r8, lora_r: 4}]\n"
    made, own = ids(load(tmp_path, text))[2:]
    assert own == "nf4-r8"
    assert re.fullmatch("nf4-r8-[0-9a-f]{8}", made)


def test_a_value_without_a_safe_character_still_has_an_id(tmp_path: Path) -> None:
    assert ids(load(tmp_path, "schema: 1\naxes: {model: [.., smollm2-135m]}\n")) == ["cell", "smollm2-135m"]


def test_a_long_id_is_cut_and_stays_its_own(tmp_path: Path) -> None:
    names = [", ".join(f"module_number_{i}" for i in range(last)) for last in (30, 31)]
    made = ids(load(tmp_path, f"schema: 1\naxes: {{target_modules: [[{names[0]}], [{names[1]}]]}}\n"))
    assert [len(name) for name in made] == [100, 100]
    assert len(set(made)) == 2


def test_a_key_is_the_hash_of_all_parameters_and_the_protocol() -> None:
    values = Parameters().__dict__
    earlier = {name: value for name, value in values.items() if name not in LATER}
    content = {"parameters": earlier, "protocol": PROTOCOL_VERSION}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert key_of(values, CELLS) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert key_of(dict(reversed(values.items())), CELLS) == key_of(values, CELLS)
    assert key_of(Parameters(lora_r=8).__dict__, CELLS) != key_of(values, CELLS)


@pytest.mark.parametrize("name", LATER)
def test_a_parameter_that_came_later_changes_no_key_but_of_the_cells_that_set_it(name: str) -> None:
    values = Parameters().__dict__
    without = {parameter: value for parameter, value in values.items() if parameter != name}
    assert key_of(without, CELLS) == key_of(values, CELLS)
    assert key_of({**values, name: 1000}, CELLS) != key_of(values, CELLS)


def reference_results() -> list[Path]:
    """The reference results of this protocol; with another one, every key is another."""
    root = Path(__file__).parents[2] / "results" / "reference"
    first = {
        path.parent: (path.parent / "records.jsonl").read_text().splitlines()[0] for path in root.rglob("plan.json")
    }
    return sorted(folder for folder, line in first.items() if json.loads(line)["protocol"] == PROTOCOL_VERSION)


def test_there_is_a_reference_result_of_this_protocol() -> None:
    assert reference_results()


@pytest.mark.parametrize("folder", reference_results(), ids=lambda folder: folder.name)
def test_keys_are_those_of_earlier_records(folder: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    keys = {cell.id: cell.key for cell in load_matrix(folder / "matrix.yaml").cells}
    assert keys == {cell["id"]: cell["key"] for cell in plan["cells"]}


def test_the_same_cell_with_other_random_numbers_is_another_cell(tmp_path: Path) -> None:
    text = "schema: 1\ninclude: [{id: a}, {id: aa, seed_offset: 1000}, {seed_offset: 7}, {id: twin, seed_offset: 0}]\n"
    with pytest.raises(BenchError, match="the row 'twin' is the same cell as the row in line 2"):
        load(tmp_path, text)
    matrix = load(tmp_path, text.replace(", {id: twin, seed_offset: 0}", ""))
    assert ids(matrix) == ["a", "aa", "seed_offset=7"]
    assert len({cell.key for cell in matrix.cells}) == 3


def test_a_key_does_not_depend_on_how_a_value_is_spelt(tmp_path: Path) -> None:
    rows = [
        "{vram_limit: T4, learning_rate: 1e-3, epochs: 1, target_modules: [a, b]}",
        "{vram_limit: t4, learning_rate: 0.001, epochs: 1.0, target_modules: [b, a], lora_r: 16, quant_type: nf4}",
    ]
    keys = {load(tmp_path, f"schema: 1\ninclude: [{row}]\n").cells[0].key for row in rows}
    assert len(keys) == 1


AXES = {
    "model": ["smollm2-135m", "a/b", "c/b", "./.m"],
    "quant_type": ["nf4", "fp4", "int8"],
    "compute_dtype": ["bfloat16", "float16"],
    "target_modules": ["attention", "[q_proj]", "[q_proj, v_proj]", "[q_proj+v_proj]", "[a b]", "[a_b]"],
    "learning_rate": ["1e-4", "0.1", "0.30000000000000004", "0.3"],
    "vram_limit": ["none", "T4", "RTX 3090", "16GB", "16000000000"],
    "max_steps": ["none", "3"],
    "gradient_checkpointing": ["true", "false"],
}
ROWS = ["{id: x, lora_r: 3}", "{lora_r: 4}", "{id: y, epochs: 2}", "{epochs: 3}"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_ids_and_keys_are_unique_safe_and_free_of_the_order_of_axes_and_rows(
    tmp_path_factory: Any, data: st.DataObject
) -> None:
    folder: Path = tmp_path_factory.mktemp("ids")
    (folder / ".m").mkdir()
    chosen = data.draw(st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=4, unique=True))
    axes = {name: data.draw(st.lists(st.sampled_from(AXES[name]), min_size=1, unique=True)) for name in chosen}
    rows = data.draw(st.lists(st.sampled_from(ROWS), unique=True))

    def cells_of(axes: dict[str, list[str]], rows: list[str]) -> dict[str, tuple[str, Parameters]]:
        lines = ["schema: 1", "axes:", *(f"  {name}: [{', '.join(values)}]" for name, values in axes.items())]
        path = folder / "m.yaml"
        path.write_text(
            "\n".join([*lines, "include:", *(f"  - {row}" for row in rows)]).replace("./.m", f"{folder}/.m")
        )
        matrix = load_matrix(path)
        assert len({cell.id.lower() for cell in matrix.cells}) == len(matrix.cells)
        assert len({cell.key for cell in matrix.cells}) == len(matrix.cells)
        return {cell.id: (cell.key, cell.parameters) for cell in matrix.cells}

    cells = cells_of(axes, rows)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,99}", name) for name in cells)
    turned = {name: data.draw(st.permutations(axes[name])) for name in data.draw(st.permutations(chosen))}
    assert cells_of(turned, data.draw(st.permutations(rows))) == cells
