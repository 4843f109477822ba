"""Running a comparison: every model restores and is scored, timed and counted alike."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hidiff.benchmark.timing import Timing, alternate
from hidiff.data import build_dataset
from hidiff.data.dataset import PairSet
from hidiff.data.image import listing, read_image, to_uint8
from hidiff.evaluation.record import ImageScore, Scores, read_scores, write_scores
from hidiff.evaluation.test_run import run_test
from hidiff.metrics import evaluate_pair
from hidiff.report.candidates import Asked, Candidate, open_candidate
from hidiff.report.intervals import Difference, difference
from hidiff.report.macs import Complexity, model_complexity
from hidiff.restore.image import restore_image
from hidiff.utils.errors import UserError
from hidiff.utils.files import hold, inside
from hidiff.utils.workers import Group, available_cores, run_in_order
from hidiff.weights.experiment import RESULTS

LOG = logging.getLogger("hidiff")

METRICS = ("psnr", "ssim")
"""Of every protocol."""


@dataclass(frozen=True)
class Outcome:
    """What became of a model, or of a folder of pictures.

    Args:
        description: what it is and where it is from.
        scores: of all images.
        pictures: files of the restored images, by name.
        settings: local mode and precision, in words; empty for pictures.
        complexity: at `PAPER_SIZE`; None for pictures, or where it cannot be counted.
        timing: of restoring one image; None for pictures, or where nothing was timed.
    """

    description: str
    scores: Scores
    pictures: Mapping[str, Path]
    settings: str = ""
    complexity: Complexity | None = None
    timing: Timing | None = None

    @functools.cached_property
    def images(self) -> dict[str, ImageScore]:
        """The images with scores, by name."""
        return {image.name: image for image in self.scores.scored}


@dataclass(frozen=True)
class Comparison:
    """All that was found out.

    Args:
        outcomes: by label.
        left_out: labels of models that could not be read or restored nothing, and why.
        dataset: with the blurry and the sharp images.
        names: of the images with scores of all models, in the data set's order; what is compared.
        device: that has restored, in words.
        timed: height and width of the image that was timed.
    """

    asked: Asked
    outcomes: Mapping[str, Outcome]
    left_out: Mapping[str, str]
    dataset: PairSet
    names: list[str]
    device: str
    timed: tuple[int, int] | None = None

    @property
    def baseline(self) -> str:
        """What the others are compared with; the first one where the asked one is left out."""
        asked = self.asked.baseline
        return asked if asked in self.outcomes else next(iter(self.outcomes))

    def values(self, label: str, metric: str) -> np.ndarray:
        """A metric of the compared images, (N,)."""
        images = self.outcomes[label].images
        return np.array([images[name].restored[metric] for name in self.names])

    def difference(self, label: str, other: str, metric: str) -> Difference:
        """How much a model differs from another one on the compared images."""
        asked = self.asked
        return difference(
            *(self.values(side, metric) for side in (label, other)),
            resamples=asked.resamples,
            seed=asked.seed,
        )

    @property
    def complete(self) -> bool:
        """Whether every model has restored and scored every image."""
        return not self.left_out and not any(o.scores.failed for o in self.outcomes.values())


def compare(asked: Asked, processes: Group) -> Comparison:
    """Restore, score, time and count.

    What an earlier call has restored or scored is not done again, as long as it would be the same.
    A model that cannot be read, or has no score at all, is left out; so are images that a model
    has no score of.

    Args:
        processes: one.

    Raises:
        UserError: the data set is missing, unpaired or without sharp images; no model or image is
            left; another program works in the same folder.
    """
    dataset = build_dataset(asked.data)
    if not dataset.has_gt:
        raise UserError(f"{asked.data.where}.dataroot_gt: comparing needs the sharp images")
    for notice in (*dataset.notices, *hold(RESULTS / asked.name, processes)):
        LOG.info(notice)
    left_out: dict[str, str] = {}

    def leave_out(label: str, reason: object) -> None:
        left_out[label] = str(reason)
        LOG.error("%s is left out: %s", label, reason)

    candidates: dict[str, Candidate] = {}
    for label in asked.models:
        try:
            candidates[label] = open_candidate(asked, label)
        except UserError as error:
            leave_out(label, error)
    scores = {}
    for label, candidate in candidates.items():
        LOG.info("%s: %s", label, candidate.description)
        try:
            found = _scores(asked, label, candidate, dataset, processes)
        except UserError as error:
            leave_out(label, error)
            continue
        if found.scored:
            scores[label] = found
        else:
            name, reason = next(iter(found.failed.items()))
            leave_out(label, f"no image has a score ({name}: {reason})")
    if not scores:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
        raise UserError(f"no model is left to compare: {reasons}")
    scored = [{image.name for image in found.scored} for found in scores.values()]
    names = [pair.name for pair in dataset.pairs if all(pair.name in part for part in scored)]
    if not names:
        raise UserError(
            f"no image has a score of all of {', '.join(scores)}; leave out one with few images "
            f"({', '.join(f'{label}: {len(found.scored)}' for label, found in scores.items())})"
        )
    timings, timed = _time(asked, {k: candidates[k] for k in scores}, dataset, names, processes)
    outcomes = {}
    for label, found in scores.items():
        candidate = candidates[label]
        options = candidate.options
        settings = f"local {found.local}, {options.val.precision}" if options else ""
        restored = {name: inside(found.folder, f"{name}.png") for name in names}
        outcomes[label] = Outcome(
            candidate.description,
            found,
            candidate.pictures or restored,
            settings,
            _count(label, candidate),
            timings.get(label),
        )
    device = processes.device.type.upper()
    return Comparison(asked, outcomes, left_out, dataset, names, device, timed)


def _scores(
    asked: Asked, label: str, candidate: Candidate, dataset: PairSet, processes: Group
) -> Scores:
    """The scores of a candidate on all images, of this call or an earlier one."""
    folder = RESULTS / asked.test_name(label)
    if candidate.options is None:
        return _score_pictures(asked, folder, candidate, dataset, processes)
    run_test(candidate.options, processes, overwrite=True, model=candidate.model)
    return next(found for found in read_scores(folder) if found.dataset == asked.data.name)


def _score_pictures(
    asked: Asked, folder: Path, candidate: Candidate, dataset: PairSet, processes: Group
) -> Scores:
    """Score a folder of pictures, image by image, as run_test does with a model."""
    place = str(next(iter(candidate.pictures.values())).parent)
    hold(folder, processes)
    names = [pair.name for pair in dataset.pairs]

    def score(index: int) -> tuple[int, ImageScore]:
        image = ImageScore(name=names[index])
        try:
            if image.name not in candidate.pictures:
                raise UserError(f"{place} has no picture of this name; restore it too")
            item = dataset[index]
            image.cropped = "cropped" in item
            sharp = np.ascontiguousarray(to_uint8(item["gt"].permute(1, 2, 0).numpy()))
            restored = to_uint8(read_image(candidate.pictures[image.name]))
            image.set_scores(evaluate_pair(restored, sharp, protocol=asked.protocol))
        except UserError as error:
            image.error = str(error)
        return index, image

    indices = range(len(names))
    with closing(run_in_order(indices, read=score, workers=available_cores())) as scored:
        found = dict(tqdm(scored, asked.data.name, len(names), leave=False, disable=None))
    scores = Scores(
        dataset=asked.data.name,
        protocol=asked.protocol,
        source="pictures",
        images=[found[index] for index in sorted(found)],
        folder=place,
        target=str(asked.data.source.get("dataroot_gt")),
    )
    write_scores(folder, [scores])
    return scores


def _time(
    asked: Asked,
    candidates: Mapping[str, Candidate],
    dataset: PairSet,
    names: list[str],
    processes: Group,
) -> tuple[dict[str, Timing], tuple[int, int] | None]:
    """Time and memory of restoring one image, the models in turn; and its height and width."""
    variants = {}
    index = [pair.name for pair in dataset.pairs].index(names[0])
    item = {key: value for key, value in dataset[index].items() if key != "gt"}

    def restore(candidate: Candidate) -> None:
        model, options = candidate.model, candidate.options
        assert model is not None and options is not None
        restore_image(
            model.eval(),
            item["lq"],
            name=item["name"],
            self_ensemble=options.val.selfensemble_testing,
            local=options.val.local,
            precision=options.val.precision,
        )

    for label, candidate in candidates.items():
        if candidate.model is not None:
            variants[label] = functools.partial(restore, candidate)
    if not variants or not asked.repeats:
        return {}, None
    LOG.info("timing %s", ", ".join(variants))
    height, width = item["lq"].shape[1:]
    try:
        timings = alternate(variants, repeats=asked.repeats, device=processes.device)
    except UserError as error:
        LOG.error("nothing is timed: %s", error)
        return {}, None
    return timings, (height, width)


def _count(label: str, candidate: Candidate) -> Complexity | None:
    """Parameters and multiply-accumulates of a model."""
    if candidate.options is None:
        return None
    try:
        return model_complexity(candidate.options.sections)
    except UserError as error:
        LOG.info("%s: its multiply-accumulates are not counted: %s", label, error)
        return None


def failures(outcome: Outcome) -> list[str]:
    """Why images of a model have no score, images with the same reason on one line."""
    reasons: dict[str, list[str]] = {}
    for name, reason in outcome.scores.failed.items():
        reasons.setdefault(reason, []).append(name)
    return [
        f"{len(names)} of {len(outcome.scores.images)} images ({listing(names)}): {reason}"
        for reason, names in reasons.items()
    ]
