"""Restoring and scoring the images of a data set, shared out over the processes."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from hidiff.data.dataset import PairSet, to_tensor
from hidiff.data.image import to_uint8, write_image
from hidiff.evaluation.record import ImageScore
from hidiff.metrics import evaluate_pair
from hidiff.metrics.published import published_protocol
from hidiff.metrics.pyiqa import needs_target
from hidiff.models import DeblurModel
from hidiff.options import Section, ValOptions
from hidiff.registry import METRICS
from hidiff.restore.image import DEFAULT_SEED, restore_image, to_image
from hidiff.restore.photo import Photo, read_photo, to_pixels, write_photo
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError, memory_errors
from hidiff.utils.workers import ordered_pipeline, thread_count

LOG = logging.getLogger("hidiff")

Scorer = Callable[[np.ndarray, np.ndarray | None], Mapping[str, float]]
"""From a restored and a sharp image, (H, W, 3) uint8 RGB, to metrics by name; where there is no
sharp one, those that do without it."""

PreviewImages = tuple[np.ndarray, ...]
"""Blurry, restored and, where it is known, sharp image, (H, W, 3) uint8 RGB."""


def build_metrics(sections: Mapping[str, Section]) -> Scorer:
    """Scores with the metrics of `val.metrics`, under the names given there.

    Raises:
        UserError: an unknown metric or option.
    """
    metrics = {}
    for name, section in sections.items():
        function, kwargs = METRICS.check(
            {key: value for key, value in section.items() if key != "better"},
            f"val.metrics.{name}",
            supplied=("restored", "target"),
        )
        metrics[name] = functools.partial(function, **kwargs)
    alone = {
        name: metrics[name]
        for name, section in sections.items()
        if section["type"] == "pyiqa" and not needs_target(section["metric"])
    }

    def score(restored: np.ndarray, target: np.ndarray | None) -> dict[str, float]:
        chosen = alone if target is None else metrics
        return {name: float(metric(restored, target)) for name, metric in chosen.items()}

    return score


def build_test_scorer(val: ValOptions, dataset: str) -> tuple[str, Scorer]:
    """How a test scores the data set of a name: the protocol and the function.

    Without `val.protocol` the `val.metrics` are measured, without these the protocol 'basicsr'. It
    is called 'custom' where `val.metrics` are others than 'basicsr' has.

    Raises:
        UserError: an unknown metric or option in `val.metrics`.
    """
    if val.protocol is not None or not val.metrics:
        protocol: str = val.protocol or "basicsr"
        if protocol == "benchmark":
            protocol = published_protocol(dataset)
        return protocol, functools.partial(_by_protocol, protocol)
    scorer = build_metrics(val.metrics)
    standard = all(_is_standard(name, section) for name, section in val.metrics.items())
    return ("basicsr" if standard else "custom"), scorer


def _by_protocol(
    protocol: str, restored: np.ndarray, target: np.ndarray | None
) -> Mapping[str, float]:
    return {} if target is None else evaluate_pair(restored, target, protocol=protocol)


def _is_standard(name: str, section: Section) -> bool:
    """Whether a metric is PSNR or SSIM as the protocol 'basicsr' has it, under its usual name."""
    usual = {"type": f"calculate_{name}", "crop_border": 0, "test_y_channel": False}
    given = {key: value for key, value in section.items() if key != "better"}
    return usual | given == usual


@dataclass
class _Job:
    """An image on its way.

    Args:
        index: in the data set.
        score: what became of it.
        lq, gt: (3, H, W) float32; None when they are used up, or there is none.
        blurry, sharp, restored: see `PreviewImages`; None as long as there is none.
        photo: the blurry image's file, of a data set without sharp images.
        pixels: the restored image, as it is written.
    """

    index: int
    score: ImageScore
    lq: Tensor | None = None
    gt: Tensor | None = None
    blurry: np.ndarray | None = None
    sharp: np.ndarray | None = None
    restored: np.ndarray | None = None
    photo: Photo | None = None
    pixels: np.ndarray | None = None

    @property
    def preview(self) -> PreviewImages:
        """See `PreviewImages`; empty where the image was not restored."""
        pictures = (self.blurry, self.restored, self.sharp)
        if self.restored is None:
            return ()
        return tuple(picture for picture in pictures if picture is not None)


def _attempt(step: Callable[[_Job], None], job: _Job) -> _Job:
    """A step of a job whose earlier ones went well; why it cannot be done is the image's error."""
    if job.score.error is None:
        try:
            step(job)
        except UserError as error:
            job.score.error = str(error)
    return job


