"""The reference values in tests/golden, and the rule that fills networks with weights."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hidiff.benchmark.golden import GOLDEN, SCHEDULES, fill, image, normal, relative_error

__all__ = ["GOLDEN", "SCHEDULES", "fill", "image", "normal", "relative_error"]

PRESETS = tuple(SCHEDULES)


@cache
def load_json(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


@cache
def load_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as file:
        return dict(file)


def gradient_norms(network: nn.Module, loss: Tensor) -> dict[str, float]:
    """The norm of the loss's gradient over the parameters of each part of the network."""
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    squares: dict[str, float] = defaultdict(float)
    for key, gradient in zip(parameters, gradients, strict=True):
        squares[key.split(".")[0]] += gradient.square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}
