"""What only a CUDA GPU shows. Run with `nox -s gpu`; skipped where there is none."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.cell import adapters, encoding, graphs, meters, quantize, scoring, steps, storage, trie, worker
from bench.cell.devices import move
from bench.cell.divergence import compare_next_tokens
from bench.cell.encoding import TokenizedExample
from bench.cell.failures import Shortage
from bench.cell.train import EAGER_STEPS
from bench.matrix.parameters import Parameters
from bench.protocol import MEASURES, PEAK_PARTS, Request
from tests.cell.examples import examples, load, parameters, plain_scores, run, wanted
from tests.cell.test_scoring import labels, prompts
from tests.cell.test_storage import assert_all_adds_up, distinct_bytes, tensors_within
from tests.cell.test_worker import WHERE_NOT_ZERO
from tests.models import config

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
GB, MB = 10**9, 10**6
ROUNDING = 512  # the allocator's, per tensor

KINDS: list[dict[str, Any]] = [
    {"quant_type": "nf4"},
    {"quant_type": "nf4", "double_quant": False},
    {"quant_type": "fp4"},
    {"quant_type": "int8"},
    {"quant_type": "none"},
]


@pytest.fixture(autouse=True)
def _emptied() -> Iterator[None]:
    """Leave no tensor and no cap of one test to the next."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(params=["bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    if request.param == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this card has no bfloat16 arithmetic")
    return str(request.param)


def cell(folder: Path | str, **given: Any) -> dict[str, Any]:
    """Run a cell within this process and return its last message."""
    messages: list[dict[str, Any]] = []
    worker.work(request(folder, **given), messages.append)
    return messages[-1]


