"""Bringing downloaded data sets into the layout of datasets/README.md.

The layout is made of links to the download, or of copies. Nothing that exists is overwritten:
everything is compared first, and a file that differs stops the work before anything has changed. A
second run adds what is missing.
"""

from __future__ import annotations

import errno
import filecmp
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from hidiff.data.image import listing
from hidiff.data.pairs import find_pairs
from hidiff.data.store import list_images
from hidiff.prepare.check import LAYOUT, against_benchmark
from hidiff.utils.errors import UserError
from hidiff.utils.files import read_lines, replacing


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


def place_pair(name: str, lq: Path, gt: Path, folders: list[Path]) -> list[Placement]:
    """Placements of one pair as {input,target}/{name}.png in each of the folders."""
    placements = []
    for side, origin in (("input", lq), ("target", gt)):
        first = None
        for folder in folders:
            target = folder / side / f"{name}{origin.suffix}"
            placements.append(Placement(origin, target, via=first))
            first = first or target
    return placements


def require(source: Path, valid: Callable[[Path], bool], expected: str) -> None:
    """Refuse a folder that is not the download, with a hint at one near it that is.

    Args:
        source: the folder; up to two levels above and below it are looked at for the hint.
        valid: whether a folder is the right one.
        expected: what it should hold, for the message.

    Raises:
        UserError: it is not the right one.
    """
    if valid(source):
        return
    candidates = [source.absolute().parent, source.absolute().parent.parent]
    try:
        below = sorted(path for path in source.iterdir() if path.is_dir())
        candidates += below
        candidates += [inner for path in below for inner in sorted(path.iterdir())]
    except OSError:
        pass  # Only a hint: what cannot be listed is not suggested.
    match = next((path for path in candidates if path.is_dir() and valid(path)), None)
    hint = f"; did you mean --source {match}?" if match else ""
    raise UserError(f"--source: {source} does not hold {expected}{hint}")


# GoPro ------------------------------------------------------------------------------------------


