from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.matrix.cards import CARDS, CONTEXT_BYTES, Card, card_of, workspace_bytes
from bench.matrix.fit import Fit, fit, need_bytes
from bench.matrix.parameters import Parameters

WORKSPACE = 2 * 8_519_680
FLOAT16 = Parameters(compute_dtype="float16")


def needing(needed_bytes: int) -> dict[str, int]:
    return {"predicted_needed_bytes": needed_bytes, "predicted_peak_workspace_bytes": WORKSPACE}


def test_a_cell_fits_to_the_byte_with_cudas_context_taken_off() -> None:
    card = Card("one", 10 * 10**9)
    exact = needing(10 * 10**9 - CONTEXT_BYTES)
    over = needing(10 * 10**9 - CONTEXT_BYTES + 1)
    assert fit(exact, FLOAT16, card) == Fit(True, 0)
    assert fit(over, FLOAT16, card) == Fit(False, -1)


@given(st.integers(0, 200 * 10**9), st.sampled_from(sorted(CARDS)))
def test_headroom_is_the_cards_memory_less_context_and_need_with_its_own_workspaces(needed: int, name: str) -> None:
    card = CARDS[name]
    found = fit(needing(needed), FLOAT16, card)
    own = needed - WORKSPACE + workspace_bytes(card)
    assert found.headroom_bytes == card.memory_bytes - CONTEXT_BYTES - own
    assert found.fits == (own <= card.memory_bytes - CONTEXT_BYTES)


def test_a_hopper_needs_more_for_its_workspaces_and_a_mere_size_what_was_predicted() -> None:
    need = needing(10**9)
    assert (
        need_bytes(need) == need_bytes(need, card_of("20GB")) == need_bytes(need, CARDS["T4"]) == 10**9 + CONTEXT_BYTES
    )
    assert need_bytes(need, CARDS["H100"]) - need_bytes(need) == 2 * 32 * 2**20 - WORKSPACE


@pytest.mark.parametrize(
    ("given", "fits"),
    [({"compute_dtype": "bfloat16"}, False), ({"compute_dtype": "float16"}, True),
     ({"compute_dtype": "float16", "load_dtype": "bfloat16"}, False),
     ({"compute_dtype": "bfloat16", "load_dtype": "float32"}, False)],
)  # fmt: skip
def test_a_card_without_bfloat16_does_not_take_a_cell_that_asks_for_it(given: dict[str, str], fits: bool) -> None:
    found = fit(needing(10**9), Parameters(**given), CARDS["T4"])  # type: ignore[arg-type]
    assert (found.fits, found.reason) == (fits, None if fits else "no bfloat16")
    assert found.headroom_bytes == 15360 * 2**20 - CONTEXT_BYTES - 10**9
    assert fit(needing(10**9), Parameters(**given), CARDS["A30"]).fits  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"compute_dtype": "float16", "attn_implementation": "flash_attention_2"}, "no FlashAttention 2"),
     ({"compute_dtype": "bfloat16", "attn_implementation": "flash_attention_2"}, "no bfloat16"),
     ({"compute_dtype": "float16", "attn_implementation": "sdpa"}, None)],
)  # fmt: skip
def test_flash_attention_2_needs_an_ampere(given: dict[str, str], reason: str | None) -> None:
    parameters = Parameters(**given)  # type: ignore[arg-type]
    assert fit(needing(10**9), parameters, CARDS["T4"]).reason == reason
    assert fit(needing(10**9), parameters, CARDS["T4"]).fits == (reason is None)
    assert fit(needing(10**9), parameters, CARDS["RTX 3050"]) == fit(needing(10**9), FLOAT16, CARDS["RTX 3050"])


def test_a_lower_bound_can_rule_a_card_out_and_never_in() -> None:
    card = Card("one", 10 * 10**9)
    assert fit(needing(10**9), FLOAT16, card, lower_bound=True) == Fit(None, None)
    assert fit(needing(10**10), FLOAT16, card, lower_bound=True) == Fit(False, None)
