"""Scoring a folder of restored images against the folder of sharp ones."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from tqdm import tqdm

from hidiff.data.image import listing, read_image, to_uint8
from hidiff.data.store import list_images
from hidiff.evaluation.record import ImageScore, Scores
from hidiff.metrics.protocols import check_protocol, evaluate_pair
from hidiff.utils.errors import UserError
from hidiff.utils.workers import run_in_order

DATA_FOLDERS = {
    "GoPro": ("datasets/GoPro/test", "datasets/test/GoPro"),
    "HIDE": ("datasets/test/HIDE",),
    "RealBlur_R": ("datasets/test/RealBlur_R", "datasets/RealBlur/test/RealBlur_R"),
    "RealBlur_J": ("datasets/test/RealBlur_J", "datasets/RealBlur/test/RealBlur_J"),
}
"""Where the layout keeps a benchmark's `input` and `target`; the first one that exists counts."""


def find_data(dataset: str) -> Path | None:
    """The folder of a data set that the layout has here, or None."""
    return next((Path(p) for p in DATA_FOLDERS.get(dataset, ()) if Path(p).is_dir()), None)


def restored_folder(result: Path, dataset: str) -> Path:
    """Where test.py puts the restored images of a data set."""
    return result / "visualization" / dataset


def score_folders(
    restored: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    protocol: str,
    dataset: str,
    suffix: str = "",
    jobs: int = 1,
    progress: bool = True,
) -> Scores:
    """Score every restored image against the sharp one of the same name.

    A pair that is damaged, incomplete or of two sizes becomes a failure, and the rest goes on.
    Every process uses one core and holds one pair at a time; only numbers are kept.

    Args:
        restored, target: folders of images, 8 or 16 bits; 16 are rounded to 8.
        protocol: one of `hidiff.metrics.PROTOCOLS`.
        dataset: name of the data set, for the report.
        suffix: what the restored images' names have at their end and the sharp ones' have not
            (test.py's `val.suffix`, with its underscore); other restored images are left out.
        jobs: worker processes; with 1 this process does the work. The scores do not depend on it.
            Workers import the main module, so a program that asks for them needs the usual
            `if __name__ == "__main__":`.
        progress: show a progress bar on standard error (if that is a terminal).

    Raises:
        UserError: no such protocol; a folder is missing or empty, or they are one folder; no name
            occurs in both; a worker process was killed.
    """
    check_protocol(protocol)
    restored, target = Path(restored), Path(target)
    sharp = list_images(target, "sharp images")
    found = {
        name.removesuffix(suffix): path
        for name, path in list_images(restored, "restored images").items()
        if name.endswith(suffix)
    }
    if restored.samefile(target):
        raise UserError(f"{restored} is given both as the restored and as the sharp images")
    names = sorted(found.keys() & sharp.keys())
    if not names:
        ending = f" (without the suffix '{suffix}')" if suffix else ""
        raise UserError(
            f"images are paired by name, and no name{ending} is both in {restored} "
            f"({listing(found, 2) or 'none'}) and in {target} ({listing(sharp, 2)}); "
            "are these folders of the same data set?"
        )
    pairs = [(name, found[name], sharp[name]) for name in names]
    read = functools.partial(_score_pair, protocol)
    results = run_in_order(pairs, read=read, workers=min(jobs, len(pairs)), processes=True)
    hidden = None if progress else True
    images = list(tqdm(results, dataset, len(pairs), unit="image", disable=hidden))
    for side, missing in (
        ("restored", sharp.keys() - found.keys()),
        ("sharp", found.keys() - sharp.keys()),
    ):
        images += [ImageScore(name=name, error=f"no {side} image") for name in sorted(missing)]
    return Scores(
        dataset=dataset,
        protocol=protocol,
        source="pictures",
        images=images,
        folder=str(restored),
        target=str(target),
    )


def _score_pair(protocol: str, pair: tuple[str, Path, Path]) -> ImageScore:
    name, restored, target = pair
    score = ImageScore(name=name)
    try:
        images = to_uint8(read_image(restored)), to_uint8(read_image(target))
        score.set_scores(evaluate_pair(*images, protocol=protocol))
    except UserError as error:
        score.error = str(error)
    return score
