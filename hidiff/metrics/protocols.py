"""The three evaluation protocols by name; their numbers are not comparable with one another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hidiff.errors import UserError
from hidiff.metrics.basicsr import calculate_psnr, calculate_ssim
from hidiff.metrics.matlab import ssim_volume
from hidiff.metrics.realblur import score_realblur
from hidiff.typecheck import suggestion


def _basicsr(restored: np.ndarray, target: np.ndarray) -> dict[str, float]:
    return {"psnr": calculate_psnr(restored, target), "ssim": calculate_ssim(restored, target)}


def _matlab(restored: np.ndarray, target: np.ndarray) -> dict[str, float]:
    return {"psnr": calculate_psnr(restored, target), "ssim": ssim_volume(restored, target)}


def _realblur(restored: np.ndarray, target: np.ndarray) -> dict[str, float]:
    return score_realblur(restored, target)._asdict()


_SCORERS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "basicsr": _basicsr,
    "matlab": _matlab,
    "realblur": _realblur,
}

PROTOCOLS = tuple(_SCORERS)
"""The names that `evaluate_pair` knows."""


def evaluate_pair(
    restored: np.ndarray, target: np.ndarray, protocol: str = "basicsr"
) -> dict[str, float]:
    """Score one restored image by a protocol.

    - 'basicsr': PSNR and per-channel SSIM, as validation during training and `test.py` report.
    - 'matlab': the same PSNR, SSIM of the RGB volume; GoPro and HIDE in Table 2.
    - 'realblur': both after scaling and alignment; RealBlur-R/J in Tables 2 and 3.

    Args:
        restored, target: uint8 RGB (H, W, 3).
        protocol: one of `PROTOCOLS`.

    Returns:
        'psnr' in dB and 'ssim'; 'realblur' adds 'aligned', false where no alignment was found and
        the scores are those without it.

    Raises:
        UserError: no such protocol; the images are not uint8 RGB of one size, or too small.
    """
    if protocol not in PROTOCOLS:
        raise UserError(
            f"protocol: there is no evaluation protocol '{protocol}'"
            + suggestion(protocol, PROTOCOLS)
        )
    return _SCORERS[protocol](restored, target)
