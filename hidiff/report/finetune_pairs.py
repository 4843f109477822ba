"""The pairs in a folder: where they are, which are held out, and which are not used and why."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from hidiff.data.image import listing, read_image, to_float
from hidiff.data.pairs import find_pairs as pairs_of
from hidiff.metrics.realblur import find_homography
from hidiff.utils.errors import UserError, suggestion
from hidiff.utils.workers import available_cores, run_in_order

MAX_SHIFT = 2.0
"""Pixels between blurry and sharp image from which they are no pair: they would teach to shift."""

ALIGNED_SIDE = 400
"""Longer sides are measured at about this size, in a fraction of the time."""


@dataclass(frozen=True)
class FoundPair:
    """A blurry and a sharp image of the same name.

    Args:
        scene: what its pictures have in common: folders, or else their name without the number.
        lq, gt: the files.
        test: it lies in a folder `test`.
    """

    scene: str
    lq: Path
    gt: Path
    test: bool


def find_pairs(data: Path) -> list[FoundPair]:
    """All pairs in a folder and its sub-folders, in order; see `hidiff.data.pairs.find_pairs`.

    Raises:
        UserError: there are none, or an image has no counterpart.
    """
    pairs = []
    for pair in pairs_of(data).pairs:
        assert pair.gt is not None
        scene = pair.scene or data.name
        held_out = pair.part not in ("", "train")
        pairs.append(FoundPair(scene, Path(pair.lq), Path(pair.gt), held_out))
    return pairs


def split(
    pairs: Sequence[FoundPair], *, test: Sequence[str], held_out: int | None, seed: int
) -> tuple[list[FoundPair], list[FoundPair]]:
    """The pairs to train on, and those that are held out to score.

    A part `test` of the folder is held out. Where there is none, a tenth of the scenes is, at least
    one: pictures of one scene on both sides would make the result look better than it is.

    Args:
        test: scenes or names of pairs to hold out.
        held_out: the number of pairs to hold out, the last by name, whatever scene they show.
        seed: of the choice of scenes.

    Raises:
        UserError: a name is unknown, or nothing is left on one side.
    """
    scenes = sorted({pair.scene for pair in pairs})
    if any(pair.test for pair in pairs):
        if test or held_out:
            raise UserError(
                "--test, --held_out: the folder has a part 'test', which is held out; leave them "
                "out, or move it away"
            )
        chosen = {pair for pair in pairs if pair.test}
    elif test:
        known = {*scenes, *(pair.lq.stem for pair in pairs)}
        for name in test:
            if name not in known:
                raise UserError(
                    f"--test: there is no scene or pair '{name}'{suggestion(name, scenes)}"
                )
        chosen = {pair for pair in pairs if {pair.scene, pair.lq.stem} & set(test)}
    elif held_out:
        chosen = set(pairs[-held_out:])
    elif len(scenes) == 1:
        raise UserError(
            f"--data: all {len(pairs)} pairs are of one scene, '{scenes[0]}', and scores on a "
            "scene that was trained on say little about others. Give each scene a folder, name "
            "what to hold out with --test, or take the last pairs by name with --held_out N"
        )
    else:
        held = random.Random(seed).sample(scenes, max(1, round(len(scenes) / 10)))
        chosen = {pair for pair in pairs if pair.scene in held}
    rest = [pair for pair in pairs if pair not in chosen]
    if not rest:
        raise UserError("--data: all pairs are held out, and none is left to train on")
    return rest, [pair for pair in pairs if pair in chosen]


def shift(blurry: np.ndarray, sharp: np.ndarray) -> float | None:
    """By how many pixels a blurry image lies beside the sharp one.

    The median over the inner part of the image, by the homography that ECC finds.

    Args:
        blurry, sharp: (H, W, 3) uint8 or uint16 RGB.

    Returns:
        Pixels; None where no alignment is found.
    """
    factor = max(1, round(max(sharp.shape[:2]) / ALIGNED_SIDE))
    small = [
        cv2.resize(to_float(side), None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        for side in (blurry, sharp)
    ]
    warp = find_homography(*small)
    if warp is None:
        return None
    height, width = small[1].shape[:2]
    parts = (0.25, 0.5, 0.75)
    points = np.array([[x * width, y * height, 1] for x in parts for y in parts])
    moved = points @ warp.T
    distances = np.linalg.norm(moved[:, :2] / moved[:, 2:] - points[:, :2], axis=1)
    return factor * float(np.median(distances))


def usable(
    pairs: Sequence[FoundPair], least_side: int
) -> tuple[list[FoundPair], dict[str, str], int]:
    """The pairs that can be used; the others' blurry files, each with the reason.

    Args:
        least_side: of images in pixels.

    Returns:
        The pairs, the others, and the shortest side in pixels of the images to use.

    Raises:
        UserError: more than half of the pairs cannot be used.
    """

    def measured(pair: FoundPair) -> tuple[str | None, int]:
        try:
            blurry, sharp = read_image(pair.lq), read_image(pair.gt)
        except UserError as error:
            return str(error), 0
        side = min(blurry.shape[:2])
        if blurry.shape != sharp.shape:
            return "blurry and sharp image have two sizes", side
        if side < least_side:
            return f"a side of {side} pixels is less than {least_side}", side
        distance = shift(blurry, sharp)
        if distance is None:
            return "no alignment with the sharp image was found", side
        if distance > MAX_SHIFT:
            return f"the blurry image lies {distance:.1f} pixels beside the sharp one", side
        return None, side

    good, left_out, sides = [], {}, []
    results = run_in_order(pairs, read=measured, workers=available_cores())
    for pair, (reason, side) in zip(pairs, results, strict=True):
        if reason is None:
            good.append(pair)
            sides.append(side)
        else:
            left_out[str(pair.lq)] = reason
    if len(left_out) > len(pairs) / 2:
        reasons = [f"{name}: {reason}" for name, reason in left_out.items()]
        raise UserError(
            f"--data: {len(left_out)} of {len(pairs)} pairs cannot be used, which is more than a "
            f"mistake in some: {listing(reasons, 3)}"
        )
    return good, left_out, min(sides)
