"""Synthetic pairs as files: to look at, or for programs that read folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hidiff.data.image import write_image
from hidiff.data.synthetic_dataset import SyntheticBlurDataset
from hidiff.options import load_datasets
from hidiff.registry import DATASETS
from hidiff.utils.errors import UserError
from hidiff.utils.files import inside

KIND = SyntheticBlurDataset.__name__


def synthetic_dataset(
    photographs: str | os.PathLike[str], option_file: str | Path | None = None
) -> SyntheticBlurDataset:
    """The data set of a folder of photographs, blurred as an option file's training is.

    Args:
        option_file: its first section of this kind under `datasets.train` counts, but for the
            folder; None takes the defaults.

    Raises:
        UserError: the folder, the file or its section cannot be used.
    """
    section: dict[str, Any] = {"type": KIND}
    where = "--input"
    if option_file is not None:
        training = load_datasets(option_file).get("train")
        entries = () if training is None else training.mixture or (training,)
        found = [entry for entry in entries if entry.source.get("type") == KIND]
        if not found:
            raise UserError(f"--opt: {option_file} has no {KIND} under datasets.train")
        section, where = dict(found[0].source), found[0].where
        # The cache is that of other photographs.
        section.pop("cache", None)
    return DATASETS.build({**section, "dataroot_gt": str(photographs)}, where, where=where)


def write_pairs(dataset: SyntheticBlurDataset, folder: Path, count: int | None = None) -> int:
    """Write pairs into folder/{input,target}; those that are there already are kept.

    Args:
        count: of the pairs; None makes one of each photograph, the one that testing reads. With
            more, photographs come again with another blur.

    Returns:
        How many were written.

    Raises:
        UserError: a photograph is damaged, or a file cannot be written.
    """
    written = 0
    total = len(dataset) if count is None else count
    for index, number, files in tqdm(_places(dataset, folder, total), total=total, unit="pair"):
        if all(file.exists() for file in files):
            continue
        for file, image in zip(files, dataset.whole(index, number), strict=True):
            write_image(file, image)
        written += 1
    return written


def _places(
    dataset: SyntheticBlurDataset, folder: Path, total: int
) -> Iterator[tuple[int, int, tuple[Path, Path]]]:
    """(index of the photograph, number of its blur, files of the pair)."""
    for pair in range(total):
        number, index = divmod(pair, len(dataset))
        name = dataset.pairs[index].name + (f"-{number + 1}" if number else "")
        blurry, sharp = (inside(folder / side, f"{name}.png") for side in ("input", "target"))
        yield index, number, (blurry, sharp)
