"""Intervals of a mean, from the images that it is of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Of the intervals."""

AT_ONCE = 1000
"""Resamples that are held in memory together."""


@dataclass(frozen=True)
class Difference:
    """How much one model differs from another on the same images.

    Args:
        mean: of the images' differences.
        low, high: the interval of it; None where it cannot be told.
        better: images on which it is above 0.
    """

    mean: float
    low: float | None
    high: float | None
    better: int


def bootstrap_interval(values: np.ndarray, *, resamples: int, seed: int) -> tuple[float, float]:
    """The interval of the mean by the percentile bootstrap (Efron 1979).

    As many of the values are drawn with replacement as there are, and their mean is taken, many
    times; the interval leaves out (1 − `LEVEL`) / 2 of these means on either side.

    Args:
        values: (N,), one for each image.
        resamples: how many times.
        seed: of the draws, which are the same for all values of as many images.
    """
    rng = np.random.default_rng(seed)
    means = [
        values[rng.integers(len(values), size=(min(AT_ONCE, resamples - start), len(values)))].mean(
            1
        )
        for start in range(0, resamples, AT_ONCE)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference(ours: np.ndarray, theirs: np.ndarray, *, resamples: int, seed: int) -> Difference:
    """The mean of `ours − theirs` with its interval; both (N,), of the same images in order.

    There is no interval of a single image, nor where an image is identical to the sharp one, whose
    PSNR is infinite.
    """
    # Two that are infinite do not differ.
    values = np.subtract(ours, theirs, out=np.zeros(len(ours)), where=ours != theirs)
    low = high = None
    if len(values) > 1 and np.isfinite(values).all():
        low, high = bootstrap_interval(values, resamples=resamples, seed=seed)
    return Difference(float(values.mean()), low, high, int((values > 0).sum()))
