from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from bench.errors import Location
from bench.matrix.cell_vocabulary import CELLS
from bench.matrix.kernel_vocabulary import KERNELS
from bench.matrix.parameters import Parameters
from bench.matrix.tree import Node, scalar
from bench.matrix.values import Mistake, convert, default_of, takes
from bench.matrix.vocabulary import Vocabulary

HERE = Location("m.yaml", 1, 1)
TAKES_A_LIMIT = "vram_limit takes none, 709 million bytes or more, a size such as 16GB or a card such as T4"


def node(value: Any) -> Node:
    return Node([node(item) for item in value] if isinstance(value, list) else value, HERE)


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("lora_r", 8, 8),
        ("learning_rate", 2e-4, 2e-4),
        ("learning_rate", 1, 1.0),
        ("max_grad_norm", -0.0, 0.0),
        ("double_quant", False, False),
        ("init_lora_weights", "olora", "olora"),
        ("init_lora_weights", False, False),
        ("quant_type", "none", "none"),
        ("max_steps", None, None),
        ("max_steps", "none", None),
        ("vram_limit", "none", None),
        ("vram_limit", "rtx 3090", "RTX 3090"),
        ("vram_limit", "RTX3090", "RTX 3090"),
        ("vram_limit", "NVIDIA RTX A6000", "A6000"),
        ("vram_limit", "16 GB", "16GB"),
        ("vram_limit", "16gb", "16GB"),
        ("vram_limit", "14.5GiB", "14.5GiB"),
        ("vram_limit", 16_000_000_000, 16_000_000_000),
        ("target_modules", "attention", "attention"),
        ("target_modules", ["v_proj", "q_proj", "v_proj"], ("q_proj", "v_proj")),
        ("train_examples", "all", "all"),
        ("train_examples", 100, 100),
        ("model", "qwen2.5-7b", "qwen2.5-7b"),
        ("model", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
        ("task", "intents", "intents"),
    ],
)
def test_a_value_becomes_what_the_parameter_holds(name: str, raw: Any, value: Any) -> None:
    converted = convert(name, node(raw), CELLS)
    assert converted == value
    assert type(converted) is type(value)
    assert math.copysign(1, converted) > 0 if isinstance(converted, float) else True


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("lora_r", "8", "lora_r takes a whole number above zero, not the text '8'; write 8"),
        ("lora_r", "012", "lora_r takes a whole number above zero, not the text '012'; write 12"),
        ("lora_r", 8.0, "lora_r takes a whole number above zero, not 8.0; write 8"),
        ("lora_r", 8.5, "lora_r takes a whole number above zero, not 8.5; the default is 16"),
        ("lora_r", 0, "lora_r takes a whole number above zero, not 0; the default is 16"),
        ("lora_r", True, "lora_r takes a whole number above zero, not true; the default is 16"),
        ("lora_r", None, "lora_r takes a whole number above zero, not an empty value (null); the default is 16"),
        (
            "lora_r",
            10**20,
            "lora_r takes a whole number above zero, not 100000000000000000000, which is too large; the default is 16",
        ),
        ("lora_r", [8], "lora_r takes a whole number above zero, not the list [8]; write 8"),
        (
            "lora_r",
            [8, 16],
            "lora_r takes a whole number above zero, not the list [8, 16]; "
            "write one value; values to be crossed are listed under axes",
        ),
        ("lora_r", {}, "lora_r takes a whole number above zero, not a mapping; the default is 16"),
        ("batch_size", "1,000", "batch_size takes a whole number above zero, not the text '1,000'; write 1000"),
        ("max_length", 4, "max_length takes a whole number of 8 or more, not 4; the default is 256"),
        ("max_steps", 1e3, "max_steps takes a whole number above zero or none, not 1000.0; write 1000"),
        (
            "max_steps",
            "all",
            "max_steps takes a whole number above zero or none, not the text 'all'; the default is none",
        ),
        ("learning_rate", "5e-4", "learning_rate takes a number above zero, not the text '5e-4'; write 5e-4"),
        ("learning_rate", math.nan, "learning_rate takes a number above zero, not .nan; the default is 5e-4"),
        ("learning_rate", -math.inf, "learning_rate takes a number above zero, not -.inf; the default is 5e-4"),
        ("lora_dropout", 1, "lora_dropout takes a number from 0 to below 1, not 1; the default is 0"),
        ("warmup_ratio", 1.5, "warmup_ratio takes a number from 0 to 1, not 1.5; the default is 0.03"),
        ("weight_decay", -1, "weight_decay takes a number of zero or more, not -1; the default is 0"),
        ("double_quant", "off", "double_quant takes true or false, not the text 'off'; write false"),
        ("double_quant", "YES", "double_quant takes true or false, not the text 'YES'; write true"),
        ("double_quant", 0, "double_quant takes true or false, not 0; write false"),
        (
            "double_quant",
            "maybe",
            "double_quant takes true or false, not the text 'maybe'; the default is true with nf4 and fp4",
        ),
        ("quant_type", "nf5", "quant_type takes nf4, fp4, int8 or none, not the text 'nf5'; did you mean nf4?"),
        ("quant_type", "NF4", "quant_type takes nf4, fp4, int8 or none, not the text 'NF4'; did you mean nf4?"),
        ("quant_type", None, "quant_type takes nf4, fp4, int8 or none, not an empty value (null); write none"),
        ("quant_type", 4, "quant_type takes nf4, fp4, int8 or none, not 4; the default is nf4"),
        (
            "compute_dtype",
            "fp16",
            "compute_dtype takes bfloat16, float16 or float32, not the text 'fp16'; did you mean float16?",
        ),
        (
            "init_lora_weights",
            "gausian",
            "init_lora_weights takes true, false, gaussian, orthogonal, olora or pissa, not the text 'gausian'; "
            "did you mean gaussian?",
        ),
        (
            "target_modules",
            "q_proj",
            "target_modules takes all-linear, attention, mlp or a list of module names, not the text 'q_proj'; "
            "write [q_proj]",
        ),
        (
            "target_modules",
            "all_linear",
            "target_modules takes all-linear, attention, mlp or a list of module names, not the text 'all_linear'; "
            "did you mean all-linear?",
        ),
        (
            "target_modules",
            [],
            "target_modules takes all-linear, attention, mlp or a list of module names, not an empty list; "
            "the default is all-linear",
        ),
        (
            "target_modules",
            ["q_proj", 8],
            "target_modules takes all-linear, attention, mlp or a list of module names, not the list [q_proj, 8]; "
            "write the names of modules",
        ),
        ("train_examples", 0, "train_examples takes a whole number above zero or all, not 0; the default is all"),
        ("revision", 8, "revision takes text or none, not 8; put quotes around it"),
        ("revision", " main", "revision takes text or none, not the text ' main'; write main"),
        ("model", "", "model takes text, not an empty text; the default is smollm2-135m"),
        (
            "model",
            "qwen2.5-8b",
            "there is no model 'qwen2.5-8b'; did you mean qwen2.5-7b? A model of the hub is written owner/name",
        ),
        (
            "model",
            "gpt2",
            "there is no model 'gpt2'; the short names are smollm2-135m, smollm2-1.7b, qwen2.5-0.5b, qwen2.5-1.5b, "
            "qwen2.5-7b, llama-3.1-8b and mistral-7b. A model of the hub is written owner/name",
        ),
        (
            "model",
            "./nowhere",
            "there is no folder './nowhere'; give its path from the folder you are in, or a hub id",
        ),
        ("task", "banking-77", "there is no task 'banking-77'; did you mean banking77?"),
        (
            "task",
            "my data",
            "there is no task 'my data'; write banking77, intents, or a folder with train.csv and test.csv",
        ),
        (
            "vram_limit",
            "16Gb",
            f"{TAKES_A_LIMIT}, not the text '16Gb'; write 16GB",
        ),
        (
            "vram_limit",
            "15G",
            f"{TAKES_A_LIMIT}, not the text '15G'; write 15GB",
        ),
        (
            "vram_limit",
            "GTX 3090",
            f"{TAKES_A_LIMIT}, not the text 'GTX 3090'; did you mean RTX 3090? Or write its memory, such as 8GB",
        ),
        (
            "vram_limit",
            0,
            f"{TAKES_A_LIMIT}, not 0; write a size above zero, such as 16GB",
        ),
        (
            "vram_limit",
            16e9,
            f"{TAKES_A_LIMIT}, not 16000000000.0; write 16000000000",
        ),
    ],
)
def test_a_mistake_is_said_in_plain_words_with_a_fix(name: str, raw: Any, message: str) -> None:
    with pytest.raises(Mistake) as caught:
        convert(name, node(raw), CELLS)
    assert f"{caught.value.what}; {caught.value.fix}" == message


