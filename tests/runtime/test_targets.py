"""GPU targets as plain data."""

from types import SimpleNamespace

import pytest
import torch

from triton_dirac.runtime.targets import GPUS, INTERPRETER, TARGETS, listed, target_of


@pytest.mark.parametrize(
    "name, wanted, given",
    [
        ("cuda:80", "tf32x3", "tf32x3"),
        ("hip:gfx942", "tf32", "tf32"),
        ("hip:gfx942", "tf32x3", "ieee"),
        ("hip:gfx950", "tf32", "ieee"),
        ("hip:gfx950", "ieee", "ieee"),
    ],
)
def test_a_precision_that_the_target_lacks_becomes_ieee(name, wanted, given):
    assert TARGETS[name].precision(wanted) == given


def test_names_are_taken_apart_as_tritons_gputarget_wants_them():
    assert (TARGETS["cuda:90"].backend, TARGETS["cuda:90"].arch) == ("cuda", 90)
    assert (TARGETS["hip:gfx942"].backend, TARGETS["hip:gfx942"].arch) == ("hip", "gfx942")


def test_without_a_gpu_the_interpreters_target_is_given():
    assert target_of(torch.device("cpu")) is INTERPRETER


@pytest.mark.parametrize(
    "name, device, like",
    [
        ("cuda:90", "NVIDIA H100 80GB HBM3", "H100"),
        ("cuda:90", "NVIDIA H200", "H200"),
        ("cuda:89", "NVIDIA L4", "L4"),
        ("cuda:89", "NVIDIA L40S", "L4"),
        ("cuda:89", "NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("cuda:86", "NVIDIA A10", "A100"),
        ("cuda:121", "NVIDIA GB10", "A100"),
        ("cuda:103", "NVIDIA B300", "B200"),
        ("hip:gfx942", "AMD Instinct MI300X", "MI300X"),
        ("hip:gfx90a", "AMD Instinct MI250X", "MI300X"),
    ],
)
def test_an_unlisted_gpu_has_the_rates_of_its_nearest_relative(name, device, like):
    assert listed(name, device).gpu == like


def test_a_device_is_described_by_itself_and_rated_as_its_model(monkeypatch):
    properties = SimpleNamespace(
        name="NVIDIA L4", major=8, minor=9, multi_processor_count=57, shared_memory_per_block_optin=101376
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", None)
    target = target_of.__wrapped__(torch.device("cuda", 0))
    assert (target.name, target.gpu, target.units, target.shared_bytes) == ("cuda:89", "NVIDIA L4", 57, 101376)
    assert (target.multiply_adds, target.memory_bytes) == (512, 2.5)


def test_a_target_is_the_first_listed_of_its_name():
    assert [TARGETS[name].gpu for name in ("cuda:89", "cuda:90")] == ["L4", "H100"]
    assert {gpu.name for gpu in GPUS} == set(TARGETS)


# teraFLOP/s of dense 16-bit products summed in float32, GB/s, boost clock in GHz: the datasheets that targets.py names.
DATASHEETS = {
    "A100": (312, 1555, 1.41),
    "L4": (121, 300, 2.04),
    "RTX 4090": (165, 1008, 2.52),
    "H100": (989, 3350, 1.83),
    "H200": (989, 4800, 1.83),
    "B200": (2250, 8000, 1.85),
    "RTX 5090": (209.5, 1792, 2.41),
    "MI300X": (1307, 5300, 2.1),
    "MI355X": (2517, 8000, 2.4),
}


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.gpu)
def test_rates_are_the_datasheets(gpu):
    assert gpu.gpu in DATASHEETS, f"DATASHEETS has no row for {gpu.gpu}: add (teraFLOP/s, GB/s, GHz)"
    teraflops, gigabytes, gigahertz = DATASHEETS[gpu.gpu]
    clocks = gpu.units * gigahertz * 1e9
    assert gpu.multiply_adds == pytest.approx(teraflops * 1e12 / 2 / clocks, rel=0.01)
    assert gpu.memory_bytes == pytest.approx(gigabytes * 1e9 / clocks, rel=0.02)
