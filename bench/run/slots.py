"""Where workers run: one at a time on each slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.protocol import Device
from bench.run.gpus import Gpu


@dataclass(frozen=True)
class Slot:
    """A place for one worker: a GPU, or the CPU where `gpu` is None. `name` is `gpu0`, `gpu1`, … or `cpu`."""

    name: str
    gpu: Gpu | None = None

    @property
    def device(self) -> Device:
        return "cuda" if self.gpu else "cpu"


def slots_for(gpus: Sequence[Gpu]) -> tuple[Slot, ...]:
    """Return a slot for each GPU, or the CPU's one where there is none."""
    return tuple(Slot(f"gpu{gpu.index}", gpu) for gpu in gpus) or (Slot("cpu"),)