def gopro_sequences(folder: Path) -> list[Path]:
    """The sequence folders (with `sharp` and a kind of blur inside) of GoPro's train or test."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if (path / "sharp").is_dir()
        and ((path / "blur").is_dir() or (path / "blur_gamma").is_dir())
    ]


def gopro_placements(source: Path, root: Path) -> list[Placement]:
    """GoPro's sequences as flat folders; `blur`, not `blur_gamma`, is the benchmark's input.

    Raises:
        UserError: no sequences there, one without `blur`, or a frame without counterpart.
    """

    def valid(folder: Path) -> bool:
        return any(gopro_sequences(folder / part) for part in ("train", "test"))

    expected = "sequences {train,test}/SEQUENCE/{blur,sharp}"
    if (source / "train/input").is_dir() or (source / "test/input").is_dir():
        expected += f" but the flat layout already: move or link it to {root / 'GoPro'}"
    require(source, valid, expected)
    placements = []
    for part in ("train", "test"):
        folders = [root / "GoPro" / part] + [root / "test" / "GoPro"] * (part == "test")
        sequences = gopro_sequences(source / part)
        if not sequences:
            print(f"note: {source / part} has no sequences; nothing is placed for it")
        for sequence in sequences:
            if not (sequence / "blur").is_dir():
                raise UserError(
                    f"--source: {sequence} has no folder blur; the benchmark uses that one and "
                    "never blur_gamma: complete the download"
                )
            found = find_pairs(
                blurry=sequence / "blur", sharp=sequence / "sharp", where=f"--source: {sequence}"
            )
            for pair in found.pairs:
                assert pair.gt is not None
                name = f"{sequence.name}-{pair.name}"
                placements += place_pair(name, Path(pair.lq), Path(pair.gt), folders)
    return placements


# HIDE -------------------------------------------------------------------------------------------

HIDE_PARTS = ("test-close-ups", "test-long-shot")


def hide_placements(source: Path, root: Path) -> list[Placement]:
    """HIDE's two test folders as one; GT holds the sharp training images too, which stay out.

    Raises:
        UserError: not HIDE's folders, a name occurs twice, or a test image has no sharp one.
    """

    def valid(folder: Path) -> bool:
        return (folder / "test").is_dir() and (folder / "GT").is_dir()

    expected = f"HIDE's folders test (with {', '.join(HIDE_PARTS)}, or the images themselves)"
    require(source, valid, f"{expected} and GT")
    parts = [source / "test" / part for part in HIDE_PARTS if (source / "test" / part).is_dir()]
    lq: dict[str, Path] = {}
    for folder in parts or [source / "test"]:
        images = list_images(folder, "--source")
        if twice := lq.keys() & images.keys():
            raise UserError(
                f"--source: images in both parts of {source / 'test'}: {listing(twice)}"
            )
        lq |= images
    gt = list_images(source / "GT", "--source")
    if without := sorted(lq.keys() - gt.keys()):
        raise UserError(
            f"--source: {source / 'GT'} lacks the sharp images of {len(without)} test images "
            f"({listing(without)}); complete the download"
        )
    folders = [root / "test" / "HIDE"]
    return [p for name in sorted(lq) for p in place_pair(name, lq[name], gt[name], folders)]


# RealBlur ---------------------------------------------------------------------------------------

REALBLUR_LISTS = {
    (subset, part): f"RealBlur_{subset}_{part}_list.txt"
    for subset in ("J", "R")
    for part in ("train", "test")
}


def pair_name(gt: str, lq: str, subset: str, where: str) -> str:
    """`{scene}-{number}` of paths like `…/scene001/gt/gt_1.png` and `…/scene001/blur/blur_1.png`.

    Raises:
        UserError: a path leaves its folder, is not of this form or of the other subset, or the
            two are not of one pair in this order.
    """
    other_subset = {"J": "realblur-r", "R": "realblur-j"}[subset]
    names = []
    for path, other_side in ((gt, "blur"), (lq, "gt")):
        # Windows' rules know both separators and drive letters, so they are the stricter ones.
        strict = PureWindowsPath(path)
        inside = not strict.anchor and ".." not in strict.parts and "\\" not in path
        parts = PurePosixPath(path).parts
        number = re.search(r"\d+$", PurePosixPath(path).stem)
        foreign = any(p.lower().replace("_", "-").startswith(other_subset) for p in parts)
        if inside and not foreign and number and len(parts) > 2 and parts[-2] != other_side:
            names.append(f"{parts[-3]}-{number.group()}")
    if len(names) == 2 and names[0] == names[1]:
        return names[0]
    raise UserError(
        f"{where}: expected the sharp and the blurry image of one pair of RealBlur-{subset}, like "
        f"scene001/gt/gt_1.png scene001/blur/blur_1.png, got '{gt} {lq}'"
    )


def read_realblur_list(path: Path, subset: str) -> dict[str, tuple[str, str]]:
    """Pair name → (sharp, blurry) path as listed.

    Raises:
        UserError: it is no text, a line is not understood, or two different pairs get one name.
    """
    pairs: dict[str, tuple[str, str]] = {}
    for number, line in read_lines(path, "--source"):
        fields = line.split()
        where = f"{path}, line {number}"
        if len(fields) != 2:
            raise UserError(f"{where}: expected a sharp and a blurry path, got '{line}'")
        name = pair_name(fields[0], fields[1], subset, where)
        if pairs.setdefault(name, (fields[0], fields[1])) != (fields[0], fields[1]):
            raise UserError(f"{where}: another pair is called {name} too")
    return pairs


def realblur_placements(source: Path, root: Path) -> list[Placement]:
    """The pairs of RealBlur's list files; a list of which no file exists is left out with a note.

    Raises:
        UserError: no list files, none of their files, some of a list's files missing, or a list
            is not understood.
    """

    def valid(folder: Path) -> bool:
        return any((folder / name).is_file() for name in REALBLUR_LISTS.values())

    require(source, valid, f"one of RealBlur's list files, {', '.join(REALBLUR_LISTS.values())}")
    placements = []
    for (subset, part), list_name in REALBLUR_LISTS.items():
        path = source / list_name
        if not path.is_file():
            print(f"note: {path} is not there; nothing is placed for it")
            continue
        pairs = read_realblur_list(path, subset)
        # Some copies list paths from the list's own folder, some from one above it.
        bases = path.absolute().parents[:3]
        listed = [name for pair in pairs.values() for name in pair]
        base = next((b for b in bases if any((b / name).is_file() for name in listed)), None)
        if base is None:
            print(f"note: of the files in {path} none is under {bases[0]} or above; left out")
            continue
        missing = [name for name in listed if not (base / name).is_file()]
        if missing:
            raise UserError(
                f"--source: {len(missing)} files of {path} are not under {base}: "
                f"{listing(missing, 3)}; complete the download"
            )
        folders = [root / "RealBlur" / part / f"RealBlur_{subset}"]
        folders += [root / "test" / f"RealBlur_{subset}"] * (part == "test")
        for name, (gt, lq) in pairs.items():
            placements += place_pair(name, base / lq, base / gt, folders)
    if not placements:
        raise UserError(
            f"--source: the list files of {source} name no file that exists; unpack RealBlur's "
            "image folders beside them"
        )
    return placements


# Placing ----------------------------------------------------------------------------------------

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def _link_text(placement: Placement, root: Path) -> str:
    """What the link says: relative within the root, which can then be moved as a whole."""
    to = placement.via or placement.origin
    real = to.parent.resolve() / to.name
    folder = placement.target.parent.resolve()
    if real.is_relative_to(root.resolve()) and folder.is_relative_to(root.resolve()):
        return os.path.relpath(real, folder)
    return str(to.absolute())


def _linked(placement: Placement, root: Path) -> bool:
    """Make a link; False where links do not work.

    Raises:
        OSError: it cannot be made for another reason.
    """
    target = placement.target
    try:
        target.symlink_to(_link_text(placement, root))
    except OSError as error:
        # 1314: Windows, for users without the right to make links.
        if error.errno not in NO_LINKS and getattr(error, "winerror", None) != 1314:
            raise
        print(f"note: {target.parent} does not take links ({error.strerror}); copying")
        return False
    return True


def is_there(placement: Placement) -> bool | None:
    """Whether the target exists with the right content; None when with another one."""
    if not os.path.lexists(placement.target):
        return False
    if not placement.target.is_file():
        return None
    same = placement.target.samefile(placement.origin)
    return same or filecmp.cmp(placement.target, placement.origin, shallow=False) or None


def place_all(placements: list[Placement], root: Path, *, copy: bool) -> int:
    """Make all links or copies that are not there yet; returns how many that were.

    Raises:
        UserError: a target exists with another content (then nothing was changed), or the disk
            refuses.
    """
    try:
        states = {p: is_there(p) for p in tqdm(placements, desc="comparing", disable=None)}
        if taken := [str(p.target) for p, there in states.items() if there is None]:
            raise UserError(
                f"{len(taken)} files exist and differ from the download (or are broken links); "
                f"nothing was changed: {listing(taken)}. Remove or rename them, or give another "
                "--root"
            )
        missing = [p for p, there in states.items() if not there]
        links_work = True
        for placement in tqdm(missing, desc="placing", disable=None):
            placement.target.parent.mkdir(parents=True, exist_ok=True)
            if links_work and (placement.via is not None or not copy):
                links_work = _linked(placement, root)
                if links_work:
                    continue
            with (
                replacing(placement.target, sync=False) as file,
                placement.origin.open("rb") as origin,
            ):
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
            wrong = against_benchmark(count, entry)
            lines.append(f"{root / name}: {wrong or f'{count} pairs, as the benchmark has'}")
    return lines


PLACEMENTS = {
    "gopro": gopro_placements,
    "hide": hide_placements,
    "realblur": realblur_placements,
}
