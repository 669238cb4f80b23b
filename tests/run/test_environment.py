from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version

from bench.run import environment
from bench.run.environment import machine_facts, slot_facts
from bench.run.gpus import Gpu
from bench.run.slots import Slot


def test_the_machine_is_described_by_what_json_can_hold():
    facts = machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["transformers"] == version("transformers")
    assert facts["python"].count(".") == 2
    assert facts["cpu"]
    assert 1 <= facts["cores_count"] <= os.cpu_count()
    assert facts["ram_bytes"] > 2**28


def test_a_package_that_is_missing_is_null(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package-anywhere",))
    assert machine_facts()["no-such-package-anywhere"] is None


def test_a_slot_is_described_by_its_gpu():
    gpu = Gpu(0, "0", "NVIDIA L4", 24_000_000_000, "580.1", "GPU-1")
    facts = {
        "gpu_name": "NVIDIA L4",
        "gpu_memory_bytes": 24_000_000_000,
        "driver_version": "580.1",
    }
    assert slot_facts(Slot("gpu0", gpu)) == facts
    assert slot_facts(Slot("cpu")) == dict.fromkeys(facts)


def test_no_run_imports_torch():
    code = "import sys, bench.run.engine, bench.run.display; print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
