"""Archives from elsewhere, unpacked without trust."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from hidiff.utils.errors import UserError, missing

LARGEST = 400 * 2**30
"""Bytes that an archive may unpack to; RealBlur has 70 GiB."""

CHUNK = 2**20


@contextmanager
def unpacked(source: Path, place: Path) -> Iterator[Path]:
    """A folder with what a download holds: archives are unpacked, in a folder beside `place`.

    Raises:
        UserError: there is no such file, or an archive is damaged, of another kind, or would write
            outside of its folder.
    """
    if not source.exists():
        raise UserError(missing(source))
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".unpacking-", dir=place, ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        for file in files:
            if not _unpack(file, folder) and file.suffix != ".part":
                inner = file.relative_to(source) if source.is_dir() else Path(file.name)
                target = folder / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file.absolute())
        yield folder


def _unpack(file: Path, folder: Path) -> bool:
    """Unpack an archive into a folder; False where it is none.

    Raises:
        UserError: see `unpacked`.
    """
    if file.suffix.lower() in (".7z", ".rar"):
        raise UserError(
            f"{file}: archives of this kind are not read here; unpack it (7z x {file.name}) and "
            "name the folder with --from"
        )
    try:
        if file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                _check_members(file, folder, {m.filename: m.file_size for m in members})
                for member in members:
                    # A link is a file whose Unix mode says so.
                    if (member.external_attr >> 16) & 0o170000 == 0o120000:
                        raise UserError(f"{file}: it holds a link, {member.filename!r}")
                    if not member.is_dir():
                        with archive.open(member) as content:
                            _write(content, folder / member.filename)
            return True
        if not tarfile.is_tarfile(file):
            return False
        with tarfile.open(file) as archive:
            entries = archive.getmembers()
            _check_members(file, folder, {m.name: m.size for m in entries})
            for entry in entries:
                if not (entry.isfile() or entry.isdir()):
                    raise UserError(f"{file}: it holds a link or device, {entry.name!r}")
                if data := archive.extractfile(entry):
                    _write(data, folder / entry.name)
        return True
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError) as error:
        raise UserError(f"{file}: damaged, or no archive ({error}); download it again") from None


def _check_members(file: Path, folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse an archive that writes outside of its folder or asks for too much room.

    Raises:
        UserError: see above.
    """
    for name in sizes:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in name or "\0" in name:
            raise UserError(f"{file}: it would write outside of its folder: {name[:80]!r}")
    if sum(sizes.values()) > min(LARGEST, shutil.disk_usage(folder).free):
        raise UserError(f"{file}: its content has {sum(sizes.values()):.3g} bytes, too many here")


def _write(content: IO[bytes], path: Path) -> None:
    # The readers of both formats stop at the size that the archive's list of members says.
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        shutil.copyfileobj(content, target, CHUNK)
