from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BartForConditionalGeneration

from bench.cell import heads
from bench.cell.failures import Invalid
from tests.cell.examples import load
from tests.models import CONFIGS, VOCABULARY, config

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("name", CONFIGS)
def test_two_halves_give_the_logits_of_the_whole(tiny: Callable[[str], Path], name: str) -> None:
    model = load(tiny(name), attn_implementation="eager")
    ids = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        halves = heads.logits(model, heads.hidden_states(model, ids))
        whole = model(input_ids=ids).logits.float()

    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_stated_causal_mask_is_the_one_a_model_makes_itself(tiny: Callable[[str], Path], attention: str) -> None:
    model = load(tiny("qwen2"), attn_implementation=attention)
    ids = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        stated = heads.hidden_states(model, ids, **heads.causal(model, ids))
        own = heads.hidden_states(model, ids)

    torch.testing.assert_close(stated, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "odd", "gpt_neox", "gpt2", "granite", "cohere"])
def test_attention_without_masks_is_causal_all_the_same(tiny: Callable[[str], Path], name: str) -> None:
    model = load(tiny(name))
    ids = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        masked = heads.hidden_states(model, ids, **heads.causal(model, ids))
        heads.attend_causally(model)
        assert heads.causal(model, ids)["attention_mask"] is None
        maskless = heads.hidden_states(model, ids, **heads.causal(model, ids))

    torch.testing.assert_close(maskless, masked, rtol=0, atol=1e-5)


def test_a_model_that_is_causal_by_its_masks_only_keeps_them() -> None:
    sizes = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("doge", **sizes)).eval()
    assert model.config._attn_implementation == "sdpa"

    heads.attend_causally(model)

    assert model.config._attn_implementation == "sdpa"
    assert not model.training


def test_eager_attention_keeps_its_masks(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("gemma2"), attn_implementation="eager")

    heads.attend_causally(model)

    assert model.config._attn_implementation == "eager"
    assert heads.causal(model, torch.zeros(1, 4, dtype=torch.long))["attention_mask"] is not None


def test_masks_are_taken_for_a_while_only(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    heads.attend_causally(model)

    with heads.taking_masks(model):
        assert model.config._attn_implementation == "sdpa"

    assert model.config._attn_implementation == heads.CAUSAL_SDPA


def test_an_encoder_decoder_is_refused() -> None:
    dimensions = {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0}
    model = BartForConditionalGeneration(AutoConfig.for_model("bart", **dimensions))

    with pytest.raises(Invalid, match="not a decoder with an output head"):
        heads.check_supported(model, 32)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("gpt2", {"max_position_embeddings": 31}, "31 positions"),
        ("gemma2", {"sliding_window": 31}, "attends to 31 tokens"),
    ],
)
def test_sequences_that_outgrow_a_model_are_refused(name: str, more: dict[str, int], words: str) -> None:
    model = AutoModelForCausalLM.from_config(config(name, **more))

    heads.check_supported(model, 31)
    with pytest.raises(Invalid, match=words):
        heads.check_supported(model, 32)


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("mamba", {}, "takes no token positions"),
        ("bloom", {}, "takes no token positions"),
        ("mpt", {}, "takes no token positions"),
        ("falcon", {"alibi": True}, "takes no token positions"),
        ("qwen3_next", {"num_hidden_layers": 4}, "layers of type linear_attention"),
    ],
)
def test_a_model_that_follows_no_mask_or_positions_is_refused(kind: str, more: dict[str, Any], words: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **more}))

    with pytest.raises(Invalid, match=words):
        heads.check_supported(model, 16)
