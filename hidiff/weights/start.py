"""The weights that a model starts from: named by an option file, or those of its stage 1."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hidiff.models import DeblurModel
from hidiff.options import Options
from hidiff.utils.errors import UserError, missing
from hidiff.utils.files import file_sha256
from hidiff.weights.experiment import Experiment, models_by_step
from hidiff.weights.find import FoundWeights, find_weights
from hidiff.weights.model_file import is_model_file, read_model_file
from hidiff.weights.published import load_weights
from hidiff.weights.tensors import Weights, load_network


class NotTrainedYet(UserError):
    """The weights of another training that are not there: it is to be trained first."""


def load_pretrained(
    model: DeblurModel, options: Options, *, training: bool
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Load the weights that the `path` section names.

    For each network these places are asked in turn: `path.weights`, the network's own option, and
    stage 1, for what training takes from it, and testing where stage 2 did not train it. Testing
    needs weights for every network, and all of them.

    Returns:
        Notices, and of each network its `file`, the `step` of that where it is known, and the
        file's `sha256`.

    Raises:
        UserError: a file is missing, damaged, of another configuration, or of a stage 1 that is not
            complete (`path.allow_incomplete_stage1`).
    """
    reader = _Reader(options)
    notices, origins = [], {}
    for name, network in model.networks().items():
        weights = reader.weights_for(name, model, training=training)
        if weights is None:
            continue
        from_stage1 = training and name in model.from_stage1 and weights.where != "path.weights"
        if from_stage1 and not options.path.allow_incomplete_stage1:
            _require_complete(weights)
        strict = options.path.of(name)[2] or not training
        notices += load_network(network, weights, strict=strict)
        step = weights.step
        origins[name] = {"file": str(weights.path), "step": step, "sha256": weights.sha256}
        saved = "" if step is None else f", saved after step {step}"
        notices.append(f"{name}: weights from {weights.path}{saved}")
    if training and options.path.stage1 is not None and not model.from_stage1:
        notices.append(
            f"path.stage1 has no effect: {options.model_type} takes nothing from a stage 1"
        )
    if reader.source is not None:
        notices += _other_schedule(reader.source, options)
    return notices, origins


