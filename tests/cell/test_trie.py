from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bench.cell import encoding, sources, trie
from bench.cell.tasks import load_task

END = 9
label_sets = st.lists(
    st.lists(st.integers(1, 5), min_size=1, max_size=5).map(lambda tokens: (*tokens, END)),
    min_size=1,
    max_size=12,
    unique=True,
)


def test_labels_that_share_a_beginning_share_its_nodes() -> None:
    # "1", "1 2 3" and "4", each closed by an end token.
    built = trie.build([(1, END), (1, 2, 3, END), (4, END)])

    assert built.tokens.tolist() == [1, 4, 2, 3]
    assert built.depth.tolist() == [0, 0, 1, 2]
    assert built.sees.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert built.edge_from.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert built.edge_token.tolist() == [1, 4, 2, END, END, 3, END]
    assert built.paths.int().T.tolist() == [[1, 0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 1, 1], [0, 1, 0, 0, 1, 0, 0]]
    assert built.lengths.tolist() == [2, 4, 2]
    assert built.first_edge == (0, 2, 4, 5, 6, 7)


def test_labels_of_one_token_need_no_node() -> None:
    built = trie.build([(3,), (1,)])

    assert built.tokens.tolist() == []
    assert built.edge_token.tolist() == [1, 3]
    assert built.paths.int().tolist() == [[0, 1], [1, 0]]
    assert built.first_edge == (0, 2)


@given(label_sets, st.integers(0, 2**31))
def test_paths_sum_the_log_probabilities_of_each_labels_tokens(labels: list[tuple[int, ...]], seed: int) -> None:
    built = trie.build(labels)
    # What a model says at each place, as a table over the vocabulary.
    table = torch.randn(len(built.tokens) + 1, END + 1, generator=torch.Generator().manual_seed(seed))

    scores = table[built.edge_from, built.edge_token] @ built.paths

    places = {(): 0, **{beginning: node + 1 for node, beginning in enumerate(_beginnings(built))}}
    for label, score in zip(labels, scores.tolist(), strict=True):
        expected = sum(table[places[label[:end]], token].item() for end, token in enumerate(label))
        assert score == pytest.approx(expected, abs=1e-4)


@given(label_sets)
def test_nodes_are_the_distinct_beginnings_and_see_themselves_and_their_ancestors(
    labels: list[tuple[int, ...]],
) -> None:
    built = trie.build(labels)
    beginnings = {label[:end] for label in labels for end in range(1, len(label))}

    seen = _beginnings(built)

    assert len(seen) == len(beginnings)
    assert set(seen) == beginnings
    assert built.depth.tolist() == [len(beginning) - 1 for beginning in seen]


@given(label_sets)
def test_edges_ascend_by_place_and_every_place_has_one(labels: list[tuple[int, ...]]) -> None:
    built = trie.build(labels)
    places = range(len(built.tokens) + 1)

    assert built.edge_from.tolist() == sorted(built.edge_from.tolist())
    assert built.first_edge[-1] == len(built.edge_from)
    for place in places:
        own = built.edge_from[built.first_edge[place] : built.first_edge[place + 1]].tolist()
        assert own
        assert set(own) == {place}


@given(label_sets, st.randoms(use_true_random=False))
def test_order_of_labels_only_orders_the_columns(labels: list[tuple[int, ...]], random) -> None:
    shuffled = random.sample(labels, len(labels))

    one, other = trie.build(labels), trie.build(shuffled)

    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.paths[:, [labels.index(label) for label in shuffled]], other.paths)


@pytest.mark.slow
def test_banking77s_labels_are_341_tokens_and_294_distinct_beginnings(smollm2: Path) -> None:
    if not (folder := os.environ.get("QLORA_BENCH_DATA")) or not (Path(folder) / "banking77").is_dir():
        pytest.skip("QLORA_BENCH_DATA names no folder that holds banking77")
    tokenizer = AutoTokenizer.from_pretrained(sources.packaged_checkpoint(smollm2))

    labels = encoding.encode_labels(tokenizer, load_task("banking77", Path(folder)).labels)

    assert len(labels) == 77
    assert sum(map(len, labels)) == 341
    built = trie.build(labels)
    assert len(built.edge_token) == 294
    assert len(built.tokens) == 294 - 77  # a label's last token is only predicted


def _beginnings(built: trie.Trie) -> list[tuple[int, ...]]:
    """Return, for each node, the tokens of the nodes it sees: a label's beginning."""
    return [tuple(built.tokens[row].tolist()) for row in built.sees]
