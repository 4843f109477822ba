"""Sharing work: the ranks of a distributed run, and the one ordered pool of workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar

import torch

from hidiff.utils.errors import UserError
from hidiff.utils.memory import keep_freed_memory

Key = TypeVar("Key")

GPU_THREADS = 4
"""Threads that read, score and write beside a GPU, where there are as many cores."""

LARGEST_KEPT = 30 * 2**20
"""Bytes of the arrays that workers keep for the next one when they are freed."""

AHEAD = 2
"""Keys in progress beyond one a worker: the one being worked on, and the next, already read."""


class Group(Protocol):
    """The ranks that share a piece of work; `hidiff.utils.distributed.Processes` is one."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""

    def gather(self, value: Any) -> list[Any]:
        """The picklable values of all ranks, by rank."""

    def require_same(self, what: str, found: str) -> None:
        """Refuse to go on where `found` differs between ranks; `what` names it."""

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def main_first(self) -> AbstractContextManager[None]:
        """Context whose body the main rank runs before the others."""


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(wanted: int | Literal["auto"], device: torch.device) -> int:
    """The threads of `run_in_order` for `val.num_workers`.

    'auto' takes none beside a CPU, where restoring uses all cores already, and beside a GPU up to
    `GPU_THREADS` of the cores that torchrun's other processes on this machine leave.
    """
    if wanted != "auto":
        return wanted
    cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 0 if device.type == "cpu" else min(GPU_THREADS, max(cores, 1))


def _as_it_is(result: Any) -> Any:
    return result


def run_in_order(
    keys: Iterable[Key],
    *,
    read: Callable[[Key], Any],
    work: Callable[[Any], Any] = _as_it_is,
    finish: Callable[[Any], Any] = _as_it_is,
    workers: int,
    processes: bool = False,
) -> Generator[Any, None, None]:
    """`finish(work(read(key)))` of every key, in order.

    `work` runs on the calling thread, in order. `read` and `finish` run in a pool of threads
    meanwhile, so they gain where they let go of Python's lock: decoding, encoding and array
    arithmetic do. An exception of any step ends the iteration.

    The pool ends with the iterator: what has begun is waited for, what has not is dropped. Where
    it may be left early, by an exception in the loop for example, use `contextlib.closing`.

    Args:
        keys: what to work on.
        read, work, finish: the steps; without the last two `read(key)` is the result.
        workers: how many; with 0 (of processes, with 1) the caller does one step after the other.
            At most `workers + AHEAD` keys are in progress at a time.
        processes: processes in place of threads. They import the main module, so a program that
            asks for them needs the usual `if __name__ == "__main__":`.

    Raises:
        UserError: a worker process was killed.
    """
    if workers <= processes:
        if processes:
            keep_freed_memory(LARGEST_KEPT)
        for key in keys:
            yield finish(work(read(key)))
        return
    keys = iter(keys)
    reading: deque[Future] = deque()
    finishing: deque[Future] = deque()
    pool = _process_pool(workers) if processes else ThreadPoolExecutor(workers)
    try:
        while True:
            room = workers + AHEAD - len(reading) - len(finishing)
            reading.extend(pool.submit(read, key) for key in islice(keys, room))
            if finishing and (finishing[0].done() or not reading):
                yield finishing.popleft().result()
            elif reading and finish is _as_it_is:
                yield work(reading.popleft().result())
            elif reading:
                finishing.append(pool.submit(finish, work(reading.popleft().result())))
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
