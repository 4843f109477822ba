"""Streams of random numbers of different purposes are independent."""

import numpy as np
import pytest

from hidiff.utils.random import rng


def test_no_two_purposes_share_a_stream() -> None:
    purposes: list[tuple[int | str, ...]] = []
    for position in range(10_000):
        purposes += [("patch", position, "crop"), ("patch", position, "blur", "shake")]
        purposes += [("patch", position), ("patch", position, 0), (position,), (position, 0)]
    firsts = {rng(7, *purpose).integers(2**64, dtype=np.uint64) for purpose in purposes}
    assert len(firsts) == len(purposes)


def test_a_stream_is_that_of_numpys_spawn_key() -> None:
    expected = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(3, 0)))
    np.testing.assert_array_equal(rng(5, 3, 0).random(4), expected.random(4))


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_purpose_beyond_32_bits_is_refused(number: int) -> None:
    with pytest.raises(AssertionError, match=str(number)):
        rng(0, number)
