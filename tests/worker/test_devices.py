"""worker/devices.py: what each kind of device can do, with devices that this machine hasn't got.

Run: pytest tests/worker/test_devices.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_preset import write_preset
from torch.utils._python_dispatch import TorchDispatchMode

from lgm_blender.core.errors import LGMError
from lgm_blender.core.messages import DEVICES, GenerateRequest
from lgm_blender.worker import devices, meshing
from lgm_blender.worker.devices import CPU, CUDA, MPS, ROCM, device_of, resolve_device
from lgm_blender.worker.pipeline import Pipeline
from lgm_blender.worker.weights import CheckedFiles


@pytest.fixture
def mac(monkeypatch):
    """A Mac with a GPU: its torch computes on the CPU what it is told to compute there."""
    calls = []
    module = SimpleNamespace(
        synchronize=lambda: calls.append("synchronize"),
        empty_cache=lambda: calls.append("empty_cache"),
        recommended_max_memory=lambda: 12 << 30,
        driver_allocated_memory=lambda: 4 << 30,
        device_count=lambda: 1,
    )
    to = torch.Tensor.to
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch, "mps", module)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where: to(self, *("cpu" if w == "mps" else w for w in where)))
    devices.mps_problem.cache_clear()
    devices.cuda_problem.cache_clear()
    yield calls
    devices.mps_problem.cache_clear()
    devices.cuda_problem.cache_clear()


def test_a_mac_takes_its_gpu(mac):
    assert [resolve_device(name) for name in ("auto", "mps", "cpu")] == ["mps", "mps", "cpu"]
    with pytest.raises(LGMError, match=r"'cuda' can't be used.*Choose 'auto' or 'cpu'"):
        resolve_device("cuda")
    assert devices.device_name("mps") == "Apple GPU"
    assert devices.gpu_count("mps") == 1
    assert MPS.memory() == (8 << 30, 12 << 30)
    assert devices.devices_in_use() == [MPS]
    for device in devices.devices_in_use():
        device.synchronize()
        device.empty_cache()
    assert mac == ["synchronize", "empty_cache"]


def test_a_gpu_that_computes_wrong_numbers_is_not_taken(mac, monkeypatch):
    right = torch.nn.functional.group_norm
    numbers = iter(range(10))
    wrong = lambda x, groups: right(x, groups) + (0.1 if next(numbers) else 0)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "group_norm", wrong)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(LGMError, match="the GPU computes wrong numbers"):
        resolve_device("mps")


def test_a_device_that_is_not_there_is_told():
    with pytest.raises(LGMError, match=r"this is no Mac\. Choose 'auto' or 'cpu'"):
        resolve_device("mps")
    with pytest.raises(LGMError, match=r"no device 'tpu'\. Choose auto, cpu, cuda or mps"):
        resolve_device("tpu")
    assert DEVICES == ("auto", "cpu", "cuda", "mps")


def test_amd_goes_by_the_name_of_cuda(monkeypatch):
    assert device_of("cuda:1") is CUDA
    monkeypatch.setattr(torch.version, "hip", "7.2", raising=False)
    assert device_of(torch.device("cuda", 0)) is ROCM
    assert (ROCM.name, ROCM.gsplat, ROCM.label) == ("cuda", False, "AMD GPU")
    assert (device_of("cpu"), device_of(torch.device("mps"))) == (CPU, MPS)


def test_what_each_computes_in():
    assert [device.dtype for device in (CPU, CUDA, ROCM, MPS)] == [
        torch.float32,
        torch.float16,
        torch.float16,
        torch.float32,
    ]
    assert CPU.memory() is None
    assert [device.sizes for device in (CPU, CUDA, MPS)] == ["cpu", "cuda", "cpu"]


@pytest.mark.parametrize(
    ("variable", "ours", "users"), [("PYTORCH_ENABLE_MPS_FALLBACK", "1", "0"), ("OMP_WAIT_POLICY", "PASSIVE", "ACTIVE")]
)
def test_what_torch_reads_when_it_is_imported(variable, ours, users):
    """The variable must be there before torch is, and the user's own word counts."""
    code = f"import sys, os, lgm_blender.worker; print(os.environ['{variable}'], 'torch' in sys.modules)"
    variables = {name: value for name, value in os.environ.items() if name != variable}
    for more, said in (({}, f"{ours} False"), ({variable: users}, f"{users} False")):
        answer = subprocess.run([sys.executable, "-c", code], env=variables | more, capture_output=True, text=True)
        assert answer.stdout.strip() == said


@pytest.mark.parametrize(
    ("said", "full"),
    [
        ("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA", False),
        ("CUDA error: unspecified launch failure", False),
        ("HIP error: invalid device function", False),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx", False),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
        ("MPS backend out of memory (MPS allocated: 4.00 GB)", True),
        ("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried", True),
        ("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you", True),
    ],
)
def test_errors_of_full_memory_and_of_a_lost_gpu(said, full):
    sick, memory = devices.explain_sick_gpu(RuntimeError(said)), devices.explain_out_of_memory(RuntimeError(said))
    assert (memory is not None, sick is not None) == (full, not full)
    if sick:
        assert sick.startswith(f"The GPU failed ({said.splitlines()[0]}), and its worker was ended. Try again")


def test_other_errors_are_neither():
    for error in (ValueError("CUDA error"), RuntimeError("shapes differ"), LGMError("The GPU is blue. Paint it.")):
        assert devices.explain_sick_gpu(error) is None
        assert devices.explain_out_of_memory(error) is None


class DoublePrecision(TorchDispatchMode):
    """Writes down in which functions of the package a tensor is in double precision."""

    def __init__(self):
        super().__init__()
        self.functions = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if any(isinstance(part, torch.Tensor) and part.dtype == torch.float64 for part in (*args, made)):
            stack = [f"{Path(frame.filename).name} {frame.name}" for frame in traceback.extract_stack(limit=30)]
            self.functions.add(" ".join(name for name in stack if name.startswith("topology.py")) or stack[-3])
        return made


def test_models_and_meshing_do_without_double_precision(tmp_path, monkeypatch):
    """But for decimation, which a device without it leaves to the CPU."""
    monkeypatch.setitem(meshing.EFFORT, "cpu", (8, 48, 48))
    preset = write_preset(tmp_path / "tiny")
    request = GenerateRequest(
        *("j", str(tmp_path / "out")), prompt="x", preset=str(preset), output_kind="both", faces=200, texture_size=512
    )
    with DoublePrecision() as seen:
        Pipeline(None, CheckedFiles(tmp_path / "checked.json")).generate(replace(request, device="cpu", quads=True))
    assert seen.functions
    assert all(name.startswith("topology.py decimate") for name in seen.functions), seen.functions


def test_nobody_else_asks_what_a_device_is_called():
    """What devices can do is decided in one place."""
    folder = Path(devices.__file__).parent
    asking = re.compile(r"(\.type [!=]= |is_cuda\b)")
    found = [
        f"{path.name}: {line.strip()}"
        for path in folder.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if asking.search(line) and path.name not in ("devices.py", "threads.py")
    ]
    assert found == []
