"""Reading what torch.save has written, without trusting it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hidiff.errors import UserError, missing


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
