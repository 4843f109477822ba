"""Loading training batches in worker processes."""

from __future__ import annotations

import dataclasses
import errno
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from hidiff.data.dataset import PairSet
from hidiff.data.image import to_float
from hidiff.data.sampler import CropRequest, PhaseBatchSampler, Shares
from hidiff.utils.errors import UserError
from hidiff.utils.signals import STOP_SIGNALS

SUBSTITUTES = 5
"""Pairs tried in place of one that cannot be used, before giving up."""

POLL_SECONDS = 1.0
"""Seconds between two looks at what a wait depends on: other processes, a request to stop."""


NO_HANDLES = ("Too many open files", "ancdata", "Pin memory thread")
"""What PyTorch says where file handles ran out."""


class _Reporting(Dataset):
    """Adds `notices` to items and hands errors on as items.

    An exception raised in a worker would arrive with a traceback and without its type.
    """

    def __init__(self, dataset: PairSet, shares: Shares, skip_bad: bool) -> None:
        self.dataset = dataset
        self.shares = shares
        self.substitutes = SUBSTITUTES if skip_bad else 0

    def __getitem__(self, request: CropRequest) -> Any:
        notices: list[str] = []
        while True:
            try:
                return {**self.dataset[request], "notices": notices}
            except UserError as error:
                if len(notices) >= self.substitutes:
                    return error
                notices.append(f"{error} (another image is used, train.on_bad_image: skip)")
                index = self.shares.neighbour(request.index)
                request = dataclasses.replace(request, index=index)


def _collate(items: list[Any]) -> Any:
    """A batch, or the first error; pixels of 8 bits become floats where others have 16 bits."""
    errors = [item for item in items if isinstance(item, UserError)]
    if errors:
        return errors[0]
    batch: dict[str, Any] = {key: [item[key] for item in items] for key in ("symmetry", "name")}
    batch["notices"] = [notice for item in items for notice in item["notices"]]
    for side in ("lq", "gt"):
        patches = [item[side] for item in items]
        if len({patch.dtype for patch in patches}) > 1:
            arrays = (patch.numpy() for patch in patches)
            patches = [torch.from_numpy(to_float(a) if a.dtype == np.uint8 else a) for a in arrays]
        # Within a loader process this stacks into memory that the trainer's process shares.
        batch[side] = default_collate(patches)
    return batch


def _start_worker(worker: int, parent: int | None) -> None:
    """What a loader process does first: leave signals to the trainer, and end with it.

    Args:
        worker: its number, which plays no part.
        parent: process id of the trainer; None where a fork server is the parent.
    """
    # Schedulers and terminals signal the whole process group; a worker that died would take the
    # run along.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The trainer may be gone already, so its own word counts.
    parent = os.getppid() if parent is None else parent

    def end_with_parent() -> None:
        """Torch looks for the parent only between batches, so not while one hangs."""
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class NoBatchYet(Exception):
    """No batch came yet."""


@contextmanager
def _iterating(loader: DataLoader) -> Iterator[Callable[[], Any]]:
    """The loader's `next`; its processes are gone afterwards, however this ends.

    They ignore the SIGTERM by which torch and Python end them, and this program cannot exit while
    one lives. A traceback keeps the iterator, so nobody may rely on its deletion.

    Raises:
        UserError: for failures that a person can mend.
        NoBatchYet: from `next`, nothing came in `POLL_SECONDS`; it can be called again.
    """
    others = {*multiprocessing.active_children(), *threading.enumerate()}
    on_child = signal.getsignal(signal.SIGCHLD)
    workers: list[BaseProcess] = []
    try:
        try:
            iterator = iter(loader)
        finally:
            workers = [p for p in multiprocessing.active_children() if p not in others]
            # Torch's handler would raise wherever this process is when a worker dies, in the
            # middle of a checkpoint for example. Asking for a batch notices it too.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, on_child)
        helpers = [thread for thread in threading.enumerate() if thread not in others]

        def next_batch() -> Any:
            try:
                return next(iterator, None)
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
            if not all(thread.is_alive() for thread in helpers):
                raise RuntimeError("Pin memory thread exited unexpectedly")
            raise NoBatchYet

        yield next_batch
    except (RuntimeError, OSError, MemoryError) as error:
        mended = _user_error(error, {worker.exitcode for worker in workers})
        if mended is None:
            raise
        raise mended from None
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()


