"""Rooflines: the least time that restoring or a training step can take on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hidiff.archs.restormer import TransformerBlock
from hidiff.benchmark.macs import count_macs, model_complexity, network_inputs
from hidiff.models import DeblurModel, build_model
from hidiff.utils.errors import UserError

BACKWARD_SHARE = 2
"""A layer's backward pass is two products of the forward pass's size: for input and weights."""


@dataclass(frozen=True)
class Work:
    """What must be done: multiply-accumulates, and elements of feature maps read or written.

    `elements` counts what the Transformer's blocks move when everything between two passes over
    the pixels that cannot be joined is fused.
    """

    macs: int
    elements: int

    def roofline(
        self, matmul_rate: float, copy_rate: float, element_bytes: int
    ) -> dict[str, float]:
        """Seconds of the arithmetic alone, of the memory traffic alone, and the larger: the bound.

        Args:
            matmul_rate: floating-point operations a second of large matrix products.
            copy_rate: bytes a second, read or written.
            element_bytes: 4 for float32, 2 for bfloat16.
        """
        arithmetic = 2 * self.macs / matmul_rate
        traffic = self.elements * element_bytes / copy_rate
        return {"arithmetic": arithmetic, "traffic": traffic, "bound": max(arithmetic, traffic)}


def _block_elements(block: TransformerBlock, x: Tensor) -> int:
    """Elements that a block with C channels and hidden width h moves, per pixel 18·C + 6·h.

    MDTA, 15·C: norm and qkv (C in, 3·C out), depthwise (3·C, 3·C), Gram matrix (2·C in), output
    (v and the residual in, C out). GDFN, 3·C + 6·h: norm and project_in (C, 2·h), depthwise and
    gate (2·h, h), project_out (h and the residual in, C out).
    """
    pixels = x.numel() // x.shape[1]
    return pixels * (18 * x.shape[1] + 6 * block.ffn.project_out.in_channels)


def _build(options: Mapping[str, Any]) -> DeblurModel:
    """The model on torch's meta device."""
    with torch.device("meta"):
        return build_model(options)


def _forward(model: DeblurModel, options: Mapping[str, Any], height: int, width: int) -> Work:
    """The work of restoring one image; the model is that of `_build`."""
    elements = 0

    def count(block: TransformerBlock, inputs: tuple[Tensor, ...]) -> None:
        nonlocal elements
        elements += _block_elements(block, inputs[0])

    for module in model.net_g.modules():
        if isinstance(module, TransformerBlock):
            module.register_forward_pre_hook(count)
    with torch.device("meta"), torch.no_grad():
        model.net_g(*network_inputs(model, torch.empty(1, 3, height, width)))
    return Work(model_complexity(options, (3, height, width)).macs, elements)


def restoring(options: Mapping[str, Any], height: int, width: int) -> Work:
    """The work of restoring one image.

    Args:
        options: sections as parsed from YAML, see `hidiff.build_model`.
        height, width: in pixels, multiples of 8.

    Raises:
        UserError: the options are wrong.
    """
    return _forward(_build(options), options, height, width)


def training_step(options: Mapping[str, Any], batch_size: int, patch_size: int) -> Work:
    """The work of a training step: forward and backward, and a frozen encoder's forward pass.

    The Transformer must be among what is trained: without it hardly any work is left to count.

    Args:
        options: sections as parsed from YAML, see `hidiff.build_model`.
        batch_size, patch_size: of the step; the patch size in pixels, a multiple of 8.

    Raises:
        UserError: the options are wrong, or network_g is not trained.
    """
    model = _build(options)
    if "net_g" in model.frozen:
        raise UserError(f"model_type {options['model_type']}: its training leaves network_g alone")
    work = _forward(model, options, patch_size, patch_size)
    macs = work.macs * (1 + BACKWARD_SHARE)
    if "net_le" in model.frozen:
        image = torch.empty(1, 3, patch_size, patch_size, device="meta")
        macs += count_macs(model.net_le, image, image)
    return Work(batch_size * macs, batch_size * work.elements * (1 + BACKWARD_SHARE))
