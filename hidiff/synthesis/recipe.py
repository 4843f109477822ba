"""The parts of the synthesis with their strengths, and one sample drawn from them.

The light goes through a lens out of focus, moves during the exposure, and is developed by a camera:
highlights → defocus → shake and moving object → sensor, noise, colours → JPEG. The target is the
sharp picture developed by the same camera, without noise and JPEG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

import cv2
import numpy as np
from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat

from hidiff.registry import StrictModel
from hidiff.synthesis.camera import Camera, Noise, camera_matrix, jpeg, reconstruct_highlights
from hidiff.synthesis.exposure import Box, MovingObject, enclosing, expose, warp
from hidiff.synthesis.motion import (
    INSTANTS,
    ExposureSamples,
    camera_homographies,
    exposure_samples,
    object_homographies,
    source_points,
)
from hidiff.synthesis.optics import defocus
from hidiff.synthesis.scene import random_shape
from hidiff.synthesis.tone import decoding_table
from hidiff.utils.random import StreamKey, rng

STEP = 1.0
"""Pixels between two samples of an exposure."""

BORDER = 12
"""Pixels made around a patch, so that demosaicing and JPEG see what lies beside it."""

GRID = 8
"""The blocks of JPEG and the mosaic begin at a random pixel of so many along each axis."""

Number = TypeVar("Number", int, float)


def check_order(limits: tuple[Number, Number]) -> tuple[Number, Number]:
    """Validator of (low, high): the smaller number is the first.

    Raises:
        ValueError: it is not.
    """
    low, high = limits
    if low > high:
        raise ValueError(f"[{low:g}, {high:g}] is no range; write the smaller number first")
    return limits


Probability = Annotated[float, Field(ge=0, le=1)]
Quality = Annotated[int, Field(ge=1, le=100)]
Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], AfterValidator(check_order)]
PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(check_order)]
UnitRange = Annotated[tuple[Probability, Probability], AfterValidator(check_order)]
QualityRange = Annotated[tuple[Quality, Quality], AfterValidator(check_order)]


class Shake(StrictModel):
    """The camera moves, see `hidiff.synthesis.motion.camera_homographies`.

    `extent` (pixels) is drawn evenly on a logarithmic scale. `roll` (degrees) and `zoom` are those
    of the largest extent, and less in proportion for a smaller one.
    """

    probability: Probability = 0.95
    extent: PositiveRange = (2.0, 28.0)
    roll: Range = (0.0, 1.0)
    zoom: Range = (0.0, 0.01)
    tremor: Range = (0.0, 1.0)
    focal: PositiveRange = (0.7, 1.5)


class Object(StrictModel):
    """A part of the picture moves on its own, see `hidiff.synthesis.scene`.

    `extent` (pixels) is drawn evenly on a logarithmic scale, `turn` is in degrees. `size` is the
    shape's mean diameter in units of the patch's shorter side, `edge` its softness in pixels.
    """

    probability: Probability = 0.4
    extent: PositiveRange = (2.0, 24.0)
    turn: Range = (0.0, 3.0)
    tremor: Range = (0.0, 0.5)
    size: PositiveRange = (0.2, 0.8)
    edge: Range = (0.5, 2.0)


class Defocus(StrictModel):
    """The lens is out of focus; `radius` is that of the disc in pixels."""

    probability: Probability = 0.15
    radius: Range = (0.5, 2.5)


class Saturation(StrictModel):
    """Highlights are brighter than white; for `boost` see `reconstruct_highlights`."""

    probability: Probability = 0.5
    boost: Range = (0.25, 3.0)


class SensorNoise(StrictModel):
    """Noise of the raw values. `shot` is drawn evenly on a logarithmic scale.

    The read noise follows the regression of Brooks et al. (CVPR 2019) for real cameras, whose
    `shot` goes up to 0.012 in the dark.
    """

    probability: Probability = 0.8
    shot: PositiveRange = (1e-5, 1e-3)


class Processing(StrictModel):
    """What the camera does with raw values, see `hidiff.synthesis.camera.Camera`.

    `red` and `blue` are gains of the white balance (Brooks et al.), `mosaic` is the probability
    that the colours are those of a mosaic.
    """

    probability: Probability = 0.7
    tone: UnitRange = (0.0, 0.6)
    red: PositiveRange = (1.9, 2.4)
    blue: PositiveRange = (1.5, 1.9)
    mosaic: Probability = 0.3


class Jpeg(StrictModel):
    """The blurry picture is a JPEG file; `quality` is OpenCV's, 1 to 100."""

    probability: Probability = 0.4
    quality: QualityRange = (75, 98)


