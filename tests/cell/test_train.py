from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

from bench.cell import adapters, encoding, optim, quantize, steps
from bench.cell.encoding import IGNORE_INDEX, Batch, TokenizedExample
from bench.cell.failures import Diverged, Invalid
from bench.cell.train import train
from bench.matrix.parameters import Parameters
from tests.cell.examples import CPU, STEPS, examples, load, parameters, run, wanted

OPTIMIZERS = get_args(Parameters.model_fields["optim"].annotation)
# Each learns from the same few examples at a rate of its own.
RATES = {**dict.fromkeys(OPTIMIZERS, 5e-3), "sgd": 0.5, **{name: 5e-4 for name in OPTIMIZERS if "lion" in name}}


def as_trainer_takes_it(batch: Batch) -> dict[str, torch.Tensor]:
    labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
    last = torch.zeros(len(labels), dtype=torch.long)
    for row, (positions, targets) in enumerate(zip(batch.positions, batch.targets, strict=True)):
        real = targets != IGNORE_INDEX
        labels[row, positions[real] + 1] = targets[real]
        last[row] = positions[real].max() + 1
    mask = torch.arange(labels.shape[1]) <= last[:, None]
    return {"input_ids": batch.input_ids, "attention_mask": mask.long(), "labels": labels}


def trainer_losses(
    folder: Path, data: Sequence[TokenizedExample], output: Path, seed: int = 0, **given: Any
) -> list[float]:
    """Return the losses that Transformers' own Trainer logs on the same batches."""
    asked = wanted(folder, **given)
    set_seed(seed)
    model = adapters.adapt(quantize.load(asked, CPU)[0], asked)
    batches = [as_trainer_takes_it(batch) for step in encoding.steps(data, asked, seed) for batch in step]
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=1,  # a batch is one item here, collated already
        gradient_accumulation_steps=asked.gradient_accumulation_steps,
        max_steps=STEPS,
        learning_rate=asked.learning_rate,
        lr_scheduler_type=asked.lr_scheduler_type,
        warmup_steps=math.ceil(STEPS * asked.warmup_ratio),
        max_grad_norm=asked.max_grad_norm,
        weight_decay=asked.weight_decay,
        optim=asked.optim,
        bf16=asked.compute_dtype == "bfloat16",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = InOrder(model, arguments, train_dataset=batches, data_collator=lambda items: items[0])
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class InOrder(Trainer):
    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


