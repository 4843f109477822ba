"""Options of networks read from the names and shapes of their weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction

from torch import Tensor


class Shapes:
    """The shapes of some weights by name; what a network looks for and is absent is a ValueError.

    Args:
        state_dict: tensors by name, of which only the shapes are read.
    """

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self._shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise ValueError(f"there is no tensor {name}")
        return self._shapes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def matrix(self, name: str) -> tuple[int, int]:
        """Outputs and inputs of a linear layer or of a convolution (out, in, …)."""
        shape = self[name]
        if len(shape) < 2:
            raise ValueError(f"{name} has shape {shape}, which is no layer's")
        return shape[0], shape[1]

    def count(self, pattern: str) -> int:
        """How many different texts the group of `pattern` matches at the beginning of the names."""
        return len({found[1] for name in self._shapes if (found := re.match(pattern, name))})

    def ending(self, end: str) -> list[str]:
        """The names that end so."""
        return [name for name in self._shapes if name.endswith(end)]


def square_side(tokens: int) -> int:
    """The side of a square grid of tokens; ValueError where they make none."""
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ValueError(f"{tokens} tokens are no square")
    return side


def expansion(widths: Iterable[tuple[int, int]], usual: float) -> float:
    """The factor f for which int(width · f) is the hidden width, `usual` where that fits.

    Args:
        widths: width and hidden width of each layer.
        usual: the factor to prefer; otherwise the one with the fewest decimals is returned.

    Raises:
        ValueError: no factor makes all of these hidden widths.
    """
    pairs = sorted(set(widths))
    if any(width < 1 for width, _ in pairs):
        raise ValueError("a layer has no channels")
    if all(int(width * usual) == hidden for width, hidden in pairs):
        return usual
    least = max(Fraction(hidden, width) for width, hidden in pairs)
    for decimals in range(17):
        factor = math.ceil(least * 10**decimals) / 10**decimals
        if all(int(width * factor) == hidden for width, hidden in pairs):
            return factor
    raise ValueError(f"no factor makes the hidden widths {pairs}")
