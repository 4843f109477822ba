"""Restoring photographs: which files become which, and what came of each."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor
from tqdm import tqdm

from hidiff.data.dataset import to_tensor
from hidiff.data.image import listing
from hidiff.options import LocalMode, LocalOptions
from hidiff.restore.image import Progress
from hidiff.restore.photo import (
    ENDINGS,
    FORMATS,
    Photo,
    read_photo,
    require_room,
    to_pixels,
    write_photo,
)
from hidiff.utils.errors import UserError, memory_errors, missing
from hidiff.utils.files import read_regular_file
from hidiff.utils.workers import run_in_order

LOG = logging.getLogger("hidiff")

"""What restoring needs of a stage 2."""

Restore = Callable[[Tensor, str, Progress], Tensor]
"""From an image (3, H, W), its name and a function to tell the progress to, to (3, H, W)."""


@dataclass
class Job:
    """A photograph on its way.

    Args:
        source, target: the files.
        state: what came of it.
        seconds: of reading, restoring and writing.
        remarks: why it failed, or what a person should know.
    """

    source: Path
    target: Path
    state: Literal["waiting", "written", "skipped", "failed"] = "waiting"
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)
    photo: Photo | None = None


def local_options(
    mode: LocalMode, *, size: int | None, overlap: int | None, patch_size: int | None
) -> LocalOptions:
    """What --local, --size and --overlap mean for a model.

    Args:
        size: in pixels; None for the model's `patch_size` where that is known.
        overlap: in pixels; None for 32, or half the size if that is less.

    Raises:
        UserError: a number that cannot be.
    """
    size = size or patch_size or LocalOptions.size
    try:
        return LocalOptions(mode, size, min(32, size // 2) if overlap is None else overlap)
    except UserError as error:
        raise UserError(str(error).replace("val.local.", "--")) from None


def find_jobs(
    inputs: Iterable[Path],
    out: Path,
    *,
    recursive: bool = False,
    suffix: str = "",
    ending: str | None = None,
) -> tuple[list[Job], list[str]]:
    """The photographs to restore, and notices about what is left out.

    Args:
        inputs: files and folders.
        out: the folder of the results. In a folder that is searched it is passed over.
        recursive: search sub-folders too, and keep them in `out`.
        suffix: added to the names of the results.
        ending: of the results, such as `.png`; None: that of the photograph, `.jpg` where its
            format is not written.

    Raises:
        UserError: an input does not exist or holds no photograph; `out` is no folder or one of the
            inputs; two results would have one name, or one would replace a photograph.
    """
    if not out.is_dir() and (out.exists() or out.suffix.lower() in ENDINGS):
        raise UserError(f"-o: {out} is no folder; name one for the restored photographs")
    if os.sep in suffix or "/" in suffix or "\0" in suffix:
        raise UserError(f"--suffix: {suffix!r} becomes part of file names")
    jobs: dict[str, Job] = {}
    sources: set[Path] = set()
    notices: list[str] = []
    for given in inputs:
        if not given.exists():
            raise UserError(missing(given))
        if given.is_dir():
            found = [
                (path, path.relative_to(given)) for path in _search(given, out, recursive, notices)
            ]
        else:
            found = [(given, Path(given.name))]
        for path, place in found:
            own = path.suffix if path.suffix.lower() in FORMATS else ".jpg"
            if ending is not None and FORMATS.get(own.lower()) != FORMATS[ending]:
                own = ending
            job = Job(path, out / place.with_name(f"{place.stem}{suffix}{own}"))
            sources.add(path.resolve())
            # Names that differ in upper and lower case are one on Windows and macOS.
            other = jobs.setdefault(str(job.target).casefold(), job)
            if other.source.resolve() != path.resolve():
                raise UserError(
                    f"{other.source} and {path} would both become {job.target}; restore them in "
                    "two calls with a folder (-o) for each, or rename one"
                )
    for job in jobs.values():
        if job.target.resolve() in sources:
            raise UserError(
                f"{job.target} is a photograph to restore, and the result of {job.source} would "
                "replace it; name another folder with -o, or add --suffix _restored"
            )
    return list(jobs.values()), notices


def _search(folder: Path, out: Path, recursive: bool, notices: list[str]) -> list[Path]:
    """The photographs in a folder, in order."""
    if folder.resolve() == out.resolve():
        raise UserError(
            f"-o: {out} is the folder of the photographs; a second call would take the results for "
            "photographs: name another one"
        )
    photos: list[Path] = []
    others: list[str] = []

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror or error})") from None

    for place, inner, names in os.walk(folder, onerror=fail):
        where = Path(place)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        results = [name for name in inner if (where / name).resolve() == out.resolve()]
        if results and recursive:
            notices.append(f"{where / results[0]} is the folder of the results and not searched")
            inner.remove(results[0])
        names = [name for name in names if not name.startswith(".")]
        images = [name for name in names if Path(name).suffix.lower() in ENDINGS]
        photos += [where / name for name in sorted(images)]
        others += {*names} - {*images}
        if not recursive:
            others += [f"{name}/" for name in inner if name not in results]
            break
    if not photos:
        found = f"it holds {listing(others)}" if others else "it is empty"
        advice = "" if recursive else "; --recursive searches sub-folders too"
        raise UserError(f"{folder} holds no photograph ({', '.join(ENDINGS)}); {found}{advice}")
    if others:
        notices.append(f"{folder}: {len(others)} others are not used ({listing(others)})")
    return photos


def prepare_folder(out: Path) -> None:
    """Make the folder of the results, and make sure that files can be written there.

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