def _read(job: _Job, dataset: PairSet) -> None:
    with memory_errors(f"{job.score.name}: no memory to read it", "lower val.num_workers"):
        if dataset.has_gt:
            item = dataset[job.index]
            job.lq, job.gt = item["lq"], item.get("gt")
            job.score.cropped = "cropped" in item
        else:
            job.photo = read_photo(*dataset.blurry_file(job.index))
            job.lq = to_tensor(job.photo.pixels)
            for notice in job.photo.notices:
                LOG.info("%s: %s", job.score.name, notice)
        job.blurry = _pixels(job.lq)
        job.sharp = None if job.gt is None else _pixels(job.gt)


def _pixels(image: Tensor) -> np.ndarray:
    # Not with torch, which starts a pool of its own for each thread that calls it.
    return np.ascontiguousarray(to_uint8(image.permute(1, 2, 0).numpy()))


def _restore(job: _Job, model: DeblurModel, val: ValOptions) -> None:
    assert job.lq is not None and job.score.seed is not None
    started = time.perf_counter()
    restored = restore_image(
        model,
        job.lq,
        name=job.score.name,
        gt=job.gt,
        seed=job.score.seed,
        self_ensemble=val.selfensemble_testing,
        local=val.local,
        precision=val.precision,
    )
    job.lq = job.gt = None
    job.restored = to_image(restored)
    job.pixels = job.restored if job.photo is None else to_pixels(restored, job.photo)
    job.score.seconds = time.perf_counter() - started


def _score(job: _Job, scorer: Scorer, score_blurry: bool) -> None:
    assert job.blurry is not None and job.restored is not None
    try:
        with memory_errors("no memory for its scores", "lower val.num_workers"):
            restored = scorer(job.restored, job.sharp)
            blurry = scorer(job.blurry, job.sharp) if score_blurry else None
    except UserError as error:
        raise UserError(f"restored but not scored: {error}") from None
    job.score.set_scores(restored, blurry)


def evaluate(
    model: DeblurModel,
    dataset: PairSet,
    scorer: Scorer,
    processes: Processes,
    *,
    label: str,
    seed: int = DEFAULT_SEED,
    val: ValOptions = ValOptions(),  # noqa: B008 (frozen)
    score_blurry: bool = False,
    picture_path: Callable[[str], Path] | None = None,
    on_image: Callable[[int, ImageScore, PreviewImages], None] | None = None,
    done: Mapping[int, ImageScore] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[ImageScore]:
    """Restore and score every image of a data set once.

    The processes take the images in turn. An image that is damaged or too large for the memory gets
    a score with an error; the rest goes on.

    Args:
        model: the unwrapped model; it is left in the mode it was in.
        dataset: items as of `PairedImageIRDataset`; read in threads.
        scorer: see `build_metrics` and `build_test_scorer`; called in threads.
        processes: those that share the work.
        label: stands before the progress bar.
        seed: of the noise, with the image's name.
        val: `selfensemble_testing`, `local`, `precision`, `num_workers` (threads, see
            `hidiff.utils.workers.thread_count`, which change no result) and `pbar` count.
        score_blurry: score the input images too.
        picture_path: where to write the restored image of a name; None writes none. Without sharp
            images it is a photograph of 8 or 16 bits, with all that its file holds.
        on_image: called with (index, score, images) on the process that restored the image, in
            order, when its picture is written; without images where it failed.
        done: scores by index that are there already, the same on every process; these images are
            not restored again.
        stop: asked after each image whether this process shall leave out the rest of its own.

    Returns:
        On every process the scores of all images, in the data set's order; fewer than the data
        set has images where one process has stopped.

    Raises:
        UserError: a picture cannot be written.
    """

    def load(index: int) -> _Job:
        job = _Job(index, ImageScore(name=dataset.pairs[index].name, seed=seed))
        return _attempt(functools.partial(_read, dataset=dataset), job)

    def finish(job: _Job) -> _Job:
        _attempt(functools.partial(_score, scorer=scorer, score_blurry=score_blurry), job)
        if job.pixels is not None and picture_path is not None:
            path = picture_path(job.score.name)
            if job.photo is None:
                write_image(path, job.pixels)
            else:
                write_photo(path, job.photo, job.pixels)
        return job

    scores = dict(done or {})
    remaining = [index for index in range(len(dataset)) if index not in scores]
    mine = remaining[processes.rank :: processes.world_size]
    jobs = ordered_pipeline(
        mine,
        load=load,
        compute=functools.partial(_attempt, functools.partial(_restore, model=model, val=val)),
        save=finish,
        workers=thread_count(val.num_workers, processes.device),
    )
    hidden = None if processes.is_main and val.pbar else True
    training = model.training
    model.eval()
    try:
        with closing(jobs):
            for job in tqdm(jobs, label, len(mine), leave=False, disable=hidden):
                scores[job.index] = job.score
                if on_image is not None:
                    on_image(job.index, job.score, job.preview)
                if stop():
                    break
    finally:
        model.train(training)
    everyone = {i: score for part in processes.gather(scores) for i, score in part.items()}
    return [everyone[index] for index in sorted(everyone)]
