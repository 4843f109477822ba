"""The metrics and protocols against golden values and their definitions written out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from hidiff.metrics import calculate_psnr, calculate_ssim, evaluate_pair
from hidiff.metrics.matlab import ssim_volume
from hidiff.metrics.realblur import find_homography, score_realblur
from hidiff.registry import METRICS
from hidiff.utils.errors import UserError

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
VALUES = json.loads((GOLDEN / "metrics.json").read_text())


def golden_pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(GOLDEN / "metric_pairs.npz") as pairs:
        return pairs[f"{name}/restored"], pairs[f"{name}/gt"]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Mean SSIM of two arrays of any dimensions: every window written out, none beyond them."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.ones(())
    for _ in x.shape:
        window = window[..., None] * line
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for place in np.ndindex(*(side - 10 for side in x.shape)):
        box = tuple(slice(start, start + 11) for start in place)
        a, b = x[box], y[box]
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        cov = (window * (a - mean_a) * (b - mean_b)).sum()
        values.append(
            (2 * mean_a * mean_b + c1)
            * (2 * cov + c2)
            / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        )
    return float(np.mean(values))


# PSNR and SSIM, and the protocols 'basicsr' and 'matlab'


@pytest.mark.parametrize("name", VALUES)
def test_values_are_the_golden_ones(name: str) -> None:
    pair, expected = golden_pair(name), VALUES[name]
    for luma, kind, ssim in ((False, "rgb", "ssim_2d_per_channel"), (True, "y", "ssim_y")):
        psnr = calculate_psnr(*pair, test_y_channel=luma)
        assert psnr == pytest.approx(expected[f"psnr_{kind}"], abs=1e-9)
        assert calculate_ssim(*pair, test_y_channel=luma) == pytest.approx(expected[ssim], abs=1e-6)
    for protocol, ssim in (("basicsr", "ssim_2d_per_channel"), ("matlab", "ssim_matlab_volume")):
        scores = evaluate_pair(*pair, protocol)
        assert scores == pytest.approx(
            {"psnr": expected["psnr_rgb"], "ssim": expected[ssim]}, abs=1e-6
        )
    assert evaluate_pair(*pair) == evaluate_pair(*pair, "basicsr")


def test_unknown_protocol() -> None:
    with pytest.raises(UserError, match=r"'mathlab'"):
        evaluate_pair(noise(16, 16, 3), noise(16, 16, 3), "mathlab")


def test_psnr_by_hand() -> None:
    target = np.full((4, 5, 3), 100, np.uint8)
    restored = target.copy()
    restored[..., 1] += 6  # mean squared error 36 / 3 = 12
    assert calculate_psnr(restored, target) == pytest.approx(10 * math.log10(255**2 / 12))
    # A difference that wraps around in uint8: |0 - 255|² everywhere, hence 0 dB.
    black, white = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)
    assert calculate_psnr(black, white) == pytest.approx(0.0, abs=1e-12)


def test_luma_psnr_by_hand() -> None:
    # Black has luma 16, white 235: a difference of 219.
    black, white = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)
    expected = 20 * math.log10(255 / 219)
    assert calculate_psnr(black, white, test_y_channel=True) == pytest.approx(expected, abs=1e-6)
    # The channels are RGB: pure red is 65.481 above black, pure blue 24.966.
    for channel, weight in ((0, 65.481), (1, 128.553), (2, 24.966)):
        colour = black.copy()
        colour[..., channel] = 255
        expected = 20 * math.log10(255 / weight)
        assert calculate_psnr(colour, black, test_y_channel=True) == pytest.approx(
            expected, abs=1e-5
        )


def test_identical_images() -> None:
    image = noise(16, 17, 3)
    assert calculate_psnr(image, image.copy()) == math.inf
    assert calculate_psnr(image, image.copy(), test_y_channel=True) == math.inf
    assert calculate_ssim(image, image.copy()) == pytest.approx(1.0, abs=1e-12)
    assert ssim_volume(image, image.copy()) == pytest.approx(1.0, abs=1e-12)


def test_ssim_matches_the_definition() -> None:
    target = noise(15, 18, 3)
    restored = (target // 2 + noise(15, 18, 3, seed=1) // 3).astype(np.uint8)
    expected = np.mean([ssim_by_definition(restored[..., c], target[..., c]) for c in range(3)])
    assert calculate_ssim(restored, target) == pytest.approx(expected, abs=1e-9)


# Smaller than the window, and over more than one strip of rows with a short last one.
@pytest.mark.parametrize("shape", [(1, 1, 3), (4, 7, 3), (67, 5, 3), (130, 3, 3)])
def test_volume_ssim_matches_the_definition(shape: tuple[int, int, int]) -> None:
    target = noise(*shape)
    restored = (target // 2 + noise(*shape, seed=1) // 3).astype(np.uint8)
    expected = ssim_by_definition(*(np.pad(x, 5, mode="edge") for x in (restored, target)))
    assert ssim_volume(restored, target) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", [calculate_psnr, calculate_ssim])
@pytest.mark.parametrize("luma", [False, True])
def test_crop_border_ignores_the_border(metric, luma: bool) -> None:
    target, restored = noise(21, 24, 3), noise(21, 24, 3, seed=1)
    inner = slice(4, -4)
    expected = metric(restored[inner, inner], target[inner, inner], test_y_channel=luma)
    assert metric(restored, target, crop_border=4, test_y_channel=luma) == expected
    assert metric(restored, target, test_y_channel=luma) != expected


@pytest.mark.parametrize("metric", [calculate_psnr, calculate_ssim, ssim_volume])
@pytest.mark.parametrize(
    ("restored", "target", "names"),
    [
        (noise(16, 16, 3), noise(16, 17, 3), ["(16, 16, 3)", "(16, 17, 3)"]),
        (noise(16, 16, 3).astype(np.float32), noise(16, 16, 3), ["float32", "uint8"]),
        (noise(16, 16, 4), noise(16, 16, 4), ["(16, 16, 4)"]),
        (noise(16, 16), noise(16, 16), ["(16, 16)"]),
        (noise(0, 16, 3), noise(0, 16, 3), ["(0, 16, 3)"]),
        ([[1, 2]], noise(16, 16, 3), ["a list", "(16, 16, 3)"]),
    ],
)
def test_pairs_that_cannot_be_compared(metric, restored, target, names: list[str]) -> None:
    with pytest.raises(UserError) as error:
        metric(restored, target)
    for name in names:
        assert name in str(error.value)


def test_too_little_is_left() -> None:
    image = noise(20, 30, 3)
    with pytest.raises(UserError, match="at least 11×11"):
        calculate_ssim(image[:10], image[:10])
    with pytest.raises(UserError, match="at least 21×21"):
        calculate_ssim(image, image, crop_border=5)
    with pytest.raises(UserError, match=r"\(20, 30, 3\)"):
        calculate_psnr(image, image, crop_border=10)
    with pytest.raises(UserError, match="crop_border"):
        calculate_psnr(image, image, crop_border=-1)


def test_registered_under_the_released_names() -> None:
    section = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}
    metric, options = METRICS.check(section, "val.metrics.psnr", supplied=("restored", "target"))
    assert metric is calculate_psnr
    assert options == {"crop_border": 2, "test_y_channel": True}
    assert METRICS.get("calculate_ssim", "val.metrics.ssim") is calculate_ssim
    with pytest.raises(UserError, match="crop_border"):
        METRICS.check(
            {"type": "calculate_ssim", "crop_boarder": 2}, "m", supplied=("restored", "target")
        )


# The protocol 'realblur'


def scaled_pair(restored: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z, x = restored.astype(np.float64) / 255, target.astype(np.float64) / 255
    return z * ((x * z).sum() / (z * z).sum()), x


def ssim_map(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """SSIM map of float images in [0, 1] without the 5 pixels at each side."""
    _, similarity = structural_similarity(
        x,
        z,
        data_range=1.0,
        channel_axis=2,
        gaussian_weights=True,
        use_sample_covariance=False,
        full=True,
    )
    return similarity[5:-5, 5:-5]


def returning(warp: list[list[float]]):
    """A stand-in for `cv2.findTransformECC` that finds this homography."""
    return lambda *_: (0.9, np.array(warp, np.float32))


@pytest.mark.parametrize("name", VALUES)
def test_realblur_scores_are_the_golden_ones(name: str) -> None:
    scores, expected = evaluate_pair(*golden_pair(name), "realblur"), VALUES[name]
    # The golden values were made with OpenCV 5; another version's alignment differs a little.
    same = cv2.__version__.startswith("5.0.")
    assert scores["psnr"] == pytest.approx(expected["realblur_psnr"], abs=1e-7 if same else 0.02)
    assert scores["ssim"] == pytest.approx(expected["realblur_ssim"], abs=1e-6 if same else 2e-3)
    assert scores["aligned"] is True


def test_brightness_is_matched_by_float32_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the arrays' layout: of one transposed, NumPy sums the pixels in another order."""
    restored, target = golden_pair("coffee_shifted")
    z, x = (side.astype(np.float32) / np.float32(255) for side in (restored, target))
    expected = z * (np.sum(x * z) / np.sum(z * z))
    exact = z * np.float32((x * z).sum(dtype=np.float64) / (z * z).sum(dtype=np.float64))
    assert not np.array_equal(expected, exact)
    seen = []
    monkeypatch.setattr(
        "hidiff.metrics.realblur._align", lambda image, sharp: seen.append(image.copy())
    )
    score_realblur(restored, target)
    score_realblur(np.asfortranarray(restored), np.asfortranarray(target))
    assert np.array_equal(seen[0], expected)
    assert np.array_equal(seen[1], expected)


