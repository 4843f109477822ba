"""A model ready to restore, from wherever its weights are.

NAME, NAME@best, NAME@12000     an experiment's newest weights, those of the validation with the
                                best score, or those of a step; NAME is its name or its folder
FILE.safetensors                a packed file, see `hidiff.weights.packed`
bundled                         the trained model that comes with the package
FILE.pth, FOLDER                published weights of one of the networks in options/baselines
FOLDER                          one with a packed file, or with net_g.pth and its like and their
                                option file; without that the architecture is read off them
hf:OWNER/NAME[/PLACE][@VERSION] any of these in a repository of the Hugging Face Hub
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hidiff.data import Normalization, normalization_of
from hidiff.models import DeblurModel
from hidiff.models.stage2 import DiffusionModel
from hidiff.options import DatasetOptions, Options, load_options
from hidiff.utils.errors import UserError, expanded, suggestion
from hidiff.utils.files import load_torch_file
from hidiff.utils.typecheck import plain
from hidiff.weights.experiment import EXPERIMENTS
from hidiff.weights.packed import BUNDLED, SUFFIX, read_packed
from hidiff.weights.pretrained import read_together, stage1_file, weights_in
from hidiff.weights.published import SUFFIXES, is_in_parts, read_published
from hidiff.weights.read import Weights, load_weights, part_of, require_finite
from hidiff.weights.shapes import read_off
from hidiff.weights.stored import StoredModel, blank_model, fill

NETWORKS = ("net_g", "net_le_dm", "net_d", "net_le")

HUB = "hf:"

OPTION_COPY = re.compile(r"\d{8}_\d{6}_.+")
"""Names of the copies of its option file that a training keeps."""


@dataclass(frozen=True)
class Loaded:
    """A model that restores.

    Args:
        model: in evaluation mode, its parameters frozen.
        options: the sections that it was built from.
        description: what it is and where it is from, on one line.
        normalization: what it sees images normalised by; None for [0, 1].
        patch_size: side of the largest patch that it was trained on; None where it is not known.
        notices: what the user must know.
    """

    model: DeblurModel
    options: Mapping[str, Any]
    description: str
    normalization: Normalization | None
    patch_size: int | None
    notices: list[str]


def load_model(source: str | Path, *, device: str | torch.device = "cpu") -> Loaded:
    """Find, read and check a model.

    Args:
        source: see above.
        device: where the model is to be.

    Raises:
        UserError: there is no such model or device; a file is missing, damaged or of another
            configuration; or the model is of stage 1, which needs the sharp image.
    """
    stored = find_model(source)
    model = stored.model
    if model.restores_from_gt:
        raise UserError(
            f"{stored.place}: this model is of stage 1, whose encoder needs the sharp image; to "
            "restore photographs, take one of stage 2"
        )
    for network in model.networks().values():
        network.to(torch.get_default_dtype())
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device}: {str(error).splitlines()[0]}") from None
    return Loaded(
        model.eval().requires_grad_(False),
        stored.sections,
        stored.description,
        stored.normalization,
        stored.patch_size,
        list(stored.notices),
    )


def find_model(source: str | Path, *, training: bool = False) -> StoredModel:
    """Find, read and check a model of any stage; see `load_model`.

    Args:
        training: with the networks that only training needs; without it they are there where a
            packed file has them.

    Raises:
        UserError: see `load_model`; `training`, and one of these networks is not there.
    """
    stored = _find(source, training=training)
    incomplete = "net_le" not in stored.model.networks()
    if training and incomplete and isinstance(stored.model, DiffusionModel):
        raise UserError(
            f"{stored.place}: training needs net_le too, the encoder of stage 1, which is not "
            "there; take the experiment, or pack it again with --for-training"
        )
    return stored


def _find(source: str | Path, *, training: bool) -> StoredModel:
    """`find_model`, where a packed file may lack what training needs."""
    text = str(source)
    path, which = (_from_hub(text), "") if text.startswith(HUB) else _locate(expanded(text))
    if path.is_dir():
        packed = sorted(path.glob(f"*{SUFFIX}"))
        networks = any(weights_in(path, name).is_file() for name in NETWORKS)
        if not which and not networks and is_in_parts(path):
            return read_published(path)
        if which or not packed or networks:
            return _from_folder(path, which, training=training)
        if len(packed) > 1:
            raise UserError(
                f"{path} has several packed files; name one: {', '.join(p.name for p in packed)}"
            )
        path = packed[0]
    elif which:
        raise UserError(f"{path}@{which}: a file has no steps; leave out @{which}")
    elif path.suffix in SUFFIXES:
        return read_published(path)
    elif path.suffix in (".yml", ".yaml"):
        raise UserError(
            f"{path} is one part of a model; name its folder, or a packed file ({SUFFIX})"
        )
    return read_packed(path)


def _locate(text: str) -> tuple[Path, str]:
    """The file or folder, and what stands behind an `@`.

    Raises:
        UserError: there is none.
    """
    base, _, which = text.rpartition("@")
    for name, step in ((text, ""), (base, which)):
        for path in (EXPERIMENTS / name, Path(name)):
            if name and path.exists():
                if not re.fullmatch(r"|best|\d+", step):
                    raise UserError(f"{text}: after @ stands best, or the number of a step")
                return path, step
    if text == BUNDLED.stem and BUNDLED.is_file():
        return BUNDLED, ""
    known = (path.name for path in EXPERIMENTS.glob("*") if path.is_dir())
    raise UserError(
        f"{text}: there is no such experiment, folder or packed file{suggestion(text, known)}"
    )


def _from_hub(text: str) -> Path:
    """The downloaded copy of what a text such as hf:OWNER/NAME names.

    Raises:
        UserError: huggingface_hub is not installed, there is no such place, or no network.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{text}: the Hugging Face Hub needs one more package: pip install huggingface_hub"
        ) from None
    place, _, version = text.removeprefix(HUB).partition("@")
    parts = place.split("/")
    if len(parts) < 2 or not all(parts):
        raise UserError(f"{text}: write hf:OWNER/NAME, as in the repository's address")
    repository, part = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        if part.endswith(SUFFIX):
            file = huggingface_hub.hf_hub_download(repository, part, revision=version or None)
            return Path(file)
        ends = (SUFFIX, ".pth", ".yml", ".yaml")
        wanted = [f"{part}/*{end}" if part else f"*{end}" for end in ends]
        folder = huggingface_hub.snapshot_download(
            repository, revision=version or None, allow_patterns=wanted
        )
    except Exception as error:
        # Of several libraries, and OSError of what lies below them.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{text}: cannot be had from the Hugging Face Hub ({reason}); look at the name, the "
            "network and, for a private repository, at `hf auth login`"
        ) from None
    return Path(folder, part)


