"""Photographs: pixels and everything else that their files hold, read and written."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from hidiff.data.decode import Decoded, decode_opened, open_image
from hidiff.data.image import to_uint8
from hidiff.data.tags import (
    BYTE,
    LAYOUT,
    LONG,
    RATIONAL,
    RAW_EXIF,
    SHORT,
    UNDEFINED,
    exif_block,
    numbers,
    png_chunks,
    read_tags,
    upright,
    write_tags,
)
from hidiff.restore.image import to_image
from hidiff.utils.errors import UserError
from hidiff.utils.files import write_bytes

# Of blocks that are damaged; `Photo.notices` says what it costs.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF",
    ".webp": "WEBP", ".bmp": "BMP",
}  # fmt: skip
"""Formats that are written, by the ending of the file's name."""

_LIMITS = {"JPEG": 65500, "WEBP": 16383}
"""The longest side of an image, in pixels."""

_SEGMENT = 65000
"""Bytes of EXIF, XMP or a comment that a JPEG file can hold."""

_XMP = "XML:com.adobe.xmp"
"""Among the texts of a PNG file."""

_COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
"""Chunks of a PNG file that say what its numbers mean, beside or in place of a profile."""

_EXTRA_SAMPLES = 0x0152
_PNG_MARK = b"\x89PNG\r\n\x1a\n"

_STRIP = 64
"""Rows of a TIFF file that are compressed together."""

_EFFORT = 3
"""Of zlib, 1 to 9: 6 takes half as long again and saves a thousandth of a photograph of 16 bits."""


