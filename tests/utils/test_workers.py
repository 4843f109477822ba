"""The pool of worker processes; that of threads is tested with the evaluator."""

import multiprocessing
import os

import pytest

from hidiff.utils.errors import UserError
from hidiff.utils.workers import ordered_pipeline


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
