"""Decoding images: one decoder for data sets and photographs.

Everything inside the project is RGB. Files are converted on reading, always in the same way:

- grey images become RGB by repeating the channel;
- an alpha channel is kept apart (the colours are taken as stored); data sets drop it;
- pixels of 8 and of 16 bits stay as they are; 16-bit ones are later scaled by 1/65535, others by
  1/255; 10 and 12 bits of HEIF and AVIF become 8, which is said;
- an image with an EXIF orientation is turned by it;
- a file of several pages or frames, of further bands or of floating point is refused.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError, features
from PIL.PngImagePlugin import PngImageFile

from hidiff.data.tags import (
    ORIENTATION,
    check_directories,
    exif_block,
    orientation_of,
    valid_turn,
)
from hidiff.utils.errors import UserError, is_out_of_memory
from hidiff.utils.files import is_file

with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""File name endings (lower case) taken for images in a data folder."""

# A damaged file is reported by `open_image` with its path; OpenCV's own lines only repeat it.
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

Image.init()
FORMATS: list[str] = [
    f for f in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "AVIF", "HEIF") if f in Image.OPEN
]
"""Pillow's names of the formats that are read; MPO is JPEG's."""

PHOTO_EXTENSIONS = (
    *EXTENSIONS,
    *([".avif"] if features.check("avif") else []),
    ".heic",
    ".heif",
)
"""File name endings (lower case) of photographs; HEIC needs the package pillow-heif."""

_JPEG, _PNG, _TIFF = b"\xff\xd8\xff", b"\x89PNG", (b"II*\0", b"MM\0*")
_BITS, _SAMPLES, _EXTRA_SAMPLES = 0x0102, 0x0115, 0x0152


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels are decoded.

    Args:
        height, width: pixels, after the turn that an EXIF orientation asks for.
        turn: that orientation, 1 to 8; 1 is upright.
    """

    height: int
    width: int
    grey: bool
    alpha: bool
    bits16: bool
    turn: int = 1


@dataclass(frozen=True)
class Decoded:
    """An image as it is looked at: turned as its orientation says.

    Args:
        pixels: (H, W, 3) RGB, uint8 or uint16.
        alpha: (H, W) of the same type, None where there is none.
        grey: whether the file holds one channel, which `pixels` repeats.
        turn: the orientation that was applied, 1 to 8; 1 is none.
        icc: the colour profile of the pixels; of CMYK images, which are converted, it is sRGB.
        notices: what a person should know of the reading.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    turn: int = 1
    icc: bytes | None = None
    notices: tuple[str, ...] = ()


def _header(image: Image.Image, data: bytes = b"") -> Header:
    """Of an image that is opened and not decoded yet; for `data` see `_orientation`."""
    (width, height), mode = image.size, image.mode
    # Pillow shows 16-bit colours as 8-bit ones; how a PNG file stores them is said of its tiles.
    stored = str(image.tile[0][3]) if isinstance(image, PngImageFile) else mode
    bits = getattr(image, "tag_v2", {}).get(_BITS, ())
    turn = _orientation(image, data)
    # The size of a TIFF file is turned already.
    if turn > 4 and image.format != "TIFF":
        width, height = height, width
    return Header(
        height,
        width,
        grey=stored.split(";")[0] in ("1", "L", "LA", "I", "F"),
        alpha=mode[-1:] in ("A", "a") or "transparency" in image.info,
        bits16=";16" in stored or 16 in bits,
        turn=turn,
    )


def read_header(source: Path | bytes, where: str) -> Header:
    """Read size and pixel format of an image, given as a path or as the file's bytes.

    Raises:
        UserError: see `open_image`. A file that is damaged or cut short after its header passes.
    """
    with open_image(source, where) as image:
        return _header(image)


