"""The weights that a model starts from: named by an option file, or those of its stage 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hidiff.models import DeblurModel
from hidiff.options import Options
from hidiff.utils.errors import UserError, missing
from hidiff.utils.files import file_sha256
from hidiff.weights.experiment import EXPERIMENTS, Experiment
from hidiff.weights.packed import BUNDLED, SUFFIX, packed_weights
from hidiff.weights.read import (
    Weights,
    load_network,
    load_weights,
    part_of,
    require_one_step,
)


def _train_first(options: Options) -> str:
    """What to do about missing weights of stage 1, as part of an error."""
    stage1 = options.file.with_name(options.file.name.replace("S2", "S1"))
    if stage1 != options.file and stage1.is_file():
        return f"train stage 1 first: python train.py -opt {stage1}"
    return "train stage 1 first, or name its experiment or folder under path.stage1"


def stage1_name(name: str) -> str | None:
    """`…_S2` → `…_S1`, the experiment that a stage 2 starts from; None without an `S2`.

    A second try called `…_S2_b` starts from `…_S1_b` where that exists, else from `…_S1`.
    """
    before, stage2, after = name.rpartition("S2")
    if not stage2:
        return None
    exact = f"{before}S1{after}"
    return exact if Experiment(exact).models.is_dir() else f"{before}S1"


def weights_in(source: Path, name: str, step: int | None = None) -> Path:
    """The weights file of a network in a training's or another folder, where there is one.

    Args:
        source: an experiment's name, its folder, or a folder with `net_*.pth`.
        name: of the network, such as `net_g`.
        step: after which it was saved; None for the newest.

    Returns:
        The file; where there is none, the place where a training of that name would write it.
    """
    folders = [
        folder for root in (EXPERIMENTS / source, source) for folder in (root / "models", root)
    ]
    ends = ("_latest", "") if step is None else (f"_{step}",)
    files = [folder / f"{name}{end}.pth" for folder in folders for end in ends]
    return next((file for file in files if file.is_file()), files[0])


def stage1_file(options: Options, name: str) -> Path:
    """Where stage 1 has saved a network: `path.stage1`, by default found by the name.

    Raises:
        UserError: the experiment's name has no `S2` to replace, or the file does not exist.
    """
    # A --debug run of stage 2 starts from the real stage 1.
    source = options.path.stage1 or stage1_name(options.name.removeprefix("debug_"))
    if source is None:
        raise UserError(
            "path.stage1: stage 2 needs stage 1's weights; name its experiment or folder here, or "
            f"call the experiments …_S1 and …_S2 (this one is '{options.name}')"
        )
    path = weights_in(Path(source), name)
    if not path.is_file():
        raise UserError(f"path.stage1: {missing(path)}; {_train_first(options)}")
    return path


def _named_file(options: Options, name: str, path: Path, where: str) -> tuple[Path, list[str]]:
    """The named file, or the one that the release's stage-2 files mean by it."""
    if path.is_file():
        return path, []
    # Released behaviour: stage 2 looks in experiments/debug_train_…, where stage 1 never writes,
    # and for step 300000, before which it ends.
    mended = Path(str(path).replace("debug_train_", "train_", 1))
    for other in (mended, *(p.with_name(f"{name}_latest.pth") for p in (path, mended))):
        named = other.name == path.name or path.name == f"{name}_300000.pth"
        if named and other.is_file():
            return other, [f"{path} does not exist; {other} is taken"]
    if path.is_dir():
        return path, []  # The reader says so.
    advice = _train_first(options) if "S1" in str(path) else "download it, or mend the path"
    raise UserError(f"{where}: {missing(path)}; {advice}")


def _require_complete(weights: Weights) -> None:
    """Refuse weights of a training that has not reached its last step.

    Raises:
        UserError: the file says that it has not.
    """
    step, total = weights.step, weights.total_iter
    if step is not None and total is not None and step < total:
        raise UserError(
            f"{weights.where}: {weights.path} is of a training that stands at step {step} of "
            f"{total}; finish that (the same command with --auto_resume), or start from what there "
            "is with path.allow_incomplete_stage1: true"
        )


