"""What a training changes: saved as weights files of the release's layout and as training states,
and taken over from a state. A file under its final name is always complete."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hidiff.models import DeblurModel
from hidiff.options import flatten
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError
from hidiff.utils.files import partial_files, replacing
from hidiff.weights.experiment import Experiment
from hidiff.weights.model_file import save_model
from hidiff.weights.tensors import require_finite
from hidiff.weights.torch_file import load_torch_file

FIXED = {
    "slots": "batches of the phase's size in a global batch",
    "training_pairs": "training pairs",
}
"""What must not change when a training is resumed, and its words."""

PROGRESS = ("step", "bad_steps", "validated", "best", "started_from")

STATE_ENTRIES = {"networks", "average", "optimizer", "options", *FIXED, *PROGRESS}

KEPT_STATES = 3
"""Training states kept in an experiment; the weights files are all kept."""

WITHOUT_INFLUENCE = (
    r"name",
    r"num_gpu",
    r"logger\..*",
    r"val\..*",
    r"datasets\.(val|test).*",
    # The place of the data may change; that it is the same data is the user's word.
    r"datasets\.train(\[\d+\])?\.(name|num_worker_per_gpu|timeout|dataroot_\w+|io_backend.*)",
    r"datasets\.train(\[\d+\])?\.(meta_info_file|cache|num_prefetch_queue|pin_memory)",
    r"path\..*",
    r"dist_params\..*",
    r"train\.(max_bad_steps|on_bad_image)",
    # The same computation in another way, to rounding (kernels, compile) or exactly.
    r"kernels",
    r"train\.(compile|activation_checkpointing|micro_batch)",
    # The number of processes and this one matter by their global batch only, which is compared.
    r"train\.reference_world_size",
)
"""Options that do not change the weights that a run ends with."""


@dataclass
class TrainingState:
    """What a training changes, and what must not change when it is resumed.

    Args:
        model: the networks; all are in the state, the frozen ones too, so it alone is enough.
        optimizer: of the trained networks.
        average: a copy of the model with the average of its weights, None without one.
        options: the sections of the option file.
        slots: micro-batches of a global batch.
        training_pairs: in the training set; a list of those of each set of a mixture.
        started_from: file, step and SHA-256 of the weights that each network began with.
        step: after which it stands.
        bad_steps: steps in a row, up to this one, whose loss or gradient was not finite.
        validated: whether the validation after `step`, where there is to be one, is done.
        best: '{set}/{metric}' → the best value of the validations and the step of it.
        micro_batches: images at once by 0-based phase, where that was measured.
        facts: what `training_facts` says, for the model file.

    Random numbers and the order of the data follow from the step.
    """

    model: DeblurModel
    optimizer: torch.optim.Optimizer
    average: DeblurModel | None
    options: Mapping[str, Any]
    slots: int
    training_pairs: int | list[int]
    started_from: dict[str, dict[str, Any]] = field(default_factory=dict)
    step: int = 0
    bad_steps: int = 0
    validated: bool = True
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    micro_batches: dict[int, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def averaged(self) -> dict[str, nn.Module]:
        """The averaged networks by official name; empty without an average."""
        return self.average.trained_networks() if self.average else {}

    def content(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {
            "networks": {n: net.state_dict() for n, net in self.model.networks().items()},
            "average": {n: net.state_dict() for n, net in self.averaged.items()},
            "optimizer": self.optimizer.state_dict(),
            "options": dict(self.options),
            "micro_batches": self.micro_batches,
            **{key: getattr(self, key) for key in (*FIXED, *PROGRESS)},
        }

    def restore(self, content: Mapping[str, Any]) -> list[str]:
        """Take over what `content` returned; notices about options that have changed since.

        Raises:
            UserError: going on from it would not give the result of a run that was not stopped.
        """
        where = f"the training state of step {content['step']}"
        notices = compare_options(content["options"], self.options, where)
        for key, what in FIXED.items():
            if content[key] != getattr(self, key):
                raise UserError(
                    f"{where} was saved with {content[key]} {what}, this run has "
                    f"{getattr(self, key)}; going on would give another result. Resume with the "
                    "same data, and set train.reference_world_size for another number of processes"
                )
        try:
            for name, network in self.model.networks().items():
                network.load_state_dict(content["networks"][name])
            for name, network in self.averaged.items():
                network.load_state_dict(content["average"][name])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{where} belongs to another configuration ({str(error).splitlines()[0]}); resume "
                "with the option file that the experiment was started with"
            ) from None
        for key in PROGRESS:
            setattr(self, key, content[key])
        # States of version 0.1 have none.
        self.micro_batches = content.get("micro_batches", {})
        return [*notices, f"resumed after step {self.step}"]


def save(
    state: TrainingState, experiment: Experiment, total_iter: int, *, weights: bool = True
) -> None:
    """Write the weights of the trained networks, unless left out, and the training state.

    Raises:
        OSError: they cannot be written; earlier ones are intact.
    """
    if weights:
        save_model(
            experiment.model_file(state.step),
            state.model,
            options=state.options,
            name=experiment.name,
            step=state.step,
            total_iter=total_iter,
            average=state.average,
            **state.facts,
        )
    save_state(state.content(), experiment.states, state.step)


def save_atomically(content: Any, path: Path) -> None:
    """torch.save through `hidiff.utils.files.replacing`.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except RuntimeError as error:
        # Torch still tries to end its archive then, and hides the reason behind what that says.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def clear_partial(*folders: Path) -> None:
    """Remove what killed writes have left; nobody else may be writing there."""
    for folder in folders:
        for path in partial_files(folder):
            path.unlink(missing_ok=True)


