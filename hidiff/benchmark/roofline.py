"""Rooflines: the least time that restoring or a training step can take on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hidiff.archs.restormer import TransformerBlock
from hidiff.benchmark.timing import copy_rate, matmul_rate
from hidiff.models import DeblurModel, build_model
from hidiff.options import Precision
from hidiff.report.macs import count_macs, model_complexity, network_inputs

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


@dataclass
class Machine:
    """The device, and its speed at what cannot be avoided: matrix products and copying."""

    device: torch.device

    def __post_init__(self) -> None:
        self.copy_rate = copy_rate(self.device)
        self._matmul_rates: dict[Precision, float] = {}

    def seconds(self, work: Work, precision: Precision) -> float:
        """The roofline: seconds of the arithmetic or of the memory traffic, whichever is more."""
        if precision not in self._matmul_rates:
            self._matmul_rates[precision] = matmul_rate(self.device, precision)
        element_bytes = 2 if precision == "bf16" else 4
        arithmetic = 2 * work.macs / self._matmul_rates[precision]
        return max(arithmetic, work.elements * element_bytes / self.copy_rate)


def _block_elements(block: TransformerBlock, x: Tensor) -> int:
    """Elements that a block with C channels and hidden width h moves, per pixel 18·C + 6·h.

    MDTA, 15·C: norm and qkv (C in, 3·C out), depthwise (3·C, 3·C), Gram matrix (2·C in), output
    (v and the residual in, C out). GDFN, 3·C + 6·h: norm and project_in (C, 2·h), depthwise and
    gate (2·h, h), project_out (h and the residual in, C out).
    """
    pixels = x.numel() // x.shape[1]
    return pixels * (18 * x.shape[1] + 6 * block.ffn.project_out.in_channels)


def _forward(model: DeblurModel, options: Mapping[str, Any], height: int, width: int) -> Work:
    """The work of restoring one image; the model is that of the options, on the meta device."""
    elements = 0

    def add(block: TransformerBlock, inputs: tuple[Tensor, ...]) -> None:
        nonlocal elements
        elements += _block_elements(block, inputs[0])

    for module in model.net_g.modules():
        if isinstance(module, TransformerBlock):
            module.register_forward_pre_hook(add)
    with torch.device("meta"), torch.no_grad():
        model.net_g(*network_inputs(model, torch.empty(1, 3, height, width)))
    return Work(model_complexity(options, (height, width)).macs, elements)


def restoring(options: Mapping[str, Any], height: int, width: int) -> Work:
    """The work of restoring one image.

    Args:
        options: sections as parsed from YAML, see `hidiff.build_model`.
        height, width: in pixels, multiples of what the network takes.
    """
    with torch.device("meta"):
        model = build_model(options, training=False)
    return _forward(model, options, height, width)


def training_step(options: Mapping[str, Any], batch_size: int, patch_size: int) -> Work | None:
    """The work of a training step: forward and backward, and a frozen encoder's forward pass.

    Args:
        options: sections as parsed from YAML, see `hidiff.build_model`.
        batch_size, patch_size: of the step; the patch size in pixels.

    Returns:
        None where `net_g` is not trained: hardly any work is left to count.
    """
    with torch.device("meta"):
        model = build_model(options)
    if "net_g" in model.frozen:
        return None
    work = _forward(model, options, patch_size, patch_size)
    macs = work.macs * (1 + BACKWARD_SHARE)
    if "net_le" in model.frozen:
        image = torch.empty(1, 3, patch_size, patch_size, device="meta")
        macs += count_macs(model.net_le, image, image)
    return Work(batch_size * macs, batch_size * work.elements * (1 + BACKWARD_SHARE))