@pytest.mark.parametrize("name", VALUES)
def test_golden_homography(name: str) -> None:
    image, sharp = (side.astype(np.float32) for side in scaled_pair(*golden_pair(name)))
    # The last digits of the input decide how scale and shift share out the motion, so compare
    # where the picture's centre goes. The shifted pairs are 2 to 3 pixels off when template and
    # input are swapped.
    centre = np.array([image.shape[1] / 2, image.shape[0] / 2, 1])
    found = find_homography(image, sharp) @ centre
    expected = np.array(VALUES[name]["realblur_warp"]) @ centre
    assert np.abs(found / found[2] - expected / expected[2]).max() < 0.1


def test_alignment_undoes_a_shift_and_a_darkening() -> None:
    _, target = golden_pair("chelsea_aligned")
    moved = np.roll(target, (2, -1), (0, 1))
    score = score_realblur((moved * 0.8).astype(np.uint8)[4:-4, 4:-4], target[4:-4, 4:-4])
    x, z = target[4:-4, 4:-4] / 255, moved[4:-4, 4:-4] / 255
    assert score.aligned
    assert score.psnr > 10 * math.log10(1 / np.mean((x - z) ** 2)) + 3


def test_a_known_shift_is_scored_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Target pixel (row, column) reads the restored image at (row + 2, column + 3); the last 2 rows
    # and 3 columns have no counterpart and fall out of the mask.
    monkeypatch.setattr(cv2, "findTransformECC", returning([[1, 0, 3], [0, 1, 2], [0, 0, 1]]))
    restored, target = noise(40, 44, 3), noise(40, 44, 3, seed=1)
    z, x = scaled_pair(restored, target)
    moved, masked = np.zeros_like(z), np.zeros_like(x)
    moved[:-2, :-3] = z[2:, 3:]
    masked[:-2, :-3] = x[:-2, :-3]
    psnr = 10 * math.log10(38 * 41 * 3 / ((masked - moved) ** 2).sum())
    ssim = ssim_map(masked, moved)[: 38 - 5, : 41 - 5].mean()

    score = score_realblur(restored, target)
    assert score.aligned
    assert score.psnr == pytest.approx(psnr, abs=1e-4)
    assert score.ssim == pytest.approx(ssim, abs=1e-5)


