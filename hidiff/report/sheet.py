"""Comparison sheets: blurry, restored and sharp photographs side by side, with zoom boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from hidiff.data.image import read_image, to_uint8
from hidiff.metrics import evaluate_pair
from hidiff.utils.errors import UserError

BACKGROUND = 255
TEXT_COLOUR = (20, 20, 20)
BOX_COLOUR = (230, 30, 30)
GAP = 6
LABEL_HEIGHT = 26
ZOOM = 3
"""Enlargement of the zoom boxes."""

DETAIL = (360, 640)
"""Height and width in pixels of what a report shows of larger photographs."""


def strongest_window(values: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """(top, left) of the window in which (H, W) float32 values have the largest sum."""
    sums = cv2.integral(values)
    totals = (
        sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width]
        + sums[:-height, :-width]
    )  # fmt: skip
    top, left = np.unravel_index(int(np.argmax(totals)), totals.shape)
    return int(top), int(left)


def busiest_window(image: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """(top, left) of the window with the strongest edges of an (H, W, 3) uint8 image."""
    edges = np.abs(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
    return strongest_window(edges, height, width)


def labelled(image: np.ndarray, label: str) -> np.ndarray:
    """A picture with a line of text above it, (H', W, 3) uint8 RGB."""
    strip = np.full((LABEL_HEIGHT, image.shape[1], 3), BACKGROUND, np.uint8)
    cv2.putText(
        strip, label, (2, LABEL_HEIGHT - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, TEXT_COLOUR, 1,
        cv2.LINE_AA,
    )  # fmt: skip
    return np.concatenate([strip, image])


def beside(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures in a row, (H, W', 3) uint8 RGB."""
    height = max(image.shape[0] for image in images)
    parts = []
    for image in images:
        canvas = np.full((height, image.shape[1] + GAP, 3), BACKGROUND, np.uint8)
        canvas[: image.shape[0], : image.shape[1]] = image
        parts.append(canvas)
    return np.concatenate(parts, axis=1)


def comparison_row(images: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """One photograph in several versions, each with the same detail enlarged below it.

    Args:
        images: versions (H, W, 3) uint8 RGB of one size; the detail is chosen in the last one.
        labels: what to write above each.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    height, width = images[-1].shape[:2]
    box_width = max(width // ZOOM, 1)
    box_height = max(min(height // ZOOM, box_width * 2 // 3), 1)
    top, left = busiest_window(images[-1], box_height, box_width)
    columns = []
    for image, label in zip(images, labels, strict=True):
        box = image[top : top + box_height, left : left + box_width]
        zoomed = cv2.resize(box, (width, box_height * ZOOM), interpolation=cv2.INTER_NEAREST)
        framed = image.copy()
        cv2.rectangle(
            framed, (left, top), (left + box_width - 1, top + box_height - 1), BOX_COLOUR, 2
        )
        space = np.full((GAP, width, 3), BACKGROUND, np.uint8)
        columns.append(labelled(np.concatenate([framed, space, zoomed]), label))
    return beside(columns)


def comparison_sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of `comparison_row` below each other, (H, W, 3) uint8 RGB."""
    width = max(row.shape[1] for row in rows)
    padded = []
    for row in rows:
        canvas = np.full((row.shape[0] + GAP, width, 3), BACKGROUND, np.uint8)
        canvas[: row.shape[0], : row.shape[1]] = row
        padded.append(canvas)
    return np.concatenate(padded)


def spread(names: Sequence[str], count: int) -> list[str]:
    """`count` of the names, at even distances."""
    count = min(count, len(names))
    return [names[index * len(names) // count] for index in range(count)]


def photograph_row(
    name: str,
    files: Mapping[str, Path],
    *,
    protocol: str = "basicsr",
    title: str = "",
    largest: tuple[int, int] | None = None,
) -> np.ndarray:
    """The `comparison_row` of a photograph's files, with the PSNR of the whole photograph.

    Args:
        name: of the photograph.
        files: 'blurry', 'restored' and, if there is one, 'sharp'.
        protocol: that of the PSNR.
        title: stands beside the PSNR of the restored picture.
        largest: height and width in pixels of the part that is shown, the one with the strongest
            edges; None shows all.

    Raises:
        UserError: an image is damaged, or they differ in size.
    """
    images = {side: to_uint8(read_image(path)) for side, path in files.items()}
    if len({image.shape for image in images.values()}) > 1:
        raise UserError(f"the versions of {name} differ in size; are the folders right?")
    labels = {side: f"{side} {name}" for side in images}
    for side in images.keys() - {"sharp"} if "sharp" in images else ():
        psnr = evaluate_pair(images[side], images["sharp"], protocol=protocol)["psnr"]
        labels[side] = f"{side} {psnr:.2f} dB"
    labels["restored"] += f": {title}" if title else ""
    if largest is not None:
        last = list(images.values())[-1]
        height, width = map(min, last.shape, largest)
        top, left = busiest_window(last, height, width)
        window = slice(top, top + height), slice(left, left + width)
        images = {side: image[window] for side, image in images.items()}
    return comparison_row(list(images.values()), list(labels.values()))


def report_rows(
    photographs: Mapping[str, Mapping[str, Path]], *, title: str, protocol: str, count: int
) -> list[np.ndarray]:
    """Rows for `comparison_sheet` of one data set in one result folder.

    Args:
        photographs: their files by name, see `photograph_row`.
        title, protocol: see `photograph_row`.
        count: how many photographs to show, spread over their names; at most `DETAIL` of each.

    Raises:
        UserError: an image is damaged or of another size.
    """
    return [
        photograph_row(name, photographs[name], protocol=protocol, title=title, largest=DETAIL)
        for name in spread(list(photographs), count)
    ]
