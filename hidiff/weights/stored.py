"""A model as it lies in files: networks with their weights, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hidiff.data import Normalization
from hidiff.models import DeblurModel, build_model, section_of
from hidiff.utils.errors import UserError
from hidiff.weights.read import Weights, load_network


@dataclass(frozen=True)
class StoredModel:
    """A model that was read.

    Args:
        name: of the experiment, the folder or the packed file.
        place: where it was read, for messages.
        model: on the CPU, with the weights in the dtype that they were stored in.
        sections: what it was built from: `model_type`, `network_*`, `diffusion_schedule`.
            `network_le` of a stage 2 is there where its encoder is, which only training needs.
        step: after which the weights were saved; None where that is not known.
        normalization: what the networks see images normalised by; None for [0, 1].
        patch_size: side of the largest training patch in pixels; None where it is not known.
        data: of the training: a name and folders; None where they are not known.
        origin: of each network the file's name, its SHA-256 and the entry taken from it.
        scores: rows of data set, protocol, source and means.
        licence: of the weights; None where nobody has said.
        versions: of the libraries that packed it; empty where it is not packed.
        folder: of the experiment; None where it is none.
        notices: what the user must know.
    """

    name: str
    place: str
    model: DeblurModel
    sections: Mapping[str, Any]
    step: int | None = None
    normalization: Normalization | None = None
    patch_size: int | None = None
    data: Mapping[str, Any] | None = None
    origin: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scores: Sequence[Mapping[str, Any]] = ()
    licence: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    notices: tuple[str, ...] = ()

    @property
    def restoring(self) -> dict[str, nn.Module]:
        """The networks that restoring needs."""
        networks = self.model.networks()
        if not self.model.restores_from_gt:
            networks.pop("net_le", None)
        return networks

    @property
    def description(self) -> str:
        """What it is and where it is from, on one line."""
        networks = self.restoring.values()
        parameters = sum(p.numel() for network in networks for p in network.parameters()) / 1e6
        step = "" if self.step is None else f", step {self.step}"
        kind = self.sections["model_type"]
        return f"{kind}, {parameters:.3g} M parameters{step}, from {self.place}"


def blank_model(sections: Mapping[str, Any], place: str, *, training: bool = False) -> DeblurModel:
    """The model of some option sections; its parameters have shapes and no memory.

    `fill` gives them theirs.

    Args:
        training: with the networks that only training needs, where they have a section.

    Raises:
        UserError: a section is missing or wrong.
    """
    try:
        with torch.device("meta"):
            return build_model(
                {key: value for key, value in sections.items() if key != "train"},
                training=training,
            )
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def fill(
    model: DeblurModel, sections: Mapping[str, Any], weights: Mapping[str, Weights]
) -> dict[str, Any]:
    """Put weights into a `blank_model`, without a copy.

    Returns:
        The sections that it was built from.

    Raises:
        UserError: the weights belong to another configuration, or are no floating-point numbers.
    """
    for name, network in model.networks().items():
        for key, value in weights[name].state_dict.items():
            if not value.is_floating_point():
                raise UserError(
                    f"{name}: {weights[name].path}: {key} holds {value.dtype}, weights are "
                    "floating-point numbers; take another file"
                )
        load_network(network, weights[name], assign=True)
    used = {"model_type", "diffusion_schedule", *map(section_of, model.networks())}
    if not hasattr(model, "diffusion"):
        used.remove("diffusion_schedule")
    return {key: value for key, value in sections.items() if key in used}
