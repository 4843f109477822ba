"""What is trained. Importing this package registers the stages in `hidiff.registry.MODELS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hidiff.losses  # noqa: F401  (registers the losses that the stages build)
from hidiff.errors import UserError
from hidiff.models.base import DeblurModel, pad_to_multiple
from hidiff.models.baseline import Restormer
from hidiff.models.split import SplitStage2
from hidiff.models.stage1 import Stage1
from hidiff.models.stage2 import Stage2
from hidiff.registry import MODELS

__all__ = [
    "DeblurModel",
    "Restormer",
    "SplitStage2",
    "Stage1",
    "Stage2",
    "build_model",
    "pad_to_multiple",
]


def build_model(options: Mapping[str, Any]) -> DeblurModel:
    """Build the model that an option file describes; no files are read.

    Args:
        options: sections as parsed from YAML: `model_type`, `network_*`, `diffusion_schedule`
            (stage 2), and the losses under `train`. Other sections are not looked at.

    Returns:
        The model with freshly initialised networks.

    Raises:
        UserError: a section is missing or wrong; the message names its YAML path.
    """
    if "model_type" not in options:
        raise UserError(f"model_type: the option is missing; known: {', '.join(MODELS)}")
    return MODELS.get(options["model_type"], "model_type").from_options(options)
