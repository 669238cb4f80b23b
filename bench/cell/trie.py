"""The prefix trie of all labels, as one sequence of tokens under an attention mask in which each sees its ancestors."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Trie:
    """Labels that share beginnings share nodes. A label's last token is only predicted, so it is no node.

    With n nodes, e edges and k labels:

    tokens: [n] token of each node, parents before children.
    depth: [n] number of ancestors of each node.
    sees: [n, n] whether a node attends to another: itself and its ancestors.
    edge_from: [e] where each edge's prediction is made: place 0 is the end of the prompt, i + 1 is node i. Ascending.
    edge_token: [e] the token that the edge predicts.
    paths: [e, k] 1 where an edge lies on a label's path, else 0, so that (edge log-probabilities) @ paths are the
        labels' log-likelihoods.
    lengths: [k] tokens of each label.
    first_edge: [n + 2] of each place, its first edge, then e; every place has an edge.
    """

    tokens: torch.Tensor
    depth: torch.Tensor
    sees: torch.Tensor
    edge_from: torch.Tensor
    edge_token: torch.Tensor
    paths: torch.Tensor
    lengths: torch.Tensor
    first_edge: tuple[int, ...]


def build(labels: Sequence[tuple[int, ...]]) -> Trie:
    """Build the trie of labels given as tokens; no label may be empty or equal another.

    Two labels of which one begins the other are fine: callers close each with an end token.
    """
    prefixes = sorted({label[:end] for label in labels for end in range(1, len(label))}, key=lambda p: (len(p), p))
    places = {(): 0, **{prefix: place for place, prefix in enumerate(prefixes, start=1)}}
    edges = sorted({(places[label[:end]], label[end]) for label in labels for end in range(len(label))})
    edge_index = {edge: index for index, edge in enumerate(edges)}

    sees = torch.zeros(len(prefixes), len(prefixes), dtype=torch.bool)
    for row, prefix in enumerate(prefixes):
        sees[row, [places[prefix[:end]] - 1 for end in range(1, len(prefix) + 1)]] = True
    paths = torch.zeros(len(edges), len(labels))
    for column, label in enumerate(labels):
        paths[[edge_index[places[label[:end]], label[end]] for end in range(len(label))], column] = 1.0
    return Trie(
        tokens=torch.tensor([prefix[-1] for prefix in prefixes], dtype=torch.long),
        depth=torch.tensor([len(prefix) - 1 for prefix in prefixes], dtype=torch.long),
        sees=sees,
        edge_from=torch.tensor([place for place, _ in edges]),
        edge_token=torch.tensor([token for _, token in edges]),
        paths=paths,
        lengths=torch.tensor([len(label) for label in labels]),
        first_edge=tuple(bisect_left(edges, (place, -1)) for place in range(len(prefixes) + 2)),
    )
