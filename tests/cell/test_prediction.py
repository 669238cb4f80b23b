from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.llama import modeling_llama

from bench.cell import encoding, prediction, quantize, sources, storage, tasks
from bench.cell.encoding import Shape
from bench.cell.failures import Invalid, in_words
from bench.cell.prediction import answer, expected_shape, largest_shape, predict, what_suffices
from bench.cell.rehearsal import Kernels
from bench.matrix.parameters import Parameters
from bench.protocol import PEAK_PARTS, Question
from tests import models
from tests.cell.examples import CPU, parameters

HOPPER = Kernels(flash_attention=True, workspace_bytes=32 * 2**20)
RANDOM = {"model": "smollm2-135m", "weights": "random", "max_length": 64, "batch_size": 4}
REFERENCE = Path("results/reference/h200")


def predicted(asked: Parameters, **more: Any) -> prediction.Prediction:
    return predict(asked, sources.shape_config(asked), **more)


def reference(matrix: str) -> list[dict[str, Any]]:
    lines = (REFERENCE / matrix / "records.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["status"] == "ok" and record["seed"] == 0]


def test_the_parts_add_up_to_the_peak_and_the_peaks_are_in_order() -> None:
    found = predicted(Parameters(**RANDOM)).measures

    parts = {part: found[f"predicted_peak_{part}_bytes"] for part in PEAK_PARTS}
    assert sum(parts.values()) == found["predicted_train_peak_allocated_bytes"]
    assert all(size >= 0 for size in parts.values())
    assert parts["base"] > found["predicted_stored_bytes"] > found["predicted_footprint_bytes"]
    ordered = [found[f"predicted_{name}_bytes"] for name in ("train_peak_requested", "train_peak_allocated", "needed")]
    assert ordered == sorted(ordered)
    assert found["predicted_needed_bytes"] <= found["predicted_train_peak_reserved_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("matrix", ["memory", "qwen2.5-7b-shape"])
def test_what_h200s_measured_was_to_be_expected(matrix: str) -> None:
    records = reference(matrix)[::7]

    errors = []
    for record in records:
        asked, measured = Parameters.model_validate(record["parameters"]), record["measures"]
        found = predicted(asked, kernels=HOPPER).measures
        for name in ("stored_bytes", "footprint_bytes"):
            assert found[f"predicted_{name}"] == measured[name]
        # All but single numbers, such as losses, is known to the byte.
        assert abs(found["predicted_train_peak_requested_bytes"] - measured["train_peak_requested_bytes"]) < 100_000
        ratio = found["predicted_train_peak_allocated_bytes"] / measured["train_peak_allocated_bytes"]
        errors.append(abs(ratio - 1))
    assert statistics.median(errors) < 0.003
    assert max(errors) < 0.006


def test_every_choice_that_saves_memory_is_predicted_to(tiny: Callable[[str], Path]) -> None:
    base = {"model": str(tiny("qwen2")), "max_length": 64, "batch_size": 16, "optim": "adamw_torch_fused"}

    def peak(**given: Any) -> int:
        return predicted(Parameters(**{**base, **given})).measures["predicted_train_peak_requested_bytes"]

    whole = peak()
    for saving in (
        {"gradient_checkpointing": True},
        {"kbit_upcast": False},
        {"optim": "adamw_8bit"},
        {"batch_size": 8},
        {"max_length": 32},
        {"lora_r": 8},
        {"target_modules": "attention"},
    ):
        assert peak(**saving) < whole, saving
    for same in ({"quant_type": "fp4"}, {"learning_rate": 1e-5}, {"lora_alpha": 8}, {"max_steps": 7}):
        assert peak(**same) == whole


def test_the_shape_of_a_batch_decides(tiny: Callable[[str], Path]) -> None:
    asked = parameters(model=str(tiny("llama")), quant_type="nf4", max_length=100, batch_size=8)

    assert largest_shape(asked) == Shape(8, 104, 8)
    small, large = (
        predicted(asked, shape=shape).measures["predicted_train_peak_requested_bytes"]
        for shape in (Shape(8, 64, 4), Shape(8, 104, 8))
    )
    assert small < large


def test_an_architecture_that_stumbles_without_data_has_exact_storage_and_a_bound(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose forward looks at its data, as some do."""
    asked = parameters(model=str(tiny("llama")), quant_type="nf4", compute_dtype="bfloat16", lora_r=8)
    whole = predicted(asked)
    forward = modeling_llama.LlamaModel.forward

    @functools.wraps(forward)
    def looks(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].max().item() > 5:
            raise AssertionError
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", looks)
    prediction._rehearsed.cache_clear()
    found = predicted(asked)
    prediction._rehearsed.cache_clear()

    assert whole.note is None
    assert "without activations, since LlamaForCausalLM cannot be rehearsed without its weights" in str(found.note)
    for name in ("stored", "footprint"):
        assert found.measures[f"predicted_{name}_bytes"] == whole.measures[f"predicted_{name}_bytes"]
    assert found.measures["predicted_peak_activation_bytes"] == 0
    assert 0 < found.measures["predicted_needed_bytes"] <= whole.measures["predicted_needed_bytes"]


def test_a_model_that_cannot_be_described_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    AutoConfig.for_model("t5").save_pretrained(tmp_path)  # no causal language model
    for asked in (
        parameters(model=str(tmp_path), weights="random"),
        parameters(model=str(tiny("llama")), target_modules=("nowhere",)),
    ):
        with pytest.raises(Invalid):
            predicted(asked)


@pytest.mark.parametrize("max_length", [32, 256])
def test_the_largest_batch_is_the_one_that_the_tasks_texts_make(
    tiny: Callable[[str], Path], tmp_path: Path, max_length: int
) -> None:
    asked = Parameters(model=str(tiny("llama")), task="intents", max_length=max_length, batch_size=16)
    task = tasks.load_task("intents", None)
    tokenizer = sources.find_tokenizer(asked, tmp_path)
    labels = encoding.encode_labels(tokenizer, task.labels)
    examples = encoding.encode_examples(tokenizer, task.train, task.labels, labels, max_length)
    surveys = [encoding.survey(examples, asked, seed) for seed in range(3)]

    shape, assumed = expected_shape(asked, range(3), Question([], cache_dir=str(tmp_path)), hub=False)

    assert assumed is None
    assert shape == Shape(16, max(max(survey.lengths) for survey in surveys), max(survey.width for survey in surveys))
    assert shape.length <= max_length


@pytest.mark.parametrize(
    "changes", [{"max_steps": 1, "batch_size": 4}, {"epochs": 0.1}, {"train_examples": 9}, {"batch_size": 1000}]
)
def test_only_batches_that_are_run_count(tiny: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    asked, here = Parameters(model=str(tiny("llama")), task="intents"), Question([], cache_dir=str(tmp_path))
    whole, _ = expected_shape(asked, [0], here, hub=False)
    some = asked.model_copy(update=changes)
    each = [expected_shape(some, [seed], here, hub=False)[0] for seed in range(6)]

    assert expected_shape(some, range(6), here, hub=False)[0] in each
    assert all(shape.rows == changes.get("train_examples", min(some.batch_size, shape.rows)) for shape in each)
    assert all(shape.length <= whole.length for shape in each)
    if "max_steps" in changes:
        assert min(shape.length for shape in each) < whole.length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "/nowhere/task"}, "/nowhere/task/train.csv does not exist"),
        ({"task": "intents", "train_examples": 10**6}, "train_examples: 1000000 asked for"),
        ({"task": "intents", "max_length": 16}, "max_length leaves"),
    ],
)
def test_texts_that_no_run_could_train_on_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    asked = Parameters(model=str(tiny("llama")), **changes)
    with pytest.raises(Invalid) as caught:
        expected_shape(asked, [0], Question([], cache_dir=str(tmp_path)), hub=False)
    assert message in str(caught.value)


def test_a_folder_with_nothing_but_a_configuration_is_predicted_for_the_longest_sequences(tmp_path: Path) -> None:
    models.config("llama").save_pretrained(tmp_path)
    asked = Parameters(model=str(tmp_path), task="intents", max_length=100)

    shape, assumed = expected_shape(asked, [0], Question([], cache_dir=str(tmp_path)), hub=False)

    assert shape == largest_shape(asked)
    assert str(assumed).startswith(f"as if every sequence had max_length tokens, since model {str(tmp_path)!r} cannot")


def test_a_cell_whose_texts_are_not_here_is_taken_to_have_the_longest_that_it_may_have(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QLORA_BENCH_DATA", raising=False)
    asked = Parameters(model=str(tiny("llama")), max_length=100, batch_size=8)
    cells = [
        {"id": name, "parameters": asked.model_copy(update=change).model_dump(mode="json")}
        for name, change in (("texts", {}), ("shape", {"weights": "random"}), ("short", {"task": "intents"}))
    ]
    sent: list[dict[str, Any]] = []

    answer(Question(cells, data_dir=str(tmp_path), cache_dir=str(tmp_path)), sent.append)

    found = {message["id"]: message for message in sent if message["kind"] == "prediction"}
    assert found["texts"]["assumed"] == (
        f"as if every sequence had max_length tokens, since the texts of banking77 are not in {tmp_path}; "
        "name the folder that holds banking77/train.csv with --data"
    )
    assert (found["shape"]["assumed"], found["short"]["assumed"]) == (None, None)
    peaks = {id_: message["measures"]["predicted_train_peak_allocated_bytes"] for id_, message in found.items()}
    assert peaks["short"] < peaks["texts"] == peaks["shape"]


def test_each_cell_of_a_question_is_answered_by_its_id(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    good = {"model": str(tiny("llama")), "quant_type": "nf4", "max_length": 32, "batch_size": 2}
    cells = [
        {"id": "b", "parameters": Parameters(**good).model_dump(mode="json")},
        {"id": "lost", "parameters": Parameters(model=str(tmp_path)).model_dump(mode="json")},
        {"id": "a", "parameters": Parameters(**good, optim="adamw_torch").model_dump(mode="json")},
    ]
    sent: list[dict[str, Any]] = []

    answer(Question.from_json(Question(cells).to_json()), sent.append)

    by_id = {message["id"]: message for message in sent}
    assert {id_: message["kind"] for id_, message in by_id.items()} == {
        "a": "prediction", "b": "prediction", "lost": "refusal",
    }  # fmt: skip
    real, _ = quantize.load(parameters(**good, compute_dtype="bfloat16"), CPU)
    assert by_id["a"]["measures"]["predicted_stored_bytes"] == storage.stored(real)["stored_bytes"]
    assert by_id["a"]["note"] is None
    assert str(tmp_path) in by_id["lost"]["message"]
    json.dumps(sent)


def test_what_would_suffice_is_named_with_what_it_needs(tiny: Callable[[str], Path]) -> None:
    asked = Parameters(model=str(tiny("qwen2")), batch_size=64, max_length=256)
    config, shape = sources.shape_config(asked), largest_shape(asked)
    checkpointed = asked.model_copy(update={"gradient_checkpointing": True})
    halved = asked.model_copy(update={"batch_size": 32, "gradient_accumulation_steps": 2})
    whole, kept, least = (
        predict(cell, config).measures["predicted_needed_bytes"] for cell in (asked, checkpointed, halved)
    )

    both = what_suffices(asked, config, shape, prediction.USUAL, kept)
    one = what_suffices(asked, config, shape, prediction.USUAL, least)
    none = what_suffices(asked, config, shape, prediction.USUAL, 10**6)
    card = what_suffices(asked, config, shape, prediction.USUAL, least, context_bytes=10**9)

    half = f"batch_size: 32 with gradient_accumulation_steps: 2 ({in_words(least)})"
    said = f"by prediction the cell needs {in_words(whole)} where"
    assert both == (
        f"{said} {in_words(kept)} can be had; each of these suffices: "
        f"gradient_checkpointing: true ({in_words(kept)}), {half}"
    )
    assert one == f"{said} {in_words(least)} can be had; this suffices: {half}"
    assert card == (
        f"by prediction the cell needs {in_words(whole + 10**9)} where {in_words(least + 10**9)} can be had; "
        f"this suffices: {half.replace(in_words(least), in_words(least + 10**9))}"
    )
    assert none == f"{said} 1 MB can be had; no single change suffices, and {half.replace(' (', ' helps most (')}"
