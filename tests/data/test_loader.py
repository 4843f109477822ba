"""Loader processes that fail: the reason is said and the processes are gone."""

import errno
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_programs import start
from torch.utils.data import Dataset

from hidiff import UserError
from hidiff.data import BatchPlan, PhaseBatchSampler
from hidiff.data.loader import training_batches
from hidiff.data.transfer import DeviceBatches
from hidiff.options import Phase

TESTS = Path(__file__).resolve().parent.parent


class Faulty(Dataset):
    """Does something to the worker that reads image 3."""

    pairs = tuple(SimpleNamespace(name=f"image-{index}") for index in range(8))

    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, request):
        if request.index == 3:
            self.fault()
        patch = torch.zeros(8, 8, 3, dtype=torch.uint8)
        return {"lq": patch, "gt": patch, "symmetry": 0, "name": self.pairs[request.index].name}


def batches(fault, **kwargs):
    sampler = PhaseBatchSampler(
        size=8, plan=BatchPlan((Phase(8, 2, 40),), 1), rank=0, seed=0, crop_size=8, total_iter=40
    )
    return training_batches(Faulty(fault), sampler, num_workers=2, **kwargs)


def send(number):
    return lambda: os.kill(os.getpid(), number)


def fails(error):
    def fault():
        raise error

    return fault


def hang():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    time.sleep(600)


@pytest.mark.parametrize(
    "fault, kind, place",
    [
        (send(signal.SIGKILL), UserError, "SIGKILL.*datasets.train.num_worker_per_gpu"),
        (send(signal.SIGBUS), UserError, "/dev/shm.*datasets.train.num_worker_per_gpu"),
        (fails(RuntimeError("unable to allocate shared memory(shm)")), UserError, "/dev/shm"),
        (fails(OSError(errno.EMFILE, "Too many open files")), UserError, "ulimit -n"),
        (fails(MemoryError()), UserError, "memory.*datasets.train.num_worker_per_gpu"),
        (fails(ZeroDivisionError("planted")), ZeroDivisionError, "planted"),
        (hang, UserError, "image-3.*datasets.train.timeout"),
    ],
    ids=["killed", "bus-error", "shared-memory", "open-files", "memory", "defect", "hangs"],
)
def test_a_worker_that_fails_is_named_and_all_are_gone(fault, kind, place):
    handler = signal.getsignal(signal.SIGCHLD)
    started = time.monotonic()
    # The traceback in `caught` keeps what the loader had, as that of a failing program does.
    with pytest.raises(kind, match=place) as caught:
        list(batches(fault, timeout=1.5))
    assert caught.tb is not None
    assert multiprocessing.active_children() == []
    assert time.monotonic() - started < 10
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_too_many_open_files_in_this_process():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    loaded = batches(lambda: None)
    next(loaded)
    try:
        opened = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened, limits[1]))
        with pytest.raises(UserError, match="ulimit -n"):
            list(loaded)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert multiprocessing.active_children() == []


def test_a_wait_can_be_ended():
    class Enough(Exception):
        pass

    with pytest.raises(Enough):
        list(batches(hang, while_waiting=fails(Enough())))
    assert multiprocessing.active_children() == []


def test_closing_ends_the_workers():
    ahead = DeviceBatches(batches(lambda: None), torch.device("cpu"), torch.float32)
    next(ahead)
    assert len(multiprocessing.active_children()) == 2
    ahead.close()
    assert multiprocessing.active_children() == []


PROGRAM = """
import os, sys
sys.path.append(sys.argv[1])
from contextlib import closing
from data.test_loader import batches, hang
with closing(batches(hang)) as loaded:
    next(loaded)
    print("ready", flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
    raise ZeroDivisionError("planted")
"""


@pytest.mark.parametrize("end", ["killed", "exception"])
def test_a_process_that_ends_takes_its_workers_along(end):
    """Where it fails with a traceback, and where it can do nothing any more."""
    with start(TESTS, "-c", PROGRAM, TESTS, end) as program:
        line = program.output.readline()
        assert line == "ready\n", program.output.read()
        started = time.monotonic()
        message = program.output.read()  # each worker holds the pipe open
        assert time.monotonic() - started < 10
        assert program.wait() == (-9 if end == "killed" else 1)
    assert ("ZeroDivisionError: planted" in message) == (end == "exception")
