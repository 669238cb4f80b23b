"""Names cells: an id for people, from the axes that vary, and a key for records, from every parameter."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from bench.matrix.cross import BUILT_IN, Draft
from bench.matrix.parameters import LATER
from bench.matrix.rows import LONGEST_ID, Setting
from bench.matrix.values import Unreadable
from bench.matrix.wording import written
from bench.protocol import PROTOCOL_VERSION

_KEY_DIGITS = 16
_SUFFIX_DIGITS = 8
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=-]+")

# The part of an id that stands for a value; parameters that are not here write name=value.
_PARTS: dict[str, Callable[[Any], str]] = {
    "model": lambda value: re.split(r"[/\\]", value.rstrip("/\\"))[-1],
    "quant_type": str,
    "double_quant": lambda value: "dq" if value is True else "",
    "compute_dtype": lambda value: _DTYPES.get(value, value),
    "load_dtype": lambda value: "load-" + _DTYPES.get(value, value),
    "target_modules": lambda value: value if isinstance(value, str) else "+".join(value),
    "lora_r": lambda value: f"r{value}",
    "lora_alpha": lambda value: f"a{value}",
    "kbit_upcast": lambda value: "upcast" if value is True else "no-upcast",
    "gradient_checkpointing": lambda value: "ckpt" if value is True else "",
    "optim": str,
    "learning_rate": lambda value: f"lr{written(value)}",
    "batch_size": lambda value: f"bs{value}",
    "max_length": lambda value: f"len{value}",
    "task": lambda value: "task=" + re.split(r"[/\\]", value.rstrip("/\\"))[-1],
    "vram_limit": lambda value: "vram-" + ("none" if value is None else str(value).lower().replace(" ", "-")),
}
# What stands for false where the id would otherwise be empty.
_ABSENT = {"double_quant": "no-dq", "gradient_checkpointing": "no-ckpt"}


def key_of(values: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits for a value of every parameter: the same in every file, whatever its order.

    Parameters in `LATER` count only where they differ from their default.
    """
    counting = {name: value for name, value in values.items() if name not in LATER or value != BUILT_IN[name]}
    content = {"parameters": counting, "protocol": PROTOCOL_VERSION}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def varying(axes: Mapping[str, Sequence[Setting]]) -> frozenset[str]:
    """Return the axes that an id names: those with more than one value, or all of them if no axis has more."""
    return frozenset(name for name, settings in axes.items() if len(settings) > 1) or frozenset(axes)


def ids_of(drafts: Sequence[Draft], names: Collection[str]) -> list[str]:
    """Return an id for each draft: the row's own, or one made of the parameters in `names` and those the row sets.

    Made ids that would be alike end in eight digits of their keys. A row's own id is left as it is, even where it is
    another cell's too.
    """
    plain = [_plain_id(draft, names) for draft in drafts]
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
        ids.append(_with_suffix(id_, draft) if alike else id_)
    return ids


def _plain_id(draft: Draft, names: Collection[str]) -> str:
    if draft.row and draft.row.id:
        return str(draft.row.id.value)
    own = draft.row.settings.keys() if draft.row else frozenset()
    shown = [name for name in BUILT_IN if name in names or name in own]
    parts = [part for name in shown if (part := _part(name, draft.values[name]))]
    text = "-".join(parts or [_ABSENT[name] for name in shown if name in _ABSENT]) or "cell"
    return text if len(text) <= LONGEST_ID else _with_suffix(text, draft)


@lru_cache(maxsize=4096)
def _part(name: str, value: Any) -> str:
    value = value.raw if isinstance(value, Unreadable) else value
    text = _PARTS[name](value) if name in _PARTS else f"{name}={'none' if value is None else written(value)}"
    # An id begins with none of these, so that it is neither a hidden file nor an option.
    return _UNSAFE.sub("_", text).lstrip(".-+=")


def _with_suffix(text: str, draft: Draft) -> str:
    return f"{text[: LONGEST_ID - _SUFFIX_DIGITS - 1]}-{key_of(draft.values)[:_SUFFIX_DIGITS]}"
