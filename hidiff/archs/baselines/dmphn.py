"""DMPHN: ever smaller parts of the image, deblurred from fine to coarse (Zhang et al., CVPR 2019).

Level 1 sees the whole image, level 2 its upper and lower half, level 3 its quadrants, level 4 the
upper and lower half of each quadrant. All parts of a level lie on the batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from hidiff.archs.baselines.layers import COLUMNS, ROWS, conv3x3, join, split, upsampling4x4
from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.shapes import Shapes
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError

SPLITS = (ROWS, COLUMNS, ROWS)
"""The axis along which each part of level 1, 2 and 3 is split for the next level."""


class ResidualUnit(nn.Sequential):
    """x + conv(ReLU(conv(x))), (B, channels, H, W) → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__(conv3x3(channels, channels), nn.ReLU(), conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Encoder(nn.Sequential):
    """(B, 3, H, W) → (B, 4·width, H/4, W/4). The published names count the layers with gaps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer1 = conv3x3(3, width)
        self.layer2 = ResidualUnit(width)
        self.layer3 = ResidualUnit(width)
        self.layer5 = conv3x3(width, 2 * width, stride=2)
        self.layer6 = ResidualUnit(2 * width)
        self.layer7 = ResidualUnit(2 * width)
        self.layer9 = conv3x3(2 * width, 4 * width, stride=2)
        self.layer10 = ResidualUnit(4 * width)
        self.layer11 = ResidualUnit(4 * width)


class Decoder(nn.Sequential):
    """(B, 4·width, H/4, W/4) → (B, 3, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer13 = ResidualUnit(4 * width)
        self.layer14 = ResidualUnit(4 * width)
        self.layer16 = upsampling4x4(4 * width, 2 * width)
        self.layer17 = ResidualUnit(2 * width)
        self.layer18 = ResidualUnit(2 * width)
        self.layer20 = upsampling4x4(2 * width, width)
        self.layer21 = ResidualUnit(width)
        self.layer22 = ResidualUnit(width)
        self.layer24 = conv3x3(width, 3)


@ARCHS.register()
class DMPHN(ImageNetwork):
    """One multi-patch network, or several in a row; outputs are those of every stack.

    The published weights are a file for each encoder and decoder; parameter names are the file's
    stem (`encoder_s1_lv1`; `encoder_lv1` for one stack) and the name in it.

    Args:
        stack: how many networks follow one another.
        levels: levels of each network, 3 (1-2-4 parts) or, with one stack, 4 (1-2-4-8 parts).
        width: channels at full resolution; 32 as published.
    """

    final_output = -1
    shift = 0.5

    def __init__(
        self, *, stack: PositiveInt = 4, levels: Literal[3, 4] = 3, width: PositiveInt = 32
    ) -> None:
        super().__init__()
        if levels == 4 and stack > 1:
            raise UserError(f"levels 4 must be 3 where stack is more than 1 (it is {stack})")
        self.title = "DMPHN(1-2-4)" if levels == 3 else "DMPHN(1-2-4-8)"
        if stack > 1:
            self.title = f"Stack({stack})-{self.title}"
        self.stack = stack
        self.levels = levels
        # The encoder quarters the parts, which have half of the image's sides, or with 4 levels a
        # quarter of its height and half of its width.
        self.pad_multiple = (2**levels, 8)
        for index in range(stack):
            for level in range(1, levels + 1):
                self.add_module(self._name("encoder", index, level), Encoder(width))
                self.add_module(self._name("decoder", index, level), Decoder(width))
        self.apply(_initialize)

    def _name(self, part: str, stack: int, level: int) -> str:
        """Published name of an encoder or decoder; stacks count from 0, levels from 1."""
        return f"{part}_lv{level}" if self.stack == 1 else f"{part}_s{stack + 1}_lv{level}"

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`."""
        shapes = Shapes(state_dict)
        stack = shapes.count(r"encoder_s(\d+)_lv1\.")
        first = "encoder_s1_lv1" if stack else "encoder_lv1"
        return {
            "stack": max(stack, 1),
            "levels": shapes.count(r"encoder(?:_s1)?_lv(\d+)\."),
            "width": shapes[f"{first}.layer1.weight"][0],
        }

    def outputs(self, image: Tensor) -> tuple[Tensor, ...]:
        """What each stack restores, all of the size of the image."""
        outputs: list[Tensor] = []
        earlier: dict[int, Tensor] = {}
        for stack in range(self.stack):
            restored, earlier = self._restore(stack, image, earlier, outputs[:1])
            outputs.append(restored)
            image = restored
        return tuple(outputs)

    def _restore(
        self, stack: int, image: Tensor, earlier: dict[int, Tensor], first: list[Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """One stack.

        Args:
            stack: its index.
            image: (B, 3, H, W), what the stack before restored.
            earlier: the features of the stack before, by level.
            first: what the first stack restored; empty in the first stack.

        Returns:
            The restored image, and the features by level, (2^(level − 1)·B, C, h, w).
        """
        parts = [image]
        for axis in SPLITS[: self.levels - 1]:
            parts.append(split(parts[-1], axis))
        features: dict[int, Tensor] = {}
        joined: Tensor | float = 0.0  # features of the level below, for each part of this level
        residual: Tensor | float = 0.0  # what they are decoded to
        for level in range(self.levels, 0, -1):
            encode = self.get_submodule(self._name("encoder", stack, level))
            decode = self.get_submodule(self._name("decoder", stack, level))
            if level == 1:
                # Also in the later stacks it is the first one's output, as published.
                residual = sum(first, residual)
            x = encode(parts[level - 1] + residual) + joined
            features[level] = x + earlier[level] if earlier else x
            if level == 1:
                joined = features[level]
            else:
                joined = join(features[level], SPLITS[level - 2])
            residual = decode(joined)
        assert isinstance(residual, Tensor)
        return residual, features


def _initialize(module: nn.Module) -> None:
    """Published initialisation: weights normal with variance 0.5 / (k²·out), no bias."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        outputs = module.out_channels * math.prod(module.kernel_size)
        nn.init.normal_(module.weight, std=math.sqrt(0.5 / outputs))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
