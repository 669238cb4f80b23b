"""The published QLoRA recipe, as people write it, with the settings of a cell: the other side of the comparisons.

From the model cards and notebooks of Transformers, PEFT and bitsandbytes: `from_pretrained` with a
`BitsAndBytesConfig`, `prepare_model_for_kbit_training`, `get_peft_model`, `Trainer`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bench.cell import adapters, quantize, sources
from bench.cell.devices import synchronize
from bench.cell.encoding import IGNORE_INDEX, TokenizedExample
from bench.cell.meters import WARMUP_STEPS, time_s
from bench.cell.precision import DTYPES
from bench.matrix.parameters import Parameters

CHECKPOINTING = {"use_reentrant": False}


def load(parameters: Parameters, device: torch.device) -> PeftModel:
    """Return the quantized model of a cell with its LoRA adapters, ready for `trainer`.

    Args:
        parameters: the cell's.
        device: a GPU with its index, or the CPU.

    Raises:
        Invalid: the model cannot be found, or has no such modules.
    """
    return adapt(load_quantized(parameters, device)[0], parameters)


def load_quantized(
    parameters: Parameters, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load the model of a cell, quantizing while it loads, and its tokenizer (none with random weights).

    Raises:
        Invalid: the model cannot be found.
    """
    if parameters.weights == "random":  # there is no checkpoint to load
        return quantize.load(parameters, device)
    dtype = DTYPES[parameters.load_dtype]
    source = sources.find(parameters, None, device, dtype)
    model = AutoModelForCausalLM.from_pretrained(
        str(source.path),
        quantization_config=quantize.quantization_config(parameters),
        dtype=dtype,
        attn_implementation=parameters.attn_implementation,
        device_map={"": device},
        **source.arguments,
    )
    model.config.use_cache = False
    for module in quantize.linear4bit(model):
        # Where a CPU has AVX512-BF16, an evaluation repacks the weights, and training after it loses the gradient.
        module.support_avx512bf16_for_cpu = False
    return model, source.tokenizer


def adapt(model: PreTrainedModel, parameters: Parameters) -> PeftModel:
    """Prepare a quantized model for training and put LoRA adapters on the layers that the cell would choose.

    Raises:
        Invalid: the model has no such modules.
    """
    config = adapters.lora_config(model, parameters)
    if parameters.kbit_upcast:
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=parameters.gradient_checkpointing,
            gradient_checkpointing_kwargs=CHECKPOINTING,
        )
    return get_peft_model(model, config)


def trainer(
    model: PeftModel,
    parameters: Parameters,
    examples: Sequence[TokenizedExample],
    seed: int,
    steps: int,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Return Transformers' `Trainer` over `steps` optimizer steps with the cell's settings; it saves and logs nothing.

    The order of the examples is that of its own sampler, drawn from `seed`.
    """
    checkpointing: dict[str, Any] = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": CHECKPOINTING}
    if not parameters.gradient_checkpointing:
        checkpointing = {}
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # asked for, though nothing is saved
        per_device_train_batch_size=parameters.batch_size,
        gradient_accumulation_steps=parameters.gradient_accumulation_steps,
        max_steps=steps,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.lr_scheduler_type,
        warmup_steps=math.ceil(steps * parameters.warmup_ratio),
        max_grad_norm=parameters.max_grad_norm,
        weight_decay=parameters.weight_decay,
        optim=parameters.optim,
        bf16=parameters.compute_dtype == "bfloat16",
        fp16=parameters.compute_dtype == "float16",
        use_cpu=model.device.type == "cpu",
        seed=seed,
        data_seed=seed,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        **checkpointing,
    )
    made = Trainer(model, arguments, train_dataset=rows(examples), data_collator=collate, callbacks=list(callbacks))
    made.remove_callback(PrinterCallback)  # it prints the totals even where nothing is logged
    return made


def rows(examples: Sequence[TokenizedExample]) -> list[dict[str, list[int]]]:
    """Return the data set that `Trainer` takes: only the label's tokens bear loss."""
    return [
        {
            "input_ids": [*example.prompt, *example.label],
            "labels": [*[IGNORE_INDEX] * len(example.prompt), *example.label],
        }
        for example in examples
    ]


def collate(items: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad on the right, as `DataCollatorForSeq2Seq` does; that one needs a tokenizer, which random weights lack."""
    ids, labels = ([torch.tensor(item[name]) for item in items] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }


class StepTimer(TrainerCallback):
    """Clocks each optimizer step from the end of the one before, waiting for the GPU each time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks_s: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._mark()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._mark()

    def seconds(self, warmup_steps: int = WARMUP_STEPS) -> list[float]:
        """Return the seconds of each step after warm-up; of all steps where there are no more than these."""
        took = [after - before for before, after in pairwise(self.marks_s)]
        return took[warmup_steps:] or took

    def _mark(self) -> None:
        synchronize(self.device)
        self.marks_s.append(time_s())
