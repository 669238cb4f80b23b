from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, modeling_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bench.cell import adapters, encoding, heads, meters, scoring, trie
from bench.cell.calibration import expected_calibration_error
from bench.cell.scoring import Scores
from tests.cell.examples import CPU, load, parameters, plain_scores
from tests.models import VOCABULARY, config, tokenizer

NAMES = ("card", "card lost", "card not working", "lost parcel", "refund", "wann kommt mein Päckchen?")
TEXTS = ("Hi", "Where is my parcel?", "I paid twice for one and the same thing, didn't I", "éàß " * 6, "refund " * 9)


def labels() -> tuple[tuple[int, ...], ...]:
    return encoding.encode_labels(tokenizer(), NAMES)


def prompts(padded: bool) -> list[tuple[int, ...]]:
    """Return prompts of different lengths, or of one length."""
    encoded = encoding.encode_prompts(tokenizer(), TEXTS, 44)
    shortest = min(map(len, encoded))
    return encoded if padded else [prompt[:shortest] for prompt in encoded]


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, kind) for name in ("llama", "qwen2", "gpt_neox", "odd") for kind in ("sdpa", "eager")),
        ("gemma2", "eager"),
        ("granite", "sdpa"),
        ("cohere", "sdpa"),
        ("gpt2", "sdpa"),
    ],
)
def test_one_forward_gives_what_a_forward_per_label_gives(
    tiny: Callable[[str], Path], name: str, attention: str, padded: bool
) -> None:
    model = load(tiny(name), attn_implementation=attention)
    expected = plain_scores(model, prompts(padded), labels())

    found = scoring.score(model, prompts(padded), trie.build(labels()))

    assert expected.std() > 1  # the labels differ, or equality would show nothing
    np.testing.assert_allclose(found.log_likelihoods, expected, rtol=0, atol=1e-4)
    assert found.label_lengths.tolist() == [len(label) for label in labels()]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_one_forward_gives_what_a_forward_per_label_gives_in_4_bits(tiny: Callable[[str], Path], kind: str) -> None:
    model = load(tiny("qwen2"), quant_type=kind)

    found = scoring.score(model, prompts(True), trie.build(labels()))

    np.testing.assert_allclose(found.log_likelihoods, plain_scores(model, prompts(True), labels()), rtol=0, atol=1e-3)


