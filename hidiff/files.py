"""Writing files so that one under its final name is always complete."""

from __future__ import annotations

import datetime
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hidiff.errors import UserError


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """The place for `name` in a folder or in sub-folders that the name gives.

    For names that come from data, a database's keys for example.

    Raises:
        UserError: the name leads out of the folder, or is none that a file can have.
    """
    parts = name.replace("\\", "/").split("/")
    try:
        name.encode()
    except UnicodeEncodeError:
        reason = "is no UTF-8 text"
    else:
        if "\0" in name:
            reason = "holds a NUL character"
        elif os.path.splitdrive(name)[0] or not {"", ".", ".."}.isdisjoint(parts):
            reason = "leads out of its folder"
        else:
            return Path(folder, name)
    raise UserError(
        f"the image name {name!r} {reason}, so nothing can be written under it; rename the image"
    )


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file; False also for a name that no file can have (too long, NUL)."""
    return os.path.isfile(path)  # noqa: PTH113 (that of `Path` raises for such names)


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[BinaryIO]:
    """A new file that gets the name `path` when the block ends without an exception.

    It is written beside its place, under the name `.{path}.{unique}.part`, with the rights that
    the umask leaves. Missing folders are made.

    Args:
        path: the file to make or to replace.
        sync: wait until the content and the new name are on the disk, so that a power failure
            leaves the old file or the new one. Not worth its time where files are many and can be
            made again.

    Raises:
        OSError: the file cannot be written; an earlier one is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        sync_folder(path.parent)


def replace_link(path: Path, target: str) -> None:
    """Make or replace a symbolic link; see `replacing`.

    Raises:
        OSError: the file system has no links, or cannot be written.
    """
    temporary = _temporary(path)
    try:
        temporary.symlink_to(target)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    # Shortened, because a file name must not be longer than 255 bytes.
    return path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex[:12]}.part")


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    # Not every file system and operating system can; the file is in its place all the same.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def partial_files(folder: Path, name: str = "*") -> list[Path]:
    """What writes of `name` (a pattern) that were killed, or still go on, have left in a folder."""
    return sorted(folder.glob(f".{name}.part"))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A file's content.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_lines(path: str | os.PathLike[str], where: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a text file's lines that are not blank.

    Args:
        where: what names the file (a YAML path or command-line option), for messages.

    Raises:
        UserError: it cannot be read, or is no UTF-8 text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: {path} is no readable text: {error}") from None
    return ((n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip())


def write_bytes(path: str | os.PathLike[str], data: bytes, *, sync: bool = True) -> None:
    """Make or replace a file; see `replacing`.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(path, sync=sync) as file:
            file.write(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Make or replace a text file (UTF-8, line ends as given); see `write_bytes`."""
    write_bytes(path, text.encode())


def timestamp() -> str:
    """Now, as it stands in file names."""
    return datetime.datetime.now().strftime("%Y%m%d_%H%M%S")


def set_aside(path: Path) -> Path:
    """Rename a file or folder so that nothing of it is lost; returns its new path."""
    archived = path.with_name(f"{path.name}_archived_{timestamp()}")
    number = 1
    while archived.exists():
        number += 1
        archived = path.with_name(f"{path.name}_archived_{timestamp()}_{number}")
    return path.rename(archived)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
