"""Image folders kept in one LMDB file, in the layout that BasicSR uses.

`X.lmdb/` holds `data.mdb`, `lock.mdb` and `meta_info.txt`. The keys are the image names without
ending, with those of folders where there are any (`000/00000000`), the values the image files'
bytes as they are (nothing is encoded again), and each line of `meta_info.txt` reads
`name.png (H,W,3) 1`.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
import shutil
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from hidiff.data.image import Header, decode_image, list_images, read_header
from hidiff.utils.errors import UserError
from hidiff.utils.files import is_file, read_bytes
from hidiff.utils.workers import available_cores, run_in_order

META_INFO = "meta_info.txt"

_BATCH = 64
"""Images written in one transaction."""

_environments: dict[str, tuple[int, Any]] = {}
_lock = threading.Lock()


def _lmdb() -> ModuleType:
    try:
        import lmdb
    except ImportError:
        raise UserError(
            "reading and writing LMDB needs a package that is not installed: pip install lmdb"
        ) from None
    return lmdb


def _read_checked(path: Path) -> tuple[bytes, tuple[int, ...]]:
    """An image file's bytes, known to decode, and its shape (H, W, 3)."""
    data = read_bytes(path)
    return data, decode_image(data, str(path)).shape


def _map_size(paths: list[Path]) -> int:
    """Bytes to reserve for a database of these files (Windows allocates all of them)."""
    page = mmap.PAGESIZE
    # A value has whole pages of its own; the page on top of each pays for the tree above them.
    pages = sum(path.stat().st_size // page + 3 for path in paths)
    return int(1.1 * pages * page) + (1 << 20)


def create_lmdb(
    folder: str | os.PathLike[str], output: str | os.PathLike[str], *, progress: bool = True
) -> int:
    """Put the images directly inside a folder into a new LMDB.

    Every image is decoded on the way, so a damaged file is found now and not in training. The
    database appears under its name only when it is complete.

    Args:
        folder: the images; sub-folders are not searched.
        output: the database's folder, ending in `.lmdb`; must not exist.
        progress: show a progress bar on standard error.

    Returns:
        The number of images.

    Raises:
        UserError: `lmdb` is not installed, the folder is missing or empty, an image is damaged,
            `output` exists, has another ending or cannot be written.
    """
    lmdb = _lmdb()
    output = Path(output)
    if output.suffix != ".lmdb":
        raise UserError(
            f"{output}: the name of an LMDB must end in .lmdb, by which option files know it; "
            f"write {output.name}.lmdb"
        )
    if output.exists() or output.is_symlink():
        raise UserError(f"{output} exists and is not overwritten; give another name or remove it")
    images = list_images(folder, "LMDB input")
    paths = list(images.values())
    temporary = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
        _write_database(lmdb, temporary, paths, progress)
        temporary.chmod(0o755)
        # No window in which a database that appeared meanwhile could be replaced: renaming a
        # folder onto a folder with content fails.
        temporary.rename(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None
    except lmdb.Error as error:
        raise UserError(f"{output}: cannot be written ({error})") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return len(paths)


def _write_database(lmdb: ModuleType, folder: Path, paths: list[Path], progress: bool) -> None:
    hidden = None if progress else True
    lines = []
    with (
        lmdb.open(str(folder), map_size=_map_size(paths)) as environment,
        closing(run_in_order(paths, read=_read_checked, workers=available_cores())) as images,
    ):
        shown = tqdm(images, total=len(paths), unit="image", disable=hidden)
        entries = zip(paths, shown, strict=True)
        while batch := list(itertools.islice(entries, _BATCH)):
            with environment.begin(write=True) as transaction:
                for path, (data, shape) in batch:
                    transaction.put(path.stem.encode("utf-8"), data)
                    lines.append(f"{path.name} ({','.join(map(str, shape))}) 1\n")
    (folder / META_INFO).write_text("".join(lines), encoding="utf-8")


def _environment(path: str) -> Any:
    """The read-only environment of a path, opened once per process.

    LMDB refuses a second opening within a process, and a forked process must not use what its
    parent opened.
    """
    lmdb = _lmdb()
    with _lock:
        pid, environment = _environments.get(path, (None, None))
        if pid == os.getpid():
            return environment
        if environment is not None:
            environment.close()
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
        _environments[path] = (os.getpid(), environment)
        return environment


class LmdbImages:
    """The encoded images of an LMDB, read as `hidiff.data.store.ImageFiles`; a key is a name.

    Nothing is opened before the first `read`, and then once per process, so an instance can go to
    DataLoader workers however these are started.

    Args:
        path: the database's folder, `X.lmdb`.
        where: what asks for it (a YAML path or command-line option), for messages.

    Raises:
        UserError: there is no LMDB at `path`.
    """

    def __init__(self, path: str | os.PathLike[str], where: str) -> None:
        if not is_file(Path(path, "data.mdb")):
            raise UserError(
                f"{where}: {path} is no LMDB (it has no data.mdb); make one with "
                f"hidiff prepare lmdb --input FOLDER --output {path}"
            )
        self.path = str(Path(path).resolve())
        self.where = where
        self.notices: list[str] = []

    def __repr__(self) -> str:
        return f"LmdbImages({self.path!r}, {self.where!r})"

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """The image names, from `meta_info.txt` or, where that is absent, from the database.

        Raises:
            UserError: there is none, or the database cannot be opened.
        """
        meta_info = Path(self.path) / META_INFO
        try:
            if meta_info.is_file():
                lines = meta_info.read_text(encoding="utf-8").splitlines()
                # `folder/name.png (H,W,3) 1`; the name may hold dots and spaces.
                names = [line.rsplit(" (", 1)[0] for line in lines if line.strip()]
                keys = [os.path.splitext(name)[0] for name in names]  # noqa: PTH122 (no path: `a//b`)
            else:
                with self._begin() as transaction:
                    keys = [
                        bytes(key).decode("utf-8")
                        for key in transaction.cursor().iternext(keys=True, values=False)
                    ]
        except OSError as error:
            raise UserError(f"{meta_info}: cannot be read ({error.strerror or error})") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.where}: {self.path} has the image name {bytes(error.object)[:80]!r}, which "
                "is no UTF-8 text; make the LMDB again with hidiff prepare lmdb"
            ) from None
        if not keys:
            raise UserError(f"{self.where}: {self.path} holds no image")
        return dict(zip(keys, keys, strict=True))

    def read(self, key: str) -> bytes:
        """The image file's bytes, for `hidiff.data.image.decode_image`.

        Raises:
            UserError: there is no such key, or the database cannot be read.
        """
        with self._begin() as transaction:
            try:
                data = transaction.get(key.encode("utf-8"))
            except _lmdb().BadValsizeError:  # an empty key, or a longer one than LMDB can hold
                data = None
        if data is None:
            raise UserError(
                f"{self.where}: {self.path} has no image '{key}'; its {META_INFO} does not belong "
                "to its data.mdb: make the LMDB again with hidiff prepare lmdb"
            )
        return data

    def header(self, key: str) -> Header:
        """See `hidiff.data.image.read_header`."""
        return read_header(self.read(key), self.location(key))

    def location(self, key: str) -> str:
        """Database and key."""
        return f"{self.path}: {key}"

    def file(self, key: str) -> Path:
        """The database's file."""
        return Path(self.path) / "data.mdb"

    def _begin(self) -> Any:
        try:
            return _environment(self.path).begin()
        except _lmdb().Error as error:
            raise UserError(
                f"{self.where}: {self.path} cannot be opened ({error}); make the LMDB again"
            ) from None
