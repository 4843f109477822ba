"""Restoring photographs: which files become which, and what came of each."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor
from tqdm import tqdm

from hidiff.data.dataset import to_tensor
from hidiff.data.decode import PHOTO_EXTENSIONS
from hidiff.data.image import listing, write_image
from hidiff.options import LocalMode, LocalOptions
from hidiff.restore.image import Progress, to_image
from hidiff.restore.photo import (
    FORMATS,
    Photo,
    check_format_can_hold,
    read_photo,
    to_pixels,
    write_photo,
)
from hidiff.utils.errors import UserError, memory_errors, missing, printable
from hidiff.utils.files import partial_files, read_regular_file
from hidiff.utils.workers import ordered_pipeline

LOG = logging.getLogger("hidiff")

Restore = Callable[[Tensor, str, Progress], Tensor]
"""From an image (3, H, W), its name and a function to tell the progress to, to (3, H, W); or to
(T + 1, 3, H, W), the steps of the reverse process, of which the last one is the result."""


@dataclass
class Job:
    """A photograph on its way.

    Args:
        source, target: the files.
        state: what came of it.
        seconds: of reading, restoring and writing.
        remarks: why it failed, or what a person should know.
        photo: as read; None before and after that.
    """

    source: Path
    target: Path
    state: Literal["waiting", "written", "skipped", "failed"] = "waiting"
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)
    photo: Photo | None = None

    def __str__(self) -> str:
        """What came of it, on one line."""
        if self.state == "failed":
            return f"failed: {self.remarks[-1]}"
        if self.state == "skipped":
            return f"{self.target} exists"
        remarks = f" ({'; '.join(self.remarks)})" if self.remarks else ""
        return f"{self.source} → {self.target}, {self.seconds:.1f} s{remarks}"

    @property
    def trajectory(self) -> Path:
        """The folder of the steps of the reverse process."""
        return self.target.with_name(f"{self.target.stem}_trajectory")

    @property
    def steps(self) -> list[Path]:
        """The pictures of these steps, from z_T to z_0, as far as they are there."""
        found = [path for path in self.trajectory.glob("z*.png") if path.stem[1:].isdigit()]
        return sorted(found, key=lambda path: -int(path.stem[1:]))


def local_options(
    mode: LocalMode, *, size: int | None, overlap: int | None, patch_size: int | None
) -> LocalOptions:
    """What --local, --size and --overlap mean for a model.

    Args:
        size: in pixels; None for the model's `patch_size` where that is known.
        overlap: in pixels; None for 32, or half the size if that is less.

    Raises:
        UserError: a number that cannot be, or one without --local.
    """
    for option, value in (("--size", size), ("--overlap", overlap)):
        if mode == "none" and value is not None:
            raise UserError(f"{option} {value} is of --local tile and --local tlc; add one of them")
    if size is None:
        size = patch_size or LocalOptions().size
    if overlap is None:
        overlap = min(32, size // 2)
    try:
        return LocalOptions.checked({"mode": mode, "size": size, "overlap": overlap}, "")
    except UserError as error:
        raise UserError(f"--{error}") from None


def find_jobs(
    inputs: Sequence[Path],
    out: Path,
    *,
    recursive: bool = False,
    suffix: str = "",
    ending: str | None = None,
) -> tuple[list[Job], list[str]]:
    """The photographs to restore, and notices about what is left out.

    What cannot be searched or read is among the jobs, as failed.

    Args:
        inputs: files and folders.
        out: the folder of the results, or of one photograph the file. In a folder that is searched
            it is passed over.
        recursive: search sub-folders too, and keep them in `out`.
        suffix: added to the names of the results.
        ending: of the results, such as `.png`; None: that of the photograph, `.jpg` where its
            format is not written.

    Raises:
        UserError: an input does not exist or holds no photograph; `out` is no folder or one of the
            inputs; two results would have one name, or one would replace a photograph.
    """
    if os.sep in suffix or "/" in suffix or "\0" in suffix:
        raise UserError(f"--suffix: {suffix!r} becomes part of file names")
    for given in inputs:
        if not os.path.lexists(given):
            raise UserError(missing(given))
    single = _single_target(inputs, out, suffix, ending)
    jobs: dict[str, Job] = {}
    failed: list[Job] = []
    sources: set[str] = set()
    notices: list[str] = []
    for given in inputs:
        if given.is_dir():
            photos = _search(given, out, recursive, notices, failed)
            found = [(path, path.relative_to(given)) for path in photos]
        else:
            found = [(given, Path(given.name))]
        for path, place in found:
            own = result_ending(path)
            if ending is not None and FORMATS.get(own.lower()) != FORMATS[ending]:
                own = ending
            job = Job(path, single or out / place.with_name(f"{place.stem}{suffix}{own}"))
            sources.add(os.path.realpath(path))
            # Names that differ in upper and lower case are one on Windows and macOS.
            other = jobs.setdefault(str(job.target).casefold(), job)
            if os.path.realpath(other.source) != os.path.realpath(path):
                raise UserError(
                    f"{other.source} and {path} would both become {job.target}; restore them in "
                    "two calls with a folder (-o) for each, or rename one"
                )
    for job in jobs.values():
        if os.path.realpath(job.target) in sources:
            raise UserError(
                f"{job.target} is a photograph to restore, and the result of {job.source} would "
                "replace it; name another folder with -o, or add --suffix _restored"
            )
    return [*jobs.values(), *failed], notices


def result_ending(photo: Path) -> str:
    """The ending of a photograph's result: its own where that format is written, else .jpg."""
    return photo.suffix if photo.suffix.lower() in FORMATS else ".jpg"


