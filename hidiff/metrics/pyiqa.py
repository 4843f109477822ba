"""Perceptual and no-reference metrics of the package pyiqa, an optional extra: LPIPS, NIQE, …

    val: {metrics: {lpips: {type: pyiqa, metric: lpips, better: lower}}}

Most of them have weights, which the package brings from the network when they are first used.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from hidiff.metrics.basicsr import check_pair
from hidiff.registry import METRICS
from hidiff.utils.errors import UserError, suggestion


@functools.cache
def _load(metric: str) -> Any:
    """The package's metric on the CPU.

    Raises:
        UserError: the package, the metric or its weights are missing.
    """
    import torch  # late, as scoring PSNR does without it

    try:
        import pyiqa
    except ImportError:
        raise UserError(
            f"the metric '{metric}' needs the package pyiqa; pip install 'hidiff[metrics]'"
        ) from None
    names = pyiqa.list_models()
    if metric not in names:
        raise UserError(f"pyiqa has no metric '{metric}'{suggestion(metric, names)}")
    try:
        return pyiqa.create_metric(metric, device=torch.device("cpu"))
    except Exception as error:  # whatever a download ends with
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"the weights of the metric '{metric}' cannot be loaded ({reason}); pyiqa brings them "
            "from the network at first use: call it once where there is one, and copy the folder "
            "~/.cache/torch/hub/pyiqa"
        ) from None


def needs_target(metric: str) -> bool:
    """Whether a metric compares with the sharp image.

    Raises:
        UserError: the package, the metric or its weights are missing.
    """
    return _load(metric).metric_mode == "FR"


@METRICS.register("pyiqa")
def pyiqa_score(restored: np.ndarray, target: np.ndarray | None = None, *, metric: str) -> float:
    """The value of one of the package's metrics, in its own unit.

    Args:
        restored, target: uint8 RGB (H, W, 3); no-reference metrics do without the target.
        metric: as the package calls it, such as 'lpips', 'dists', 'niqe', 'musiq'.

    Raises:
        UserError: the package, the metric or its weights are missing; or the images cannot be
            compared.
    """
    import torch

    model = _load(metric)
    images = [restored]
    if needs_target(metric):
        if target is None:
            raise UserError(f"the metric '{metric}' compares with the sharp image; there is none")
        check_pair(restored, target)
        images.append(target)
    tensors = [torch.from_numpy(x.copy()).permute(2, 0, 1)[None].float() / 255 for x in images]
    with torch.no_grad():
        return float(model(*tensors))
