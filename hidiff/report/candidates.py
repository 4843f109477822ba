"""What is compared, and on what: models and folders of pictures by label, and a data set."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidiff.data.decode import EXTENSIONS
from hidiff.data.image import list_images
from hidiff.data.pairs import SIDES
from hidiff.models import DeblurModel, build_model
from hidiff.options import (
    DatasetOptions,
    LocalMode,
    Options,
    Precision,
    load_datasets,
    load_options,
    parse_options,
)
from hidiff.restore.run import local_options
from hidiff.utils.errors import UserError, expanded, missing, suggestion
from hidiff.weights.experiment import MODEL_SUFFIX as SUFFIX
from hidiff.weights.find import load_model
from hidiff.weights.start import load_pretrained

OPTION_FILES = (".yml", ".yaml")

PARTS = ("test", "val", "train")
"""Names of folders that are parts of a data set, which goes by the name of the folder above."""


@dataclass(frozen=True)
class Asked:
    """The arguments of a comparison.

    Args:
        models: by label, see `open_candidate`.
        data: see `find_data`.
        name: of the comparison; its files are in `results/{name}`, those of each model's test in
            `results/{name}_{label}`.
        protocol: one of `hidiff.metrics.PROTOCOLS`.
        baseline: label of the model that the others are compared with.
        local, precision: by label, where it is not the model's own.
        size, overlap: of the local mode, see `hidiff.restore.run.local_options`.
        repeats: how often the restoring of an image is timed; 0 for never.
        pictures: images to show from each end of a pair's differences.
        resamples: of the bootstrap.
        seed: of the bootstrap, and of the noise that images are restored from.
    """

    models: Mapping[str, str]
    data: DatasetOptions
    name: str
    protocol: str
    baseline: str
    local: Mapping[str, LocalMode] = field(default_factory=dict)
    precision: Mapping[str, Precision] = field(default_factory=dict)
    size: int | None = None
    overlap: int | None = None
    repeats: int = 3
    pictures: int = 1
    resamples: int = 10000
    seed: int = Options.manual_seed

    def test_name(self, label: str) -> str:
        """The name of a model's test, which is that of its folder in `results`."""
        return f"{self.name}_{file_name(label)}"


@dataclass(frozen=True)
class Candidate:
    """A model that is ready to restore, or a folder of pictures that are restored already.

    Args:
        description: what it is and where it is from.
        options: of its test; None for pictures.
        model: with its weights, on the CPU; None for pictures.
        pictures: files by name; empty for a model.
    """

    description: str
    options: Options | None = None
    model: DeblurModel | None = None
    pictures: Mapping[str, Path] = field(default_factory=dict)


def file_name(text: str) -> str:
    """The text with `_` for what is not for names of files."""
    return re.sub(r"[^\w.+-]", "_", text)


def default_label(source: str) -> str:
    """What a model or a folder is called that was given no label.

    Pictures that test.py has written go by the name of its results.
    """
    path = Path(source.rstrip("/"))
    if path.parent.name == "visualization":
        return path.parent.parent.name
    if (options := Path(source.partition("@")[0])).suffix in OPTION_FILES:
        return options.stem
    return path.stem if path.suffix == SUFFIX else path.name


def parse_models(texts: Iterable[str]) -> dict[str, str]:
    """`[LABEL=]MODEL` arguments by label.

    Raises:
        UserError: one is empty, or two go by the same label.
    """
    models: dict[str, str] = {}
    for text in texts:
        label, sign, source = text.partition("=")
        if not sign or Path(expanded(text)).exists():
            label, source = default_label(text), text
        if not label or not source:
            raise UserError(f"'{text}': expected MODEL or LABEL=MODEL")
        # Labels become names of folders, some of which know no upper and lower case.
        for other in models:
            if file_name(other).casefold() == file_name(label).casefold():
                raise UserError(
                    f"{text}: two models are called '{label}', this one and {models[other]}; give "
                    f"one of them another name: NAME={source}"
                )
        models[label] = source
    return models


def by_label(
    texts: Iterable[str], labels: Collection[str], choices: Collection[str], option: str
) -> dict[str, Any]:
    """`[LABEL=]VALUE` arguments as values by label; without a label the value is that of all.

    Raises:
        UserError: there is no such label or value.
    """
    found: dict[str, str] = {}
    for text in sorted(texts, key=lambda text: "=" in text):
        label, sign, value = text.rpartition("=")
        if sign and label not in labels:
            advice = suggestion(label, labels)
            raise UserError(f"{option} {text}: no model is called '{label}'{advice}")
        if value not in choices:
            raise UserError(f"{option} {text}: there is no '{value}'{suggestion(value, choices)}")
        found |= dict.fromkeys([label] if sign else labels, value)
    return found


def find_data(place: str, name: str | None = None) -> DatasetOptions:
    """The data set that `--data` names.

    Args:
        place: a folder with folders of blurry and of sharp images, see `SIDES`; or an option file,
            whose test set is taken, or where it has none that of the validation.
        name: of an option file the name of the set to take; of a folder what to call it, by
            default as the folder is called.

    Raises:
        UserError: there is no such data set, or there are several.
    """
    path = Path(expanded(place))
    return _from_file(path, name) if path.suffix in OPTION_FILES else _from_folder(path, name)