def save_state(state: Mapping[str, Any], folder: Path, step: int) -> None:
    """Write `{step}.state` and remove all but the newest `KEPT_STATES`."""
    save_atomically(dict(state), folder / f"{step}.state")
    for _, path in _states(folder)[:-KEPT_STATES]:
        path.unlink(missing_ok=True)


def set_aside_newer(folder: Path, step: int) -> list[str]:
    """Rename the states after a step to `{step}.state.superseded`; a notice when there are any."""
    newer = [path for number, path in _states(folder) if number > step]
    for path in newer:
        path.replace(path.with_name(f"{path.name}.superseded"))
    if not newer:
        return []
    names = ", ".join(path.name for path in newer)
    return [f"the run goes on after step {step}; {names} were renamed to …state.superseded"]


def _states(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the states in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(p.stem), p) for p in folder.iterdir() if re.fullmatch(r"\d+\.state", p.name)]
    return sorted(found)


@dataclass(frozen=True)
class SavedState:
    """A training state as read from its file.

    Args:
        path: the file.
        where: what asked for it, for messages.
        content: what `save_state` was given.
        sha256: of the file's bytes.
    """

    path: Path
    where: str
    content: dict[str, Any]
    sha256: str


def load_state(path: str | Path, where: str) -> SavedState:
    """Read one training state.

    Raises:
        UserError: it is missing or damaged, no training state of this project, or weights in it
            are not finite.
    """
    path = Path(path)
    content, sha256 = load_torch_file(path, where)
    if not isinstance(content, Mapping) or not set(content) >= STATE_ENTRIES:
        raise UserError(
            f"{where}: {path} is no training state of this program; to go on from weights alone, "
            "name them under path.pretrain_network_*"
        )
    for networks in (content["networks"], content["average"]):
        for name, state_dict in networks.items():
            require_finite(state_dict, f"{where}: {path}: {name}")
    return SavedState(path, where, dict(content), sha256)


def newest_state(folder: Path) -> tuple[SavedState | None, list[str]]:
    """The newest readable state of an experiment, None when there is no state at all.

    Returns:
        The state, and a notice for each damaged one that was passed over.

    Raises:
        UserError: there are states, and none of them can be read.
    """
    problems = []
    for _, path in reversed(_states(folder)):
        try:
            state = load_state(path, "--auto_resume")
        except UserError as error:
            problems.append(str(error))
        else:
            return state, [f"{problem}; trying the one before it" for problem in problems]
    if problems:
        raise UserError(
            f"--auto_resume: no training state in {folder} can be read ({'; '.join(problems)}). "
            "Put a copy of one there, or move the experiment's folder away and start again, from "
            "its newest weights if you like (path.pretrain_network_*)"
        )
    return None, []


def choose_state(
    folder: Path, resume_state: Path | None, processes: Processes, *, auto_resume: bool
) -> tuple[SavedState | None, list[str]]:
    """The state to go on from, None when there is none, and notices about damaged ones.

    With `auto_resume` it is the newest in the folder, where there is one: a job that is started
    again must not start over. The main process chooses, and the others read the file that it names:
    listings of one folder on several machines may differ.

    Raises:
        UserError: there are only damaged ones, or the processes have read different files.
    """
    state: SavedState | None = None
    notices: list[str] = []
    with processes.main_first():
        if processes.is_main and auto_resume:
            state, notices = newest_state(folder)
        if processes.is_main and state is None and resume_state is not None:
            state = load_state(resume_state, "path.resume_state")
    chosen = processes.gather(state and (state.path, state.where))[0]
    if chosen is None:
        return None, notices
    found = ""
    if not processes.is_main:
        try:
            state = load_state(*chosen)
        except UserError as error:
            found = str(error)
    if state is not None:
        found = f"{state.path} of step {state.content['step']}, SHA-256 {state.sha256}"
    processes.require_same("training state", found)
    return state, notices


def _is_neutral(path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in WITHOUT_INFLUENCE)


def compare_options(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> list[str]:
    """Notices about options that have changed without changing the result.

    Args:
        before: `Options.sections` that the state was saved with.
        now: those of this run.
        where: the state's origin, for messages.

    Raises:
        UserError: an option has changed that changes the result.
    """
    old, new = flatten(before), flatten(now)
    changed = {
        path: f"{path}: {old.get(path, 'absent')} → {new.get(path, 'absent')}"
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    }
    deciding = [line for path, line in changed.items() if not _is_neutral(path)]
    if deciding:
        raise UserError(
            f"{where} was saved with other options, and going on would give neither run's result: "
            f"{'; '.join(deciding)}. Resume with the options it was started with, or start another "
            "experiment (another name) from its weights with path.pretrain_network_*"
        )
    return [f"changed since the run was started: {line}" for line in changed.values()]
