"""Where the models run: which device there is, what each kind can do, and what its errors mean.

torch is imported only where a GPU may be, so that a machine without one waits for nothing.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from ..core.environment import has_nvidia_gpu
from ..core.errors import LGMError
from ..core.messages import DEVICES

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What one kind of device can do.

    Attributes:
        name: What requests and torch call it.
        label: What users call it.
        half: Whether the models are computed in fp16 there; elsewhere in fp32.
        channels_last: Whether convolutions want a picture's channels last in memory.
        graphs: Whether it replays CUDA graphs.
        gsplat: Whether gsplat can be compiled for it.
        float64: Whether it computes in double precision.
        sizes: Whose sizes it takes, where a table says how much is worked on at once: large on a GPU with a memory of
            its own, small where a cache or a window that shares the memory is to be spared.
    """

    name: Literal["cpu", "cuda", "mps"]
    label: str
    half: bool = False
    channels_last: bool = False
    graphs: bool = False
    gsplat: bool = False
    float64: bool = True
    sizes: Literal["cpu", "cuda"] = "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """What the models are computed in."""
        import torch

        return torch.float16 if self.half else torch.float32

    @property
    def module(self) -> Any:
        """torch's functions for this kind, or None: torch.cuda, torch.mps."""
        import torch

        return None if self.name == "cpu" else getattr(torch, self.name)

    def synchronize(self) -> None:
        """Waits until it has done all that it was asked to."""
        if self.module:
            self.module.synchronize()

    def empty_cache(self) -> None:
        """Gives freed memory back to other programs."""
        if self.module:
            self.module.empty_cache()

    def memory(self) -> tuple[int, int] | None:
        """Bytes of its own memory that are free and that there are; None on a CPU, and where it does not answer."""
        try:
            if self.name == "cuda":
                return self.module.mem_get_info()
            if self.name == "mps":
                total = self.module.recommended_max_memory()
                return total - self.module.driver_allocated_memory(), total
        except (RuntimeError, AssertionError):
            pass
        return None

    def called(self) -> str:
        """Its own name: 'NVIDIA H100 80GB HBM3', say; 'cpu' for a CPU."""
        return self.module.get_device_name() if self.name == "cuda" else self.label


CPU = Device("cpu", "cpu")
CUDA = Device("cuda", "NVIDIA GPU", half=True, channels_last=True, graphs=True, gsplat=True, sizes="cuda")
# torch calls AMD's GPUs cuda too. Graphs are left out: nobody has tried them with this package.
ROCM = replace(CUDA, label="AMD GPU", graphs=False, gsplat=False)
# In fp32, since nobody has tried fp16 with this package: Stable Diffusion 2.1, which the multi-view models come from,
# is known to overflow there. What it lacks is computed on the CPU: see worker/__init__.py.
MPS = Device("mps", "Apple GPU", float64=False)


def device_of(device: str | torch.device) -> Device:
    """What a device can do, by torch's name for it; 'cuda:1' is as good as 'cuda'."""
    kind = str(device).partition(":")[0]
    if kind == "cuda":
        import torch

        return ROCM if torch.version.hip else CUDA
    return MPS if kind == "mps" else CPU


def resolve_device(name: str) -> str:
    """'cuda', 'mps' or 'cpu' for one of `messages.DEVICES`; 'auto' is the GPU, if there is one that computes right.

    Raises:
        LGMError: If the one that was asked for can't be had, or there is none of that name.
    """
    if name not in DEVICES:
        raise LGMError(f"There is no device '{name}'. Choose {', '.join(DEVICES[:-1])} or {DEVICES[-1]}.")
    wanted = ("mps" if _is_mac() else "cuda") if name == "auto" else name
    problem = {"cpu": lambda: "", "cuda": cuda_problem, "mps": mps_problem}[wanted]()
    if problem and name != "auto":
        raise LGMError(f"The device '{name}' can't be used: {problem}. Choose 'auto' or 'cpu'.")
    return "cpu" if problem else wanted


@cache
def cuda_problem() -> str:
    """Why CUDA can't be used here, or '' if it can.

    A GPU that torch sees may still be too old for this torch, or its driver; only trying tells. torch is not even
    imported where there is no NVIDIA GPU.
    """
    build = _torch_build()
    if "+cpu" in build or _is_mac():
        return "the installed torch is one without CUDA"
    if "+rocm" not in build and not has_nvidia_gpu():  # AMD's GPUs go by the name of CUDA too
        return "there is no NVIDIA GPU, or its driver does not answer"
    return _trial("cuda", "torch sees no usable NVIDIA GPU")


