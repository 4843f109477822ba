"""A small line plot with error bars, drawn with OpenCV."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

COLOURS = ((31, 90, 170), (200, 70, 30), (40, 130, 60), (120, 60, 150))
INK = (40, 40, 40)
GRID = (225, 225, 225)
FONT = cv2.FONT_HERSHEY_SIMPLEX
OVERSAMPLING = 2
"""Everything is drawn this much larger and shrunk, which smooths edges and letters."""

MARGINS = {"left": 84, "right": 24, "top": 40, "bottom": 60}

Points = Sequence[tuple[float, float, float]]


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) that reach over low … high."""
    span = high - low or max(abs(high), 1.0) * 1e-3
    magnitude = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * magnitude for m in (1, 2, 5, 10) if span / (m * magnitude) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


class _Canvas:
    """An image on which lengths are in final pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        shape = (height * OVERSAMPLING, width * OVERSAMPLING, 3)
        self.pixels = np.full(shape, 255, np.uint8)

    def _point(self, x: float, y: float) -> tuple[int, int]:
        return round(x * OVERSAMPLING), round(y * OVERSAMPLING)

    def line(self, start: tuple, end: tuple, colour: tuple, thickness: int = 1) -> None:
        cv2.line(
            self.pixels, self._point(*start), self._point(*end), colour,
            thickness * OVERSAMPLING, cv2.LINE_AA,
        )  # fmt: skip

    def dot(self, centre: tuple, colour: tuple) -> None:
        cv2.circle(
            self.pixels, self._point(*centre), 4 * OVERSAMPLING, colour, cv2.FILLED, cv2.LINE_AA
        )

    def text(self, text: str, x: float, y: float, align: float, colour: tuple = INK) -> None:
        """Write at baseline y; `align` 0 begins, 0.5 centres and 1 ends the text at x."""
        scale = 0.5 * OVERSAMPLING
        width = cv2.getTextSize(text, FONT, scale, OVERSAMPLING)[0][0]
        left, bottom = self._point(x, y)
        cv2.putText(
            self.pixels, text, (round(left - align * width), bottom), FONT, scale, colour,
            OVERSAMPLING, cv2.LINE_AA,
        )  # fmt: skip

    def text_upwards(self, text: str, x: float, y: float) -> None:
        """Write from bottom to top, centred at (x, y)."""
        turned = _Canvas(self.height, 24)
        turned.text(text, self.height - y, 17, 0.5)
        strip = cv2.rotate(turned.pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
        left = self._point(x, 0)[0] - strip.shape[1] // 2
        region = self.pixels[:, left : left + strip.shape[1]]
        np.minimum(region, strip, out=region)

    def finished(self) -> np.ndarray:
        return cv2.resize(self.pixels, (self.width, self.height), interpolation=cv2.INTER_AREA)


def line_plot(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    width: int = 720,
    height: int = 460,
) -> np.ndarray:
    """Draw y over x, x on a logarithmic axis of base 2 with a tick at every value.

    Args:
        series: label → (x, y, half length of the error bar), x positive and in ascending order; a
            bar of 0 is not drawn. A legend is drawn for more than one.
        title: stands above; ASCII, as all texts.
        x_label, y_label: of the axes, with the unit.
        width, height: of the picture, pixels.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    canvas = _Canvas(width, height)
    points = [point for line in series.values() for point in line]
    xs = sorted({x for x, _, _ in points})
    ticks = nice_ticks(min(y - e for _, y, e in points), max(y + e for _, y, e in points))
    left, right = MARGINS["left"], width - MARGINS["right"]
    top, bottom = MARGINS["top"], height - MARGINS["bottom"]
    x_span = math.log2(xs[-1] / xs[0]) or 1.0
    y_span = ticks[-1] - ticks[0]

    def place(x: float, y: float) -> tuple[float, float]:
        # The first and last points keep a distance from the frame.
        across = 0.04 + 0.92 * math.log2(x / xs[0]) / x_span
        return left + across * (right - left), bottom - (y - ticks[0]) / y_span * (bottom - top)

    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    for tick in ticks:
        y = place(xs[0], tick)[1]
        canvas.line((left, y), (right, y), GRID)
        canvas.text(f"{tick:.{decimals}f}", left - 8, y + 5, 1.0)
    for x in xs:
        across = place(x, ticks[0])[0]
        canvas.line((across, bottom), (across, bottom + 5), INK)
        canvas.text(f"{x:g}", across, bottom + 22, 0.5)
    canvas.line((left, top), (left, bottom), INK)
    canvas.line((left, bottom), (right, bottom), INK)
    canvas.text(title, (left + right) / 2, top - 14, 0.5)
    canvas.text(x_label, (left + right) / 2, height - 14, 0.5)
    canvas.text_upwards(y_label, 16, (top + bottom) / 2)

    for index, (label, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        places = [place(x, y) for x, y, _ in line]
        for start, end in itertools.pairwise(places):
            canvas.line(start, end, colour, 2)
        for (x, y, bar), centre in zip(line, places, strict=True):
            if bar > 0:
                ends = [place(x, y - bar), place(x, y + bar)]
                canvas.line(*ends, colour)
                for across, end in ends:
                    canvas.line((across - 4, end), (across + 4, end), colour)
            canvas.dot(centre, colour)
        if len(series) > 1:
            canvas.text(label, right - 6, bottom - 12 - 18 * index, 1.0, colour)
    return canvas.finished()
