"""Where the models run: which device there is, what it is called, and what to do when its memory is full."""

from __future__ import annotations

import logging
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from ..core.environment import has_nvidia_gpu
from ..core.errors import LGMError

log = logging.getLogger(__name__)


@cache
def cuda_problem() -> str:
    """Why CUDA can't be used here, or '' if it can.

    A GPU that torch sees may still be too old for this torch, or its driver; only trying tells. torch is not even
    imported where there is no NVIDIA GPU.
    """
    try:
        build = version("torch")
    except PackageNotFoundError:
        raise LGMError("The worker's Python has no torch. Install the worker again.", "worker") from None
    if "+cpu" in build or sys.platform == "darwin":
        return "the installed torch is one without CUDA"
    if "+rocm" not in build and not has_nvidia_gpu():  # AMD's GPUs go by the name of CUDA too
        return "there is no NVIDIA GPU, or its driver does not answer"
    try:
        import torch

        if not torch.cuda.is_available():
            return "torch sees no usable NVIDIA GPU"
        if (torch.ones(8, device="cuda") * 2).sum().item() != 16:
            return "the GPU computes wrong numbers"
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        log.warning("CUDA can't be used: %s", error)
        return f"trying it failed ({str(error).splitlines()[0]})" if str(error) else "trying it failed"
    return ""


def resolve_device(name: str) -> str:
    """'cuda' or 'cpu' for 'auto', 'cuda' or 'cpu'.

    Raises:
        LGMError: If 'cuda' was asked for and can't be had, or the name is another.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise LGMError(f"There is no device '{name}'. Choose auto, cpu or cuda.")
    if name == "cpu":
        return "cpu"
    problem = cuda_problem()
    if name == "cuda" and problem:
        raise LGMError(f"The device 'cuda' can't be used: {problem}. Choose 'auto' or 'cpu'.")
    return "cpu" if problem else "cuda"


def gpu_count(device: str) -> int:
    """How many GPUs a worker may choose from; 0 on a CPU."""
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def device_name(device: str) -> str:
    """'cpu', or the GPU's name."""
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def is_cuda_in_use() -> bool:
    """Whether this process has begun to use CUDA. May be asked while another thread is importing torch."""
    ask = getattr(getattr(sys.modules.get("torch"), "cuda", None), "is_initialized", None)
    return ask is not None and ask()


def explain_out_of_memory(error: BaseException) -> str | None:
    """A sentence for the user if `error` says that memory is full, else None."""
    torch = sys.modules.get("torch")
    # Where another program fills the memory, CUDA itself and its libraries may be the first that get none.
    said = str(error) if isinstance(error, RuntimeError) else ""
    full = any(words in said for words in ("CUDA error: out of memory", "STATUS_ALLOC_FAILED"))
    if full or isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        try:
            size = f" ({torch.cuda.mem_get_info()[1] / 2**30:.0f} GB)"
        except (RuntimeError, AssertionError):
            size = ""
        return (
            f"The GPU's memory{size} is full. Close other programs that use the GPU, choose the preset 'mini', or "
            "choose the device 'cpu'."
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return "The computer's memory is full. Close other programs, or choose the preset 'mini'."
    return None