def _from_folder(folder: Path, which: str, *, training: bool) -> StoredModel:
    """The model in an experiment's folder, or in one with files of the released layout."""
    options = _options_of(folder)
    experiment = folder.parent if folder.name == "models" else folder
    step, notices = None, []
    if which == "best":
        step, notice = _best_step(experiment)
        notices.append(notice)
    elif which:
        step = int(which)
    if options is None:
        names = [name for name in NETWORKS if weights_in(folder, name, step).is_file()]
    else:
        model = blank_model(options.sections, str(options.file), training=training)
        names = list(model.networks())
    if not names:
        raise _nothing_in(folder, weights_in(folder, "net_g", step))

    def read() -> dict[str, Weights]:
        found = {}
        for name in names:
            path = weights_in(folder, name, step)
            if not path.is_file() and options is not None and name in model.frozen:
                found[name] = _of_stage1(experiment, options, name, model.from_stage1[name])
            elif not path.is_file():
                raise _nothing_in(folder, path)
            else:
                found[name] = load_weights(path, name, _entry(options, name))
        return found

    weights = read_together(read)
    if options is None:
        sections, more = read_off(weights)
        model = blank_model(sections, str(folder), training=training)
    else:
        sections = dict(options.sections)
        more = [notice for part in weights.values() for notice in part.notices]
    trained = [weights[name].step for name in model.trained_networks()]
    kept = experiment if (experiment / "training_states").is_dir() else None
    return StoredModel(
        name=options.name if kept and options else experiment.resolve().name,
        place=str(folder) + (f"@{which}" if which else ""),
        model=model,
        sections=fill(model, sections, weights),
        step=next((number for number in (step, *trained) if number is not None), None),
        origin={
            name: {"file": part.path.name, "sha256": part.sha256, "entry": part.entry}
            for name, part in weights.items()
            if name in model.networks()
        },
        folder=kept,
        notices=(*notices, *more),
        **_training_facts(options),
    )


def _nothing_in(folder: Path, path: Path) -> UserError:
    """That a weights file is not there, and which are."""
    places = {folder, folder / "models"}
    steps = {
        int(found[1])
        for place in places
        for file in place.glob("net_g_*.pth")
        if (found := re.fullmatch(r"net_g_(\d+)", file.stem))
    }
    saved = f"; steps saved there: {', '.join(map(str, sorted(steps)))}" if steps else ""
    other = f" or {path.name.replace('_latest', '')}" if "_latest" in path.name else ""
    return UserError(f"{folder}: there is no {path.name}{other}{saved}")


