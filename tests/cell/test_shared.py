from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cell import adapters, shared, trie
from bench.cell.scoring import Scores
from tests.cell.examples import load, parameters
from tests.cell.test_scoring import labels, prompts

SCORES = Scores(np.array([[-1.5, -2.0], [-3.0, -0.25]], dtype=np.float32), np.array([2, 3]))

Key = Callable[..., str]


@pytest.fixture
def key(tiny: Callable[[str], Path]) -> Key:
    """Return the key of a base model's scores under the settings given."""

    def of(name: str = "llama", asked: list[tuple[int, ...]] | None = None, **given: Any) -> str:
        model = load(tiny(name), **given)
        chosen = prompts(True) if asked is None else asked
        return shared.key(model, chosen, trie.build(labels()), parameters(model=str(tiny(name)), **given))

    return of


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    assert shared.read(tmp_path / "new", "a" * 64) is None

    shared.write(tmp_path / "new", "a" * 64, SCORES)

    found = shared.read(tmp_path / "new", "a" * 64)
    assert found is not None
    np.testing.assert_array_equal(found.log_likelihoods, SCORES.log_likelihoods)
    np.testing.assert_array_equal(found.label_lengths, SCORES.label_lengths)
    assert found.log_likelihoods.dtype == np.float32
    assert shared.read(tmp_path / "new", "b" * 64) is None


def test_a_torn_file_is_no_scores(tmp_path: Path) -> None:
    shared.write(tmp_path, "a" * 64, SCORES)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])

    assert shared.read(tmp_path, "a" * 64) is None


def test_where_nothing_can_be_written_nothing_is_shared(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    shared.write(tmp_path / "file", "a" * 64, SCORES)

    assert shared.read(tmp_path / "file", "a" * 64) is None


def test_a_key_does_not_change_with_what_training_does(key: Key) -> None:
    assert key(quant_type="nf4") == key(
        quant_type="nf4", target_modules="attention", lora_r=4, learning_rate=1.0, kbit_upcast=False, optim="sgd"
    )


def test_a_key_changes_with_all_that_scores_depend_on(key: Key) -> None:
    keys = [
        key(),
        key("qwen2"),
        key(quant_type="nf4"),
        key(quant_type="nf4", double_quant=False),
        key(quant_type="fp4"),
        key(compute_dtype="bfloat16", load_dtype="float32", quant_type="nf4"),
        key(attn_implementation="eager"),
        key(asked=prompts(True)[:-1]),
        key(asked=[*prompts(True)[:-1], (9, 9)]),
    ]

    assert len(set(keys)) == len(keys)


def test_a_key_changes_with_the_labels(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    keys = {
        shared.key(model, prompts(True), trie.build(chosen), parameters(model=str(tiny("llama"))))
        for chosen in (labels(), labels()[:-1], (*labels()[:-1], (8, 7, 0)), labels()[::-1])
    }

    assert len(keys) == 4


def test_a_trained_model_has_another_key(tiny: Callable[[str], Path]) -> None:
    asked = parameters(model=str(tiny("llama")), quant_type="nf4")
    model = load(tiny("llama"), quant_type="nf4")
    before = shared.key(model, prompts(True), trie.build(labels()), asked)
    adapters.adapt(model, asked)
    with torch.no_grad():
        adapters.trainable(model)[0].add_(1.0)

    assert shared.key(model, prompts(True), trie.build(labels()), asked) != before