# Against Transformers' Trainer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"lr_scheduler_type": "cosine", "weight_decay": 0.1, "warmup_ratio": 0.3},
        {"max_grad_norm": 0.0, "gradient_checkpointing": True},
        {"quant_type": "nf4", "optim": "paged_adamw_8bit"},
    ],
    ids=str,
)
def test_losses_are_those_of_transformers_trainer(
    tiny: Callable[[str], Path], tmp_path: Path, given: dict[str, Any]
) -> None:
    given = {"optim": "adamw_torch", "max_grad_norm": 0.5, **given}
    data = examples(STEPS * 4 * given.get("gradient_accumulation_steps", 1))

    ours = run(tiny("llama"), data, **given).losses
    theirs = trainer_losses(tiny("llama"), data, tmp_path, **given)

    assert len(ours) == len(theirs) == STEPS
    assert min(theirs) < 0.75 * theirs[0]  # something was learned, or equality would show nothing
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_losses_in_bfloat16_are_close_to_those_of_transformers_trainer(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    given = {"compute_dtype": "bfloat16", "optim": "adamw_torch"}
    data = examples(STEPS * 4)

    ours = run(tiny("llama"), data, **given).losses
    theirs = trainer_losses(tiny("llama"), data, tmp_path, **given)

    np.testing.assert_allclose(ours, theirs, rtol=0.02)


# Runs -----------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(tiny: Callable[[str], Path]) -> None:
    given = {"quant_type": "nf4", "compute_dtype": "bfloat16", "lora_dropout": 0.1}
    data = examples(40)

    first, again, other = (run(tiny("llama"), data, seed, **given).losses for seed in (1, 1, 2))

    assert first == again
    assert first != other


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(tiny: Callable[[str], Path], name: str) -> None:
    done = run(tiny("llama"), examples(8), quant_type="nf4", optim=name, learning_rate=RATES[name], batch_size=8)

    assert done.losses[-1] < 0.8 * done.losses[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", ["nf4", "int8", "none"])
def test_every_dtype_lowers_the_loss(tiny: Callable[[str], Path], kind: str, dtype: str) -> None:
    done = run(tiny("qwen2"), examples(8), quant_type=kind, compute_dtype=dtype, load_dtype=dtype, batch_size=8)

    assert done.losses[-1] < 0.5 * done.losses[0]


def test_accumulated_gradients_are_those_of_one_large_batch(tiny: Callable[[str], Path]) -> None:
    data = examples(24)

    whole = run(tiny("llama"), data, batch_size=8, max_steps=6).losses
    parts = run(tiny("llama"), data, batch_size=2, gradient_accumulation_steps=4, max_steps=6).losses

    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_a_loss_that_is_no_number_ends_a_run_by_its_step(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(Diverged, match=rf"^the loss of step \d+ of {STEPS} is nan$"):
        run(tiny("llama"), examples(8), learning_rate=1e30, max_grad_norm=0.0)


def test_every_step_is_read_and_told(tiny: Callable[[str], Path]) -> None:
    data = examples(22)
    asked = parameters(batch_size=4, gradient_accumulation_steps=2, epochs=2)
    model = load(tiny("llama"))
    adapters.adapt(model, asked)
    told: list[tuple[int, int]] = []

    done = train(
        model,
        encoding.steps(data, asked, 0),
        asked,
        encoding.survey(data, asked, 0),
        6,
        lambda done, total: told.append((done, total)),
    )

    assert told == [(step, 6) for step in range(1, 7)]
    assert len(done.losses) == len(done.steady) == 6
    assert done.execution == "eager"
    assert [step.examples for step in done.steady] == [8, 8, 6, 8, 8, 6]
    assert sum(step.real_tokens for step in done.steady) == 2 * sum(map(len, data))
    assert sum(step.loss_tokens for step in done.steady) == 2 * sum(len(example.label) for example in data)
    assert all(step.padded_tokens >= step.real_tokens and step.seconds > 0 for step in done.steady)
    assert done.eager == done.steady[: len(done.eager)]


def test_a_run_of_one_step_is_a_run(tiny: Callable[[str], Path]) -> None:
    done = run(tiny("llama"), examples(4), max_steps=1)

    assert len(done.losses) == len(done.steady) == 1


def test_training_leaves_the_base_as_it_was(tiny: Callable[[str], Path]) -> None:
    asked = parameters(quant_type="nf4", max_steps=3, batch_size=4)
    data = examples(8)
    model = load(tiny("llama"), quant_type="nf4")
    adapters.adapt(model, asked)
    base = {name: weight.clone() for name, weight in model.named_parameters() if ".lora_" not in name}
    start = [weight.clone() for weight in adapters.trainable(model)]

    train(model, encoding.steps(data, asked, 0), asked, encoding.survey(data, asked, 0), 3)

    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in base.items())
    assert not any(torch.equal(*pair) for pair in zip(adapters.trainable(model), start, strict=True))


def test_a_cuda_graph_without_cuda_is_refused(tiny: Callable[[str], Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")

    with pytest.raises(Invalid, match="cuda_graph needs a CUDA GPU"):
        run(tiny("llama"), examples(4), execution="cuda_graph")


# Optimizers and schedules ---------------------------------------------------------------------------------------------


def settings(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    bits = vars(optimizer.args) if hasattr(optimizer, "args") else None  # bitsandbytes' own arguments
    return type(optimizer), optimizer.defaults, bits, getattr(optimizer, "is_paged", None)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_set_up_as_transformers_does(tmp_path: Path, name: str) -> None:
    weights = [torch.nn.Parameter(torch.zeros(8, 8))]
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, learning_rate=3e-4, use_cpu=True)
    kind, theirs = Trainer.get_optimizer_cls_and_kwargs(arguments)
    expected = kind(weights, weight_decay=0.1, **theirs)

    built = optim.build(parameters(optim=name, learning_rate=3e-4, weight_decay=0.1), weights)

    assert settings(built) == settings(expected)


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.5])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("count", [1, 313])
def test_schedules_are_those_of_transformers(tmp_path: Path, kind: str, ratio: float, count: int) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), lr_scheduler_type=kind, learning_rate=3e-4, use_cpu=True, warmup_steps=ratio
    )
    trainer = Trainer(torch.nn.Linear(1, 1), arguments)
    theirs = trainer.create_scheduler(count, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4))
    asked = parameters(lr_scheduler_type=kind, learning_rate=3e-4, warmup_ratio=ratio, optim="sgd")

    ours = optim.schedule(asked, optim.build(asked, [torch.nn.Parameter(torch.zeros(1))]), count)

    for _ in range(count):
        assert ours.get_last_lr() == theirs.get_last_lr()
        for schedule in (ours, theirs):
            schedule.optimizer.step()
            schedule.step()


def test_steps_whose_float16_gradients_overflow_are_counted_and_a_run_of_nothing_else_has_diverged(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"quant_type": "none", "compute_dtype": "float16", "load_dtype": "float32"}

    def scaled(start: float) -> None:
        monkeypatch.setattr(
            steps, "grad_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=start, growth_interval=10**6)
        )

    scaled(2.0**20)
    some = run(tiny("llama"), examples(8), **given)
    scaled(2.0**120)
    with pytest.raises(Diverged, match=f"all {STEPS} steps overflowed"):
        run(tiny("llama"), examples(8), **given)

    assert 0 < some.skipped < STEPS
    assert len(some.losses) == STEPS
