"""Scoring a folder of restored images against the sharp ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hidiff.data.decode import decode
from hidiff.data.image import listing, to_uint8
from hidiff.data.pairs import find_pairs
from hidiff.data.store import find_images, read_location
from hidiff.evaluation.record import ImageScore, Scores
from hidiff.metrics import check_protocol, evaluate_pair
from hidiff.metrics.pyiqa import needs_target, pyiqa_score
from hidiff.utils.errors import UserError
from hidiff.utils.workers import ordered_pipeline

DATA_FOLDERS = {
    "GoPro": ("datasets/GoPro/test", "datasets/test/GoPro"),
    "HIDE": ("datasets/test/HIDE",),
    "RealBlur_R": ("datasets/test/RealBlur_R", "datasets/RealBlur/test/RealBlur_R"),
    "RealBlur_J": ("datasets/test/RealBlur_J", "datasets/RealBlur/test/RealBlur_J"),
}
"""Where the layout keeps a benchmark's `input` and `target`; the first one that exists counts."""

Reference = tuple[str | None, str | None]
"""Where a sharp image lies, and the blurry one, if it is to be scored, too."""


def find_data(dataset: str) -> Path | None:
    """The folder of a data set that the layout has here, or None."""
    return next((Path(p) for p in DATA_FOLDERS.get(dataset, ()) if Path(p).is_dir()), None)


def restored_folder(result: Path, dataset: str) -> Path:
    """Where a test puts the restored images of a data set."""
    return result / "visualization" / dataset


def _by_name(folder: Path, what: str) -> dict[str, str]:
    """The images in a folder and its scene folders by the names that a test gives them."""
    images, _ = find_images(str(folder), what)
    return {name.replace("/", "-"): place for name, place in images.items()}


def _references(target: Path, *, pairs: bool) -> dict[str, Reference]:
    """The sharp images by name: those of a folder, or with the blurry ones those of its pairs."""
    if pairs:
        found = find_pairs(target, where="--data").pairs
        return {pair.name: (pair.gt, pair.lq) for pair in found if pair.gt is not None}
    return {name: (place, None) for name, place in _by_name(target, "--target").items()}


def score_folders(
    restored: Path,
    target: Path | None,
    *,
    protocol: str,
    dataset: str,
    pairs: bool = False,
    metrics: Sequence[str] = (),
    suffix: str = "",
    jobs: int = 1,
) -> Scores:
    """Score every restored image against the sharp one of the same name.

    A pair that is damaged, incomplete or of two sizes becomes a failure, and the rest goes on.
    Every process uses one core and holds one pair at a time; only numbers are kept.

    Args:
        restored: folder of images of 8 or 16 bits; 16 are rounded to 8.
        target: the same of the sharp images; None measures metrics without reference alone.
        protocol: one of `hidiff.metrics.PROTOCOLS`.
        dataset: name of the data set, for the report.
        pairs: `target` holds pairs, see `find_pairs`; the blurry images are scored, too.
        metrics: of the package pyiqa, beside those of the protocol.
        suffix: what the restored images' names have at their end and the sharp ones' have not
            (an option file's `val.suffix`, with its underscore); others are left out.
        jobs: worker processes; with 1 this process does the work. The scores do not depend on it.
            Workers import the main module, so a program that asks for them needs the usual
            `if __name__ == "__main__":`.

    Raises:
        UserError: no such protocol; a folder is missing or empty, or they are one folder; no name
            occurs in both; a worker process was killed.
    """
    check_protocol(protocol)
    found = {
        name.removesuffix(suffix): place
        for name, place in _by_name(restored, "--restored").items()
        if name.endswith(suffix)
    }
    if target is None:
        _require_no_reference(metrics, dataset)
        sharp: dict[str, Reference] = dict.fromkeys(found, (None, None))
    elif target.exists() and restored.samefile(target):
        raise UserError(f"{restored} is given both as the restored and as the sharp images")
    else:
        sharp = _references(target, pairs=pairs)
    names = sorted(found.keys() & sharp.keys())
    if not names:
        ending = f" (without the suffix '{suffix}')" if suffix else ""
        raise UserError(
            f"images are paired by name, and no name{ending} is both in {restored} "
            f"({listing(found, 2) or 'none'}) and in {target} ({listing(sharp, 2)}); "
            "are these folders of the same data set?"
        )
    work = [(name, found[name], sharp[name]) for name in names]
    read = functools.partial(_score_pair, protocol, metrics)
    results = ordered_pipeline(work, load=read, workers=min(jobs, len(work)), processes=True)
    images = list(tqdm(results, dataset, len(work), unit="image", disable=None))
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
        target=None if target is None else str(target),
        input=str(target) if pairs else None,
    )


def _read(place: str) -> np.ndarray:
    return to_uint8(decode(read_location(place), place).pixels)


def _require_no_reference(metrics: Sequence[str], dataset: str) -> None:
    comparing = [metric for metric in metrics if needs_target(metric)]
    if comparing or not metrics:
        raise UserError(
            f"{', '.join(comparing) or 'PSNR and SSIM'}: there are no sharp images of {dataset} "
            "to compare with; name their folder, or metrics without reference (niqe, musiq)"
        )


def _score_pair(
    protocol: str, metrics: Sequence[str], pair: tuple[str, str, Reference]
) -> ImageScore:
    name, restored, (sharp, blurry) = pair
    score = ImageScore(name=name)
    try:
        target = None if sharp is None else _read(sharp)

        def measure(place: str) -> dict[str, float]:
            picture = _read(place)
            own = {metric: pyiqa_score(picture, target, metric=metric) for metric in metrics}
            known = {} if target is None else evaluate_pair(picture, target, protocol=protocol)
            return {**known, **own}

        score.set_scores(measure(restored), None if blurry is None else measure(blurry))
    except UserError as error:
        score.error = str(error)
    return score