def _from_folder(folder: Path, name: str | None) -> DatasetOptions:
    if not folder.is_dir():
        raise UserError(f"--data: {missing(folder)}")
    roots = [[folder / side for side in sides] for sides in SIDES]
    found = next((pair for pair in roots if all(side.is_dir() for side in pair)), None)
    if found is None:
        known = ", ".join(" and ".join(sides) for sides in SIDES)
        inner = next((f"; did you mean {folder / p}?" for p in PARTS if (folder / p).is_dir()), "")
        raise UserError(
            f"--data: {folder} has no pairs; they lie in two folders beside each other ({known}), "
            f"which hold images of the same names{inner}"
        )
    place = folder.resolve()
    called = place.parent.name if place.name in PARTS else place.name
    source = {"type": "PairedImageIRDataset"}
    source |= {f"dataroot_{key}": str(root) for key, root in zip(("lq", "gt"), found, strict=True)}
    return DatasetOptions(name=name or file_name(called), source=source, where="--data")


def _from_file(file: Path, name: str | None) -> DatasetOptions:
    sections = load_datasets(file)
    of_kind = [[s for key, s in sections.items() if key.startswith(k)] for k in ("test", "val")]
    sets = {section.name: section for section in of_kind[0] or of_kind[1]}
    if name is None and len(sets) != 1:
        has = f"has {', '.join(sets)}; choose one with --dataset" if sets else "has no test_1"
        raise UserError(f"--data: {file} {has}")
    if name is not None and name not in sets:
        raise UserError(f"--dataset: {file} has no data set '{name}'{suggestion(name, sets)}")
    return sets[name] if name else next(iter(sets.values()))


def open_candidate(asked: Asked, label: str) -> Candidate:
    """Read a model, or list a folder of pictures.

    A model is what `hidiff.weights.find` knows, or an option file, which is read as test.py reads
    it; behind an `@` stand the weights, if it does not name them itself.

    Raises:
        UserError: there is no such model, or it is damaged, or sees the sharp image; a number of
            the local mode cannot be.
    """
    source = asked.models[label]
    place = Path(expanded(source))
    if _has_pictures(place):
        return Candidate(f"pictures in {source}", pictures=list_images(place, label))
    shown = sorted((place / "visualization").glob("*"))
    if shown and not (place / "models").is_dir():
        raise UserError(
            f"{source} has results of test.py; name the pictures of one data set: {shown[0]}"
        )
    file, _, weights = source.partition("@")
    if Path(file).suffix in OPTION_FILES:
        return _from_options(asked, label, Path(expanded(file)), weights)
    loaded = load_model(source)
    options = _options(asked, label, loaded.options, loaded.patch_size)
    return Candidate(loaded.description, options, loaded.model)


def _has_pictures(folder: Path) -> bool:
    """Whether it is a folder of images and holds no weights."""
    ends = {file.suffix.lower() for file in folder.iterdir()} if folder.is_dir() else set()
    return not ends.isdisjoint(EXTENSIONS) and ends.isdisjoint((SUFFIX, ".pth"))


def _from_options(asked: Asked, label: str, file: Path, weights: str) -> Candidate:
    """The model of an option file."""
    packed = Path(weights).suffix == SUFFIX or not Path(expanded(weights)).is_file()
    key = "weights" if packed else "pretrain_network_g"
    found = load_options(file, [f"path.{key}={weights}"] if weights else [])
    known = [s for key, s in found.datasets.items() if key != "train"] or [*found.datasets.values()]
    patch_size = known[0].gt_size if known else None
    options = _options(asked, label, found.sections, patch_size)
    model = build_model(options.sections, training=False)
    if model.restores_from_gt:
        raise UserError(
            f"{file}: a model of stage 1, whose encoder sees the sharp image, restores nothing "
            "that could be compared; take one of stage 2"
        )
    load_pretrained(model, options, training=False)
    place = weights or "the weights that it names"
    description = f"{options.model_type} of {file}, {place}"
    return Candidate(description, options, model.eval())


def _options(
    asked: Asked,
    label: str,
    sections: Mapping[str, Any],
    patch_size: int | None,
) -> Options:
    """The options of a model's test: its own, on the data and with the scores of all."""
    val = {**sections.get("val", {}), "protocol": asked.protocol, "save_img": True, "suffix": ""}
    if label in asked.local:
        local = local_options(
            asked.local[label], size=asked.size, overlap=asked.overlap, patch_size=patch_size
        )
        val["local"] = dataclasses.asdict(local)
    if label in asked.precision:
        val["precision"] = asked.precision[label]
    data = {"name": asked.data.name, **asked.data.source}
    kept = {key: value for key, value in sections.items() if key != "train"}
    return parse_options(
        {
            **kept,
            "name": asked.test_name(label),
            "manual_seed": asked.seed,
            "datasets": {"test_1": data},
            "val": val,
        }
    )
