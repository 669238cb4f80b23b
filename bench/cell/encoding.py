"""Turn a task's texts into tokens, and tokens into the batches that training takes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import tokenizers
import torch
import transformers
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from bench.cell import ragged
from bench.cell.failures import Invalid
from bench.cell.ragged import Rows
from bench.cell.tasks import Example
from bench.matrix.parameters import Parameters

Item = TypeVar("Item")

# Part of what kept prompts are found by: raise it when the same texts no longer become the same tokens.
ENCODING_VERSION = 1

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
class Labelled:
    """Prompts and the label of each, as rows of examples."""

    prompts: Rows[tuple[int, ...]]
    labels: Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> TokenizedExample:
        return TokenizedExample(self.prompts[row], self.labels[row])


@dataclass(frozen=True)
class Shape:
    """Of a batch: examples, tokens of each, and label tokens of each (for which logits exist), padding included."""

    rows: int
    length: int
    width: int


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right to one length; what stands behind a causal model's last real token changes nothing.

    `input_ids` is [examples, tokens]. `positions` and `targets` are [examples, longest label]: the hidden state at
    `positions` predicts the token in `targets` (`IGNORE_INDEX` where a label is shorter). The counts are of what is
    real: rows and tokens that only pad are left out.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    examples: int
    real_tokens: int
    loss_tokens: int

    @property
    def shape(self) -> Shape:
        rows, length = self.input_ids.shape
        return Shape(rows, length, self.targets.shape[1])

    def padded(self, rows: int, length: int, width: int) -> Batch:
        """Return the batch padded to `rows` examples of `length` tokens, with `width` label tokens each.

        What is added stands behind every real token and bears no loss, so that it changes no gradient (but in int8,
        whose layers look at all rows of a batch).
        """
        sizes = ((self.input_ids, length, 0), (self.positions, width, 0), (self.targets, width, IGNORE_INDEX))
        input_ids, positions, targets = (
            pad(tensor, (0, columns - tensor.shape[1], 0, rows - tensor.shape[0]), value=filler)
            for tensor, columns, filler in sizes
        )
        return replace(self, input_ids=input_ids, positions=positions, targets=targets)


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
    cache_dir: Path | None = None,
) -> Labelled:
    """Return prompt and label of each example, together at most `max_length` tokens whichever label follows.

    With `cache_dir`, prompts are encoded once for each tokenizer, task and length, and mapped into memory from there.
    """
    texts, room = [example.text for example in examples], max_length - max(map(len, label_tokens))
    tokens = dict(zip(labels, label_tokens, strict=True))
    prompts: Rows[tuple[int, ...]]
    if cache_dir and (fingerprint := _fingerprint(tokenizer)):
        facts = (ENCODING_VERSION, fingerprint, BEFORE_TEXT, AFTER_TEXT, room, texts)
        key = hashlib.sha256(repr(facts).encode()).hexdigest()
        prompts = ragged.keep(cache_dir / "tokens", key, lambda: encode_prompts(tokenizer, texts, room))
    else:
        prompts = encode_prompts(tokenizer, texts, room)
    return Labelled(prompts, [tokens[example.label] for example in examples])


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what decides the tokens that a tokenizer gives, as text; None for one in Python, which cannot say."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    versions = (tokenizers.__version__, transformers.__version__)
    return repr((versions, type(tokenizer).__name__, tokenizer.split_special_tokens, backend.to_str()))


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


def steps(examples: Rows[TokenizedExample], parameters: Parameters, seed: int) -> Iterator[list[Batch]]:
    """Yield the batches of each optimizer step, `gradient_accumulation_steps` of them (fewer at the end of an epoch).

    Each epoch is a new order, drawn from the seed alone, so that every cell of a seed sees the same batches.
    """
    for step in _order(len(examples), parameters, seed):
        yield [collate([examples[row] for row in rows]) for rows in step]


def _order(examples: int, parameters: Parameters, seed: int) -> Iterator[Sequence[Sequence[int]]]:
    """Yield, for each optimizer step, the rows of each of its batches."""
    left = steps_count(parameters, examples)
    epoch = 0
    while left > 0:
        order = np.random.default_rng([seed, epoch]).permutation(examples).tolist()
        per_step = _chunks(_chunks(order, parameters.batch_size), parameters.gradient_accumulation_steps)
        yield from per_step[:left]
        left -= len(per_step)
        epoch += 1


def collate(examples: Sequence[TokenizedExample]) -> Batch:
    """Pad examples into one batch."""
    length = rounded_up(max(map(len, examples)))
    width = max(len(example.label) for example in examples)
    input_ids = np.zeros((len(examples), length), dtype=np.int64)
    positions = np.zeros((len(examples), width), dtype=np.int64)
    targets = np.full((len(examples), width), IGNORE_INDEX)
    for row, example in enumerate(examples):
        first, tokens = len(example.prompt), len(example.label)
        input_ids[row, :first] = example.prompt
        input_ids[row, first : first + tokens] = example.label
        positions[row, :tokens] = np.arange(first - 1, first - 1 + tokens)
        targets[row, :tokens] = example.label
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(positions),
        torch.from_numpy(targets),
        len(examples),
        sum(map(len, examples)),
        sum(len(example.label) for example in examples),
    )


def rounded_up(length: int) -> int:
    """Return the tokens to which a batch is padded whose longest example has `length`."""
    return math.ceil(length / PAD_MULTIPLE) * PAD_MULTIPLE


@dataclass(frozen=True)
class Survey:
    """What the batches of a run are, all of them.

    `sha256` covers every token in its order, by which two cells can show that they saw the same. `lengths` counts
    batches by their padded length; `longest` is one of the largest; `rows` and `width` are the largest numbers of
    examples and of label tokens.
    """

    sha256: str
    lengths: Counter[int]
    longest: Batch
    rows: int
    width: int


def survey(examples: Rows[TokenizedExample], parameters: Parameters, seed: int) -> Survey:
    """Look at the batches of a run, as `steps` yields them, before any of them is made."""
    every = [examples[row] for row in range(len(examples))]
    digests = [hashlib.sha256(repr((example.prompt, example.label)).encode()).digest() for example in every]
    batches = [rows for step in _order(len(every), parameters, seed) for rows in step]
    lengths = [rounded_up(max(len(every[row]) for row in rows)) for rows in batches]
    largest = max(range(len(batches)), key=lambda batch: lengths[batch] * len(batches[batch]))
    return Survey(
        hashlib.sha256(b"|".join(b"".join(digests[row] for row in rows) for rows in batches)).hexdigest(),
        Counter(lengths),
        collate([every[row] for row in batches[largest]]),
        max(map(len, batches)),
        max(len(every[row].label) for rows in batches for row in rows),
    )


def _chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
