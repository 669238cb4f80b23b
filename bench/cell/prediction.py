"""Predict what a cell stores and how much memory its training takes, from its configuration alone.

Storage is counted on the model's blueprint as it is on a real model, so it is exact. The peak of training comes from a
rehearsal of its steps (`bench.cell.rehearsal`) on a model of the allocator (`bench.cell.allocator`). It stands for

    base + adapters + gradients + optimizer + activations + head + dequantized + workspaces + rounding

and for a Llama-like model (Llama, Qwen2, Mistral) with 16-bit compute the activations follow formulas, which a test
holds against the rehearsal. T: tokens of a batch; h, m, q, k: widths of the hidden states, the MLP, queries and keys;
a: attention heads; r: rank; V: vocabulary; L: label tokens of a batch; e: bytes of a hidden state's element, 4 with
`kbit_upcast`, else 2. A layer with adapters on all its linear layers keeps for the backward pass, in bytes:

* norms, 2 (4Th + 4T): the input in float32, and its reciprocal root mean square (transformers, LlamaRMSNorm)
* attention, 4Tq + 4Tk + 4Ta: queries, keys, values and result in 16 bits, log-sum-exp in 32 (FlashAttention 2,
  Dao 2023)
* inputs of adapters: with e = 4 cast for each, 10Th + 2Tm; with e = 2 shared by layers of one input, 4Th + 2Tm; over
  an unquantized base cast for each, 10Th + 2Tq + 2Tm (peft, lora.bnb.Linear4bit and lora.layer.Linear)
* between A and B of each adapter, 14Tr
* the MLP, 3eTm: gate, its activation, and up (transformers, LlamaMLP)

With `gradient_checkpointing` a layer keeps its input, eTh, and one layer at a time has all of the above (Chen et al.
2016). Logits exist for label tokens only: 4LV for the log-softmax, twice more in the backward pass, and 2Vh for the
head's 16-bit copy where it is in float32. A 4-bit layer dequantizes its weight for a moment in each pass, two bytes an
element (QLoRA, Dettmers et al. 2023, section 3). Adapters have float32 weights and gradients, and 16-bit copies during
the forward pass; Adam's state takes 8 bytes an element (2 and a 32nd with 8 bits; Dettmers et al. 2022).
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from bench.cell import allocator, blueprint, encoding, heads, precision, quantize, sources, storage, tasks
from bench.cell.channel import Send
from bench.cell.devices import has_flash_attention
from bench.cell.encoding import SYNTHETIC_LABEL_TOKENS, Shape, rounded_up
from bench.cell.failures import Invalid, first_line, in_words
from bench.cell.rehearsal import Kernels, Run, least, rehearse, with_optimizer
from bench.matrix.cards import one_workspace_bytes
from bench.matrix.parameters import Parameters
from bench.protocol import PEAK_PARTS, Question, Request

# Of a card as most are, for a prediction that is not for one in particular.
USUAL = Kernels(flash_attention=True, workspace_bytes=one_workspace_bytes())

ASSUMED = "as if every sequence had max_length tokens"

# Parameters that change no byte, with a value to stand for all.
INDIFFERENT: dict[str, Any] = {
    "weights": "random", "lora_alpha": 1, "use_rslora": False, "init_lora_weights": True, "optim": "sgd",
    "learning_rate": 1.0, "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "max_grad_norm": 0.0, "weight_decay": 0.0,
    "epochs": 1.0, "max_steps": None, "execution": "auto", "task": "", "train_examples": "all", "eval_examples": "all",
    "vram_limit": None, "timeout": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """The measures named `predicted_*`; a `note` says why the peak is a lower bound only."""

    measures: dict[str, int]
    note: str | None = None


def predict(
    parameters: Parameters, config: PretrainedConfig, shape: Shape | None = None, kernels: Kernels = USUAL
) -> Prediction:
    """Predict a cell's memory; its largest batch has `shape`, or else as many tokens as it may have.

    Raises:
        Invalid: nothing is known of such a model, or the cell cannot be run with it.
    """
    stored = predict_storage(parameters, config)
    run, note = _run(parameters, config, shape or largest_shape(parameters), kernels)
    peak = allocator.replay(run.events, run.sizes)
    return Prediction(
        {
            **stored,
            "predicted_train_peak_requested_bytes": peak.requested,
            "predicted_train_peak_allocated_bytes": peak.allocated,
            "predicted_train_peak_reserved_bytes": peak.reserved,
            "predicted_needed_bytes": allocator.least_limit(run.events, run.sizes, peak),
            **_parts(run, peak),
        },
        note,
    )


def predict_storage(parameters: Parameters, config: PretrainedConfig) -> dict[str, int]:
    """Predict the bytes of a loaded model, and what `get_memory_footprint()` says of it.

    Raises:
        Invalid: nothing is known of such a model, or no cell can be run with it.
    """
    precision.check_dtypes(parameters)
    quantize.check_unquantized(parameters, config)
    try:
        model = blueprint.build(parameters, config)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise Invalid(f"model {parameters.model!r} cannot be described: {first_line(error)}") from error
    heads.check_supported(model, parameters.max_length)
    return {
        "predicted_footprint_bytes": model.get_memory_footprint(),
        "predicted_stored_bytes": storage.stored(model)["stored_bytes"],
    }


def largest_shape(parameters: Parameters) -> Shape:
    """Return the batch of a cell whose sequences are as long as they may be, with the usual number of label tokens."""
    width = min(SYNTHETIC_LABEL_TOKENS, parameters.max_length - 1)
    return Shape(parameters.batch_size, rounded_up(parameters.max_length), width)


def kernels_of(device: torch.device) -> Kernels:
    """Describe a GPU as far as it decides how much memory a step takes."""
    capability = torch.cuda.get_device_capability(device)
    return Kernels(has_flash_attention(device), one_workspace_bytes(capability))


def expected_shape(
    parameters: Parameters, seeds: Sequence[int], asked: Request | Question, *, hub: bool
) -> tuple[Shape, str | None]:
    """Return the largest batch of a cell's runs on a GPU, to whose width the others are padded (`graphs.pad_alike`).

    Where the texts or the tokenizer are out of reach, sequences of `max_length` stand in, and what was assumed is told.
    A task is looked for on the `hub` only if that is allowed.

    Raises:
        Invalid: the texts cannot be read, or not be trained on.
    """
    if parameters.weights == "random":
        return largest_shape(parameters), None
    data_dir, cache_dir = sources.folders(asked)
    if not hub and not tasks.is_at_hand(parameters.task, data_dir):
        where = f"in {data_dir}" if data_dir else "on this machine"
        fix = f"name the folder that holds {parameters.task}/train.csv with --data"
        return largest_shape(parameters), f"{ASSUMED}, since the texts of {parameters.task} are not {where}; {fix}"
    task = tasks.load_task(parameters.task, data_dir, parameters.train_examples)
    tokenizer = _tokenizer(parameters.model, parameters.revision, cache_dir, asked.trust_remote_code)
    if isinstance(tokenizer, str):
        return largest_shape(parameters), f"{ASSUMED}, since {tokenizer}"
    labels = encoding.encode_labels(tokenizer, task.labels)
    examples = encoding.encode_examples(tokenizer, task.train, task.labels, labels, parameters.max_length, cache_dir)
    surveys = [encoding.survey(examples, parameters, seed) for seed in seeds]
    shapes = [Shape(survey.rows, max(survey.lengths), survey.width) for survey in surveys]
    return max(shapes, key=lambda shape: (shape.rows * shape.length, shape.width)), None


@lru_cache(maxsize=16)
def _tokenizer(
    model: str, revision: str | None, cache_dir: Path, trust_remote_code: bool
) -> PreTrainedTokenizerBase | str:
    """Return a model's tokenizer, or why it cannot be had."""
    try:
        return sources.find_tokenizer(Parameters(model=model, revision=revision), cache_dir, trust_remote_code)
    except Invalid as error:
        return str(error)


