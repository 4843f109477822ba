"""Directories of tags: what EXIF blocks and TIFF files say of an image (TIFF 6.0, section 2).

They are copied byte by byte. Pillow decodes the values and encodes them again, which turns text
that is not ASCII into question marks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

Tags = dict[int, "tuple[int, bytes] | Tags"]
"""By number: kind and bytes of a value, or the directory that the tag points to."""

ORIENTATION = 0x0112
EXIF_MARK = b"Exif\0\0"
MOST = 2**20
"""Bytes of metadata that are carried from one file to another."""

SHORT, LONG, RATIONAL, BYTE, UNDEFINED = 3, 4, 5, 1, 7
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Bytes of a value, by its kind."""

EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005
DIRECTORIES: dict[int, Any] = {EXIF: {INTEROPERABILITY: {}}, GPS: {}}
"""Tags that point to directories, and those in them."""

SIDES = ((0x0100, 0x0101), (0xA002, 0xA003))
"""Width and height in the first directory and in EXIF's."""

LAYOUT = {
    *range(254, 269), *range(273, 282), 284, *range(288, 294), 301, 317, *range(320, 348),
    *range(512, 533), 700, 34377, 34675, 37724,
}  # fmt: skip
"""Tags of a TIFF file that say how its pixels are stored, and those kept apart or not at all: XMP,
the colour profile, and what Photoshop adds (layers and previews of the image as it was)."""


RAW_EXIF = "Raw profile type exif"
"""The text of a PNG file in which ImageMagick wrote EXIF."""


def _order(block: bytes) -> str:
    """The byte order, as `struct` calls it.

    Raises:
        ValueError: it is no such block.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(block[:4]))
    if order is None:
        raise ValueError("no EXIF block")
    return order


def _fields(block: bytes, order: str, at: int) -> Iterator[tuple[int, int]]:
    """Tag and position of each entry of a directory."""
    (count,) = struct.unpack_from(f"{order}H", block, at)
    for position in range(at + 2, at + 2 + 12 * count, 12):
        yield struct.unpack_from(f"{order}H", block, position)[0], position


def check_directories(block: bytes) -> None:
    """Look over the directories of a TIFF file before anything in them is read.

    Raises:
        ValueError, struct.error: one is damaged, or its values lie over each other, so that a small
            file would become gigabytes.
    """
    order = _order(block)
    waiting = [struct.unpack_from(f"{order}I", block, 4)[0]]
    known = {EXIF, GPS, INTEROPERABILITY}
    seen = set()
    total = 0
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        for tag, position in _fields(block, order, at):
            kind, count, first = struct.unpack_from(f"{order}HII", block, position + 2)
            total += SIZES.get(kind, 1) * count
            if tag in known and first < len(block):
                waiting.append(first)
    if total > len(block):
        raise ValueError(f"its tags name {total} bytes in a file of {len(block)}")


def valid_turn(found: Any) -> int:
    """An orientation as EXIF counts, 1 to 8; 1 (upright) for anything else."""
    return found if found in range(1, 9) else 1


def orientation_of(block: bytes) -> int:
    """The orientation in an EXIF block, 1 to 8; 0 where there is none, or the block is damaged."""
    with suppress(ValueError, struct.error):
        order = _order(block)
        for tag, position in _fields(block, order, struct.unpack_from(f"{order}I", block, 4)[0]):
            if tag == ORIENTATION:
                return valid_turn(struct.unpack_from(f"{order}H", block, position + 8)[0])
    return 0


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each chunk of a PNG file."""
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, data[at + 8 : at + 8 + length]
        at += 12 + length


def exif_block(image: Image.Image, data: bytes) -> bytes | None:
    """The EXIF block of an image that is not TIFF, without its mark; None where there is none.

    Raises:
        ValueError: one that ImageMagick wrote as text is damaged.
    """
    if image.format == "PNG":
        for name, content in png_chunks(data):
            if name == b"eXIf":
                return content
        if RAW_EXIF.encode() in data:
            image.load()  # Texts may stand after the pixels.
            if text := image.text.get(RAW_EXIF):  # type: ignore[attr-defined]
                return bytes.fromhex("".join(text.split("\n")[3:])).removeprefix(EXIF_MARK)
    block = image.info.get("exif")
    return None if block is None else block.removeprefix(EXIF_MARK)