class Recipe(StrictModel):
    """All parts; None is off. `sharp` is the probability of a sample without any blur."""

    shake: Shake | None = Shake()
    object: Object | None = Object()
    defocus: Defocus | None = Defocus()
    saturation: Saturation | None = Saturation()
    noise: SensorNoise | None = SensorNoise()
    processing: Processing | None = Processing()
    jpeg: Jpeg | None = Jpeg()
    sharp: Probability = 0.1

    def draw(self, seed: StreamKey, size: tuple[int, int], patch: Box) -> Sample:
        """Everything random of one sample.

        Each part has a generator of its own, so that turning one off leaves the others as they are.

        Args:
            seed: a whole number, then a purpose as in `hidiff.utils.random.rng`; the same give the
                same sample.
            size: (height, width) of the whole picture.
            patch: the box of it that is made.
        """
        rngs = {name: rng(*seed, "blur", name) for name in Recipe.model_fields}
        parts = {name: part for name, part in self if name != "sharp"}
        drawn = {}
        for name, part in parts.items():
            # Drawn in any case, so that the probability changes nothing else.
            happens = rngs[name].uniform() < (0.0 if part is None else part.probability)
            drawn[name] = part if happens else None
        if rngs["sharp"].uniform() < self.sharp:
            drawn |= dict.fromkeys(("shake", "object", "defocus"))
        target = patch.grown(BORDER)
        samples, moving_object = _motion(drawn["shake"], drawn["object"], rngs, size, patch, target)
        radius = _uniform(rngs["defocus"], part.radius) if (part := drawn["defocus"]) else 0.0
        reached = target.corners
        if samples is not None:
            reached = np.concatenate(
                [reached[None], *(source_points(p, reached) for p in samples.paths)]
            )
        source = enclosing(reached.reshape(-1, 2), int(np.ceil(radius)) + 2)
        return Sample(
            source=source.within(Box(0, 0, size[1], size[0])),
            target=target,
            samples=samples,
            moving_object=moving_object,
            radius=radius,
            boost=_uniform(rngs["saturation"], p.boost) if (p := drawn["saturation"]) else 0.0,
            camera=_camera(drawn["processing"], rngs["processing"]),
            noise=_noise(drawn["noise"], rngs["noise"]),
            quality=(
                int(rngs["jpeg"].integers(p.quality[0], p.quality[1], endpoint=True))
                if (p := drawn["jpeg"])
                else 0
            ),
            grid=tuple(rngs["sharp"].integers(GRID, size=2).tolist()),
            noise_rng=rngs["noise"],
        )


