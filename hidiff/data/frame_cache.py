"""Decoded frames in one memory-mapped file, which all processes of a machine share.

A cache is two files: `frames-X.bin` holds the pixels, `frames-X.json` says where each frame lies in
it, the SHA-256 of its pixels and that of the index itself. X is a fingerprint of what the frames
were decoded from, so changed data gets another cache, and several data sets can share a folder.
Only the process that holds the lock of the folder writes, under temporary names; the index gets its
name last, and without it there is no cache.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from hidiff.utils.errors import UserError
from hidiff.utils.files import partial_files, replacing
from hidiff.utils.workers import available_cores, run_in_order

ALIGNMENT = 64
"""Frames begin at multiples of this many bytes."""

_FORMAT = 2
_SAMPLE = 16
"""Frames decoded to tell how much room the cache needs."""

Decode = Callable[[str], np.ndarray]
"""From a frame's location to its pixels, (H, W, 3) uint8 or uint16."""


@dataclass(frozen=True)
class Frame:
    """One entry of the index.

    Args:
        location: the image file, or the database and key, as error messages name it.
        shape: (H, W, 3).
        dtype: 'uint8' or 'uint16'.
        offset: of the first byte in the file of the pixels.
        sha256: of the pixels' bytes.
        error: why the image could not be decoded; it then has no pixels here.
    """

    location: str
    shape: tuple[int, ...] = (0, 0, 3)
    dtype: str = "uint8"
    offset: int = 0
    sha256: str = ""
    error: str | None = None


def file_identity(path: str | os.PathLike[str]) -> list[Any]:
    """What a file is recognised by: absolute path, bytes and time of change (ns)."""
    place = os.path.abspath(path)  # noqa: PTH100 (links are to keep their names)
    try:
        status = os.stat(place)  # noqa: PTH116
    except OSError:
        return [place, None, None]  # Reading the file will say what is wrong with it.
    return [place, status.st_size, status.st_mtime_ns]


def _sha256(image: np.ndarray) -> str:
    return hashlib.sha256(image.data).hexdigest()


