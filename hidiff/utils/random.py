"""Independent streams of random numbers: one for each purpose."""

from __future__ import annotations

import hashlib

import numpy as np

StreamKey = tuple[int, *tuple[int | str, ...]]
"""A seed and a purpose: the arguments of `rng`."""


def rng(seed: int, *purpose: int | str) -> np.random.Generator:
    """The generator of one purpose; the same arguments always give the same stream.

    Two different purposes never share a stream, also where one continues the other: a plain
    `np.random.default_rng((seed, 1))` is the same stream as `default_rng((seed, 1, 0))`, because
    NumPy pads its entropy with zeros. The purpose goes into the spawn key instead, each part as a
    fixed number of words (https://numpy.org/doc/stable/reference/random/parallel.html).

    Args:
        seed: a whole number of at least 0.
        purpose: numbers from 0 below 2³² and names, for instance `"crop", position`.
    """
    words: list[int] = []
    for part in purpose:
        if isinstance(part, str):
            digest = hashlib.sha256(part.encode()).digest()[:16]
            words += [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
        else:
            assert 0 <= part < 2**32, f"a purpose is a number of 32 bits, not {part}"
            words.append(int(part))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(words)))
