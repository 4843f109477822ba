"""Sharp photographs, blurred as `SyntheticBlurDataset` does in training, as pairs of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from hidiff.data.image import write_image
from hidiff.data.synthetic_dataset import SyntheticBlurDataset
from hidiff.options import load_datasets
from hidiff.registry import DATASETS
from hidiff.utils.errors import UserError
from hidiff.utils.files import safe_join


def synthetic_dataset(photographs: Path, option_file: Path | None = None) -> SyntheticBlurDataset:
    """The data set of a folder of photographs, blurred as an option file's training is.

    Args:
        option_file: the first synthetic set under its `datasets.train` says how to blur; None takes
            the defaults.

    Raises:
        UserError: the folder, the file or its section cannot be used.
    """
    kind = SyntheticBlurDataset.__name__
    section: dict[str, Any] = {"type": kind}
    where = "--input"
    if option_file is not None:
        training = load_datasets(option_file).get("train")
        entries = () if training is None else training.mixture or (training,)
        found = [entry for entry in entries if entry.source.get("type") == kind]
        if not found:
            raise UserError(f"--opt: {option_file} has no {kind} under datasets.train")
        section, where = dict(found[0].source), found[0].where
        section.pop("cache", None)  # It is that of other photographs.
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
    for pair in tqdm(range(count or len(dataset)), "blurring", unit="pair", disable=None):
        number, index = divmod(pair, len(dataset))
        name = dataset.pairs[index].name + (f"-{number + 1}" if number else "")
        files = [safe_join(folder / side, f"{name}.png") for side in ("input", "target")]
        if all(file.exists() for file in files):
            continue
        for file, image in zip(files, dataset.whole(index, number), strict=True):
            write_image(file, image)
        written += 1
    return written
