"""Parameters and multiply-accumulates of a model, counted without computing anything.

The model is built on torch's meta device, where tensors have shapes and no content, and
`torch.utils.flop_counter` counts its convolutions and matrix products; one multiply-accumulate is
two of its floating-point operations. The paper prints multiply-accumulates as "FLOPs".

Its Table 4 was counted with fvcore, which also counts some operations that are no products, and
only what the restored image needs. `besides` is the difference, by kind.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hidiff.archs import ImageNetwork, Transformer
from hidiff.archs.reference import as_written
from hidiff.models import DeblurModel, build_model, section_of
from hidiff.utils.errors import UserError

OTHER_OUTPUTS = "heads of other outputs"


def _per_element(share: int, *, of_output: bool = False) -> Callable[..., int]:
    """A rule that counts `share` for each element of the input or the output."""

    def rule(shape: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return share * math.prod(out_shape if of_output else shape)

    return rule


def _pooled(shape: Sequence[int], dim: Sequence[int] | None, *args: Any, **kwargs: Any) -> int:
    """A mean over height and width, 1 for each element of the input; nothing for other means."""
    image = len(shape) == 4 and dim is not None and {axis % 4 for axis in dim} == {2, 3}
    return math.prod(shape) if image else 0


aten = torch.ops.aten
BESIDES: Mapping[Any, tuple[str, Callable[..., int]]] = {
    aten.mean: ("pooling", _pooled),
    aten._adaptive_avg_pool2d: ("pooling", _per_element(1)),
    aten.upsample_nearest2d: ("nearest resizing", _per_element(1, of_output=True)),
    aten.upsample_bilinear2d: ("bilinear resizing", _per_element(4, of_output=True)),
    aten.native_layer_norm: ("LayerNorm", _per_element(5)),
    aten.native_batch_norm: ("InstanceNorm", _per_element(5)),
}
"""What fvcore counts although it is no product: the operation, its kind, and how it counts it."""

_COUNTED: dict[str, tuple[int, dict[str, int]]] = {}
"""Results of `count_operations` by a network's options and the shapes of its inputs. Counting takes
a second, and many option files share their networks."""


@dataclass(frozen=True)
class NetworkComplexity:
    """One network.

    Args:
        parameters: how many it has.
        macs: multiply-accumulates of one call.
        calls: for one image.
        besides: what the paper counts differently in one call, by kind; below 0 what it leaves out.
    """

    parameters: int
    macs: int
    calls: int = 1
    besides: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Complexity:
    """The networks that restoring an image takes.

    `networks` is by official name (`net_g`, …); `size` is the (channels, height, width) that was
    counted, sides padded to what the network takes.
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
    def besides(self) -> dict[str, int]:
        """What the paper counts differently in restoring one image, by kind."""
        total: Counter[str] = Counter()
        for network in self.networks.values():
            total.update({kind: n * network.calls for kind, n in network.besides.items()})
        return dict(total)

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
    return count_operations(network, *inputs)[0]


def count_operations(
    network: Callable[..., Any], *inputs: Tensor | int | None
) -> tuple[int, dict[str, int]]:
    """What `count_macs` counts, and what fvcore counts differently, by kind.

    Args:
        network: a network, or another function of tensors.
        inputs: see `count_macs`.
    """
    # By overload too, or the counter takes some apart before it asks for their rule.
    rules = {
        name: rule
        for operation, (_, rule) in BESIDES.items()
        for name in (operation, *(getattr(operation, o) for o in operation.overloads()))
    }
    counter = FlopCounterMode(display=False, custom_mapping=rules)
    with torch.no_grad(), as_written(), counter:
        outputs = network(*inputs)
    counts = counter.get_flop_counts()
    besides: Counter[str] = Counter()
    for operation, (kind, _) in BESIDES.items():
        besides[kind] += counts["Global"].get(operation, 0)
    if isinstance(network, ImageNetwork) and len(outputs) > 1:
        for name in _of_other_outputs(network, *inputs):
            layer = counts.get(f"{type(network).__name__}.{name}", {})
            besides[OTHER_OUTPUTS] -= _products(layer)
    return _products(counts["Global"]), {kind: n for kind, n in besides.items() if n}


def _products(counts: Mapping[Any, int]) -> int:
    """The multiply-accumulates among the counts by operation."""
    return sum(n for operation, n in counts.items() if operation not in BESIDES) // 2


def _of_other_outputs(network: ImageNetwork, *inputs: Any) -> set[str]:
    """Names of the layers on which the restored image does not depend."""
    with torch.enable_grad():
        restored = network(*inputs)[network.final_output]
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(restored.sum(), [*parameters.values()], allow_unused=True)
    return {
        name.rpartition(".")[0]
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is None
    }


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
        return _count(model, options, *(math.ceil(side / multiple) * multiple for side in size[1:]))


def network_inputs(model: DeblurModel, image: Tensor) -> tuple[Tensor | None, ...]:
    """What `net_g` is called with to restore an image (1, 3, H, W); the values are anything."""
    if not isinstance(model.net_g, Transformer):
        return (image, image) if model.restores_from_gt else (image,)
    if not model.guided:
        return image, None
    return image, image.new_empty(1, model.net_g.group**2, model.net_g.prior_dim)


def _count(model: DeblurModel, options: Mapping[str, Any], height: int, width: int) -> Complexity:
    """Count on the device that is torch's default here."""
    image = torch.empty(1, 3, height, width)
    of_network = network_inputs(model, image)
    prior = of_network[-1]
    inputs = {
        "net_g": of_network,
        "net_le": (image, image),
        "net_le_dm": (image,),
        "net_d": (prior, prior, 1),
    }
    networks = {}
    for name, network in model.networks().items():
        shapes = [tuple(i.shape) if isinstance(i, Tensor) else i for i in inputs[name]]
        key = json.dumps([options[section_of(name)], shapes], sort_keys=True, default=str)
        if key not in _COUNTED:
            _COUNTED[key] = count_operations(network, *inputs[name])
        macs, besides = _COUNTED[key]
        calls = model.diffusion.timesteps if name == "net_d" else 1
        networks[name] = NetworkComplexity(count_parameters(network), macs, calls, besides)
    return Complexity(networks, (3, height, width))