def test_an_unknown_card_is_answered_with_the_cards() -> None:
    with pytest.raises(Mistake) as caught:
        convert("vram_limit", node("Voodoo"), CELLS)
    assert caught.value.fix.startswith("the cards are GTX 1080 Ti, ")
    assert caught.value.fix.endswith(" and B200; or write its memory, such as 8GB")


def test_a_folder_is_a_model_and_a_task_needs_its_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    assert convert("model", node("mine"), CELLS) == "mine"
    with pytest.raises(Mistake, match=r"the folder 'mine' holds no train\.csv and no test\.csv"):
        convert("task", node("mine"), CELLS)
    Path("mine/train.csv").touch()
    with pytest.raises(Mistake, match=r"the folder 'mine' holds no test\.csv"):
        convert("task", node("mine"), CELLS)
    Path("mine/test.csv").touch()
    assert convert("task", node("mine"), CELLS) == "mine"
    assert convert("task", node(os.fspath(tmp_path / "mine")), CELLS) == str(tmp_path / "mine")


@pytest.mark.parametrize("text", ["a\0b", "x" * 100_000, "\ud800", "\x1b[31mred"])
@pytest.mark.parametrize("name", ["model", "task", "revision", "vram_limit", "target_modules"])
def test_strange_text_is_a_mistake_and_never_reaches_a_terminal_raw(name: str, text: str) -> None:
    if name == "revision" and len(text) > 100:
        return
    with pytest.raises(Mistake) as caught:
        convert(name, node(text), CELLS)
    assert str(caught.value.what).isprintable()
    assert len(caught.value.what) < 300


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10),
    st.sampled_from(["nf4", "none", "all", "attention", "T4", "16GB", "true", "0GB", "sgd", "float32", "8", "auto",
                     "quantize", "4x8", "0x8", "08x4", "4 X 8", "99999999x1"]),
)  # fmt: skip
NAMES = [(vocabulary, name) for vocabulary in (CELLS, KERNELS) for name in vocabulary.kinds]


