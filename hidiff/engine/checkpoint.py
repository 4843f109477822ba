"""Weights files of the release, and training states to resume from.

Both are written beside their place and renamed, so a file under its final name is complete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hidiff.errors import UserError
from hidiff.files import replacing

STATE_ENTRIES = {"step", "networks", "optimizer", "best", "options", "slots", "training_pairs"}

KEPT_STATES = 3
"""Training states kept in an experiment; the weights files are all kept."""


def save_atomically(content: Any, path: Path) -> None:
    """torch.save through `hidiff.files.replacing`."""
    with replacing(path) as file:
        torch.save(content, file)


def _load(path: Path, where: str) -> Any:
    """torch.load of a file that is not trusted.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors and plain data.
    """
    if not path.is_file():
        raise UserError(f"{where}: {path} does not exist")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever the unpickler stumbles over, the file is the reason. Torch's own message is left
        # out where it advises to load untrusted files without the check.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "weights_only" in str(error):
            reason = "its content is not tensors and plain data"
        size = path.stat().st_size
        raise UserError(
            f"{where}: {path} ({size} bytes) is damaged or no weights file: {reason}; copy or "
            "download it again"
        ) from None


def load_weights(path: str | Path, where: str, param_key: str | None = "params") -> dict[str, Any]:
    """Read a weights file, `{'params': state_dict}` or a bare state dict.

    Args:
        path: the file.
        where: what asks for it (a YAML path), for messages.
        param_key: entry to take, such as 'params' or 'params_ema'; None for a bare state dict.

    Returns:
        The state dict, a `module.` prefix stripped from its keys.

    Raises:
        UserError: the file is missing, damaged, or has no such entry.
    """
    content = _load(Path(path), where)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where}: {path} holds no parameters")
    if all(isinstance(value, Tensor) for value in content.values()):
        state_dict = content
    elif param_key in content:
        state_dict = content[param_key]
    else:
        key_option = where.replace("pretrain_network", "param_key")
        raise UserError(
            f"{where}: {path} has no entry '{param_key}', only {', '.join(map(str, content))}; "
            f"set {key_option} to one of them"
        )
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state_dict.items()
    ):
        raise UserError(f"{where}: '{param_key}' in {path} is no table of parameters")
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def load_network(
    network: nn.Module,
    path: str | Path,
    where: str,
    *,
    param_key: str | None = "params",
    strict: bool = True,
) -> list[str]:
    """Load a weights file into a network.

    Returns:
        Notices about parameters that were left out; empty when `strict`.

    Raises:
        UserError: see `load_weights`; or `strict` and the file belongs to another configuration.
    """
    ours = network.state_dict()
    theirs = load_weights(path, where, param_key)
    missing = sorted(set(ours) - set(theirs))
    unexpected = sorted(set(theirs) - set(ours))
    shapes = sorted(k for k in set(ours) & set(theirs) if ours[k].shape != theirs[k].shape)
    problems = []
    if missing:
        problems.append(f"{len(missing)} parameters are missing (first: {missing[0]})")
    if unexpected:
        problems.append(f"{len(unexpected)} are unknown (first: {unexpected[0]})")
    if shapes:
        key = shapes[0]
        problems.append(
            f"{len(shapes)} have another shape (first: {key}, {tuple(theirs[key].shape)} in the "
            f"file, {tuple(ours[key].shape)} here)"
        )
    if problems and strict:
        raise UserError(
            f"{where}: {path} belongs to another configuration: {'; '.join(problems)}. Make the "
            "network sections of the option file those that the weights were trained with"
        )
    network.load_state_dict(
        {k: v for k, v in theirs.items() if k in ours and k not in shapes}, strict=False
    )
    return [f"{where}: {path}: {'; '.join(problems)}"] if problems else []


def save_networks(
    networks: Mapping[str, nn.Module],
    folder: Path,
    step: int,
    averaged: Mapping[str, nn.Module] | None = None,
) -> None:
    """Write `{name}_{step}.pth` and `{name}_latest.pth` for every network, as the release does.

    `averaged` networks (see `hidiff.engine.ema`) go into the same files as `params_ema`.
    """
    for name, network in networks.items():
        content = {"params": _on_cpu(network)}
        if averaged is not None:
            content["params_ema"] = _on_cpu(averaged[name])
        for suffix in (str(step), "latest"):
            save_atomically(content, folder / f"{name}_{suffix}.pth")


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


def load_state(path: str | Path, where: str) -> dict[str, Any]:
    """Read one training state.

    Raises:
        UserError: it is missing, damaged, or no training state of this project.
    """
    state = _load(Path(path), where)
    if not isinstance(state, Mapping) or not set(state) >= STATE_ENTRIES:
        raise UserError(
            f"{where}: {path} is no training state of this program; to go on from weights alone, "
            "name them under path.pretrain_network_*"
        )
    return dict(state)


def newest_state(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest readable state of an experiment, None when there is none.

    Returns:
        The state, and a notice for each damaged one that was passed over.
    """
    notices = []
    for _, path in reversed(_states(folder)):
        try:
            return load_state(path, "--auto_resume"), notices
        except UserError as error:
            notices.append(f"{error}; trying the one before it")
    return None, notices
