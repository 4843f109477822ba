"""The comparison as one HTML file that loads nothing: tables, scatter plots and pictures.

`page.html` beside this module is the page without its content.
"""

from __future__ import annotations

import html
import itertools
import logging
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np

from hidiff.data.image import read_image, to_uint8
from hidiff.report.run import METRICS, Comparison
from hidiff.report.scatter import scatter
from hidiff.report.sheet import BOX_COLOUR, strongest_window
from hidiff.report.table import (
    UNITS,
    Table,
    about_intervals,
    differences_table,
    facts,
    in_words,
    models_table,
)
from hidiff.restore.page import filled, jpeg_url
from hidiff.utils.errors import UserError
from hidiff.utils.files import write_bytes

LOG = logging.getLogger("hidiff")

DETAIL = (96, 128)
"""Largest height and width in pixels of what is shown of an image."""

ENLARGED = 2
"""CSS pixels for one of the detail."""


def write_comparison(comparison: Comparison, page: Path) -> None:
    """Write the page, or replace an earlier one.

    Raises:
        UserError: it cannot be written.
    """
    header, rows = differences_table(comparison)
    parts = [_table(models_table(comparison))]
    if rows:
        parts.append(f"<h2>Differences from {html.escape(comparison.baseline)}</h2>")
        parts += [_table((header, rows)), f"<p>{html.escape(about_intervals(comparison))}</p>"]
    parts.append("<ul>")
    parts += [f"<li>{html.escape(fact)}</li>" for fact in facts(comparison)]
    parts.append("</ul>")
    others = [label for label in comparison.outcomes if label != comparison.baseline]
    if others:
        parts.append("<h2>Pairs</h2>")
    parts += [_pair(comparison, label, comparison.baseline, opened=True) for label in others]
    parts += [
        _pair(comparison, second, first, opened=False)
        for first, second in itertools.combinations(others, 2)
    ]
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    title = html.escape(f"Models on {comparison.asked.data.name}")
    write_bytes(page, filled(template, {"title": title, "content": "\n".join(parts)}, embed=True))


def _table(table: Table) -> str:
    header, rows = table
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _pair(comparison: Comparison, label: str, other: str, *, opened: bool) -> str:
    """All about two models: their difference, a scatter plot, and images from both ends."""
    words = [f"{UNITS[m]} {in_words(comparison.difference(label, other, m), m)}" for m in METRICS]
    x, y = (comparison.values(side, "psnr") for side in (other, label))
    axes = (f"{other}, {UNITS['psnr']}", f"{label}, {UNITS['psnr']}")
    rows = "".join(
        _row(comparison, index, label, other)
        for index in ends(
            np.subtract(y, x, out=np.zeros(len(x)), where=x != y), comparison.asked.pictures
        )
    )
    return (
        f"<details{' open' * opened}><summary>{html.escape(f'{label} less {other}')}</summary>"
        f"<p>{html.escape('; '.join(words))}</p>"
        f"{scatter(x, y, names=comparison.names, axes=axes)}{rows}</details>"
    )


def ends(differences: np.ndarray, count: int) -> list[int]:
    """Indices of the largest differences and of the smallest ones, `count` of each, once each."""
    order = [int(index) for index in np.argsort(-differences, kind="stable")]
    return list(dict.fromkeys([*order[:count], *order[max(len(order) - count, 0) :][::-1]]))


def _row(comparison: Comparison, index: int, label: str, other: str) -> str:
    """An image: where the detail is, and the detail blurry, restored by each model and sharp."""
    name = comparison.names[index]
    try:
        blurry, restored, sharp = _versions(comparison, name)
    except UserError as error:
        LOG.info("not on the page: %s", error)
        return ""
    scores = {side: comparison.values(side, "psnr")[index] for side in restored}
    better, worse = (label, other) if scores[label] >= scores[other] else (other, label)
    # Where the worse one is farther from the sharp image than the better one.
    errors = [
        ((restored[side].astype(np.float32) - sharp) ** 2).sum(axis=2) for side in (worse, better)
    ]
    height, width = map(min, sharp.shape[:2], DETAIL)
    top, left = strongest_window(errors[0] - errors[1], height, width)

    def detail(image: np.ndarray) -> np.ndarray:
        return image[top : top + height, left : left + width]

    figures = [
        _figure(_overview(sharp, top, left, height, width), name, "and the detail in it", scale=1),
        _figure(detail(blurry), "blurry"),
        *(
            _figure(detail(image), side, f"{scores[side]:.2f} dB", marked=side in (label, other))
            for side, image in restored.items()
        ),
        _figure(detail(sharp), "sharp"),
    ]
    gain = scores[label] - scores[other] if scores[label] != scores[other] else 0.0
    return (
        f"<h3>{html.escape(f'{name}: {gain:+.2f} dB')}</h3>"
        f'<div class="versions">{"".join(figures)}</div>'
    )


def _versions(
    comparison: Comparison, name: str
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """An image blurry, restored by each model and sharp, (H, W, 3) uint8 RGB.

    Raises:
        UserError: one is gone, or of another size.
    """
    item = comparison.dataset[[pair.name for pair in comparison.dataset.pairs].index(name)]
    blurry, sharp = (
        np.ascontiguousarray(to_uint8(item[side].permute(1, 2, 0).numpy())) for side in ("lq", "gt")
    )
    restored = {
        label: to_uint8(read_image(outcome.pictures[name]))
        for label, outcome in comparison.outcomes.items()
    }
    if {image.shape for image in restored.values()} != {sharp.shape}:
        raise UserError(f"the versions of {name} differ in size")
    return blurry, restored, sharp


def _overview(image: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """The whole image at about the size at which the detail is shown, which is in a frame."""
    scale = max(image.shape[0] / height, image.shape[1] / width) / ENLARGED
    size = [max(round(side / scale), 1) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    start = round(left / scale), round(top / scale)
    end = round((left + width - 1) / scale), round((top + height - 1) / scale)
    return np.asarray(cv2.rectangle(small, start, end, BOX_COLOUR, 2))


def _figure(
    image: np.ndarray,
    name: str,
    about: str = "",
    *,
    marked: bool = False,
    scale: int = ENLARGED,
) -> str:
    height, width = (side * scale for side in image.shape[:2])
    caption = f"<b>{html.escape(name)}</b> {html.escape(about)}"
    return (
        f'<figure{" class=marked" * marked}><img alt="" loading="lazy" width="{width}" '
        f'height="{height}" src="{jpeg_url(image)}"><figcaption>{caption}</figcaption></figure>'
    )
