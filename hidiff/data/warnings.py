"""Mistakes in data that training would not stumble over, looked for in a few pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from hidiff.data.decode import decode
from hidiff.data.image import listing, to_float
from hidiff.data.pairs import Pair
from hidiff.data.store import read_location
from hidiff.utils.errors import UserError

LOOKED_AT = 5
"""Pairs that are compared, spread over the data set."""

SHARPER = 1.1
"""The blurry images are taken for the sharp ones from this ratio of their sharpness on."""


def sharpness(image: np.ndarray) -> float:
    """The mean absolute Laplacian of an image (H, W, 3) at half its size, where noise is less."""
    if min(image.shape[:2]) < 2:
        return 0.0
    grey = cv2.cvtColor(to_float(image), cv2.COLOR_RGB2GRAY)
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return float(np.abs(cv2.Laplacian(half, cv2.CV_32F)).mean())


def pair_warnings(pairs: Sequence[Pair], where: str) -> list[str]:
    """What is strange about the two sides of a data set.

    Says whether they seem to be swapped, are identical, or are turned differently by orientation
    tags. Pairs that cannot be read are passed over: reading them says what is wrong.

    Args:
        where: the data set, for messages (a YAML path or command-line option).
    """
    taken = [pair for pair in pairs if pair.gt not in (None, pair.lq)]
    looked_at = taken[:: max(len(taken) // LOOKED_AT, 1)][:LOOKED_AT]
    sharper, same, turned = [], [], []
    for pair in looked_at:
        try:
            lq, gt = (decode(read_location(str(side)), pair.name) for side in (pair.lq, pair.gt))
        except UserError:
            continue
        if lq.turn != gt.turn:
            turned.append(pair.name)
        if np.array_equal(lq.pixels, gt.pixels):
            same.append(pair.name)
        elif sharpness(lq.pixels) > SHARPER * sharpness(gt.pixels):
            sharper.append(pair.name)
    warnings = []
    if looked_at and len(sharper) == len(looked_at):
        warnings.append(
            "in all pairs that were looked at the blurry image is sharper than the sharp one; are "
            "the two folders swapped?"
        )
    if same:
        warnings.append(
            f"the blurry and the sharp image are identical in pairs such as {listing(same, 2)}; is "
            "one folder a copy of the other?"
        )
    if turned:
        warnings.append(
            "blurry and sharp image are turned differently by their orientation tags in pairs such "
            f"as {listing(turned, 2)}; hidiff check lists all of them"
        )
    return [f"{where}: {warning}" for warning in warnings]


def shared_pairs(training: Sequence[Pair], others: Mapping[str, Sequence[Pair]]) -> list[str]:
    """Warnings about validation sets, by name, that hold images which are trained on."""
    trained = {place for pair in training for place in (pair.lq, pair.gt)}
    warnings = []
    for name, pairs in others.items():
        shared = [pair.name for pair in pairs if trained & {pair.lq, pair.gt}]
        if shared:
            warnings.append(
                f"{name}: {len(shared)} of its {len(pairs)} pairs are trained on, too "
                f"({listing(shared, 2)}), so its scores say little about other images"
            )
    return warnings
