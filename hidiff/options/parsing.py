"""Option files: YAML → checked, typed options with all defaults filled in.

A section that names a registered class (`type: X`) is checked against X's signature. Every error
names its place in the file and the way out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidiff.diffusion import LatentDDPM
from hidiff.options.sections import (
    DatasetOptions,
    DistOptions,
    LoggerOptions,
    Options,
    PathOptions,
    Section,
    TrainOptions,
    ValOptions,
    error,
)
from hidiff.options.yaml_file import apply_overrides, merged, read_layers, read_yaml
from hidiff.registry import ARCHS, DATASETS, LOSSES, METRICS, OPTIMIZERS, SCHEDULERS, Registry
from hidiff.utils.errors import UserError, expanded, suggestion
from hidiff.utils.typecheck import check_call, plain

DEAD_OPTIONS = {
    r"datasets\.[^.]+\.use_shuffle": "training data is always shuffled, validation data never",
    r"datasets\.[^.]+\.prefetch_mode": "batches are always prefetched by the loader's workers",
    r"datasets\.[^.]+\.persistent_workers": "the loader's workers always live as long as the run",
    r"train\.mixing_augs": "the released training never mixes images",
    r"val\.metrics\.\w+\.input_order": "pictures are always height × width × channels",
    r"path\.ignore_resume_networks": "a training state holds all networks and resumes them all",
    r"find_unused_parameters": "every parameter takes part in every step",
}
"""Options that the release accepts and that have no effect here, and why."""

PATH_OPTIONS = r"dataroot_\w+|meta_info_file|cache"
"""Options of a data set's `source` that are paths."""

_NOT_OF_THE_LOADER = ("source", "where", "weight", "mixture")
_LOADER_FIELDS = [
    f.name for f in dataclasses.fields(DatasetOptions) if f.name not in _NOT_OF_THE_LOADER
]
_MIXTURE_FIELDS = ("name", "weight")
"""What an entry of a mixture says beside its `source`; the rest stands in the first one only."""

_INTERNAL_FIELDS = {"sections", "notices", "overrides", "file"}
_LOSS_OPTIONS = ("pixel_opt", "pixel_diff_opt", "perceptual_opt", "edge_opt", "frequency_opt")
_TYPES: dict[str, tuple[Registry, tuple[str, ...]]] = {
    "network_g": (ARCHS, ()),
    "network_le": (ARCHS, ()),
    "network_le_dm": (ARCHS, ()),
    "network_d": (ARCHS, ()),
    "train.optim_total": (OPTIMIZERS, ("params",)),
    "train.scheduler": (SCHEDULERS, ("base_lr", "total_iter")),
    **{f"train.{option}": (LOSSES, ()) for option in _LOSS_OPTIONS},
}
"""Sections that name a class by `type`: where they stand, and what the program adds itself."""

_SECTION_CLASSES = {
    "path": PathOptions,
    "train": TrainOptions,
    "val": ValOptions,
    "logger": LoggerOptions,
    "dist_params": DistOptions,
}


