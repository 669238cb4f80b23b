"""One optimizer step: forward and backward of each batch, then the update, as `Trainer` does them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from bench.cell import adapters, heads, optim
from bench.cell.devices import move
from bench.cell.encoding import IGNORE_INDEX, Batch
from bench.cell.precision import autocast, grad_scaler
from bench.matrix.parameters import Parameters


@dataclass(frozen=True)
class Trainee:
    """A model whose layers carry adapters, with all that changes them; `weights` are the parameters that train."""

    model: PreTrainedModel
    weights: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    parameters: Parameters

    @property
    def device(self) -> torch.device:
        return self.model.device


def trainee(model: PreTrainedModel, parameters: Parameters, steps: int) -> Trainee:
    """Put a model into training mode, with the cell's optimizer, schedule over `steps` steps, and loss scaler."""
    model.train()
    with autocast(parameters, model.device):
        heads.attend_causally(model)
    weights = adapters.trainable(model)
    optimizer = optim.build(parameters, weights)
    schedule = optim.schedule(parameters, optimizer, steps)
    return Trainee(model, weights, optimizer, schedule, grad_scaler(parameters, model.device), parameters)


def take(it: Trainee, batches: Sequence[Batch]) -> torch.Tensor:
    """Take one optimizer step eagerly; return its loss, nats per loss-bearing token, on the device."""
    loss_tokens = sum(batch.loss_tokens for batch in batches)
    losses = [forward_backward(it, move(batch, it.device), loss_tokens) for batch in batches]
    advance(it, lambda: update(it))
    it.optimizer.zero_grad()
    return torch.stack(losses).sum()


def forward_backward(it: Trainee, batch: Batch, loss_tokens: int | torch.Tensor) -> torch.Tensor:
    """Add a batch's gradients to what is there; return its share of the step's loss."""
    with autocast(it.parameters, it.device):
        loss = loss_sum(it.model, batch) / loss_tokens
    it.scaler.scale(loss).backward()
    return loss.detach()


def update(it: Trainee) -> None:
    """Clip the gradients and let the optimizer use them; it leaves out a step whose float16 gradients overflowed."""
    it.scaler.unscale_(it.optimizer)
    if it.parameters.max_grad_norm:
        nn.utils.clip_grad_norm_(it.weights, it.parameters.max_grad_norm)
    it.scaler.step(it.optimizer)
    it.scaler.update()


def advance(it: Trainee, change: Callable[[], None]) -> None:
    """Run an update and move the schedule on, unless the update was left out (the loss scale drops then)."""
    scale = it.scaler.get_scale()
    change()
    if it.scaler.get_scale() >= scale:
        it.schedule.step()


def loss_sum(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy of a batch, summed over its loss-bearing tokens; logits exist for these only."""
    states = heads.hidden_states(model, batch.input_ids, **heads.causal(model, batch.input_ids))
    rows = torch.arange(len(states), device=states.device)[:, None]
    logits = heads.logits(model, states[rows, batch.positions])
    return cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
