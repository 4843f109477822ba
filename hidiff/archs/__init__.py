"""Networks. Importing this package registers them in `hidiff.registry.ARCHS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hidiff.archs.denoiser import Denoiser, SimpleDenoiser
from hidiff.archs.latent_encoder import LatentEncoderGELU, LatentEncoderLReLU
from hidiff.archs.transformer import Transformer
from hidiff.errors import UserError
from hidiff.registry import ARCHS

__all__ = [
    "Denoiser",
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
        UserError: unknown type, or an unknown, missing, wrong-typed or impossible option.
    """
    try:
        return ARCHS.build(options, where)
    except UserError as error:
        message = str(error)
        # Networks do not know where their options came from.
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from None
