"""Directories of tags: what EXIF blocks and TIFF files say of an image (TIFF 6.0, section 2).

They are copied byte by byte. Pillow decodes the values and encodes them again, which turns text
that is not ASCII into question marks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

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


class Field(NamedTuple):
    """An entry of a directory: `length` values at `place`, if they have more than 4 bytes."""

    tag: int
    position: int
    kind: int
    length: int
    place: int


def _directory(block: bytes, order: str, at: int) -> list[Field]:
    """The entries of the directory that begins at a byte of the block."""
    (count,) = struct.unpack_from(f"{order}H", block, at)
    fields = []
    for position in range(at + 2, at + 2 + 12 * count, 12):
        tag, *rest = struct.unpack_from(f"{order}HHII", block, position)
        fields.append(Field(tag, position, *rest))
    return fields


def _start(block: bytes) -> tuple[str, int]:
    """The byte order, as `struct` calls it, and where the first directory begins.

    Raises:
        ValueError: it is no such block.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(block[:4]))
    if order is None:
        raise ValueError("no EXIF block")
    return order, struct.unpack_from(f"{order}I", block, 4)[0]


def check_directories(block: bytes) -> None:
    """Look over the directories of a TIFF file before anything in them is read.

    Raises:
        ValueError, struct.error: one is damaged, or its values lie over each other, so that a small
            file would become gigabytes.
    """
    order, first = _start(block)
    waiting = [first]
    total = 0
    for at in waiting:
        for field in _directory(block, order, at):
            total += SIZES.get(field.kind, 1) * field.length
            inner = field.tag in (EXIF, GPS, INTEROPERABILITY) and field.place < len(block)
            if inner and field.place not in waiting:
                waiting.append(field.place)
    if total > len(block):
        raise ValueError(f"its tags name {total} bytes in a file of {len(block)}")


def valid_turn(found: Any) -> int:
    """An orientation as EXIF counts, 1 to 8; 1 (upright) for anything else."""
    return found if found in range(1, 9) else 1


def orientation_of(block: bytes) -> int:
    """The orientation in an EXIF block, 1 to 8; 0 where there is none, or the block is damaged."""
    with suppress(ValueError, struct.error):
        order, first = _start(block)
        for field in _directory(block, order, first):
            if field.tag == ORIENTATION:
                return valid_turn(struct.unpack_from(f"{order}H", block, field.position + 8)[0])
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
    order, first = _start(block)
    total = 0

    def read(at: int, inner: Mapping) -> Tags:
        nonlocal total
        tags: Tags = {}
        for field in _directory(block, order, at):
            if field.tag in inner:
                with suppress(struct.error):
                    tags[field.tag] = read(field.place, inner[field.tag])
            elif field.kind in SIZES:
                size = SIZES[field.kind] * field.length
                total += 0 if field.tag in LAYOUT else size
                if total > MOST:
                    raise ValueError(f"more than {MOST} bytes of it")
                start = field.position + 8 if size <= 4 else field.place
                value = bytes(block[start : start + size])
                if len(value) == size:
                    tags[field.tag] = field.kind, value
        return tags

    return order, read(first, DIRECTORIES)


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
    order, first = _start(block)
    changed = bytearray(block)
    main = {field.tag: field for field in _directory(block, order, first)}
    inner: dict[int, Field] = {}
    if EXIF in main:
        with suppress(struct.error):
            inner = {f.tag: f for f in _directory(block, order, main[EXIF].place)}
    # What follows the tag in an entry: kind, count and value, 10 bytes.
    if ORIENTATION in main:
        start = main[ORIENTATION].position + 2
        changed[start : start + 10] = struct.pack(f"{order}HIHH", SHORT, 1, 1, 0)
    for places, sides in zip((main, inner), SIDES, strict=True):
        if swap and places.keys() >= {*sides}:
            starts = [places[tag].position + 2 for tag in sides]
            for start, other in zip(starts, starts[::-1], strict=True):
                changed[start : start + 10] = block[other : other + 10]
    end = first + 2 + 12 * struct.unpack_from(f"{order}H", block, first)[0]
    changed[end : end + 4] = bytes(4)
    return bytes(changed)


def numbers(order: str, kind: int, values: int | Sequence[int]) -> tuple[int, bytes]:
    """A tag's value: whole numbers of the kind SHORT or LONG."""
    return kind, np.atleast_1d(values).astype(f"{order}u{SIZES[kind]}").tobytes()
