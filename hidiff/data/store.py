"""Where the images of one side of a data set lie: files or an LMDB, read in one way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hidiff.data.image import Header, list_images, passed_over, read_header
from hidiff.data.lmdb_store import LmdbImages
from hidiff.utils.files import is_file, read_bytes


class ImageFiles:
    """Image files by path.

    Attributes:
        names: the key of each image (its path) by name, in order.
        notices: what a person should know of the place and is no mistake.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names = names or {}
        self.notices: list[str] = []

    @classmethod
    def in_folder(cls, folder: str, where: str) -> ImageFiles:
        """The images directly inside a folder; for the errors see `list_images`."""
        files = cls({name: str(path) for name, path in list_images(folder, where).items()})
        notice = passed_over(folder, where)
        files.notices = [] if notice is None else [notice]
        return files

    def read(self, key: str) -> bytes:
        """The file's bytes, for `hidiff.data.image.decode_image`."""
        return read_bytes(key)

    def header(self, key: str) -> Header:
        """See `hidiff.data.image.read_header`; no more of the file is read."""
        return read_header(Path(key), key)

    def location(self, key: str) -> str:
        """What tells the image apart from all others, for messages and caches."""
        return key

    def file(self, key: str) -> Path:
        """The file that it is read from."""
        return Path(key)


ImageStore = ImageFiles | LmdbImages
"""Encoded images by key; an LMDB has the same attributes and methods."""


def open_store(root: str, where: str, kind: str | None = None) -> ImageStore:
    """The images of a folder or LMDB.

    Args:
        kind: 'disk' or 'lmdb'; None looks.

    Raises:
        UserError: there is no such folder or LMDB, or no image in it.
    """
    if kind is None:
        kind = "lmdb" if root.endswith(".lmdb") or is_file(Path(root, "data.mdb")) else "disk"
    return LmdbImages(root, where) if kind == "lmdb" else ImageFiles.in_folder(root, where)
