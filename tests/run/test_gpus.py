from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench.errors import BenchError
from bench.run.gpus import Gpu, parse_gpus, visible_gpus
from bench.run.slots import Slot, slots_for

UUIDS = ("GPU-aa11", "GPU-ab22", "GPU-cc33")
MIG = "MIG-dd44"
GPUS = tuple(Gpu(n, str(n), "NVIDIA L4", 24_000_000_000, "580.1", uuid) for n, uuid in enumerate(UUIDS))


class NvmlError(Exception):
    pass


class Nvml:
    """NVML of a machine with three GPUs; a part of one is known by its UUID only."""

    NVMLError = NvmlError

    def __init__(self, broken: str | None = None) -> None:
        self.broken = broken
        self.open = 0

    def _call(self, name: str) -> None:
        if name == self.broken:
            raise NvmlError(name)

    def nvmlInit(self):  # noqa: N802
        self._call("init")
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        self._call("count")
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return UUIDS[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid != MIG:
            raise NvmlError(uuid)
        return MIG

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return handle

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return "NVIDIA L4"

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(total=24_000_000_000)

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.1"


@pytest.fixture
def nvml(monkeypatch):
    driver = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    return driver


def test_all_gpus_are_visible_where_nothing_hides_them(nvml):
    assert visible_gpus({}) == GPUS
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("variable", "devices", "uuids"),
    [
        ("2,0", ["2", "0"], ["GPU-cc33", "GPU-aa11"]),
        (" 1 , 2 ", ["1", "2"], ["GPU-ab22", "GPU-cc33"]),
        ("GPU-cc33,1", ["GPU-cc33", "1"], ["GPU-cc33", "GPU-ab22"]),
        ("GPU-ab", ["GPU-ab"], ["GPU-ab22"]),
        (MIG, [MIG], [MIG]),
        ("0,7,1", ["0"], ["GPU-aa11"]),  # as CUDA: what names no GPU hides all that follow
        ("GPU-a", [], []),  # two begin like that
        ("", [], []),
        ("-1", [], []),
        ("MIG-none", [], []),
    ],
)
def test_cuda_visible_devices_chooses_and_orders(nvml, variable, devices, uuids):
    gpus = visible_gpus({"CUDA_VISIBLE_DEVICES": variable})
    assert [gpu.device for gpu in gpus] == devices
    assert [gpu.uuid for gpu in gpus] == uuids
    assert [gpu.index for gpu in gpus] == list(range(len(gpus)))


@pytest.mark.parametrize("broken", ["init", "count"])
def test_a_driver_that_does_not_work_is_no_gpu_and_no_noise(monkeypatch, capfd, broken):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(broken))
    assert visible_gpus({}) == ()
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert visible_gpus({}) == ()


def test_what_this_machine_really_has_is_found_without_noise():
    code = "from bench.run.gpus import visible_gpus; visible_gpus()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize(
    ("text", "indexes"), [("all", [0, 1, 2]), ("none", []), ("0", [0]), ("2,0", [2, 0]), (" 1 , 2 ", [1, 2])]
)
def test_gpus_are_chosen_by_number(text, indexes):
    assert [gpu.index for gpu in parse_gpus(text, GPUS)] == indexes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", r"GPU 3 does not exist; visible: 0 \(NVIDIA L4\), 1 \(NVIDIA L4\), 2 \(NVIDIA L4\)"),
        ("0,x", "'x' is no number of a GPU; write all, none, or numbers"),
        ("", "'' is no number"),
        ("0,", "'' is no number"),
        ("-1", "'-1' is no number"),
        ("²", "'²' is no number"),
        ("0,0", "names a GPU twice"),
    ],
)
def test_a_wrong_choice_is_explained(text, message):
    with pytest.raises(BenchError, match=message):
        parse_gpus(text, GPUS)


def test_a_gpu_where_there_is_none_is_explained():
    with pytest.raises(BenchError, match="GPU 0 does not exist; visible: none; --gpus none runs on the CPU"):
        parse_gpus("0", ())


def test_each_gpu_is_a_slot_and_without_one_the_cpu_is():
    assert slots_for(GPUS[1:]) == (Slot("gpu1", GPUS[1]), Slot("gpu2", GPUS[2]))
    assert [slot.device for slot in slots_for(GPUS)] == ["cuda"] * 3
    assert slots_for(()) == (Slot("cpu"),)
    assert slots_for(())[0].device == "cpu"
