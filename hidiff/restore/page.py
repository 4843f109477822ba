"""A page of pictures before and after: one HTML file, which loads nothing from a network.

`page.html` beside this module is the page without its pictures.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image

from hidiff.data.decode import read_header
from hidiff.data.image import to_uint8
from hidiff.restore.photo import read_photo
from hidiff.utils.errors import UserError
from hidiff.utils.files import read_regular_file, write_bytes, write_text

MARK = '<meta name="generator" content="hidiff comparison">'
"""Stands in every page, by which an earlier one is known."""

SHOWN = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
}
"""The formats that every browser shows, as Pillow calls them, and their media types.

MPO is a JPEG with more pictures behind the first one, as many phones write it.
"""

THUMBNAIL = (96, 144)
"""Largest height and width in pixels of the small pictures in the list."""


@dataclass(frozen=True)
class PageEntry:
    """A picture in two or three versions of one size.

    Args:
        name: any text.
        before, after: files of the blurry and the restored picture.
        sharp: that of the sharp one, where it is known.
        scores: what is said of the picture, such as {'PSNR': '28.10 → 33.40 dB'}.
        steps: files of the reverse process's steps, from z_T to z_0; empty where they are unknown.
    """

    name: str
    before: Path
    after: Path
    sharp: Path | None = None
    scores: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[Path] = ()


def check_replaceable(page: Path) -> None:
    """Make sure that writing a page loses nothing but an earlier page.

    Raises:
        UserError: a file is there that this module has not written, or the name is no .html.
    """
    if page.suffix != ".html":
        raise UserError(f"{page}: expected a name that ends in .html")
    try:
        with page.open("rb") as file:
            ours = MARK.encode() in file.read(1000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{page}: cannot be read ({error.strerror or error})") from None
    if not ours:
        raise UserError(f"{page} exists and is no comparison page; move it or choose another name")


def write_page(
    path: str | os.PathLike[str], entries: Sequence[PageEntry], *, title: str, embed: bool
) -> dict[str, str]:
    """Write a page on which pictures are compared, or replace an earlier one.

    The page names the pictures by their path from its folder. What browsers do not show (TIFF,
    HEIF, 16 bits, CMYK) is converted to PNG of 8 bits, in a folder `{page}_files` beside the page.

    Args:
        path: the page, a name that ends in .html.
        entries: the pictures, in the order of the list.
        title: heading, any text.
        embed: put the pictures into the page, which can then be moved and sent alone.

    Returns:
        Why pictures were left out, by name: a file is missing or damaged, the versions differ in
        size.

    Raises:
        UserError: no picture is left; the page cannot be written, or would replace another file.
    """
    page = Path(path)
    check_replaceable(page)
    items, left_out = [], {}
    for entry in entries:
        try:
            items.append(_item(entry, page, embed))
        except UserError as error:
            left_out[entry.name] = str(error)
    if not items:
        reason = next((f": {reason}" for reason in left_out.values()), "")
        raise UserError(f"{page}: there is nothing to compare{reason}")
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    parts = {"title": html.escape(title), "items": "\n".join(items)}
    parts |= {"mark": MARK, "policy": _policy(template, embed)}
    text = re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], template)
    # File names that are no UTF-8 are written with question marks.
    write_bytes(page, text.encode("utf-8", "replace"))
    return left_out


def extend_page(
    path: str | os.PathLike[str], entries: Sequence[PageEntry], *, title: str, embed: bool
) -> dict[str, str]:
    """`write_page` with the pictures of earlier calls, as far as they are still there.

    What the page shows is noted beside it, in a JSON file of its name. Nothing is written where
    there is nothing to show.
    """
    page = Path(path)
    note, folder = page.with_suffix(".json"), page.parent
    shown = {entry.name: entry for entry in (*_noted(note), *entries)}
    if not shown:
        return {}
    left_out = write_page(page, list(shown.values()), title=title, embed=embed)
    rows = [
        [
            entry.name,
            *(os.path.relpath(p, folder) for p in (entry.before, entry.after, *entry.steps)),
        ]
        for entry in shown.values()
    ]
    write_text(note, json.dumps(rows, indent=1) + "\n")
    return left_out


def _noted(note: Path) -> list[PageEntry]:
    """The entries in a file of `extend_page`; none where it is missing or of something else."""
    try:
        entries = []
        for name, *places in json.loads(read_regular_file(note)):
            before, after, *steps = (note.parent / place for place in places)
            if before.is_file() and after.is_file():
                entries.append(PageEntry(name, before, after, steps=steps))
        return entries
    except (UserError, ValueError, TypeError):
        return []


def _policy(template: str, embed: bool) -> str:
    """What the browser may load and run: the page's own script and style, and pictures beside it.

    Escaping keeps names from becoming markup; this is the second wall.
    """
    own = [
        f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'; "
        for tag, text in re.findall(r"<(style|script)>(.*?)</\1>", template, re.DOTALL)
    ]
    pictures = "data:" if embed else "data: 'self' file:"
    return (
        f"default-src 'none'; img-src {pictures}; {''.join(own)}base-uri 'none'; form-action 'none'"
    )


def _item(entry: PageEntry, page: Path, embed: bool) -> str:
    """A button of the list, with all that the script needs to know."""
    versions = {"before": entry.before, "after": entry.after, "sharp": entry.sharp}
    data, sizes = {}, set()
    for version, path in versions.items():
        if path is not None:
            data[version], size = _picture(path, page, embed)
            sizes.add(size)
    if len(sizes) > 1:
        found = ", ".join(f"{width}×{height}" for width, height in sorted(sizes))
        raise UserError(f"the versions of {entry.name} differ in size ({found})")
    ((width, height),) = sizes
    data |= {"width": str(width), "height": str(height)}
    if entry.steps:
        urls = [_picture(path, page, embed)[0] for path in entry.steps]
        data["steps"] = json.dumps(urls)
    attributes = "".join(f' data-{name}="{html.escape(value)}"' for name, value in data.items())
    scores = "".join(
        f"<span><b>{html.escape(name)}</b> {html.escape(value)}</span> "
        for name, value in entry.scores.items()
    )
    return (
        f'<li><button type="button"{attributes}>{_thumbnail(entry.after)}'
        f'<span class="name"><bdi>{html.escape(entry.name)}</bdi></span> '
        f'<span class="scores">{scores}</span></button></li>'
    )


def _picture(path: Path, page: Path, embed: bool) -> tuple[str, tuple[int, int]]:
    """Where the page finds a picture, and its width and height as it is looked at."""
    kind = _kind(path)
    if kind is None:
        content, size = _converted(path)
    else:
        header = read_header(path, str(path))
        content, size = None, (header.width, header.height)
    if embed:
        return _data_url(content or read_regular_file(path), kind or "image/png"), size
    if content is not None:
        # Named by its content, so that nothing but the same picture is ever replaced.
        digest = hashlib.sha256(content).hexdigest()[:16]
        path = page.with_name(f"{page.stem}_files") / f"{digest}.png"
        write_bytes(path, content, sync=False)
    return quote(os.fsencode(os.path.relpath(path, page.parent))), size


def _kind(path: Path) -> str | None:
    """The media type of a picture that every browser shows alike; None for another one."""
    try:
        with Image.open(path) as image:
            kind = SHOWN.get(image.format or "")
            if kind is None or image.mode == "CMYK":
                return None
            header = read_header(path, str(path))
            # Of other formats some browsers read the orientation and some do not.
            turned = kind != "image/jpeg" and header.turn != 1
            return None if turned or header.bits16 else kind
    except OSError:
        return None  # Reading it says what is wrong.


def _converted(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A picture as PNG of 8 bits in its own colour space, with its width and height."""
    photo = read_photo(read_regular_file(path), str(path))
    pixels = photo.pixels[..., 0] if photo.grey else photo.pixels
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha])
    image, content = Image.fromarray(to_uint8(pixels)), io.BytesIO()
    image.save(content, "PNG", icc_profile=photo.icc, compress_level=1)
    return content.getvalue(), image.size


def _thumbnail(path: Path) -> str:
    image = to_uint8(read_photo(read_regular_file(path), str(path)).pixels)
    height, width = image.shape[:2]
    scale = min(1.0, THUMBNAIL[0] / height, THUMBNAIL[1] / width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(image[..., ::-1], size, interpolation=cv2.INTER_AREA)
    url = _data_url(cv2.imencode(".jpg", small)[1].tobytes(), "image/jpeg")
    return f'<img alt="" loading="lazy" src="{url}">'


def _data_url(content: bytes, kind: str) -> str:
    """A file's content as a URL; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
