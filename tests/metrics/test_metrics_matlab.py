"""The volume SSIM of the 'matlab' protocol against golden values and its plain definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hidiff.metrics import calculate_ssim
from hidiff.metrics.matlab import ssim_volume
from hidiff.utils.errors import UserError

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
VALUES = json.loads((GOLDEN / "metrics.json").read_text())


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def volume_ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Every 11×11×11 window of the edge-padded volumes written out."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = line[:, None, None] * line[:, None] * line
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    a, b = (np.pad(image.astype(np.float64), 5, mode="edge") for image in (x, y))
    values = []
    for place in np.ndindex(x.shape):
        box = tuple(slice(start, start + 11) for start in place)
        p, q = a[box], b[box]
        mean_p, mean_q = (window * p).sum(), (window * q).sum()
        var_p, var_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
        cov = (window * (p - mean_p) * (q - mean_q)).sum()
        values.append(
            (2 * mean_p * mean_q + c1)
            * (2 * cov + c2)
            / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
        )
    return float(np.mean(values))


@pytest.mark.parametrize("name", VALUES)
def test_golden(name: str) -> None:
    with np.load(GOLDEN / "metric_pairs.npz") as pairs:
        restored, target = pairs[f"{name}/restored"], pairs[f"{name}/gt"]
    value = ssim_volume(restored, target)
    assert value == pytest.approx(VALUES[name]["ssim_matlab_volume"], abs=1e-9)
    assert value > calculate_ssim(restored, target) + 0.02


# Smaller than the window, and over more than one strip of rows with a short last one.
@pytest.mark.parametrize("shape", [(1, 1, 3), (4, 7, 3), (67, 5, 3), (130, 3, 3)])
def test_matches_the_definition(shape: tuple[int, int, int]) -> None:
    target = noise(*shape)
    restored = (target // 2 + noise(*shape, seed=1) // 3).astype(np.uint8)
    expected = volume_ssim_by_definition(restored, target)
    assert ssim_volume(restored, target) == pytest.approx(expected, abs=1e-9)


def test_flat_images_by_hand() -> None:
    # No variance: SSIM is the luminance term alone, the same in every voxel.
    dark, bright = np.full((70, 40, 3), 200, np.uint8), np.full((70, 40, 3), 255, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 200 * 255 + c1) / (200**2 + 255**2 + c1)
    assert ssim_volume(dark, bright) == pytest.approx(expected, abs=1e-9)
    assert ssim_volume(bright, bright) == pytest.approx(1.0, abs=1e-12)


def test_inputs_are_left_alone() -> None:
    restored, target = noise(20, 20, 3), noise(20, 20, 3, seed=1)
    copies = restored.copy(), target.copy()
    ssim_volume(restored, target)
    assert np.array_equal(restored, copies[0])
    assert np.array_equal(target, copies[1])


def test_pairs_that_cannot_be_compared() -> None:
    with pytest.raises(UserError, match=r"\(8, 9, 3\).*\(9, 8, 3\)"):
        ssim_volume(noise(8, 9, 3), noise(9, 8, 3))
    with pytest.raises(UserError, match="float64"):
        ssim_volume(noise(8, 9, 3).astype(np.float64), noise(8, 9, 3))
