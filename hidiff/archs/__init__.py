"""Networks. Importing this package registers them in `hidiff.registry.ARCHS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from hidiff.archs.baselines import DiffIREncoder
from hidiff.archs.denoiser import Denoiser, SimpleDenoiser
from hidiff.archs.image_network import ImageNetwork
from hidiff.archs.latent_encoder import LatentEncoderGELU, LatentEncoderLReLU
from hidiff.archs.transformer import Transformer
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError

__all__ = [
    "Denoiser",
    "DiffIREncoder",
    "ImageNetwork",
    "LatentEncoderGELU",
    "LatentEncoderLReLU",
    "SimpleDenoiser",
    "Transformer",
    "build_network",
]


_FIT: set[str] = set()
"""Networks that fit into the memory. Counting one's parameters takes as long as building it, and a
comparison builds the same ones many times."""


def build_network(options: Mapping[str, Any], where: str = "network") -> nn.Module:
    """Build a network from its option section, `{'type': 'Transformer', **options}`.

    Args:
        options: the section; every key but `type` is an argument of the network.
        where: the section's YAML path, for messages.

    Raises:
        UserError: unknown type, or an unknown, missing, wrong-typed or impossible option; or the
            weights do not fit into this machine's memory.
    """
    try:
        network, arguments = ARCHS.check(options, where)
        if torch.get_default_device().type != "meta":
            _require_memory(network, arguments)
        return network(**arguments)
    except UserError as error:
        message = str(error)
        # Networks do not know where their options came from.
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None


def _require_memory(network: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
    """Refuse a network whose weights alone exceed the memory, before the kernel ends the process.

    Raises:
        UserError: see above.
    """
    key = f"{network} {arguments} {torch.get_default_dtype()}"
    if key in _FIT:
        return
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in network(**arguments).parameters())
    except (OverflowError, RuntimeError, TypeError) as error:
        # Torch's words for more elements than it can count.
        if "overflow" not in str(error).lower():
            raise
        raise UserError(f"a network of this size cannot be built ({error})") from None
    needed = parameters * torch.finfo(torch.get_default_dtype()).bits // 8
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"its {parameters:.3g} parameters need {needed / 2**30:.0f} GiB and this machine has "
            f"{memory / 2**30:.0f} GiB of memory; look for an option that is too large"
        )
    _FIT.add(key)
