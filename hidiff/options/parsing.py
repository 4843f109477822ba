"""Option files: YAML → checked, typed options with all defaults filled in.

Every error names its file, its place in it and the way out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hidiff.options.datasets import SOURCE_RESUME_SAFE, DatasetOptions
from hidiff.options.fields import BuiltFrom, Section
from hidiff.options.foreign import drop_ignored_options, refuse_foreign_options
from hidiff.options.sections import Options, TrainOptions
from hidiff.options.yaml_file import apply_overrides, origin, read_yaml
from hidiff.registry import DATASETS, OptionError, StrictModel, inner_model, option_error, plain
from hidiff.utils.errors import UserError, expanded, suggestion

PATH_OPTIONS = re.compile(r"dataroot_\w+|meta_info_file|cache")
"""Options of a data set's `source` that are paths."""

_INTERNAL = {"sections", "notices", "overrides", "file"}
_SET_FIELDS = ("name", "weight")
_LOADER_FIELDS = tuple(
    key
    for key in DatasetOptions.model_fields
    if key not in ("source", "where", "weight", "mixture")
)


def _dataset(place: str, content: Any, fields: Sequence[str] = _LOADER_FIELDS) -> dict[str, Any]:
    """The arguments of `DatasetOptions`: its own `fields`, and all else as its `source`."""
    if not isinstance(content, Mapping):
        hint = ""
        if isinstance(content, list):
            hint = "; a mixture has sections with names: train: {photos: {type: …}, reds: {…}}"
        raise option_error(place, f"expected a section, got {type(content).__name__}{hint}")
    source = {
        key: expanded(value) if isinstance(value, str) and PATH_OPTIONS.fullmatch(key) else value
        for key, value in content.items()
        if key not in fields
    }
    own = {key: value for key, value in content.items() if key in fields and value is not None}
    return {"name": place.rpartition(".")[2], **own, "source": source, "where": place}


def _training_set(content: Any) -> dict[str, Any]:
    """`datasets.train`: one data set, or a mixture of those that have a section with `type`."""
    place = "datasets.train"
    sets: dict[str, Any] = {}
    if isinstance(content, Mapping) and content.get("type") is None:
        parts = {key: value for key, value in content.items() if isinstance(value, Mapping)}
        sets = {key: part for key, part in parts.items() if "type" in part and key != "io_backend"}
    if not sets:
        return _dataset(place, content)
    for key, value in content.items():
        known = [*_LOADER_FIELDS, *sets]
        if key not in known and value is not None:
            what = f"there is no such option of a mixture, whose sets are {', '.join(sets)}"
            raise option_error(f"{place}.{key}", f"{what}{suggestion(key, known)}")
    for key, part in sets.items():
        for option in set(part) & set(_LOADER_FIELDS) - {"name"}:
            message = f"the whole mixture has one '{option}'; move it to {place}"
            raise option_error(f"{place}.{key}.{option}", message)
    mixture = [_dataset(f"{place}.{key}", part, _SET_FIELDS) for key, part in sets.items()]
    if all(part.get("weight") == 0 for part in mixture):
        raise option_error(place, "every weight is 0, so nothing is left to train on; raise one")
    shared = {key: value for key, value in content.items() if key in _LOADER_FIELDS}
    return {"name": "train", **shared, "where": place, "mixture": mixture}


