"""Turn a task's texts into tokens, and tokens into the batches that training takes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bench.cell.failures import Invalid
from bench.cell.tasks import Example
from bench.matrix.parameters import Parameters

Item = TypeVar("Item")

BEFORE_TEXT = "Customer query: "
AFTER_TEXT = "\nIntent:"
IGNORE_INDEX = -100  # the target that torch's cross-entropy leaves out

# Batches are padded to a multiple of this many tokens, which tensor cores like.
PAD_MULTIPLE = 8

# With random weights there is no tokenizer: sequences are random tokens, of which the last stand for the label.
SYNTHETIC_LABEL_TOKENS = 8
SYNTHETIC_EXAMPLES = 1024


@dataclass(frozen=True)
class TokenizedExample:
    """A prompt and the label that follows it, its end token included; only the label's tokens bear loss."""

    prompt: tuple[int, ...]
    label: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.label)


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right to one length; what stands behind a causal model's last real token changes nothing.

    `input_ids` is [examples, tokens]. `positions` and `targets` are [examples, longest label]: the hidden state at
    `positions` predicts the token in `targets` (`IGNORE_INDEX` where a label is shorter).
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    real_tokens: int
    loss_tokens: int


def encode_labels(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each label as it follows a prompt, closed by the end token.

    Underscores read as spaces, unless that would make two labels the same. The end token keeps a label apart from
    another that begins with it.

    Raises:
        Invalid: the tokenizer has no end token, or gives two labels the same tokens.
    """
    if tokenizer.eos_token_id is None:
        raise Invalid("the tokenizer has no end-of-sequence token", "set eos_token in its tokenizer_config.json")
    spoken = [label.replace("_", " ") for label in labels]
    names = spoken if len(set(spoken)) == len(labels) else labels
    encoded = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
    tokens = tuple((*ids, tokenizer.eos_token_id) for ids in encoded)
    seen: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, tokens, strict=True):
        if ids in seen:
            raise Invalid(f"labels {seen[ids]!r} and {label!r} have the same tokens", "rename one of them")
        seen[ids] = label
    return tokens


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
    """Return the prompt of each text in at most `max_tokens` tokens; a longer text loses its end, not the question.

    Raises:
        Invalid: not even an empty text fits.
    """
    tail = tokenizer(AFTER_TEXT, add_special_tokens=False)["input_ids"]
    frame = len(tokenizer(BEFORE_TEXT + AFTER_TEXT)["input_ids"])
    if max_tokens < frame:
        raise Invalid(
            f"max_length leaves {max_tokens} tokens for a prompt, which takes {frame} with an empty text",
            f"raise max_length by at least {frame - max_tokens}",
        )
    encoded = tokenizer([f"{BEFORE_TEXT}{text}{AFTER_TEXT}" for text in texts])["input_ids"]
    return [tuple(ids if len(ids) <= max_tokens else [*ids[: max_tokens - len(tail)], *tail]) for ids in encoded]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    labels: Sequence[str],
    label_tokens: Sequence[tuple[int, ...]],
    max_length: int,
) -> list[TokenizedExample]:
    """Return prompt and label of each example, together at most `max_length` tokens whichever label follows."""
    prompts = encode_prompts(tokenizer, [e.text for e in examples], max_length - max(map(len, label_tokens)))
    tokens = dict(zip(labels, label_tokens, strict=True))
    return [TokenizedExample(p, tokens[e.label]) for p, e in zip(prompts, examples, strict=True)]


def synthetic_examples(vocab_size: int, length: int, count: int = SYNTHETIC_EXAMPLES) -> list[TokenizedExample]:
    """Return sequences of exactly `length` random tokens, the same ones every time."""
    label = min(SYNTHETIC_LABEL_TOKENS, length - 1)
    rows = np.random.default_rng(0).integers(0, vocab_size, (count, length)).tolist()
    return [TokenizedExample(tuple(row[:-label]), tuple(row[-label:])) for row in rows]


# Batches --------------------------------------------------------------------------------------------------------------


def steps_count(parameters: Parameters, examples: int) -> int:
    """Return the optimizer steps that a cell takes: `max_steps`, or as many as `epochs` passes need, rounded up."""
    per_epoch = math.ceil(examples / (parameters.batch_size * parameters.gradient_accumulation_steps))
    return parameters.max_steps or math.ceil(parameters.epochs * per_epoch)


def steps(examples: Sequence[TokenizedExample], parameters: Parameters, seed: int) -> Iterator[list[Batch]]:
    """Yield the batches of each optimizer step, `gradient_accumulation_steps` of them (fewer at the end of an epoch).

    Each epoch is a new order, drawn from the seed alone, so that every cell of a seed sees the same batches.
    """
    left = steps_count(parameters, len(examples))
    epoch = 0
    while left > 0:
        order = np.random.default_rng([seed, epoch]).permutation(len(examples)).tolist()
        per_step = _chunks(_chunks(order, parameters.batch_size), parameters.gradient_accumulation_steps)
        for step in per_step[:left]:
            yield [collate([examples[row] for row in rows]) for rows in step]
        left -= len(per_step)
        epoch += 1


def collate(examples: Sequence[TokenizedExample]) -> Batch:
    """Pad examples into one batch."""
    length = math.ceil(max(map(len, examples)) / PAD_MULTIPLE) * PAD_MULTIPLE
    width = max(len(example.label) for example in examples)
    input_ids = torch.zeros(len(examples), length, dtype=torch.long)
    positions = torch.zeros(len(examples), width, dtype=torch.long)
    targets = torch.full((len(examples), width), IGNORE_INDEX)
    for row, example in enumerate(examples):
        input_ids[row, : len(example)] = torch.tensor((*example.prompt, *example.label))
        first = len(example.prompt) - 1
        positions[row, : len(example.label)] = torch.arange(first, first + len(example.label))
        targets[row, : len(example.label)] = torch.tensor(example.label)
    return Batch(
        input_ids, positions, targets, sum(map(len, examples)), sum(len(example.label) for example in examples)
    )


@dataclass(frozen=True)
class Survey:
    """What the batches of a run are, all of them.

    `sha256` covers every token, by which two cells can show that they saw the same. `lengths` counts batches by their
    padded length; `longest` is one of the longest; `rows` and `width` are the largest numbers of examples and of label
    tokens.
    """

    sha256: str
    lengths: Counter[int]
    longest: Batch
    rows: int
    width: int


def survey(examples: Sequence[TokenizedExample], parameters: Parameters, seed: int) -> Survey:
    """Go through the batches of a run, as `steps` yields them, without keeping them."""
    sha = hashlib.sha256()
    lengths: Counter[int] = Counter()
    rows = width = 0
    longest: Batch | None = None
    for step in steps(examples, parameters, seed):
        for batch in step:
            sha.update(batch.input_ids.numpy().tobytes())
            sha.update(batch.targets.numpy().tobytes())
            lengths[batch.input_ids.shape[1]] += 1
            rows, width = max(rows, len(batch.targets)), max(width, batch.targets.shape[1])
            if longest is None or batch.input_ids.numel() > longest.input_ids.numel():
                longest = batch
    assert longest is not None  # noqa: S101 - there is at least one step
    return Survey(sha.hexdigest(), lengths, longest, rows, width)


def _chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
