"""Sharing work: the ranks of a distributed run, and the one ordered pool of threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar

import torch

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_THREADS = 4
"""Threads that read, score and write beside a GPU, where there are as many cores."""

AHEAD = 2
"""Images in progress beyond one a thread: the one being restored, and the next, already read."""


class Group(Protocol):
    """The ranks that share a piece of work; `hidiff.engine.distributed.Processes` is one."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""

    def gather(self, value: Any) -> list[Any]:
        """The picklable values of all ranks, by rank."""

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


def run_in_order(
    keys: Iterable[Key],
    *,
    read: Callable[[Key], Item],
    work: Callable[[Item], Item],
    finish: Callable[[Item], Result],
    threads: int,
) -> Iterator[Result]:
    """`finish(work(read(key)))` of every key, in order.

    `work` runs on the calling thread, in order. `read` and `finish` run in threads meanwhile, so
    they gain where they let go of Python's lock: decoding, encoding and array arithmetic do. An
    exception of any step ends the iteration.

    The threads end with the iterator: what has begun is waited for, what has not is dropped. Where
    it may be left early, by an exception in the loop for example, use `contextlib.closing`.

    Args:
        keys: what to work on.
        read, work, finish: the three steps.
        threads: how many; with 0 the calling thread does one step after the other. At most
            `threads + AHEAD` keys are in progress at a time.
    """
    if threads == 0:
        for key in keys:
            yield finish(work(read(key)))
        return
    keys = iter(keys)
    reading: deque[Future[Item]] = deque()
    finishing: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            room = threads + AHEAD - len(reading) - len(finishing)
            reading.extend(pool.submit(read, key) for key in islice(keys, room))
            if finishing and (finishing[0].done() or not reading):
                yield finishing.popleft().result()
            elif reading:
                finishing.append(pool.submit(finish, work(reading.popleft().result())))
            else:
                return
    finally:
        pool.shutdown(cancel_futures=True)
