"""Where encoded images lie: files, or an LMDB in the layout that BasicSR writes.

An image is named by one string, its location: the path of its file, or `X.lmdb/data.mdb/KEY`. An
LMDB is a folder with `data.mdb`; its keys are the images' names without ending, `000/00000000` for
example.
"""

from __future__ import annotations

import functools
import os
import threading
import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

from hidiff.data.decode import EXTENSIONS
from hidiff.data.image import listing
from hidiff.utils.errors import UserError, counted_from, missing
from hidiff.utils.files import is_file, read_regular_file

_DATABASE = f"{os.sep}data.mdb{os.sep}"
_lock = threading.Lock()


def read_location(location: str) -> bytes:
    """The encoded image at a location, for `hidiff.data.decode.decode`.

    Raises:
        UserError: it is not there or cannot be read.
    """
    folder, inside, key = location.partition(_DATABASE)
    return _read_key(folder, key) if inside else read_regular_file(location)


def file_of(location: str) -> str:
    """The file that holds the image at a location."""
    folder, inside, _ = location.partition(_DATABASE)
    return f"{folder}{_DATABASE}".rstrip(os.sep) if inside else location


def is_lmdb(root: str | os.PathLike[str]) -> bool:
    """Whether a folder is an LMDB, by its name or content."""
    return str(root).endswith(".lmdb") or is_file(Path(root, "data.mdb"))


def find_images(root: str, where: str) -> tuple[dict[str, str], list[str]]:
    """The images of a folder or an LMDB.

    Where a folder holds no image itself, those in its sub-folders are taken: a folder a scene.

    Args:
        where: what asks for it (a YAML path or command-line option), for messages.

    Returns:
        Locations by name (path below the root without ending, in Unicode's form NFC), in order; and
        notices about what is passed over.

    Raises:
        UserError: there is no such folder, no image in it, or two share a name but for ending and
            upper or lower case.
    """
    if is_lmdb(root):
        return _lmdb_images(root, where), []
    files, notices = _image_files(root, where)
    names: dict[str, str] = {}
    by_case: dict[str, str] = {}
    for file in files:
        name = unicodedata.normalize("NFC", file.relative_to(root).with_suffix("").as_posix())
        other = by_case.setdefault(name.casefold(), str(file))
        if other != str(file):
            raise UserError(
                f"{where}: {other} and {file} share a name, but for ending and upper or lower "
                "case; pairs are matched by it, so remove or rename one"
            )
        names[name] = str(file)
    return names, notices


def list_images(folder: str | os.PathLike[str], where: str) -> dict[str, Path]:
    """The image files of a folder by name, see `find_images`."""
    return {name: Path(file) for name, file in find_images(str(folder), where)[0].items()}


def _image_files(root: str, where: str) -> tuple[list[Path], list[str]]:
    """The images of a folder, or where it has none those of its sub-folders; and notices."""
    if not os.path.isdir(root):  # noqa: PTH112 (that of `Path` raises for impossible names)
        if is_file(root):
            raise UserError(f"{where}: {root} is a file; name the folder that it lies in")
        raise UserError(
            f"{where}: the folder {missing(root)}; datasets/README.md shows the layout, "
            "hidiff prepare makes it"
        )
    files: list[Path] = []
    others: list[str] = []

    def unreadable(error: OSError) -> None:
        others.append(f"{error.filename}, which cannot be read ({error.strerror})")

    for place, folders, names in os.walk(root, onerror=unreadable):
        names = [name for name in sorted(names) if not name.startswith(".")]
        images = [name for name in names if Path(name).suffix.lower() in EXTENSIONS]
        files += [Path(place, name) for name in images]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        others += sorted({*names} - {*images})
        if files and Path(place) == Path(root):
            others += [f"{name}/" for name in folders]
            break
        others += [f"{name}/, a link" for name in folders if Path(place, name).is_symlink()]
    kinds = f"images are files that end in {', '.join(EXTENSIONS)}"
    if not files:
        found = f"it holds {listing(others)}" if others else "it is empty"
        raise UserError(
            f"{where}: {root} holds no image; {found}; {kinds}; datasets/README.md shows the "
            "layout, hidiff prepare makes it"
        )
    if not others:
        return files, []
    return files, [
        f"{where}: {len(others)} of the files and sub-folders in {root} are not used "
        f"({listing(others)}); {kinds}"
    ]


def _lmdb() -> ModuleType:
    try:
        import lmdb
    except ImportError:
        raise UserError(
            "reading an LMDB needs a package that is not installed: pip install lmdb"
        ) from None
    return lmdb


def _lmdb_images(root: str, where: str) -> dict[str, str]:
    folder = str(Path(root).resolve())
    if not is_file(Path(folder, "data.mdb")):
        raise UserError(f"{where}: {root} is no LMDB (it has no data.mdb){counted_from(root)}")
    with _begin(folder) as transaction:
        keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
    try:
        names = [key.decode() for key in keys]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: {root} has the image name {bytes(error.object)[:80]!r}, which is no UTF-8 "
            "text; make the LMDB again"
        ) from None
    if not names:
        raise UserError(f"{where}: {root} holds no image")
    return {unicodedata.normalize("NFC", name): f"{folder}{_DATABASE}{name}" for name in names}


def _read_key(folder: str, key: str) -> bytes:
    with _begin(folder) as transaction:
        try:
            data = transaction.get(key.encode())
        except _lmdb().BadValsizeError:  # an empty key, or a longer one than LMDB can hold
            data = None
    if data is None:
        raise UserError(f"{folder} has no image '{key}'; name another, or make the LMDB again")
    return data


def _begin(folder: str) -> Any:
    """A transaction of the database. LMDB refuses a second opening within a process."""
    with _lock:
        return _environment(folder).begin()


@functools.cache
def _environment(folder: str) -> Any:
    """The opened database, once a process."""
    lmdb = _lmdb()
    try:
        return lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise UserError(f"{folder} cannot be opened ({error}); make the LMDB again") from None


# A forked process must not use what its parent opened.
os.register_at_fork(after_in_child=_environment.cache_clear)
