"""Published weights of the networks that HI-Diff is compared with, read without an option file."""

from __future__ import annotations

from pathlib import Path

import torch

from hidiff.archs import build_network
from hidiff.data import normalization_of
from hidiff.options import Options, load_options
from hidiff.options.yaml_file import shipped_options
from hidiff.utils.errors import UserError
from hidiff.weights.read import PART, Weights, load_weights
from hidiff.weights.recognise import look_alikes
from hidiff.weights.stored import StoredModel, blank_model, fill

SUFFIXES = (".pth", ".pt", ".ckpt", PART)
"""Endings of the files."""

BASELINES = "baselines"
"""The folder in options/ with a file for each of these networks."""


def is_in_parts(folder: Path) -> bool:
    """Whether a folder has the files of a network that is published in parts."""
    return any(folder.glob(f"*{PART}"))


def read_published(path: Path) -> StoredModel:
    """Read the weights of one network, and find its options.

    Args:
        path: the file or folder, see `load_weights`. Of averaged weights and others the averaged
            ones are taken.

    Raises:
        UserError: the file is damaged, or options/baselines has no network of these sizes.
    """
    weights = load_weights(path, "net_g", "params_ema")
    options = _options_of(weights)
    model = blank_model(options.sections, str(options.file))
    train, section = options.for_training()
    return StoredModel(
        name=path.stem,
        place=str(path),
        model=model,
        sections=fill(model, options.sections, {"net_g": weights}),
        normalization=normalization_of(section),
        patch_size=max(phase.patch_size for phase in section.phases(train.total_iter)),
        origin={"net_g": {"file": path.name, "sha256": weights.sha256, "entry": weights.entry}},
        notices=(f"network_g: {path} has the network of options/{BASELINES}/{options.file.name}",),
    )


def _options_of(weights: Weights) -> Options:
    """The option file whose network has these names and shapes.

    Raises:
        UserError: there is none.
    """
    shapes = {key: value.shape for key, value in weights.state_dict.items()}
    alike = look_alikes(shapes)
    for file in sorted((shipped_options() / BASELINES).glob("*.yml")):
        options = load_options(file)
        section = options.sections["network_g"]
        if section["type"] not in alike:
            continue
        with torch.device("meta"):
            network = build_network(section)
        if {key: value.shape for key, value in network.state_dict().items()} == shapes:
            return options
    kind = f", of {' or '.join(alike)} by its names" if alike else ""
    raise UserError(
        f"{weights.path} is one part of a model{kind}, and of other sizes than every network in "
        f"options/{BASELINES}; name the folder with all of its parts (net_g.pth, …) and its option "
        "file, or a packed file (.safetensors)"
    )
