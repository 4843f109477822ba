"""What an image and a data set scored: the one record, of test runs and of scored pictures."""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy
import torch

import hidiff
from hidiff.data.image import listing
from hidiff.metrics.published import BENCHMARKS, Benchmark, hi_diff_scores

FAR_OFF = 5.0
"""dB between a score and the published ones from which a mistake in the folders is likely."""

# RealBlur's two parts show the same scenes under the same names.
_EASILY_SWAPPED = {"RealBlur_R": "RealBlur_J", "RealBlur_J": "RealBlur_R"}


def library_versions() -> dict[str, str]:
    """The versions of this project, of Python and of the libraries that a score depends on."""
    return {
        "hidiff": hidiff.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "opencv": cv2.__version__,
        "scikit-image": version("scikit-image"),
    }


def for_json(value: Any) -> Any:
    """The same with text for what JSON has no number for: infinity (identical images) and NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: for_json(part) for name, part in value.items()}
    return [for_json(part) for part in value] if isinstance(value, list | tuple) else value


@dataclass
class ImageScore:
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

    name: str
    seed: int | None = None
    restored: dict[str, float] = field(default_factory=dict)
    blurry: dict[str, float] = field(default_factory=dict)
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
            {name: value for name, value in scores.items() if name != "aligned"}
            for scores in (restored, blurry or {})
        )

    def as_json(self) -> dict[str, Any]:
        """The fields that say something."""
        empty = vars(ImageScore(self.name)) | {"name": None}
        return for_json({k: v for k, v in vars(self).items() if v != empty[k]})

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ImageScore:
        """The inverse of `as_json`.

        Raises:
            TypeError, ValueError, AttributeError: it is something else.
        """
        image = cls(**row)
        for side in ("restored", "blurry"):
            setattr(image, side, {k: float(v) for k, v in getattr(image, side).items()})
        return image


def mean_metrics(images: Iterable[ImageScore], side: str = "restored") -> dict[str, float]:
    """The mean of every metric over the images that have it; `side` is 'restored' or 'blurry'.

    The sums are exact, so the order of the images changes nothing. Infinite values (identical
    images) make an infinite mean.
    """
    rows = [getattr(image, side) for image in images if getattr(image, side)]
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in (rows or [{}])[0]}


def cropped_note(images: Iterable[ImageScore]) -> str | None:
    """That sharp images were larger than the blurry ones; None if none was."""
    names = [image.name for image in images if image.cropped]
    if not names:
        return None
    return (
        f"{len(names)} sharp images are larger than the blurry ones; of these the part at the top "
        f"left was used ({listing(names)})"
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


@dataclass(frozen=True)
class SetScores:
    """What a data set scored.

    Args:
        dataset: its name; `hidiff.metrics.published.BENCHMARKS` has those of the paper.
        protocol: one of `hidiff.metrics.PROTOCOLS`.
        source: 'test' for a test run, 'pictures' for scored folders of pictures.
        images: all of them, in order; with several seeds those of each seed in turn.
        folder: that of the restored pictures.
        target: that of the sharp ones; None without ground truth.
        input: that of the blurry ones; None where pictures were scored.
        local: the mode of `val.local`, such as 'none' or 'tile 384/32'; None where it is not known.
        upper_bound: the network saw the sharp images.
        settings: of the test run, for the reader.
        versions: see `library_versions`.
    """

    dataset: str
    protocol: str
    source: str
    images: list[ImageScore]
    folder: str = ""
    target: str | None = None
    input: str | None = None
    local: str | None = None
    upper_bound: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=library_versions)

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

    @property
    def unaligned(self) -> list[str]:
        """Images for which 'realblur' found no alignment; they are scored without."""
        return [image.name for image in self.first if image.aligned is False]

    def mean(self, side: str = "restored") -> dict[str, float]:
        """The mean of every metric over all images and seeds, see `mean_metrics`."""
        return mean_metrics(self.images, side)

    def deviation(self) -> dict[str, dict[str, float]]:
        """How much the scores depend on the noise, for two seeds or more.

        'of_mean' is the standard deviation of the data set's mean over the seeds, 'of_image' the
        mean over the images of each one's standard deviation over the seeds.
        """
        runs = list(self.runs.values())
        means = [mean_metrics(run) for run in runs]
        if len(runs) < 2 or not all(means):
            return {}
        rows = [row for row in zip(*runs, strict=True) if all(image.restored for image in row)]
        of_image = {
            name: [_deviation([image.restored[name] for image in row]) for row in rows]
            for name in means[0]
        }
        return {
            "of_mean": {name: _deviation([mean[name] for mean in means]) for name in means[0]},
            "of_image": {k: math.fsum(v) / len(v) if v else math.nan for k, v in of_image.items()},
        }

    def remarks(self) -> list[str]:
        """What to know about the score: what it is no measure of, and what makes it doubtful."""
        if self.target is None:
            return ["no ground truth, nothing was scored"]
        found = []
        if self.upper_bound:
            found.append("stage 1 sees the sharp image: an upper bound, no deblurring score")
        if note := cropped_note(self.first):
            found.append(note)
        if self.scored:
            found += self._doubts(self.scored)
        return found

    def _doubts(self, scored: list[ImageScore]) -> list[str]:
        found = []
        benchmark = self.benchmark
        if benchmark is not None and len(scored) != benchmark.images:
            found.append(
                f"{len(scored)} images; the benchmark {benchmark.title} has {benchmark.images}"
            )
        identical = [image.name for image in scored if image.restored.get("psnr") == math.inf]
        if identical:
            found.append(
                f"{len(identical)} restored images are identical to the sharp ones "
                f"({listing(identical)}); was the right folder given as the sharp one?"
            )
        if self.unaligned:
            found.append(
                f"no alignment was found for {len(self.unaligned)} of {len(scored)} images; "
                f"they are scored without ({listing(self.unaligned)})"
            )
        if benchmark is None:
            return found
        other = _EASILY_SWAPPED.get(benchmark.name)
        if self.target is not None and other in Path(self.target).parts:
            found.append(
                f"the sharp images of {benchmark.name} were read from {self.target}: "
                f"is this {other} given for {benchmark.name}?"
            )
        if self.protocol != benchmark.protocol:
            found.append(
                f"the published scores of {benchmark.title} follow the protocol "
                f"'{benchmark.protocol}', this one '{self.protocol}'"
            )
        psnr = self.mean().get("psnr", math.nan)
        published = [score.psnr for score in hi_diff_scores(benchmark.name).values()]
        if all(abs(psnr - value) > FAR_OFF for value in published):
            swapped = f"is this {other} given for {benchmark.name}, " * bool(other)
            found.append(
                f"{psnr:.2f} dB is more than {FAR_OFF:g} dB off every score that the paper reports "
                f"for HI-Diff on {benchmark.title} "
                f"({', '.join(f'{value:.2f}' for value in published)} dB): "
                f"{swapped or 'is this '}another folder than intended, or a network that is not "
                "trained?"
            )
        return found

    def summary(self) -> dict[str, Any]:
        """What follows from the images, for the reader of the file."""
        times = [image.seconds for image in self.first if image.seconds is not None]
        seeds = {
            "means": {str(seed): mean_metrics(run) for seed, run in self.runs.items()},
            "standard_deviation": self.deviation(),
        }
        return {
            "images": len(self.first),
            "scored": len(self.scored),
            "benchmark_images": self.benchmark.images if self.benchmark else None,
            "restored": self.mean(),
            "blurry": self.mean("blurry"),
            "seconds_per_image": math.fsum(times) / len(times) if times else None,
            "seeds": seeds if len(self.runs) > 1 else None,
            "unaligned": self.unaligned,
            "failed": self.failed,
            "remarks": self.remarks(),
        }

    def row(self) -> dict[str, Any]:
        """The means, and what they are of: all that a file of weights says about a test."""
        whole = self.as_json()
        summary = whole["summary"]
        for key in ("images", "folder", "target", "summary", "versions"):
            del whole[key]
        whole["settings"].pop("overrides", None)  # they name folders of this machine
        return {**whole, "images": summary["scored"], "restored": summary["restored"]}

    def as_json(self) -> dict[str, Any]:
        """All of it, and the `summary`; the images come last."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["images"]
        images = [image.as_json() for image in self.images]
        return {**for_json({**fields, "summary": self.summary()}), "images": images}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SetScores:
        """The inverse of `as_json`; the summary is not looked at.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is something else.
        """
        fields = {name: value for name, value in content.items() if name != "summary"}
        return cls(**{**fields, "images": [ImageScore.from_json(i) for i in content["images"]]})
