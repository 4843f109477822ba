"""The layout of datasets/README.md, and putting files of a download into it.

The layout is made of links to the download, or of copies. Nothing that exists is overwritten:
everything is compared first, and a file that differs stops the work before anything has changed. A
second run adds what is missing.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from hidiff.data.image import listing
from hidiff.data.store import list_images
from hidiff.metrics.published import BENCHMARKS
from hidiff.utils.errors import UserError
from hidiff.utils.files import replacing


@dataclass(frozen=True)
class LayoutEntry:
    """One data set of the layout under `datasets/`.

    Args:
        name: its folder, relative to the root.
        pairs: how many pairs the benchmark has.
        command: what makes the folder.
        lq, gt: the sub-folders of blurry and of sharp images.
    """

    name: str
    pairs: int
    command: str
    lq: str = "input"
    gt: str = "target"

    def wrong_count(self, count: int) -> str | None:
        """What is wrong with a number of pairs, or None when it is the benchmark's."""
        if count == self.pairs:
            return None
        word = "incomplete" if count < self.pairs else "too many"
        return f"{word}: {count} pairs, the benchmark has {self.pairs}"


_GOPRO, _HIDE, _REALBLUR = (
    f"hidiff prepare {name} --source DOWNLOAD" for name in ("gopro", "hide", "realblur")
)
_CUT = "hidiff prepare patches"
_TESTS = {name: benchmark.images for name, benchmark in BENCHMARKS.items()}

LAYOUT = {
    entry.name: entry
    for entry in (
        LayoutEntry("GoPro/train", 2103, _GOPRO),
        LayoutEntry("GoPro/test", _TESTS["GoPro"], _GOPRO),
        LayoutEntry("GoPro/crop/train", 8 * 2103, _CUT, "input_crops", "target_crops"),
        LayoutEntry("GoPro/crop/val", _TESTS["GoPro"], _CUT, "input_crops", "target_crops"),
        LayoutEntry("RealBlur/train/RealBlur_R", 3758, _REALBLUR),
        LayoutEntry("RealBlur/train/RealBlur_J", 3758, _REALBLUR),
        LayoutEntry("RealBlur/test/RealBlur_R", _TESTS["RealBlur_R"], _REALBLUR),
        LayoutEntry("RealBlur/test/RealBlur_J", _TESTS["RealBlur_J"], _REALBLUR),
        LayoutEntry("test/GoPro", _TESTS["GoPro"], _GOPRO),
        LayoutEntry("test/HIDE", _TESTS["HIDE"], _HIDE),
        LayoutEntry("test/RealBlur_R", _TESTS["RealBlur_R"], _REALBLUR),
        LayoutEntry("test/RealBlur_J", _TESTS["RealBlur_J"], _REALBLUR),
    )
}
"""The data sets of the layout, by name."""


@dataclass(frozen=True)
class Placement:
    """One file of the download and where it goes.

    Args:
        origin: the file as distributed.
        target: its place in the layout.
        via: an earlier target of the same file, which this one links to in either mode, so that
            no picture takes its space twice.
    """

    origin: Path
    target: Path
    via: Path | None = None


def _link_text(placement: Placement, root: Path) -> str:
    """What the link says: relative within the root, which can then be moved as a whole."""
    to = placement.via or placement.origin
    real = to.parent.resolve() / to.name
    folder = placement.target.parent.resolve()
    if real.is_relative_to(root.resolve()) and folder.is_relative_to(root.resolve()):
        return os.path.relpath(real, folder)
    return str(to.absolute())


def _differs(placement: Placement) -> bool:
    """Whether something else than the origin's content is at the target, if anything is."""
    if not os.path.lexists(placement.target):
        return False
    if not placement.target.is_file():
        return True
    same = placement.target.samefile(placement.origin)
    return not same and not filecmp.cmp(placement.target, placement.origin, shallow=False)


def place_all(placements: list[Placement], root: Path, *, copy: bool) -> int:
    """Make all links or copies that are not there yet; returns how many that were.

    Where links cannot be made, files are copied.

    Raises:
        UserError: a target exists with another content (then nothing was changed), or the disk
            refuses.
    """
    try:
        comparing = tqdm(placements, desc="comparing", disable=None)
        if taken := [str(placement.target) for placement in comparing if _differs(placement)]:
            raise UserError(
                f"{len(taken)} files exist and differ from the download (or are broken links); "
                f"nothing was changed: {listing(taken)}. Remove or rename them, or give another "
                "--root"
            )
        missing = [p for p in placements if not p.target.exists()]
        links_work = True
        for placement in tqdm(missing, desc="placing", disable=None):
            target = placement.target
            target.parent.mkdir(parents=True, exist_ok=True)
            if links_work and (placement.via is not None or not copy):
                try:
                    target.symlink_to(_link_text(placement, root))
                    continue
                except OSError as error:
                    links_work = False
                    print(f"note: {target.parent} does not take links ({error.strerror}); copying")
            with replacing(target, sync=False) as file, placement.origin.open("rb") as origin:
                shutil.copyfileobj(origin, file)
    except OSError as error:
        name = error.filename2 or error.filename or root
        raise UserError(
            f"{name}: {error.strerror or error}; what was placed is complete, a second run goes on"
        ) from None
    return len(missing)


def summary(root: Path, placements: list[Placement]) -> list[str]:
    """A line for each data set touched: its pairs, and whether they are the benchmark's."""
    folders = {placement.target.parent.parent for placement in placements}
    lines = []
    for name, entry in LAYOUT.items():
        if root / name in folders:
            lq = list_images(root / name / entry.lq, name)
            gt = list_images(root / name / entry.gt, name)
            count = len(lq.keys() & gt.keys())
            wrong = entry.wrong_count(count)
            lines.append(f"{root / name}: {wrong or f'{count} pairs, as the benchmark has'}")
    return lines