@dataclass(frozen=True)
class Photo(Decoded):
    """A photograph: its pixels, and everything else that its file holds.

    Args:
        exif: EXIF block without its mark; the orientation in it is 1, the thumbnail is not found.
        xmp, iptc: other blocks of metadata.
        text: by keyword, as in PNG files; the comment of a JPEG file is `Comment`.
        dpi: pixels per inch in x and y.
        colour: the chunks `_COLOUR` of a PNG file.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    text: dict[str, str] = field(default_factory=dict)
    dpi: tuple[float, float] | None = None
    colour: tuple[tuple[bytes, bytes], ...] = ()


def read_photo(data: bytes, where: str) -> Photo:
    """Decode the content of a photograph's file, and look for damage in it.

    Args:
        data: the file's bytes.
        where: the path (or database key) to name in an error.

    Raises:
        UserError: see `hidiff.data.decode.decode`.
    """
    with open_image(data, where) as image:
        decoded = decode_opened(image, data, where, thorough=True)
        image.load()  # PNG files may have texts and EXIF after the pixels.
        return _with_metadata(image, data, decoded)


def _with_metadata(image: Image.Image, data: bytes, decoded: Decoded) -> Photo:
    info = image.info
    held = {**vars(decoded)}
    try:
        held["exif"] = _upright_exif(image, data, decoded.turn)
    except (ValueError, struct.error) as error:
        held["notices"] += (f"its EXIF block is damaged and left out ({error})",)
    if isinstance(xmp := info.get("xmp"), bytes):
        held["xmp"] = re.sub(rb'(tiff:Orientation(?:="|>))[2-8]', rb"\g<1>1", xmp)
    text = {}
    if isinstance(image, PngImageFile):
        text = {key: value for key, value in image.text.items() if key not in (RAW_EXIF, _XMP)}
        held["colour"] = tuple(chunk for chunk in png_chunks(data) if chunk[0] in _COLOUR)
    if isinstance(comment := info.get("comment"), bytes):
        text["Comment"] = comment.decode(errors="surrogateescape")
    if (dpi := info.get("dpi")) and 0 < min(dpi) <= max(dpi) < 2**16:
        held["dpi"] = dpi
    iptc = [content for name, content in getattr(image, "applist", ()) if name == "APP13"]
    return Photo(**held, text=text, iptc=iptc[0] if iptc else None)


def _upright_exif(image: Image.Image, data: bytes, turn: int) -> bytes | None:
    """The EXIF block of an image, or the tags of a TIFF file as one, after the turn.

    Raises:
        ValueError, struct.error: it is damaged.
    """
    if image.format == "TIFF":
        order, tags = read_tags(data)
        tags = {tag: value for tag, value in tags.items() if tag not in LAYOUT}
        block = write_tags(order, tags) if tags else None
    else:
        block = exif_block(image, data)
    return None if block is None else upright(block, swap=turn > 4)


def to_pixels(restored: Tensor, photo: Photo) -> np.ndarray:
    """A restored image (3, H, W) in [0, 1] as pixels of its photograph's kind.

    Returns:
        (H, W, 3) uint8 or uint16; (H, W, 1), the mean of the three, of a grey photograph.
    """
    if photo.grey:
        restored = restored.mean(0, keepdim=True)
    return to_image(restored, photo.pixels.dtype.type)


def check_format_can_hold(path: Path, photo: Photo) -> None:
    """Make sure that a photograph can be written under a name, before it is restored.

    Raises:
        UserError: the format, which follows the name's ending, is none that is written, has no
            transparency, or no such size.
    """
    kind, size = FORMATS.get(path.suffix.lower()), photo.pixels.shape[1::-1]
    if kind is None:
        raise UserError(f"{path}: name a picture file, one of {', '.join(FORMATS)}")
    if photo.alpha is not None and kind in ("JPEG", "BMP"):
        raise UserError(f"{path}: {kind} files hold no transparency; use --format png")
    if max(size) > _LIMITS.get(kind, max(size)):
        raise UserError(
            f"{path}: {kind} files cannot hold {size[0]}×{size[1]} pixels (width×height); use "
            "--format png"
        )


def write_photo(path: str | os.PathLike[str], photo: Photo, pixels: np.ndarray) -> list[str]:
    """Write restored pixels with everything else that the photograph's file held.

    The format follows the name's ending: JPEG of quality 95 with full colour resolution, lossless
    WebP, compressed TIFF. The file appears under its name when it is complete.

    Args:
        path: an existing file is replaced, missing folders are made.
        photo: as it was read.
        pixels: of `to_pixels`.

    Returns:
        What the format cannot hold.

    Raises:
        UserError: see `check_format_can_hold`, or the file cannot be written.
    """
    path = Path(path)
    check_format_can_hold(path, photo)
    kind = FORMATS[path.suffix.lower()]
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha])
    held, lost = _held(photo, kind)
    if pixels.dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        pixels = to_uint8(pixels)
        lost.append("8 of the 16 bits")
    encode = {"PNG": _png, "TIFF": _tiff, "JPEG": _jpeg}.get(kind)
    data = encode(held, pixels) if encode else _encoded(
        kind, pixels, icc_profile=held.icc, exif=held.exif, xmp=held.xmp, dpi=held.dpi,
        lossless=True, exact=True,
    )  # fmt: skip
    write_bytes(path, data)
    return lost


def _held(photo: Photo, kind: str) -> tuple[Photo, list[str]]:
    """The photograph without what a format cannot hold, and the names of that."""
    blocks = {"icc": "the colour profile", "exif": "EXIF", "xmp": "XMP", "iptc": "IPTC"}
    blocks["text"] = "texts"
    lost = {"iptc"} if kind in ("PNG", "TIFF", "WEBP") else set()
    if kind == "BMP":
        lost = set(blocks)
    elif kind == "JPEG":
        lost = {name for name in ("exif", "xmp") if len(getattr(photo, name) or b"") > _SEGMENT}
        if photo.text.keys() - {"Comment"}:
            lost.add("text")
    elif kind != "PNG":
        lost.add("text")
    if kind == "WEBP" and photo.grey:
        lost.add("icc")  # WebP stores colours, and this profile is one of grey
    names = [blocks[name] for name in blocks if name in lost and getattr(photo, name)]
    kept: dict[str, Any] = dict.fromkeys(lost - {"text"})
    return replace(photo, **kept), names


def _encoded(kind: str, pixels: np.ndarray, **options: Any) -> bytes:
    """What Pillow makes of uint8 pixels (H, W, C); options that are None are left out."""
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(file, kind, **{key: value for key, value in options.items() if value is not None})
    return file.getvalue()


def _jpeg(photo: Photo, pixels: np.ndarray) -> bytes:
    comment = photo.text.get("Comment", "").encode(errors="surrogateescape")[:_SEGMENT]
    iptc = photo.iptc and b"\xff\xed" + struct.pack(">H", len(photo.iptc) + 2) + photo.iptc
    return _encoded(
        *("JPEG", pixels),
        quality=95,
        subsampling=0,
        icc_profile=photo.icc,
        exif=photo.exif and b"Exif\0\0" + photo.exif,
        xmp=photo.xmp,
        extra=iptc,
        comment=comment or None,
        dpi=photo.dpi,
    )


def _png(photo: Photo, pixels: np.ndarray) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, content in photo.colour:
        info.add(name, content)
    for key, value in photo.text.items():
        if not isinstance(value, PngImagePlugin.iTXt):
            value = value.encode(errors="surrogateescape").decode(errors="replace")
        info.add_text(key, value)
    if photo.xmp is not None:
        info.add_itxt(_XMP, photo.xmp.decode(errors="replace"))
    options = {"icc_profile": photo.icc, "exif": photo.exif, "dpi": photo.dpi, "pnginfo": info}
    if pixels.dtype == np.uint8:
        return _encoded("PNG", pixels, **options)
    # Pillow writes no colours of 16 bits, but what stands beside them.
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    step = 2 * channels
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 1  # the filter "Sub": each byte less that of the pixel before
    filtered[:, 1 : 1 + step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=filtered[:, 1 + step :])
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    own = {b"IHDR": header, b"IDAT": zlib.compress(filtered.data, _EFFORT)}
    file = io.BytesIO(_PNG_MARK)
    file.seek(0, io.SEEK_END)
    for name, content in png_chunks(
        _encoded("PNG", np.zeros_like(pixels[:1, :1], np.uint8), **options)
    ):
        PngImagePlugin.putchunk(file, name, own.get(name, content))
    return file.getvalue()


def _tiff(photo: Photo, pixels: np.ndarray) -> bytes:
    order, tags = read_tags(photo.exif) if photo.exif else ("<", {})
    height, width, channels = pixels.shape
    strips = []
    for top in range(0, height, _STRIP):
        rows = pixels[top : top + _STRIP]
        rows = np.concatenate([rows[:, :1], rows[:, 1:] - rows[:, :-1]], axis=1)
        strips.append(zlib.compress(rows.astype(order + rows.dtype.str[1:]).data, _EFFORT))
    lengths = [len(strip) for strip in strips]
    layout = {
        0x0100: (LONG, width),
        0x0101: (LONG, height),
        0x0102: (SHORT, [8 * pixels.itemsize] * channels),
        0x0103: (SHORT, 8),  # compression: deflate
        0x0106: (SHORT, 1 if channels < 3 else 2),  # grey or RGB
        0x0111: (LONG, [8, *(8 + np.cumsum(lengths[:-1]))]),
        0x0112: (SHORT, 1),
        0x0115: (SHORT, channels),
        0x0116: (LONG, _STRIP),
        0x0117: (LONG, lengths),
        0x013D: (SHORT, 2),  # each pixel less the one before
        **({_EXTRA_SAMPLES: (SHORT, 2)} if photo.alpha is not None else {}),
    }
    tags = {tag: value for tag, value in tags.items() if tag not in LAYOUT}
    tags |= {tag: numbers(order, *value) for tag, value in layout.items()}
    if photo.icc is not None:
        tags[0x8773] = UNDEFINED, photo.icc
    if photo.xmp is not None:
        tags[0x02BC] = BYTE, photo.xmp
    if photo.dpi is not None and 0x011A not in tags:
        for tag, value in zip((0x011A, 0x011B), photo.dpi, strict=True):
            tags[tag] = RATIONAL, numbers(order, LONG, [round(10000 * value), 10000])[1]
        tags[0x0128] = numbers(order, SHORT, 2)
    return write_tags(order, tags, b"".join(strips))
