"""The tensors of one network: checked, and put into it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hidiff.utils.errors import UserError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes that weights are stored in."""


@dataclass(frozen=True)
class Weights:
    """The weights of one network as read from their file.

    Args:
        path: the file, or the folder of a network that is published in parts.
        where: what asked for it (a YAML path), for messages.
        state_dict: tensors by the names of the network's parameters.
        step: after which they were saved; None where the file does not say.
        total_iter: steps of the whole training; None where the file does not say.
        sha256: of the file's bytes.
        notices: what was changed or chosen while reading.
    """

    path: Path
    where: str
    state_dict: Mapping[str, Tensor]
    step: int | None
    total_iter: int | None
    sha256: str
    notices: tuple[str, ...] = ()


def require_weights(state_dict: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that are no weights.

    Raises:
        UserError: a tensor is no floating-point number of a usual dtype, or is not finite.
    """
    for key, value in state_dict.items():
        if value.dtype not in DTYPES:
            raise UserError(
                f"{where}: {key} holds {value.dtype}, weights are floating-point numbers of 16, 32 "
                "or 64 bits; take another file"
            )
    require_finite(state_dict, where)


def require_finite(state_dict: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that make every picture black and every gradient NaN.

    Raises:
        UserError: a tensor is not finite.
    """
    for key, value in state_dict.items():
        if not torch.isfinite(value).all():
            raise UserError(
                f"{where}: the weights {key} are not all finite (NaN or infinite); the file is "
                "damaged, or of a training that failed: take another one"
            )


def state_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's weights on the CPU: names, dtypes, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for key, tensor in sorted(state_dict.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differences(network: nn.Module, state_dict: Mapping[str, Tensor]) -> tuple[list[str], set[str]]:
    """How weights differ from those of a network, in words, and the names of those that fit it."""
    ours = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in state_dict.items()}
    fitting = {key for key, shape in ours.items() if theirs.get(key) == shape}
    problems = []
    if missing := sorted(set(ours) - set(theirs)):
        problems.append(f"{_count(missing)} missing ({_first(missing)})")
    if unknown := sorted(set(theirs) - set(ours)):
        problems.append(f"{_count(unknown)} unknown ({_first(unknown)})")
    if other := sorted(set(ours) & set(theirs) - fitting):
        key = other[0]
        problems.append(
            f"{_count(other)} of another shape ({key}: {theirs[key]} in the file, {ours[key]} here)"
        )
    return problems, fitting


def _count(names: list[str]) -> str:
    return f"{len(names)} parameter is" if len(names) == 1 else f"{len(names)} parameters are"


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def load_network(
    network: nn.Module, weights: Weights, *, strict: bool = True, assign: bool = False
) -> list[str]:
    """Put weights into a network.

    Args:
        network: on the CPU; with `assign` on torch's meta device.
        weights: for it.
        strict: refuse weights that do not fit; otherwise what fits is taken.
        assign: the weights' tensors become those of the network, in place of copies.

    Returns:
        Notices about parameters that were left out, and those of the weights.

    Raises:
        UserError: `strict`, and the weights belong to another network or configuration; or none
            of them fits.
    """
    state_dict = weights.state_dict
    problems, fitting = differences(network, state_dict)
    where = f"{weights.where}: {weights.path}"
    total = len(network.state_dict())
    if problems and (strict or not fitting):
        raise UserError(
            f"{where} belongs to another network or configuration, {len(fitting)} of {total} "
            f"parameters fit: {'; '.join(problems)}. Take another file, or make the network "
            "sections of the option file those that the weights were trained with"
        )
    network.load_state_dict({key: state_dict[key] for key in fitting}, strict=False, assign=assign)
    notices = list(weights.notices)
    if problems:
        notices.append(
            f"{where}: {len(fitting)} of {total} parameters taken; {'; '.join(problems)}"
        )
    return notices
