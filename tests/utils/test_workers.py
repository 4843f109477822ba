"""The pool of workers: order, how far it runs ahead, and that it ends with its caller."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing

import pytest
import torch
from tqdm import TMonitor

from hidiff.utils.errors import UserError
from hidiff.utils.workers import AHEAD, available_cores, ordered_pipeline, thread_count

CPU = torch.device("cpu")


def own_threads():
    """Running threads but for the one that tqdm keeps."""
    return {t for t in threading.enumerate() if not isinstance(t, TMonitor)}


def start_method(key: int) -> tuple[int, str]:
    return key, multiprocessing.get_start_method()


def die(key: int) -> None:
    os._exit(1)


def test_processes_give_their_results_in_order_and_are_not_forked_from_this_one():
    # A fork would hang on OpenCV's threads, but only now and then.
    results = list(ordered_pipeline(range(8), load=start_method, workers=2, processes=True))
    assert [key for key, _ in results] == list(range(8))
    assert {method for _, method in results} <= {"forkserver", "spawn"}


def test_a_process_that_dies_is_an_error_with_a_way_out():
    with pytest.raises(UserError, match="--jobs"):
        list(ordered_pipeline(range(4), load=die, workers=2, processes=True))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_a_handful_of_images_is_in_progress(threads):
    """The first `compute` lets the readers run as far ahead as they may."""
    lock, started, yielded, most, computed_on = threading.Lock(), [], [], [], set()
    bound = threads + AHEAD

    def read(key):
        with lock:
            started.append(key)
            most.append(len(started) - len(yielded))
        return key

    def work(key):
        computed_on.add(threading.current_thread())
        deadline = time.monotonic() + 20
        while key == 0 and len(started) < bound:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.02)
        return key

    def finish(key):
        time.sleep(0.01 * (key % 3))
        return key

    for key in ordered_pipeline(range(12), load=read, compute=work, save=finish, workers=threads):
        yielded.append(key)
    assert yielded == list(range(12))
    assert max(most) == bound
    assert computed_on == {threading.main_thread()}


def test_closing_it_early_ends_the_threads_and_begins_nothing_more():
    before, begun = own_threads(), []

    def read(key):
        begun.append(key)
        return key

    jobs = ordered_pipeline(range(50), load=read, compute=abs, save=abs, workers=2)
    assert [next(jobs), next(jobs)] == [0, 1]
    jobs.close()
    assert own_threads() == before
    count = len(begun)
    assert count <= 2 + 2 + AHEAD
    time.sleep(0.05)
    assert len(begun) == count


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", ["load", "compute", "save", "caller"])
@pytest.mark.parametrize("failure", [RuntimeError("a bug"), KeyboardInterrupt()], ids=["bug", "^C"])
def test_an_exception_ends_the_iteration_and_its_threads(place, workers, failure):
    def step(name):
        def fail_at_three(key):
            if name == place and key == 3:
                raise failure
            return key

        return fail_at_three

    before = own_threads()
    steps = {name: step(name) for name in ("load", "compute", "save")}
    # The exception is kept, and by its traceback all that going out of scope would end.
    with (
        pytest.raises(type(failure)) as caught,
        closing(ordered_pipeline(range(9), **steps, workers=workers)) as jobs,
    ):
        list(map(step("caller"), jobs))
    assert own_threads() == before
    assert caught.value is failure


@pytest.mark.timeout(60)
def test_an_interrupt_while_waiting_for_a_thread_ends_it():
    def save(key):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.1)

    before = own_threads()
    with (
        pytest.raises(KeyboardInterrupt),
        closing(ordered_pipeline([1], load=abs, save=save, workers=2)) as jobs,
    ):
        list(jobs)
    assert own_threads() == before


def test_threads_that_are_taken(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert thread_count("auto", CPU) == 0
    assert thread_count("auto", torch.device("cuda", 0)) == min(4, available_cores())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * available_cores()))
    assert thread_count("auto", torch.device("cuda", 0)) == 1
    for device in (CPU, torch.device("cuda", 0)):
        assert [thread_count(wanted, device) for wanted in (0, 1, 7)] == [0, 1, 7]
