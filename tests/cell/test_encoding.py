from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from bench.cell import encoding
from bench.cell.encoding import AFTER_TEXT, BEFORE_TEXT, IGNORE_INDEX, Batch, TokenizedExample
from bench.cell.failures import Invalid
from bench.cell.tasks import Example
from tests.cell.examples import parameters
from tests.models import END, tokenizer

tokens = st.lists(st.integers(1, 400), min_size=1, max_size=30).map(tuple)
examples_of_any_size = st.lists(st.builds(TokenizedExample, tokens, tokens), min_size=1, max_size=9)


def numbered(count: int) -> list[TokenizedExample]:
    """Return examples whose prompt says which they are."""
    return [TokenizedExample((number + 1,), (7, 0)) for number in range(count)]


def rows(steps: list[list[Batch]]) -> list[list[list[int]]]:
    """Return which examples of `numbered` each batch of each step holds."""
    return [[(batch.input_ids[:, 0] - 1).tolist() for batch in step] for step in steps]


# Labels ---------------------------------------------------------------------------------------------------------------


def test_labels_read_with_spaces_and_are_closed_by_the_end_token() -> None:
    encoded = encoding.encode_labels(tokenizer(), ["lost_card", "refund"])

    assert [tokenizer().decode(label) for label in encoded] == [f" lost card{END}", f" refund{END}"]


def test_underscores_stay_where_replacing_them_would_make_two_labels_one() -> None:
    encoded = encoding.encode_labels(tokenizer(), ["lost_card", "lost card", "a_b"])

    assert [tokenizer().decode(label) for label in encoded] == [f" lost_card{END}", f" lost card{END}", f" a_b{END}"]


def test_labels_of_any_script_come_back_as_they_were() -> None:
    names = ["Rückgabe", "заказ отменить", "注文の変更", "🎁 card", "a/b: c?"]

    assert [tokenizer().decode(label) for label in encoding.encode_labels(tokenizer(), names)] == [
        f" {name}{END}" for name in names
    ]


def test_150_labels_are_told_apart() -> None:
    names = [f"intent_{number}_{'about' * (number % 3)}" for number in range(150)]

    assert len(set(encoding.encode_labels(tokenizer(), names))) == 150


def test_labels_with_the_same_tokens_are_refused_by_name() -> None:
    forgetful = copy.deepcopy(tokenizer())
    forgetful._tokenizer.normalizer = normalizers.Lowercase()

    with pytest.raises(Invalid, match="'Refund' and 'refund' have the same tokens"):
        encoding.encode_labels(forgetful, ["Refund", "refund"])


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer()._tokenizer)

    with pytest.raises(Invalid, match="no end-of-sequence token") as caught:
        encoding.encode_labels(endless, ["a", "b"])
    assert caught.value.fix


# Prompts --------------------------------------------------------------------------------------------------------------


def test_a_prompt_frames_the_text_and_ends_where_the_label_begins() -> None:
    (prompt,) = encoding.encode_prompts(tokenizer(), ["Where is it?"], 64)

    assert tokenizer().decode(prompt) == f"{BEFORE_TEXT}Where is it?{AFTER_TEXT}"


@given(st.text(max_size=200), st.integers(0, 60))
def test_a_prompt_never_exceeds_its_room_and_always_asks_the_question(text: str, more: int) -> None:
    frame = len(tokenizer()(BEFORE_TEXT + AFTER_TEXT)["input_ids"])
    tail = tokenizer()(AFTER_TEXT)["input_ids"]
    whole = tokenizer()(f"{BEFORE_TEXT}{text}{AFTER_TEXT}")["input_ids"]

    (prompt,) = encoding.encode_prompts(tokenizer(), [text], frame + more)

    assert len(prompt) == min(len(whole), frame + more)
    if len(whole) > frame + more:
        assert list(prompt[-len(tail) :]) == tail
        assert list(prompt[: -len(tail)]) == whole[: frame + more - len(tail)]
    else:
        assert list(prompt) == whole


def test_room_too_small_for_an_empty_text_is_refused_with_what_is_missing() -> None:
    frame = len(tokenizer()(BEFORE_TEXT + AFTER_TEXT)["input_ids"])

    encoding.encode_prompts(tokenizer(), ["a text that is longer"], frame)
    with pytest.raises(Invalid, match=f"leaves {frame - 1} tokens") as caught:
        encoding.encode_prompts(tokenizer(), ["a text that is longer"], frame - 1)
    assert caught.value.fix == "raise max_length by at least 1"