def restore_photos(
    jobs: Sequence[Job], restore: Restore, *, overwrite: bool = False, workers: int = 0
) -> None:
    """Restore photographs one after the other, and tell of each; the jobs say what came of them.

    What fails does not keep the others from being restored. Each result appears when it is
    complete, so all that is done stays when a call is interrupted.

    Args:
        jobs: of `find_jobs`.
        restore: see there.
        overwrite: replace results that are there; otherwise their photographs are skipped.
        workers: threads that read the next ones meanwhile, see `hidiff.utils.workers.run_in_order`.
    """
    started, count = time.monotonic(), len(jobs)
    done = run_in_order(
        jobs,
        read=functools.partial(_step, functools.partial(_read, overwrite=overwrite)),
        # Written before the next one is restored, which takes longer: an interruption then loses
        # only the one that is being restored.
        work=functools.partial(_step, functools.partial(_work, restore=restore)),
        workers=workers,
    )
    try:
        with closing(done):
            for number, job in enumerate(done, start=1):
                remarks = f" ({'; '.join(job.remarks)})" if job.remarks else ""
                if job.state == "failed":
                    LOG.error("%d/%d failed: %s", number, count, job.remarks[-1])
                elif job.state == "skipped":
                    LOG.info("%d/%d %s exists", number, count, job.target)
                else:
                    LOG.info(
                        *("%d/%d %s → %s, %.1f s%s", number, count, job.source, job.target),
                        *(job.seconds, remarks),
                    )
    except KeyboardInterrupt:
        LOG.info("What is written stays; the same call, without --overwrite, restores the rest.")
        raise
    finally:
        for line in summary(jobs, time.monotonic() - started):
            LOG.info(line)


def summary(jobs: Sequence[Job], seconds: float) -> list[str]:
    """How many photographs were restored, and which failed and why."""
    counts = {
        state: sum(job.state == state for job in jobs)
        for state in ("written", "skipped", "failed", "waiting")
    }
    words = {
        "written": "restored",
        "skipped": "skipped, as their results exist (--overwrite restores them again)",
        "failed": "failed",
        "waiting": "not reached",
    }
    parts = [f"{count} {words[state]}" for state, count in counts.items() if count]
    failed = [f"failed: {job.remarks[-1]}" for job in jobs if job.state == "failed"]
    return [f"{', '.join(parts)}; {seconds:.1f} s", *failed]


def _step(step: Callable[[Job], None], job: Job) -> Job:
    """One step of a job, with its time, unless an earlier one was the last."""
    if job.state == "waiting":
        started = time.monotonic()
        try:
            with memory_errors(f"{job.source}: no memory for it", "close other programs"):
                step(job)
        except UserError as error:
            text = str(error)
            known = str(job.source) in text or str(job.target) in text
            job.remarks.append(text if known else f"{job.source}: {text}")
            job.state, job.photo = "failed", None
        job.seconds += time.monotonic() - started
    return job


def _read(job: Job, *, overwrite: bool) -> None:
    if job.target.is_dir():
        raise UserError(f"{job.target} is a folder; move it away, or add --suffix _restored")
    if job.target.exists() and not overwrite:
        job.state = "skipped"
        return
    job.photo = read_photo(read_regular_file(job.source), str(job.source))
    job.remarks += job.photo.notices
    require_room(job.target, job.photo)


def _work(job: Job, *, restore: Restore) -> None:
    assert job.photo is not None
    # A bar from 0 to 1, as `restore` tells how far it is.
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(
        desc=job.source.name, total=1, leave=False, disable=None, bar_format=form, smoothing=0
    ) as bar:

        def tell(done: float) -> None:
            bar.update(done - bar.n)

        restored = restore(to_tensor(job.photo.pixels), job.source.stem, tell)
    lost = write_photo(job.target, job.photo, to_pixels(restored, job.photo))
    if lost:
        job.remarks.append(f"{job.target.suffix} files do not hold {', '.join(lost)}")
    job.state, job.photo = "written", None