def _checksum(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index).encode()).hexdigest()


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class FrameCache:
    """The decoded frames of a data set; built when there is none in the folder yet.

    Each process maps the file when it first reads, so an instance can go to DataLoader workers
    however these are started. A frame is compared with its SHA-256 when a process first reads it.

    Args:
        folder: where the cache is or will be; made when missing. In /dev/shm it lies in memory.
        locations: what tells the frames apart, in a fixed order, each once.
        identity: changes when any frame does (JSON values), see `file_identity`.
        decode: reads a frame from its location; called in threads, and only while building.
        where: what asks for the cache (a YAML path), for messages.

    Raises:
        UserError: the folder cannot be used, or has no room for the cache.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        locations: Sequence[str],
        *,
        identity: Sequence[Any],
        decode: Decode,
        where: str,
    ) -> None:
        # Versions of OpenCV decode JPEG files to pixels that differ by rounding.
        text = json.dumps([_FORMAT, cv2.__version__, *identity])
        name = f"frames-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        self.where = where
        self.folder = Path(folder).absolute()
        self.data = self.folder / f"{name}.bin"
        self.index = self.folder / f"{name}.json"
        self._numbers = {location: number for number, location in enumerate(locations)}
        self._opened: tuple[list[Frame], np.ndarray] | None = None
        self._verified: set[int] = set()
        if not self.index.exists():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with self._lock():
                    # Whoever held the lock may have built it.
                    if not self.index.exists():
                        self._build(locations, decode)
            except OSError as error:
                raise UserError(
                    f"{where}: no cache can be made in {self.folder} ({error.strerror or error}); "
                    "name a folder on a local disk or in /dev/shm, or leave the option out"
                ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_verified": set()}

    def read(self, location: str) -> np.ndarray | None:
        """A frame as a read-only view (H, W, 3) of the file, None where it could not be decoded.

        Raises:
            UserError: the cache is damaged; the message names its files.
        """
        if self._opened is None:
            self._opened = self._open()
        frames, pixels = self._opened
        number = self._numbers[location]
        frame = frames[number]
        if frame.error is not None:
            return None
        image = np.ndarray(frame.shape, frame.dtype, buffer=pixels, offset=frame.offset)
        if number not in self._verified:
            if _sha256(image) != frame.sha256:
                raise self._damaged(f"the pixels of {location} are not those that were written")
            self._verified.add(number)
        return image

    def _open(self) -> tuple[list[Frame], np.ndarray]:
        try:
            content = json.loads(self.index.read_text(encoding="utf-8"))
            if content.pop("sha256") != _checksum(content):
                raise ValueError("its checksum does not fit")
            frames = [Frame(**{**e, "shape": tuple(e["shape"])}) for e in content["frames"]]
            size = self.data.stat().st_size
            pixels = np.memmap(self.data, np.uint8, "r") if size else np.empty(0, np.uint8)
        except OSError as error:
            raise self._damaged(f"{error.filename}: {error.strerror or error}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(f"its index cannot be understood: {error}") from None
        if size != content["bytes"]:
            raise self._damaged(f"{size} bytes, where {content['bytes']} were written")
        return frames, np.asarray(pixels)

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self.where}: the cache {self.data} is damaged ({what}); delete {self.data.name} and "
            f"{self.index.name} in {self.folder} to have it built again"
        )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the folder's lock, which the kernel takes back from a process that dies."""
        with (self.folder / "frames.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"{self.where}: waiting for another process that builds in {self.folder}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _build(self, locations: Sequence[str], decode: Decode) -> None:
        """Write both files; the lock is held."""
        # What a build that died has left: without an index the pixels are nobody's.
        for path in (*partial_files(self.folder, "frames-*"), self.data):
            path.unlink(missing_ok=True)
        needed = _needed(locations, decode)
        free = shutil.disk_usage(self.folder).free
        no_room = UserError(
            f"{self.where}: the decoded images need about {_size(needed)}, and {self.folder} has "
            f"{_size(free)} free; make room, name a folder on another disk, or leave the option out"
        )
        if needed > free:
            raise no_room
        _say(
            f"{self.where}: decoding {len(locations)} images into {self.data}, about "
            f"{_size(needed)}; this is done once"
        )
        try:
            with replacing(self.data) as file:
                frames = self._write_pixels(file, locations, decode)
                size = file.tell()
            index = {"bytes": size, "frames": [dataclasses.asdict(frame) for frame in frames]}
            # After a power failure the index must not outlive the pixels: those are on the disk.
            with replacing(self.index) as file:
                file.write(json.dumps({**index, "sha256": _checksum(index)}).encode())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_room from None
            raise
        errors = [frame.error for frame in frames if frame.error is not None]
        if errors:
            _say(f"{self.where}: {len(errors)} images cannot be used, the first: {errors[0]}")

    def _write_pixels(self, file: Any, locations: Sequence[str], decode: Decode) -> list[Frame]:
        def load(location: str) -> tuple[np.ndarray | None, str]:
            try:
                image = np.ascontiguousarray(decode(location))
            except UserError as error:
                return None, str(error)
            return image, _sha256(image)

        frames = []
        with (
            tqdm(total=len(locations), desc=self.where, unit="image", disable=None) as bar,
            # More threads than cores, because reading waits for the disk.
            closing(run_in_order(locations, read=load, workers=available_cores() + 4)) as loaded,
        ):
            for location, (image, text) in zip(locations, loaded, strict=True):
                if image is None:
                    frames.append(Frame(location, error=text))
                else:
                    file.write(bytes(-file.tell() % ALIGNMENT))
                    frames.append(Frame(location, image.shape, str(image.dtype), file.tell(), text))
                    file.write(image)
                bar.update()
        return frames


def _needed(locations: Sequence[str], decode: Decode) -> float:
    """Bytes of all frames, estimated from some that are spread over them."""
    sizes = []
    for location in locations[:: -(-len(locations) // _SAMPLE)]:
        try:
            sizes.append(decode(location).nbytes + ALIGNMENT)
        except UserError:
            continue
    return sum(sizes) / max(len(sizes), 1) * len(locations)
