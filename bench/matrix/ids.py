"""Names cells: an id for people, from the axes that vary, and a key for records, from every parameter."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from bench.matrix.cross import Draft
from bench.matrix.rows import LONGEST_ID, Setting
from bench.matrix.values import Unreadable
from bench.matrix.vocabulary import Vocabulary
from bench.matrix.wording import written
from bench.protocol import PROTOCOL_VERSION

_KEY_DIGITS = 16
_SUFFIX_DIGITS = 8
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=-]+")


def key_of(values: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    """Return 16 hexadecimal digits for a value of every parameter: the same in every file, whatever its order.

    Silent parameters do not count, and later ones only where they differ from their default.
    """
    later, built_in = vocabulary.later, vocabulary.built_in
    significant = vocabulary.significant(values)
    counting = {name: value for name, value in significant.items() if name not in later or value != built_in[name]}
    content = {"parameters": counting, "protocol": PROTOCOL_VERSION}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def varying(axes: Mapping[str, Sequence[Setting]]) -> frozenset[str]:
    """Return the axes that an id names: those with more than one value, or all of them if no axis has more."""
    return frozenset(name for name, settings in axes.items() if len(settings) > 1) or frozenset(axes)


def ids_of(drafts: Sequence[Draft], names: Collection[str], vocabulary: Vocabulary) -> list[str]:
    """Return an id for each draft: the row's own, or one made of the parameters in `names` and those the row sets.

    Silent parameters are left out. Made ids that would be alike end in eight digits of their keys. A row's own id is
    left as it is, even where it is another cell's too.
    """
    plain = [_plain_id(draft, names, vocabulary) for draft in drafts]
    own = {draft.row.id.value.lower() for draft in drafts if draft.row and draft.row.id}
    crossed = Counter(id_.lower() for draft, id_ in zip(drafts, plain, strict=True) if draft.row is None)
    made = Counter(id_.lower() for draft, id_ in zip(drafts, plain, strict=True) if draft.row and not draft.row.id)
    ids = []
    for draft, id_ in zip(drafts, plain, strict=True):
        lower = id_.lower()
        if draft.row is None:
            alike = crossed[lower] > 1
        else:
            alike = draft.row.id is None and (made[lower] > 1 or lower in crossed or lower in own)
        ids.append(_with_suffix(id_, draft, vocabulary) if alike else id_)
    return ids


def _plain_id(draft: Draft, names: Collection[str], vocabulary: Vocabulary) -> str:
    if draft.row and draft.row.id:
        return str(draft.row.id.value)
    own = draft.row.settings.keys() if draft.row else frozenset()
    silent = vocabulary.silent(draft.values)
    shown = [name for name in vocabulary.built_in if (name in names or name in own) and name not in silent]
    parts = [part for name in shown if (part := _part(name, draft.values[name], vocabulary))]
    absent = vocabulary.absent
    text = "-".join(parts or [absent[name] for name in shown if name in absent]) or vocabulary.noun
    return text if len(text) <= LONGEST_ID else _with_suffix(text, draft, vocabulary)


@lru_cache(maxsize=4096)
def _part(name: str, value: Any, vocabulary: Vocabulary) -> str:
    value = value.raw if isinstance(value, Unreadable) else value
    part = vocabulary.parts.get(name)
    text = part(value) if part else f"{name}={'none' if value is None else written(value)}"
    # An id begins with none of these, so that it is neither a hidden file nor an option.
    return _UNSAFE.sub("_", text).lstrip(".-+=")


def _with_suffix(text: str, draft: Draft, vocabulary: Vocabulary) -> str:
    return f"{text[: LONGEST_ID - _SUFFIX_DIGITS - 1]}-{key_of(draft.values, vocabulary)[:_SUFFIX_DIGITS]}"
