"""Protocol 'realblur': the RealBlur benchmark's PSNR and SSIM after scaling and alignment.

RealBlur's two cameras leave a small shift and a difference in brightness between the blurry and
the sharp image, which the benchmark takes out before it compares (RealBlur-R and RealBlur-J
columns of Tables 2 and 3).

The alignment is ill-conditioned on some pairs: a change in the last digit of its input, or another
OpenCV version, can move one image's PSNR by nearly 0.01 dB and its SSIM by 0.0004.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from hidiff.metrics.basicsr import WINDOW, check_pair, gaussian_ssim

_RADIUS = WINDOW // 2
# The threshold 0 never ends the search early, so all 100 iterations are made.
_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 0)
_ECC_BLUR = 5


class RealBlurScore(NamedTuple):
    """PSNR in dB, SSIM, and whether the alignment succeeded."""

    psnr: float
    ssim: float
    aligned: bool


def score_realblur(restored: np.ndarray, target: np.ndarray) -> RealBlurScore:
    """Score a restored image against the sharp one as the RealBlur benchmark does.

    The restored image is scaled in brightness, warped onto the target by the homography that ECC
    finds (Evangelidis and Psarakis, 2008), and compared where the warped image has pixels. If no
    usable homography is found the scaled image is compared as it stands, in every pixel.

    Args:
        restored, target: uint8 RGB (H, W, 3), at least 11×11.

    Returns:
        The scores; `aligned` is false where the scores are those without alignment.

    Raises:
        UserError: the images are not uint8 RGB of one size, or smaller than 11×11.
    """
    check_pair(restored, target, smallest_side=WINDOW)
    sharp, image = (side.astype(np.float32, "C") / np.float32(255) for side in (target, restored))
    scaled = _match_brightness(image, sharp)
    warped = _align(scaled, sharp)
    if warped is None:
        mask = np.ones(sharp.shape[:2], np.float32)
        return RealBlurScore(_psnr(scaled, sharp, mask), _ssim(scaled, sharp, mask), False)
    image, mask = warped
    image = image * mask[..., None]
    sharp = sharp * mask[..., None]
    return RealBlurScore(_psnr(image, sharp, mask), _ssim(image, sharp, mask), True)


def _match_brightness(image: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """Scale `image` to the least squared difference from `sharp`; a black image stays as it is."""
    # Released behaviour: float32 sums, over the pixels row by row in NumPy's pairwise order. Exact
    # ones differ in the last digit, which the alignment below turns into thousandths of a dB.
    energy = np.sum(image * image)
    if energy == 0:
        return image
    return image * (np.sum(sharp * image) / energy)


def find_homography(image: np.ndarray, sharp: np.ndarray) -> np.ndarray | None:
    """The homography that ECC finds from `sharp`'s pixel positions to `image`'s.

    Args:
        image, sharp: RGB float32 (H, W, 3) in [0, 1].

    Returns:
        (3, 3) float32, or None when the search does not converge or ends in a matrix that is no
        alignment: not finite, mirroring, or with its horizon across the image.
    """
    try:
        _, warp = cv2.findTransformECC(  # type: ignore[call-overload]  # None is a mask too
            cv2.cvtColor(sharp, cv2.COLOR_RGB2GRAY),
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
            np.eye(3, dtype=np.float32),
            cv2.MOTION_HOMOGRAPHY,
            _CRITERIA,
            None,
            _ECC_BLUR,
        )
    except cv2.error:
        return None
    if not np.isfinite(warp).all() or np.linalg.det(warp.astype(np.float64)) <= 0:
        return None
    height, width = sharp.shape[:2]
    right, bottom = width - 1, height - 1
    corners = np.array([[0, 0, 1], [right, 0, 1], [0, bottom, 1], [right, bottom, 1]])
    return warp if (corners @ warp[2] > 0).all() else None


def _align(image: np.ndarray, sharp: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """`image` warped onto `sharp` (H, W, 3), and the mask of where it has pixels (H, W).

    None when there is no usable homography, or it moves the image out of the frame.
    """
    warp = find_homography(image, sharp)
    if warp is None:
        return None
    size, inverse = sharp.shape[1::-1], cv2.WARP_INVERSE_MAP
    cubic, nearest = cv2.INTER_CUBIC | inverse, cv2.INTER_NEAREST | inverse
    warped = cv2.warpPerspective(image, warp, size, flags=cubic, borderMode=cv2.BORDER_REFLECT)
    # Zero where the target's pixel lies outside of the image.
    mask = cv2.warpPerspective(np.ones(sharp.shape[:2], np.float32), warp, size, flags=nearest)
    return (warped, mask) if _inside(mask).any() else None


def _inside(array: np.ndarray) -> np.ndarray:
    """The pixels whose whole SSIM window lies in the image."""
    return array[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]


def _psnr(image: np.ndarray, sharp: np.ndarray, mask: np.ndarray) -> float:
    """PSNR with peak 1 of two masked images (H, W, 3), per pixel of the mask (H, W)."""
    error = np.sum((sharp - image) ** 2, dtype=np.float64)
    count = 3 * mask.sum(dtype=np.float64)
    return 10.0 * math.log10(count / error) if error > 0 else math.inf


def _ssim(image: np.ndarray, sharp: np.ndarray, mask: np.ndarray) -> float:
    """Mean of the SSIM map of two masked images (H, W, 3) over the inner mask (H, W)."""
    _, similarity = gaussian_ssim(image, sharp, data_range=1.0)
    inner = _inside(mask)[..., None]
    total = np.sum(_inside(similarity) * inner, dtype=np.float64)
    # The channels share one mask, so the mean over channels is one sum over all of them.
    return float(total / (3 * inner.sum(dtype=np.float64)))