def changed_since_start(started_from: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Notices about weights files that are others now than when a training started from them."""
    return [
        f"{name}: {origin['file']} has changed since this training started from it (then step "
        f"{origin['step']}, SHA-256 {origin['sha256'][:12]}); the training goes on as it began"
        for name, origin in started_from.items()
        if Path(origin["file"]).is_file() and file_sha256(Path(origin["file"])) != origin["sha256"]
    ]


def read_together(read: Callable[[], dict[str, Weights]]) -> dict[str, Weights]:
    """Weights of one step, also while a training saves others in the same place.

    Raises:
        UserError: see `require_one_step`.
    """
    for _ in range(2):
        weights = read()
        with suppress(UserError):
            require_one_step(weights.values())
            return weights
    weights = read()
    require_one_step(weights.values())
    return weights


def _packed_file(source: Path | None) -> Path | None:
    """The packed file that `path.weights` names, if it names one.

    Raises:
        UserError: it names a file of another kind.
    """
    if source is None:
        return None
    for path in (EXPERIMENTS / source, source):
        if path.is_file() and path.suffix != SUFFIX:
            raise UserError(
                f"path.weights: {path} is a file; name a training, a packed file ({SUFFIX}), or a "
                "folder with net_*.pth"
            )
        if path.exists():
            return path if path.is_file() else None
    return BUNDLED if str(source) == BUNDLED.stem and BUNDLED.is_file() else None


def load_pretrained(
    model: DeblurModel, options: Options, *, training: bool
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Load the weights that the `path` section names.

    For each network these places are asked in turn: `path.weights`, the network's own option, and
    stage 1, for what training takes from it, and testing where stage 2 did not train it. Testing
    needs a file for every network.

    Returns:
        Notices, and of each network its `file`, the `step` of that where it is known, and the
        file's `sha256`.

    Raises:
        UserError: a file is missing, damaged, of another configuration, of another step than
            those beside it, or of a stage 1 that is not complete
            (`path.allow_incomplete_stage1`).
    """
    notices, origins = [], {}
    files: dict[str, tuple[Path, str, str | None]] = {}
    source = options.path.weights
    packed = _packed_file(source)
    parts: dict[str, str] = {}
    ready: dict[str, Weights] = {}
    if packed is not None:
        known, ready = packed_weights(packed)
        ready = {n: dataclasses.replace(w, where="path.weights") for n, w in ready.items()}
        theirs, ours = (part.get("diffusion_schedule") for part in (known, options.sections))
        if theirs != ours:
            notices.append(f"diffusion_schedule: {ours}, but that of {packed} is {theirs}")
    for name in model.networks():
        given, param_key, _ = options.path.of(name)
        where = f"path.pretrain_network_{name.removeprefix('net_')}"
        from_stage1 = name in model.from_stage1 and (training or name in model.frozen)
        if name in ready:
            continue
        if packed is not None and given is None and not options.path.stage1:
            raise UserError(
                f"path.weights: {packed} has no {name}; take another file, or pack that training "
                "again with --for-training"
            )
        if source is not None and (path := weights_in(source, name)).is_file():
            where = "path.weights"
        elif given is not None:
            path, found = _named_file(options, name, given, where)
            notices += found
        elif from_stage1:
            stage1, _, parts[name] = model.from_stage1[name].partition(".")
            path, where = stage1_file(options, stage1), "path.stage1"
        elif source is not None:
            raise UserError(f"path.weights: {missing(path)}; name a training, or a folder with it")
        elif not training:
            raise UserError(
                f"{where}: testing needs a weights file for {name}; name it here, or your training "
                "with --weights NAME"
            )
        else:
            continue
        files[name] = (path, where, param_key)
    read = read_together(lambda: {name: load_weights(*file) for name, file in files.items()})
    read |= {name: ready[name] for name in model.networks() if name in ready}
    for name, weights in read.items():
        incomplete_is_fine = options.path.allow_incomplete_stage1 or weights.where == "path.weights"
        if training and name in model.from_stage1 and not incomplete_is_fine:
            _require_complete(weights)
        strict, network = options.path.of(name)[2], model.networks()[name]
        if part := parts.get(name, ""):
            weights = part_of(weights, part)
            if model.from_stage1[name] == f"{name}.{part}":
                network = network.get_submodule(part)
        notices += load_network(network, weights, strict=strict)
        number = weights.path.stem.removeprefix(f"{name}_")
        step = int(number) if weights.step is None and number.isdigit() else weights.step
        origins[name] = {"file": str(weights.path), "step": step, "sha256": weights.sha256}
        saved = "" if step is None else f", saved after step {step}"
        notices.append(f"{name}: weights from {weights.path}{saved}")
    return notices, origins