@cache
def mps_problem() -> str:
    """Why Apple's GPU can't be used here, or '' if it can."""
    _torch_build()
    if not _is_mac():
        return "this is no Mac"
    return _trial("mps", "torch sees no GPU that Metal can use")


def _is_mac() -> bool:
    return sys.platform == "darwin"


def _torch_build() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        raise LGMError("The worker's Python has no torch. Install the worker again.", "worker") from None


def _trial(name: str, absent: str) -> str:
    """Why a GPU can't be used, by trying it; `absent` is what to say where torch sees none."""
    try:
        import torch

        there = torch.cuda if name == "cuda" else torch.backends.mps
        if not there.is_available():
            return absent
        if not _computes_right(name):
            return "the GPU computes wrong numbers"
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        log.warning("%s can't be used: %s", name, error)
        return f"trying it failed ({str(error).splitlines()[0]})" if str(error) else "trying it failed"
    return ""


def _computes_right(name: str) -> bool:
    """Whether a layer of each kind that the models are made of gives what the CPU gives."""
    import torch
    import torch.nn.functional as F

    if name == "cuda":
        return (torch.ones(8, device=name) * 2).sum().item() == 16
    values = torch.arange(2 * 32 * 8 * 8, dtype=torch.float32).sin().view(2, 32, 8, 8)
    kernel = torch.arange(32 * 32 * 9, dtype=torch.float32).cos().view(32, 32, 3, 3) / 17

    def layers(device: str) -> torch.Tensor:
        x = F.silu(F.group_norm(F.conv2d(values.to(device), kernel.to(device), padding=1), 8))
        tokens = x.flatten(2).mT
        x = F.scaled_dot_product_attention(tokens, tokens, tokens).mT.unflatten(2, (8, 8))
        return F.interpolate(x, scale_factor=2, mode="bilinear").cpu()

    return torch.allclose(layers("cpu"), layers(name), atol=1e-3)


def gpu_count(device: str) -> int:
    """How many GPUs a worker may choose from; 0 on a CPU."""
    if device == "cpu":
        return 0
    module = device_of(device).module
    return module.device_count() if hasattr(module, "device_count") else 1


def device_name(device: str) -> str:
    """'cpu', or the GPU's name."""
    return device_of(device).called()


def devices_in_use() -> list[Device]:
    """The GPUs that this process has begun to use. May be asked while another thread is importing torch."""
    torch = sys.modules.get("torch")
    ask = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    used = [device_of("cuda")] if ask is not None and ask() else []
    return [*used, MPS] if mps_problem.cache_info().currsize and not mps_problem() else used


# ------------------------------------------------------------------------------------------------ what errors mean

# Where another program fills the memory, CUDA itself and its libraries may be the first that get none.
_FULL_GPU = (
    *("CUDA error: out of memory", "HIP error: out of memory", "MPS backend out of memory"),
    "STATUS_ALLOC_FAILED",
)
_FULL_COMPUTER = ("can't allocate memory", "DefaultCPUAllocator: not enough memory")  # Linux and macOS, Windows
_SICK = ("CUDA error", "HIP error", "CUDNN_STATUS_", "CUBLAS_STATUS_", "CUSOLVER_STATUS_", "CUFFT_")


def explain_out_of_memory(error: BaseException) -> str | None:
    """A sentence for the user if `error` says that memory is full, else None."""
    torch = sys.modules.get("torch")
    said = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, getattr(torch, "OutOfMemoryError", ())) or any(words in said for words in _FULL_GPU):
        memory = device_of("mps" if "MPS" in said else "cuda").memory()
        size = f" ({memory[1] / 2**30:.0f} GB)" if memory else ""
        return (
            f"The GPU's memory{size} is full. Close other programs that use the GPU, choose the preset 'mini', or "
            "choose the device 'cpu'."
        )
    if isinstance(error, MemoryError) or any(words in said for words in _FULL_COMPUTER):
        return "The computer's memory is full. Close other programs, or choose the preset 'mini'."
    return None


def explain_sick_gpu(error: BaseException) -> str | None:
    """A sentence for the user if `error` says that the GPU can't be used any more by this process, else None.

    After any error but full memory CUDA's context is lost: every later call fails too, whatever it asks for.
    """
    torch = sys.modules.get("torch")
    said = str(error)
    lost = isinstance(error, getattr(torch, "AcceleratorError", ())) or (
        isinstance(error, RuntimeError) and any(words in said for words in _SICK)
    )
    if not lost or explain_out_of_memory(error) is not None:
        return None
    what = said.splitlines()[0].rstrip(".") if said else type(error).__name__
    return (
        f"The GPU failed ({what}), and its worker was ended. Try again, with a new one; if it fails again, update the "
        "graphics driver or choose the device 'cpu'."
    )
