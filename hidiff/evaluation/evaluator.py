"""Restoring and scoring the images of a data set, shared out over the processes."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hidiff.data.dataset import PairSet
from hidiff.data.image import to_uint8, write_image
from hidiff.evaluation.record import ImageScore
from hidiff.metrics import evaluate_pair
from hidiff.metrics.published import published_protocol
from hidiff.models import DeblurModel
from hidiff.options import Section, ValOptions
from hidiff.registry import METRICS
from hidiff.restore.photo import Photo, read_photo, to_pixels, write_photo
from hidiff.restore.restoring import photo_item, restore_item, to_image
from hidiff.utils.errors import UserError, memory_errors
from hidiff.utils.workers import Group, run_in_order, thread_count

LOG = logging.getLogger("hidiff")

Scorer = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""From a restored and a sharp image, (H, W, 3) uint8 RGB, to metrics by name."""

Triptych = tuple[np.ndarray, ...]


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
    return lambda restored, target: {n: float(m(restored, target)) for n, m in metrics.items()}


def build_test_scorer(val: ValOptions, dataset: str) -> tuple[str, Scorer]:
    """How test.py scores the data set of a name: the protocol and the function.

    Raises:
        UserError: an unknown metric or option in `val.metrics`.
    """
    protocol: str | None = val.protocol
    if protocol == "benchmark":
        protocol = published_protocol(dataset)
    if protocol is None:
        return "basicsr", build_metrics(val.metrics)
    return protocol, functools.partial(evaluate_pair, protocol=protocol)


@dataclass
class _Job:
    """An image on its way: the item until it is restored, uint8 pictures as they come.

    Of a data set without sharp images also the photograph, and its restored pixels.
    """

    index: int
    score: ImageScore
    item: Mapping[str, Any] | None = None
    photo: Photo | None = None
    pixels: np.ndarray | None = None
    blurry: np.ndarray | None = None
    sharp: np.ndarray | None = None
    restored: np.ndarray | None = None

    @property
    def triptych(self) -> Triptych:
        """Blurry, restored and, where it is known, sharp picture."""
        pictures = (self.blurry, self.restored, self.sharp)
        return tuple(picture for picture in pictures if picture is not None)


def _read(dataset: PairSet, seed: int, index: int) -> _Job:
    score, photo = ImageScore(name=dataset.pairs[index].name, seed=seed), None
    try:
        with memory_errors(f"{score.name}: no memory to read it", "lower val.num_workers"):
            if getattr(dataset, "has_gt", True):
                item = dataset[index]
            else:
                photo = read_photo(*dataset.blurry_file(index))
                item = photo_item(photo.pixels, score.name)
            score.cropped = "cropped" in item
            pictures = {
                # Not with torch, which starts a pool of its own for each thread that calls it.
                side: np.ascontiguousarray(to_uint8(item[side].permute(1, 2, 0).numpy()))
                for side in ("lq", "gt")
                if side in item
            }
    except UserError as error:
        score.error = str(error)
        return _Job(index, score)
    for notice in photo.notices if photo else ():
        LOG.info("%s: %s", score.name, notice)
    return _Job(index, score, item, photo, blurry=pictures["lq"], sharp=pictures.get("gt"))


def _score(job: _Job, scorer: Scorer, score_blurry: bool) -> None:
    if job.sharp is None or job.restored is None or job.blurry is None:
        return
    try:
        with memory_errors("no memory for its scores", "lower val.num_workers"):
            restored = scorer(job.restored, job.sharp)
            blurry = scorer(job.blurry, job.sharp) if score_blurry else None
            job.score.set_scores(restored, blurry)
    except UserError as error:
        job.score.error = f"restored but not scored: {error}"


def evaluate(
    model: DeblurModel,
    dataset: PairSet,
    scorer: Scorer,
    processes: Group,
    *,
    seed: int,
    label: str,
    val: ValOptions = ValOptions(),  # noqa: B008 (frozen)
    score_blurry: bool = False,
    picture_path: Callable[[str], Path] | None = None,
    on_unwritten: Callable[[UserError], None] | None = None,
    on_triptych: Callable[[int, str, Triptych], None] | None = None,
    on_score: Callable[[int, ImageScore], None] | None = None,
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
        seed: of the noise, with the image's name.
        label: stands before the progress bar.
        val: `selfensemble_testing`, `local`, `num_workers` (threads, see
            `hidiff.utils.workers.thread_count`, which change no result) and `pbar` count.
        score_blurry: score the input images too.
        picture_path: where to write the restored image of a name; None writes none. Without sharp
            images it is a photograph of 8 or 16 bits, with all that its file holds.
        on_unwritten: told why a picture could not be written; None ends the evaluation there.
        on_triptych: called with (index, name, (blurry, restored[, sharp])) uint8 RGB on the
            process that restored it, in order.
        on_score: called with (index, score) on the process that restored the image, in order, when
            its picture is written.
        done: scores by index that are there already, the same on every process; these images are
            not restored again.
        stop: asked after each image whether this process shall leave out the rest of its own.

    Returns:
        On every process the scores of all images, in the data set's order; fewer than the data
        set has images where one process has stopped.

    Raises:
        UserError: a picture cannot be written, and there is no `on_unwritten`.
    """

    def restore(job: _Job) -> _Job:
        if job.item is None:
            return job
        started = time.perf_counter()
        try:
            restored = restore_item(
                *(model, job.item),
                seed=seed,
                device=processes.device,
                self_ensemble=val.selfensemble_testing,
                local=val.local,
                normalization=getattr(dataset, "normalization", None),
            )
            job.restored = to_image(restored)
            if job.photo is not None:
                job.pixels = to_pixels(restored, job.photo)
            job.score.seconds = time.perf_counter() - started
        except UserError as error:
            job.score.error = str(error)
        job.item = None
        return job

    def finish(job: _Job) -> _Job:
        if job.restored is not None:
            _score(job, scorer, score_blurry)
            if picture_path is not None:
                try:
                    if job.photo is None or job.pixels is None:
                        write_image(picture_path(job.score.name), job.restored)
                    else:
                        write_photo(picture_path(job.score.name), job.photo, job.pixels)
                except UserError as error:
                    if on_unwritten is None:
                        raise
                    on_unwritten(error)
        return job

    done = done or {}
    remaining = [index for index in range(len(dataset)) if index not in done]
    mine = remaining[processes.rank :: processes.world_size]
    jobs = run_in_order(
        mine,
        read=functools.partial(_read, dataset, seed),
        work=restore,
        finish=finish,
        workers=thread_count(val.num_workers, processes.device),
    )
    hidden = None if processes.is_main and val.pbar else True
    scores = dict(done)
    training = model.training
    model.eval()
    try:
        with closing(jobs):
            for job in tqdm(jobs, label, len(mine), leave=False, disable=hidden):
                scores[job.index] = job.score
                if on_triptych is not None and job.restored is not None:
                    on_triptych(job.index, job.score.name, job.triptych)
                if on_score is not None:
                    on_score(job.index, job.score)
                if stop():
                    break
    finally:
        model.train(training)
    everyone = {i: score for part in processes.gather(scores) for i, score in part.items()}
    return [everyone[index] for index in sorted(everyone)]
