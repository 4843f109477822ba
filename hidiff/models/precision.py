"""Arithmetic precision of training and restoring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hidiff.archs.transformer import Transformer
from hidiff.models.base import DeblurModel
from hidiff.options import Precision
from hidiff.utils.errors import UserError


@contextmanager
def precision(model: DeblurModel, name: Precision) -> Iterator[None]:
    """Compute in a precision while this is entered, in this process.

    - 'fp32': float32 throughout.
    - 'tf32': GPUs of NVIDIA's Ampere generation or newer round the inputs of convolutions and
      matrix products to TF32 (10 bits of mantissa); on other devices the same as 'fp32'.
    - 'bf16', for the Transformer only: its feature maps are bfloat16, see `hidiff.archs.restormer`.
      Latent encoders, denoiser, reverse chain, last convolution, image residual and losses stay
      float32, without TF32: at t = T the chain multiplies the denoiser's error by 1/√ᾱ_T, 174 for
      GoPro.

    Parameters, gradients and the optimiser are float32 in all of them.

    Args:
        model: its Transformer is set; not the wrapper around it.
        name: see above.

    Raises:
        UserError: 'bf16', and the model has another network.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    network = model.net_g if isinstance(model.net_g, Transformer) else None
    if name == "bf16" and network is None:
        raise UserError("precision bf16 is there for the Transformer only; use tf32 or fp32")
    before_dtype = None if network is None else network.feature_dtype
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    if network is not None:
        network.feature_dtype = torch.bfloat16 if name == "bf16" else None
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
        if network is not None:
            network.feature_dtype = before_dtype
