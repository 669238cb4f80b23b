from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cell import adapters, ragged, shared, trie
from bench.cell.layers import LayerError
from bench.cell.scoring import Scores
from bench.cell.shared import Base
from tests.cell.examples import load, parameters
from tests.cell.test_scoring import labels, prompts

SCORES = Scores(np.array([[-1.5, -2.0], [-3.0, -0.25]], dtype=np.float32), np.array([2, 3]))
BASE = Base(
    SCORES,
    {"label_kl_before": 0.1 + 0.2, "next_token_prompts_count": 256},
    (LayerError("model.layers.0.mlp.up_proj", 8192, 1 / 3, 0.02), LayerError("model.layers.0.é", 64, 1e-300, 2.0)),
)

Key = Callable[..., str]


@pytest.fixture
def key(tiny: Callable[[str], Path]) -> Key:
    """Return the key of a base model's scores under the settings given."""

    def of(
        name: str = "llama", asked: list[tuple[int, ...]] | None = None, reference: str | None = None, **given: Any
    ) -> str:
        model = load(tiny(name), **given)
        chosen = prompts(True) if asked is None else asked
        return shared.key(model, chosen, trie.build(labels()), parameters(model=str(tiny(name)), **given), reference)

    return of


@pytest.mark.parametrize("base", [BASE, Base(SCORES, {}, ())], ids=["all", "scores only"])
def test_a_base_comes_back_as_it_was(tmp_path: Path, base: Base) -> None:
    assert shared.read(tmp_path / "new", "a" * 64) is None

    shared.write(tmp_path / "new", "a" * 64, base)

    found = shared.read(tmp_path / "new", "a" * 64)
    assert found is not None
    np.testing.assert_array_equal(found.scores.log_likelihoods, SCORES.log_likelihoods)
    np.testing.assert_array_equal(found.scores.label_lengths, SCORES.label_lengths)
    assert found.scores.log_likelihoods.dtype == np.float32
    assert (found.measures, found.layers) == (base.measures, base.layers)
    assert shared.read(tmp_path / "new", "b" * 64) is None


def test_a_torn_file_is_no_base(tmp_path: Path) -> None:
    shared.write(tmp_path, "a" * 64, BASE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])

    assert shared.read(tmp_path, "a" * 64) is None


@pytest.mark.parametrize("facts", [None, b"{", b"[]", b'{"measures": {}}', b'{"measures": {}, "layers": [["one"]]}'])
def test_a_file_with_other_contents_is_no_base(tmp_path: Path, facts: bytes | None) -> None:
    shared.write(tmp_path, "a" * 64, BASE)
    (path,) = tmp_path.iterdir()
    tensors = {"log_likelihoods": torch.zeros(2, 2), "label_lengths": torch.ones(2)}
    if facts is not None:
        tensors["facts"] = torch.tensor(list(facts), dtype=torch.uint8)
    ragged.write(path, tensors)

    assert shared.read(tmp_path, "a" * 64) is None


def test_where_nothing_can_be_written_nothing_is_shared(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    shared.write(tmp_path / "file", "a" * 64, BASE)

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
        key(reference="a"),
        key(reference="b"),
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
