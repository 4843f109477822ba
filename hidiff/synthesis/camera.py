"""From linear light to a picture file, as a camera does it: sensor, noise, colours, JPEG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from hidiff.synthesis.tone import encode

_XYZ_TO_CAMERA = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
"""Colour matrices of four cameras (Brooks et al., CVPR 2019, from those of the DND benchmark)."""

_RGB_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
"""Linear sRGB to XYZ (IEC 61966-2-1)."""

HIGHLIGHT = 0.9
"""Linear light from which on a picture may be clipped; 243 of 255 in sRGB."""

FEW_ELECTRONS = 10.0
"""Below this many, noise is drawn from Poisson's distribution and not from Gauss's."""

_GREEN = np.array(
    [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]
)
_ALONG = np.array(
    [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]
)
_ACROSS = np.array(
    [
        [0, 0, -1.5, 0, 0],
        [0, 2, 0, 2, 0],
        [-1.5, 0, 6, 0, -1.5],
        [0, 2, 0, 2, 0],
        [0, 0, -1.5, 0, 0],
    ]
)
"""Eight times the filters of Malvar, He and Cutler, "High-Quality Linear Interpolation for
Demosaicing of Bayer-Patterned Color Images" (ICASSP 2004): green at red and blue; red or blue at
green beside it in the row (transposed: in the column); red at blue and blue at red."""


def reconstruct_highlights(linear: np.ndarray, boost: float) -> np.ndarray:
    """Make bright parts brighter than 1, as the clipped lights of the scene were.

    RSBlur adds the clipped pixels once more with a random factor (Rim et al., "Realistic Blur
    Synthesis for Learning Image Deblurring", ECCV 2022, section 4). Here the factor rises from 0 at
    `HIGHLIGHT` to its full value at 1, so that no edges appear.

    Args:
        linear: (H, W, 3) float32, linear light in [0, 1].
        boost: what is added to a pixel whose brightest channel is 1, in units of that pixel.
    """
    red, green, blue = cv2.split(linear)
    brightest = cv2.max(cv2.max(red, green), blue)
    ramp = np.clip((brightest - HIGHLIGHT) / (1 - HIGHLIGHT), 0, 1)
    return linear * (1 + np.float32(boost) * ramp)[..., None]


@dataclass(frozen=True)
class Noise:
    """Noise of raw values x in [0, 1]: its variance is shot · x + read.

    Attributes:
        shot: 1 / the electrons of a full pixel.
        read: variance of the read noise.
    """

    shot: float
    read: float

    def add(self, raw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Noisy raw values, float32, any shape."""
        expected = np.maximum(raw, 0.0)
        deviation = np.sqrt(expected * np.float32(self.shot) + np.float32(self.read))
        noisy = raw + deviation * rng.standard_normal(raw.shape, np.float32)
        few = expected < FEW_ELECTRONS * self.shot
        electrons = rng.poisson(expected[few] / self.shot) * self.shot
        noise = np.sqrt(self.read) * rng.standard_normal(len(electrons), np.float32)
        noisy[few] = electrons + noise
        return noisy


def camera_matrix(weights: np.ndarray) -> np.ndarray:
    """(3, 3) from linear sRGB to a camera's raw colours; white stays white.

    Args:
        weights: (4,) of the four known cameras, of which a mean is taken; 1 in all.
    """
    matrix = np.tensordot(weights, _XYZ_TO_CAMERA, 1) @ _RGB_TO_XYZ
    return matrix / matrix.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Camera:
    """What one camera does with the light on its sensor.

    Attributes:
        tone: strength of `hidiff.synthesis.tone.contrast`.
        matrix: (3, 3) from linear sRGB to raw colours.
        gains: (3,) white balance: what raw red, green and blue are multiplied by, 1 or more.
        mosaic: each pixel sees one colour only (RGGB), and the others are interpolated.
    """

    tone: float = 0.0
    matrix: np.ndarray | None = None
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    mosaic: bool = False

    def develop(
        self,
        linear: np.ndarray,
        noise: Noise | None = None,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """The 8-bit picture of the light on the sensor.

        Args:
            linear: (H, W, 3) float32, linear sRGB; a full pixel has 1.
            noise: of the raw values, drawn from `rng`; None adds none.

        Returns:
            (H, W, 3) uint8.
        """
        gains = np.array(self.gains, np.float32)
        matrix = np.eye(3) if self.matrix is None else self.matrix
        to_raw = matrix / gains[:, None]
        plain = np.array_equal(to_raw, np.eye(3))
        raw = linear if plain else cv2.transform(linear, to_raw)
        raw = np.clip(raw, 0.0, 1.0)
        if self.mosaic:
            raw, gains = _mosaic(raw), _mosaic(np.broadcast_to(gains, raw.shape))
        if noise is not None:
            assert rng is not None
            raw = noise.add(raw, rng)
        # Channels that are full at different light would colour the highlights.
        balanced = np.minimum(np.minimum(raw, 1.0) * gains, 1.0)
        if self.mosaic:
            balanced = _demosaic(balanced)
        return encode(
            balanced if plain else cv2.transform(balanced, np.linalg.inv(matrix)), self.tone
        )


def _mosaic(raw: np.ndarray) -> np.ndarray:
    """(H, W, 3) to (H, W): red at even rows and columns, blue at odd ones, green elsewhere."""
    values = raw[..., 1].copy()
    values[::2, ::2] = raw[::2, ::2, 0]
    values[1::2, 1::2] = raw[1::2, 1::2, 2]
    return values


def _demosaic(values: np.ndarray) -> np.ndarray:
    """(H, W) of `_mosaic`, white-balanced, to (H, W, 3), float32.

    The filters work on square roots, near to what is seen: on linear light their overshoot beside
    bright edges would be coloured dots in the dark.
    """
    values = np.sqrt(np.maximum(values, 0.0))
    green, along, down, across = (
        cv2.filter2D(values, -1, kernel / 8, borderType=cv2.BORDER_REFLECT_101)
        for kernel in (_GREEN, _ALONG, _ALONG.T, _ACROSS)
    )
    colours = np.repeat(values[..., None], 3, axis=2)
    for red, blue, even in ((0, 2, 0), (2, 0, 1)):  # rows with red pixels, then those with blue
        row, here, beside = slice(even, None, 2), slice(even, None, 2), slice(1 - even, None, 2)
        colours[row, here, 1] = green[row, here]
        colours[row, here, blue] = across[row, here]
        colours[row, beside, red] = along[row, beside]
        colours[row, beside, blue] = down[row, beside]
    return np.square(np.maximum(colours, 0.0))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB after JPEG of a quality from 1 to 100, colours at half the resolution."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
    decoded = cast(np.ndarray, cv2.imdecode(data, cv2.IMREAD_COLOR))
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
