"""What crosses the border between a run and its cells: one JSON request in, JSON lines out, Parquet files beside.

`bench.run` starts a worker, `python -m bench.cell`, and writes one `Request` to its standard input. The worker
answers with messages, a JSON object a line, on its standard output:

* `{"kind": "phase", "phase": "load"}`: a phase begins.
* `{"kind": "progress", "phase": "train", "done": 12, "total": 313}`: some of its units of work are done.
* `{"kind": "replay", "phase": "train"}`: from here on CUDA graphs are replayed, which a busy host does not slow.
* `{"kind": "end", "status": "ok", "phase": "score_after", "message": null, "hint": null, "measures": {...},
  "losses": [...], "environment": {...}, "warnings": [...]}`: the last one, whatever happened. `losses` are those of
  each training step so far, nats per loss-bearing token. A worker that ends without this message has crashed.

Where the request names an `evidence_dir`, the worker also writes Parquet files there: what every example and every
layer got (`bench.cell.evidence`).

To predict memory without running anything, `python -m bench.cell predict` reads a `Question` and answers for each cell:

* `{"kind": "predicting", "id": "nf4"}`: it is being worked on; cells that are alike follow one another.
* `{"kind": "prediction", "id": "nf4", "measures": {...}, "note": null, "assumed": null}`: the measures named
  `predicted_*`. A `note` says why the peak is a lower bound only, and `assumed` what was assumed of texts out of reach.
* `{"kind": "refusal", "id": "nf4", "message": "...", "hint": "..."}`: no cell can be run like that, or its model cannot
  be found or described.

A worker itself starts `python -m bench.cell reference FILE`, which reads a `Request` for the 16-bit model, writes that
model's answers to FILE, and sends `{"kind": "progress", "done": 12, "total": 313}` for prompts scored and, last,
`{"kind": "end", "message": null}`, or what failed as the message.

Every message of a running cell also carries `peak_allocated_bytes`, the highest torch allocation of the phase so far
(null on a CPU), so that the run knows the last peak of a worker that was killed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

# Part of every cell's key: raise it when the same parameters no longer mean the same measurement.
PROTOCOL_VERSION = 2

Status = Literal["ok", "oom", "timeout", "crashed", "diverged", "invalid", "interrupted"]
Phase = Literal["start", "reference", "load", "verify", "score_before", "adapt", "train", "score_after"]
Device = Literal["cuda", "cpu"]

STATUSES: tuple[Status, ...] = get_args(Status)
PHASES: tuple[Phase, ...] = get_args(Phase)

# What a run keeps beside its records, as Parquet, each kind in a folder of its own.
EXAMPLES = "examples"  # an example a row: its label, and before and after training what was predicted, and its loss
LOG_LIKELIHOODS = "log_likelihoods"  # the same examples with the log-likelihood of every label
LAYERS = "layers"  # a quantized layer a row: how far its weights are from the checkpoint's

# An error of these kinds is no result: another try may end differently.
WORTH_ANOTHER_TRY: frozenset[Status] = frozenset({"crashed", "interrupted"})


@dataclass(frozen=True)
class Request:
    """What a worker needs to know to run one cell with one seed; nothing in it names other cells or their records.

    `shared_dir` is where cells of one run leave what others would compute again. `evidence_dir` is where the folders
    `EXAMPLES`, `LOG_LIKELIHOODS` and `LAYERS` get a file `evidence_name`.parquet each.
    """

    id: str
    seed: int
    parameters: Mapping[str, Any]
    device: Device
    data_dir: str | None = None
    cache_dir: str | None = None
    shared_dir: str | None = None
    evidence_dir: str | None = None
    evidence_name: str = "cell"
    trust_remote_code: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Request:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Question:
    """What a worker needs to know to predict the memory of cells: for each its id and its parameters.

    Each is run with every one of the `seeds`. `data_dir` and `cache_dir` are as a `Request` has them.
    """

    cells: Sequence[Mapping[str, Any]]
    seeds: Sequence[int] = (0,)
    data_dir: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Question:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Measure:
    """A figure of a record: its name ends in its unit; `about` is the line that documents it."""

    name: str
    about: str


def finite(value: Any) -> Any:
    """Return a value as JSON can hold it: null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