def _checked(cls: type, content: Any, where: str, supplied: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of a section's dataclass, with their defaults."""
    if not isinstance(content, Mapping):
        raise error(where, f"expected a section, got {content!r}")
    return check_call(cls, content, where, supplied=supplied)


def _dataset(key: str, content: Any, entry: int | None = None) -> DatasetOptions:
    """A section of `datasets`, or the entry of a mixture."""
    where = f"datasets.{key}" if entry is None else f"datasets.{key}[{entry}]"
    if not isinstance(content, Mapping):
        raise error(where, f"expected a section, got {content!r}")
    known = _LOADER_FIELDS if entry is None else (*_LOADER_FIELDS, *_MIXTURE_FIELDS)
    loader = {"name": key, **{k: v for k, v in content.items() if k in known}}
    source = {
        k: expanded(v) if isinstance(v, str) and re.fullmatch(PATH_OPTIONS, k) else v
        for k, v in content.items()
        if k not in known
    }
    supplied = [name for name in _NOT_OF_THE_LOADER if name not in known]
    return DatasetOptions(
        **_checked(DatasetOptions, loader, where, supplied), source=source, where=where
    )


def _training_set(content: Any) -> DatasetOptions:
    """`datasets.train`, a section or the list of those that are mixed."""
    if not isinstance(content, list):
        return _dataset("train", content)
    if not content:
        raise error("datasets.train", "expected a section or a list of sections, got []")
    entries = tuple(_dataset("train", part, index) for index, part in enumerate(content))
    for entry, part in zip(entries[1:], content[1:], strict=True):
        for key in part:
            if key in _LOADER_FIELDS and key not in _MIXTURE_FIELDS:
                raise error(
                    f"{entry.where}.{key}",
                    f"the whole mixture has one '{key}', which stands in its first entry, "
                    f"{entries[0].where}; move it there",
                )
    if not any(entry.weight for entry in entries):
        raise error(
            "datasets.train", "every weight is 0, so nothing is left to train on; raise one"
        )
    return dataclasses.replace(entries[0], mixture=entries)


def _resolved(section: DatasetOptions) -> DatasetOptions:
    """The section with the defaults of its source."""
    return dataclasses.replace(
        section,
        source=DATASETS.resolved(section.source, section.where, supplied=("where",)),
        mixture=tuple(map(_resolved, section.mixture)),
    )


def _written(section: DatasetOptions) -> Section | list[Section]:
    """As it stands in an option file that leaves nothing out."""
    if section.mixture:
        first, *others = (
            {**{name: getattr(entry, name) for name in _MIXTURE_FIELDS}, **entry.source}
            for entry in section.mixture
        )
        return [{**{name: getattr(section, name) for name in _LOADER_FIELDS}, **first}, *others]
    return {**{name: getattr(section, name) for name in _LOADER_FIELDS}, **section.source}


def _drop_dead_options(content: dict[str, Any], where: str = "") -> list[str]:
    """Remove the release's dead options, in place; a notice for each."""
    notices = []
    for key in list(content):
        place = f"{where}{key}"
        inner = content[key] if isinstance(content[key], list) else ()
        reason = next((r for p, r in DEAD_OPTIONS.items() if re.fullmatch(p, place)), None)
        if reason is not None:
            del content[key]
            notices.append(f"{place} has no effect: {reason}")
        elif isinstance(content[key], dict):
            notices += _drop_dead_options(content[key], f"{place}.")
        for index, section in enumerate(inner):
            if isinstance(section, dict):
                notices += _drop_dead_options(section, f"{place}[{index}].")
    return notices


def _datasets(content: Mapping[str, Any]) -> dict[str, DatasetOptions]:
    datasets = content.get("datasets") or {}
    if not isinstance(datasets, Mapping):
        raise error("datasets", f"expected sections train, val or test_1, got {datasets!r}")
    for key in datasets:
        if not re.fullmatch(r"train|val\w*|test\w*", str(key)):
            raise error(f"datasets.{key}", "a data set is called train, val or test_1, test_2, …")
    checked = {
        key: _training_set(value) if key == "train" else _dataset(key, value)
        for key, value in datasets.items()
        if value is not None
    }
    for kind in ("val", "test"):
        names: dict[str, str] = {}
        for key, section in checked.items():
            if key.startswith(kind) and (other := names.setdefault(section.name, key)) != key:
                raise error(
                    f"datasets.{key}.name",
                    f"'{section.name}' is the name of datasets.{other} too; results go by it",
                )
    return checked


def load_datasets(path: str | Path) -> dict[str, DatasetOptions]:
    """The `datasets` sections of an option file, whatever else is in it.

    Raises:
        UserError: the file is no YAML, or one of these sections is wrong.
    """
    content, _ = read_yaml(path)
    _drop_dead_options(content)
    return _datasets(content)


def _resolve_types(sections: dict[str, Any]) -> None:
    """Check the sections that a class is built from, and fill in its defaults, in place."""
    for place, (registry, supplied) in _TYPES.items():
        outer, _, key = place.rpartition(".")
        section = sections.get(outer, {}) if outer else sections
        if section.get(key) is not None:
            section[key] = registry.resolved(section[key], place, supplied=supplied)
    val = sections["val"]
    val["metrics"] = {
        name: METRICS.resolved(
            {key: value for key, value in section.items() if key != "better"},
            f"val.metrics.{name}",
            supplied=("restored", "target"),
        )
        | {"better": section.get("better", "higher")}
        for name, section in val["metrics"].items()
    }
    if sections["diffusion_schedule"] is not None:
        sections["diffusion_schedule"] = check_call(
            LatentDDPM, sections["diffusion_schedule"], "diffusion_schedule", label="the schedule"
        )


def parse_options(content: dict[str, Any], *, file: Path = Path()) -> Options:
    """Check the content of an option file, and fill in what it leaves out.

    Args:
        content: sections as parsed from YAML; the release's dead options are removed from it.
        file: where it came from.

    Raises:
        UserError: an option is unknown, missing, of a wrong type or at odds with another.
    """
    notices = _drop_dead_options(content)
    known = {f.name for f in dataclasses.fields(Options)} - _INTERNAL_FIELDS
    for key in content:
        if key not in known:
            raise error(str(key), f"there is no such option{suggestion(str(key), known)}")
    datasets = {key: _resolved(section) for key, section in _datasets(content).items()}
    apart = {*_SECTION_CLASSES, "datasets"}
    rest = {key: value for key, value in content.items() if key not in apart}
    sections = check_call(Options, rest, "", supplied=apart | _INTERNAL_FIELDS)
    for key, cls in _SECTION_CLASSES.items():
        section = content.get(key)
        if section is not None or key != "train":
            sections[key] = _checked(cls, {} if section is None else section, key)
    _resolve_types(sections)
    built = {key: cls(**sections[key]) for key, cls in _SECTION_CLASSES.items() if key in sections}
    options = Options(**{**sections, **built}, datasets=datasets)
    for key in _LOSS_OPTIONS:
        # Which losses a model has without these options is the model's to say.
        if options.train is not None and key not in content["train"]:
            del sections["train"][key]
    sections["datasets"] = {key: _written(section) for key, section in datasets.items()}
    if options.train is not None and "train" in datasets:
        notices += datasets["train"].phase_notices(options.train.total_iter)
    return dataclasses.replace(
        options,
        sections=plain({key: value for key, value in sections.items() if value is not None}),
        notices=tuple(notices),
        file=file,
    )


def load_options(path: str | Path, overrides: Sequence[str] = ()) -> Options:
    """Read and check an option file.

    Args:
        path: the YAML file.
        overrides: `section:option=value` texts of `--force_yml`.

    Raises:
        UserError: see `parse_options` and `read_yaml`; the message begins with the file that the
            wrong option stands in.
    """
    layers, notices = read_layers(path)
    content = merged(layers)
    apply_overrides(content, overrides)
    try:
        options = parse_options(content, file=Path(path))
    except UserError as error:
        chosen: dict[str, Any] = {}
        for place, equals, value in (override.partition("=") for override in overrides):
            # There are no lists yet; their sections go by their numbers here.
            apply_overrides(chosen, [re.sub(r"\[(\d+)\]", r".\1", place) + equals + value])
        raise UserError(
            f"{_origin(str(error), {'--force_yml': chosen, **layers})}{error}"
        ) from None
    notices += [f"set on the command line: {override}" for override in overrides]
    return dataclasses.replace(
        options, notices=(*notices, *options.notices), overrides=tuple(overrides)
    )


def _origin(message: str, layers: Mapping[Any, Section]) -> str:
    """The layer, and ': ', that the option at the beginning of a message stands in; '' if none."""
    place = re.findall(r"[^.\[\]]+", message.partition(":")[0])
    for file, content in layers.items():
        found: Any = content
        for key in place:
            if isinstance(found, list):
                found = dict(enumerate(found)).get(int(key), layers) if key.isdecimal() else layers
            else:
                found = found.get(key, layers) if isinstance(found, Mapping) else layers
        if found is not layers:
            return f"{file}: "
    return ""


def flatten(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train': {'total_iter': 5}} → {'train.total_iter': 5}; lists of sections are [0], [1], …"""
    flat: dict[str, Any] = {}
    for key, value in sections.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, section in enumerate(value):
                flat |= flatten(section, f"{prefix}{key}[{index}].")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
