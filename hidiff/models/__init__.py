"""What is trained. Importing this package registers the stages in `hidiff.registry.MODELS`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import hidiff.losses  # noqa: F401  (registers the losses that the stages build)
from hidiff.archs import build_network
from hidiff.diffusion import LatentDDPM
from hidiff.models.base import LOSS_OPTIONS, DeblurModel, pad_to_multiple, section_of
from hidiff.models.regression import Regression
from hidiff.models.split import SplitStage2
from hidiff.models.stage1 import Stage1
from hidiff.models.stage2 import Stage2
from hidiff.registry import LOSSES, MODELS, check_call
from hidiff.utils.errors import UserError

__all__ = [
    "DeblurModel",
    "Regression",
    "SplitStage2",
    "Stage1",
    "Stage2",
    "build_model",
    "pad_to_multiple",
    "section_of",
]


def build_model(options: Mapping[str, Any], *, training: bool = True) -> DeblurModel:
    """Build the model that an option file describes; no files are read.

    The arguments of the stage's constructor say which sections it needs: `net_g` is built from
    `network_g`, `diffusion` from `diffusion_schedule`, `l_pix` from `train.pixel_opt`.

    Args:
        options: sections as parsed from YAML: `model_type`, `network_*`, `diffusion_schedule`
            (stage 2), and the losses under `train`. Other sections are not looked at.
        training: False leaves out the networks that only training needs.

    Returns:
        The model with freshly initialised networks.

    Raises:
        UserError: a section is missing or wrong; the message names its YAML path.
    """
    if "model_type" not in options:
        raise UserError(f"model_type: the option is missing; known: {', '.join(MODELS)}")
    stage = MODELS.get(options["model_type"], "model_type")
    parameters = inspect.signature(stage).parameters
    train = options.get("train") or {}
    for name, key in LOSS_OPTIONS.items():
        if train.get(key) and name not in parameters:
            raise UserError(
                f"train.{key}: model_type {options['model_type']} has no such loss; remove this "
                "section"
            )
    parts: dict[str, Any] = {}
    for name, parameter in parameters.items():
        optional = parameter.default is None
        if name in LOSS_OPTIONS:
            section = train.get(LOSS_OPTIONS[name], None if optional else {"type": "L1Loss"})
            where = f"train.{LOSS_OPTIONS[name]}"
            parts[name] = None if section is None else LOSSES.build(section, where)
            continue
        where = "diffusion_schedule" if name == "diffusion" else section_of(name)
        section = options.get(where)
        if section is None and not optional:
            raise UserError(f"{where}: model_type {options['model_type']} needs this section")
        if section is None or (optional and not training):
            continue
        if name == "diffusion":
            schedule = check_call(LatentDDPM, section, where, label="the schedule")
            parts[name] = LatentDDPM(**schedule)
        else:
            parts[name] = build_network(section, where)
    return stage(**parts)
