"""The rows of a report: results folders, of which those that differ in the seed alone are one."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hidiff.evaluation.record import SCORES_FILE, Scores, read_scores
from hidiff.utils.errors import UserError

LEVEL = 0.95
"""Confidence level of the bootstrap intervals."""

RESAMPLES = 10_000
"""Of the bootstrap."""

TRAINING_SETS = ("GoPro", "RealBlur_R", "RealBlur_J")
"""What the paper's models are trained on: HIDE is for testing only."""


@dataclass(frozen=True)
class Row:
    """A model on a data set.

    Args:
        label: what it is called: the folder's name.
        runs: its scores, one for each training that differs in the seed alone.
        folders: the results folder of each.
    """

    label: str
    runs: tuple[Scores, ...]
    folders: tuple[Path, ...]

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics that all runs have."""
        means = [run.mean() for run in self.runs]
        return [name for name in means[0] if all(name in mean for mean in means)]

    def spread(self, metric: str) -> tuple[float, float | None]:
        """Mean, and standard deviation over the trainings, else over the noises; None without."""
        means = [run.mean()[metric] for run in self.runs]
        if len(means) == 1:
            spread = self.runs[0].deviation().get(metric, math.nan)
        else:
            spread = statistics.stdev(means) if np.isfinite(means).all() else math.nan
        return statistics.fmean(means), spread if math.isfinite(spread) else None

    @property
    def seeds(self) -> str:
        """Over what the standard deviation is."""
        noises = len(self.runs[0].runs)
        if len(self.runs) > 1:
            return f"{len(self.runs)} trainings"
        return f"{noises} noises" if noises > 1 else ""

    def values(self, metric: str) -> dict[str, float]:
        """The metric of each image, the mean over all runs; none of images that a run lacks."""
        found: dict[str, list[float]] = {}
        expected = sum(len(run.runs) for run in self.runs)
        for image in (image for run in self.runs for image in run.images):
            if metric in image.restored:
                found.setdefault(image.name, []).append(image.restored[metric])
        return {k: statistics.fmean(v) for k, v in found.items() if len(v) == expected}

    @property
    def trained_on(self) -> str:
        """What the model's file says that it was trained on; empty where it says nothing."""
        model = self.runs[0].model
        data = model.trained_on if model is not None else None
        if not data:
            return ""
        return str(data.get("name") or ", ".join(data))

    @property
    def training_set(self) -> str | None:
        """That of `TRAINING_SETS` that the model's file names; None for another or none."""
        model = self.runs[0].model
        texts = list(_texts(model.trained_on if model is not None else None))
        found = [n for n in TRAINING_SETS if any(n in re.split(r"[\\/]", t) for t in texts)]
        return found[0] if len(found) == 1 else None

    @property
    def seconds(self) -> float | None:
        """Mean seconds that an image took; None where that was not measured."""
        times = [i.seconds for run in self.runs for i in run.first if i.seconds is not None]
        return statistics.fmean(times) if times else None

    @property
    def parameters(self) -> int | None:
        """Of the networks that restore; None where that is not known."""
        model = self.runs[0].model
        return None if model is None else model.parameters


def _texts(value: Any) -> Iterable[str]:
    """All texts within nested sections."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """The scores in results folders as rows, in the order of the folders.

    Raises:
        UserError: a folder has no scores.
    """
    groups: dict[Any, list[tuple[Path, Scores]]] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        if not (folder / SCORES_FILE).is_file():
            raise UserError(
                f"{folder} holds no {SCORES_FILE}; name the folders that `hidiff test` or "
                "`hidiff score` has written"
            )
        found = [scores for scores in read_scores(folder) if scores.mean()]
        if not found:
            raise UserError(f"{folder / SCORES_FILE}: no image has a score")
        for scores in found:
            recipe = scores.model.recipe if scores.model is not None else None
            of = recipe or (folder, scores.source)
            key = (of, scores.dataset, scores.protocol, scores.local)
            groups.setdefault(key, []).append((folder, scores))
    rows = []
    for group in groups.values():
        folders_of, runs = zip(*group, strict=True)
        label = folders_of[0].name
        if len(group) > 1:
            label = re.sub(r"[-_]?seed[-_]?\d+$", "", label)
        rows.append(Row(label, runs, folders_of))
    return rows


@dataclass(frozen=True)
class Difference:
    """How much one model differs from another on the same images.

    Args:
        mean: of the images' differences.
        low, high: the interval of it; None where it cannot be told.
        higher: images on which it is above 0.
        images: how many were compared.
    """

    mean: float
    low: float | None
    high: float | None
    higher: int
    images: int


def difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Difference | None:
    """The mean of `ours − theirs` over the images of both, with its percentile bootstrap interval.

    There is no interval of a single image, nor where an image is identical to the sharp one, whose
    PSNR is infinite. None where they have no image in common.
    """
    # Imported late: it takes most of a second.
    from scipy.stats import bootstrap

    names = [name for name in ours if name in theirs]
    if not names:
        return None
    pairs = [(ours[name], theirs[name]) for name in names]
    # Two that are infinite do not differ.
    values = np.array([0.0 if a == b else a - b for a, b in pairs])
    low = high = None
    if len(values) > 1 and np.isfinite(values).all():
        # The images of the two are paired: their differences are what is drawn.
        found = bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, batch=1000, confidence_level=LEVEL,
            method="percentile", rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        low, high = float(found.low), float(found.high)
    return Difference(float(values.mean()), low, high, int((values > 0).sum()), len(values))
