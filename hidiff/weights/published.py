"""Published weights: the released layout, and those of other networks, with or without options."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hidiff.archs import build_network
from hidiff.archs.baselines.diffir import published_networks
from hidiff.diffusion import LatentDDPM
from hidiff.models import section_of
from hidiff.registry import ARCHS, check_call
from hidiff.utils.errors import UserError
from hidiff.utils.files import file_sha256
from hidiff.utils.torch_file import ENTRIES, load_torch_file
from hidiff.weights.experiment import MODEL_SUFFIX
from hidiff.weights.model_file import read_tensors
from hidiff.weights.tensors import Weights, require_weights

NETWORKS = ("net_g", "net_le_dm", "net_d", "net_le")

PART = ".pkl"
"""Ending of the files of a network that is published in parts (DMPHN)."""

SUFFIXES = (".pth", ".pt", ".ckpt", PART, MODEL_SUFFIX)
"""Endings of files with the weights of one network."""

PREFIX = re.compile(r"((module|_orig_mod|net_g)\.)+")
"""What DataParallel, torch.compile and Lightning put before the names of parameters."""

COUNTERS = ("total_ops", "total_params")
"""What thop's counting leaves in a network."""

SCHEDULES = {
    "denoising": {"apply_ldm": False, "timesteps": 8},
    "simple_denoise": {"apply_ldm": True, "timesteps": 16},
    "vector": {"apply_ldm": True, "timesteps": 4},
}
"""Of the released models with each denoiser, and of DiffIR's, whose guidance is 'vector'."""


UNRECOGNISED = (
    *(ValueError, LookupError, ArithmeticError, RuntimeError),
    *(AssertionError, AttributeError),  # of networks that do not say their options
)
"""What a network's `infer_options` answers to weights that are not its own."""


def load_weights(path: Path, where: str, param_key: str | None = "params") -> Weights:
    """Read the weights of one network, in any of the published layouts.

    A file holds a bare state dict, or one under `param_key` or another of `ENTRIES`. A folder holds
    a file of each part of the network, called as that part (`encoder_lv1.pkl`).

    Args:
        path: the file or folder.
        where: what asks for it (a YAML path), for messages.
        param_key: entry to take where there is one of this name; None: the averaged weights
            where they are there, else the first of `ENTRIES`.

    Raises:
        UserError: the file is missing or damaged, has no such entry, or weights in it are not
            finite.
    """
    if path.is_dir() and (files := sorted(path.glob(f"*{PART}"))):
        parts = {file.stem: load_weights(file, where, param_key) for file in files}
        whole = {f"{n}.{key}": v for n, part in parts.items() for key, v in part.state_dict.items()}
        sums = "".join(part.sha256 for part in parts.values())
        return Weights(path, where, whole, None, None, hashlib.sha256(sums.encode()).hexdigest())
    content: Any
    if path.suffix == MODEL_SUFFIX:
        content, sha256 = read_tensors(path)[1], file_sha256(path)
    else:
        content, sha256 = load_torch_file(path, where)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where}: {path} holds no table of parameters; take another file")
    state_dict, notices = _entry(content, param_key, f"{where}: {path}")
    state_dict, more = _plain_names(state_dict, f"{where}: {path}")
    require_weights(state_dict, f"{where}: {path}")
    numbers = (content.get(key) for key in ("step", "total_iter"))
    step, total_iter = (number if isinstance(number, int) else None for number in numbers)
    return Weights(path, where, state_dict, step, total_iter, sha256, (*notices, *more))


def load_published(path: Path, name: str = "net_g") -> dict[str, Weights]:
    """The weights of all networks in a published file, or in a folder of a network's parts.

    Args:
        path: see `load_weights`; the averaged weights are taken where they are there.
        name: of the network, where it is one.

    Raises:
        UserError: see `load_weights`.
    """
    weights = load_weights(path, name, None)
    try:
        networks = published_networks(weights.state_dict)
    except ValueError:
        return {name: weights}
    return {
        name: dataclasses.replace(weights, where=name, state_dict=state_dict)
        for name, state_dict in networks.items()
    }


