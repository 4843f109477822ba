"""GoPro's frames cut into training patches and validation crops."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hidiff.data.decode import read_header
from hidiff.data.image import listing, read_image, to_uint8, write_image
from hidiff.data.pairs import find_pairs
from hidiff.data.store import list_images
from hidiff.utils.errors import UserError, print_problems
from hidiff.utils.workers import ordered_pipeline


def piece_offsets(length: int, size: int, overlap: int | None) -> list[int]:
    """Where pieces begin along an axis: every `size - overlap` pixels, the last one at the edge.

    Args:
        length: of the axis, pixels.
        size: of a piece, pixels.
        overlap: of neighbours, 0 to `size - 1` pixels; the last two may overlap by more. None for
            one piece at the centre (rounded down).

    Raises:
        UserError: the axis is shorter than a piece.
    """
    if length < size:
        raise UserError(f"{length} pixels are fewer than the {size} of a patch")
    if overlap is None:
        return [(length - size) // 2]
    return [*range(0, length - size, size - overlap), length - size]


@dataclass(frozen=True)
class CropTask:
    """One pair of images to cut, and where the pieces go.

    Args:
        name: the pair's name; patches are called `{name}-{n}.png` (n from 1, row by row), a centre
            crop `{name}.png`.
        images: the blurry and the sharp image.
        folders: where the pieces of each go.
        size: side of a piece, pixels.
        overlap: of neighbouring patches, pixels; None for a single centre crop.
    """

    name: str
    images: tuple[Path, ...]
    folders: tuple[Path, ...]
    size: int
    overlap: int | None

    def areas(self, height: int, width: int) -> dict[str, tuple[slice, slice]]:
        """File name → rows and columns of every piece of an image of this size.

        Raises:
            UserError: the image is smaller than a piece.
        """
        corners = itertools.product(
            *(piece_offsets(length, self.size, self.overlap) for length in (height, width))
        )
        return {
            f"{self.name}.png" if self.overlap is None else f"{self.name}-{n}.png": (
                slice(top, top + self.size),
                slice(left, left + self.size),
            )
            for n, (top, left) in enumerate(corners, start=1)
        }

    def pieces(self) -> dict[Path, np.ndarray]:
        """The pieces of both images, (size, size, 3) RGB uint8, by where they go.

        Raises:
            UserError: an image cannot be read or is smaller than a piece, or their sizes differ.
        """
        lq, gt = (to_uint8(read_image(path)) for path in self.images)
        if lq.shape != gt.shape:
            sizes = " and ".join(f"{image.shape[1]}×{image.shape[0]}" for image in (lq, gt))
            raise UserError(f"blurry and sharp image differ in size: {sizes} (width×height)")
        areas = self.areas(*lq.shape[:2])
        sides = zip(self.folders, (lq, gt), strict=True)
        return {folder / n: image[areas[n]] for folder, image in sides for n in areas}


@dataclass(frozen=True)
class CropResult:
    """What became of a `CropTask`.

    Args:
        name: of the pair.
        names: the file names of the pair's pieces; none when there is a problem.
        written: how many piece pairs were written; the rest were there already.
        problem: why the pair could not be cut, if so.
    """

    name: str
    names: tuple[str, ...] = ()
    written: int = 0
    problem: str | None = None


def cut_pair(task: CropTask) -> CropResult:
    """Write the pieces of one pair that are not there yet.

    Pieces are written atomically, so an existing one is complete and is left as it is; a pair
    with all its pieces is not decoded again. A damaged, unequal or too small pair comes back as
    the result's `problem`.

    Raises:
        UserError: a piece cannot be written (a full disk concerns the whole run).
    """
    try:
        header = read_header(task.images[0], str(task.images[0]))
        names = tuple(task.areas(header.height, header.width))
        if all((folder / name).exists() for folder in task.folders for name in names):
            return CropResult(task.name, names)
        pieces = task.pieces()
    except UserError as error:
        return CropResult(task.name, problem=str(error))
    missing = [path for path in pieces if not path.exists()]
    for path in missing:
        write_image(path, pieces[path])
    return CropResult(task.name, names, len({path.name for path in missing}))


def check_existing(task: CropTask) -> None:
    """Compare the pieces of a pair that are there with what cutting it now gives.

    Pieces cut with another size or overlap, or from other images, would otherwise be taken for
    done and mixed with new ones.

    Raises:
        UserError: they differ.
    """
    try:
        pieces = task.pieces() if any(folder.is_dir() for folder in task.folders) else {}
    except UserError:
        return  # Reported by `cut_pair`.
    for path, piece in pieces.items():
        if path.exists() and not np.array_equal(read_image(path), piece):
            raise UserError(
                f"{path} exists and is not what cutting {task.images[0].name} gives now: it was "
                "made with another size or overlap, or from other images. Use the same settings "
                f"and images, or remove the folder {path.parent.parent} to cut all anew"
            )


def cut_gopro(root: Path, *, size: int, overlap: int, val_size: int, jobs: int) -> bool:
    """Cut root/{train,test} into root/crop/{train,val}, and print what was done.

    Args:
        size, overlap: of training patches, pixels.
        val_size: side of a validation crop, pixels.
        jobs: processes.

    Returns:
        Whether every pair could be cut.

    Raises:
        UserError: a mistake in the folders, the pieces cannot be written, or a process died.
    """
    parts = {}
    for part, crop, side, shared in (
        ("train", "train", size, overlap),
        ("test", "val", val_size, None),
    ):
        if (root / part).is_dir():
            lq, gt = root / part / "input", root / part / "target"
            folders = tuple(root / "crop" / crop / f"{name}_crops" for name in ("input", "target"))
            parts[part] = [
                CropTask(pair.name, (Path(pair.lq), Path(str(pair.gt))), folders, side, shared)
                for pair in find_pairs(blurry=lq, sharp=gt, where=str(root / part)).pairs
            ]
            # Pairs are cut in their order, so whatever was cut, the first pair was.
            check_existing(parts[part][0])
        else:
            print(f"{part}: not cut, {root / part} does not exist")
    if not parts:
        raise UserError(
            f"--root: {root.absolute()} holds neither train/ nor test/ with input/ and target/ in "
            "them; hidiff prepare gopro --source DOWNLOAD makes them"
        )
    problems = []
    for part, tasks in parts.items():
        workers = min(jobs, len(tasks))
        cutting = ordered_pipeline(tasks, load=cut_pair, workers=workers, processes=True)
        results = list(tqdm(cutting, part, len(tasks), unit="pair", disable=None))
        names = {name for result in results for name in result.names}
        written = sum(result.written for result in results)
        print(
            f"{part}: {len(tasks)} pairs of frames, {len(names)} pairs of crops ({written} "
            f"written, {len(names) - written} there already) in {tasks[0].folders[0].parent}"
        )
        bad = [f"{part}/{r.name}: {r.problem}" for r in results if r.problem is not None]
        problems += bad
        if not bad:
            _note_others(tasks[0].folders, names)
    hint = "Replace or remove these images, then run again."
    print_problems(problems, "pairs could not be cut", hint)
    return not problems


def _note_others(folders: tuple[Path, ...], names: set[str]) -> None:
    """Print what lies in the folders beside the pieces of these names."""
    for folder in folders:
        others = {path.name for path in list_images(folder, str(folder)).values()} - names
        if others:
            print(
                f"note: {folder} holds {len(others)} images that come from none of these frames "
                f"and would be used with them: {listing(others)}"
            )
