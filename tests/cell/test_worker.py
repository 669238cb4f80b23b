from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bench.cell import worker
from bench.matrix.parameters import Parameters
from bench.protocol import (
    DTYPE_NAMES,
    EXAMPLES,
    LAYERS,
    LOG_LIKELIHOODS,
    MEASURES,
    PEAK_PARTS,
    PHASES,
    PLACES,
    Request,
    finite,
)

Message = dict[str, Any]
Cell = Callable[..., list[Message]]

ROOT = Path(__file__).parents[2]
NAMES = {measure.name for measure in MEASURES}
ALL_PHASES = list(PHASES[1:])
UNSHARED_PHASES = [phase for phase in ALL_PHASES if phase != "reference"]
COMPARED = {"label_kl_before", "label_agreement_before", "next_token_prompts_count", "next_token_kl_before",
            "next_token_agreement_before"}  # fmt: skip
WEIGHT_ERRORS = {"weight_error", "weight_error_max", "weight_error_layers_count"}
ON_A_GPU_ONLY = {
    "cap_bytes", "short_bytes", "context_bytes", "gpu_busy_share", "predicted_needed_bytes",
    *(f"predicted_train_peak_{counter}_bytes" for counter in ("allocated", "requested", "reserved")),
    *(f"predicted_peak_{part}_bytes" for part in PEAK_PARTS),
    *(f"{span}_{figure}_bytes" for span in ("load", "score", "train")
      for figure in ("peak_allocated", "peak_requested", "peak_reserved", "process", "outside_torch")),
}  # fmt: skip
PLACED = [f"{place}_{dtype}_bytes" for place in PLACES for dtype in DTYPE_NAMES]
WHERE_NOT_ZERO = {*PLACED, *(f"train_{name}" for name in PLACED)}

# Announces itself the way that libraries do, when torch is imported and when Python ends.
NOISE = """
import atexit, os, sys

def speak(words):
    print("a library says:", words)
    os.write(1, b'{"kind": "a library says this"}\\n')

def hook(event, arguments):
    if event == "import" and arguments[0] == "torch" and not said:
        said.append(True)
        speak("hello")

said = []
sys.addaudithook(hook)
atexit.register(speak, "goodbye")
"""


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a task that a tiny model can learn: the first word says the intent."""
    folder = tmp_path_factory.mktemp("task")
    words = {"lost_card": "lost", "top_up": "money", "top_up_failed": "failed"}
    for part, each in (("train", 8), ("test", 4)):
        rows = [f"{word} about number {number},{label}" for number in range(each) for label, word in words.items()]
        (folder / f"{part}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


def request(
    folder: Path,
    task: Path,
    seed: int = 0,
    device: str = "cpu",
    shared_dir: Path | None = None,
    evidence_dir: Path | None = None,
    evidence_name: str = "cell",
    **given: Any,
) -> Request:
    chosen = {
        "model": str(folder), "task": str(task), "max_length": 48, "batch_size": 8, "max_steps": 4,
        "learning_rate": 1e-2, **given,
    }  # fmt: skip
    if chosen.get("quant_type", "nf4") not in ("nf4", "fp4"):
        chosen.setdefault("double_quant", False)
    return Request(
        "cell",
        seed,
        Parameters(**chosen).model_dump(mode="json"),
        device,  # type: ignore[arg-type]
        shared_dir=str(shared_dir) if shared_dir else None,
        evidence_dir=str(evidence_dir) if evidence_dir else None,
        evidence_name=evidence_name,
    )


@pytest.fixture
def cell(tiny: Callable[[str], Path], task: Path) -> Cell:
    """Run a cell within this process and return its messages, as they would come out of the channel."""

    def run(name: str = "llama", **given: Any) -> list[Message]:
        messages: list[Message] = []
        folder = Path(given.pop("model", None) or tiny(name))
        worker.work(request(folder, given.pop("task", task), **given), messages.append)
        return [json.loads(json.dumps(finite(message), allow_nan=False)) for message in messages]

    return run


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which cells find the 16-bit model's answers once one of them has had them computed."""
    return tmp_path_factory.mktemp("shared")


