"""Files of torch.save from elsewhere, read without trust."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hidiff.utils.errors import UserError, missing

ENTRIES = ("params", "params_ema", "state_dict", "model")
"""Under which published files keep the weights, in the order in which they are looked for."""

NO_WEIGHTS = {
    b"version https://git-lfs": "it is the pointer of Git LFS to a file; fetch that one with "
    "`git lfs pull`",
    b"<!doctype html": "it is a web page, not the file; open the address in a browser and take the "
    "download from there",
}
"""How files begin that are no weights, and what they are."""


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
            _check_beginning(file)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _check_records(file)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        _check_sizes(content)
    except Exception as error:
        # Whatever the unpickler stumbles over, the file is the reason. Torch's own message is left
        # out where it advises to load untrusted files without the check.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{where}: {path} holds more than tensors and plain data ({found[1]}), which could "
                "run any code when it is read; take another file, or where you trust its source, "
                f"write its weights alone to a new one: {_conversion(path)}"
            ) from None
        if "weights_only" in str(error):
            reason = "its content is not tensors and plain data"
        raise UserError(
            f"{where}: {path} ({path.stat().st_size} bytes) is damaged or no weights file: "
            f"{reason}; copy or download it again"
        ) from None
    return content, digest


def _conversion(path: Path) -> str:
    """A command that writes the weights of a pickled model, or of a table with one, to a file."""
    new = path.with_name(f"{path.stem}_weights.pth")
    return (
        f"python -c \"import torch; c = torch.load({str(path)!r}, map_location='cpu', "
        f"weights_only=False); c = c if hasattr(c, 'state_dict') else next(c[k] for k in {ENTRIES} "
        "if k in c); torch.save({'params': c.state_dict() if hasattr(c, 'state_dict') else c}, "
        f'{str(new)!r})"'
    )


def _check_beginning(file: BinaryIO) -> None:
    """Tell apart what is often downloaded in place of weights.

    Raises:
        ValueError: the file is such.
    """
    beginning = file.read(200).lstrip().lower()
    file.seek(0)
    for mark, words in NO_WEIGHTS.items():
        if beginning.startswith(mark) or (b"html" in mark and beginning.startswith(b"<html")):
            raise ValueError(words)


def _check_records(file: BinaryIO) -> None:
    """Compare every part of a file with its CRC-32: torch writes them and does not read them.

    Raises:
        ValueError: a part has changed since it was written, or is compressed, which torch.save
            never does: a small file could ask for any amount of memory.
        Exception: what else `zipfile` stumbles over in a damaged file.
    """
    file.seek(0)
    if file.read(2) != b"PK":
        return  # As torch wrote before 1.6, without sums.
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{record.filename} is compressed")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"checksum mismatch in {damaged}")


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (Mapping, list, tuple)):
        for part in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(part)


def _check_sizes(content: Any) -> None:
    """Refuse tensors that have more numbers than the file (strides of 0).

    Raises:
        ValueError: there is one.
    """
    for tensor in _tensors(content):
        if tensor.layout != torch.strided or (
            tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise ValueError(f"a tensor {tuple(tensor.shape)} is larger than its data")
