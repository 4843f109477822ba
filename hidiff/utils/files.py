"""Files: complete under their final name, read without trust, one program at a time in a folder."""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hidiff.utils.errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from hidiff.utils.distributed import Processes

PATIENCE = 10.0
"""Seconds to wait for a program that is about to end, such as one whose torchrun was killed."""

LARGEST_FILE = 2 * 2**30
"""Bytes of the largest image, video frame or table that is read."""

LARGEST_TEXT = 64 * 2**20
"""Bytes of the largest text file that is read."""

_locks: dict[Path, BaseFileLock] = {}
"""Those that this process holds."""


def safe_join(folder: str | os.PathLike[str], name: str) -> Path:
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
    # Shortened, because a file name must not be longer than 255 bytes.
    temporary = path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex[:12]}.part")
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
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
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


def read_regular_file(path: str | os.PathLike[str], limit: int = LARGEST_FILE) -> bytes:
    """A file's content, for files from elsewhere.

    Pipes, sockets and devices, which may never end, are refused before they are read.

    Args:
        path: the file.
        limit: bytes that it may have.

    Raises:
        UserError: it is no regular file, is larger, or cannot be read.
    """
    try:
        with _open_regular(path) as file:
            large = os.fstat(file.fileno()).st_size > limit
            data = b"" if large else file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from None
    if large:
        raise UserError(f"{path}: has more than {limit / 2**20:.4g} MiB, so it is not read")
    return data


def _open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened.
        ValueError: the name holds a NUL character, or there is something else than a file.
    """

    def opener(name: str, flags: int) -> int:
        # A pipe would otherwise wait for somebody who writes.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=opener)  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is a pipe, device or socket, and no file")
    return file


def read_lines(path: str | os.PathLike[str], where: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a text file's lines that are not blank.

    Args:
        where: what names the file (a YAML path or command-line option), for messages.

    Raises:
        UserError: it cannot be read, or is no UTF-8 text (with or without a byte order mark).
    """
    try:
        text = read_regular_file(path, LARGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {path} is no UTF-8 text: {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
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


def archive(path: Path) -> Path:
    """Rename a file or folder so that nothing of it is lost; returns its new path."""
    stem = f"{path.name}_archived_{timestamp()}"
    archived, number = path.with_name(stem), 1
    while archived.exists():
        number += 1
        archived = path.with_name(f"{stem}_{number}")
    return path.rename(archived)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_folder(
    folder: Path, processes: Processes | None = None, patience: float = PATIENCE
) -> list[str]:
    """Keep other programs out of a folder until this process ends, by whatever.

    The first process holds a lock of the operating system on `.{folder}.lock` beside the folder,
    which may so be renamed.

    Args:
        folder: need not exist.
        processes: all wait for the first one's answer; None for this process alone.
        patience: seconds to wait for another program.

    Returns:
        A notice where the file system has no locks.

    Raises:
        UserError: another program holds the folder, or the lock file is a symbolic link or cannot
            be made.
    """
    if processes is None:
        return _lock(folder, patience)
    notices = []
    with processes.main_first():
        if processes.is_main:
            notices = _lock(folder, patience)
    return notices


def _lock(folder: Path, patience: float) -> list[str]:
    import filelock

    path = folder.with_name(f".{folder.name}.lock").absolute()
    if path in _locks:
        return []
    lock = filelock.FileLock(path, timeout=patience, poll_interval=0.2, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(
                f"{path} is no regular file, and locks follow no links; remove it and start again"
            )
        # Whether it can be made is one question, whether it can be locked another.
        path.touch()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from None
    try:
        lock.acquire()
    except filelock.Timeout:
        holder = "another process"
        with suppress(OSError, ValueError):
            holder = path.read_text(encoding="utf-8").strip()[:200] or holder
        raise UserError(
            f"{folder} is in use by {holder}; wait for its end, or end it (kill -TERM saves first)"
        ) from None
    except (OSError, NotImplementedError) as error:
        return [
            f"{folder}: this file system has no locks ({getattr(error, 'strerror', error)}), so "
            "nothing notices a second program that writes there"
        ]
    with suppress(OSError):  # Windows lets nobody write to what is locked
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    _locks[path] = lock
    return []
