"""Reading and writing images.

Everything inside the project is RGB. Files are converted on reading, always in the same way:

- grey images become RGB by repeating the channel;
- the alpha channel of RGBA images is dropped (the colours are taken as stored);
- 16-bit images are scaled by 1/65535, 8-bit ones by 1/255;
- an image with an EXIF orientation is turned by it, as OpenCV does.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from hidiff.utils.errors import UserError, missing
from hidiff.utils.files import read_bytes, write_bytes

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""File name endings (lower case) taken for images in a data folder."""

# A damaged file is reported by `decode_image` with its path; OpenCV's own lines only repeat it.
# OpenCV 4 has the function at one place, OpenCV 5 at the other; 0 is silence.
(getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)

# OpenCV's thread pool does not survive a fork: a loader process that inherits one can wait for it
# for ever. Parallelism is between processes here.
cv2.setNumThreads(1)

MAX_MEGAPIXELS = 200.0
"""Larger images are refused, as a few megabytes of file can decode to gigabytes; the environment
variable HIDIFF_MAX_MEGAPIXELS replaces this number."""

# The limit above is the one that counts; Pillow's own would refuse with another message.
Image.MAX_IMAGE_PIXELS = None

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_JPEG, _PNG, _TIFF = b"\xff\xd8\xff", b"\x89PNG", (b"II*\0", b"MM\0*")
_ORIENTATION, _BITS = 0x0112, 0x0102


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels are decoded; sizes in pixels."""

    height: int
    width: int
    grey: bool
    alpha: bool
    bits16: bool


def read_header(source: Path | bytes, where: str) -> Header:
    """Read size and pixel format of an image, given as a path or as the file's bytes.

    The size is that after the turn which an EXIF orientation asks for.

    Raises:
        UserError: the file cannot be read or is no image. A file that is damaged or cut short
            after its header passes.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            start = file.read(26)
            file.seek(0)
            with Image.open(file, formats=_FORMATS) as image:
                (width, height), mode = image.size, image.mode
                bits = image.tag_v2.get(_BITS, ()) if isinstance(image, TiffImageFile) else ()
                # Pillow turns TIFF files itself; it would decode a PNG to look for an EXIF block.
                if "exif" in image.info and image.getexif().get(_ORIENTATION, 1) > 4:
                    width, height = height, width
    except (OSError, ValueError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or "not an image, or a damaged one"
        raise UserError(f"{where}: {reason}; copy or download it again") from None
    # Pillow shows 16-bit colours as 8-bit ones. Byte 24 of a PNG is the bit depth, 25 the type.
    png = start.startswith(_PNG)
    return Header(
        height,
        width,
        grey=mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;"),
        alpha=mode in ("LA", "PA", "RGBA") or (png and start[25] in (4, 6)),
        bits16=mode.startswith("I;16") or (png and start[24] == 16) or 16 in bits,
    )


def _max_megapixels() -> float:
    text = os.environ.get("HIDIFF_MAX_MEGAPIXELS")
    try:
        limit = MAX_MEGAPIXELS if text is None else float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise UserError(f"HIDIFF_MAX_MEGAPIXELS: must be a number above 0, not '{text}'")
    return limit


def check_size(width: int, height: int, where: str) -> None:
    """Refuse an image with too many pixels.

    Raises:
        UserError: the message has the size and the way out.
    """
    if width * height > _max_megapixels() * 1e6:
        raise UserError(
            f"{where}: {width}×{height} pixels (width×height) are more than "
            f"{_max_megapixels():g} megapixels; cut or shrink the image, or set the environment "
            "variable HIDIFF_MAX_MEGAPIXELS to a larger number"
        )


def _damage(data: bytes) -> str | None:
    """What is wrong with a file that OpenCV would decode without an exception, as far as known.

    Of a JPEG, everything that libjpeg warns of. An undamaged header and valid codes are all there
    is to check in formats without checksums: other damage there cannot be told from an image.
    """
    if data.startswith(_PNG):
        # Some OpenCV versions return the upper part of a truncated file without a word.
        return None if b"IEND" in data[-len(data) // 2 :] else "its end is missing"
    if data.startswith(_JPEG):
        try:
            # At an eighth of the size all codes are read, and little else is calculated.
            simplejpeg.decode_jpeg(
                data, "GRAY", fastdct=True, fastupsample=True, min_height=1, min_width=1,
                min_factor=8, strict=True,
            )  # fmt: skip
        except ValueError as error:
            # Other messages are of what this decoder does not know, or of harmless oddities.
            if str(error).startswith(("Corrupt JPEG data", "Premature end")):
                return str(error)
    if data.startswith(_TIFF):
        # OpenCV ignores errors of decompression and returns what came before them.
        try:
            with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
                image.load()
        except UnidentifiedImageError:
            return None  # A kind that Pillow does not know, and OpenCV may.
        except (OSError, ValueError, SyntaxError) as error:
            return str(error)
    return None


def checked(data: bytes, where: str) -> bytes:
    """The bytes of an image file to decode, looked over before anything large is allocated.

    A file whose header is not understood passes: a decoder may know better.

    Args:
        data: the file's bytes.
        where: the path (or database key) to name in an error.

    Raises:
        UserError: the image is truncated or damaged, as far as known, or has too many pixels.
    """
    try:
        header = read_header(data, where)
    except UserError:
        header = None
    if header is not None:
        check_size(header.width, header.height, where)
    if data.startswith(_JPEG):
        # Some cameras and programs leave out the end marker. A second one is never read.
        data += b"\xff\xd9"
    if (damage := _damage(data)) is not None:
        raise UserError(
            f"{where}: the image file is truncated or damaged ({len(data)} bytes; {damage}); "
            "copy or download it again, or take it out of the folder"
        )
    return data


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode an image file's content.

    Args:
        data: the file's bytes.
        where: the path (or database key) to name in an error.

    Returns:
        (H, W, 3) RGB, uint8 or uint16 as stored.

    Raises:
        UserError: the content is no image, truncated or damaged, or has too many pixels.
    """
    data = checked(data, where)
    image = None
    if data:
        buffer = np.frombuffer(data, np.uint8)
        try:
            image = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        except cv2.error:
            image = None
    if image is None:
        raise UserError(
            f"{where}: not an image, a damaged one, or of a kind that is not read "
            f"({len(data)} bytes); copy or download it again, convert it to PNG of 8 or 16 bits, "
            "or take it out of the folder"
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{where}: {image.dtype} pixels are not supported; convert to 8 or 16 bits")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as (H, W, 3) RGB, uint8 or uint16 as stored; see `decode_image`.

    Raises:
        UserError: the file cannot be read or decoded.
    """
    return decode_image(read_bytes(path), str(path))


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
