from __future__ import annotations

from bench.matrix.explain import ParameterRow, rows
from bench.matrix.kernel_parameters import KernelParameters
from bench.matrix.kernel_vocabulary import KERNELS
from bench.matrix.parameters import Parameters


def test_every_parameter_is_listed_with_what_it_takes() -> None:
    listed = {row.name: row for row in rows()}
    assert list(listed) == list(Parameters.model_fields)
    assert all(row.type and row.default and row.about for row in listed.values())
    assert listed["quant_type"] == ParameterRow(
        "quant_type", "nf4 | fp4 | int8 | none", "nf4", "data type of the base's weights"
    )
    assert (listed["double_quant"].type, listed["double_quant"].default) == ("true | false", "true with nf4 and fp4")
    assert (listed["lora_r"].type, listed["lora_r"].default) == ("whole number > 0", "16")
    assert (listed["max_steps"].type, listed["max_steps"].default) == ("whole number > 0 | none", "none")
    assert (listed["seed_offset"].type, listed["seed_offset"].default) == ("whole number from 0 to 4294967295", "0")
    assert listed["lora_dropout"].type == "number from 0 to below 1"
    assert listed["target_modules"].type == "all-linear | attention | mlp | [module names]"
    assert listed["vram_limit"].type == "none | bytes | 16GB | 14.5GiB | card"
    assert listed["task"].type == "banking77 | intents | folder"


def test_the_parameters_of_kernels_are_listed_by_themselves() -> None:
    listed = {row.name: row for row in rows(KERNELS)}
    assert list(listed) == list(KernelParameters.model_fields)
    assert all(row.about for row in listed.values())
    assert {name: (row.type, row.default) for name, row in listed.items()} == {
        "operation": ("forward | forward_backward | quantize | dequantize", "forward"),
        "model": ("name | owner/name | folder", "qwen2.5-7b"),
        "layer": ("name | OUTxIN", "q_proj"),
        "quant_type": ("nf4 | fp4 | int8 | none", "nf4"),
        "double_quant": ("true | false", "true with nf4 and fp4"),
        "compute_dtype": ("bfloat16 | float16 | float32", "bfloat16"),
        "rows": ("whole number > 0", "512"),
        "lora_r": ("whole number >= 0", "0"),
    }
