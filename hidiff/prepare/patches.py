"""Cutting training patches and validation crops out of image pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hidiff.data.image import read_header, read_image, to_uint8, write_image
from hidiff.errors import UserError


def patch_offsets(length: int, size: int, overlap: int) -> list[int]:
    """Where patches begin along an axis: every `size - overlap`, and the last one at the edge.

    Args:
        length: of the axis, pixels.
        size: of a patch, pixels.
        overlap: of neighbouring patches, pixels, at least 0 and below `size`; the last two of an
            axis may overlap by more.

    Raises:
        UserError: the axis is shorter than a patch, or `overlap` is out of its range.
    """
    if not 0 <= overlap < size:
        raise UserError(f"overlap: expected 0 to {size - 1} (patches are {size}), got {overlap}")
    if length < size:
        raise UserError(f"{length} pixels are fewer than the {size} of a patch")
    return [*range(0, length - size, size - overlap), length - size]


def patch_corners(height: int, width: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """The (top, left) corners of an image's patches, row by row; see `patch_offsets`."""
    tops = patch_offsets(height, size, overlap)
    lefts = patch_offsets(width, size, overlap)
    return [(top, left) for top in tops for left in lefts]


def centre_corner(height: int, width: int, size: int) -> tuple[int, int]:
    """The (top, left) corner of the `size` × `size` crop at the centre (rounded up and left).

    Raises:
        UserError: the image is smaller than the crop.
    """
    if min(height, width) < size:
        raise UserError(f"{min(height, width)} pixels are fewer than the {size} of a crop")
    return (height - size) // 2, (width - size) // 2


@dataclass(frozen=True)
class CropTask:
    """One pair of images to cut, and where the pieces go.

    Args:
        name: the pair's name; patches are called `{name}-{n}.png` (n from 1), a centre crop
            `{name}.png`.
        lq, gt: the blurry and the sharp image.
        lq_folder, gt_folder: where their pieces go.
        size: side of a piece, pixels.
        overlap: of neighbouring patches, pixels; None for a single centre crop.
    """

    name: str
    lq: Path
    gt: Path
    lq_folder: Path
    gt_folder: Path
    size: int
    overlap: int | None

    def first_name(self) -> str:
        """The file name of the first piece, which every image large enough has."""
        return f"{self.name}.png" if self.overlap is None else f"{self.name}-1.png"

    def pieces(self, height: int, width: int) -> list[tuple[str, int, int]]:
        """(file name, top, left) of every piece of an image of this size.

        Raises:
            UserError: the image is smaller than a piece.
        """
        if self.overlap is None:
            return [(self.first_name(), *centre_corner(height, width, self.size))]
        corners = patch_corners(height, width, self.size, self.overlap)
        return [(f"{self.name}-{n}.png", *corner) for n, corner in enumerate(corners, start=1)]


@dataclass(frozen=True)
class CropResult:
    """What became of a `CropTask`.

    Args:
        names: the file names of the pair's pieces; none when there is a problem.
        written: how many piece pairs were written; the rest were there already.
        problem: why the pair could not be cut, if so.
    """

    name: str
    names: tuple[str, ...]
    written: int
    problem: str | None = None


def _read_pair(task: CropTask) -> tuple[np.ndarray, np.ndarray]:
    """Both images of a pair as (H, W, 3) RGB uint8.

    Raises:
        UserError: one cannot be read, or their sizes differ.
    """
    lq, gt = to_uint8(read_image(task.lq)), to_uint8(read_image(task.gt))
    if lq.shape != gt.shape:
        raise UserError(
            f"blurry and sharp image differ in size: {lq.shape[1]}×{lq.shape[0]} and "
            f"{gt.shape[1]}×{gt.shape[0]} (width×height)"
        )
    return lq, gt


def cut_pair(task: CropTask) -> CropResult:
    """Write the pieces of one pair that are not there yet.

    Pieces are written atomically, so an existing one is complete and is left as it is; a pair
    with all its pieces is not decoded again. A damaged, unequal or too small pair comes back as
    the result's `problem`.

    Raises:
        UserError: a piece cannot be written (a full disk concerns the whole run).
    """
    try:
        header = read_header(task.lq, str(task.lq))
        pieces = task.pieces(header.height, header.width)
        names = tuple(name for name, _, _ in pieces)
        folders = (task.lq_folder, task.gt_folder)
        if all((folder / name).exists() for folder in folders for name in names):
            return CropResult(task.name, names, 0)
        images = _read_pair(task)
        pieces = task.pieces(*images[0].shape[:2])
    except UserError as error:
        return CropResult(task.name, (), 0, str(error))
    written = 0
    for name, top, left in pieces:
        missing = [
            (folder / name, image)
            for folder, image in zip(folders, images, strict=True)
            if not (folder / name).exists()
        ]
        for path, image in missing:
            write_image(path, image[top : top + task.size, left : left + task.size])
        written += bool(missing)
    return CropResult(task.name, tuple(name for name, _, _ in pieces), written)


def check_existing(tasks: Sequence[CropTask]) -> None:
    """Compare the pieces of the first pair that has any with what cutting it now would give.

    Pieces cut with another size or overlap, or from other images, would otherwise be taken for
    done and mixed with new ones.

    Raises:
        UserError: they differ.
    """
    for task in tasks:
        try:
            pieces = list(_existing_pieces(task))
        except UserError:
            continue  # Reported by `cut_pair`; the next pair will do for the comparison.
        for path, expected in pieces:
            if expected is None or not np.array_equal(read_image(path), expected):
                raise UserError(
                    f"{path} exists and is not what cutting {task.lq.name} gives now: it was made "
                    "with another size or overlap, or from other images. Use the same settings "
                    f"and images, or remove the folder {path.parent.parent} to cut all anew"
                )
        if pieces:
            return


def _existing_pieces(task: CropTask) -> Iterator[tuple[Path, np.ndarray | None]]:
    """Existing pieces of a pair with the pixels they should have; None for one too many."""
    folders = (task.lq_folder, task.gt_folder)
    if not any((folder / task.first_name()).exists() for folder in folders):
        return
    images = _read_pair(task)
    pieces = task.pieces(*images[0].shape[:2])
    for folder, image in zip(folders, images, strict=True):
        for name, top, left in pieces:
            if (folder / name).exists():
                yield folder / name, image[top : top + task.size, left : left + task.size]
        extra = folder / f"{task.name}-{len(pieces) + 1}.png"
        if task.overlap is not None and extra.exists():
            yield extra, None