def test_whichever_label_follows_an_example_stays_within_max_length() -> None:
    names = ["a", "a label with a very long name"]
    labels = encoding.encode_labels(tokenizer(), names)
    texts = [Example(0, "word " * 50, "a"), Example(1, "short", names[1])]

    encoded = encoding.encode_examples(tokenizer(), texts, names, labels, 48)

    assert [encoded[row].label for row in range(len(encoded))] == list(labels)
    assert len(encoded[0].prompt) + max(map(len, labels)) == 48
    assert all(len(encoded[row]) <= 48 for row in range(len(encoded)))


TEXTS = [Example(0, "where is my card", "a"), Example(1, "", "b"), Example(2, "ä" * 99, "a")]


def encoded(folder: Path | None, texts: list[Example] = TEXTS, max_length: int = 48, **changed: str) -> list[tuple]:
    """Encode, with a tokenizer that adds what `changed` says, and return plain tuples."""
    chosen = copy.deepcopy(tokenizer())
    if normalizer := changed.get("prepend"):
        chosen._tokenizer.normalizer = normalizers.Prepend(normalizer)
    labels = encoding.encode_labels(chosen, ["a", "b"])
    found = encoding.encode_examples(chosen, texts, ["a", "b"], labels, max_length, folder)
    return [(found[row].prompt, found[row].label) for row in range(len(found))]


def test_prompts_are_encoded_once_and_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoded(tmp_path)
    monkeypatch.setattr(encoding, "encode_prompts", lambda *_: pytest.fail("encoded again"))

    assert encoded(tmp_path) == first
    monkeypatch.undo()
    assert encoded(None) == first


