"""The record of scores: `scores.json` in a folder of results, written and read here alone.

    {"kind": "hidiff scores", "sets": [SCORES, …]}

Each entry of `sets` has the fields of `Scores`, `summary` (what follows from the images, for people
and other programs; it is not read back) and `images`, each with the fields of `ImageScore` that say
something. Infinite values (identical images) are written as the text "Infinity".
"""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import cv2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

import hidiff
from hidiff.metrics.published import BENCHMARKS, Benchmark
from hidiff.utils.errors import UserError
from hidiff.utils.files import read_regular_file, write_text

SCORES_FILE = "scores.json"
"""Name of the record in a folder of results."""


def library_versions() -> dict[str, str]:
    """The versions of this project, of Python and of the libraries that a score depends on."""
    installed = {name: version(name) for name in ("torch", "numpy", "scikit-image")}
    own = {"hidiff": hidiff.__version__, "python": platform.python_version()}
    return {**own, **installed, "opencv": cv2.__version__}


class ImageScore(BaseModel):
    """What became of one image.

    Args:
        name: of the image, without ending.
        seed: of the noise; None where pictures were scored.
        restored, blurry: metrics of the restored and of the blurry image against the sharp one,
            PSNR in dB; empty where they were not measured.
        aligned: whether the protocol 'realblur' could align the image; None with another one.
        seconds: that restoring took.
        cropped: the sharp image was larger, and only its part at the top left was used.
        error: why the image has no score.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    name: str
    seed: int | None = None
    restored: dict[str, float] = Field(default_factory=dict)
    blurry: dict[str, float] = Field(default_factory=dict)
    aligned: bool | None = None
    seconds: float | None = None
    cropped: bool = False
    error: str | None = None

    def set_scores(
        self, restored: Mapping[str, float], blurry: Mapping[str, float] | None = None
    ) -> None:
        """Take over what a scorer returned, see `hidiff.metrics.evaluate_pair`."""
        aligned = restored.get("aligned")
        self.aligned = None if aligned is None else bool(aligned)
        self.restored, self.blurry = (
            {name: float(value) for name, value in scores.items() if name != "aligned"}
            for scores in (restored, blurry or {})
        )


class ScoredModel(BaseModel):
    """The model that restored, as it is told to people and found again.

    Args:
        description: what it is and where it is from, on one line.
        sha256: of its file; None where it has several, or was built in the program.
        trained_on: what its file says about its training data; None where that is not known.
        recipe: a checksum of its training's options without name, seed and places, and of its step:
            models with the same one differ in the seed alone; None where that is not known.
        parameters: of the networks that restore.
    """

    model_config = ConfigDict(extra="forbid")

    description: str
    sha256: str | None = None
    trained_on: dict[str, Any] | None = None
    recipe: str | None = None
    parameters: int | None = None


class Scores(BaseModel):
    """What a data set scored.

    Args:
        dataset: its name; `hidiff.metrics.published.BENCHMARKS` has those of the paper.
        protocol: one of `hidiff.metrics.PROTOCOLS`, or 'custom' for metrics of one's own.
        source: 'test' for a test, 'pictures' for scored folders of pictures.
        seed: of the noise of the first run; None where pictures were scored.
        model: what restored; None where pictures were scored.
        folder: that of the restored pictures.
        target: that of the sharp ones; None without ground truth.
        input: that of the blurry ones; None where they are not known.
        local: the mode of `val.local`, such as 'none' or 'tile 384/32'; None where it is not known.
        upper_bound: the network saw the sharp images.
        settings: the options of a test that its scores depend on, by YAML path.
        versions: see `library_versions`.
        images: all of them, in order; with several seeds those of each seed in turn.
    """

    # `summary` is in the file and not read back.
    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")

    dataset: str
    protocol: str
    source: str
    seed: int | None = None
    model: ScoredModel | None = None
    folder: str = ""
    target: str | None = None
    input: str | None = None
    local: str | None = None
    upper_bound: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=library_versions)
    images: list[ImageScore]

    @property
    def key(self) -> tuple[str, str, str]:
        """Scores with the same key replace each other."""
        return self.dataset, self.protocol, self.source

    @property
    def benchmark(self) -> Benchmark | None:
        """The benchmark of that name, if it is one."""
        return BENCHMARKS.get(self.dataset)

    @property
    def runs(self) -> dict[int | None, list[ImageScore]]:
        """The images by seed."""
        runs: dict[int | None, list[ImageScore]] = {}
        for image in self.images:
            runs.setdefault(image.seed, []).append(image)
        return runs

    @property
    def first(self) -> list[ImageScore]:
        """The images of the first seed, whose pictures are written and whose input is scored."""
        return next(iter(self.runs.values()), [])

    @property
    def scored(self) -> list[ImageScore]:
        """Those of `first` that have scores."""
        return [image for image in self.first if image.restored]

    @property
    def failed(self) -> dict[str, str]:
        """Why images have no score, by name."""
        return {image.name: image.error for image in self.images if image.error is not None}

    def mean(self, side: str = "restored") -> dict[str, float]:
        """The mean of every metric over all images and seeds, see `mean_metrics`."""
        return mean_metrics(self.images, side)

    def deviation(self) -> dict[str, float]:
        """Standard deviation of each metric's mean over the seeds; empty for a single seed.

        NaN where a mean is infinite.
        """
        means = [mean_metrics(run) for run in self.runs.values()]
        if len(means) < 2 or not all(means):
            return {}
        values = {name: [mean[name] for mean in means] for name in means[0]}
        return {
            name: statistics.stdev(v) if all(map(math.isfinite, v)) else math.nan
            for name, v in values.items()
        }

    @computed_field  # type: ignore[prop-decorator]
    @property
    def summary(self) -> dict[str, Any]:
        """What follows from the images."""
        times = [image.seconds for image in self.first if image.seconds is not None]
        return {
            "images": len(self.first),
            "scored": len(self.scored),
            "restored": self.mean(),
            "blurry": self.mean("blurry"),
            "seconds_per_image": math.fsum(times) / len(times) if times else None,
            "standard_deviation": self.deviation(),
            "failed": self.failed,
        }

    def row(self) -> dict[str, Any]:
        """The means, and what they are of: all that a model's file says about a test."""
        return {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "source": self.source,
            "restored": self.mean(),
            "blurry": self.mean("blurry"),
            "local": self.local,
            "images": len(self.scored),
            "upper_bound": self.upper_bound,
        }