def _datasets(content: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of each of the `datasets`."""
    datasets = content.get("datasets") or {}
    if not isinstance(datasets, Mapping):
        raise option_error("datasets", f"expected sections train, val or test_1, got {datasets!r}")
    arguments = {}
    for key, value in datasets.items():
        place = f"datasets.{key}"
        if not re.fullmatch(r"train|val\w*|test\w*", str(key)):
            raise option_error(place, "a data set is called train, val or test_1, test_2, …")
        if value is not None:
            arguments[key] = _training_set(value) if key == "train" else _dataset(place, value)
    for kind in ("val", "test"):
        names: dict[str, str] = {}
        for key, section in arguments.items():
            if key.startswith(kind) and (other := names.setdefault(section["name"], key)) != key:
                raise option_error(
                    f"datasets.{key}.name",
                    f"'{section['name']}' is the name of datasets.{other} too; results go by it",
                )
    return arguments


def _resolved_dataset(section: DatasetOptions) -> DatasetOptions:
    """The section with the defaults of its source."""
    mixture = tuple(map(_resolved_dataset, section.mixture))
    source = section.source
    if not mixture:
        source = DATASETS.resolved(source, section.where, supplied=("where",))
    return section.model_copy(update={"source": source, "mixture": mixture})


def _written(section: DatasetOptions, fields: Sequence[str] = _LOADER_FIELDS) -> dict[str, Any]:
    """As it stands in an option file that leaves nothing out."""
    own = {key: getattr(section, key) for key in fields}
    sets = {part.where.rpartition(".")[2]: _written(part, _SET_FIELDS) for part in section.mixture}
    return {**own, **section.source, **sets}


def load_datasets(path: str | Path) -> dict[str, DatasetOptions]:
    """The `datasets` sections of an option file, whatever else is in it.

    Raises:
        UserError: the file is no YAML, or one of these sections is wrong.
    """
    content, _, origins = read_yaml(path)
    try:
        drop_ignored_options(content)
        return {
            key: DatasetOptions.checked(arguments, f"datasets.{key}")
            for key, arguments in _datasets(content).items()
        }
    except OptionError as error:
        raise UserError(f"{origin(error.place, origins) or path}: {error}") from None


def _resolved(section: StrictModel, place: str = "") -> dict[str, Any]:
    """The fields that classes are built from, and sections with such fields, with all defaults."""
    resolved: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        built = [mark for mark in field.metadata if isinstance(mark, BuiltFrom)]
        if isinstance(value, StrictModel):
            update = _resolved(value, f"{place}{key}.")
            resolved[key] = value.model_copy(update=update) if update else value
        elif built and value is not None:
            resolved[key] = built[0].resolved(value, f"{place}{key}")
    return resolved


def parse_options(content: dict[str, Any], *, file: Path = Path()) -> Options:
    """Check the content of an option file, and fill in what it leaves out.

    Args:
        content: sections as parsed from YAML; the release's ignored options are removed from it.
        file: where it came from.

    Raises:
        OptionError: an option is unknown, missing, of a wrong type or at odds with another.
    """
    refuse_foreign_options(content)
    notices = drop_ignored_options(content)
    known = set(Options.model_fields) - _INTERNAL
    for key in content:
        if key not in known:
            raise option_error(str(key), f"there is no such option{suggestion(str(key), known)}")
    options = Options.checked({**content, "datasets": _datasets(content)}, "")
    datasets = {key: _resolved_dataset(section) for key, section in options.datasets.items()}
    options = options.model_copy(update={**_resolved(options), "datasets": datasets})
    sections = {key: getattr(options, key) for key in sorted(known)}
    sections["datasets"] = {key: _written(section) for key, section in datasets.items()}
    sections = plain({key: value for key, value in sections.items() if value is not None})
    if options.train is not None:
        # Which losses a model has without these options is the model's to say.
        for key in TrainOptions.model_fields:
            if key.endswith("_opt") and key not in content["train"]:
                del sections["train"][key]
        if "train" in datasets:
            notices += datasets["train"].phase_notices(options.train.total_iter)
    return options.model_copy(
        update={"sections": sections, "notices": tuple(notices), "file": file}
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
    content, notices, origins = read_yaml(path)
    apply_overrides(content, overrides, origins)
    try:
        options = parse_options(content, file=Path(path))
    except OptionError as error:
        raise UserError(f"{origin(error.place, origins) or path}: {error}") from None
    notices += [f"set on the command line: {override}" for override in overrides]
    return options.model_copy(
        update={"notices": (*notices, *options.notices), "overrides": tuple(overrides)}
    )


def flatten(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train': {'total_iter': 5}} → {'train.total_iter': 5}."""
    flat: dict[str, Any] = {}
    for key, value in sections.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _marked(place: str, mark: str) -> bool:
    """Whether the option at a YAML path, or a section around it, has a mark."""
    outer, *inner = place.split(".")
    default = mark == "affects_scores"
    if outer == "datasets":
        return _dataset_marked(inner[0], inner[1:], mark)
    model: Any = Options
    for key in (outer, *inner):
        field = model.model_fields.get(key) if model is not None else None
        if field is None:
            break
        if field.json_schema_extra[mark] != default:
            return not default
        model = inner_model(model, key)
    return default


def _dataset_marked(kind: str, keys: Sequence[str], mark: str) -> bool:
    """The same of `datasets.{kind}.{keys}`: training never scores, tests never train."""
    if mark == "resume_safe" and kind != "train":
        return True
    if mark == "affects_scores" and not kind.startswith("test"):
        return False
    for key in keys:
        if key in (*_LOADER_FIELDS, "weight"):
            marks: Any = DatasetOptions.model_fields[key].json_schema_extra
            return marks[mark]
        if mark == "resume_safe" and SOURCE_RESUME_SAFE.fullmatch(key):
            return True
    return mark == "affects_scores" and keys[-1] != "cache"


def compare_options(before: Section, now: Section) -> tuple[list[str], list[str]]:
    """What differs between the `sections` of two runs of one training.

    Returns:
        "option: old → new" of those that change the weights that it ends with, and of those that
        do not.
    """
    old, new = flatten(before), flatten(now)
    deciding: list[str] = []
    harmless: list[str] = []
    for place in sorted({*old, *new}):
        if old.get(place) != new.get(place):
            line = f"{place}: {old.get(place, 'absent')} → {new.get(place, 'absent')}"
            (harmless if _marked(place, "resume_safe") else deciding).append(line)
    return deciding, harmless


def score_options(sections: Section) -> dict[str, Any]:
    """The options that decide the scores of a test, by YAML path."""
    return {k: v for k, v in flatten(sections).items() if _marked(k, "affects_scores")}
