"""The one ordered pool of workers, threads or processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hidiff.utils.errors import UserError
from hidiff.utils.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

Key = TypeVar("Key")

GPU_THREADS = 4
"""Threads that read, score and write beside a GPU, where there are as many cores."""

LARGEST_KEPT = 30 * 2**20
"""Bytes of the arrays that workers keep for the next one when they are freed."""

AHEAD = 2
"""Keys in progress beyond one a worker: the one being worked on, and the next, already read."""


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(wanted: int | Literal["auto"], device: torch.device) -> int:
    """The threads of `ordered_pipeline` for `val.num_workers`.

    'auto' takes none beside a CPU, where restoring uses all cores already, and beside a GPU up to
    `GPU_THREADS` of the cores that torchrun's other processes on this machine leave.
    """
    if wanted != "auto":
        return wanted
    cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 0 if device.type == "cpu" else min(GPU_THREADS, max(cores, 1))


def _identity(result: Any) -> Any:
    return result


def ordered_pipeline(
    keys: Iterable[Key],
    *,
    load: Callable[[Key], Any],
    compute: Callable[[Any], Any] = _identity,
    save: Callable[[Any], Any] = _identity,
    workers: int,
    processes: bool = False,
) -> Generator[Any, None, None]:
    """`save(compute(load(key)))` of every key, in order.

    `compute` runs on the calling thread, in order. `load` and `save` run in a pool of threads
    meanwhile, so they gain where they let go of Python's lock: decoding, encoding and array
    arithmetic do. An exception of any step ends the iteration.

    The pool ends with the iterator: what has begun is waited for, what has not is dropped. Where
    it may be left early, by an exception in the loop for example, use `contextlib.closing`.

    Args:
        keys: what to work on.
        load, compute, save: the steps; without the last two `load(key)` is the result.
        workers: how many; with 0 (of processes, with 1) the caller does one step after the other.
            At most `workers + AHEAD` keys are in progress at a time.
        processes: processes in place of threads. They import the main module, so a program that
            asks for them needs the usual `if __name__ == "__main__":`.

    Raises:
        UserError: a worker process was killed.
    """
    if processes and workers <= 1:
        keep_freed_memory(LARGEST_KEPT)
    if workers == 0 or (processes and workers == 1):
        for key in keys:
            yield save(compute(load(key)))
        return
    keys = iter(keys)
    loading: deque[Future] = deque()
    saving: deque[Future] = deque()
    pool = _process_pool(workers) if processes else ThreadPoolExecutor(workers)
    try:
        while True:
            free = workers + AHEAD - len(loading) - len(saving)
            loading.extend(pool.submit(load, key) for key in islice(keys, free))
            if saving and (saving[0].done() or not loading):
                yield saving.popleft().result()
            elif loading and save is _identity:
                yield compute(loading.popleft().result())
            elif loading:
                saving.append(pool.submit(save, compute(loading.popleft().result())))
            else:
                return
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended unexpectedly, perhaps for want of memory; run again with fewer "
            f"than {workers} (--jobs)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _process_pool(workers: int) -> ProcessPoolExecutor:
    # Never by forking this process: forks inherit locks that its threads hold, OpenCV's for
    # example. A fork server has no such threads; unlike spawned processes, its forks share imports.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    # A program's own file may import little; PyTorch is then imported once, not by every worker.
    context.set_forkserver_preload(["__main__", __name__])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    keep_freed_memory(LARGEST_KEPT)
    # Ctrl-C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
