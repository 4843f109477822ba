"""Image quality metrics and the evaluation protocols built of them."""

from hidiff.metrics.basicsr import calculate_psnr, calculate_ssim
from hidiff.metrics.protocols import PROTOCOLS, evaluate_pair
from hidiff.metrics.pyiqa import pyiqa_score

__all__ = ["PROTOCOLS", "calculate_psnr", "calculate_ssim", "evaluate_pair", "pyiqa_score"]
