"""The benchmark's arithmetic, and its program on tiny networks."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_data import make_pairs, train_options, write_yaml

from hidiff.engine.benchmark import Timing, alternate, comparison

ROOT = Path(__file__).resolve().parent.parent.parent


def test_ways_alternate_and_warm_up_calls_do_not_count():
    calls = []

    def first():
        # The warm-up call is slow, as a first call is.
        time.sleep(0.05 if not calls else 0.002)
        calls.append("first")

    timings = alternate({"first": first, "second": lambda: calls.append("second")}, repeats=3)
    assert calls == ["first", "second"] * 4
    assert 0.002 <= timings["first"].median < 0.05
    assert timings["second"].median < timings["first"].median
    assert timings["first"].peak_bytes is None


def test_the_ratio_is_that_of_the_medians():
    timings = {"plain": Timing(3.0, 2.0, 9.0), "fast": Timing(1.5, 1.0, 8.0)}
    compared = comparison(timings, "plain")
    assert compared["fast"]["times_faster"] == 2.0
    assert compared["plain"]["times_faster"] == 1.0


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/benchmark.py"), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "baseline"),
    [
        (["restore", "--size", "24", "30"], "plain"),
        (["train-step", "--phase", "2"], "plain"),
        (["data", "--phase", "2"], "read all"),
    ],
    ids=["restore", "train-step", "data"],
)
def test_the_program_compares_two_ways(tmp_path, arguments, baseline):
    make_pairs(tmp_path / "train", 3)
    make_pairs(tmp_path / "test", 1)
    options = write_yaml(tmp_path / "a.yml", train_options(tmp_path, 2))
    command, *rest = arguments
    result = run(tmp_path, command, "-opt", str(options), "--repeats", "2", "--json", *rest)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report[baseline]["times_faster"] == 1.0
    ratio = report[baseline]["median"] / report["fast"]["median"]
    assert report["fast"]["times_faster"] == pytest.approx(ratio)


def test_a_phase_that_does_not_exist_is_named(tmp_path):
    make_pairs(tmp_path / "train", 1)
    options = write_yaml(tmp_path / "a.yml", train_options(tmp_path, 1))
    result = run(tmp_path, "train-step", "-opt", str(options), "--phase", "3")
    assert result.returncode == 2
    assert "--phase 3: the option file has phases 1 to 2" in result.stderr
