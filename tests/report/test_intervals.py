"""Intervals of differences, against closed forms and a slow plain computation."""

import math
import random

import numpy as np
import pytest

from hidiff.report.intervals import LEVEL, bootstrap_interval, difference


def test_a_constant_difference_has_no_spread():
    theirs = np.random.default_rng(0).normal(30, 2, 40)
    found = difference(theirs + 0.25, theirs, resamples=500, seed=1)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.better == 40


def test_of_many_images_it_is_the_normal_interval():
    values = np.random.default_rng(0).gamma(2.0, 0.1, 1000) - 0.1
    low, high = bootstrap_interval(values, resamples=4000, seed=0)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)


def test_of_few_images_it_is_that_of_a_plain_computation():
    values = [0.0, 0.1, -0.2, 1.5, 0.3]
    draw = random.Random(3)
    means = sorted(sum(draw.choices(values, k=5)) / 5 for _ in range(20000))
    tail = (1 - LEVEL) / 2
    expected = means[int(tail * 20000)], means[int((1 - tail) * 20000)]
    assert bootstrap_interval(np.array(values), resamples=20000, seed=0) == pytest.approx(
        expected, abs=0.021
    )


def test_the_images_are_paired_and_the_seed_is_all_that_decides():
    rng = np.random.default_rng(0)
    ours = rng.normal(30, 5, 50)
    theirs = ours + rng.normal(0, 0.1, 50)
    found = difference(ours, theirs, resamples=2000, seed=5)
    assert found == difference(ours, theirs, resamples=2000, seed=5)
    assert found != difference(ours, theirs, resamples=2000, seed=6)
    # The spread of the images, 5 dB, is in both.
    assert found.high - found.low < 0.1
    other = difference(theirs, ours, resamples=2000, seed=5)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))
    assert found.better + other.better == 50


def test_where_there_is_no_interval():
    def of(ours, theirs):
        return difference(np.array(ours), np.array(theirs), resamples=100, seed=0)

    assert (of([2.0], [1.0]).mean, of([2.0], [1.0]).low) == (1.0, None)
    found = of([math.inf, 2.0], [30.0, 1.0])
    assert (found.mean, found.low, found.better) == (math.inf, None, 2)
    # Both identical to the sharp image: no difference there.
    assert of([math.inf, 2.0], [math.inf, 1.0]).mean == 0.5