def test_prompts_of_another_tokenizer_text_or_length_are_encoded_anew(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [{}, {"max_length": 40}, {"texts": TEXTS[:2]}, {"prepend": "now: "}]

    for variant in variants:
        assert encoded(tmp_path, **variant) == encoded(None, **variant)
    assert len(list((tmp_path / "tokens").iterdir())) == len(variants)


def test_a_tokenizer_that_splits_special_tokens_has_prompts_of_its_own(tmp_path: Path) -> None:
    texts, labels = [Example(0, f"a {END} b", "a")], encoding.encode_labels(tokenizer(), ["a", "b"])
    splitting = copy.deepcopy(tokenizer())
    splitting.split_special_tokens = True

    whole, split = (
        encoding.encode_examples(chosen, texts, ["a", "b"], labels, 64, tmp_path)[0].prompt
        for chosen in (tokenizer(), splitting)
    )

    assert len(split) > len(whole)


def test_a_tokenizer_that_cannot_say_what_it_does_is_asked_every_time(tmp_path: Path) -> None:
    class Plain:
        """Stands for a tokenizer written in Python: it has no backend."""

        eos_token_id = 0

        def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
            return dict(tokenizer()(text))

    labels = encoding.encode_labels(tokenizer(), ["a", "b"])
    found = encoding.encode_examples(Plain(), TEXTS, ["a", "b"], labels, 48, tmp_path)  # type: ignore[arg-type]

    assert found[0].prompt == encoded(None)[0][0]
    assert list(tmp_path.iterdir()) == []


def test_synthetic_examples_are_random_full_length_and_the_same_every_time() -> None:
    made = encoding.synthetic_examples(1000, 32)

    assert made == encoding.synthetic_examples(1000, 32)
    assert len(set(made)) == encoding.SYNTHETIC_EXAMPLES
    assert {(len(example), len(example.label)) for example in made} == {(32, 8)}
    assert all(0 <= token < 1000 for example in made for token in example.prompt)


# Batches --------------------------------------------------------------------------------------------------------------


@given(examples_of_any_size)
def test_loss_falls_on_the_tokens_of_the_labels_and_on_no_others(examples: list[TokenizedExample]) -> None:
    batch = encoding.collate(examples)

    for row, example in enumerate(examples):
        bears_loss = batch.targets[row] != IGNORE_INDEX
        positions = batch.positions[row][bears_loss]
        # The state at a position predicts the token after it.
        assert tuple(batch.input_ids[row, positions + 1].tolist()) == example.label
        assert tuple(batch.targets[row][bears_loss].tolist()) == example.label
        assert tuple(batch.input_ids[row, : positions[0] + 1].tolist()) == example.prompt
    assert batch.loss_tokens == int((batch.targets != IGNORE_INDEX).sum())


@given(examples_of_any_size)
def test_padding_stands_on_the_right_up_to_a_multiple_of_eight(examples: list[TokenizedExample]) -> None:
    batch = encoding.collate(examples)
    longest = max(map(len, examples))

    assert longest <= batch.input_ids.shape[1] < longest + encoding.PAD_MULTIPLE
    assert batch.input_ids.shape[1] % encoding.PAD_MULTIPLE == 0
    assert batch.real_tokens == sum(map(len, examples)) == int((batch.input_ids != 0).sum())


@given(examples_of_any_size, st.integers(0, 3), st.integers(0, 16), st.integers(0, 5))
def test_padding_a_batch_adds_what_bears_no_loss_and_counts_for_nothing(
    examples: list[TokenizedExample], rows: int, tokens: int, label_tokens: int
) -> None:
    batch = encoding.collate(examples)
    (count, length), width = batch.input_ids.shape, batch.targets.shape[1]

    wider = batch.padded(count + rows, length + tokens, width + label_tokens)

    assert wider.input_ids.shape == (count + rows, length + tokens)
    assert wider.positions.shape == wider.targets.shape == (count + rows, width + label_tokens)
    assert torch.equal(wider.input_ids[:count, :length], batch.input_ids)
    assert torch.equal(wider.positions[:count, :width], batch.positions)
    assert torch.equal(wider.targets[:count, :width], batch.targets)
    assert int((wider.targets != IGNORE_INDEX).sum()) == batch.loss_tokens
    counts = ("examples", "real_tokens", "loss_tokens")
    assert [getattr(wider, name) for name in counts] == [getattr(batch, name) for name in counts]
    assert batch.examples == len(examples)


def test_order_depends_on_the_seed_and_on_nothing_else() -> None:
    def orders(seed: int, **given) -> list[list[list[int]]]:
        return rows(list(encoding.steps(numbered(40), parameters(batch_size=8, **given), seed)))

    assert orders(1) == orders(1, quant_type="nf4", learning_rate=1e-5, lora_r=4, compute_dtype="bfloat16")
    assert orders(1) != orders(2)
    torch.manual_seed(5)
    assert orders(1) == orders(1)


def test_each_epoch_sees_every_example_once_in_a_new_order() -> None:
    steps = rows(list(encoding.steps(numbered(10), parameters(batch_size=4, epochs=2), 0)))
    seen = [row for step in steps for batch in step for row in batch]

    assert [len(batch) for step in steps for batch in step] == [4, 4, 2, 4, 4, 2]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_an_epochs_last_step_adds_up_what_is_left() -> None:
    steps = rows(list(encoding.steps(numbered(11), parameters(batch_size=2, gradient_accumulation_steps=4), 0)))

    assert [[len(batch) for batch in step] for step in steps] == [[2, 2, 2, 2], [2, 1]]


@given(
    examples=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    epochs=st.sampled_from([0.1, 0.5, 1.0, 1.5, 3.0]),
    max_steps=st.none() | st.integers(1, 40),
)
def test_as_many_steps_are_taken_as_were_counted(
    examples: int, batch_size: int, accumulation: int, epochs: float, max_steps: int | None
) -> None:
    given = parameters(
        batch_size=batch_size, gradient_accumulation_steps=accumulation, epochs=epochs, max_steps=max_steps
    )

    steps = list(encoding.steps(numbered(examples), given, 0))

    assert len(steps) == encoding.steps_count(given, examples)
    if max_steps:
        assert len(steps) == max_steps
    else:
        per_epoch = math.ceil(math.ceil(examples / batch_size) / accumulation)
        assert len(steps) == max(1, math.ceil(epochs * per_epoch))


def test_fewer_epochs_are_a_beginning_of_more() -> None:
    half = rows(list(encoding.steps(numbered(40), parameters(batch_size=4, epochs=0.5), 3)))
    whole = rows(list(encoding.steps(numbered(40), parameters(batch_size=4, epochs=1), 3)))

    assert half == whole[:5]


def test_a_survey_covers_every_batch_of_a_run() -> None:
    examples = [TokenizedExample(tuple(range(1, 4 + row)), (7,) * (1 + row % 3)) for row in range(20)]
    given = parameters(batch_size=6, gradient_accumulation_steps=2, epochs=2)
    batches = [batch for step in encoding.steps(examples, given, 4) for batch in step]

    found = encoding.survey(examples, given, 4)

    assert found.lengths == Counter(batch.input_ids.shape[1] for batch in batches)
    assert found.longest.input_ids.numel() == max(batch.input_ids.numel() for batch in batches)
    assert (found.rows, found.width) == (6, 3)


def test_a_surveys_hash_changes_with_the_seed_and_the_data_only() -> None:
    def sha256(seed: int = 0, examples: int = 20, **given) -> str:
        return encoding.survey(numbered(examples), parameters(batch_size=4, **given), seed).sha256

    assert sha256() == sha256(quant_type="nf4", compute_dtype="float16", optim="sgd")
    assert len({sha256(), sha256(seed=1), sha256(examples=21), sha256(epochs=2)}) == 4
