"""What every part of `benchmarks.large_shape` is told; checked before any is run, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError
from bench.matrix.parameters import MEANINGLESS, Parameters
from bench.protocol import Device

SEED = 0
WARMUP_STEPS = 3
PAD_MULTIPLE = 8  # as in bench.cell.encoding, which would take torch with it

# A block of steps with the meters on, one with them off, and the same in reverse, so that a drift cancels out.
ROUND = (True, False, False, True)
BLOCK_STEPS = 4


@dataclass(frozen=True)
class Settings:
    """The settings of all parts. `steps` are timed, after `WARMUP_STEPS` that are not."""

    parameters: Mapping[str, Any]
    device: Device
    steps: int
    meter_rounds: int

    @property
    def metered_steps(self) -> int:
        return self.meter_rounds * len(ROUND) * BLOCK_STEPS

    def cell(self, steps: int) -> Parameters:
        return Parameters.model_validate({**self.parameters, "max_steps": steps})


def settings_of(device: Device, steps: int, meter_rounds: int, **given: Any) -> Settings:
    """Check what the user asks for.

    Raises:
        BenchError: the parameters do not go together, or a sequence would need padding.
    """
    length = given["max_length"]
    if length % PAD_MULTIPLE:
        fix = f"take {length + PAD_MULTIPLE - length % PAD_MULTIPLE}"
        raise BenchError(f"--max-length: {length} is no multiple of {PAD_MULTIPLE}, to which batches are padded", fix)
    parameters = Parameters(
        **{name: value for name, value in given.items() if value is not None},
        weights="random",
        compute_dtype="bfloat16",
        lora_r=16,
        target_modules="all-linear",
        gradient_checkpointing=True,
        execution="eager",
    )
    for rule in MEANINGLESS:
        if rule.broken(parameters):
            raise BenchError(rule.what, rule.fix)
    return Settings(parameters.model_dump(mode="json"), device, steps, meter_rounds)
