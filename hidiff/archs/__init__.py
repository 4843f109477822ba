"""Networks. Importing this package registers them in `hidiff.registry.ARCHS`."""

from __future__ import annotations

import os
from collections.abc import Mapping
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


def build_network(options: Mapping[str, Any], where: str = "network") -> nn.Module:
    """Build a network from its option section, `{'type': 'Transformer', **options}`.

    Args:
        options: the section; every key but `type` is an argument of the network.
        where: the section's YAML path, for messages.

    Raises:
        UserError: unknown type, or an unknown, missing, wrong-typed or impossible option; or no
            memory can be had for the weights.
    """
    try:
        network, arguments = ARCHS.check(options, where)
        # Counted first: the kernel ends a process that fills the memory, without a word.
        with torch.device("meta"):
            parameters = sum(p.numel() for p in network(**arguments).parameters())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if 4 * parameters > memory and torch.get_default_device().type != "meta":
            raise MemoryError(f"its weights need {parameters / 2**28:.0f} GiB of memory")
        return network(**arguments)
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        # Ours and torch's words for more memory than there is, or more elements than it counts.
        if not any(word in str(error).lower() for word in ("memory", "overflow")):
            raise
        raise UserError(
            f"{where}: a network of this size cannot be built; look for an option that is too "
            f"large ({str(error).splitlines()[0]})"
        ) from None
    except UserError as error:
        message = str(error)
        # Networks do not know where their options came from.
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None
