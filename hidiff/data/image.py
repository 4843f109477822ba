"""Image files and folders of them; arrays of pixels are (H, W, 3) RGB."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from hidiff.data.decode import EXTENSIONS, decode
from hidiff.utils.errors import UserError, missing
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


def _entries(folder: str | os.PathLike[str], where: str) -> tuple[list[Path], list[str]]:
    """The image files of a folder, and the names of everything else in it but hidden files."""
    images, others = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                # Asked for the type first: it costs no access to the file.
                if entry.is_dir():
                    others.append(f"{entry.name}/")
                elif Path(entry.name).suffix.lower() in EXTENSIONS:
                    images.append(Path(entry.path))
                else:
                    others.append(entry.name)
    except FileNotFoundError:
        raise UserError(
            f"{where}: the folder {missing(folder)}; "
            "datasets/README.md shows the layout, hidiff prepare makes it"
        ) from None
    except NotADirectoryError:
        raise UserError(
            f"{where}: {folder} is a file, and a folder is wanted; all images of a folder are "
            f"used: name {Path(folder).parent}, or put the file into a folder of its own"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: the folder {folder} cannot be read ({reason})") from None
    return sorted(images), sorted(others)


def listing(names: Iterable[str], limit: int = 5) -> str:
    """The first few names of a long list, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def passed_over(folder: str | os.PathLike[str], where: str) -> str | None:
    """A notice of what `list_images` leaves out of a folder; None when that is nothing.

    Raises:
        UserError: the folder cannot be read.
    """
    others = _entries(folder, where)[1]
    if not others:
        return None
    return (
        f"{where}: {len(others)} of the files and sub-folders in {folder} are not used "
        f"({listing(others)}); images are files that end in {', '.join(EXTENSIONS)}"
    )


def list_images(folder: str | os.PathLike[str], where: str) -> dict[str, Path]:
    """The images directly inside a folder, by stem (file name without ending), in name order.

    Args:
        where: what asks for the folder (a YAML path or command-line option), for messages.

    Raises:
        UserError: the folder is missing or holds no image, or the stems of two files are equal
            but for upper and lower case.
    """
    folder = Path(folder)
    images: dict[str, Path] = {}
    by_case: dict[str, Path] = {}
    paths, others = _entries(folder, where)
    for path in paths:
        # Results are files of these names, which Windows and macOS would mix up.
        other = by_case.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise UserError(
                f"{where}: {other.name} and {path.name} in {folder} share a name, but for ending "
                "and upper or lower case; pairs are matched by it, so remove or rename one"
            )
        images[path.stem] = path
    if images:
        return images
    if (folder / "data.mdb").exists():
        raise UserError(f"{where}: {folder} is an LMDB; set io_backend: {{type: lmdb}}")
    found = f"it holds {listing(others)}" if others else "it is empty"
    inner = next((name for name in others if name.endswith("/")), None)
    advice = (
        f"images in sub-folders are not searched: name one of them, such as {folder / inner}, or "
        "make the flat layout with hidiff prepare"
        if inner
        else "datasets/README.md shows the layout, hidiff prepare makes it"
    )
    raise UserError(
        f"{where}: {folder} holds no image ({', '.join(EXTENSIONS)}); {found}; {advice}"
    )