def raising(*_: object):
    raise cv2.error("Iterations do not converge")


@pytest.mark.parametrize(
    "search",
    [
        raising,
        returning([[1, 0, math.nan], [0, 1, 0], [0, 0, 1]]),
        returning([[math.inf, 0, 0], [0, 1, 0], [0, 0, 1]]),
        returning([[0, 0, 0], [0, 0, 0], [0, 0, 1]]),
        returning([[-1, 0, 43], [0, 1, 0], [0, 0, 1]]),  # mirrored
        returning([[1, 0, 0], [0, 1, 0], [-0.05, 0, 1]]),  # horizon at column 20
        returning([[1, 0, 1000], [0, 1, 0], [0, 0, 1]]),  # out of the frame
    ],
    ids=["raises", "nan", "infinite", "singular", "mirrored", "horizon", "outside"],
)
def test_a_failed_alignment_is_scored_unaligned(monkeypatch: pytest.MonkeyPatch, search) -> None:
    monkeypatch.setattr(cv2, "findTransformECC", search)
    restored, target = noise(40, 44, 3), noise(40, 44, 3, seed=1)
    z, x = scaled_pair(restored, target)
    score = score_realblur(restored, target)
    assert score.aligned is False
    assert score.psnr == pytest.approx(10 * math.log10(1 / np.mean((x - z) ** 2)), abs=1e-4)
    assert score.ssim == pytest.approx(ssim_map(x, z).mean(), abs=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("restored", "target"),
    [
        (np.zeros((24, 30, 3), np.uint8), noise(24, 30, 3)),
        (np.zeros((11, 11, 3), np.uint8), noise(11, 11, 3)),
        (np.full((24, 30, 3), 90, np.uint8), noise(24, 30, 3)),
        (noise(24, 30, 3, seed=2), noise(24, 30, 3, seed=3)),
    ],
    ids=["black", "smallest", "grey", "unrelated"],
)
def test_images_that_have_nothing_to_align_by(restored: np.ndarray, target: np.ndarray) -> None:
    score = score_realblur(restored, target)
    assert math.isfinite(score.psnr)
    assert -1 <= score.ssim < 0.5
    # Without any detail no version of OpenCV can align; noise may align with noise by chance.
    assert not (score.aligned and restored.max() == 0)


