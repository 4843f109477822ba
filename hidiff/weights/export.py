"""A model in one file for others, and in the released layout."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path
from typing import Any

import torch
import yaml

from hidiff.models import section_of
from hidiff.registry import plain
from hidiff.utils.errors import UserError
from hidiff.utils.files import write_bytes, write_text
from hidiff.weights.experiment import MODEL_SUFFIX
from hidiff.weights.find import FoundModel
from hidiff.weights.model_file import save_model

LOG = logging.getLogger("hidiff")

OPTION_FILE = "options.yml"
"""Name of the option file that `unpack` writes."""


def pack(
    found: FoundModel,
    path: Path,
    *,
    half: str | None = None,
    for_training: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a model, without what only resuming or comparing trainings needs, to one file.

    Args:
        found: its networks and all that is known are written.
        path: of the file, ending in `.safetensors`; missing folders are made.
        half: see `save_model`.
        for_training: keep the encoder of stage 1 too, which only training needs.
        overwrite: replace a file that exists.

    Raises:
        UserError: the file exists, has another ending or cannot be written, or a weight is too
            large for `half`.
    """
    if path.suffix != MODEL_SUFFIX:
        raise UserError(f"{path}: the name of a model file ends in {MODEL_SUFFIX}")
    _require_free(path, overwrite)
    without = (
        [] if for_training else [n for n in found.model.networks() if n not in found.restoring]
    )
    save_model(
        path,
        found.model,
        without=without,
        options={k: v for k, v in found.options.items() if k not in map(section_of, without)},
        name=found.name,
        step=found.step,
        total_iter=found.total_iter,
        scores=found.scores,
        data=found.data,
        patch_size=found.patch_size,
        half=half,
        licence=found.licence,
        source=found.source,
    )


def unpack(found: FoundModel, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the networks of a model in the released layout, and an option file.

    A warning tells of weights that are stored with fewer bits than they were trained with.
    `net_g.pth` and its like hold `{'params': …}` with the tensors of the model, bit for bit.

    Args:
        found: the model.
        folder: where the files go; missing folders are made.
        overwrite: replace files that exist.

    Returns:
        The files that were written.

    Raises:
        UserError: a file exists or cannot be written.
    """
    kinds = {str(p.dtype).removeprefix("torch.") for p in found.model.parameters()} - {"float32"}
    if kinds:
        LOG.warning(
            "%s holds %s: not bit for bit what was trained, but rounded to it",
            *(found.place, ", ".join(sorted(kinds))),
        )
    files: dict[Path, bytes] = {}
    for name, network in found.model.networks().items():
        content: dict[str, Any] = {"params": dict(network.state_dict())}
        if found.step is not None:
            content["step"] = found.step
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files[folder / f"{name}.pth"] = buffer.getvalue()
    option_file = folder / OPTION_FILE
    for file in (*files, option_file):
        _require_free(file, overwrite)
    for file, data in files.items():
        write_bytes(file, data)
    write_text(option_file, _option_text(found, folder))
    return [*files, option_file]


def _option_text(found: FoundModel, folder: Path) -> str:
    """An option file for test.py, which also says what reading the folder again needs."""
    data: dict[str, Any] = {"name": "photographs", "type": "PairedImageIRDataset"}
    data["dataroot_lq"] = "photographs"
    if found.patch_size:
        data["gt_size"] = found.patch_size
    sections = {
        "name": re.sub(r"[^\w.+-]", "_", f"test_{found.name}")[:100],
        "datasets": {"test_1": data},
        **found.options,
        "path": {"weights": str(folder)},
    }
    return (
        "# To restore a folder of photographs: python test.py -opt THIS_FILE "
        "--force_yml datasets.test_1.dataroot_lq=FOLDER\n\n"
        f"{yaml.safe_dump(plain(sections), sort_keys=False, allow_unicode=True)}"
    )


def _require_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; take another name, or replace it with --overwrite")