class _Reader:
    """Finds the weights of each network, and reads every file once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        given = options.path.weights
        self.source: FoundWeights | None = None
        if given is not None:
            try:
                self.source = find_weights(given)
            except UserError as error:
                raise UserError(f"path.weights: {error}") from None
        self.stage1: FoundWeights | None = None

    def weights_for(self, name: str, model: DeblurModel, *, training: bool) -> Weights | None:
        """The weights of a network; None where training starts it anew.

        Raises:
            UserError: see `load_pretrained`.
        """
        given, param_key, _ = self.options.path.of(name)
        where = f"path.pretrain_network_{name.removeprefix('net_')}"
        if self.source is not None and name in self.source.weights:
            return _renamed(self.source.weights[name], "path.weights")
        if given is not None:
            return self._named_file(name, given, where, param_key)
        elsewhere = self.source is not None and self.options.path.stage1 is None and training
        if name in model.from_stage1 and (training or name in model.frozen) and not elsewhere:
            return self._of_stage1(name, param_key)
        if self.source is not None:
            raise UserError(
                f"path.weights: {self.source.place} holds {', '.join(self.source.weights)} and no "
                f"{name}, which model_type {self.options.model_type} needs; take another one, or "
                "pack that training again with --for-training"
            )
        if training:
            return None
        raise UserError(
            f"{where}: testing needs a weights file for {name}; name it here, or your training "
            "with --weights NAME"
        )

    def _named_file(self, name: str, path: Path, where: str, param_key: str | None) -> Weights:
        """The weights in the named file, or those that the release's option files mean by it."""
        notices: list[str] = []
        found = path
        if not path.is_file() and (other := _meant_file(name, path)) is not None:
            found, notices = other, [f"{where}: {path} does not exist; {other} is taken"]
        if not found.exists():
            if "S1" in str(path):
                raise NotTrainedYet(f"{where}: {missing(path)}; {_train_first(self.options)}")
            raise UserError(f"{where}: {missing(path)}; download it, or mend it")
        if is_model_file(found):
            file = read_model_file(found)
            if name not in file.networks:
                raise UserError(f"{where}: {found} holds {', '.join(file.networks)} and no {name}")
            weights = file.weights(name, where, average=param_key == "params_ema")
        else:
            weights = load_weights(found, where, param_key)
        return _renamed(weights, where, notices)

    def _of_stage1(self, name: str, param_key: str | None) -> Weights:
        """The weights of a network of stage 1: `path.stage1`, by default found by the name.

        Raises:
            UserError: the experiment's name has no `S2` to replace, or there are none.
        """
        if self.stage1 is None:
            # A --debug run of stage 2 starts from the real stage 1.
            given = self.options.path.stage1
            source = given or stage1_name(self.options.name.removeprefix("debug_"))
            if source is None:
                raise UserError(
                    "path.stage1: stage 2 needs stage 1's weights; name its experiment or folder "
                    "here, or call the experiments …_S1 and …_S2 (this one is "
                    f"'{self.options.name}')"
                )
            try:
                self.stage1 = find_weights(source)
            except UserError as error:
                there = Path(source).exists() or Experiment(str(source)).folder.exists()
                kind = UserError if there else NotTrainedYet
                raise kind(f"path.stage1: {error}; {_train_first(self.options)}") from None
        found = self.stage1
        if name not in found.weights:
            raise UserError(
                f"path.stage1: {found.place} holds {', '.join(found.weights)} and no {name}; "
                f"{_train_first(self.options)}"
            )
        weights = found.weights[name]
        if found.file is not None:
            average = param_key == "params_ema"
            weights = found.file.weights(name, "path.stage1", average=average)
        return _renamed(weights, "path.stage1")


def _renamed(weights: Weights, where: str, notices: list[str] | None = None) -> Weights:
    """The weights as those that an option has asked for."""
    together = (*(notices or ()), *weights.notices)
    return dataclasses.replace(weights, where=where, notices=together)


def _meant_file(name: str, path: Path) -> Path | None:
    """The file that a path such as experiments/X/models/net_g_300000.pth of the release means.

    It is X's model of that step, else its newest one.
    """
    found = re.fullmatch(rf"{name}_(\d+|latest)", path.stem)
    # Released behaviour: stage 2 looks in experiments/debug_train_…, where stage 1 never writes,
    # and for step 300000, before which it ends.
    for folder in (path.parent, Path(str(path.parent).replace("debug_train_", "train_", 1))):
        if (folder / path.name).is_file():
            return folder / path.name
        if found and (models := models_by_step(folder)):
            step = int(found[1]) if found[1].isdigit() else max(models)
            return models.get(step, models[max(models)])
    return None


def _train_first(options: Options) -> str:
    """What to do about missing weights of stage 1, as part of an error."""
    stage1 = options.file.parent / options.file.name.replace("S2", "S1")
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


def _other_schedule(source: FoundWeights, options: Options) -> list[str]:
    """A notice where the diffusion schedule is not the one that the weights were trained with."""
    sections = source.about.get("options")
    theirs, ours = ((part or {}).get("diffusion_schedule") for part in (sections, options.sections))
    if sections is None or theirs == ours:
        return []
    return [f"diffusion_schedule: {ours}, but that of {source.place} is {theirs}"]


def changed_since_start(started_from: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Notices about weights files that are others now than when a training started from them."""
    return [
        f"{name}: {origin['file']} has changed since this training started from it (then step "
        f"{origin['step']}, SHA-256 {origin['sha256'][:12]}); the training goes on as it began"
        for name, origin in started_from.items()
        if Path(origin["file"]).is_file() and file_sha256(Path(origin["file"])) != origin["sha256"]
    ]