def _entry(
    content: Mapping[Any, Any], param_key: str | None, where: str
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The table of parameters in a file's content, and a notice if another one was wanted.

    Raises:
        UserError: there is none.
    """
    if all(isinstance(value, Tensor) for value in content.values()):
        return content, ()
    keys = (param_key or "params_ema", *ENTRIES)
    entry = next((key for key in keys if key in content), None)
    if entry is None:
        raise UserError(
            f"{where} has no entry {', '.join(map(repr, ENTRIES))}, only "
            f"{', '.join(map(str, content))}; if one of them holds the weights, name it in the "
            "option file under path.param_key_*"
        )
    table = content[entry]
    if (
        not isinstance(table, Mapping)
        or not table
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in table.items())
    ):
        raise UserError(
            f"{where}: its entry '{entry}' is no table of parameters; take another file, or name "
            "another entry under path.param_key_*"
        )
    wanted = entry == param_key or param_key is None
    return table, () if wanted else (f"{where} has no entry '{param_key}'; '{entry}' is taken",)


def _plain_names(
    state_dict: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors without what tools add to their names or beside them, and what that was."""
    counters = [key for key in state_dict if key.rpartition(".")[2] in COUNTERS]
    found, prefixes = {}, set()
    for key, value in state_dict.items():
        prefix = PREFIX.match(key)
        if prefix:
            prefixes.add(prefix[0])
        if key not in counters:
            found[key[prefix.end() if prefix else 0 :]] = value
    notices = []
    if prefixes:
        notices.append(f"{where}: the prefix {', '.join(sorted(prefixes))} of names is left out")
    if counters:
        notices.append(f"{where}: {len(counters)} counters ({counters[0]}, …) are left out")
    return found, tuple(notices)


def network_files(folder: Path, step: int | None = None) -> dict[str, Path]:
    """The files `net_g.pth`, `net_le_dm.pth`, … in a folder, by network.

    Args:
        step: that of `net_g_{step}.pth`, as BasicSR's trainings write them; None: those without a
            step, else `…_latest.pth`, else those of the newest step of `net_g`.
    """
    steps = [
        int(named[1])
        for path in folder.glob("net_g_*.pth")
        if (named := re.fullmatch(r"net_g_(\d+)", path.stem))
    ]
    ends = ["", "_latest", *(f"_{n}" for n in sorted(steps)[-1:])] if step is None else [f"_{step}"]
    for end in ends:
        files = {name: folder / f"{name}{end}.pth" for name in NETWORKS}
        if found := {name: path for name, path in files.items() if path.is_file()}:
            return found
    return {}


def recognise(state_dict: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The option section of the network whose parameters have these names and shapes.

    Raises:
        UserError: there is no such network; the message says of the most similar one why.
    """
    fitting, reasons = [], {}
    shapes = {key: value.shape for key, value in state_dict.items()}
    for kind in ARCHS:
        try:
            network: Any = ARCHS.get(kind, where)
            options = network.infer_options(state_dict)
            section = ARCHS.resolved({"type": kind, **options}, where)
            with torch.device("meta"):
                ours = build_network(section).state_dict()
        except UNRECOGNISED as error:
            reasons[kind] = str(error)
            continue
        if {key: value.shape for key, value in ours.items()} == shapes:
            fitting.append(section)
            continue
        missing, unknown = sorted(set(ours) - set(shapes)), sorted(set(shapes) - set(ours))
        words = [
            f"{len(keys)} names are {what} ({', '.join(keys[:3])}, …)"
            for what, keys in (("missing", missing), ("unknown", unknown))
            if keys
        ]
        return_reason = "; ".join(words) or "its shapes do not go together"
        reasons = {kind: return_reason} if len(missing) < len(ours) / 2 else reasons
    if fitting:
        # NAFNetLocal has NAFNet's parameters; its local statistics belong to the published scores.
        return fitting[-1]
    near = "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items() if len(reasons) < 4)
    raise UserError(
        f"{where} holds the weights of no network known here{f' ({near})' if near else ''}; "
        f"known: {', '.join(ARCHS)}. Of your own network put the option file beside the weights"
    )


def infer_sections(weights: Mapping[str, Weights], place: str) -> tuple[dict[str, Any], list[str]]:
    """The sections of an option file that fit some weights.

    Args:
        weights: by the networks' official names.
        place: where they lie, for messages.

    Returns:
        `model_type`, the networks' sections and the schedule, defaults filled in; and notices about
        what no shape shows.

    Raises:
        UserError: a network is missing, or its weights are not those of a known network.
    """
    found = {name: recognise(part.state_dict, str(part.path)) for name, part in weights.items()}
    sections: dict[str, Any] = {section_of(name): section for name, section in found.items()}
    net_g = found.get("net_g", {})
    if net_g and net_g.get("guidance", "none") == "none":
        return {"model_type": "Regression", **sections}, []
    absent = [name for name in ("net_g", "net_le_dm", "net_d") if name not in found]
    if set(found) == {"net_g", "net_le"}:
        return {"model_type": "HI_Diff_S1", **sections}, []
    if absent:
        files = ", ".join(f"{name}.pth" for name in absent)
        raise UserError(
            f"{place} is one part of a model; restoring needs {files} too: put them into one "
            "folder, and name that"
        )
    kind = "vector" if net_g["guidance"] == "vector" else found["net_d"]["type"]
    schedule = check_call(LatentDDPM, SCHEDULES[kind], "diffusion_schedule")
    # What not every shape shows.
    shared = {"group": found["net_le_dm"].get("group")}
    if kind == "vector":
        shared["timesteps"] = schedule["timesteps"]
    for section in found.values():
        section |= {k: v for k, v in shared.items() if k in section and v is not None}
    sections["diffusion_schedule"] = schedule
    words = ", ".join(f"{key} {value}" for key, value in schedule.items() if value is not None)
    notice = (
        f"diffusion_schedule: no shape shows it; that of the released models is taken ({words}), "
        "unless an option file beside the weights says otherwise"
    )
    return {"model_type": "HI_Diff_S2", **sections}, [notice]
