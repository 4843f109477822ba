"""Which network some weights are of, by the names of their tensors."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import torch

from hidiff.registry import ARCHS

ALIKE = 0.5
"""Least share of patterns that weights have in common with a network that they may be of."""


def look_alikes(names: Iterable[str]) -> list[str]:
    """The registered types whose parameter names are the most similar, whatever their sizes.

    Several where equally similar, none where all have hardly anything in common with the names.
    """
    patterns = _patterns(names)
    shares = {kind: _share(patterns, _patterns_of(kind)) for kind in ARCHS}
    best = max(shares.values())
    return [kind for kind, share in shares.items() if share == best >= ALIKE]


@functools.cache
def _patterns_of(kind: str) -> frozenset[str]:
    """Of a type with its default options."""
    with torch.device("meta"):
        return _patterns(ARCHS.build({"type": kind}, kind).state_dict())


def _patterns(names: Iterable[str]) -> frozenset[str]:
    """The names and their ends at each dot, without what numbers them (`encoder_s1_lv1`).

    With the ends, a part of a network is similar to the whole.
    """
    found = set()
    for name in {re.sub(r"(_[a-z]*)?\d+", "", name) for name in names}:
        parts = name.split(".")
        found |= {".".join(parts[start:]) for start in range(len(parts))}
    return frozenset(found)


def _share(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
