"""Reading and writing images.

Everything inside the project is RGB. Files are converted on reading, always in the same way:

- grey images become RGB by repeating the channel;
- the alpha channel of RGBA images is dropped (the colours are taken as stored);
- 16-bit images are scaled by 1/65535, 8-bit ones by 1/255.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from hidiff.errors import UserError
from hidiff.files import write_bytes

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""File name endings (lower case) taken for images in a data folder."""

# A damaged file is reported by `decode_image` with its path; OpenCV's own lines only repeat it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# OpenCV's thread pool does not survive a fork: a loader process that inherits one can wait for it
# for ever. Parallelism is between processes here.
cv2.setNumThreads(1)

_END_MARKERS = {b"\x89PNG": b"IEND", b"\xff\xd8\xff": b"\xff\xd9"}


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode an image file's content.

    Args:
        data: the file's bytes.
        where: the path (or database key) to name in an error.

    Returns:
        (H, W, 3) RGB, uint8 or uint16 as stored.

    Raises:
        UserError: the content is no image, truncated or damaged.
    """
    # Some OpenCV versions return the readable upper part of a truncated file without a word.
    for start, end in _END_MARKERS.items():
        if data.startswith(start) and end not in data[-len(data) // 2 :]:
            raise UserError(
                f"{where}: the image file is truncated ({len(data)} bytes, its end is missing); "
                "copy or download it again"
            )
    image = None
    if data:
        buffer = np.frombuffer(data, np.uint8)
        try:
            image = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        except cv2.error:
            image = None
    if image is None:
        raise UserError(
            f"{where}: not an image, or a damaged one ({len(data)} bytes); "
            "copy or download it again, or take it out of the folder"
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{where}: {image.dtype} pixels are not supported; convert to 8 or 16 bits")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as (H, W, 3) RGB, uint8 or uint16 as stored; see `decode_image`.

    Raises:
        UserError: the file cannot be read or decoded.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return decode_image(data, str(path))


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
    ok, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert ok, f"OpenCV cannot encode {path.suffix}"
    write_bytes(path, data.tobytes(), sync=False)


def list_images(folder: str | os.PathLike[str], where: str) -> dict[str, Path]:
    """The images directly inside a folder, by stem (file name without ending), in name order.

    Args:
        where: what asks for the folder (a YAML path or command-line option), for messages.

    Raises:
        UserError: the folder is missing or holds no image, or two files share a stem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise UserError(
            f"{where}: the folder {folder} {what}; "
            "datasets/README.md shows the layout, scripts/prepare_data.py makes it"
        )
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
            continue
        if path.stem in images:
            raise UserError(
                f"{where}: {images[path.stem].name} and {path.name} in {folder} share the name "
                f"'{path.stem}'; pairs are matched by it, so remove or rename one"
            )
        images[path.stem] = path
    if not images and (folder / "data.mdb").exists():
        raise UserError(f"{where}: {folder} is an LMDB; set io_backend: {{type: lmdb}}")
    if not images:
        raise UserError(
            f"{where}: {folder} holds no image ({', '.join(EXTENSIONS)}); images in "
            "sub-folders are not searched: scripts/prepare_data.py makes the flat layout"
        )
    return images
