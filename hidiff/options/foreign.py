"""Options of the release that do nothing here, and of programs that published the baselines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hidiff.options.yaml_file import OPTION_FILES
from hidiff.registry import ARCHS, DATASETS, MODELS, SCHEDULERS, option_error

_IGNORED = {
    r"datasets\.([^.]+\.)+use_shuffle": "training data is always shuffled, validation data never",
    r"datasets\.([^.]+\.)+prefetch_mode": "batches are always prefetched by the loader's workers",
    r"datasets\.([^.]+\.)+persistent_workers": "the loader's workers live as long as the run",
    r"train\.mixing_augs": "the released training never mixes images",
    r"val\.metrics\.\w+\.input_order": "pictures are always height × width × channels",
    r"path\.ignore_resume_networks": "a training state holds all networks and resumes them all",
    r"find_unused_parameters": "every parameter takes part in every step",
}
"""Options that the release accepts and that have no effect here, and why."""

_REMOVE = {
    r"datasets\..*\.(mean|std)": "remove it: networks here see images in [0, 1]",
    r"datasets\.\w+\.(use_hflip|use_flip|use_rot|geometric_augs)": "remove it: patches are always "
    "flipped and turned at random",
    r"(datasets\.\w+|val)\.(rgb2bgr|use_image|color)": "remove it: images are RGB",
    r"datasets\.\w+\.(phase|crop_size_.*)": "remove it",
    r"val\.(window_size|max_minibatch|crop_size|grids)": "remove it; val.local restores in parts",
    r"train\.(use_amp|clip_grad)": "remove it; see train.precision, train.use_grad_clip",
    r"path\.root": "remove it: experiments/ and results/ are made where the program is started",
}
"""Options of other programs that would change the result, and what to do about them."""

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
    found: dict[str, str] = {}
    for place, value in places(content):
        for pattern, reason in _REMOVE.items():
            if re.fullmatch(pattern, place):
                found[place] = reason
        if place in _RENAME:
            found[place] = f"here it is {_RENAME[place]}"
        if place in _TYPES and isinstance(value, str) and value in _TYPES[place].elsewhere:
            found[place] = f"{value} is here {_TYPES[place].elsewhere[value]}"
    if len(found) == 1:
        raise option_error(*next(iter(found.items())))
    if found:
        lines = "\n  ".join(f"{place}: {reason}" for place, reason in found.items())
        raise option_error(
            "",
            f"this option file is of another program; what it says differs here:\n  {lines}\n"
            f"{OPTION_FILES}/baselines has files of this project for the published networks",
        )


def drop_ignored_options(content: dict[str, Any], prefix: str = "") -> list[str]:
    """Remove the release's options without effect, in place; a notice for each."""
    notices = []
    for key in list(content):
        place = f"{prefix}{key}"
        reasons = [r for pattern, r in _IGNORED.items() if re.fullmatch(pattern, place)]
        if reasons:
            del content[key]
            notices.append(f"{place} has no effect: {reasons[0]}")
        elif isinstance(content[key], dict):
            notices += drop_ignored_options(content[key], f"{place}.")
    return notices


def places(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The YAML path and value of every section and option."""
    for key, value in content.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from places(value, f"{prefix}{key}.")