def test_one_forward_gives_what_a_forward_per_label_gives_through_adapters(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"), quant_type="nf4")
    without = scoring.score(model, prompts(True), trie.build(labels())).log_likelihoods
    adapters.adapt(model, parameters(quant_type="nf4"))
    with torch.no_grad():
        for weight in adapters.trainable(model):
            weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    heads.attend_causally(model)  # as training does
    model.eval()

    found = scoring.score(model, prompts(True), trie.build(labels())).log_likelihoods

    np.testing.assert_allclose(found, plain_scores(model, prompts(True), labels()), rtol=0, atol=1e-3)
    assert np.abs(found - without).max() > 0.1


@pytest.mark.parametrize("at_once", [1, 2, 16])
@pytest.mark.parametrize(
    ("name", "attention"), [("llama", "sdpa"), ("qwen2", "eager"), ("gemma2", "eager"), ("granite", "sdpa")]
)
def test_what_follows_a_prompt_is_what_the_model_itself_says(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, attention: str, at_once: int
) -> None:
    monkeypatch.setitem(scoring.MAX_ROWS, "cpu", at_once)
    model = load(tiny(name), attn_implementation=attention)
    found = np.empty((len(TEXTS), VOCABULARY), np.float32)
    sizes = []

    for rows, log_probabilities in scoring.next_tokens(model, prompts(True)):
        found[rows] = log_probabilities.numpy()
        sizes.append(len(rows))

    for row, prompt in enumerate(prompts(True)):
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
        np.testing.assert_allclose(found[row], expected.numpy(), rtol=0, atol=1e-4)
    assert max(sizes) <= at_once
    assert sum(sizes) == len(TEXTS)


def test_whole_distributions_are_made_for_few_prompts_at_a_time(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 2 * VOCABULARY * scoring.BYTES_PER_COMPARED_LOGIT)

    sizes = [len(rows) for rows, _ in scoring.next_tokens(load(tiny("llama")), prompts(True))]

    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("places_at_once", [1, 2, 3])
def test_logits_in_chunks_are_the_same_logits(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, places_at_once: int
) -> None:
    model = load(tiny("llama"))
    whole = scoring.score(model, prompts(True), trie.build(labels()))
    room = places_at_once * len(TEXTS) * VOCABULARY * scoring.BYTES_PER_LOGIT
    monkeypatch.setattr(scoring, "LOGITS_BYTES", room)

    chunked = scoring.score(model, prompts(True), trie.build(labels()))

    np.testing.assert_allclose(chunked.log_likelihoods, whole.log_likelihoods, rtol=0, atol=1e-5)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_scores_do_not_depend_on_what_shares_the_batch(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    model = load(tiny("qwen2"))
    together = scoring.score(model, prompts(True), trie.build(labels()))
    monkeypatch.setitem(scoring.MAX_ROWS, "cpu", most)
    told = []

    apart = scoring.score(model, prompts(True), trie.build(labels()), lambda done, total: told.append((done, total)))

    np.testing.assert_allclose(apart.log_likelihoods, together.log_likelihoods, rtol=0, atol=1e-5)
    assert told == [(min(done, 5), 5) for done in range(most, 5 + most, most)]


def test_prompts_that_outgrow_the_room_for_activations_are_scored_one_by_one(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring.ACTIVATION_BYTES, "cpu", 1)
    told = []

    scoring.score(
        load(tiny("llama")), prompts(True), trie.build(labels()), lambda done, total: told.append((done, total))
    )

    assert told == [(done, 5) for done in range(1, 6)]


def test_scoring_lends_sdpa_to_flash_attention_and_gives_it_back(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flash attention needs a GPU; what stands in for it computes by SDPA, and refuses a mask as the real one does.
    def flash(module, query, key, value, attention_mask, **more):
        assert attention_mask is None
        return sdpa_attention_forward(module, query, key, value, None, **more)

    AttentionInterface.register("flash_stand_in", flash)
    AttentionMaskInterface.register("flash_stand_in", sdpa_mask)
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda *args, **kwargs: None)
    model = load(tiny("llama"))
    expected = scoring.score(model, prompts(True), trie.build(labels()))
    model.set_attn_implementation("flash_stand_in")

    found = scoring.score(model, prompts(True), trie.build(labels()))

    np.testing.assert_array_equal(found.log_likelihoods, expected.log_likelihoods)
    assert model.config._attn_implementation == "flash_stand_in"


@pytest.mark.slow
@pytest.mark.usefixtures("all_threads")
def test_a_large_vocabulary_stays_within_2_gb_of_memory() -> None:
    model = AutoModelForCausalLM.from_config(config("qwen2", vocab_size=152_064)).eval()
    random = torch.Generator().manual_seed(0)
    many = [(*torch.randint(9, 400, (3,), generator=random).tolist(), label, 0) for label in range(77)]  # 385 tokens
    texts = [tuple(range(length, 0, -1)) for length in range(20, 52)]
    meters.reset_peaks(CPU)
    before = meters.peak_rss_bytes()

    scores = scoring.score(model, texts, trie.build(many))

    assert scores.log_likelihoods.shape == (32, 77)
    assert meters.peak_rss_bytes() - before < 2e9
    assert 32 * 300 * 152_064 * 4 > 5e9  # what all logits at once would have taken


def test_measures_of_a_known_table() -> None:
    # Three labels of 1, 2 and 4 tokens; predictions 0, 0, 1, 0 for the truth 0, 1, 1, 2.
    table = np.array([[-1, -2, -3], [-1, -2, -9], [-5, -4, -6], [-1, -8, -4]], dtype=np.float32)
    truth = np.array([0, 1, 1, 2])

    measures = Scores(table, np.array([1, 2, 4])).measures(truth, "after")

    assert measures["accuracy_after"] == 0.5
    assert measures["macro_f1_after"] == pytest.approx((2 * 1 / (2 + 2) + 2 * 1 / (2 + 1) + 0) / 3)
    assert measures["heldout_loss_after"] == pytest.approx((1 + 2 + 4 + 4) / (1 + 2 + 2 + 4))
    assert measures["expected_calibration_error_after"] == expected_calibration_error(table, truth)


def test_measures_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(200, 12)).astype(np.float32)
    truth = random.integers(0, 12, 200)

    measures = Scores(table, np.ones(12, dtype=np.int64)).measures(truth, "before")

    assert measures["accuracy_before"] == pytest.approx(accuracy_score(truth, table.argmax(1)))
    assert measures["macro_f1_before"] == pytest.approx(f1_score(truth, table.argmax(1), average="macro"))


def test_macro_f1_averages_over_the_labels_that_occur() -> None:
    # Label 2 occurs in no example; that it was never predicted says nothing about the model.
    table = np.array([[-1, -2, -3], [-2, -1, -3]], dtype=np.float32)

    assert Scores(table, np.ones(3)).measures(np.array([0, 1]), "after")["macro_f1_after"] == 1.0
