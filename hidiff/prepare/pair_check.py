"""What is wrong with one pair of images: damage, sizes, orientation, sides, alignment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from hidiff.data.decode import Header, decode, read_header
from hidiff.data.image import to_float
from hidiff.data.pairs import Pair
from hidiff.data.store import file_of, read_location
from hidiff.data.warnings import SHARPER, sharpness
from hidiff.metrics.realblur import find_homography
from hidiff.prepare.noise import NOISY, noise_level
from hidiff.utils.errors import UserError

MAX_SHIFT = 2.0
"""Pixels between blurry and sharp image from which a pair is misaligned: it teaches to shift."""

ALIGNED_SIDE = 400
"""Longer sides are aligned at about this size, in a fraction of the time."""


@dataclass
class PairCheck:
    """What was found in one pair.

    Attributes:
        problems: to mend.
        notes: worth knowing.
        conversions: kinds of images that reading converts.
        side: the shortest side of its images in pixels.
        sharper: the blurry image is clearly the sharper one; None where that was not measured.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conversions: set[str] = field(default_factory=set)
    side: int = 0
    sharper: bool | None = None


def check_pair(
    pair: Pair,
    *,
    patch_size: int | None = None,
    fast: bool = False,
    photographs: bool = False,
    align: bool = False,
) -> PairCheck:
    """Read a pair and look for what is wrong with it.

    Args:
        patch_size: report images with a side below this many pixels.
        fast: read the images' headers only.
        photographs: the images are sharp, and must not be noisy.
        align: measure by how much the blurry image lies beside the sharp one.
    """
    found, headers, images = PairCheck(), [], []
    for side, location in (("blurry", pair.lq), ("sharp", pair.gt)):
        if location is None:
            continue
        try:
            image = None
            if fast and location == file_of(location):
                header = read_header(Path(location), location)
            else:
                data = read_location(location)
                header = read_header(data, location)
                image = None if fast else decode(data, location, thorough=True).pixels
        except UserError as error:
            found.problems.append(f"{pair.name} ({side}): {error}")
            continue
        headers.append(header)
        images.append(image)
        if patch_size is not None and min(header.height, header.width) < patch_size:
            found.problems.append(
                f"{pair.name} ({side}): {header.width}×{header.height} is smaller than the patch "
                f"size {patch_size}; take the pair out (both images) or train with smaller patches"
            )
        if photographs and image is not None and (level := noise_level(image)) > NOISY:
            found.notes.append(
                f"{pair.name} is noisy ({level:.1f} of 255), or fine texture everywhere; networks "
                "learn to make such noise: take it out, or make it smaller (the option scale)"
            )
        kinds = (
            (header.grey, "grey"),
            (header.alpha, "with an alpha channel"),
            (header.bits16, "of 16 bits"),
        )
        found.conversions |= {f"{side} images {kind}" for is_so, kind in kinds if is_so}
    if len(headers) == 2:
        found.side = min(min(header.height, header.width) for header in headers)
        _compare(pair, headers, images, found, align=align)
    return found


def _compare(
    pair: Pair,
    headers: list[Header],
    images: list[np.ndarray | None],
    found: PairCheck,
    *,
    align: bool,
) -> None:
    """Look for what is wrong between the two images of a pair."""
    blurry, sharp = headers
    if blurry.turn != sharp.turn:
        found.problems.append(
            f"{pair.name}: the images are turned differently by their orientation tags "
            f"(blurry {blurry.turn}, sharp {sharp.turn}, 1 is upright); save both upright, or "
            "check by eye that they fit when turned"
        )
    if (blurry.height, blurry.width) != (sharp.height, sharp.width):
        found.problems.append(
            f"{pair.name}: blurry is {blurry.width}×{blurry.height}, sharp "
            f"{sharp.width}×{sharp.height} (width×height)"
        )
        return
    lq, gt = images
    if lq is None or gt is None:
        # Without the pixels only two names of one file can be told; LMDB keys are no files.
        assert pair.gt is not None
        files = Path(pair.lq), Path(pair.gt)
        identical = all(file.is_file() for file in files) and files[0].samefile(files[1])
    else:
        identical = np.array_equal(lq, gt)
    if identical:
        found.problems.append(f"{pair.name}: the blurry image is identical to the sharp one")
    elif lq is not None and gt is not None:
        found.sharper = sharpness(lq) > SHARPER * sharpness(gt)
        distance = shift(lq, gt) if align else 0.0
        if distance is None:
            found.problems.append(
                f"{pair.name}: no alignment of the blurry with the sharp image was found"
            )
        elif distance > MAX_SHIFT:
            found.problems.append(
                f"{pair.name}: misaligned, the blurry image lies {distance:.1f} pixels beside the "
                "sharp one"
            )


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
