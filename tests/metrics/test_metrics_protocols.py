"""Choosing a protocol by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hidiff.metrics import PROTOCOLS, evaluate_pair
from hidiff.utils.errors import UserError

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
VALUES = json.loads((GOLDEN / "metrics.json").read_text())
NAME = "coffee_shifted"


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    with np.load(GOLDEN / "metric_pairs.npz") as pairs:
        return pairs[f"{NAME}/restored"], pairs[f"{NAME}/gt"]


def test_names() -> None:
    assert PROTOCOLS == ("basicsr", "matlab", "realblur")


@pytest.mark.parametrize(
    ("protocol", "psnr", "ssim", "tolerance"),
    [
        ("basicsr", "psnr_rgb", "ssim_2d_per_channel", (1e-9, 1e-6)),
        ("matlab", "psnr_rgb", "ssim_matlab_volume", (1e-9, 1e-6)),
        ("realblur", "realblur_psnr", "realblur_ssim", (0.02, 2e-3)),  # OpenCV 4 aligns differently
    ],
)
def test_golden(pair, protocol: str, psnr: str, ssim: str, tolerance) -> None:
    scores = evaluate_pair(*pair, protocol)
    assert scores["psnr"] == pytest.approx(VALUES[NAME][psnr], abs=tolerance[0])
    assert scores["ssim"] == pytest.approx(VALUES[NAME][ssim], abs=tolerance[1])
    assert set(scores) == {"psnr", "ssim"} | ({"aligned"} if protocol == "realblur" else set())
    assert all(type(value) in (float, bool) for value in scores.values())


def test_default_is_basicsr(pair) -> None:
    assert evaluate_pair(*pair)["ssim"] == pytest.approx(
        VALUES[NAME]["ssim_2d_per_channel"], abs=1e-6
    )


@pytest.mark.parametrize("protocol", ["basicsr", "matlab"])
def test_identical_images(pair, protocol: str) -> None:
    scores = evaluate_pair(pair[1], pair[1].copy(), protocol)
    assert scores["psnr"] == math.inf
    assert scores["ssim"] == pytest.approx(1.0, abs=1e-12)


def test_aligned_tells_of_a_failure(pair) -> None:
    assert evaluate_pair(*pair, "realblur")["aligned"] is True
    assert evaluate_pair(pair[0], pair[1] * 0, "realblur")["aligned"] is False


def test_unknown_protocol(pair) -> None:
    with pytest.raises(UserError, match=r"'mathlab'"):
        evaluate_pair(*pair, "mathlab")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mismatched_sizes_name_both_shapes(pair, protocol: str) -> None:
    with pytest.raises(UserError, match=r"\(144, 191, 3\).*\(144, 192, 3\)"):
        evaluate_pair(pair[0][:, 1:], pair[1], protocol)
