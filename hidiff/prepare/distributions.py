"""Data sets as their authors distribute them, and what of them goes where in the layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hidiff.data.image import listing
from hidiff.data.pairs import find_pairs
from hidiff.data.store import list_images
from hidiff.prepare.layout import LAYOUT, Placement, place_all, summary
from hidiff.utils.errors import UserError
from hidiff.utils.files import read_lines


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


def gopro_placements(source: Path, root: Path) -> list[Placement]:
    """GoPro's sequences as flat folders; `blur`, not `blur_gamma`, is the benchmark's input.

    Raises:
        UserError: a sequence without `blur`, or a frame without counterpart.
    """
    placements = []
    for part in ("train", "test"):
        folders = [root / "GoPro" / part]
        if part == "test":
            folders.append(root / "test" / "GoPro")
        sequences = [sharp.parent for sharp in (source / part).glob("*/sharp")]
        if not sequences:
            print(f"note: {source / part} has no sequences; nothing is placed for it")
            continue
        if without := [path.name for path in sequences if not (path / "blur").is_dir()]:
            raise UserError(
                f"--source: {source / part} has no folder blur in {listing(without)}; the "
                "benchmark uses that one and never blur_gamma: complete the download"
            )
        for pair in find_pairs(source / part, where="--source").pairs:
            assert pair.gt is not None
            placements += place_pair(pair.name, Path(pair.lq), Path(pair.gt), folders)
    return placements


def hide_placements(source: Path, root: Path) -> list[Placement]:
    """HIDE's two test folders as one; GT holds the sharp training images too, which stay out.

    Raises:
        UserError: a name occurs twice, or a test image has no sharp one.
    """
    lq: dict[str, Path] = {}
    for path in list_images(source / "test", "--source").values():
        other = lq.setdefault(path.stem, path)
        if other != path:
            raise UserError(f"--source: {other} and {path} have one name; remove one")
    gt = list_images(source / "GT", "--source")
    if without := sorted(lq.keys() - gt.keys()):
        raise UserError(
            f"--source: {source / 'GT'} lacks the sharp images of {len(without)} test images "
            f"({listing(without)}); complete the download"
        )
    folders = [root / "test" / "HIDE"]
    return [p for name in sorted(lq) for p in place_pair(name, lq[name], gt[name], folders)]


REALBLUR_LISTS = {
    (subset, part): f"RealBlur_{subset}_{part}_list.txt"
    for subset in ("J", "R")
    for part in ("train", "test")
}

# Neither absolute nor with backslashes or drives: a list must not lead out of the download.
_REALBLUR_LINE = re.compile(
    r"(?P<gt>(?P<scene>(?:[^/\\:\s]+/)+)gt/gt_(?P<number>\d+)\.\w+)\s+"
    r"(?P<lq>(?P=scene)blur/blur_(?P=number)\.\w+)"
)


def read_realblur_list(path: Path, subset: str) -> dict[str, tuple[str, str]]:
    """`{scene}-{number}` → (sharp, blurry) path as listed.

    Raises:
        UserError: it is no text, a line is not understood or of the other subset, or two
            different pairs get one name.
    """
    other_subset = {"J": "realblur-r", "R": "realblur-j"}[subset]
    pairs: dict[str, tuple[str, str]] = {}
    for number, line in read_lines(path, "--source"):
        where = f"{path}, line {number}"
        found = _REALBLUR_LINE.fullmatch(line)
        foreign = other_subset in line.lower().replace("_", "-")
        if found is None or foreign or ".." in found["scene"].split("/"):
            raise UserError(
                f"{where}: expected the sharp and the blurry image of one pair of "
                f"RealBlur-{subset}, like scene001/gt/gt_1.png scene001/blur/blur_1.png, got "
                f"'{line}'"
            )
        name = f"{found['scene'].split('/')[-2]}-{found['number']}"
        pair = (found["gt"], found["lq"])
        if pairs.setdefault(name, pair) != pair:
            raise UserError(f"{where}: another pair is called {name} too")
    return pairs


def realblur_placements(source: Path, root: Path) -> list[Placement]:
    """The pairs of RealBlur's list files; a list of which no file exists is left out with a note.

    Raises:
        UserError: none of the lists' files is there, some of a list's files are missing, or a list
            is not understood.
    """
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
        if missing := [name for name in listed if not (base / name).is_file()]:
            raise UserError(
                f"--source: {len(missing)} files of {path} are not under {base}: "
                f"{listing(missing, 3)}; complete the download"
            )
        folders = [root / "RealBlur" / part / f"RealBlur_{subset}"]
        if part == "test":
            folders.append(root / "test" / f"RealBlur_{subset}")
        for name, (gt, lq) in pairs.items():
            placements += place_pair(name, base / lq, base / gt, folders)
    if not placements:
        raise UserError(
            f"--source: the list files of {source} name no file that exists; unpack RealBlur's "
            "image folders beside them"
        )
    return placements


@dataclass(frozen=True)
class Distribution:
    """A data set as its authors distribute it.

    Args:
        expected: what its folder holds, for messages.
        is_at: whether a folder is its folder.
        placements: (its folder, the layout's root) → what goes where.
    """

    expected: str
    is_at: Callable[[Path], bool]
    placements: Callable[[Path, Path], list[Placement]]


DISTRIBUTIONS = {
    "gopro": Distribution(
        "sequences {train,test}/SEQUENCE/{blur,sharp}",
        lambda folder: any(any((folder / part).glob("*/sharp")) for part in ("train", "test")),
        gopro_placements,
    ),
    "hide": Distribution(
        "the folders test (with test-close-ups and test-long-shot, or the images) and GT",
        lambda folder: (folder / "test").is_dir() and (folder / "GT").is_dir(),
        hide_placements,
    ),
    "realblur": Distribution(
        f"one of the list files {', '.join(REALBLUR_LISTS.values())}",
        lambda folder: any((folder / name).is_file() for name in REALBLUR_LISTS.values()),
        realblur_placements,
    ),
}


def placements_of(name: str, source: Path, root: Path) -> list[Placement]:
    """What of a download goes where in the layout.

    Args:
        name: of `DISTRIBUTIONS`.
        source: its folder, as unpacked; where it is not, those near it are looked at for a hint.
        root: of the layout.

    Raises:
        UserError: the folder is not that of the data set, or the data set is incomplete.
    """
    kind = DISTRIBUTIONS[name]
    if not source.is_dir():
        raise UserError(f"--source: {source.absolute()} is no folder; name the unpacked download")
    if not kind.is_at(source):
        here = source.absolute()
        near = [here.parent, here.parent.parent, *source.glob("*/"), *source.glob("*/*/")]
        match = next((path for path in near if kind.is_at(path)), None)
        hint = f"; did you mean --source {match}?" if match else ""
        if any((source / part / "input").is_dir() for part in ("train", "test")):
            hint = f", but the flat layout already: move or link it to {root / 'GoPro'}"
        raise UserError(f"--source: {source} does not hold {kind.expected}{hint}")
    return kind.placements(source, root)


def place_download(folder: Path, root: Path) -> list[str]:
    """Copy what an unpacked archive holds to its places in the layout; lines about the data sets.

    It is found wherever it lies in the folder: in the layout already, or as its authors
    distribute it.

    Raises:
        UserError: no data set of the layout is there, one is incomplete, or a file differs from
            one that is there.
    """
    placements = _placements_in_layout(folder, root)
    if not placements:
        for place in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
            for kind in DISTRIBUTIONS.values():
                if kind.is_at(place):
                    placements += kind.placements(place, root)
    if not placements:
        raise UserError(
            f"the download holds none of {', '.join(LAYOUT)}; put it into the layout by hand, see "
            "datasets/README.md"
        )
    count = place_all(placements, root, copy=True)
    return [f"{count} files were placed under {root}", *summary(root, placements)]


def _placements_in_layout(folder: Path, root: Path) -> list[Placement]:
    """Placements of the folders that already end as those of the layout do."""
    placements = []
    for entry in LAYOUT.values():
        for place in sorted(folder.rglob(f"{entry.name}/{entry.lq}/")):
            if (place.parent / entry.gt).is_dir():
                lq, gt = (
                    list_images(place.parent / side, "--source") for side in (entry.lq, entry.gt)
                )
                for name in lq.keys() & gt.keys():
                    for side, origin in ((entry.lq, lq[name]), (entry.gt, gt[name])):
                        target = root / entry.name / side / origin.name
                        placements.append(Placement(origin, target))
    return placements