def answer(question: Question, send: Send) -> None:
    """Answer a question, a message for each cell (bench.protocol); cells that are rehearsed alike stand together."""
    cells = [(str(cell["id"]), Parameters.model_validate(dict(cell["parameters"]))) for cell in question.cells]
    for id_, parameters in sorted(cells, key=lambda cell: _what_matters(cell[1]).model_dump_json()):
        send({"kind": "predicting", "id": id_})
        try:
            config = sources.shape_config(parameters, question.trust_remote_code)
            seeds = [seed + parameters.seed_offset for seed in question.seeds]
            shape, assumed = expected_shape(parameters, seeds, question, hub=False)
            found = predict(parameters, config, shape)
            told = {"measures": found.measures, "note": found.note, "assumed": None if found.note else assumed}
            send({"kind": "prediction", "id": id_, **told})
        except Invalid as error:
            send({"kind": "refusal", "id": id_, "message": str(error), "hint": error.fix})
        except Exception as error:  # an architecture's own code; the other cells are to have their answers
            traceback.print_exc()
            at = traceback.extract_tb(error.__traceback__)[-1]
            what = (
                f"model {parameters.model!r} cannot be described: {type(error).__name__}: {first_line(error)} "
                f"(raised in {at.filename}:{at.lineno})"
            )
            send({"kind": "refusal", "id": id_, "message": what, "hint": None})


