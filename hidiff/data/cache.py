"""Decoded images as one `.npy` file each, which all processes of a machine map into memory."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hidiff.data.store import file_of
from hidiff.utils.errors import UserError
from hidiff.utils.files import replacing


def file_identity(path: str | os.PathLike[str]) -> list[Any]:
    """What a file is recognised by: absolute path, bytes and time of change (ns)."""
    place = os.path.abspath(path)  # noqa: PTH100 (links are to keep their names)
    try:
        status = os.stat(place)  # noqa: PTH116
    except OSError:
        return [place, None, None]  # Reading the file will say what is wrong with it.
    return [place, status.st_size, status.st_mtime_ns]


class ImageCache:
    """A folder of decoded images, each written when it is read for the first time.

    A file's name depends on the image's location and on size and time of the file that it is
    decoded from, so changed data gets new files, and several data sets can share a folder. Files
    appear under their names when they are complete: processes need not wait for each other.

    Args:
        folder: made when missing. In /dev/shm it lies in memory.
        where: what asks for the cache (a YAML path), for messages.
    """

    def __init__(self, folder: str | os.PathLike[str], where: str) -> None:
        self.folder = Path(folder).absolute()
        self.where = where

    def read(self, location: str, decode: Callable[[str], np.ndarray]) -> np.ndarray:
        """The image at a location as a read-only map of its file, (H, W, 3) uint8 or uint16.

        Args:
            decode: makes the image from its location where it is not in the folder yet.

        Raises:
            UserError: the image cannot be decoded, or the folder not be written or read.
        """
        # Versions of OpenCV decode JPEG files to pixels that differ by rounding.
        known = json.dumps([cv2.__version__, location, file_identity(file_of(location))])
        path = self.folder / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.npy"
        try:
            if not path.exists():
                image = decode(location)
                with replacing(path, sync=False) as file:
                    np.save(file, image)
            return np.load(path, mmap_mode="r")
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "make room, or " if full else ""
            raise UserError(
                f"{self.where}: {path} cannot be used ({error.strerror or error}); {hint}name a "
                "folder on another disk or in /dev/shm, or leave the option out"
            ) from None
        except (ValueError, EOFError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{self.where}: {path} is damaged ({error}); delete it to have it made again"
            ) from None
