"""What each part of the synthetic blur does, in one picture."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np

from hidiff.data.sampler import CropRequest
from hidiff.data.synthetic_dataset import SyntheticBlurDataset
from hidiff.report.sheet import beside, comparison_sheet, labelled
from hidiff.synthesis.recipe import Recipe

PATCH = 192
"""Side of the sheet's pictures, pixels."""

PLACES = 8
"""Places of a photograph that are tried."""

_OFF: dict[str, Any] = {**dict.fromkeys(vars(Recipe())), "sharp": 0.0}


def synthesis_sheet(dataset: SyntheticBlurDataset, columns: int = 5) -> np.ndarray:
    """One row for each part alone, one with all parts and one with none, (H, W, 3) uint8 RGB.

    Each column is one place of a photograph, where each part does the same in every row. Highlights
    are shown shaken and the camera's processing noisy: alone they change the target as well.

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
    rows = {"none": {}, **{name: {name: part} for name, part in parts.items()}}
    for name, other in (("saturation", "shake"), ("processing", "noise")):
        if name in parts and other in parts:
            rows[f"{other} and {name}"] = rows.pop(name) | {other: parts[other]}
    rows["all"] = parts
    requests, recipe, pictures = (
        _telling_places(dataset, min(columns, len(dataset))),
        dataset.recipe,
        [],
    )
    try:
        for label, chosen in rows.items():
            dataset.recipe = Recipe(**_OFF | chosen)
            row = [dataset[request]["lq"].numpy() for request in requests]
            pictures.append(labelled(beside(row), label))
    finally:
        dataset.recipe = recipe
    return comparison_sheet(pictures)


def _telling_places(dataset: SyntheticBlurDataset, columns: int) -> list[CropRequest]:
    """For each of some photographs the one of a few random places with the strongest edges."""
    recipe, chosen = dataset.recipe, []
    dataset.recipe = Recipe(**_OFF)
    try:
        for number in range(columns):
            index = number * len(dataset) // columns
            requests = [
                CropRequest(index, PATCH, PATCH, (dataset.seed, index, place))
                for place in range(PLACES)
            ]
            chosen.append(max(requests, key=lambda request: _edges(dataset[request]["gt"].numpy())))
    finally:
        dataset.recipe = recipe
    return chosen


def _edges(image: np.ndarray) -> float:
    return float(np.abs(cv2.Laplacian(image, cv2.CV_32F)).mean())
