"""Restoring and scoring the images of a data set, shared out over the processes."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from hidiff.data.image import to_uint8, write_image
from hidiff.data.transforms import SYMMETRIES, symmetry, undo_symmetry
from hidiff.engine.distributed import Processes
from hidiff.errors import UserError
from hidiff.metrics import evaluate_pair
from hidiff.metrics.published import BENCHMARKS
from hidiff.models import DeblurModel
from hidiff.options import Section, ValOptions
from hidiff.registry import METRICS

Scorer = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""From a restored and a sharp image, (H, W, 3) uint8 RGB, to metrics by name."""

Triptych = tuple[np.ndarray, ...]


@dataclass
class ImageResult:
    """What became of one image.

    `restored` and `blurry` hold the metrics of the restored and of the input image against the
    sharp one; they are empty without ground truth. `aligned` among them says whether the protocol
    `realblur` could align the image. `error` says why the image has no result.
    """

    index: int
    name: str
    restored: dict[str, float] = field(default_factory=dict)
    blurry: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    error: str | None = None


def build_metrics(sections: Mapping[str, Section]) -> Scorer:
    """Scores with the metrics of `val.metrics`, under the names given there.

    Raises:
        UserError: an unknown metric or option.
    """
    metrics = {}
    for name, section in sections.items():
        function, kwargs = METRICS.check(
            section, f"val.metrics.{name}", supplied=("restored", "target")
        )
        metrics[name] = functools.partial(function, **kwargs)
    return lambda restored, target: {n: float(m(restored, target)) for n, m in metrics.items()}


def build_test_scorer(val: ValOptions, dataset: str) -> tuple[str, Scorer]:
    """How test.py scores the data set of a name: the protocol and the function.

    Raises:
        UserError: an unknown metric or option in `val.metrics`.
    """
    protocol = val.protocol
    if protocol == "benchmark":
        protocol = BENCHMARKS[dataset].protocol if dataset in BENCHMARKS else "basicsr"
    if protocol is None:
        return "basicsr", build_metrics(val.metrics)
    return protocol, functools.partial(evaluate_pair, protocol=protocol)


def image_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the image's name alone.

    So the output for an image does not depend on the images before it.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def to_image(tensor: Tensor) -> np.ndarray:
    """(1, 3, H, W) or (3, H, W) float in [0, 1] → (H, W, 3) uint8, rounded."""
    array = tensor.detach().float().cpu().numpy()
    return to_uint8(array.reshape(array.shape[-3:]).transpose(1, 2, 0))


def restore_item(
    model: DeblurModel,
    item: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    self_ensemble: bool = False,
) -> Tensor:
    """Restore one item of a data set.

    Args:
        model: in evaluation mode, on `device`.
        item: `lq` (3, H, W), `name`, and `gt` where there is one.
        seed: the experiment's; the noise depends on it and the name.
        self_ensemble: average the restorations of the 8 symmetries of the image.

    Returns:
        (3, H, W) on the CPU.

    Raises:
        UserError: the image is too small, or too large for the device's memory.
    """
    total = None
    for index in range(SYMMETRIES if self_ensemble else 1):
        images = [
            torch.from_numpy(
                np.ascontiguousarray(symmetry(item[k].permute(1, 2, 0).numpy(), index))
            ).permute(2, 0, 1)[None]
            for k in ("lq", "gt")
            if k in item
        ]
        try:
            restored = model.restore(
                *(image.to(device) for image in images),
                generator=image_generator(seed, item["name"]),
            )
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            size = "×".join(str(side) for side in item["lq"].shape[:0:-1])
            raise UserError(
                f"{item['name']}: {size} pixels do not fit into the GPU's memory; use a larger GPU "
                "or the CPU (--force_yml num_gpu=0)"
            ) from None
        array = undo_symmetry(restored[0].float().cpu().permute(1, 2, 0).numpy(), index)
        total = array if total is None else total + array
    average = total / SYMMETRIES if self_ensemble else total
    return torch.from_numpy(np.ascontiguousarray(average)).permute(2, 0, 1)


def evaluate(
    model: DeblurModel,
    dataset: Dataset,
    scorer: Scorer,
    processes: Processes,
    *,
    seed: int,
    label: str,
    self_ensemble: bool = False,
    score_blurry: bool = False,
    picture_path: Callable[[str], Path] | None = None,
    on_triptych: Callable[[int, str, Triptych], None] | None = None,
) -> list[ImageResult]:
    """Restore and score every image of a data set once.

    Image i is processed by process i mod W. A damaged image gets a result with an error; the rest
    goes on.

    Args:
        model: the unwrapped model; it is left in the mode it was in.
        dataset: items as of `PairedImageIRDataset`.
        scorer: see `build_metrics` and `build_test_scorer`.
        processes: those that share the work.
        seed: of the noise, with the image's name.
        label: stands before the progress bar.
        self_ensemble: see `restore_item`.
        score_blurry: score the input images too.
        picture_path: where to write the restored image of a name; None writes none.
        on_triptych: called with (index, name, (blurry, restored[, sharp])) uint8 RGB on the
            process that restored it.

    Returns:
        On every process the results of all images, in the data set's order.
    """
    training = model.training
    model.eval()
    mine = range(processes.rank, len(dataset), processes.world_size)
    results = []
    for index in tqdm(mine, desc=label, leave=False, disable=None if processes.is_main else True):
        result = ImageResult(index, dataset.pairs[index].name)
        results.append(result)
        try:
            item = dataset[index]
            started = time.perf_counter()
            restored = to_image(
                restore_item(
                    model, item, seed=seed, device=processes.device, self_ensemble=self_ensemble
                )
            )
            result.seconds = time.perf_counter() - started
        except UserError as error:
            result.error = str(error)
            continue
        pictures = [to_image(item["lq"]), restored]
        if "gt" in item:
            pictures.append(to_image(item["gt"]))
            try:
                result.restored = dict(scorer(restored, pictures[2]))
                if score_blurry:
                    result.blurry = dict(scorer(pictures[0], pictures[2]))
            except UserError as error:
                result.error = f"restored but not scored: {error}"
        if picture_path is not None:
            write_image(picture_path(result.name), restored)
        if on_triptych is not None:
            on_triptych(index, result.name, tuple(pictures))
    model.train(training)
    everyone = [result for part in processes.gather(results) for result in part]
    return sorted(everyone, key=lambda result: result.index)


def mean_metrics(results: list[ImageResult], which: str = "restored") -> dict[str, float]:
    """The mean of every metric over the scored images; `which` is 'restored' or 'blurry'.

    Infinite values (identical images) make an infinite mean, as they should.
    """
    rows = [getattr(result, which) for result in results if getattr(result, which)]
    if not rows:
        return {}
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