def _what_matters(parameters: Parameters) -> Parameters:
    """Give all parameters that change no byte the same values."""
    changes = {**INDIFFERENT, "gradient_accumulation_steps": min(2, parameters.gradient_accumulation_steps)}
    return parameters.model_copy(update=changes | ({"quant_type": "nf4"} if parameters.four_bit else {}))


def _run(parameters: Parameters, config: PretrainedConfig, shape: Shape, kernels: Kernels) -> tuple[Run, str | None]:
    rehearsal, note = _rehearsed(_what_matters(parameters), _Known(config), shape, kernels)
    return with_optimizer(rehearsal, parameters), note


class _Known:
    """A configuration, alike if it describes the same model."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        self._text = config.to_json_string()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@lru_cache(maxsize=4)
def _rehearsed(parameters: Parameters, known: _Known, shape: Shape, kernels: Kernels) -> tuple[Any, str | None]:
    """Rehearse what decides the bytes; where that is not possible, return what is needed at least, and say why."""
    try:
        return rehearse(parameters, known.config, shape, kernels), None
    except Invalid:
        raise
    except Exception as error:  # an architecture's own code may stumble in any way where there is no data
        traceback.print_exc()
        name = (known.config.architectures or [known.config.model_type])[0]
        why = f"{name} cannot be rehearsed without its weights ({type(error).__name__}: {first_line(error)[:120]})"
        return least(parameters, known.config, shape, kernels), f"without activations, since {why}"


def _parts(run: Run, peak: allocator.Peak) -> dict[str, int]:
    parts = dict.fromkeys(PEAK_PARTS, 0)
    for number in allocator.live(run.events, peak.moment):
        parts[run.parts[number]] += run.sizes[number]
    parts["rounding"] = peak.allocated - sum(parts.values())
    return {f"predicted_peak_{part}_bytes": size for part, size in parts.items()}


# Where memory ran out -------------------------------------------------------------------------------------------------


def what_suffices(
    parameters: Parameters,
    config: PretrainedConfig,
    shape: Shape,
    kernels: Kernels,
    limit_bytes: int,
    context_bytes: int = 0,
) -> str | None:
    """Say how far a cell is from fitting, by prediction, and which single change would do, or helps most.

    `limit_bytes` is for torch's allocator; `context_bytes`, which CUDA takes besides, is part of every size that is
    told. None where nothing can be predicted, or where by prediction the cell does fit.
    """

    def needed(changed: Parameters, largest: Shape) -> int | None:
        found = predict(changed, config, largest, kernels)
        return None if found.note else found.measures["predicted_needed_bytes"] + context_bytes

    whole, card_bytes = needed(parameters, shape), limit_bytes + context_bytes
    if whole is None or whole <= card_bytes:
        return None
    said = f"by prediction the cell needs {in_words(whole)} where {in_words(card_bytes)} can be had"
    changes = _changes(parameters, shape)
    sizes = {
        words: size for words, cell, largest in changes if (size := needed(cell, largest)) is not None and size < whole
    }
    fitting = [f"{change} ({in_words(size)})" for change, size in sizes.items() if size <= card_bytes]
    if fitting:
        return f"{said}; {'each of these suffices' if len(fitting) > 1 else 'this suffices'}: {', '.join(fitting)}"
    if sizes:
        change, size = min(sizes.items(), key=lambda item: item[1])
        return f"{said}; no single change suffices, and {change} helps most ({in_words(size)})"
    return f"{said}; no single change helps"


def _changes(parameters: Parameters, shape: Shape) -> Iterator[tuple[str, Parameters, Shape]]:
    """Yield what can be changed in a cell to save memory: in words, with parameters and largest batch."""

    def change(**given: Any) -> tuple[Parameters, Shape]:
        return parameters.model_copy(update=given), shape

    if not parameters.quantized:
        yield "quant_type: nf4", *change(quant_type="nf4", double_quant=True, kbit_upcast=True)
    if parameters.four_bit and not parameters.double_quant:
        yield "double_quant: true", *change(double_quant=True)
    if parameters.kbit_upcast:
        yield "kbit_upcast: false", *change(kbit_upcast=False)
    if not parameters.gradient_checkpointing:
        yield "gradient_checkpointing: true", *change(gradient_checkpointing=True)
    if parameters.optim in ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit"):
        yield "optim: paged_adamw_8bit", *change(optim="paged_adamw_8bit")
    if parameters.batch_size % 2 == 0:
        size, passes = parameters.batch_size // 2, parameters.gradient_accumulation_steps * 2
        yield (
            f"batch_size: {size} with gradient_accumulation_steps: {passes}",
            parameters.model_copy(update={"batch_size": size, "gradient_accumulation_steps": passes}),
            Shape(min(shape.rows, size), shape.length, shape.width),
        )