def check_size(width: int, height: int, where: str) -> None:
    """Refuse an image with too many pixels.

    Raises:
        UserError: the message has the size, and says how to raise the limit.
    """
    text = os.environ.get("HIDIFF_MAX_MEGAPIXELS", str(MAX_MEGAPIXELS))
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise UserError(f"HIDIFF_MAX_MEGAPIXELS: must be a number above 0, not '{text}'")
    if width * height > limit * 1e6:
        raise UserError(
            f"{where}: {width}×{height} pixels (width×height) are more than {limit:g} megapixels; "
            "cut or shrink the image, or set the environment variable HIDIFF_MAX_MEGAPIXELS to a "
            "larger number"
        )


@contextmanager
def open_image(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """The image in a file, opened by Pillow; what is said of it is read, no pixels.

    Args:
        source: the file's path or its bytes.
        name: the path (or database key) to name in an error.

    Raises:
        UserError: it is no image or a damaged one (also where the block of this context stumbles
            over it), has too many pixels, or several pages or frames.
    """
    if isinstance(source, Path) and not is_file(source):
        raise UserError(f"{name}: there is no such file, or it is not a regular one")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            if file.read(4) in _TIFF:
                file.seek(0)
                check_directories(file.read())
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                check_size(*image.size, name)
                # Beside the photograph a camera's JPEG file may hold previews, depth, gain maps.
                if image.format != "MPO" and (several := getattr(image, "n_frames", 1)) > 1:
                    raise UserError(
                        f"{name}: {several} pictures in one file (an animation, or pages), and one "
                        "is wanted; save them as files of their own"
                    )
                yield image
    except UserError:
        raise
    except Exception as error:
        # Whatever the decoder stumbles over, the file is the reason.
        if is_out_of_memory(error):
            raise
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        if name.lower().endswith((".heic", ".heif")) and "HEIF" not in FORMATS:
            reason = "; HEIC files need a package that is not installed: pip install pillow-heif"
        raise UserError(
            f"{name}: truncated or damaged, not an image, or of a kind that is not read{reason}; "
            "copy or download it again, convert it to PNG of 8 or 16 bits, or take it out of the "
            "folder"
        ) from None


def decode(data: bytes, name: str, *, thorough: bool = False) -> Decoded:
    """Decode an image file's content.

    Args:
        data: the file's bytes.
        name: the path (or database key) to name in an error.
        thorough: look for damage in JPEG and 16-bit TIFF files, which decoders pass over; takes
            about a second decoding.

    Raises:
        UserError: the content is no image, truncated or damaged, has too many pixels, several
            pages, further bands, or pixels of floating point.
    """
    with open_image(data, name) as image:
        return decode_opened(image, data, name, thorough=thorough)


def decode_opened(image: Image.Image, data: bytes, name: str, *, thorough: bool = False) -> Decoded:
    """`decode` of an image that `open_image` has opened, within its context."""
    notices: list[str] = []
    header = _header(image, data)
    _require_readable(image, header, name)
    if thorough:
        _require_undamaged(image, data)
    icc = image.info.get("icc_profile")
    if header.bits16 and image.format in ("PNG", "TIFF"):
        pixels = _by_opencv(data, cv2.IMREAD_UNCHANGED)
        if pixels.dtype != np.uint16:
            raise ValueError("its 16-bit pixels are not understood")
    elif image.mode == "CMYK":
        pixels, icc, notices = _from_cmyk(image, icc)
    elif header.alpha:
        pixels = np.asarray(image.convert("RGBA"))
    elif image.format in ("JPEG", "MPO", "PNG", "BMP"):
        pixels = _by_opencv(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    else:
        pixels = np.asarray(image.convert("RGB"))
    if image.format != "TIFF":  # whose decoders turn by themselves
        pixels = _turned(pixels, header.turn)
    alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
    colours = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]
    if image.format == "MPO":
        notices.append("the further pictures in the file (previews, depth, stereo) are left out")
    if (depth := heif_depth(data)) > 8:
        notices.append(f"its {depth} bits a channel are read as 8")
    return Decoded(
        np.ascontiguousarray(np.broadcast_to(colours, (*pixels.shape[:2], 3))),
        alpha,
        header.grey,
        header.turn,
        icc,
        tuple(notices),
    )


def _orientation(image: Image.Image, data: bytes = b"") -> int:
    """That of EXIF, or else of XMP; 1 where there is none.

    Args:
        data: the whole file, in which a PNG's EXIF may stand after the pixels.
    """
    if image.format == "TIFF":
        return valid_turn(image.tag_v2.get(ORIENTATION, 1))  # type: ignore[attr-defined]
    with suppress(ValueError):
        if turn := orientation_of(exif_block(image, data) or b""):
            return turn
    xmp = image.info.get("xmp")
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp) if isinstance(xmp, bytes) else None
    return int(found[1]) if found else 1