def _single_target(
    inputs: Sequence[Path], out: Path, suffix: str, ending: str | None
) -> Path | None:
    """The file of the result where -o names one; None where it names a folder.

    Raises:
        UserError: it names a file, and there is no single photograph for it.
    """
    kind = FORMATS.get(out.suffix.lower())
    if out.is_dir() or (kind is None and not out.exists()):
        return None
    if kind is None or len(inputs) != 1 or inputs[0].is_dir():
        raise UserError(f"-o: {out} is no folder; name one for the restored photographs")
    if suffix or (ending is not None and FORMATS[ending] != kind):
        raise UserError(f"-o: {out} is a whole name; leave out --suffix and --format")
    return out


def _search(
    folder: Path, out: Path, recursive: bool, notices: list[str], failed: list[Job]
) -> list[Path]:
    """The photographs in a folder, in order; folders that cannot be read are added to `failed`."""
    if folder.resolve() == out.resolve():
        raise UserError(
            f"-o: {out} is the folder of the photographs; a second call would take the results for "
            "photographs: name another one"
        )
    photos: list[Path] = []
    others: list[str] = []

    def fail(error: OSError) -> None:
        reason = f"{error.filename}: cannot be read ({error.strerror or error})"
        if Path(error.filename) == folder:
            raise UserError(reason)
        place = Path(error.filename)
        failed.append(Job(place, place, state="failed", remarks=[reason]))

    for place, inner, names in os.walk(folder, onerror=fail):
        where = Path(place)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        results = [name for name in inner if (where / name).resolve() == out.resolve()]
        if results and recursive:
            notices.append(f"{where / results[0]} is the folder of the results and not searched")
            inner.remove(results[0])
        links = [name for name in inner if (where / name).is_symlink()]
        if recursive:
            notices += [f"{where / name} is a link to a folder and not searched" for name in links]
        names = [name for name in names if not name.startswith(".")]
        images = [name for name in names if Path(name).suffix.lower() in PHOTO_EXTENSIONS]
        photos += [where / name for name in sorted(images)]
        others += {*names} - {*images}
        if not recursive:
            others += [f"{name}/" for name in inner if name not in results]
            break
    if not photos:
        found = f"it holds {listing(others)}" if others else "it is empty"
        advice = "" if recursive else "; --recursive searches sub-folders too"
        raise UserError(
            f"{folder} holds no photograph ({', '.join(PHOTO_EXTENSIONS)}); {found}{advice}"
        )
    if others:
        count = "1 other is" if len(others) == 1 else f"{len(others)} others are"
        notices.append(f"{folder}: {count} not used ({listing(others)})")
    return photos