@dataclass(frozen=True)
class Sample:
    """What was drawn for one pair; boxes count in pixels of the whole picture.

    Attributes:
        source: the box whose sharp pixels `render` needs.
        target: the patch with a border of `BORDER`, which may reach beyond the picture.
        samples: of the exposure; None where nothing moves.
        moving_object: the moving object.
        radius: of the defocus in pixels.
        boost: of the highlights.
        camera, noise: of the development; no noise is None.
        quality: of the JPEG; 0 for none.
        grid: first row and column of `target` that the camera sees.
        noise_rng: draws the noise.
    """

    source: Box
    target: Box
    samples: ExposureSamples | None
    moving_object: MovingObject | None
    radius: float
    boost: float
    camera: Camera
    noise: Noise | None
    quality: int
    grid: tuple[int, int]
    noise_rng: np.random.Generator

    def render(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The blurry and the sharp patch, (h, w, 3) uint8 RGB.

        Args:
            pixels: (H, W, 3) uint8, the photograph within `source`, of any larger scale: it is
                reduced in linear light.
        """
        linear = cv2.LUT(pixels, decoding_table(self.camera.tone))
        if linear.shape[:2] != self.source.size:
            size = (self.source.width, self.source.height)
            linear = cv2.resize(linear, size, interpolation=cv2.INTER_AREA)
        if self.boost:
            linear = reconstruct_highlights(linear, self.boost)
        sharp = warp(linear, np.eye(3), self.source, self.target)
        linear = defocus(linear, self.radius)
        if self.samples is not None:
            blurry = expose(linear, self.samples, self.source, self.target, self.moving_object)
        elif self.radius:
            blurry = warp(linear, np.eye(3), self.source, self.target)
        else:
            blurry = sharp
        seen_by_camera = (slice(self.grid[0], None), slice(self.grid[1], None))
        gt = self.camera.develop(sharp[seen_by_camera])
        lq = self.camera.develop(blurry[seen_by_camera], self.noise, self.noise_rng)
        if self.quality:
            lq = jpeg(lq, self.quality)
        top, left = (BORDER - start for start in self.grid)
        patch = (slice(top, -BORDER), slice(left, -BORDER))
        return np.ascontiguousarray(lq[patch]), np.ascontiguousarray(gt[patch])


def _uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(rng.uniform(*limits))


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))


def _motion(
    shake: Shake | None,
    moving: Object | None,
    rngs: dict[str, np.random.Generator],
    size: tuple[int, int],
    patch: Box,
    target: Box,
) -> tuple[ExposureSamples | None, MovingObject | None]:
    """The samples of the exposure of `target`, and the object that moves in `patch`."""
    if shake is None and moving is None:
        return None, None
    camera, shape = np.eye(3)[None].repeat(INSTANTS, 0), None
    if shake is not None:
        rng = rngs["shake"]
        extent = _log_uniform(rng, shake.extent)
        part = extent / shake.extent[1]
        camera = camera_homographies(
            rng,
            size,
            extent=extent,
            roll=part * _uniform(rng, shake.roll),
            zoom=part * _uniform(rng, shake.zoom),
            tremor=_uniform(rng, shake.tremor),
            focal=_uniform(rng, shake.focal),
        )
    paths, points = [camera], [target.corners]
    if moving is not None:
        rng = rngs["object"]
        place = rng.uniform(size=2) * (patch.width, patch.height)
        centre = (patch.left + place[0], patch.top + place[1])
        radius = _uniform(rng, moving.size) * min(patch.size) / 2
        shape = random_shape(rng, centre, radius, _uniform(rng, moving.edge))
        own = object_homographies(
            rng,
            centre,
            extent=_log_uniform(rng, moving.extent),
            turn=_uniform(rng, moving.turn),
            tremor=_uniform(rng, moving.tremor),
        )
        # A pixel looks through the moved camera first, then at the moved object.
        paths.append(own @ camera)
        points.append(shape.box.corners)
    return exposure_samples(tuple(paths), tuple(points), STEP), shape


def _camera(part: Processing | None, rng: np.random.Generator) -> Camera:
    if part is None:
        return Camera()
    # Of four cameras a random mean, evenly distributed.
    weights = rng.dirichlet(np.ones(4))
    return Camera(
        tone=_uniform(rng, part.tone),
        matrix=camera_matrix(weights),
        gains=(_uniform(rng, part.red), 1.0, _uniform(rng, part.blue)),
        mosaic=bool(rng.uniform() < part.mosaic),
    )


def _noise(part: SensorNoise | None, rng: np.random.Generator) -> Noise | None:
    if part is None:
        return None
    shot = _log_uniform(rng, part.shot)
    # log read = 2.18 log shot + 1.20, with a spread of 0.26 (Brooks et al., section 3.1).
    return Noise(shot, float(np.exp(2.18 * np.log(shot) + 1.20 + 0.26 * rng.standard_normal())))
