"""Reading weights files of the published layouts into networks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError
from hidiff.utils.files import load_torch_file
from hidiff.weights.recognise import look_alikes

ENTRIES = ("params", "params_ema", "state_dict", "model")
"""Under which published files keep the weights, in the order in which they are looked for."""

PART = ".pkl"
"""Ending of the files of a network that is published in parts (DMPHN)."""


@dataclass(frozen=True)
class Weights:
    """The weights of one network as read from their file.

    Args:
        path: the file, or the folder of a network in parts.
        where: what asked for it (a YAML path), for messages.
        state_dict: tensors by name, a `module.` prefix (of DataParallel) stripped.
        step: after which they were saved; None where the file does not say.
        total_iter: steps of the whole training; None where the file does not say.
        sha256: of the file's bytes.
        entry: that of the file which was taken; None for a bare state dict.
        notices: that another entry than the one asked for was taken.
    """

    path: Path
    where: str
    state_dict: dict[str, Tensor]
    step: int | None
    total_iter: int | None
    sha256: str
    entry: str | None = None
    notices: tuple[str, ...] = ()


def load_weights(path: str | Path, where: str, param_key: str | None = "params") -> Weights:
    """Read the weights of one network, in any of the published layouts.

    A file holds a bare state dict, or one under `param_key` or another of `ENTRIES`. A folder holds
    a file of each part of the network, called as that part (`encoder_lv1.pkl`).

    Args:
        path: the file or folder.
        where: what asks for it (a YAML path), for messages.
        param_key: entry to take where there is one of this name; None: the first of `ENTRIES`.

    Raises:
        UserError: the file is missing or damaged, has no such entry, or weights in it are not
            finite.
    """
    path = Path(path)
    if path.is_dir() and (files := sorted(path.glob(f"*{PART}"))):
        parts = {file.stem: load_weights(file, where, param_key) for file in files}
        whole = {f"{n}.{key}": v for n, part in parts.items() for key, v in part.state_dict.items()}
        sums = "".join(part.sha256 for part in parts.values())
        return Weights(path, where, whole, None, None, hashlib.sha256(sums.encode()).hexdigest())
    content, sha256 = load_torch_file(path, where)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where}: {path} holds no table of parameters; take another file")
    notices: tuple[str, ...] = ()
    entry = None
    if all(isinstance(value, Tensor) for value in content.values()):
        state_dict = content
    else:
        entry = next((key for key in (param_key, *ENTRIES) if key in content), None)
        if entry is None:
            raise UserError(
                f"{where}: {path} has no entry {', '.join(map(repr, ENTRIES))}, only "
                f"{', '.join(map(str, content))}; if one of them holds the weights, name it in the "
                "option file under path.param_key_*"
            )
        if entry != param_key:
            notices = (f"{where}: {path} has no entry '{param_key}'; '{entry}' is taken",)
        state_dict = content[entry]
    if (
        not isinstance(state_dict, Mapping)
        or not state_dict
        or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in state_dict.items()
        )
    ):
        raise UserError(
            f"{where}: '{entry}' in {path} is no table of parameters; take another file, or name "
            "another entry under path.param_key_*"
        )
    require_finite(state_dict, f"{where}: {path}")
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    numbers = (content.get(key) for key in ("step", "total_iter"))
    step, total_iter = (number if isinstance(number, int) else None for number in numbers)
    return Weights(path, where, state_dict, step, total_iter, sha256, entry, notices)


def part_of(weights: Weights, part: str) -> Weights:
    """The weights of a network's submodule; those of the network for ''."""
    if not part:
        return weights
    own = {
        key.removeprefix(f"{part}."): value
        for key, value in weights.state_dict.items()
        if key.startswith(f"{part}.")
    }
    return dataclasses.replace(weights, state_dict=own)


def require_finite(state_dict: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that make every picture black and every gradient NaN."""
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
        UserError: `strict`, and the weights belong to another network or configuration.
    """
    ours = network.state_dict()
    theirs, where, path = weights.state_dict, weights.where, weights.path
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
        own = [kind for kind in ARCHS if ARCHS.get(kind, "") is type(network)]
        alike = look_alikes(theirs)
        if own and alike and not set(own) & set(alike):
            raise UserError(
                f"{where}: {path} looks like weights of {' or '.join(alike)}, and this network is "
                f"{' or '.join(own)}: {'; '.join(problems)}. Take another file, or change "
                "the type in the network's section of the option file"
            )
        raise UserError(
            f"{where}: {path} belongs to another configuration: {'; '.join(problems)}. Make the "
            "network sections of the option file those that the weights were trained with"
        )
    network.load_state_dict(
        {k: v for k, v in theirs.items() if k in ours and k not in shapes},
        strict=False,
        assign=assign,
    )
    return [*weights.notices, *([f"{where}: {path}: {'; '.join(problems)}"] if problems else [])]


def require_one_step(loaded: Iterable[Weights]) -> None:
    """Make sure that the `…_latest.pth` files of a folder belong together.

    Raises:
        UserError: they are of different steps.
    """
    by_folder: dict[Path, dict[str, int]] = {}
    for weights in loaded:
        if weights.path.name.endswith("_latest.pth") and weights.step is not None:
            by_folder.setdefault(weights.path.parent, {})[weights.path.name] = weights.step
    for folder, steps in by_folder.items():
        if len(set(steps.values())) > 1:
            found = ", ".join(f"{name} of step {step}" for name, step in steps.items())
            raise UserError(
                f"{folder} holds files that do not belong together: {found}. Name files of one "
                "step under path.pretrain_network_* (…_STEP.pth), or let the training there save "
                "again"
            )
