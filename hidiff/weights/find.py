"""The one finder of models, for every command and option that takes one.

NAME, NAME@best, NAME@12000     an experiment's newest model, that of the validation with the best
                                score, or that of a step; NAME is its name or its folder
FILE.safetensors                a model file, see `hidiff.weights.model_file`
FILE.pth, FOLDER                published weights of a network that this project has
FOLDER                          one with a model file, or with net_g.pth and its like and, where
                                there is one, their option file
gopro, dmphn, …                 what `hidiff download` has brought
bundled                         the trained model that comes with the package
hf:OWNER/NAME[/PLACE][@VERSION] any of these in a repository of the Hugging Face Hub
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from hidiff.models import DeblurModel
from hidiff.options import Options, load_options
from hidiff.utils.errors import UserError, expanded, missing, suggestion
from hidiff.utils.memory import keep_freed_memory
from hidiff.weights.experiment import (
    EXPERIMENTS,
    MODEL_SUFFIX,
    downloaded_model,
    downloaded_models,
    models_by_step,
)
from hidiff.weights.hub import HUB, fetch_from_hub
from hidiff.weights.model_file import (
    ModelFile,
    build_from,
    is_model_file,
    model_sections,
    read_model_file,
)
from hidiff.weights.published import (
    PART,
    SUFFIXES,
    infer_sections,
    load_published,
    load_weights,
    network_files,
)
from hidiff.weights.tensors import Weights
from hidiff.weights.validations import best_step

BUNDLED = Path(__file__).with_name(f"bundled{MODEL_SUFFIX}")
"""The trained model that comes with the package; where nothing else is called so, its stem is its
name."""


@dataclass(frozen=True)
class FoundModel:
    """A model with its weights, and what is known about it.

    Args:
        model: in evaluation mode, on the CPU, the weights in the dtype that they are stored in.
        options: the sections that it was built from: `model_type`, `network_*`,
            `diffusion_schedule`.
        name: of the experiment, folder or file.
        place: where it was found.
        step, total_iter, patch_size, data, scores, licence, source, versions: see
            `hidiff.weights.model_file.About`.
        sha256: of the model file; None where it is of published files.
        published: whether it is of somebody else's file, which says nothing about it.
        folder: of the experiment; None where it is none.
        notices: what the user must know.
    """

    model: DeblurModel
    options: Mapping[str, Any]
    name: str
    place: str
    step: int | None = None
    total_iter: int | None = None
    patch_size: int | None = None
    data: Mapping[str, Any] | None = None
    scores: Sequence[Mapping[str, Any]] = ()
    licence: str | None = None
    source: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None
    published: bool = False
    folder: Path | None = None
    notices: tuple[str, ...] = ()

    @property
    def restoring(self) -> dict[str, nn.Module]:
        """The networks that restoring needs."""
        networks = self.model.networks()
        if not self.model.restores_from_gt:
            networks.pop("net_le", None)
        return networks

    @property
    def description(self) -> str:
        """What it is and where it is from, on one line."""
        networks = self.restoring.values()
        parameters = sum(p.numel() for network in networks for p in network.parameters()) / 1e6
        title = getattr(self.model.net_g, "title", type(self.model.net_g).__name__)
        step = "" if self.step is None else f", step {self.step}"
        if self.model.restores_from_gt:
            title += ", stage 1"
        origin = "published weights" if self.published or self.source else f"from {self.place}"
        return f"{title}, {parameters:.3g} M parameters{step}, {origin}"


@dataclass(frozen=True)
class Place:
    """A file or folder with weights, and which of several.

    Args:
        path: the file or folder.
        which: what stands behind an `@`: 'best', a step, or ''.
    """

    path: Path
    which: str = ""

    def __str__(self) -> str:
        return f"{self.path}@{self.which}" if self.which else str(self.path)


@dataclass(frozen=True)
class FoundWeights:
    """The weights of several networks, and what lies beside them.

    Args:
        place: where they were found.
        weights: by network, the averaged ones where an average is kept and validation uses it.
        about: what is known, as arguments of `FoundModel`.
        file: the model file; None where they are published files.
    """

    place: Place
    weights: dict[str, Weights]
    about: dict[str, Any]
    file: ModelFile | None = None


def load_model(text: str | Path, *, device: str | torch.device = "cpu") -> FoundModel:
    """Find, read and check a model, and make it ready to restore on a device.

    On a CPU the process keeps the memory that it frees from now on, without which half of the time
    of restoring is spent on asking for it again.

    Args:
        text: see above.
        device: where the model is to be.

    Raises:
        UserError: see `find_model`; there is no such device; or the model is of stage 1, which
            needs the sharp image.
    """
    found = find_model(text)
    if found.model.restores_from_gt:
        raise UserError(
            f"{found.place}: this model is of stage 1, whose encoder needs the sharp image; to "
            "restore photographs, take one of stage 2"
        )
    try:
        found.model.to(device, torch.get_default_dtype())
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device}: {str(error).splitlines()[0]}") from None
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    return found


def find_model(text: str | Path, *, training: bool = False) -> FoundModel:
    """Find, read and check a model of any stage.

    Args:
        text: see above.
        training: with the networks that only training needs; without it they are there where the
            file has them.

    Raises:
        UserError: there is no such model; a file is missing, damaged or of another configuration;
            or `training`, and a network that it needs is not there.
    """
    found = find_weights(text)
    about = dict(found.about)
    sections, notices = about.pop("options", None), list(about.pop("notices", ()))
    if sections is None:
        sections, more = infer_sections(found.weights, str(found.place))
        notices += more
    model = build_from(sections, found.weights, str(found.place))
    notices += [notice for part in found.weights.values() for notice in part.notices]
    if training and "net_le" in model.from_stage1 and "net_le" not in model.networks():
        raise UserError(
            f"{found.place}: training needs net_le too, the encoder of stage 1, which is not "
            "there; take the experiment, or pack it again with --for-training"
        )
    return FoundModel(
        model.eval().requires_grad_(False),
        model_sections(sections),
        place=str(found.place),
        published=found.file is None,
        sha256=None if found.file is None else found.file.sha256,
        notices=tuple(notices),
        **about,
    )


def find_weights(text: str | Path) -> FoundWeights:
    """Find and read the weights that a text names, without a model for them.

    Raises:
        UserError: see `find_model`.
    """
    place = locate(text)
    path = place.path
    if path.is_dir():
        return _from_folder(place)
    if place.which:
        raise UserError(f"{place}: a file has no steps; leave out @{place.which}")
    if is_model_file(path):
        return _from_model_file(place, path)
    if path.suffix in SUFFIXES:
        called = re.fullmatch(r"(net_(?:g|le_dm|le|d))(_\w+)?", path.stem)
        weights = load_published(path, called[1] if called else "net_g")
        return FoundWeights(place, weights, {"name": path.stem})
    raise UserError(f"{path}: {_what_it_is(path)}")


def _what_it_is(path: Path) -> str:
    """Of a file that holds no weights, what it is and what to do."""
    if path.suffix == ".state":
        return "a training state; name the experiment, or a file in its folder models"
    if path.suffix not in (".yml", ".yaml"):
        return f"no model; its name should end in {', '.join(SUFFIXES)}"
    try:
        name = yaml.safe_load(path.read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return "an option file, not a model; name an experiment, a file or a folder with weights"
    return f"an option file, not a model; the experiment that it describes is called {name}"


def default_model() -> tuple[str, str]:
    """The model that `restore` takes where none is named, and words about it.

    Downloaded weights come first, then the model that comes with the package. What is trained here
    is never taken unasked.
    """
    for name in downloaded_models():
        if name == "stage1":  # It needs the sharp image.
            continue
        return name, f"no model was named: the downloaded {name} is taken; -m NAME takes another"
    return BUNDLED.stem, (
        "no model was named: the bundled one is taken, a small network that removes slight blur; "
        "`hidiff download gopro` brings the authors' model, which removes much larger blur"
    )


def locate(text: str | Path) -> Place:
    """The file or folder that a text names.

    Raises:
        UserError: there is none.
    """
    text = str(text)
    if text.startswith(HUB):
        return Place(fetch_from_hub(text))
    text = expanded(text)
    base, _, which = text.rpartition("@")
    for name, step in ((text, ""), (base, which)):
        for path in (EXPERIMENTS / name, Path(name)):
            if name and path.exists():
                if not re.fullmatch(r"|best|\d+", step):
                    raise UserError(f"{text}: after @ stands best, or the number of a step")
                return Place(path, step)
    if text in downloaded_models():
        return Place(downloaded_model(text))
    if text == BUNDLED.stem and BUNDLED.is_file():
        return Place(BUNDLED)
    if len(Path(text).parts) > 1:
        raise UserError(missing(text))
    known = [path.name for path in EXPERIMENTS.glob("*") if path.is_dir()]
    known += [*downloaded_models(), BUNDLED.stem]
    raise UserError(
        f"{text}: there is no such experiment, folder, model file or download"
        f"{suggestion(text, known)}"
    )


def _from_model_file(place: Place, path: Path, **more: Any) -> FoundWeights:
    file = read_model_file(path)
    about = {key: value for key, value in file.about if value is not None}
    about["scores"] = [row.model_dump(exclude_none=True) for row in file.about.scores]
    val = file.about.options.get("val")
    average = not (isinstance(val, dict) and val.get("use_ema") is False)
    weights = {name: file.weights(name, name, average=average) for name in file.networks}
    return FoundWeights(place, weights, {**about, **more}, file)


def _from_folder(place: Place) -> FoundWeights:
    """The weights in an experiment's folder, or in one with published files.

    Raises:
        UserError: there are none, or it is not clear which.
    """
    folder = place.path
    experiment = folder.parent if folder.name == "models" else folder
    steps = models_by_step(experiment / "models") or models_by_step(folder)
    notices: list[str] = []
    step = None
    if place.which == "best":
        step, notice = best_step(experiment)
        notices.append(notice)
    elif place.which:
        step = int(place.which)
    if steps:
        wanted = max(steps) if step is None else step
        if wanted not in steps:
            raise UserError(
                f"{folder}: there is no model of step {wanted}; steps saved there: "
                f"{', '.join(map(str, sorted(steps)))}"
            )
        return _from_model_file(place, steps[wanted], folder=experiment, notices=notices)
    if files := network_files(experiment / "models", step) or network_files(folder, step):
        options = _option_file(folder)
        keys = {name: options.path.of(name)[1] if options else None for name in files}
        weights = {name: load_weights(path, name, keys[name]) for name, path in files.items()}
        about: dict[str, Any] = {"name": folder.resolve().name}
        if options is not None:
            section = next(iter(options.datasets.values()), None)
            about |= {"options": options.sections, "patch_size": section and section.gt_size}
        return FoundWeights(place, weights, about)
    packed = [path for path in sorted(folder.glob(f"*{MODEL_SUFFIX}")) if is_model_file(path)]
    if place.which or len(packed) > 1:
        names = ", ".join(path.name for path in packed)
        problem = f"has several models; name one: {names}" if packed else f"has no {place.which}"
        raise UserError(f"{folder} {problem}")
    if packed:
        return _from_model_file(place, packed[0])
    single = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    in_parts = any(path.suffix == PART for path in single)
    if in_parts or len(single) == 1:
        weights = load_published(folder if in_parts else single[0])
        return FoundWeights(place, weights, {"name": folder.name})
    inside = [path.name for path in sorted(folder.iterdir())]
    words = f"it holds {', '.join(inside[:5])}" if inside else "it is empty"
    if len(inside) > 5:
        words += f" and {len(inside) - 5} more"
    raise UserError(
        f"{folder} holds no weights (a model file, models/…{MODEL_SUFFIX}, or net_g.pth and its "
        f"like): {words}"
    )


def _option_file(folder: Path) -> Options | None:
    """The option file beside published weights.

    Raises:
        UserError: there are several, or the file is wrong.
    """
    files = sorted([*folder.glob("*.yml"), *folder.glob("*.yaml")])
    if len(files) > 1:
        raise UserError(
            f"{folder} has several option files ({', '.join(file.name for file in files)}); leave "
            "the one that the weights were trained with"
        )
    return load_options(files[0]) if files else None
