"""Image quality metrics, and the three evaluation protocols built of them.

Numbers of different protocols are not comparable with one another.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hidiff.metrics.basicsr import calculate_psnr, calculate_ssim
from hidiff.metrics.matlab import ssim_volume
from hidiff.metrics.pyiqa import pyiqa_score
from hidiff.metrics.realblur import score_realblur
from hidiff.utils.errors import UserError, suggestion

__all__ = [
    "PROTOCOLS",
    "calculate_psnr",
    "calculate_ssim",
    "check_protocol",
    "evaluate_pair",
    "pyiqa_score",
]

_SCORERS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "basicsr": lambda r, t: {"psnr": calculate_psnr(r, t), "ssim": calculate_ssim(r, t)},
    "matlab": lambda r, t: {"psnr": calculate_psnr(r, t), "ssim": ssim_volume(r, t)},
    "realblur": lambda r, t: score_realblur(r, t)._asdict(),
}

PROTOCOLS = tuple(_SCORERS)
"""The names that `evaluate_pair` knows."""


def check_protocol(protocol: str) -> None:
    """Make sure that there is a protocol of this name.

    Raises:
        UserError: there is none.
    """
    if protocol not in PROTOCOLS:
        raise UserError(
            f"protocol: there is no evaluation protocol '{protocol}'"
            + suggestion(protocol, PROTOCOLS)
        )


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
    check_protocol(protocol)
    return _SCORERS[protocol](restored, target)