def prepare_folder(out: Path, jobs: Iterable[Job] = ()) -> None:
    """Make the folder of the results, and make sure that files can be written there.

    What killed calls have left half-written of these results is removed.

    Raises:
        UserError: they cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(
            f"-o: {out} cannot be written ({error.strerror or error}); name another folder"
        ) from None
    # See `hidiff.utils.files.replacing` for the names; those of other programs' files stay.
    starts = {(job.target.parent, f".{job.target.name[:50]}.") for job in jobs}
    for folder in {folder for folder, _ in starts}:
        for part in partial_files(folder):
            if (folder, part.name.removesuffix(".part")[:-12]) in starts:
                with suppress(OSError):
                    part.unlink()


def restore_photos(
    jobs: Sequence[Job],
    restore: Restore,
    *,
    overwrite: bool = False,
    steps: bool = False,
    workers: int = 0,
) -> None:
    """Restore photographs one after the other, and tell of each; the jobs say what came of them.

    What fails does not keep the others from being restored. Each result appears when it is
    complete, so all that is done stays when a call is interrupted.

    Args:
        jobs: of `find_jobs`.
        restore: see there.
        overwrite: replace results that are there; otherwise their photographs are skipped.
        steps: not those that have no steps of the reverse process yet.
        workers: threads that read the next ones meanwhile, see `ordered_pipeline`.
    """
    started = time.monotonic()
    read = functools.partial(_read, overwrite=overwrite, steps=steps)
    done = ordered_pipeline(
        jobs,
        load=functools.partial(_step, read),
        # Written before the next one is restored, which takes longer: an interruption then loses
        # only the one that is being restored.
        compute=functools.partial(_step, functools.partial(_work, restore=restore)),
        workers=workers,
    )
    try:
        with closing(done):
            for number, job in enumerate(done, start=1):
                level = logging.ERROR if job.state == "failed" else logging.INFO
                LOG.log(level, "%d/%d %s", number, len(jobs), job)
    except KeyboardInterrupt:
        LOG.info("What is written stays; the same call, without --overwrite, restores the rest.")
        raise
    finally:
        LOG.info("%s; %.1f s", _counts(jobs), time.monotonic() - started)


def _counts(jobs: Sequence[Job]) -> str:
    """How many photographs were restored, and which were not."""
    words = {
        "written": "restored",
        "skipped": "skipped, as results exist (--overwrite restores again)",
        "failed": "failed",
        "waiting": "not reached",
    }
    counts = {state: sum(job.state == state for job in jobs) for state in words}
    failed = [job.source.name for job in jobs if job.state == "failed"]
    if failed:
        words["failed"] += f" ({listing(failed, 20)})"
    return ", ".join(f"{count} {words[state]}" for state, count in counts.items() if count)


def _step(step: Callable[[Job], None], job: Job) -> Job:
    """One step of a job, with its time, unless an earlier one was the last."""
    if job.state == "waiting":
        started = time.monotonic()
        try:
            with memory_errors(f"{job.source}: no memory for it", "close other programs"):
                step(job)
        except (UserError, OSError) as error:
            text = str(error)
            known = str(job.source) in text or str(job.target) in text
            job.remarks.append(text if known else f"{job.source}: {text}")
            job.state, job.photo = "failed", None
        job.seconds += time.monotonic() - started
    return job


def _read(job: Job, *, overwrite: bool, steps: bool) -> None:
    if job.target.is_dir():
        raise UserError(f"{job.target} is a folder; move it away, or add --suffix _restored")
    if job.target.exists() and not overwrite and (job.steps or not steps):
        job.state = "skipped"
        return
    job.photo = read_photo(read_regular_file(job.source), str(job.source))
    job.remarks += job.photo.notices
    check_format_can_hold(job.target, job.photo)


def _work(job: Job, *, restore: Restore) -> None:
    assert job.photo is not None
    # A bar from 0 to 1, as `restore` tells how far it is.
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    name = printable(job.source.name)
    with tqdm(desc=name, total=1, leave=False, disable=None, bar_format=form, smoothing=0) as bar:

        def tell(done: float) -> None:
            bar.update(done - bar.n)

        restored = restore(to_tensor(job.photo.pixels), job.source.stem, tell)
    if restored.ndim == 4:
        for number, step in enumerate(reversed(restored)):
            write_image(job.trajectory / f"z{number}.png", to_image(step))
        restored = restored[-1]
    lost = write_photo(job.target, job.photo, to_pixels(restored, job.photo))
    if lost:
        job.remarks.append(f"{job.target.suffix} files do not hold {', '.join(lost)}")
    job.state, job.photo = "written", None