def _user_error(error: Exception, exit_codes: set[int | None]) -> UserError | None:
    """What a person can do about a loader that failed; None where it is a defect of the program."""
    text = str(error)
    remedy = "lower datasets.train.num_worker_per_gpu, and resume with --auto_resume"
    died = {code for code in exit_codes if code}
    no_handles = getattr(error, "errno", None) == errno.EMFILE
    if "shared memory" in text or -signal.SIGBUS in exit_codes:
        found = (
            "the loader processes have used up the shared memory, /dev/shm; enlarge it (docker run "
            "--shm-size=16g) or"
        )
    elif no_handles or any(words in text for words in NO_HANDLES):
        found = (
            "too many files are open to take batches from the loader processes; raise the limit "
            "(ulimit -n 65536) or"
        )
    elif isinstance(error, MemoryError):
        found = "the loader has used up the memory;"
    elif died:
        how = [signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in died]
        found = f"a loader process died ({', '.join(how)}); if memory ran out,"
    else:
        return None
    return UserError(f"{found} {remedy}")


def training_batches(
    dataset: PairSet,
    sampler: PhaseBatchSampler,
    *,
    num_workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    skip_bad: bool = False,
    timeout: float | None = None,
    while_waiting: Callable[[], None] = lambda: None,
) -> Generator[dict[str, Any]]:
    """The sampler's batches in order.

    A batch is a dict for `hidiff.data.transfer.to_device`: `lq`, `gt`, (B, h, w, 3) uint8, or
    float32 in [0, 1] where an image has 16 bits; `symmetry` and `name`, lists; and `notices`, a
    list of texts about images that others stand in for.

    The loader processes end with the iterator: close it (`contextlib.closing`) where it may be left
    before its end.

    Args:
        dataset: items as `PairSet` gives for a `CropRequest`.
        sampler: which crops make each batch.
        num_workers: loader processes; 0 loads in this process.
        prefetch: batches that each loader process keeps ready.
        pin_memory: for copies to a GPU that do not block.
        skip_bad: take the next pair of the same set where one cannot be used, and say so.
        timeout: seconds to wait for a batch of loader processes; None waits for ever.
        while_waiting: called every `POLL_SECONDS` seconds of such a wait; what it raises ends it.

    Raises:
        UserError: an image cannot be used (with `skip_bad`: several in a row); the message names
            it. Or a loader process was ended from outside, lacks memory, shared memory or file
            handles, or is silent for `timeout` seconds.
    """
    asked: deque[list[CropRequest]] = deque()

    def requests() -> Iterator[list[CropRequest]]:
        for batch in sampler:
            asked.append(batch)
            yield batch

    parent = None if multiprocessing.get_start_method() == "forkserver" else os.getpid()
    loader = DataLoader(
        _Reporting(dataset, sampler.shares, skip_bad),
        batch_sampler=requests(),
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=functools.partial(_start_worker, parent=parent),
        timeout=POLL_SECONDS if num_workers else 0,
    )
    with _iterating(loader) as next_batch:
        asked_at = time.monotonic()
        while True:
            try:
                batch = next_batch()
            except NoBatchYet:
                while_waiting()
                if timeout is not None and time.monotonic() - asked_at > timeout:
                    names = ", ".join(dataset.pairs[request.index].name for request in asked[0])
                    raise UserError(
                        f"the loader processes are silent for {timeout:g} seconds; the next batch "
                        f"is of {names}. Look at the disk that these are on, or raise "
                        "datasets.train.timeout, and resume with --auto_resume"
                    ) from None
                continue
            if batch is None:
                return
            asked.popleft()
            if isinstance(batch, UserError):
                raise batch
            yield batch
            asked_at = time.monotonic()