def test_the_search_is_the_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def search(*arguments):
        calls.append(arguments)
        return 1.0, np.eye(3, dtype=np.float32)

    monkeypatch.setattr(cv2, "findTransformECC", search)
    find_homography(np.zeros((12, 14, 3), np.float32), np.ones((12, 14, 3), np.float32))
    template, searched, start, motion, (kind, iterations, epsilon), _, blur = calls[0]
    assert template.shape == searched.shape == (12, 14)
    assert template.min() > 0.99
    assert searched.max() == 0
    assert np.array_equal(start, np.eye(3))
    assert motion == cv2.MOTION_HOMOGRAPHY
    assert kind == cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS
    assert (iterations, epsilon, blur) == (100, 0, 5)


def test_flat_images_of_different_brightness_are_equal_after_scaling() -> None:
    dark, bright = np.full((24, 30, 3), 60, np.uint8), np.full((24, 30, 3), 120, np.uint8)
    score = score_realblur(dark, bright)
    assert score.psnr > 100
    assert score.ssim == pytest.approx(1.0, abs=1e-5)


def test_realblur_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(UserError, match=r"\(24, 30, 3\).*\(30, 24, 3\)"):
        score_realblur(noise(24, 30, 3), noise(30, 24, 3))
    with pytest.raises(UserError, match="at least 11×11"):
        score_realblur(noise(10, 30, 3), noise(10, 30, 3))