def process(asked: Request) -> dict[str, Any]:
    """Run a cell in a process of its own, as a run does, and return its last message."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.cell"],
        input=asked.to_json(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "QLORA_BENCH_PARENT": str(os.getpid())},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    end: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert end["kind"] == "end", done.stderr[-2000:]
    return end


def request(
    folder: Path | str, *, shared_dir: Path | None = None, cache_dir: Path | None = None, **given: Any
) -> Request:
    chosen = {"model": str(folder), "max_length": 64, "batch_size": 4, "max_steps": 24, "task": "intents", **given}
    chosen.setdefault("compute_dtype", "float16")  # every card has it
    if chosen.get("quant_type", "nf4") not in ("nf4", "fp4"):
        chosen.setdefault("double_quant", False)
    return Request(
        "cell",
        0,
        Parameters(**chosen).model_dump(mode="json"),
        "cuda",
        cache_dir=str(cache_dir) if cache_dir else None,
        shared_dir=str(shared_dir) if shared_dir else None,
    )


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_training_lowers_the_loss(tiny: Callable[[str], Path], kind: dict[str, Any], dtype: str) -> None:
    done = run(tiny("qwen2"), examples(8), device=GPU, compute_dtype=dtype, load_dtype=dtype, batch_size=8, **kind)

    assert len(done.losses) == 20
    assert done.losses[-1] < 0.5 * done.losses[0]


@pytest.mark.parametrize("name", ["paged_adamw_8bit", "paged_adamw_32bit", "adamw_8bit", "adamw_torch_fused"])
def test_optimizers_learn_on_a_gpu(tiny: Callable[[str], Path], name: str) -> None:
    done = run(tiny("llama"), examples(8), device=GPU, quant_type="nf4", optim=name, batch_size=8)

    assert done.losses[-1] < 0.8 * done.losses[0]


def test_a_paged_optimizer_keeps_large_states_in_managed_memory(tiny: Callable[[str], Path]) -> None:
    # Only states of at least 100,000 elements are paged.
    asked = wanted(tiny("llama"), quant_type="nf4", lora_r=2048, optim="paged_adamw_8bit")
    model, _ = quantize.load(asked, GPU)
    adapters.adapt(model, asked)
    it = steps.trainee(model, asked, 4)
    batch = encoding.collate(examples(4))
    steps.forward_backward(it, move(batch, GPU), batch.loss_tokens)  # cuBLAS takes its workspaces
    it.optimizer.zero_grad()
    before = torch.cuda.memory_allocated(GPU)

    losses = [steps.take(it, [batch]).item() for _ in range(4)]

    allocated = torch.cuda.memory_allocated(GPU) - before
    found = storage.training_state(it.weights, it.optimizer)
    sizes = [weight.numel() for weight in it.weights]
    paged = [n for n in sizes if n >= 100_000]
    assert 0 < len(paged) < len(sizes)
    scales, tables = sum(8 * math.ceil(n / 256) for n in sizes), 2 * 256 * 4
    assert found["optimizer_managed_bytes"] == 2 * sum(paged)
    assert found["optimizer_bytes"] == 2 * (sum(sizes) - sum(paged)) + scales + tables
    assert found["optimizer_bytes"] <= allocated <= found["optimizer_bytes"] + ROUNDING * (4 * len(sizes) + 2)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("optim", "execution"),
    [
        ("adamw_torch", "eager"),
        ("paged_adamw_8bit", "eager"),
        ("paged_adamw_8bit", "cuda_graph"),
        ("adamw_torch_fused", "cuda_graph"),
    ],
)
def test_a_run_tells_what_its_training_keeps(tiny: Callable[[str], Path], optim: str, execution: str) -> None:
    given: dict[str, Any] = {"quant_type": "nf4", "optim": optim, "execution": execution, "lora_r": 4}

    found = run(tiny("llama"), examples(40), device=GPU, max_steps=30, **given).state

    asked = wanted(tiny("llama"), **given)
    model, _ = quantize.load(asked, GPU)
    adapters.adapt(model, asked)
    sizes = [weight.numel() for weight in adapters.trainable(model)]
    assert max(sizes) < 4096  # bitsandbytes keeps the moments of small weights in 32 bits
    # What an optimizer made for graphs has on the GPU: step counts, the learning rate, and the first one.
    counters = 4 * len(sizes) + 2 * 4 if optim == "adamw_torch_fused" else 0
    assert found == {
        "gradient_bytes": 4 * sum(sizes),
        "optimizer_bytes": 8 * sum(sizes) + counters,
        "optimizer_managed_bytes": 0,
    }


def test_losses_on_a_gpu_are_those_on_a_cpu(tiny: Callable[[str], Path]) -> None:
    given: dict[str, Any] = {"quant_type": "nf4", "optim": "adamw_torch", "execution": "eager"}

    on_gpu = run(tiny("llama"), examples(40), device=GPU, **given).losses
    on_cpu = run(tiny("llama"), examples(40), **given).losses

    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0.02)


# CUDA graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"quant_type": "nf4", "optim": "paged_adamw_8bit"},
        {"quant_type": "nf4", "optim": "adamw_torch_fused"},
        {"quant_type": "none", "optim": "adamw_torch_fused", "gradient_accumulation_steps": 2},
        {"quant_type": "fp4", "optim": "adamw_8bit", "max_grad_norm": 0.1, "lr_scheduler_type": "cosine"},
    ],
    ids=str,
)
def test_a_graph_takes_the_losses_of_eager_steps(tiny: Callable[[str], Path], given: dict[str, Any]) -> None:
    data = examples(150)  # epochs end in a smaller batch

    eager = run(tiny("qwen2"), data, device=GPU, max_steps=60, execution="eager", **given)
    graph = run(tiny("qwen2"), data, device=GPU, max_steps=60, execution="cuda_graph", **given)

    assert (eager.execution, graph.execution, graph.warnings) == ("eager", "cuda_graph", ())
    assert len(graph.losses) == 60
    np.testing.assert_allclose(graph.losses, eager.losses, rtol=5e-3)


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "adamw_8bit", "paged_adamw_32bit", "adamw_torch_fused"])
def test_a_graph_of_batches_that_need_no_padding_takes_the_very_losses_of_eager_steps(
    tiny: Callable[[str], Path], optim: str
) -> None:
    data = [TokenizedExample(example.prompt[:5], (example.prompt[0], 0)) for example in examples(40)]
    given: dict[str, Any] = {"quant_type": "nf4", "optim": optim, "max_steps": 60}

    eager = run(tiny("qwen2"), data, device=GPU, execution="eager", **given)
    graph = run(tiny("qwen2"), data, device=GPU, execution="cuda_graph", **given)

    assert (graph.execution, graph.warnings) == ("cuda_graph", ())
    assert graph.losses[-1] < 0.5 * graph.losses[0]
    np.testing.assert_allclose(graph.losses, eager.losses, rtol=1e-6)


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "adamw_torch_fused"])
def test_a_graph_in_16_bits_learns_like_eager_steps(tiny: Callable[[str], Path], optim: str, dtype: str) -> None:
    given: dict[str, Any] = {"quant_type": "nf4", "optim": optim, "compute_dtype": dtype, "load_dtype": dtype}
    data = examples(32)

    eager = run(tiny("qwen2"), data, device=GPU, max_steps=60, execution="eager", **given)
    graph = run(tiny("qwen2"), data, device=GPU, max_steps=60, execution="cuda_graph", **given)

    assert (graph.execution, graph.warnings) == ("cuda_graph", ())
    assert graph.losses[-1] < 0.5 * graph.losses[0]
    np.testing.assert_allclose(graph.losses[:25], eager.losses[:25], rtol=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_that_cannot_be_captured_is_taken_eagerly_as_if_nothing_had_been_tried(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    given: dict[str, Any] = {"quant_type": "nf4", "optim": "adamw_torch_fused", "gradient_checkpointing": checkpointing}
    data = examples(40)
    eager = run(tiny("llama"), data, device=GPU, max_steps=40, execution="eager", **given)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graphs.torch.cuda, "graph", refuse)
    graph = run(tiny("llama"), data, device=GPU, max_steps=40, execution="cuda_graph", **given)

    assert graph.execution == "eager"
    assert [warning.partition(": ")[2] for warning in graph.warnings] == [
        "operation not permitted when stream is capturing"
    ]
    np.testing.assert_allclose(graph.losses, eager.losses, rtol=1e-3)


def test_after_a_capture_that_fails_work_goes_on_where_it_was(tiny: Callable[[str], Path]) -> None:
    # int8 layers wait for the GPU, which ends a capture.
    given: dict[str, Any] = {"quant_type": "int8", "max_steps": 40}
    data = examples(40)
    before = torch.cuda.current_stream(GPU)

    eager = run(tiny("qwen2"), data, device=GPU, execution="eager", **given)
    graph = run(tiny("qwen2"), data, device=GPU, execution="cuda_graph", **given)

    assert (graph.execution, len(graph.warnings)) == ("eager", 1)
    assert torch.cuda.current_stream(GPU) == before
    np.testing.assert_allclose(graph.losses, eager.losses, rtol=1e-3)


def test_a_real_capture_with_checkpointing_ends_in_one_way_or_the_other_with_the_right_losses(
    tiny: Callable[[str], Path],
) -> None:
    given: dict[str, Any] = {"quant_type": "nf4", "optim": "adamw_torch_fused", "gradient_checkpointing": True}
    data = examples(40)

    eager = run(tiny("llama"), data, device=GPU, max_steps=40, execution="eager", **given)
    graph = run(tiny("llama"), data, device=GPU, max_steps=40, execution="cuda_graph", **given)

    assert graph.execution == "cuda_graph" or graph.warnings
    np.testing.assert_allclose(graph.losses, eager.losses, rtol=5e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_replay_draws_its_own_dropout_masks(
    tiny: Callable[[str], Path], dropout: float, checkpointing: bool
) -> None:
    # The weights stand still, and every step sees the same batch: only masks can make its losses differ.
    given: dict[str, Any] = {
        "quant_type": "nf4", "optim": "adamw_torch_fused", "init_lora_weights": False, "learning_rate": 1e-20,
        "gradient_checkpointing": checkpointing, "lora_dropout": dropout, "max_steps": 60,
    }  # fmt: skip

    eager = run(tiny("llama"), examples(4), device=GPU, execution="eager", **given)
    graph = run(tiny("llama"), examples(4), device=GPU, execution="cuda_graph", **given)

    assert (graph.execution, graph.warnings) == ("cuda_graph", ())
    if dropout:
        assert len(set(graph.losses)) == 60
        of_both = np.std([*eager.losses, *graph.losses])
        assert abs(np.mean(graph.losses[20:]) - np.mean(eager.losses[20:])) < 4 * of_both * math.sqrt(2 / 40)
        assert np.std(graph.losses[20:]) == pytest.approx(np.std(eager.losses[20:]), rel=0.6)
    else:
        np.testing.assert_allclose(graph.losses, graph.losses[0], rtol=1e-5)


def test_replayed_steps_never_wait_for_the_gpu(tiny: Callable[[str], Path]) -> None:
    asked = wanted(tiny("qwen2"), quant_type="nf4", optim="adamw_torch_fused")
    model, _ = quantize.load(asked, GPU)
    adapters.adapt(model, asked)
    it, data = steps.trainee(model, asked, 20), examples(40)
    survey = encoding.survey(data, asked, 0)
    batches = list(graphs.pad_alike(encoding.steps(data, asked, 0), survey))
    steps.take(it, batches[0])
    replay = graphs.capture(it, survey)

    with never_waiting():
        for step in batches[1:]:
            replay.take(step)

    assert math.isfinite(replay.loss.item())


@contextmanager
def never_waiting() -> Iterator[None]:
    """Have torch raise an error wherever the host would wait for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_auto_reads_both_meters(tiny: Callable[[str], Path]) -> None:
    done = run(tiny("llama"), examples(40), device=GPU, max_steps=60, execution="auto", quant_type="nf4")

    assert done.gpu_busy_share is None or 0 < done.gpu_busy_share <= 1
    assert len(done.eager) == EAGER_STEPS
    assert all(step.seconds > 0 for step in (*done.eager, *done.steady))


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "odd"])
def test_stored_bytes_are_all_the_tensors_there_are(
    tiny: Callable[[str], Path], name: str, kind: dict[str, Any]
) -> None:
    model = load(tiny(name), GPU, compute_dtype="float16", **kind)

    found = storage.stored(model)

    assert_all_adds_up(found)
    assert found["stored_bytes"] == distinct_bytes(model)
    if "nf4" in kind.values() or "fp4" in kind.values():
        blocks = [math.ceil(m.in_features * m.out_features / 64) for m in quantize.linear4bit(model)]
        nested = sum(n + 4 * math.ceil(n / 256) + 64 + 1024 + 4 for n in blocks)
        plain = sum(4 * n + 64 for n in blocks)
        assert found["quant_state_bytes"] == (plain if kind.get("double_quant") is False else nested)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_stored_bytes_and_adapters_are_all_the_tensors_of_a_model_that_trains(
    tiny: Callable[[str], Path], kind: dict[str, Any]
) -> None:
    asked = wanted(tiny("qwen2"), compute_dtype="float16", use_dora=True, **kind)
    model, _ = quantize.load(asked, GPU)
    before = storage.stored(model)

    adapters.adapt(model, asked)

    found = storage.stored(model)
    adapter_bytes = sum(weight.nbytes for weight in adapters.trainable(model))
    assert_all_adds_up(found)
    assert found["stored_bytes"] + adapter_bytes == distinct_bytes(model)
    cast = 2 if asked.kbit_upcast else 1
    assert found["unquantized_bytes"] == cast * before["unquantized_bytes"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_stored_bytes_are_what_the_allocator_gave(kind: dict[str, Any]) -> None:
    asked = parameters(model="smollm2-135m", weights="random", compute_dtype="float16", **kind)
    gc.collect()
    before = torch.cuda.memory_allocated(GPU)

    model, _ = quantize.load(asked, GPU)

    gc.collect()
    allocated = torch.cuda.memory_allocated(GPU) - before
    stored = storage.stored(model)["stored_bytes"]
    tensors = sum(1 for tensor in tensors_within(model) if tensor.is_cuda)
    assert stored <= allocated <= stored + ROUNDING * tensors + 2 * MB
    quantize.verify(model, asked)


def test_int8_stores_the_same_before_and_after_a_forward(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("qwen2"), GPU, quant_type="int8", compute_dtype="float16")
    before = storage.stored(model)

    with torch.inference_mode():
        model(input_ids=torch.arange(2, 30, device=GPU)[None])

    assert storage.stored(model) == before


@pytest.mark.slow
@pytest.mark.parametrize(("nested", "stored_bytes"), [(False, 5_851_143_936), (True, 5_547_065_616)])
def test_a_7b_shape_has_the_published_footprint_and_the_bytes_it_hides(nested: bool, stored_bytes: int) -> None:
    if torch.cuda.mem_get_info(GPU)[0] < 12 * GB:
        pytest.skip("needs 12 GB of free GPU memory")
    given = {"quant_type": "nf4", "double_quant": nested, "compute_dtype": "float16"}

    model, _ = quantize.load(parameters(model="qwen2.5-7b", weights="random", **given), GPU)

    assert model.get_memory_footprint() == 5_443_300_864
    found = storage.stored(model)
    assert found["stored_bytes"] == stored_bytes
    assert found["packed_bytes"] == 3_262_644_224
    assert storage.unquantized(model) == {
        "embedding_float16_bytes": 1_089_994_752,
        "head_float16_bytes": 1_089_994_752,
        "norm_float16_bytes": 408_576,
        "bias_float16_bytes": 258_048,
    }
    assert storage.counts(model) == {
        "parameters_count": 7_615_616_512,
        "quantized_parameters_count": 6_525_288_448,
        "quantized_modules_count": 196,
    }


def test_peaks_are_those_of_a_phase() -> None:
    meters.reset_peaks(GPU)
    block = torch.empty(256 * MB, dtype=torch.uint8, device=GPU)
    del block
    first = meters.peaks(GPU)
    torch.cuda.empty_cache()

    meters.reset_peaks(GPU)
    second = meters.peaks(GPU)

    for name in ("peak_allocated_bytes", "peak_requested_bytes"):  # reserved memory is the allocator's to keep
        assert first[name] >= 256 * MB
        assert second[name] <= first[name] - 250 * MB


def test_every_measure_of_a_cell_on_a_gpu_is_sent_and_documented(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    end = cell(tiny("qwen2"), train_examples=48, eval_examples=24, shared_dir=tmp_path)

    measures, names = end["measures"], {measure.name for measure in MEASURES}
    assert (end["status"], end["message"]) == ("ok", None)
    assert set(measures) <= names
    assert names - set(measures) <= {"cap_bytes", "short_bytes"} | WHERE_NOT_ZERO
    # NVML may not know this process by its number, and the profiler may see no kernels.
    by_nvml = {f"{span}_{name}_bytes" for span in ("load", "score", "train") for name in ("process", "outside_torch")}
    assert {name for name, value in measures.items() if value is None} <= by_nvml | {"gpu_busy_share"}
    assert measures["load_peak_allocated_bytes"] >= measures["stored_bytes"]
    assert measures["train_peak_allocated_bytes"] >= measures["stored_bytes"] + measures["adapter_bytes"]
    for span in ("load", "score", "train"):
        assert measures[f"{span}_peak_requested_bytes"] <= measures[f"{span}_peak_allocated_bytes"]
        assert measures[f"{span}_peak_allocated_bytes"] <= measures[f"{span}_peak_reserved_bytes"]
    assert {"gpu_name", "gpu_memory_bytes", "compute_capability", "cuda_version"} <= set(end["environment"])


def test_what_cuda_takes_is_known_before_the_model_and_leaves_nothing_in_torchs_allocator() -> None:
    before = torch.cuda.memory_allocated(GPU)

    found = meters.context_bytes(GPU)

    assert found is not None
    assert 100 * MB < found < 4 * GB
    assert torch.cuda.memory_allocated(GPU) <= before


def test_what_a_process_takes_of_a_card_is_told_by_phase() -> None:
    given: dict[str, Any] = {"weights": "random", "quant_type": "nf4", "max_steps": 3, "execution": "eager"}

    end = process(request("smollm2-135m", **given))

    measures = end["measures"]
    assert (end["status"], end["message"]) == ("ok", None)
    if measures["load_process_bytes"] is None:
        pytest.skip("NVML does not know this process by its number")
    for span in ("load", "train"):
        # CUDA loads kernels as they are first needed, and keeps them.
        assert measures[f"{span}_outside_torch_bytes"] >= measures["context_bytes"] > 100 * MB
        by_torch = measures[f"{span}_process_bytes"] - measures[f"{span}_outside_torch_bytes"]
        assert measures["stored_bytes"] <= by_torch <= measures[f"{span}_peak_reserved_bytes"]


def test_two_runs_of_a_cell_have_the_same_peak_to_the_byte() -> None:
    asked = request("smollm2-135m", weights="random", quant_type="nf4", max_steps=3, execution="eager")

    one, other = (process(asked) for _ in range(2))

    assert one["status"] == other["status"] == "ok"
    for name in ("stored_bytes", "train_peak_allocated_bytes", "train_peak_requested_bytes"):
        assert one["measures"][name] == other["measures"][name] > 0


def test_checkpointing_lowers_the_peak_of_training() -> None:
    given = {"weights": "random", "quant_type": "nf4", "max_length": 256, "batch_size": 16, "max_steps": 3}
    given["execution"] = "eager"

    kept = cell("smollm2-135m", **given)["measures"]["train_peak_allocated_bytes"]
    gc.collect()
    recomputed = cell("smollm2-135m", gradient_checkpointing=True, **given)["measures"]["train_peak_allocated_bytes"]

    assert recomputed < 0.7 * kept


# What was predicted beside what was measured: the parameters of each cell but for its model, which is random.
FORESEEN: dict[str, dict[str, Any]] = {
    "nf4": {},
    "fp16": {"compute_dtype": "float16", "double_quant": False},
    "no-upcast": {"kbit_upcast": False},
    "none": {"quant_type": "none"},
    "float32": {"quant_type": "none", "compute_dtype": "float32"},
    "int8": {"quant_type": "int8"},
    "checkpointing": {"gradient_checkpointing": True, "max_length": 256},
    "accumulation": {"gradient_accumulation_steps": 3, "optim": "adamw_torch"},
    "dropout": {"lora_dropout": 0.1},
    "dora": {"use_dora": True, "target_modules": "attention"},
    "eager": {"attn_implementation": "eager"},
    "8bit": {"optim": "adamw_8bit", "lora_r": 64},
}


@pytest.mark.parametrize("name", FORESEEN)
def test_memory_is_what_was_predicted(name: str) -> None:
    given = {"weights": "random", "quant_type": "nf4", "max_length": 128, "max_steps": 3, "execution": "eager"}

    end = process(request("smollm2-135m", **given | FORESEEN[name]))

    measures = end["measures"]
    assert (end["status"], end["message"]) == ("ok", None)
    assert end["environment"]["prediction_note"] is None
    assert not any("no prediction" in warning for warning in end["warnings"])
    for what in ("stored", "footprint"):
        assert measures[f"predicted_{what}_bytes"] == measures[f"{what}_bytes"]
    predicted, measured = (
        {counter: measures[f"{kind}train_peak_{counter}_bytes"] for counter in ("requested", "allocated")}
        for kind in ("predicted_", "")
    )
    # What tensors ask for is known but for a few small ones; what blocks they get depends on all that came before.
    assert predicted["requested"] == pytest.approx(measured["requested"], rel=0.001 if name != "int8" else 0.05)
    assert predicted["allocated"] == pytest.approx(measured["allocated"], rel=0.02 if name != "int8" else 0.05)
    parts = sum(measures[f"predicted_peak_{part}_bytes"] for part in PEAK_PARTS)
    assert parts == predicted["allocated"] <= measures["predicted_needed_bytes"]


# A smaller card -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "phase"),
    [
        # 3.1 GB of weights; and 0.3 GB of weights with far more than 4 GB of activations.
        ({"model": "qwen2.5-1.5b", "vram_limit": "2.5GB"}, "load"),
        ({"model": "smollm2-135m", "vram_limit": "4GB", "batch_size": 128, "max_length": 1024}, "train"),
    ],
    ids=["load", "train"],
)
def test_what_does_not_fit_a_smaller_card_ends_as_oom_in_its_phase(given: dict[str, Any], phase: str) -> None:
    asked = request(given.pop("model"), weights="random", quant_type="none", max_steps=4, **given)

    end = process(asked)

    assert (end["status"], end["phase"]) == ("oom", phase)
    assert end["message"].startswith(f"out of memory in phase {phase}: ")
    assert " more were asked for with " in end["message"]
    assert end["measures"]["short_bytes"] > 0
    assert end["hint"].startswith("by prediction the cell needs ")
    assert end["measures"]["predicted_needed_bytes"] > end["measures"]["cap_bytes"]
    assert 0 < end["measures"]["cap_bytes"] < 4 * GB
    assert end["measures"][f"{phase}_peak_reserved_bytes"] <= end["measures"]["cap_bytes"]
    assert end["peak_allocated_bytes"] > 0 or phase == "load"  # the first tensor may be too large already


def test_what_torch_lacked_when_memory_ran_out_is_known() -> None:
    noted: list[Shortage] = []
    meters.watch_out_of_memory(GPU, noted.append)
    gc.collect()  # the graphs of earlier tests hold memory until they are collected
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated(GPU) + GB) / total, GPU)
    limit = meters.capacity_bytes(GPU)

    held = torch.empty(600 * MB, dtype=torch.uint8, device=GPU)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(600 * MB, dtype=torch.uint8, device=GPU)

    assert held.is_cuda
    [shortage] = noted
    assert 600 * MB <= shortage.asked_bytes < 600 * MB + 2 * 2**20  # whole pages of 2 MiB
    assert shortage.allocated_bytes == torch.cuda.memory_allocated(GPU) >= 600 * MB
    assert shortage.limit_bytes == pytest.approx(limit, abs=MB)
    assert shortage.reserved_bytes == torch.cuda.memory_reserved(GPU)
    assert shortage.short_bytes == shortage.asked_bytes + shortage.reserved_bytes - shortage.limit_bytes > 0


