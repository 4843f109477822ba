"""The quickstart's data set: photographs of scikit-image blurred by simulated camera shake.

Nothing is downloaded; training and test pairs are made of different photographs. The layout is that
of GoPro: {train,test}/{input,target}, where `input` is blurry and `target` sharp. A seed always
gives the same files with the same library versions.
"""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage

from hidiff.data.image import read_image, write_image
from hidiff.synthesis.shake import shake
from hidiff.utils.errors import UserError
from hidiff.utils.files import file_sha256, set_aside, write_text

RECIPE = 1
"""Raise this with every change that alters the files."""

RECORD = "made_with.json"
"""File with the recipe, the seed and the SHA-256 of every image."""

STRENGTH = (0.8, 0.95)
"""Limits of the random strength of a shake; see `hidiff.synthesis.shake.shake`."""

MARGIN = 12
"""Pixels cut off on every side after the shake, so that no mirrored border is in a pair."""


@dataclass(frozen=True)
class Photograph:
    """Pairs to make of one photograph: each has its own shake, place and scale.

    Attributes:
        file: name in scikit-image's data folder.
        sizes: (height, width) in pixels of every pair to make.
        scales: limits of the random factor, at most 1, by which the photograph is made smaller.
    """

    file: str
    sizes: tuple[tuple[int, int], ...]
    scales: tuple[float, float]


PHOTOGRAPHS = {
    "train": (
        # The two motorcycles are one scene seen by two cameras: they must stay on one side.
        Photograph("motorcycle_left.png", ((320, 320),) * 9, (0.7, 1.0)),
        Photograph("motorcycle_right.png", ((320, 320),) * 9, (0.7, 1.0)),
        Photograph("chelsea.png", ((272, 336),) * 6, (0.99, 1.0)),
        Photograph("rocket.jpg", ((320, 320),) * 6, (0.82, 1.0)),
        Photograph("coins.png", ((272, 336),) * 6, (0.98, 1.0)),
        Photograph("brick.png", ((320, 320),) * 4, (0.7, 1.0)),
        Photograph("gravel.png", ((320, 320),) * 3, (0.7, 1.0)),
        Photograph("grass.png", ((320, 320),) * 3, (0.7, 1.0)),
    ),
    "test": (
        Photograph("astronaut.png", ((384, 384), (320, 320), (256, 384)), (0.8, 1.0)),
        # Sides that are no multiple of 8 show that any image size can be restored.
        Photograph("coffee.png", ((320, 384), (301, 350)), (0.86, 1.0)),
        Photograph("camera.png", ((320, 384), (263, 381)), (0.82, 1.0)),
    ),
}


def read_photograph(name: str) -> np.ndarray:
    """A photograph from the installed scikit-image, (H, W, 3) uint8 RGB.

    Raises:
        UserError: this version of scikit-image does not bring it along.
    """
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise UserError(
            f"{path} is missing: scikit-image {version('scikit-image')} is installed without it; "
            "install it from PyPI: python -m pip install --force-reinstall 'scikit-image>=0.22,<1'"
        )
    return read_image(path)


def make_pair(
    photograph: np.ndarray,
    size: tuple[int, int],
    scales: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """(blurry, sharp) of the given size, cut at a random place out of the photograph made smaller.

    Shapes are (H, W, 3), uint8; `size` and `scales` as in `Photograph`.
    """
    height, width = size[0] + 2 * MARGIN, size[1] + 2 * MARGIN
    scale = rng.uniform(*scales)
    scaled = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top = rng.integers(scaled.shape[0] - height, endpoint=True)
    left = rng.integers(scaled.shape[1] - width, endpoint=True)
    blurry, sharp = shake(
        scaled[top : top + height, left : left + width],
        rng=rng,
        strength=rng.uniform(*STRENGTH),
    )
    inside = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    return blurry[inside], sharp[inside]


def make_quickstart(folder: Path, seed: int = 0) -> bool:
    """Make the data set, unless it is there as this recipe and seed make it.

    The images are made in a new folder beside the wanted one, which takes its place only when it is
    complete. Anything else that is there is set aside under another name, never removed.

    Returns:
        Whether anything was written.

    Raises:
        UserError: the folder cannot be made, or scikit-image came without its photographs.
    """
    made_with: dict[str, Any] = {"recipe": RECIPE, "seed": seed, "files": {}}
    try:
        if folder.is_dir() and _is_complete(folder, made_with):
            return False
        unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}")
        try:
            made_with["files"] = _make_images(unfinished, seed)
            write_text(unfinished / RECORD, json.dumps(made_with, indent=1) + "\n")
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                set_aside(folder)
            unfinished.replace(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"--output: {folder} cannot be made ({error.strerror or error}); "
            "free some space or choose another folder"
        ) from None
    return True


def _is_complete(folder: Path, made_with: dict[str, Any]) -> bool:
    """Whether the record says the same but for the files, and every file is as it was made."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = record["files"].items()
        same = {**record, "files": {}} == made_with
        return same and all(file_sha256(folder / name) == digest for name, digest in files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _make_images(folder: Path, seed: int) -> dict[str, str]:
    """Write every image of the data set; the SHA-256 of each by its name in the folder."""
    digests = {}
    for split, photographs in PHOTOGRAPHS.items():
        for photograph in photographs:
            pixels = read_photograph(photograph.file)
            for number, size in enumerate(photograph.sizes, start=1):
                name = f"{Path(photograph.file).stem}-{number}.png"
                # Seeded by name: a pair stays as it is when others are added or removed.
                rng = np.random.default_rng([seed, *f"{split}/{name}".encode()])
                pair = make_pair(pixels, size, photograph.scales, rng)
                for side, image in zip(("input", "target"), pair, strict=True):
                    place = f"{split}/{side}/{name}"
                    write_image(folder / place, image)
                    digests[place] = file_sha256(folder / place)
    return digests
