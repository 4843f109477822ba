"""Files: complete under their final name, read without trust, one program at a time in a folder."""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import os
import re
import socket
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import torch

from hidiff.utils.errors import UserError, missing
from hidiff.utils.workers import Group

PATIENCE = 10.0
"""Seconds to wait for a program that is about to end, such as one whose torchrun was killed."""

_held: dict[Path, TextIO] = {}


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


def load_torch_file(path: Path, where: str) -> tuple[Any, str]:
    """torch.load of a file from elsewhere, on the CPU.

    Args:
        path: the file.
        where: what asks for it (a YAML path or command-line option), for messages.

    Returns:
        The content, and the SHA-256 of the file.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors and plain data.
    """
    if not path.is_file():
        problem = f"{path} is a folder; name a file in it" if path.is_dir() else missing(path)
        raise UserError(f"{where}: {problem}")
    try:
        # One open file for all of it: another one may get its name meanwhile.
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _check_sums(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True), digest
    except Exception as error:
        # Whatever the unpickler stumbles over, the file is the reason. Torch's own message is left
        # out where it advises to load untrusted files without the check.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{where}: {path} holds more than tensors and plain data ({found[1]}), which could "
                "run any code when it is read; take another file, or where you trust its source, "
                "write its weights alone to a new one: content = torch.load(FILE, "
                "weights_only=False); torch.save({'params': content[ENTRY]}, NEW_FILE)"
            ) from None
        if "weights_only" in str(error):
            reason = "its content is not tensors and plain data"
        raise UserError(
            f"{where}: {path} ({path.stat().st_size} bytes) is damaged or no weights file: "
            f"{reason}; copy or download it again"
        ) from None


def _check_sums(file: BinaryIO) -> None:
    """Compare every part of a file with its CRC-32: torch writes them and does not read them.

    Raises:
        ValueError: a part has changed since it was written.
        Exception: what else `zipfile` stumbles over in a damaged file.
    """
    file.seek(0)
    if file.read(2) != b"PK":
        return  # As torch wrote before 1.6, without sums.
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the check sum of {damaged} is another")


def hold(folder: Path, processes: Group, patience: float | None = None) -> list[str]:
    """Keep other programs out of a folder until this process ends, by whatever.

    The first process holds a lock of the operating system on `.{folder}.lock` beside the folder,
    which may so be renamed. It is a lock of the process (POSIX), which loader processes do not
    inherit, and which NFS knows.

    Args:
        folder: need not exist.
        processes: all wait for the first one's answer.
        patience: seconds to wait for another program; None: `PATIENCE`.

    Returns:
        A notice where the file system has no locks.

    Raises:
        UserError: another program holds the folder.
    """
    notices = []
    with processes.main_first():
        if processes.is_main:
            notices = _hold(folder, PATIENCE if patience is None else patience)
    return notices


def _hold(folder: Path, patience: float) -> list[str]:
    path = folder.with_name(f".{folder.name}.lock").absolute()
    if path in _held:
        return []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from None
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                file.close()
                return [
                    f"{folder}: this file system has no locks ({error.strerror}), so nothing "
                    "notices a second program that writes there"
                ]
        if time.monotonic() > deadline:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{folder} is in use by {holder}; wait for its end, or end it (kill -TERM saves "
                "first)"
            )
        time.sleep(0.2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[path] = file
    return []
