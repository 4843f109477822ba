"""The reference values in tests/golden and the rule that fills networks with weights."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
PRESETS = ("gopro", "realblur", "hidiff2")
SCHEDULES = {
    "gopro": {"apply_ldm": False, "timesteps": 8},
    "realblur": {"apply_ldm": True, "timesteps": 16},
    "hidiff2": {"apply_ldm": True, "timesteps": 16},
}


@cache
def load_json(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


@cache
def load_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as file:
        return dict(file)


def fill(
    network: nn.Module, prefix: str, *, gain: float = 1.0, but: Collection[str] = ()
) -> nn.Module:
    """Fill every tensor of the state dict by the rule of the reference values.

    Args:
        gain: factor of weights with two or more axes.
        but: keys that are left as they are.
    """
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key in but:
                continue
            seed = zlib.crc32(f"{prefix}.{key}".encode())
            x = np.random.RandomState(seed).standard_normal(tuple(tensor.shape))
            if key.endswith("temperature") or (key.endswith("weight") and tensor.ndim < 2):
                x = 1 + 0.1 * x
            elif key.endswith("weight"):
                x = gain * x / np.sqrt(np.prod(tensor.shape[1:]))
            else:
                x = 0.1 * x
            tensor.copy_(torch.from_numpy(np.asarray(x)))
    return network


def image(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).random_sample(shape)).to(dtype)


def normal(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).to(dtype)


def gradient_norms(network: nn.Module, loss: Tensor) -> dict[str, float]:
    """The norm of the loss's gradient over the parameters of each part of the network."""
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    squares: dict[str, float] = defaultdict(float)
    for key, gradient in zip(parameters, gradients, strict=True):
        squares[key.split(".")[0]] += gradient.square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}


def relative_error(out: Tensor, reference: Any) -> float:
    reference = torch.as_tensor(reference, dtype=torch.float64)
    return float((out.detach().double() - reference).norm() / reference.norm())
