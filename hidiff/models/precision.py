"""Arithmetic precision of training and restoring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hidiff.models.base import DeblurModel
from hidiff.options import Precision


@contextmanager
def precision(model: DeblurModel, name: Precision) -> Iterator[None]:
    """Compute in a precision while this is entered, in this process.

    - 'fp32': float32 throughout.
    - 'tf32': GPUs of NVIDIA's Ampere generation or newer round the inputs of convolutions and
      matrix products to TF32 (10 bits of mantissa); on other devices the same as 'fp32'.
    - 'bf16': the Transformer's feature maps are bfloat16, see `hidiff.archs.restormer`. Latent
      encoders, denoiser, reverse chain, last convolution, image residual and losses stay float32,
      without TF32: at t = T the chain multiplies the denoiser's error by 1/√ᾱ_T, 174 for GoPro.

    Parameters, gradients and the optimiser are float32 in all of them.

    Args:
        model: its Transformer is set; not the wrapper around it.
        name: see above.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, model.net_g.feature_dtype
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    model.net_g.feature_dtype = torch.bfloat16 if name == "bf16" else None
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, model.net_g.feature_dtype = before