def _require_readable(image: Image.Image, header: Header, name: str) -> None:
    """Refuse pixels that would lose something in silence."""
    tags = getattr(image, "tag_v2", {})
    extra, mode = tags.get(_EXTRA_SAMPLES, ()), image.mode
    if 0 in extra or len(extra) > 1:
        bands = tags.get(_SAMPLES, 4)
        raise UserError(
            f"{name}: {bands} bands (channels), {len(extra)} of them beside the colours, such as "
            "near infrared; save the colours alone"
        )
    premultiplied = header.bits16 and extra == (1,)
    if mode in ("I", "F", "LAB", "HSV") or premultiplied or (header.bits16 and mode == "CMYK"):
        kind = "premultiplied 16-bit" if premultiplied else "16-bit" if header.bits16 else ""
        raise UserError(
            f"{name}: {kind} pixels of the kind {mode} are not read; convert the image to RGB of 8 "
            "or 16 bits"
        )


def _by_opencv(data: bytes, flags: int) -> np.ndarray:
    """(H, W, C) pixels, RGB or RGBA where there are several channels.

    Raises:
        ValueError: it cannot be decoded.
    """
    if data.startswith(_PNG) and b"IEND" not in data[-len(data) // 2 :]:
        # Some OpenCV versions return the upper part of a truncated file without a word.
        raise ValueError("its end is missing")
    if data.startswith(_JPEG):
        # Some cameras and programs leave out the end marker. A second one is never read.
        data += b"\xff\xd9"
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ValueError("its pixels are not understood")
    pixels = np.atleast_3d(pixels)
    if pixels.shape[2] > 1:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return pixels


def _require_undamaged(image: Image.Image, data: bytes) -> None:
    """Look for damage that OpenCV passes over: in JPEG files, all that libjpeg warns of.

    Raises:
        ValueError, OSError: there is some.
    """
    if data.startswith(_JPEG):
        try:
            # At an eighth of the size all codes are read, and little else is calculated.
            simplejpeg.decode_jpeg(
                data + b"\xff\xd9", "GRAY", fastdct=True, fastupsample=True, min_height=1,
                min_width=1, min_factor=8, strict=True,
            )  # fmt: skip
        except ValueError as error:
            # Other messages are of what this decoder does not know, or of harmless oddities.
            if str(error).startswith(("Corrupt JPEG data", "Premature end")):
                raise
    else:
        image.load()


def heif_depth(data: bytes) -> int:
    """Bits a channel of a HEIF or AVIF file, by its box `pixi` (ISO/IEC 23008-12, 6.5.6)."""
    at = data.find(b"pixi", 0, 65536) if data[4:8] == b"ftyp" else -1
    return data[at + 9] if 0 <= at < len(data) - 9 else 8


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as stored → as it is looked at."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _from_cmyk(image: Image.Image, icc: bytes | None) -> tuple[np.ndarray, bytes | None, list[str]]:
    """Pixels (H, W, 3) in sRGB, its profile, and notices."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        if icc is None:
            raise ImageCms.PyCMSError("there is none")
        converted = ImageCms.profileToProfile(
            *(image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), srgb),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError) as error:
        notice = f"CMYK was converted without a colour profile ({error}); colours may be off"
        return np.asarray(image.convert("RGB")), None, [notice]
    return np.asarray(converted), srgb.tobytes(), []
