"""Timing several variants of the same work, alternating them in one process.

Machines are noisy: the variants run in turn on the same input, and the ratio of their medians is
what counts.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hidiff.options import Precision
from hidiff.utils.memory import release_freed_memory


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, smallest and largest, and the memory that it needs, in bytes.

    The memory is that at the peak, without what was allocated before the call, such as weights.
    """

    median: float
    smallest: float
    largest: float
    peak_bytes: int | None = None


def measure(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure_with_memory(work: Callable[[], Any], device: torch.device) -> tuple[float, int | None]:
    """Seconds that a call takes, and the memory that it needs (None where it cannot be told).

    On CPUs it starts with as little memory as the process can do with, and asking the system for it
    again takes time.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        seconds = measure(work, device)
        return seconds, torch.cuda.max_memory_allocated(device) - before
    resident = _resident_from_now()
    seconds = measure(work, device)
    return seconds, None if resident is None else _resident("VmHWM") - resident


def _resident_from_now() -> int | None:
    """This process's memory; from here on its peak counts anew. None where Linux is not."""
    # What was freed and is kept for later would hide that the next call needs it.
    release_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    return None


def _resident(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def alternate(
    variants: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Time several variants of the same work, in turn.

    Args:
        variants: what to call, by name.
        repeats: calls of each that count. Before several there is one for the memory.
        device: waited for after each call where it is a GPU.
    """
    device = device or torch.device("cpu")
    first = {name: measure_with_memory(work, device) for name, work in variants.items()}
    seconds = {name: [taken] if repeats == 1 else [] for name, (taken, _) in first.items()}
    for _ in range(repeats if repeats > 1 else 0):
        for name, work in variants.items():
            seconds[name].append(measure(work, device))
    return {
        name: Timing(statistics.median(values), min(values), max(values), first[name][1])
        for name, values in seconds.items()
    }


def bytes_for_backward(work: Callable[[], Any], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, on any device.

    Parameters are not counted, and memory that several tensors share is counted once.

    Args:
        work: runs the forward pass; its result holds what is kept.
        model: whose parameters these are.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        # An operator's own output would hold the operator, which holds the output, for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = work()
    del result  # until here nothing that was kept can have made room for something else
    return sum(kept.values())


def machine_name(device: torch.device) -> str:
    """'NVIDIA H200', or 'AMD EPYC, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    threads = torch.get_num_threads()
    return f"{processor or platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


@torch.no_grad()
def matmul_rate(device: torch.device, precision: Precision, repeats: int = 5) -> float:
    """Floating-point operations a second of large matrix products, the best of some runs."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    timing = alternate({"product": lambda: a @ b}, repeats=repeats, device=device)["product"]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return 2 * size**3 / timing.smallest


def copy_rate(device: torch.device, repeats: int = 5) -> float:
    """Bytes a second that copying reads and writes, the best of some runs."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**27, device=device)
    target = torch.empty_like(source)
    timing = alternate({"copy": lambda: target.copy_(source)}, repeats=repeats, device=device)
    return 2 * source.nbytes / timing["copy"].smallest