# Where an unquantized parameter stands in a model.
PLACES: dict[str, str] = {
    "embedding": "embeddings (and the output head tied to them)",
    "head": "the output head, where it is a matrix of its own",
    "norm": "norms",
    "bias": "biases of linear layers",
    "linear": "linear layers",
    "other": "anything else",
}
DTYPE_NAMES = ("bfloat16", "float16", "float32")

# What memory holds when training needs the most of it.
PEAK_PARTS: dict[str, str] = {
    "base": "the base as stored, with what kbit_upcast adds",
    "adapter": "adapters",
    "gradient": "their gradients",
    "optimizer": "optimizer state",
    "activation": "activations kept or recomputed for the backward pass, and temporaries",
    "head": "logits, loss, and the output head's copy in the compute dtype",
    "dequantized": "weights that were dequantized for the moment",
    "workspace": "cuBLAS's workspaces",
    "rounding": "what the allocator's blocks are larger than asked for",
}

MEASURES: tuple[Measure, ...] = (
    # Storage, after load and verify, before adapters; exact, from the tensors themselves.
    Measure("footprint_bytes", "model.get_memory_footprint(): parameters and buffers, blind to quantization state"),
    Measure("stored_bytes", "every tensor of the loaded model, quantization state included"),
    Measure("packed_bytes", "packed 4-bit or int8 weights"),
    Measure("quant_state_bytes", "quantization state: absmax, nested absmax, and codes"),
    Measure("absmax_bytes", "a scale for each block of 64 weights: 32 bits, or 8 with double quantization"),
    Measure("nested_absmax_bytes", "double quantization's scale for each 256 of those scales"),
    Measure("code_bytes", "the tables that codes stand for, and double quantization's offsets"),
    Measure("unquantized_bytes", "parameters kept in 16 or 32 bits"),
    *(
        Measure(f"{place}_{dtype}_bytes", f"of these, in {dtype}: {text}")
        for place, text in PLACES.items()
        for dtype in DTYPE_NAMES
    ),
    Measure("buffer_bytes", "buffers, such as rotary frequencies"),
    # Storage that training adds, when an optimizer step has been taken.
    Measure("upcast_bytes", "what casting unquantized parameters to float32 (kbit_upcast) added"),
    *(
        Measure(f"train_{place}_{dtype}_bytes", f"after that cast, in {dtype}: {text}")
        for place, text in PLACES.items()
        for dtype in DTYPE_NAMES
    ),
    Measure("adapter_bytes", "LoRA parameters"),
    Measure("gradient_bytes", "gradients of the adapters"),
    Measure("optimizer_bytes", "optimizer state in the allocator's memory"),
    Measure("optimizer_managed_bytes", "optimizer state in managed memory (paged), which torch does not count"),
    Measure("parameters_count", "parameters of the model before quantization"),
    Measure("quantized_parameters_count", "parameters held in 4 or 8 bits"),
    Measure("quantized_modules_count", "linear layers held in 4 or 8 bits"),
    Measure("trainable_parameters_count", "parameters that training changes"),
    # Memory at the highest point of a phase; torch's counters exist on CUDA only.
    *(
        Measure(f"{phase}_peak_{counter}_bytes", f"{text}, highest in phase {phase} (in training: of eager steps)")
        for phase in ("load", "score", "train")
        for counter, text in (
            ("allocated", "bytes in live tensors"),
            ("requested", "bytes asked for, without the allocator's rounding"),
            ("reserved", "bytes the allocator held"),
            ("rss", "host memory of the process"),
        )
    ),
    *(
        Measure(f"{phase}_{name}_bytes", f"{text}, at the end of phase {phase}")
        for phase in ("load", "score", "train")
        for name, text in (
            ("process", "GPU memory of the process by NVML"),
            ("outside_torch", "of it, what torch's allocator does not hold"),
        )
    ),
    Measure("context_bytes", "GPU memory that CUDA and its libraries took before the model, outside of torch"),
    Measure("cap_bytes", "the cap that vram_limit put on torch's allocator"),
    Measure("short_bytes", "what was missing for the allocation at which memory ran out"),
    # Predicted without running the cell (bench.cell.prediction); of the peak, its parts add up to it.
    Measure("predicted_footprint_bytes", "get_memory_footprint(), predicted"),
    Measure("predicted_stored_bytes", "stored_bytes, predicted"),
    Measure("predicted_train_peak_allocated_bytes", "train_peak_allocated_bytes, predicted"),
    Measure("predicted_train_peak_requested_bytes", "train_peak_requested_bytes, predicted"),
    Measure("predicted_train_peak_reserved_bytes", "train_peak_reserved_bytes, predicted"),
    Measure("predicted_needed_bytes", "the least memory for torch's allocator in which loading and training succeed"),
    *(Measure(f"predicted_peak_{part}_bytes", f"of the predicted peak: {text}") for part, text in PEAK_PARTS.items()),
    # Training.
    Measure("steps_count", "optimizer steps taken"),
    Measure("skipped_steps_count", "optimizer steps left out, since their float16 gradients overflowed"),
    Measure("timed_steps_count", "optimizer steps timed, warm-up excluded"),
    Measure("eager_step_p50_s", "median wall time of the first steps, taken eagerly whatever the execution"),
    Measure("tokens_per_s_eager", "real tokens of the eager steps over their time"),
    Measure("gpu_busy_share", "kernel time over wall time of an eager step, 0 to 1"),
    Measure("step_p50_s", "median wall time of an optimizer step"),
    Measure("step_p95_s", "95th percentile of the wall time of an optimizer step"),
    Measure("step_iqr_s", "interquartile range of the wall time of an optimizer step"),
    Measure("tokens_per_s", "real (unpadded) tokens of the timed steps over their time"),
    Measure("padded_tokens_per_s", "tokens including the padding of the batches, over the same time"),
    Measure("loss_tokens_per_s", "tokens that carry loss, over the same time"),
    Measure("examples_per_s", "examples of the timed steps over their time"),
    Measure("train_loss_first", "mean loss of the first tenth of the steps, nats per loss-bearing token"),
    Measure("train_loss_last", "mean loss of the last tenth of the steps, nats per loss-bearing token"),
    # Quality, of the quantized base and of the trained adapter.
    Measure("eval_examples_count", "examples scored"),
    Measure("labels_count", "labels that each example was scored against"),
    *(
        measure
        for when in ("before", "after")
        for measure in (
            Measure(f"accuracy_{when}", f"share of examples whose own label is the likeliest, {when} training"),
            Measure(f"macro_f1_{when}", f"F1 averaged over labels, {when} training"),
            Measure(f"heldout_loss_{when}", f"nats per token of the true label, {when} training"),
            Measure(
                f"expected_calibration_error_{when}",
                f"mean gap between confidence and accuracy in 15 bins of confidence, 0 to 1, {when} training",
            ),
        )
    ),
    # What quantization alone did, before training, against the 16-bit model on the same prompts.
    Measure("label_kl_before", "KL divergence of the distribution over labels from the 16-bit model's, nats"),
    Measure("label_agreement_before", "share of examples with the same likeliest label as the 16-bit model's"),
    Measure("next_token_prompts_count", "prompts whose next token was compared"),
    Measure("next_token_kl_before", "KL divergence of the next token's distribution from the 16-bit model's, nats"),
    Measure("next_token_agreement_before", "share of prompts with the same likeliest next token as the 16-bit model's"),
    Measure("weight_error", "RMSE of the dequantized weights over the deviation of the checkpoint's, mean of layers"),
    Measure("weight_error_max", "the same, of the worst layer"),
    Measure("weight_error_layers_count", "quantized layers whose weights were found in the checkpoint and compared"),
    # Seconds a phase took.
    Measure("reference_s", "time until the 16-bit model's scores were there, which one cell computes for all"),
    Measure("load_s", "time to load and quantize the model"),
    Measure("verify_s", "time to read the settings back and count the bytes"),
    Measure("adapt_s", "time to cast and to put the adapters in"),
    Measure("score_before_s", "time to score before training"),
    Measure("train_s", "time to train, warm-up included"),
    Measure("score_after_s", "time to score after training"),
)
