"""One program at a time in the folder of an experiment or of its results."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from hidiff.errors import UserError
from hidiff.parallel import Group

PATIENCE = 10.0
"""Seconds to wait for a program that is about to end, such as one whose torchrun was killed."""

_held: dict[Path, TextIO] = {}


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
