"""Saving weights files of the release's layout, and training states to resume from.

Both are written beside their place and renamed, so a file under its final name is complete.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hidiff.errors import UserError
from hidiff.files import partial_files, replace_link, replacing, sync_folder
from hidiff.torch_file import load_torch_file
from hidiff.weights.read import require_finite

STATE_ENTRIES = {"step", "networks", "optimizer", "best", "options", "slots", "training_pairs"}

NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
"""What file systems without links answer when one is made."""

KEPT_STATES = 3
"""Training states kept in an experiment; the weights files are all kept."""


def save_atomically(content: Any, path: Path) -> None:
    """torch.save through `hidiff.files.replacing`.

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


def save_networks(
    networks: Mapping[str, nn.Module],
    folder: Path,
    step: int,
    total_iter: int,
    averaged: Mapping[str, nn.Module] | None = None,
) -> None:
    """Write `{name}_{step}.pth` for every network, and let `{name}_latest.pth` be these files.

    Names and layout are the release's; `step` and `total_iter` stand beside `params`. `averaged`
    networks (see
    `hidiff.engine.ema`) go into the same files as `params_ema`.
    """
    files = {}
    for name, network in networks.items():
        content = {"params": _on_cpu(network), "step": step, "total_iter": total_iter}
        if averaged is not None:
            content["params_ema"] = _on_cpu(averaged[name])
        files[name] = folder / f"{name}_{step}.pth"
        save_atomically(content, files[name])
    latest = {name: folder / f"{name}_latest.pth" for name in networks}
    try:
        if any(path.is_file() and not path.is_symlink() for path in latest.values()):
            # Copies, or files of an earlier version: they become links without changing what they
            # hold.
            _switch({n: path.resolve() for n, path in latest.items() if path.exists()}, folder)
        _switch(files, folder)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        for name, path in latest.items():
            with replacing(path) as copy, files[name].open("rb") as original:
                shutil.copyfileobj(original, copy)


def _switch(files: Mapping[str, Path], folder: Path) -> None:
    """Let every `{name}_latest.pth` be the given file, all of them at the same moment.

    `{name}_latest.pth` is a link to `.newest/{name}.pth`, and `.newest` one to a folder with hard
    links to the files: replacing that one link changes all. The folder before is kept for those who
    are reading.
    """
    link = folder / ".newest"
    place = folder / f".newest-{uuid.uuid4().hex[:12]}"
    keep = {link.resolve().name, place.name}
    place.mkdir()
    try:
        for name, file in files.items():
            os.link(file, place / f"{name}.pth")
        sync_folder(place)
        replace_link(link, place.name)
    except OSError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    for name in files:
        latest, target = folder / f"{name}_latest.pth", f".newest/{name}.pth"
        if not (latest.is_symlink() and str(latest.readlink()) == target):
            replace_link(latest, target)
    for old in folder.glob(".newest-*"):
        if old.name not in keep:
            shutil.rmtree(old, ignore_errors=True)


def clear_partial(*folders: Path) -> None:
    """Remove what killed writes have left; nobody else may be writing there."""
    for folder in folders:
        for path in partial_files(folder):
            path.unlink(missing_ok=True)


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in network.state_dict().items()}


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
    for networks in (content["networks"], content.get("average", {})):
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