@given(st.sampled_from(NAMES), SCALARS | st.lists(SCALARS, max_size=3))
def test_what_is_taken_the_model_takes_unchanged(parameter: tuple[Vocabulary, str], raw: Any) -> None:
    vocabulary, name = parameter
    try:
        value = convert(name, node(raw), vocabulary)
    except Mistake:
        return
    assert getattr(vocabulary.model(**{name: value}), name) == value


@given(st.sampled_from(NAMES), SCALARS | st.lists(SCALARS, max_size=2))
def test_every_mistake_has_a_fix_and_what_it_says_to_write_is_taken(
    parameter: tuple[Vocabulary, str], raw: Any
) -> None:
    vocabulary, name = parameter
    try:
        convert(name, node(raw), vocabulary)
    except Mistake as mistake:
        what, fix = mistake.what, mistake.fix
        event(fix.partition(" ")[0])
    else:
        return
    assert what.startswith((f"{name} takes ", "there is no "))
    written = re.fullmatch(r"(?:write|did you mean) ([^ ]+?)(?:\?.*)?", fix)
    if written and name not in ("model", "task"):
        value = written[1]
        convert(name, node([value[1:-1]] if value.startswith("[") else scalar(value)), vocabulary)


def test_every_parameter_says_what_it_takes_and_its_default() -> None:
    assert list(CELLS.kinds) == list(Parameters.model_fields)
    assert takes("vram_limit", CELLS) == "none, 709 million bytes or more, a size such as 16GB or a card such as T4"
    assert [
        default_of(name, CELLS) for name in ("learning_rate", "double_quant", "load_dtype", "max_steps", "task")
    ] == [
        "5e-4",
        "true with nf4 and fp4",
        "as compute_dtype",
        "none",
        "banking77",
    ]
