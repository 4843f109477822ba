"""One figure of images against another, as SVG within a page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

SIDE = 320
"""Of the square that the points are in, in CSS pixels."""

LEFT, BELOW, AROUND = 52, 44, 10
"""Room for the axes' texts, and on the other sides."""

TICKS = 5
"""About how many there are on an axis."""


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 10) for number in range(first, last + 1)]


def scatter(x: np.ndarray, y: np.ndarray, *, names: Sequence[str], axes: tuple[str, str]) -> str:
    """The SVG element: a point an image, and the diagonal on which both are equal.

    Both axes have the same range. Images with an infinite figure are left out.

    Args:
        x, y: (N,) figures.
        names: of the images, shown where a point is pointed at.
        axes: what stands at the axes.
    """
    points = [p for p in zip(x, y, names, strict=True) if math.isfinite(p[0] + p[1])]
    values = [value for point in points for value in point[:2]] or [0.0]
    margin = 0.05 * (max(values) - min(values)) or 0.5
    low, high = min(values) - margin, max(values) + margin

    def across(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * SIDE, 1)

    def down(value: float) -> float:
        return round(AROUND + (high - value) / (high - low) * SIDE, 1)

    bottom, right, middle = AROUND + SIDE, LEFT + SIDE, AROUND + SIDE / 2
    parts = [f'<rect x="{LEFT}" y="{AROUND}" width="{SIDE}" height="{SIDE}" class="frame"/>']
    for value in ticks(low, high):
        u, v = across(value), down(value)
        parts += [
            f'<path d="M{u} {AROUND}V{bottom}M{LEFT} {v}H{right}" class="grid"/>',
            f'<text x="{u}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>',
            f'<text x="{LEFT - 6}" y="{v + 4}" text-anchor="end">{value:g}</text>',
        ]
    parts.append(f'<path d="M{LEFT} {bottom}L{right} {AROUND}" class="diagonal"/>')
    for u, v, name in points:
        text = html.escape(f"{name}: {u:.4g}, {v:.4g}")
        parts.append(
            f'<circle cx="{across(u)}" cy="{down(v)}" r="4"><title>{text}</title></circle>'
        )
    below, beside = map(html.escape, axes)
    parts += [
        f'<text x="{LEFT + SIDE / 2}" y="{bottom + 36}" text-anchor="middle">{below}</text>',
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{beside}</text>",
    ]
    width, height = LEFT + SIDE + AROUND, AROUND + SIDE + BELOW
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{beside} against {below}">{"".join(parts)}</svg>'
    )
