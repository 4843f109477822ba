"""Parameters and multiply-accumulates of a model, counted without computing anything.

The model is built on torch's meta device, where tensors have shapes and no content, and
`torch.utils.flop_counter` counts its convolutions and matrix products; one multiply-accumulate is
two of its floating-point operations. The paper prints multiply-accumulates as "FLOPs".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hidiff.archs import Transformer
from hidiff.archs.reference import reference_formulas
from hidiff.models import DeblurModel, build_model
from hidiff.utils.errors import UserError

PAPER_SIZE = (256, 256)
"""Height and width in pixels of the image that the paper counts for."""


@dataclass(frozen=True)
class NetworkComplexity:
    """One network.

    Args:
        parameters: how many it has.
        macs: multiply-accumulates of one call.
        calls: for one image.
    """

    parameters: int
    macs: int
    calls: int = 1


@dataclass(frozen=True)
class Complexity:
    """The networks that restoring an image takes.

    Args:
        networks: by official name (`net_g`, …).
        size: (height, width) that was counted, sides padded to what the network takes.
    """

    networks: Mapping[str, NetworkComplexity]
    size: tuple[int, int]

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


def count_macs(network: Callable[..., Any], *inputs: Tensor | int | None) -> int:
    """Multiply-accumulates of convolutions, linear layers and attention in one call.

    Counted are the layers as the papers write them (`hidiff.archs.reference`); the products that
    HIM and MDTA compute in advance to the same effect need fewer.

    Args:
        network: on any device; on 'meta' nothing is computed.
        inputs: what it is called with, on the same device.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), reference_formulas(), counter:
        network(*inputs)
    return counter.get_total_flops() // 2


def model_complexity(options: Mapping[str, Any], size: tuple[int, int] = PAPER_SIZE) -> Complexity:
    """Count the networks with which an option file's model restores an image.

    Args:
        options: sections as parsed from YAML, see `hidiff.build_model`.
        size: height and width in pixels; other sides than the network takes are counted as the
            padded image.

    Returns:
        Stage 2: Transformer, LE_DM and denoiser. Stage 1: Transformer and LE.

    Raises:
        UserError: the options are wrong, or no image has this size.
    """
    if min(size) < 1:
        raise UserError(
            f"an image has no size {size[0]} {size[1]}; give height and width in pixels"
        )
    with torch.device("meta"):
        model = build_model(options, training=False).eval()
        multiples = model.net_g.pad_multiple
        height, width = (n + -n % m for n, m in zip(size, multiples, strict=True))
        image = torch.empty(1, 3, height, width)
        of_network = network_inputs(model, image)
        prior = of_network[-1]
        inputs: dict[str, tuple[Any, ...]] = {
            "net_g": of_network,
            "net_le": (image, image),
            "net_le_dm": (image,),
            "net_d": (prior, prior, 1),
        }
        networks = {}
        for name, network in model.networks().items():
            calls = model.diffusion.timesteps if name == "net_d" else 1
            macs = count_macs(network, *inputs[name])
            networks[name] = NetworkComplexity(count_parameters(network), macs, calls)
    return Complexity(networks, (height, width))


def network_inputs(model: DeblurModel, image: Tensor) -> tuple[Tensor | None, ...]:
    """What `net_g` is called with to restore an image (1, 3, H, W); the values are anything."""
    if not isinstance(model.net_g, Transformer):
        return (image, image) if model.restores_from_gt else (image,)
    if not model.guided:
        return image, None
    return image, image.new_empty(1, model.net_g.group**2, model.net_g.prior_dim)
