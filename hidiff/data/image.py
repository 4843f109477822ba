"""Image files and folders of them; arrays of pixels are (H, W, 3) RGB."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from hidiff.data.decode import EXTENSIONS, decode
from hidiff.utils.errors import UserError
from hidiff.utils.files import read_regular_file, write_bytes


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as (H, W, 3) RGB, uint8 or uint16 as stored; see `decode`.

    Raises:
        UserError: the file cannot be read or decoded.
    """
    return decode(read_regular_file(path), str(path)).pixels


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 or uint16 pixels to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float pixels in [0, 1] (clipped to it), or uint16 pixels, to uint8 by rounding."""
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        image = to_float(image)
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write (H, W, 3) RGB uint8 pixels; the format follows the file name's ending.

    The file appears under its name only when it is complete, so an interrupted run leaves no
    truncated picture behind. Missing folders are made.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{path}: name a picture file, one of {', '.join(EXTENSIONS)}")
    try:
        ok, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        ok = False
    if not ok:
        raise UserError(
            f"{path}: {path.suffix} files cannot hold {image.shape[1]}×{image.shape[0]} pixels "
            "(width×height); name a .png file, or make the picture smaller"
        )
    write_bytes(path, data.tobytes(), sync=False)


def listing(names: Iterable[str], limit: int = 5) -> str:
    """The first few names of a long list, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
