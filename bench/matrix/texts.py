"""Checks what a type cannot tell of a text: whether there is such a model or task, and whether a layer has a size."""

from __future__ import annotations

import os
import re

from bench.matrix.kernel_parameters import LARGEST_DIMENSION, dimensions_of
from bench.matrix.models import PACKAGED_MODEL, SHAPES, is_known
from bench.matrix.tasks import FILES, TASKS
from bench.matrix.values import Mistake
from bench.matrix.wording import closest, described, listing, quoted

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_OUT_BY_IN_LIKE = re.compile(r"([0-9]+)\s*[x\u00d7*]\s*([0-9]+)", re.IGNORECASE)


def check_model(name: str) -> str:
    """Return the name of a model that is known by it, is a folder, or may be on the hub; raise `Mistake` otherwise."""
    folder = os.path.expanduser(name)  # noqa: PTH111
    if is_known(name) or os.path.isdir(folder) or _HUB_ID.fullmatch(name):  # noqa: PTH112 - never raises, whatever the text
        return name
    known = [PACKAGED_MODEL, *(shape for shape in SHAPES if shape != PACKAGED_MODEL)]
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        raise Mistake(f"there is no folder {quoted(name)}", "give its path from the folder you are in, or a hub id")
    near = closest(name, known)
    fix = f"did you mean {near}?" if near else f"the short names are {listing(known, 'and')}."
    raise Mistake(f"there is no model {quoted(name)}", f"{fix} A model of the hub is written owner/name")


def check_task(name: str) -> str:
    """Return the name of a task that is known by it, or is a folder with its files; raise `Mistake` otherwise."""
    if name in TASKS:
        return name
    folder = os.path.expanduser(name)  # noqa: PTH111
    if os.path.isdir(folder):  # noqa: PTH112
        missing = [file for file in FILES if not os.path.isfile(os.path.join(folder, file))]  # noqa: PTH113, PTH118
        if missing:
            what = f"the folder {quoted(name)} holds no {listing(missing, 'and no')}"
            raise Mistake(what, "a task is a folder with train.csv and test.csv, each with the columns text and label")
        return name
    near = closest(name, TASKS)
    known = f"{', '.join(TASKS)}, or a folder with {listing(FILES, 'and')}"
    fix = f"did you mean {near}?" if near else f"write {known}"
    raise Mistake(f"there is no task {quoted(name)}", fix)


def check_layer(layer: str) -> str:
    """Return the name of a layer, which only a model can tell, or its size; raise `Mistake` if that is none."""
    match = _OUT_BY_IN_LIKE.fullmatch(layer)
    if match is None:
        return layer
    try:
        dimensions = dimensions_of("x".join(match.groups()))
    except ValueError:
        what = f"layer takes OUTxIN with both from 1 to {LARGEST_DIMENSION}, not {described(layer)}"
        raise Mistake(what, "write both, as in 4096x11008") from None
    plain = "x".join(map(str, dimensions or ()))
    if layer != plain:
        raise Mistake(f"layer takes the name of a layer, or OUTxIN, not {described(layer)}", f"write {plain}")
    return layer