def read_tags(block: bytes) -> tuple[str, Tags]:
    """Byte order and tags of an EXIF block, or of the first image of a TIFF file.

    A thumbnail, directories that EXIF does not know, and what is damaged are left out.

    Raises:
        ValueError, struct.error: the first directory is damaged, or holds more than `MOST`.
    """
    order = _order(block)
    total = 0

    def read(at: int, inner: Mapping) -> Tags:
        nonlocal total
        tags: Tags = {}
        for tag, position in _fields(block, order, at):
            kind, count, first = struct.unpack_from(f"{order}HII", block, position + 2)
            if tag in inner:
                with suppress(struct.error):
                    tags[tag] = read(first, inner[tag])
            elif kind in SIZES:
                size = SIZES[kind] * count
                start = position + 8 if size <= 4 else first
                total += 0 if tag in LAYOUT else size
                if total > MOST:
                    raise ValueError(f"more than {MOST} bytes of it")
                value = bytes(block[start : start + size])
                if len(value) == size:
                    tags[tag] = kind, value
        return tags

    return order, read(struct.unpack_from(f"{order}I", block, 4)[0], DIRECTORIES)


def write_tags(order: str, tags: Tags, pixels: bytes = b"") -> bytes:
    """An EXIF block; with pixels, which begin at byte 8, a TIFF file."""

    def write(tags: Tags, at: int) -> bytes:
        entries, values = b"", b""
        begin = at + 2 + 12 * len(tags) + 4
        for tag, value in sorted(tags.items()):
            kind, data = (LONG, b"") if isinstance(value, dict) else value
            count = len(data) // SIZES[kind]
            if isinstance(value, dict) or len(data) > 4:
                position = begin + len(values)
                data = write(value, position) if isinstance(value, dict) else data
                values += data + bytes(len(data) % 2)
                data = struct.pack(f"{order}I", position)
            entries += struct.pack(f"{order}HHI", tag, kind, max(count, 1)) + data.ljust(4, b"\0")
        return struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values

    at = 8 + len(pixels) + len(pixels) % 2
    mark = b"II*\0" if order == "<" else b"MM\0*"
    start = mark + struct.pack(f"{order}I", at) + pixels
    return start.ljust(at, b"\0") + write(tags, at)


def upright(block: bytes, *, swap: bool) -> bytes:
    """An EXIF block of pixels that were turned as it says: its orientation is 1.

    Nothing moves in it, because the notes of many cameras hold positions. The thumbnail, which
    shows the image as it was, is no longer found.

    Args:
        block: without the `Exif` mark that precedes it in a JPEG file.
        swap: exchange width and height.

    Raises:
        ValueError, struct.error: the first directory is damaged.
    """
    order, changed = _order(block), bytearray(block)
    (first,) = struct.unpack_from(f"{order}I", block, 4)
    main = dict(_fields(block, order, first))
    inner = {}
    if EXIF in main:
        at = struct.unpack_from(f"{order}I", block, main[EXIF] + 8)[0]
        with suppress(struct.error):
            inner = dict(_fields(block, order, at))
    if ORIENTATION in main:
        value = struct.pack(f"{order}HIHH", SHORT, 1, 1, 0)
        changed[main[ORIENTATION] + 2 : main[ORIENTATION] + 12] = value
    for places, (width, height) in zip((main, inner), SIDES, strict=True):
        if swap and {width, height} <= places.keys():
            one, other = (slice(places[tag] + 2, places[tag] + 12) for tag in (width, height))
            changed[one], changed[other] = block[other], block[one]
    end = first + 2 + 12 * len(main)
    changed[end : end + 4] = bytes(4)
    return bytes(changed)


def numbers(order: str, kind: int, values: int | Sequence[int]) -> tuple[int, bytes]:
    """A tag's value: whole numbers of the kind SHORT or LONG."""
    return kind, np.atleast_1d(values).astype(f"{order}u{SIZES[kind]}").tobytes()