@pytest.mark.parametrize(
    ("limit", "message"), [("900GB", "vram_limit is 900.00 GB, and"), ("1MB", "and CUDA alone takes more")]
)
def test_a_card_that_cannot_be_played_is_refused(limit: str, message: str) -> None:
    end = cell("smollm2-135m", weights="random", vram_limit=limit)

    assert (end["status"], end["phase"]) == ("invalid", "start")
    assert message in end["message"]


# Scoring --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("qwen2", "sdpa"),
        ("gpt_neox", "sdpa"),
        ("gemma2", "eager"),
        ("odd", "sdpa"),
    ],
)
def test_one_forward_gives_what_a_forward_per_label_gives(
    tiny: Callable[[str], Path], name: str, attention: str, padded: bool
) -> None:
    model = load(tiny(name), GPU, attn_implementation=attention)

    found = scoring.score(model, prompts(padded), trie.build(labels()))

    np.testing.assert_allclose(found.log_likelihoods, plain_scores(model, prompts(padded), labels()), rtol=0, atol=1e-4)


def test_scoring_never_waits_for_the_gpu(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"), GPU, quant_type="nf4")
    nodes = move(trie.build(labels()), GPU)

    with torch.inference_mode():
        before = scoring.log_likelihoods(model, prompts(True), nodes)
        with never_waiting():
            found = scoring.log_likelihoods(model, prompts(True), nodes)

    assert torch.equal(found, before)


def test_what_follows_a_prompt_is_what_the_model_itself_says(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("qwen2"), GPU)

    found = dict(follow(model))

    for row, prompt in enumerate(prompts(True)):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt], device=GPU)).logits[0, -1]
        np.testing.assert_allclose(found[row].cpu(), logits.float().log_softmax(-1).cpu(), rtol=0, atol=1e-4)


