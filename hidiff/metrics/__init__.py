"""Image quality metrics and the evaluation protocols built of them."""

from hidiff.metrics.basicsr import calculate_psnr, calculate_ssim
from hidiff.metrics.protocols import PROTOCOLS, evaluate_pair

__all__ = ["PROTOCOLS", "calculate_psnr", "calculate_ssim", "evaluate_pair"]