class _Record(BaseModel):
    """The content of the file."""

    kind: Literal["hidiff scores"]
    sets: list[Scores]


def mean_metrics(images: Iterable[ImageScore], side: str = "restored") -> dict[str, float]:
    """The mean of every metric over the images that have it; `side` is 'restored' or 'blurry'.

    The sums are exact, so the order of the images changes nothing. Infinite values (identical
    images) make an infinite mean.
    """
    rows = [getattr(image, side) for image in images if getattr(image, side)]
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in (rows or [{}])[0]}


def read_scores(folder: Path) -> list[Scores]:
    """The scores in a folder of results.

    Raises:
        UserError: there is no scores.json, or something else has written it.
    """
    path = folder / SCORES_FILE
    try:
        return _Record.model_validate_json(read_regular_file(path)).sets
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{path}: no scores of this project, damaged, or of another version of hidiff "
            f"({f'{place}: ' if place else ''}{problem['msg']})"
        ) from None


def write_scores(folder: Path, scores: Sequence[Scores]) -> None:
    """Write the record; scores of other sets, protocols and sources in the folder are kept.

    Raises:
        UserError: it cannot be written, or a file of another program is there.
    """
    kept = read_scores(folder) if (folder / SCORES_FILE).exists() else []
    merged = {each.key: each for each in (*kept, *scores)}
    sets = ",\n".join(_json(each) for each in merged.values())
    write_text(folder / SCORES_FILE, f'{{"kind": "hidiff scores", "sets": [\n{sets}\n]}}\n')


def _json(scores: Scores) -> str:
    """JSON to look at: indented, with one line an image."""
    text = scores.model_dump_json(exclude={"images"}, indent=1).removesuffix("\n}")
    lines = [f"  {image.model_dump_json(exclude_defaults=True)}" for image in scores.images]
    return f'{text},\n "images": [\n' + ",\n".join(lines) + "\n ]\n}"