# The process ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Run `python -m bench.cell` on the shipped task, with libraries that print."""
    noisy = tmp_path_factory.mktemp("noisy")
    (noisy / "sitecustomize.py").write_text(NOISE)
    given: dict[str, Any] = {"max_length": 96, "train_examples": 24, "eval_examples": 24, "max_steps": 3}
    asked = request(tiny("llama"), Path("intents"), shared_dir=noisy / "shared", **given)
    return subprocess.run(
        [sys.executable, "-m", "bench.cell"],
        input=asked.to_json(),
        env={
            **os.environ,
            "PYTHONPATH": f"{noisy}{os.pathsep}{ROOT}",
            "QLORA_BENCH_PARENT": str(os.getpid()),
            "OMP_NUM_THREADS": "1",
        },
        cwd=noisy,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_worker_speaks_strict_json_lines_and_nothing_else(process: subprocess.CompletedProcess[str]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    messages = [json.loads(line, parse_constant=refuse) for line in process.stdout.splitlines()]

    assert process.returncode == 0
    assert messages[-1]["status"] == "ok"
    assert {message["kind"] for message in messages} == {"phase", "progress", "end"}
    assert [message["phase"] for message in messages if message["kind"] == "phase"] == ALL_PHASES


def test_what_libraries_print_goes_to_the_log(process: subprocess.CompletedProcess[str]) -> None:
    assert "a library says" not in process.stdout
    assert "a library says: hello" in process.stderr
    assert "a library says: goodbye" in process.stderr
    assert process.stderr.count('"a library says this"') == 4  # the worker's, and those of the 16-bit model's process


def test_a_worker_whose_run_has_ended_ends() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    done = subprocess.run(
        [sys.executable, "-m", "bench.cell"],
        input="{}",
        env={**os.environ, "PYTHONPATH": str(ROOT), "QLORA_BENCH_PARENT": str(dead.pid)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert "the run that started this worker has ended" in done.stderr


# Messages -------------------------------------------------------------------------------------------------------------


def test_a_cell_tells_its_phases_its_progress_and_its_end(cell: Cell) -> None:
    messages = cell()

    assert [message["phase"] for message in messages if message["kind"] == "phase"] == UNSHARED_PHASES
    assert [message["kind"] for message in messages].index("end") == len(messages) - 1
    for message in messages:
        assert message["peak_allocated_bytes"] is None
        if message["kind"] == "progress":
            assert set(message) == {"kind", "phase", "peak_allocated_bytes", "done", "total"}
            assert 0 < message["done"] <= message["total"]
    last = {message["phase"]: message for message in messages if message["kind"] == "progress"}
    assert {phase: (m["done"], m["total"]) for phase, m in last.items()} == {
        "score_before": (12, 12), "train": (4, 4), "score_after": (12, 12),
    }  # fmt: skip
    end = messages[-1]
    assert set(end) == {
        "kind", "phase", "peak_allocated_bytes", "status", "message", "hint", "measures", "losses", "environment",
        "warnings",
    }  # fmt: skip
    assert (end["status"], end["phase"], end["message"], end["hint"]) == ("ok", "score_after", None, None)


@pytest.mark.parametrize("kind", ["nf4", "int8", "none"])
def test_every_measure_that_a_cpu_has_is_sent_and_every_one_sent_is_documented(
    cell: Cell, tmp_path: Path, kind: str
) -> None:
    # A base of its own for each run of this test: what is reused takes no time.
    measures = cell(quant_type=kind, shared_dir=tmp_path)[-1]["measures"]

    assert set(measures) <= NAMES
    where_quantized = WEIGHT_ERRORS if kind == "none" else set()
    assert NAMES - set(measures) <= ON_A_GPU_ONLY | WHERE_NOT_ZERO | where_quantized
    assert {name for name, value in measures.items() if value is None} <= ON_A_GPU_ONLY
    assert all(math.isfinite(value) for value in measures.values() if value is not None)


def test_measures_say_what_was_asked_for(cell: Cell) -> None:
    measures = cell(lora_r=4, target_modules="attention")[-1]["measures"]

    assert measures["steps_count"] == 4
    assert (measures["eval_examples_count"], measures["labels_count"]) == (12, 3)
    assert measures["quantized_modules_count"] == 14
    assert measures["adapter_bytes"] == 4 * measures["trainable_parameters_count"]
    assert measures["trainable_parameters_count"] == 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32))
    assert measures["predicted_stored_bytes"] == measures["stored_bytes"]
    assert measures["predicted_footprint_bytes"] == measures["footprint_bytes"]
    components = ("packed_bytes", "quant_state_bytes", "unquantized_bytes", "buffer_bytes")
    assert measures["stored_bytes"] == sum(measures[name] for name in components)
    assert measures["stored_bytes"] > measures["footprint_bytes"]
    assert measures["unquantized_bytes"] == sum(measures.get(name, 0) for name in PLACED)


@pytest.mark.parametrize("upcast", [True, False])
def test_measures_say_what_training_adds(cell: Cell, upcast: bool) -> None:
    measures = cell(name="qwen2", kbit_upcast=upcast, optim="adamw_torch")[-1]["measures"]

    cast = "float32" if upcast else "bfloat16"
    for place in ("embedding", "head", "norm", "bias"):
        before = measures[f"{place}_bfloat16_bytes"]
        assert measures[f"train_{place}_{cast}_bytes"] == (2 if upcast else 1) * before
    assert measures["upcast_bytes"] == (measures["unquantized_bytes"] if upcast else 0)
    in_training = sum(measures.get(f"train_{name}", 0) for name in PLACED)
    assert in_training == measures["unquantized_bytes"] + measures["upcast_bytes"]
    assert measures["gradient_bytes"] == measures["adapter_bytes"]
    counters = 4 * 2 * measures["quantized_modules_count"]  # a step count for each A and each B
    assert measures["optimizer_bytes"] == 2 * measures["adapter_bytes"] + counters
    assert measures["optimizer_managed_bytes"] == 0


def test_the_environment_says_what_the_figures_depend_on(cell: Cell) -> None:
    environment = cell()[-1]["environment"]

    assert environment["torch"] == torch.__version__
    assert {"python", "transformers", "peft", "bitsandbytes", "threads", "cores"} <= set(environment)
    assert len(environment["task_sha256"]) == len(environment["batches_sha256"]) == 64


def test_a_cell_learns(cell: Cell) -> None:
    measures = cell(max_steps=30)[-1]["measures"]

    assert measures["train_loss_last"] < 0.2 * measures["train_loss_first"]
    assert measures["heldout_loss_after"] < 0.2 * measures["heldout_loss_before"]
    assert measures["accuracy_after"] == measures["macro_f1_after"] == 1.0
    assert measures["accuracy_before"] < 1.0


def test_a_seed_decides_the_batches_and_the_figures(cell: Cell) -> None:
    one, again, quantized, other = (
        cell(seed=seed, quant_type=kind)[-1] for seed, kind in ((1, "none"), (1, "none"), (1, "nf4"), (2, "none"))
    )

    for name in ("train_loss_first", "train_loss_last", "heldout_loss_after", "accuracy_after"):
        assert one["measures"][name] == again["measures"][name]
    assert one["measures"]["train_loss_first"] != other["measures"]["train_loss_first"]
    assert one["environment"]["batches_sha256"] == quantized["environment"]["batches_sha256"]
    assert one["environment"]["batches_sha256"] != other["environment"]["batches_sha256"]
    assert one["environment"]["task_sha256"] == other["environment"]["task_sha256"]


def test_a_seed_decides_how_adapters_start(cell: Cell) -> None:
    # Both see all examples in every step, so that only the adapters can differ.
    one, other = (cell(seed=seed, batch_size=24, max_steps=8)[-1]["measures"] for seed in (1, 2))

    assert one["train_loss_first"] == pytest.approx(other["train_loss_first"], rel=1e-3)
    assert one["train_loss_last"] != pytest.approx(other["train_loss_last"], rel=1e-3)


def test_random_weights_train_on_full_sequences_and_tell_no_accuracy(cell: Cell) -> None:
    messages = cell(weights="random", max_length=32, quant_type="nf4")

    assert [m["phase"] for m in messages if m["kind"] == "phase"] == ["load", "verify", "adapt", "train"]
    measures = messages[-1]["measures"]
    assert messages[-1]["status"] == "ok"
    assert measures["padded_tokens_per_s"] == measures["tokens_per_s"] == 32 * measures["examples_per_s"]
    assert not [name for name in measures if "accuracy" in name or "f1" in name or "heldout" in name]


@pytest.mark.parametrize(
    "given",
    [
        {"name": "qwen2", "quant_type": "nf4", "compute_dtype": "bfloat16", "load_dtype": "float32"},
        {"name": "qwen2", "quant_type": "int8", "compute_dtype": "float16", "gradient_checkpointing": True},
        {"name": "gpt2", "quant_type": "none"},
        {"name": "gpt_neox", "quant_type": "fp4", "kbit_upcast": False},
        {"name": "gemma2", "attn_implementation": "eager"},
        {"name": "odd", "use_dora": True, "gradient_accumulation_steps": 2, "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_cells_of_all_sorts_go_through(cell: Cell, given: dict[str, Any]) -> None:
    end = cell(**given)[-1]

    assert (end["status"], end["message"]) == ("ok", None)


# What cells share -----------------------------------------------------------------------------------------------------


def test_the_losses_of_every_step_are_sent(cell: Cell) -> None:
    end = cell(max_steps=10)[-1]

    assert len(end["losses"]) == 10
    assert end["losses"][0] == pytest.approx(end["measures"]["train_loss_first"], rel=1e-5)
    assert end["losses"][-1] == pytest.approx(end["measures"]["train_loss_last"], rel=1e-5)


def test_cells_with_the_same_base_score_it_once_and_say_so(cell: Cell, tmp_path: Path) -> None:
    first, second = (cell(shared_dir=tmp_path, target_modules=target)[-1] for target in ("all-linear", "attention"))
    other = cell(shared_dir=tmp_path, quant_type="fp4")[-1]
    alone = cell(target_modules="attention")[-1]

    reused = [end["environment"]["score_before_reused"] for end in (first, second, other, alone)]
    assert reused == [False, True, False, False]
    assert "score_before_s" in first["measures"]
    assert "score_before_s" not in second["measures"]
    for name in COMPARED | WEIGHT_ERRORS:
        assert second["measures"][name] == first["measures"][name]
    for name in ("accuracy", "macro_f1", "heldout_loss", "expected_calibration_error"):
        assert second["measures"][f"{name}_before"] == first["measures"][f"{name}_before"]
        assert second["measures"][f"{name}_before"] == alone["measures"][f"{name}_before"]
        assert second["measures"][f"{name}_after"] == alone["measures"][f"{name}_after"]
    assert second["losses"] == alone["losses"] != first["losses"]


def test_a_cell_that_reuses_scores_has_no_phase_of_scoring_before(cell: Cell, tmp_path: Path) -> None:
    phases = [
        [message["phase"] for message in cell(shared_dir=tmp_path) if message["kind"] == "phase"] for _ in range(2)
    ]

    assert phases == [ALL_PHASES, [phase for phase in ALL_PHASES if phase != "score_before"]]


def test_what_attention_a_cell_trained_with_is_recorded(cell: Cell) -> None:
    assert cell()[-1]["environment"]["attention_used"] == "causal_sdpa"
    assert cell(attn_implementation="eager")[-1]["environment"]["attention_used"] == "eager"


# The 16-bit model -----------------------------------------------------------------------------------------------------


def test_the_16_bit_cell_says_what_the_16_bit_model_says_and_a_quantized_one_does_not(
    cell: Cell, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"name": "qwen2", "shared_dir": tmp_path}
    plain, quantized = (cell(quant_type=kind, **given) for kind in ("none", "nf4"))

    told = [[message for message in messages if message["phase"] == "reference"] for messages in (plain, quantized)]
    assert [message["kind"] for message in told[0]][:2] == ["phase", "progress"]
    assert [message["kind"] for message in told[1]] == ["phase"]  # it is there
    one, other = plain[-1]["measures"], quantized[-1]["measures"]
    assert one["label_kl_before"] == one["next_token_kl_before"] == 0.0
    assert one["label_agreement_before"] == one["next_token_agreement_before"] == 1.0
    assert one["next_token_prompts_count"] == other["next_token_prompts_count"] == 12
    assert other["label_kl_before"] > 1e-3
    assert other["next_token_kl_before"] > 1e-3
    assert 0 < other["weight_error"] <= other["weight_error_max"] < 0.3
    assert other["weight_error_layers_count"] == other["quantized_modules_count"] == 14
    assert not WEIGHT_ERRORS & set(one)
    assert plain[-1]["warnings"] == quantized[-1]["warnings"] == []


def test_cells_that_share_nothing_are_not_compared_with_the_16_bit_model(cell: Cell) -> None:
    measures = cell()[-1]["measures"]

    assert not (COMPARED | {"reference_s"}) & set(measures)
    assert set(measures) >= WEIGHT_ERRORS


def test_without_the_16_bit_model_a_cell_says_why_and_goes_on(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "false")
        first = cell(shared_dir=tmp_path)[-1]
    second = cell(shared_dir=tmp_path, quant_type="fp4")[-1]

    (kept,) = tmp_path.glob("reference-*.json")
    for end in (first, second):
        assert end["status"] == "ok"
        assert end["warnings"] == [
            "no 16-bit reference: its process ended with code 1 (the cell's log may say why); "
            f"remove {kept} to try again"
        ]
        assert not COMPARED & set(end["measures"])
        assert end["measures"]["weight_error"] > 0


def test_a_reference_that_comes_later_is_not_missed(
    cell: Cell, shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "false")
        cell(name="qwen2", shared_dir=tmp_path)
    (kept,) = tmp_path.glob("reference-*.json")
    cell(name="qwen2", shared_dir=shared_dir)
    kept.unlink()
    there = shared_dir / kept.with_suffix(".safetensors").name
    (tmp_path / there.name).write_bytes(there.read_bytes())

    end = cell(name="qwen2", shared_dir=tmp_path)[-1]

    assert not end["environment"]["score_before_reused"]
    assert set(end["measures"]) >= COMPARED
    assert end["warnings"] == []


def test_errors_of_weights_that_cannot_be_had_are_warned_of(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("of all things")

    monkeypatch.setattr(worker.layers, "weight_errors", fail)

    end = cell()[-1]

    assert (end["status"], end["warnings"]) == ("ok", ["no errors of weights: OutOfMemoryError: of all things"])
    assert not WEIGHT_ERRORS & set(end["measures"])


def test_whatever_goes_wrong_with_the_16_bit_reference_is_warned_of(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise LookupError("of all things")

    monkeypatch.setattr(worker.reference, "obtain", fail)

    end = cell(shared_dir=tmp_path)[-1]

    assert (end["status"], end["warnings"]) == ("ok", ["no 16-bit reference: LookupError: of all things"])
    assert not COMPARED & set(end["measures"])


def test_a_comparison_that_fails_is_warned_of_and_its_base_is_not_shared(
    cell: Cell, shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("of all things")

    cell(shared_dir=shared_dir, max_steps=1)
    for file in shared_dir.glob("reference-*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(worker.divergence, "compare_next_tokens", fail)

    end = cell(shared_dir=tmp_path)[-1]

    assert end["status"] == "ok"
    assert end["warnings"] == ["no comparison with the 16-bit model: OutOfMemoryError: of all things"]
    assert not COMPARED & set(end["measures"])
    assert set(end["measures"]) >= WEIGHT_ERRORS | {"accuracy_before", "accuracy_after"}
    assert not list(tmp_path.glob("base-*"))


# What is kept beside a record -----------------------------------------------------------------------------------------


def test_what_every_example_and_every_layer_got_is_kept(cell: Cell, tmp_path: Path, shared_dir: Path) -> None:
    evidence: dict[str, Any] = {"shared_dir": shared_dir, "evidence_dir": tmp_path}
    ends = [cell(evidence_name=name, max_steps=steps, **evidence)[-1] for name, steps in (("one", 3), ("other", 4))]

    for name, end in zip(("one", "other"), ends, strict=True):
        examples = pq.read_table(tmp_path / EXAMPLES / f"{name}.parquet").to_pydict()
        accuracy = np.mean([a == b for a, b in zip(examples["label"], examples["predicted_after"], strict=True)])
        assert accuracy == end["measures"]["accuracy_after"]
        content = (tmp_path / EXAMPLES / f"{name}.parquet").read_bytes()
        assert end["environment"]["examples_sha256"] == hashlib.sha256(content).hexdigest()
        assert pq.read_table(tmp_path / LOG_LIKELIHOODS / f"{name}.parquet").num_rows == 12
        layers = pq.read_table(tmp_path / LAYERS / f"{name}.parquet").to_pydict()  # also of a base that was reused
        assert max(layers["rmse_per_sigma"]) == end["measures"]["weight_error_max"]


def test_an_unquantized_cell_keeps_its_examples_only(cell: Cell, tmp_path: Path) -> None:
    end = cell(quant_type="none", evidence_dir=tmp_path)[-1]

    assert end["status"] == "ok"
    assert {path.name for path in tmp_path.iterdir()} == {EXAMPLES, LOG_LIKELIHOODS}


def test_what_cannot_be_kept_is_warned_of(cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    end = cell(evidence_dir=tmp_path / "file")[-1]

    assert (end["status"], end["phase"]) == ("ok", "score_after")
    assert [warning.partition(" could not be kept: ")[0] for warning in end["warnings"]] == [
        "the layers' errors", "the scores of the examples",
    ]  # fmt: skip
    assert "examples_sha256" not in end["environment"]
    assert end["measures"]["accuracy_after"] >= 0


def test_what_arrow_refuses_is_warned_of(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise pa.ArrowNotImplementedError("of all things")

    monkeypatch.setattr(pq, "write_table", refuse)

    end = cell(evidence_dir=tmp_path)[-1]

    assert end["status"] == "ok"
    assert [warning.partition(" could not be kept: ")[2] for warning in end["warnings"]] == ["of all things"] * 2


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "phase", "message", "hint"),
    [
        ({"model": "/nowhere"}, "start", "model folder /nowhere does not exist", "hub id"),
        ({"task": Path("/nowhere")}, "start", "/nowhere/train.csv does not exist", "train.csv and test.csv"),
        ({"max_length": 8}, "start", "max_length leaves", "raise max_length by at least"),
        ({"max_length": 300}, "verify", "the model has 256 positions", "lower max_length"),
        ({"target_modules": ["query"]}, "adapt", "has no linear layer 'query'", "q_proj"),
        ({"eval_examples": 99}, "start", "eval_examples: 99 asked for, and the task has 12", "all"),
        ({"train_examples": 99}, "start", "train_examples: 99 asked for, and the task has 24", "all"),
        ({"vram_limit": "T4"}, "start", "vram_limit needs a CUDA GPU", "leave vram_limit out"),
        ({"execution": "cuda_graph"}, "train", "execution: cuda_graph needs a CUDA GPU", "auto"),
        ({"load_dtype": "float16"}, "start", "autocast to bfloat16 cannot mix", "load_dtype"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_had_ends_as_invalid_with_what_to_do(
    cell: Cell, given: dict[str, Any], phase: str, message: str, hint: str
) -> None:
    end = cell(**given)[-1]

    assert (end["kind"], end["status"], end["phase"]) == ("end", "invalid", phase)
    assert message in end["message"]
    assert hint in end["hint"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_a_gpu_that_is_not_there_ends_as_invalid(cell: Cell) -> None:
    end = cell(device="cuda")[-1]

    assert (end["status"], end["phase"]) == ("invalid", "start")
    assert "torch sees none" in end["message"]


def test_a_loss_that_is_no_number_ends_as_diverged_and_keeps_what_was_measured(cell: Cell) -> None:
    end = cell(learning_rate=1e30, max_grad_norm=0.0)[-1]

    assert (end["status"], end["phase"]) == ("diverged", "train")
    assert "is nan" in end["message"]
    assert "learning_rate" in end["hint"]
    assert end["losses"][0] > 0
    assert end["losses"][-1] is None
    assert {"stored_bytes", "accuracy_before", "load_s", "train_peak_rss_bytes"} <= set(end["measures"])
    assert "accuracy_after" not in end["measures"]


def test_a_model_that_the_last_step_broke_ends_as_diverged(cell: Cell) -> None:
    # Its loss was taken before the step, and is a number.
    end = cell(max_steps=1, warmup_ratio=0.0, learning_rate=1e30, max_grad_norm=0.0, optim="adamw_torch")[-1]

    assert (end["status"], end["phase"]) == ("diverged", "score_after")
    assert end["message"] == "the held-out loss after training is nan"


def test_memory_that_runs_out_ends_as_oom_in_its_phase(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "train", lambda *_, **__: torch.empty(10**15))

    end = cell()[-1]

    assert (end["status"], end["phase"]) == ("oom", "train")
    assert end["message"] == "out of memory in phase train: the host has no more"
    assert "gradient_checkpointing" in end["hint"]
    assert end["measures"]["short_bytes"] is None
    assert end["measures"]["accuracy_before"] is not None


def test_an_error_nobody_expected_ends_as_crashed_with_a_traceback_in_the_log(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise LookupError("of all things")

    monkeypatch.setattr(worker.adapters, "adapt", fail)

    end = cell()[-1]

    assert (end["status"], end["phase"], end["message"]) == ("crashed", "adapt", "LookupError: of all things")
    assert "Traceback" in capfd.readouterr().err
