"""What a training changes: saved as model files and training states, and taken over from a state.

A file under its final name is always complete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hidiff.engine.gradients import MicroBatches
from hidiff.engine.optim import learning_rate
from hidiff.models import DeblurModel
from hidiff.options import Options, compare_options
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError
from hidiff.utils.files import replacing
from hidiff.utils.torch_file import load_torch_file
from hidiff.weights.experiment import Experiment, models_by_step, training_facts
from hidiff.weights.model_file import save_model
from hidiff.weights.tensors import require_finite

FIXED = {
    "slots": "batches in a global batch (train.reference_world_size, processes)",
    "training_pairs": "training pairs",
}
"""What must not change when a training is resumed, and its words."""

PROGRESS = ("step", "bad_steps", "validated", "best", "started_from")

STATE_ENTRIES = {"networks", "average", "optimizer", "options", "micro_batches", *FIXED, *PROGRESS}

KEPT_STATES = 3
"""Training states kept in an experiment."""

SCHEDULE = re.compile(r"train\.(total_iter|warmup_iter|scheduler\..*): ")
"""Options that decide how the learning rate goes on; what was done may be the same for all that."""


@dataclass
class TrainingState:
    """What a training changes, and what must not change when it is resumed.

    Args:
        model: the networks; all are in the state, the frozen ones too, so it alone is enough.
        optimizer: of the trained networks.
        average: a copy of the model with the average of its weights, None without one.
        micro_batches: images at once in each phase.
        options: the sections of the option file.
        slots: micro-batches of a global batch.
        training_pairs: in the training set; a list of those of each set of a mixture.
        started_from: file, step and SHA-256 of the weights that each network began with.
        step: after which it stands.
        bad_steps: steps in a row, up to this one, whose loss or gradient was not finite.
        validated: whether the validation after `step`, where there is to be one, is done.
        best: '{set}/{metric}' → the best value of the validations and the step of it.

    Random numbers and the order of the data follow from the step.
    """

    model: DeblurModel
    optimizer: torch.optim.Optimizer
    average: DeblurModel | None
    micro_batches: MicroBatches
    options: Mapping[str, Any]
    slots: int
    training_pairs: int | list[int]
    started_from: dict[str, dict[str, Any]] = field(default_factory=dict)
    step: int = 0
    bad_steps: int = 0
    validated: bool = True
    best: dict[str, dict[str, Any]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        averaged = self.average.trained_networks() if self.average else {}
        return {
            "networks": {n: net.state_dict() for n, net in self.model.networks().items()},
            "average": {n: net.state_dict() for n, net in averaged.items()},
            "optimizer": self.optimizer.state_dict(),
            "options": dict(self.options),
            "micro_batches": self.micro_batches.state_dict(),
            **{key: getattr(self, key) for key in (*FIXED, *PROGRESS)},
        }

    def load_state_dict(
        self, content: Mapping[str, Any], *, allow_changed_options: bool = False
    ) -> list[str]:
        """Take over what `state_dict` returned; notices about options that have changed since.

        Args:
            allow_changed_options: also options that give another result.

        Raises:
            UserError: going on from it would not give the result of a run that was not stopped.
        """
        where = f"the training state of step {content['step']}"
        deciding, harmless = compare_options(content["options"], self.options)
        if deciding and self._same_past(content):
            harmless += [line for line in deciding if SCHEDULE.match(line)]
            deciding = [line for line in deciding if not SCHEDULE.match(line)]
        for key, what in FIXED.items():
            if content[key] != getattr(self, key):
                deciding.append(f"{what}: {content[key]} → {getattr(self, key)}")
        if deciding and not allow_changed_options:
            raise UserError(
                f"{where} was saved by another run, and going on would give neither one's result: "
                f"{'; '.join(deciding)}. Resume with the options and data it was started with, or "
                "add --allow_changed_options"
            )
        try:
            for name, network in self.model.networks().items():
                network.load_state_dict(content["networks"][name])
            if self.average is not None:
                # An average that was not kept before begins with the weights.
                averages = content["average"] or content["networks"]
                for name, network in self.average.trained_networks().items():
                    network.load_state_dict(averages[name])
            groups = [dict(group) for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(content["optimizer"])
            for group, ours in zip(self.optimizer.param_groups, groups, strict=True):
                # The moments are the state's; betas and weight decay those of the options now.
                group.update({key: value for key, value in ours.items() if key != "params"})
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{where} belongs to another configuration ({str(error).splitlines()[0]}); resume "
                "with the option file that the experiment was started with"
            ) from None
        self.micro_batches.load_state_dict(content["micro_batches"])
        for key in PROGRESS:
            setattr(self, key, content[key])
        changed = [f"changed since the run was started: {line}" for line in (*harmless, *deciding)]
        return [*changed, f"resumed after step {self.step}"]

    def _same_past(self, content: Mapping[str, Any]) -> bool:
        """Whether every step that was done has the learning rate of these options."""
        ours, theirs = learning_rate(self.options), learning_rate(content["options"])
        return all(ours(step) == theirs(step) for step in range(1, content["step"] + 1))


def save(
    state: TrainingState, experiment: Experiment, options: Options, *, model: bool = True
) -> None:
    """Write the model file, unless left out, and the training state.

    Old states are removed, and old model files as `logger.keep` says.

    Raises:
        UserError: they cannot be written; earlier ones are whole.
    """
    if model:
        assert options.train is not None
        save_model(
            experiment.model_file(state.step),
            state.model,
            options=options.sections,
            name=options.name,
            step=state.step,
            total_iter=options.train.total_iter,
            average=state.average,
            **training_facts(options),
        )
    path = experiment.states / f"{state.step}.state"
    try:
        save_atomically(state.state_dict(), path)
    except OSError as error:
        raise UserError(
            f"{path}: the checkpoint could not be written ({error.strerror or error}); make room "
            f"and resume with --auto_resume, earlier checkpoints are whole"
        ) from None
    for _, old in _states(experiment.states)[:-KEPT_STATES]:
        old.unlink(missing_ok=True)
    if model and options.logger.keep is not None:
        _remove_models(experiment, options.logger.keep, state.best)


def _remove_models(experiment: Experiment, keep: int, best: Mapping[str, Any]) -> None:
    """Remove model files but for the newest `keep` and those with a best score."""
    models = models_by_step(experiment.models)
    kept = {*sorted(models)[-keep:], *(top["step"] for top in best.values())}
    for step, path in models.items():
        if step not in kept:
            path.unlink(missing_ok=True)


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


def archive_newer(folder: Path, step: int) -> list[str]:
    """Rename the states after a step to `{step}.state.superseded`; a notice where there are any."""
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


class SavedState(NamedTuple):
    """A training state as read from its file, and the SHA-256 of that."""

    path: Path
    content: dict[str, Any]
    sha256: str


def load_state(path: Path, where: str) -> SavedState:
    """Read one training state.

    Args:
        where: what asked for it, for messages.

    Raises:
        UserError: it is missing or damaged, no training state of this version, or weights in it
            are not finite.
    """
    content, sha256 = load_torch_file(path, where)
    if not isinstance(content, Mapping) or not set(content) >= STATE_ENTRIES:
        raise UserError(
            f"{where}: {path} is no training state of this version of the program; to go on from "
            "weights alone, name them under path.weights"
        )
    for networks in (content["networks"], content["average"]):
        for name, state_dict in networks.items():
            require_finite(state_dict, f"{where}: {path}: {name}")
    return SavedState(path, dict(content), sha256)


def newest_state(folder: Path) -> tuple[SavedState | None, list[str]]:
    """The newest readable state of an experiment, None where there is no state at all.

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
            "its newest model if you like (path.weights)"
        )
    return None, []


def choose_state(
    folder: Path, resume_state: Path | None, processes: Processes, *, auto_resume: bool
) -> tuple[SavedState | None, list[str]]:
    """The state to go on from, None where there is none, and notices about damaged ones.

    The main process chooses, and the others read the file that it names: listings of one folder on
    several machines may differ.

    Raises:
        UserError: both --auto_resume and path.resume_state ask for one, there are only damaged
            ones, or the processes have read different files.
    """
    if auto_resume and resume_state is not None:
        raise UserError(
            f"path.resume_state: {resume_state} and --auto_resume, which takes the newest state, "
            "exclude each other; leave one of them out"
        )
    state: SavedState | None = None
    notices: list[str] = []
    where = "path.resume_state" if resume_state else "--auto_resume"
    with processes.main_first():
        if processes.is_main and auto_resume:
            state, notices = newest_state(folder)
        elif processes.is_main and resume_state is not None:
            state = load_state(resume_state, where)
    path = processes.gather(state and state.path)[0]
    if path is None:
        return None, notices
    try:
        state = state or load_state(path, where)
        found = f"{state.path} of step {state.content['step']}, SHA-256 {state.sha256}"
    except UserError as error:
        found = str(error)
    processes.require_same("training state", found)
    return state, notices