def _options_of(folder: Path) -> Options | None:
    """The options of the weights in a folder: the newest copy of a training, or the file there.

    Raises:
        UserError: there are several files, or the file is wrong.
    """
    above = folder.parent if folder.name == "models" else folder
    for place in (folder, above):
        copies = sorted(file for file in place.glob("*") if OPTION_COPY.fullmatch(file.name))
        if copies:
            return load_options(copies[-1])
    files = sorted([*folder.glob("*.yml"), *folder.glob("*.yaml")])
    if len(files) > 1:
        raise UserError(
            f"{folder} has several option files ({', '.join(file.name for file in files)}); leave "
            "the one that the weights were trained with"
        )
    return load_options(files[0]) if files else None


def _entry(options: Options | None, name: str) -> str | None:
    """Which entry of a weights file is restored with.

    Of a training it is what its validation scores: the average of the weights where that is kept.
    An option file for test.py names it.
    """
    if options is None:
        return "params_ema"
    if options.train is None:
        return options.path.of(name)[1]
    return "params_ema" if options.train.ema_decay and options.val.use_ema else "params"


def _newest_state(experiment: Path) -> tuple[Path, dict[str, Any], str] | None:
    """Path, content and SHA-256 of the newest training state, where there is one.

    Raises:
        UserError: it is damaged, or something else.
    """
    states = [
        (int(path.stem), path)
        for path in (experiment / "training_states").glob("*.state")
        if path.stem.isdigit()
    ]
    if not states:
        return None
    path = max(states)[1]
    content, sha256 = load_torch_file(path, str(experiment))
    if not isinstance(content, dict) or not {"best", "networks"} <= set(content):
        raise UserError(f"{path}: no training state of this program")
    return path, content, sha256


def _best_step(experiment: Path) -> tuple[int, str]:
    """The step whose validation had the best PSNR (or other first metric), and words about it.

    Raises:
        UserError: no validation is on record.
    """
    state = _newest_state(experiment)
    best = state[1]["best"] if state else {}
    if not best:
        raise UserError(
            f"{experiment}@best: no validation is on record in its training states; name a step, "
            "or leave out @best for the newest weights"
        )
    key = next((key for key in best if key.endswith("/psnr")), next(iter(best)))
    top = best[key]
    return top["step"], f"best {key}: {top['value']:.4f} after step {top['step']}"


def validation_scores(model: StoredModel) -> list[dict[str, Any]]:
    """What the validations of its training gave these weights, where they were the best so far.

    Raises:
        UserError: the training state that has the scores is damaged.
    """
    if model.folder is None or (state := _newest_state(model.folder)) is None:
        return []
    options = _options_of(model.folder)
    found: dict[str, dict[str, Any]] = {}
    for key, top in state[1]["best"].items():
        dataset, _, metric = key.rpartition("/")
        if top["step"] == model.step:
            row = {
                "dataset": dataset,
                "protocol": "basicsr",
                "local": options and str(options.val.local),
                "source": "validation",
                "upper_bound": model.model.restores_from_gt,
                "restored": {},
            }
            found.setdefault(dataset, row)["restored"][metric] = top["value"]
    return list(found.values())


def _of_stage1(experiment: Path, options: Options, name: str, source: str) -> Weights:
    """A network that a stage 2 did not train, from its training state or from stage 1 itself.

    Args:
        source: what it is there, see `DeblurModel.from_stage1`.

    Raises:
        UserError: neither is there.
    """
    state = _newest_state(experiment)
    if state is None:
        stage1, _, part = source.partition(".")
        return part_of(load_weights(stage1_file(options, stage1), name), part)
    path, content, sha256 = state
    state_dict = content["networks"][name]
    require_finite(state_dict, f"{path}: {name}")
    return Weights(path, name, state_dict, None, None, sha256, "networks")


def _training_facts(options: Options | None) -> dict[str, Any]:
    """What an option file says about the images, as arguments of `StoredModel`."""
    if options is None or not options.datasets:
        return {}
    section = options.datasets.get("train") or next(iter(options.datasets.values()))
    if options.train is None or "train" not in options.datasets:
        return {"normalization": normalization_of(section), "patch_size": section.gt_size}
    data: dict[str, Any] = {"name": section.name, **_folders(section)}
    if section.mixture:
        data = {
            entry.label.removeprefix("datasets."): {**_folders(entry), "weight": entry.weight}
            for entry in section.mixture
        }
    return {
        "normalization": normalization_of(section),
        "patch_size": max(p.patch_size for p in section.phases(options.train.total_iter)),
        "data": plain(data),
    }


def _folders(section: DatasetOptions) -> dict[str, str]:
    """The data roots of a section; several of one side as one text."""
    roots = {
        key: value if isinstance(value, list) else [value]
        for key, value in section.source.items()
        if key.startswith("dataroot_") and value is not None
    }
    return {key: ", ".join(map(_folder, values)) for key, values in roots.items()}


def _folder(root: str) -> str:
    # Folders above are of the machine, and nobody's business.
    return str(Path(*Path(root).parts[-3:])) if Path(root).is_absolute() else root
