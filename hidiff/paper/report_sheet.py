"""The pictures of a report: blurry, restored and sharp details of result folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hidiff.data.image import list_images, read_image, to_uint8
from hidiff.errors import UserError
from hidiff.metrics import evaluate_pair
from hidiff.scoring.program import restored_folder
from hidiff.scoring.sheet import busiest_window, comparison_row

DETAIL = (360, 640)
"""Height and width in pixels of what is shown of larger photographs."""


def sheet_rows(
    result: Path, dataset: str, protocol: str, data: Path, count: int
) -> list[np.ndarray]:
    """Comparison rows of one data set in one result folder.

    Args:
        result: result folder of test.py.
        dataset: its name in the result folder.
        protocol: that of the PSNR above the pictures, over the whole photograph.
        data: folder with `input` (blurry) and `target` (sharp).
        count: how many photographs to show, spread over their names.

    Returns:
        Rows for `hidiff.scoring.sheet.comparison_sheet`: of each photograph the part with the
        strongest edges, at most `DETAIL` in size and at the photograph's own scale, and below it a
        zoom box.

    Raises:
        UserError: a folder is missing or empty, no name occurs in all three, or an image is damaged
            or of another size.
    """
    folders = {
        "blurry": data / "input",
        "restored": restored_folder(result, dataset),
        "sharp": data / "target",
    }
    files = {side: list_images(folder, f"{side} images") for side, folder in folders.items()}
    names = [name for name in files["restored"] if all(name in side for side in files.values())]
    if not names:
        raise UserError(
            f"no image name occurs in all of {', '.join(str(path) for path in folders.values())}"
        )
    count = min(count, len(names))
    chosen = [names[index * len(names) // count] for index in range(count)]
    title = f"{result.resolve().name} {dataset}"
    return [
        _row(name, title, {side: found[name] for side, found in files.items()}, protocol)
        for name in chosen
    ]


def _row(name: str, title: str, files: dict[str, Path], protocol: str) -> np.ndarray:
    images = {side: to_uint8(read_image(path)) for side, path in files.items()}
    labels = {"sharp": f"sharp: {name}"}
    for side in ("blurry", "restored"):
        psnr = evaluate_pair(images[side], images["sharp"], protocol=protocol)["psnr"]
        labels[side] = f"{side} {psnr:.2f} dB"
    labels["restored"] += f": {title}"
    height, width = (min(a, b) for a, b in zip(images["sharp"].shape[:2], DETAIL, strict=True))
    top, left = busiest_window(images["sharp"], height, width)
    window = slice(top, top + height), slice(left, left + width)
    return comparison_row(
        [image[window] for image in images.values()], [labels[side] for side in images]
    )
