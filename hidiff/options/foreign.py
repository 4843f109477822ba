"""Option files of the programs that published the baselines: all differences named at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hidiff.options.yaml_file import OPTION_FILES
from hidiff.registry import ARCHS, DATASETS, MODELS, SCHEDULERS, option_error

_REMOVE = {
    r"datasets\.\w+\.(use_hflip|use_flip|use_rot|geometric_augs)": "remove it: training patches "
    "are always flipped and turned at random",
    r"(datasets\.\w+|val)\.(rgb2bgr|use_image|color)": "remove it: images are RGB",
    r"datasets\.\w+\.(phase|crop_size_.*)": "remove it",
    r"val\.(window_size|max_minibatch|crop_size|grids)": "remove it; val.local restores in parts",
    r"train\.(use_amp|clip_grad)": "remove it; see train.precision, train.use_grad_clip",
    r"path\.root": "remove it: experiments/ and results/ are made where the program is started",
}
_RENAME = {
    "train.optim_g": "train.optim_total",
    "train.grad_clip": "train.use_grad_clip",
    "path.strict_load": "path.strict_load_g",
    "gpu_ids": "num_gpu",
}
_TYPES = {
    "model_type": MODELS,
    "network_g.type": ARCHS,
    "datasets.train.type": DATASETS,
    "datasets.val.type": DATASETS,
    "train.scheduler.type": SCHEDULERS,
}


def refuse_foreign_options(content: Mapping[str, Any]) -> None:
    """Refuse a file in the form of BasicSR's relatives, with the names that its options have here.

    Raises:
        OptionError: it has such options; the message lists them all.
    """
    places = {
        (f"{outer}.{key}.{inner}" if inner else f"{outer}.{key}" if key else outer): value
        for outer, section in content.items()
        for key, part in (section.items() if isinstance(section, Mapping) else [("", section)])
        for inner, value in (part.items() if isinstance(part, Mapping) else [("", part)])
    }
    for outer, section in content.items():  # sections themselves may be called otherwise
        if isinstance(section, Mapping):
            places |= {f"{outer}.{key}": value for key, value in section.items()}
    found: dict[str, str] = {}
    for place, value in places.items():
        for pattern, reason in _REMOVE.items():
            if re.fullmatch(pattern, place):
                found[place] = reason
        if place in _RENAME:
            found[place] = f"here it is {_RENAME[place]}"
        if place in _TYPES and isinstance(value, str) and value in _TYPES[place].elsewhere:
            found[place] = f"{value} is here {_TYPES[place].elsewhere[value]}"
    if not found:
        return
    if len(found) == 1:
        raise option_error(*next(iter(found.items())))
    lines = "\n  ".join(f"{place}: {reason}" for place, reason in found.items())
    raise option_error(
        "",
        f"this option file is of another program; what it says differs here:\n  {lines}\n"
        f"{OPTION_FILES}/baselines has files of this project for the published networks",
    )