def test_finding_what_follows_never_waits_for_the_gpu(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"), GPU, quant_type="nf4")

    before = dict(follow(model))
    with never_waiting():
        found = dict(follow(model))

    assert all(torch.equal(found[row], before[row]) for row in range(len(prompts(True))))


def test_a_model_agrees_with_itself(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"), GPU)
    found = dict(follow(model))
    of_reference = torch.stack([found[row].cpu() for row in range(len(found))])

    measures = compare_next_tokens(model, prompts(True), of_reference)

    assert measures == {"next_token_prompts_count": 5, "next_token_kl_before": 0.0, "next_token_agreement_before": 1.0}


def follow(model: PreTrainedModel) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the number of each prompt with the log-probabilities of what follows it."""
    for rows, found in scoring.next_tokens(model, prompts(True)):
        yield from zip(rows, found, strict=True)


def test_scoring_takes_a_share_of_the_memory_that_a_cap_leaves(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"), GPU)
    total = torch.cuda.get_device_properties(GPU).total_memory
    assert meters.capacity_bytes(GPU) == total

    torch.cuda.set_per_process_memory_fraction(2 * GB / total, GPU)

    assert meters.capacity_bytes(GPU) == pytest.approx(2 * GB, abs=MB)
    assert scoring.rooms(model) == pytest.approx((0.5 * GB, 0.2 * GB), rel=0.01)


def test_scoring_stays_within_a_cap(tiny: Callable[[str], Path]) -> None:
    shape = config("qwen2", vocab_size=152_064)
    model = AutoModelForCausalLM.from_config(shape).eval().to(GPU, torch.float16)
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(GPU) + 0.4 * GB) / total, GPU)

    scores = scoring.score(model, prompts(True) * 100, trie.build(labels()))

    assert np.isfinite(scores.log_likelihoods).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_base_has_one_hash_however_often_it_is_loaded(tiny: Callable[[str], Path], kind: dict[str, Any]) -> None:
    hashes = {storage.sha256(load(tiny("qwen2"), GPU, compute_dtype="float16", **kind)) for _ in range(2)}

    assert len(hashes) == 1


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_a_large_vocabulary_stays_within_2_gb(kind: str) -> None:
    shape = config("qwen2", vocab_size=152_064)
    model = AutoModelForCausalLM.from_config(shape).eval().to(GPU, getattr(torch, kind))
    random = torch.Generator().manual_seed(0)
    many = [(*torch.randint(9, 400, (3,), generator=random).tolist(), label, 0) for label in range(77)]
    texts = [tuple(range(length, 0, -1)) for length in range(20, 52)]
    gc.collect()
    meters.reset_peaks(GPU)
    before = torch.cuda.memory_allocated(GPU)

    scores = scoring.score(model, texts, trie.build(many))

    assert scores.log_likelihoods.shape == (32, 77)
    assert np.isfinite(scores.log_likelihoods).all()
    assert torch.cuda.max_memory_allocated(GPU) - before < 2 * GB


# The 16-bit model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run the packaged model in 16 bits, in nf4 beside it, and in nf4 where its answers have to be computed first."""
    dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    given: dict[str, Any] = {"cache_dir": smollm2, "compute_dtype": dtype, "eval_examples": 72, "max_steps": 3}
    given["execution"] = "eager"
    one, other = (tmp_path_factory.mktemp("shared") for _ in range(2))
    return {
        "none": process(request("smollm2-135m", quant_type="none", shared_dir=one, **given)),
        "found": process(request("smollm2-135m", quant_type="nf4", shared_dir=one, **given)),
        "computed": process(request("smollm2-135m", quant_type="nf4", shared_dir=other, **given)),
    }


def test_the_16_bit_cell_says_what_the_16_bit_model_says(compared: dict[str, dict[str, Any]]) -> None:
    end = compared["none"]

    assert (end["status"], end["warnings"]) == ("ok", [])
    assert end["measures"]["label_kl_before"] == end["measures"]["next_token_kl_before"] == 0.0
    assert end["measures"]["label_agreement_before"] == end["measures"]["next_token_agreement_before"] == 1.0
    assert end["measures"]["next_token_prompts_count"] == 72


def test_quantization_shows_in_weights_labels_and_next_tokens(compared: dict[str, dict[str, Any]]) -> None:
    for name in ("found", "computed"):
        end = compared[name]
        measures = end["measures"]
        assert (end["status"], end["warnings"]) == ("ok", [])
        assert 0.05 < measures["weight_error"] <= measures["weight_error_max"] < 0.2
        assert measures["weight_error_layers_count"] == measures["quantized_modules_count"] == 210
        assert measures["label_kl_before"] > 0
        assert 0 < measures["next_token_kl_before"] < 5
        assert 0 < measures["next_token_agreement_before"] <= 1


def test_who_has_the_16_bit_model_computed_has_the_peaks_of_who_finds_its_answers(
    compared: dict[str, dict[str, Any]],
) -> None:
    found, computed = (compared[name] for name in ("found", "computed"))

    assert not found["environment"]["score_before_reused"]
    assert not computed["environment"]["score_before_reused"]
    for span in ("load", "score", "train"):
        for counter in ("allocated", "requested", "reserved"):
            name = f"{span}_peak_{counter}_bytes"
            assert computed["measures"][name] == pytest.approx(found["measures"][name], abs=4 * MB), name
    if found["measures"]["load_process_bytes"] is None:
        pytest.skip("NVML does not know this process by its number")
    for name in ("context_bytes", "load_outside_torch_bytes", "train_outside_torch_bytes"):
        assert computed["measures"][name] == pytest.approx(found["measures"][name], abs=32 * MB), name


def test_a_batch_moves_whole() -> None:
    batch = encoding.collate(examples(3))

    moved = move(batch, GPU)

    assert all(tensor.is_cuda for tensor in (moved.input_ids, moved.positions, moved.targets))
    assert torch.equal(moved.input_ids.cpu(), batch.input_ids)
    assert (moved.real_tokens, moved.loss_tokens) == (batch.real_tokens, batch.loss_tokens)
