"""What each part of the synthetic blur does, in one picture."""

from __future__ import annotations

import dataclasses

import numpy as np

from hidiff.data.sampler import CropRequest
from hidiff.data.synthetic_dataset import SyntheticBlurDataset
from hidiff.paper.sheet import beside, comparison_sheet, labelled
from hidiff.synthesis.recipe import Recipe

PATCH = 192
"""Side of the sheet's pictures, pixels."""


def synthesis_sheet(dataset: SyntheticBlurDataset, columns: int = 6) -> np.ndarray:
    """One row for each part alone, one with all parts and one with none, (H, W, 3) uint8 RGB.

    Each column is one place of a photograph, where each part does the same in every row. The row
    of the camera's processing is noisy, as nothing of it is seen without noise.

    Args:
        dataset: whose photographs and strengths are shown; a part that is off has no row.
        columns: how many photographs.

    Raises:
        UserError: a photograph is damaged, or too small.
    """
    parts = {
        name: dataclasses.replace(part, probability=1.0)
        for name, part in vars(dataset.recipe).items()
        if name != "sharp" and part is not None
    }
    rows = {"none": {}, **{name: {name: part} for name, part in parts.items()}, "all": parts}
    for name in {"processing", "saturation"} & parts.keys():
        beside_it = {"processing": "noise", "saturation": "shake"}[name]
        if beside_it in parts:
            del rows[name]
            rows[f"{beside_it} and {name}"] = {n: parts[n] for n in (name, beside_it)}
    rows["all"] = rows.pop("all")
    off = dict.fromkeys(vars(dataset.recipe))
    columns = min(columns, len(dataset))
    indices = [number * len(dataset) // columns for number in range(columns)]
    recipe, pictures = dataset.recipe, []
    try:
        for label, chosen in rows.items():
            dataset.recipe = Recipe(**{**off, **chosen, "sharp": 0.0})
            row = [
                dataset[CropRequest(index, PATCH, PATCH, (dataset.seed, index))]["lq"].numpy()
                for index in indices
            ]
            pictures.append(labelled(beside(row), label))
    finally:
        dataset.recipe = recipe
    return comparison_sheet(pictures)
