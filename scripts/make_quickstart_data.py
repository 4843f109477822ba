"""Make the small data set of the quickstart: photographs blurred by simulated camera shake.

    python scripts/make_quickstart_data.py

The photographs come with scikit-image, so nothing is downloaded; training and test pairs are made
of different ones. The layout is that of the GoPro set: {train,test}/{input,target}, where `input`
is blurry and `target` sharp. A seed always gives the same files with the same library versions.

`made_with.json` in the folder records the recipe, the seed and every file's SHA-256. A folder that
agrees with its record is left as it is; one that does not is made again next to it and then
swapped in. A folder that holds anything else is never touched.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from hidiff.data.camera_shake import shake  # noqa: E402
from hidiff.data.image import read_image, write_image  # noqa: E402
from hidiff.errors import UserError, friendly_errors  # noqa: E402

RECIPE = 1
"""Raise this with every change that alters the files."""

RECORD = "made_with.json"
FILE_NAME = re.compile(r"(train|test)/(input|target)/[a-z_]+-\d\.png")
FOLDERS = ("train", "train/input", "train/target", "test", "test/input", "test/target")

STRENGTH = (0.8, 0.95)
"""Limits of the random strength of a shake; see `hidiff.data.camera_shake.shake`."""

MARGIN = 12
"""Pixels cut off on every side after the shake, so that no mirrored border is in a pair."""


@dataclass(frozen=True)
class Photograph:
    """Pairs to make of one photograph: each has its own shake, place and scale.

    Attributes:
        file: name in scikit-image's data folder.
        sizes: (height, width) in pixels of every pair to make.
        scales: limits of the random factor, at most 1, by which the photograph is made smaller.
    """

    file: str
    sizes: tuple[tuple[int, int], ...]
    scales: tuple[float, float]


PHOTOGRAPHS = {
    "train": (
        # The two motorcycles are one scene seen by two cameras: they must stay on one side.
        Photograph("motorcycle_left.png", ((320, 320),) * 9, (0.7, 1.0)),
        Photograph("motorcycle_right.png", ((320, 320),) * 9, (0.7, 1.0)),
        Photograph("chelsea.png", ((272, 336),) * 6, (0.99, 1.0)),
        Photograph("rocket.jpg", ((320, 320),) * 6, (0.82, 1.0)),
        Photograph("coins.png", ((272, 336),) * 6, (0.98, 1.0)),
        Photograph("brick.png", ((320, 320),) * 4, (0.7, 1.0)),
        Photograph("gravel.png", ((320, 320),) * 3, (0.7, 1.0)),
        Photograph("grass.png", ((320, 320),) * 3, (0.7, 1.0)),
    ),
    "test": (
        Photograph("astronaut.png", ((384, 384), (320, 320), (256, 384)), (0.8, 1.0)),
        # Sides that are no multiple of 8 show that any image size can be restored.
        Photograph("coffee.png", ((320, 384), (301, 350)), (0.86, 1.0)),
        Photograph("camera.png", ((320, 384), (263, 381)), (0.82, 1.0)),
    ),
}


def file_names() -> list[str]:
    """Every image of the data set, relative to its folder."""
    return [
        f"{split}/{side}/{Path(photograph.file).stem}-{number}.png"
        for split, photographs in PHOTOGRAPHS.items()
        for photograph in photographs
        for number in range(1, len(photograph.sizes) + 1)
        for side in ("input", "target")
    ]


def read_photograph(name: str) -> np.ndarray:
    """A photograph from the installed scikit-image, (H, W, 3) uint8 RGB.

    Raises:
        UserError: this version of scikit-image does not bring it along.
    """
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise UserError(
            f"{path} is missing: scikit-image {skimage.__version__} is installed without it; "
            "install it from PyPI: python -m pip install --force-reinstall 'scikit-image>=0.22,<1'"
        )
    return read_image(path)


def make_pair(
    photograph: np.ndarray,
    size: tuple[int, int],
    scales: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """(blurry, sharp) of the given size, cut at a random place out of the photograph made smaller.

    Shapes are (H, W, 3), uint8; `size` and `scales` as in `Photograph`.
    """
    height, width = size[0] + 2 * MARGIN, size[1] + 2 * MARGIN
    scale = rng.uniform(*scales)
    scaled = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top = rng.integers(scaled.shape[0] - height, endpoint=True)
    left = rng.integers(scaled.shape[1] - width, endpoint=True)
    blurry, sharp = shake(
        scaled[top : top + height, left : left + width],
        rng=rng,
        strength=rng.uniform(*STRENGTH),
    )
    inside = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    return blurry[inside], sharp[inside]


def make_images(folder: Path, seed: int) -> None:
    """Write every image of the data set under `folder`."""
    for split, photographs in PHOTOGRAPHS.items():
        for photograph in photographs:
            pixels = read_photograph(photograph.file)
            for number, size in enumerate(photograph.sizes, start=1):
                name = f"{Path(photograph.file).stem}-{number}.png"
                # Seeded by name: a pair stays as it is when others are added or removed.
                rng = np.random.default_rng([seed, *f"{split}/{name}".encode()])
                blurry, sharp = make_pair(pixels, size, photograph.scales, rng)
                write_image(folder / split / "input" / name, blurry)
                write_image(folder / split / "target" / name, sharp)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_record(folder: Path) -> dict | None:
    """What `made_with.json` says, or None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        sound = {"recipe", "seed"} <= record.keys() and isinstance(record["files"], dict)
        sound = sound and all(FILE_NAME.fullmatch(name) for name in record["files"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise UserError(
            f"{path} is damaged, so it cannot be told which files are the data set's own; "
            f"move or remove {folder}, then run this again"
        )
    return record


def is_complete(folder: Path, record: dict | None, seed: int) -> bool:
    """Whether the folder holds exactly what this recipe makes with this seed."""
    if record is None or (record["recipe"], record["seed"]) != (RECIPE, seed):
        return False
    return set(record["files"]) == set(file_names()) and all(
        (folder / name).is_file() and sha256(folder / name) == digest
        for name, digest in record["files"].items()
    )


def foreign_files(folder: Path, record: dict | None) -> Iterator[Path]:
    """Whatever is in the folder that its record does not claim; links are always foreign."""
    own = {*FOLDERS, RECORD, *record["files"]} if record else set(FOLDERS)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or path.relative_to(folder).as_posix() not in own:
            yield path


def refuse_foreign_files(folder: Path, record: dict | None) -> None:
    foreign = next(foreign_files(folder, record), None)
    if foreign is not None:
        raise UserError(
            f"{foreign} is not on the record of what this program made ({RECORD}), so {folder} is "
            "left as it is; move it away, or choose another folder with --output"
        )


def make_data_set(folder: Path, seed: int) -> bool:
    """Make the data set, unless it is there.

    The images are made in a fresh folder beside the wanted one, which takes its place only when
    it is complete: an interruption leaves the old state.

    Returns:
        Whether anything was written.

    Raises:
        UserError: the folder holds other files, or cannot be written.
    """
    # The folder may be a link to another disk; what is swapped is what it points at.
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: {folder} is a file; name a folder")
    record = read_record(folder)
    if is_complete(folder, record, seed):
        return False
    refuse_foreign_files(folder, record)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            new = workshop / "new"
            make_images(new, seed)
            files = {name: sha256(new / name) for name in file_names()}
            made_with = {"recipe": RECIPE, "seed": seed, "files": files}
            (new / RECORD).write_text(json.dumps(made_with, indent=1) + "\n", encoding="utf-8")
            # Making them took a while: somebody may have put a file there meanwhile.
            refuse_foreign_files(folder, record)
            swap(new, folder, workshop / "old")
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"--output: {folder} cannot be made ({error.strerror or error}); "
            "free some space or choose another folder"
        ) from None
    return True


def swap(new: Path, folder: Path, old: Path) -> None:
    """Move `folder`, where it exists, to `old`, and `new` to `folder`; all or nothing."""
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the small data set of the quickstart.")
    parser.add_argument(
        "--output",
        type=Path,
        default=REPOSITORY / "datasets" / "quickstart",
        help="folder to make; default: datasets/quickstart of this checkout",
    )
    parser.add_argument("--seed", type=int, default=0, help="0 or larger; default: 0")
    options = parser.parse_args(arguments)
    with friendly_errors():
        if options.seed < 0:
            raise UserError(f"--seed: {options.seed} is negative; give 0 or a larger number")
        started = time.perf_counter()
        if make_data_set(options.output, options.seed):
            count = {
                split: sum(len(photograph.sizes) for photograph in photographs)
                for split, photographs in PHOTOGRAPHS.items()
            }
            print(
                f"made {count['train']} training and {count['test']} test pairs in "
                f"{options.output} ({time.perf_counter() - started:.0f} s)"
            )
        else:
            print(f"{options.output} is complete already; nothing to do")


if __name__ == "__main__":
    main()
