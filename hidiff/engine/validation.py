"""Validation during training: scores, best values, TensorBoard and pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hidiff.data.dataset import PairSet
from hidiff.engine.logger import MetricsWriter
from hidiff.evaluation.evaluator import PreviewImages, build_metrics, evaluate
from hidiff.evaluation.record import ImageScore, mean_metrics
from hidiff.evaluation.summary import cropped_note
from hidiff.models import DeblurModel
from hidiff.models.compilation import uncompiled
from hidiff.options import Options
from hidiff.utils.distributed import Processes
from hidiff.utils.files import safe_join

LOG = logging.getLogger("hidiff")

PICTURES_PER_VALIDATION = 3
"""Validation images shown in TensorBoard."""


class Validator:
    """Scores the validation sets of a training, shared out over its processes.

    Args:
        options: `val` says how.
        datasets: the validation sets by name.
        processes: those that share the images.
        folder: where pictures go with `val.save_img`.

    Raises:
        UserError: an unknown metric or option in `val.metrics`; an image's name that leads out of
            the folder of its picture.
    """

    def __init__(
        self,
        options: Options,
        datasets: Mapping[str, PairSet],
        processes: Processes,
        folder: Path,
    ) -> None:
        self.options = options
        self.datasets = datasets
        self.processes = processes
        self.folder = folder
        self.scorer = build_metrics(options.val.metrics)
        if options.val.save_img:
            for name, dataset in datasets.items():
                for pair in dataset.pairs:
                    safe_join(folder / name, pair.name)  # now rather than at the first validation

    def run(
        self,
        model: DeblurModel,
        step: int,
        best: dict[str, dict[str, Any]],
        writer: MetricsWriter,
        stop: Callable[[], bool],
    ) -> bool:
        """Score the model after a step; results go to the log and TensorBoard.

        Args:
            model: what is scored.
            step: its step.
            best: '{set}/{metric}' → its best value so far and the step of it; updated in place.
            writer: of TensorBoard.
            stop: asked between two images. Where it says yes on any process, the scores of the data
                set are dropped on all of them.

        Returns:
            Whether all data sets were scored.
        """
        upper_bound = model.restores_from_gt
        label = "val (upper bound: sees the sharp image)" if upper_bound else "val"
        for name, dataset in self.datasets.items():
            shown: dict[str, np.ndarray] = {}

            def keep(
                index: int, score: ImageScore, pictures: PreviewImages, shown: dict = shown
            ) -> None:
                if pictures and index < PICTURES_PER_VALIDATION:
                    shown[score.name] = np.concatenate(pictures, axis=1)

            def path(image: str, name: str = name) -> Path:
                place = safe_join(self.folder / name, image)
                return place / f"{place.name}_{step}.png"

            with uncompiled():
                results = evaluate(
                    model,
                    dataset,
                    self.scorer,
                    self.processes,
                    label=f"{label} {name}",
                    score_blurry=True,
                    val=self.options.val,
                    picture_path=path if self.options.val.save_img else None,
                    on_image=keep,
                    stop=stop,
                )
            if len(results) < len(dataset):
                return False
            for failed in (result for result in results if result.error):
                LOG.warning("%s: %s: %s", name, failed.name, failed.error)
            if note := cropped_note(results):
                LOG.warning("%s: %s", name, note)
            means, blurry = mean_metrics(results), mean_metrics(results, "blurry")
            for metric, value in means.items():
                top = best.setdefault(f"{name}/{metric}", {"value": value, "step": step})
                if self.options.val.is_better(metric, value, top["value"]):
                    top.update(value=value, step=step)
                LOG.info(
                    "step %d: %s %s, %s %.4f (blurry %.4f, best %.4f at step %d)",
                    *(step, label, name, metric, value),
                    *(blurry.get(metric, math.nan), top["value"], top["step"]),
                )
            kind = "upper_bound" if upper_bound else "metrics"
            writer.scalars({f"{kind}/{name}/{m}": v for m, v in means.items()}, step)
            for part in self.processes.gather(shown):
                for image, picture in part.items():
                    writer.picture(f"{name}/{image}", picture, step)
        return True
