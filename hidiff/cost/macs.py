"""Parameters and multiply-accumulates of a model, counted without computing anything.

The model is built on torch's meta device, where tensors have shapes and no content, and
`torch.utils.flop_counter` counts its convolutions and matrix products; one multiply-accumulate is
two of its floating-point operations. The paper prints multiply-accumulates as "FLOPs".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hidiff.archs import Transformer
from hidiff.archs.reference import as_written
from hidiff.errors import UserError
from hidiff.models import DeblurModel, build_model


@dataclass(frozen=True)
class NetworkComplexity:
    """One network: its parameters, the multiply-accumulates of one call, and its calls an image."""

    parameters: int
    macs: int
    calls: int = 1


@dataclass(frozen=True)
class Complexity:
    """The networks that restoring an image takes.

    `networks` is by official name (`net_g`, …); `size` is the (channels, height, width) that was
    counted, sides padded to multiples of 8.
    """

    networks: Mapping[str, NetworkComplexity]
    size: tuple[int, int, int]

    @property
    def parameters(self) -> int:
        """Parameters of all networks."""
        return sum(network.parameters for network in self.networks.values())

    @property
    def macs_once(self) -> int:
        """Multiply-accumulates with every network called once, as the paper counts HI-Diff-2."""
        return sum(network.macs for network in self.networks.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of restoring one image: the denoiser counts T times."""
        return sum(network.macs * network.calls for network in self.networks.values())

    @property
    def timesteps(self) -> int:
        """T, 1 where there is no diffusion."""
        return max(network.calls for network in self.networks.values())


def count_parameters(network: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, *inputs: Tensor | int | None) -> int:
    """Multiply-accumulates of convolutions, linear layers and attention in one call.

    Counted are the layers as the papers write them (`hidiff.archs.reference`); the products that
    HIM and MDTA compute in advance to the same effect need fewer.

    Args:
        network: on any device; on 'meta' nothing is computed.
        inputs: what it is called with, on the same device.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), as_written(), counter:
        network(*inputs)
    return counter.get_total_flops() // 2


def model_complexity(
    options: Mapping[str, Any], size: tuple[int, int, int] = (3, 256, 256)
) -> Complexity:
    """Count the networks with which an option file's model restores an image.

    Args:
        options: sections as parsed from YAML, see `hidiff.build_model`.
        size: (3, height, width) in pixels; other sides than the network takes are counted as the
            padded image.

    Returns:
        Stage 2: Transformer, LE_DM and denoiser. Stage 1: Transformer and LE.

    Raises:
        UserError: the options are wrong, or no image has this size.
    """
    if size[0] != 3 or min(size) < 1:
        raise UserError(
            f"size {' '.join(map(str, size))}: give channels (3), height and width in pixels, "
            "for example 3 256 256"
        )
    with torch.device("meta"):
        model = build_model(options, training=False).eval()
        multiple = model.net_g.side_multiple
        return _count(model, *(math.ceil(side / multiple) * multiple for side in size[1:]))


def _count(model: DeblurModel, height: int, width: int) -> Complexity:
    """Count on the device that is torch's default here."""
    image = torch.empty(1, 3, height, width)
    prior = torch.empty(1, model.net_g.group**2, model.net_g.prior_dim) if model.guided else None
    of_network: tuple[Tensor | None, ...] = (image, prior)
    if not isinstance(model.net_g, Transformer):
        of_network = (image, image) if model.restores_from_gt else (image,)
    inputs = {
        "net_g": of_network,
        "net_le": (image, image),
        "net_le_dm": (image,),
        "net_d": (prior, prior, 1),
    }
    networks = {}
    for name, network in model.networks().items():
        networks[name] = NetworkComplexity(
            parameters=count_parameters(network),
            macs=count_macs(network, *inputs[name]),
            calls=model.diffusion.timesteps if name == "net_d" else 1,
        )
    return Complexity(networks, (3, height, width))
