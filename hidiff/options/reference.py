"""The reference of all options, made of the models that check them: `docs/options.md`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hidiff.options.datasets import DatasetOptions
from hidiff.options.sections import Options
from hidiff.registry import (
    ARCHS,
    DATASETS,
    DIFFUSIONS,
    LOSSES,
    METRICS,
    MODELS,
    OPTIMIZERS,
    SCHEDULERS,
    StrictModel,
    arguments_model,
    inner_model,
)

_SUPPLIED = frozenset({"where", "params", "base_lr", "total_iter", "restored", "target"})
_HIDDEN = ("sections", "notices", "overrides", "file", "source", "where", "mixture")
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true/false", Path: "path"}

INTRODUCTION = """# All options

Written by `hidiff options --reference` from the models that check option files. An option file is
YAML; `hidiff options` lists those of this project and `hidiff options NAME -o FILE` copies one.
`base: OTHER.yml` takes over another file, `--force_yml section:option=value` sets single options.
"yes" under *resume* means that a training can be resumed with another value and ends with the same
weights.

In a mixture `datasets.train` has a section for each set, which holds `type`, the options of that
class, and `weight`, its share of the samples (1 where nothing is said, 0 switches it off):

    datasets:
      train:
        gt_size: 256
        batch_size_per_gpu: 8
        photos: {type: SyntheticBlurDataset, dataroot_gt: PHOTOGRAPHS, weight: 2}
        reds: {type: PairedImageIRDataset, dataroot_lq: BLURRY, dataroot_gt: SHARP}
"""


def _type(annotation: Any) -> str:
    """A type in words of option files."""
    if annotation in _NAMES:
        return _NAMES[annotation]
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, parts))
    if get_origin(annotation) is tuple:
        return "list"
    if inspect.isclass(annotation) and issubclass(annotation, StrictModel):
        return "section"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _type(parts[0])
    known = [_type(part) for part in parts if part is not NoneType]
    return (
        " or ".join(dict.fromkeys(known))
        if known and get_origin(annotation) is not dict
        else ("section")
    )


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if default is None or isinstance(default, StrictModel) or default in ({}, ()):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _rows(model: type[StrictModel]) -> Iterator[str]:
    yield "| option | type | default | resume | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        if name not in _HIDDEN:
            marks: Any = field.json_schema_extra
            kind = "section" if "Mapping" in str(field.annotation) else _type(field.annotation)
            safe = "yes" if marks["resume_safe"] else ""
            cells = (f"`{name}`", kind, _default(field), safe, field.description or "")
            yield f"| {' | '.join(cells)} |"


def _sections(model: type[StrictModel], place: str) -> Iterator[str]:
    yield from ("", f"## {place or 'The file'}", "", *_rows(model))
    for name in model.model_fields:
        inner = inner_model(model, name)
        if inner is not None and name not in _HIDDEN:
            inner_place = (
                "datasets.NAME" if inner is DatasetOptions else f"{place}.{name}".strip(".")
            )
            yield from _sections(inner, inner_place)


def _entries(title: str, registry: Any) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    for name in registry:
        entry = registry.get(name, name)
        about = (inspect.getdoc(entry) or "").split("\n\n")[0].replace("\n", " ")
        known = []
        for key, field in arguments_model(entry, _SUPPLIED).model_fields.items():
            default = re.sub(r"<.*>", "", _default(field))
            known.append(f"{key} {default}".rstrip())
        listed = f" Options: {', '.join(known)}." if known and registry is not MODELS else ""
        yield f"- **{name}**{': ' + about if about else ''}{listed}"


def reference() -> str:
    """All options with their types, defaults and meanings, in Markdown."""
    lines = [*_sections(Options, "")]
    for title, registry in (
        ("`model_type`", MODELS),
        ("`network_*`", ARCHS),
        ("`datasets.*.type`", DATASETS),
        ("`diffusion_schedule`", DIFFUSIONS),
        ("Losses, `train.*_opt`", LOSSES),
        ("Metrics, `val.metrics.*`", METRICS),
        ("`train.optim_total`", OPTIMIZERS),
        ("`train.scheduler`", SCHEDULERS),
    ):
        lines += _entries(title, registry)
    return INTRODUCTION + "\n".join(lines) + "\n"
