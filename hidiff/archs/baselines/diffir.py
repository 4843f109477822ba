"""DiffIR, which HI-Diff comes from: one vector is the prior (Xia et al., ICCV 2023).

It is HI-Diff's stages with other parts: a Transformer whose every block a prior of one token
modulates (`guidance: vector`), the encoder below, and `simple_denoise` with `apply_ldm`. The
published files hold these parts in one network, under other names: see `published_networks`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from hidiff.archs.latent_encoder import LatentEncoderLReLU, infer_encoder, leaky_relu
from hidiff.archs.shapes import Shapes
from hidiff.registry import ARCHS


@ARCHS.register("DiffIREncoder")
class DiffIREncoder(LatentEncoderLReLU):
    """From images to a prior of one token: the mean over the image takes the place of a grid.

    Args:
        in_chans, embed_dim, block_num, stage: see `LatentEncoder`.
    """

    def __init__(
        self,
        *,
        in_chans: PositiveInt = 6,
        embed_dim: PositiveInt = 64,
        block_num: NonNegativeInt = 5,
        stage: Literal[1, 2] = 1,
    ) -> None:
        super().__init__(
            in_chans=in_chans, embed_dim=embed_dim, block_num=block_num, stage=stage, group=1
        )

    def mixing(self, width: int, patch_expansion: float, channel_expansion: float) -> nn.Module:
        """(B, 1, C') → the same shape."""
        return nn.Sequential(nn.Linear(width, width), leaky_relu())

    @staticmethod
    def infer_options(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `ImageNetwork.infer_options`."""
        shapes = Shapes(state_dict)
        shapes["mlp.0.weight"]
        return infer_encoder(shapes, "conv2.4.weight")


def published_networks(state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The networks of a published DiffIR file, by our names of networks and parameters.

    Stage 1's file has `net_g` and `net_le`, stage 2's has `net_g`, `net_le_dm` and `net_d`; what it
    repeats, and the tables of its diffusion model, are left out.

    Raises:
        ValueError: the file is not DiffIR's.
    """
    parts: dict[str, dict[str, Tensor]] = {"G": {}, "E": {}, "condition": {}, "denoise": {}}
    for name, value in state_dict.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = value
        elif part != "diffusion":
            raise ValueError(f"{name} is no parameter of DiffIR")
    if not parts["G"] or bool(parts["E"]) == bool(parts["denoise"]):
        raise ValueError("these are not the parameters of one stage of DiffIR")
    networks = {"net_g": _transformer(parts["G"])}
    if parts["E"]:
        return networks | {"net_le": _encoder(parts["E"], images=2)}
    encoder = _encoder(parts["condition"], images=1)
    return networks | {"net_le_dm": encoder, "net_d": parts["denoise"]}


def _transformer(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Blocks are in `blocks`, and the two halves of `kernel` are `ln1` and `ln2`."""
    found = {}
    for name, value in published.items():
        name = re.sub(r"^((?:en|de)coder_level\d|latent|refinement)\.", r"\1.blocks.", name)
        if ".kernel.0." in name:
            scale, shift = value.chunk(2)
            found[name.replace(".kernel.0.", ".ln1.")] = scale
            found[name.replace(".kernel.0.", ".ln2.")] = shift
        else:
            found[name] = value
    return found


def _encoder(published: Mapping[str, Tensor], images: int) -> dict[str, Tensor]:
    """`E` counts all layers in a row; `mlp` holds what is `mlp` and `end` here."""
    blocks = sum(re.fullmatch(r"E\.\d+\.body\.0\.weight", name) is not None for name in published)
    places = {"E.0": "conv1.0", "mlp.0": "mlp.0", "mlp.2": "end.0"}
    for block in range(blocks):
        for layer in (0, 2):
            places[f"E.{2 + block}.body.{layer}"] = f"blocks.{block}.{layer}"
    for layer in (0, 2, 4):
        places[f"E.{2 + blocks + layer}"] = f"conv2.{layer}"
    found = {}
    for name, value in published.items():
        place, _, kind = name.rpartition(".")
        if place not in places:
            raise ValueError(f"{name} is no parameter of DiffIR's encoder")
        if name == "E.0.weight" and images == 2:
            # The blurry image's channels come first there, the sharp image's here.
            value = value.roll(value.shape[1] // 2, dims=1)
        found[f"{places[place]}.{kind}"] = value
    return found
