"""Memory that this process uses and keeps."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Numbers of glibc's malloc.h."""


def keep_freed_memory(largest: int | None = None) -> None:
    """Let this process keep what it frees, for the next time.

    glibc gives large blocks back to the system at once, and asks for them again for the next
    tensor or image. The system clears them anew each time: a quarter of the time of a training
    step on a CPU, and as much again as the arithmetic on images.

    Args:
        largest: larger blocks are given back all the same, 32 MiB at the most; None keeps all.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if largest is None:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        else:
            mallopt(M_MMAP_THRESHOLD, largest)
            mallopt(M_TRIM_THRESHOLD, 2 * largest)


def release_freed_memory() -> None:
    """Give back what is kept and not in use, so that the system's figures are true."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes(device: torch.device) -> int | None:
    """The most memory in use until now: of tensors on a GPU, or of this process on a CPU.

    None where it cannot be told.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return None
