"""Packed files: networks and what is known about them, in one file.

A packed file is a safetensors file: named tensors and texts, nothing that can run. Its tensors are
called `net_g.…`, `net_le_dm.…`; its metadata holds JSON texts by the names of `describe`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

import hidiff
from hidiff.utils.errors import UserError, missing
from hidiff.utils.files import file_sha256, write_bytes, write_text
from hidiff.utils.typecheck import check_call, plain
from hidiff.weights.read import Weights, require_finite, state_sha256
from hidiff.weights.stored import StoredModel, blank_model, fill

LOG = logging.getLogger("hidiff")

FORMAT = 1
"""Of the metadata; a reader refuses files of another one."""

SUFFIX = ".safetensors"
OPTION_FILE = "options.yml"
"""Name of the option file that `unpack` writes."""

KNOWN = (
    *("name", "normalization", "patch_size", "data", "step"),
    *("scores", "licence", "versions", "origin"),
)
"""Fields of `StoredModel` that the metadata has as they are."""

BUNDLED = Path(__file__).with_name(f"bundled{SUFFIX}")
"""The trained model that comes with the package; where nothing else is called so, its stem is its
name."""

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def describe(model: StoredModel) -> dict[str, Any]:
    """What is known about a model, as plain data: the metadata of a packed file.

    `hidiff_format`, `model_type`, the networks' option sections, `diffusion_schedule`, the fields
    `KNOWN` of `StoredModel`, and `sha256` of each network, see `state_sha256`.
    """
    networks = model.model.networks()
    known = {key: getattr(model, key) for key in KNOWN}
    if model.normalization is not None:
        known["normalization"] = dataclasses.asdict(model.normalization)
    return {
        "hidiff_format": FORMAT,
        "model_type": model.sections["model_type"],
        **plain({**known, **model.sections}),
        "sha256": {name: state_sha256(net.state_dict()) for name, net in networks.items()},
    }


def pack(
    model: StoredModel, path: Path, *, half: str | None = None, overwrite: bool = False
) -> StoredModel:
    """Write a packed file.

    Args:
        model: see `hidiff.weights.load.find_model`.
        path: of the file, ending in `.safetensors`; missing folders are made.
        half: one of `HALVES`, in which the weights are stored then; they are read back as float32.
        overwrite: replace a file that exists.

    Returns:
        The model as it was packed.

    Raises:
        UserError: the file exists, has another ending or cannot be written, or a weight is too
            large for `half`.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: the name of a packed file ends in {SUFFIX}")
    _require_free(path, overwrite)
    versions = {
        "hidiff": hidiff.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }
    model = dataclasses.replace(model, versions=versions)
    tensors: dict[str, Tensor] = {}
    for name, network in model.model.networks().items():
        if half is not None:
            _convert(network, HALVES[half], f"{model.place}: {name}")
        # Copies, because tensors that share memory cannot be saved.
        tensors |= {f"{name}.{k}": v.clone().contiguous() for k, v in network.state_dict().items()}
    metadata = describe(model)
    metadata["sha256"]["metadata"] = _metadata_sha256(metadata)
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    write_bytes(path, safetensors.torch.save(tensors, texts))
    return model


def packed_weights(path: Path) -> tuple[dict[str, Any], dict[str, Weights]]:
    """The metadata of a packed file without its sums, and the weights by network.

    Raises:
        UserError: the file is missing, damaged or no packed file, is of a later format, or its
            weights are not finite.
    """
    if not path.is_file():
        raise UserError(f"{path} is a folder" if path.is_dir() else missing(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            # Copies, which do not change with the file.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except Exception as error:
        # Whatever the reader stumbles over, the file is the reason.
        raise _damaged(path, str(error).splitlines()[0]) from None
    if "hidiff_format" not in texts:
        raise UserError(f"{path}: not a packed file of this project; `hidiff pack` makes them")
    metadata = _parsed(texts, path)
    expected, sha256 = metadata.pop("sha256"), file_sha256(path)
    weights = {
        name: Weights(
            path=path,
            where=name,
            state_dict={
                key.removeprefix(f"{name}."): value
                for key, value in tensors.items()
                if key.startswith(f"{name}.")
            },
            step=metadata.get("step"),
            total_iter=None,
            sha256=sha256,
        )
        for name in expected
        if name != "metadata"
    }
    if len(tensors) != sum(len(part.state_dict) for part in weights.values()):
        raise _damaged(path, "it holds tensors of no network")
    for name, part in weights.items():
        if state_sha256(part.state_dict) != expected[name]:
            raise _damaged(path, f"the SHA-256 of {name} is another")
        require_finite(part.state_dict, f"{path}: {name}")
    return metadata, weights


def read_packed(path: Path) -> StoredModel:
    """Read a packed file, and check all of it.

    Raises:
        UserError: see `packed_weights`; or the weights do not fit the options in the file.
    """
    metadata, weights = packed_weights(path)
    known = check_call(
        StoredModel,
        {key: value for key, value in metadata.items() if key in KNOWN},
        str(path),
        supplied=("place", "model", "sections", "folder", "notices"),
    )
    sections = {key: value for key, value in metadata.items() if key not in KNOWN}
    del sections["hidiff_format"]
    # Of what only training needs there is a section where it was packed too.
    model = blank_model(sections, str(path), training=True)
    if absent := sorted(set(model.networks()) - set(weights)):
        raise _damaged(path, f"it has no {', '.join(absent)}")
    return StoredModel(
        **known, place=str(path), model=model, sections=fill(model, sections, weights)
    )


def unpack(path: Path, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the networks of a packed file in the released layout, and an option file.

    A warning tells of weights that were packed with fewer bits than they were trained with.
    `net_g.pth` and its like hold `{'params': …}` with the tensors of the packed file, bit for bit.

    Args:
        path: of the packed file.
        folder: where the files go; missing folders are made.
        overwrite: replace files that exist.

    Returns:
        The files that were written.

    Raises:
        UserError: see `read_packed`; a file exists or cannot be written.
    """
    model = read_packed(path)
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.model.parameters()} - {"float32"}
    if kinds:
        LOG.warning(
            "%s holds %s: not bit for bit what was trained, but rounded to it",
            *(path, ", ".join(sorted(kinds))),
        )
    files: dict[Path, bytes] = {}
    for name, network in model.model.networks().items():
        content: dict[str, Any] = {"params": dict(network.state_dict())}
        if model.step is not None:
            content["step"] = model.step
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files[folder / f"{name}.pth"] = buffer.getvalue()
    option_file = folder / OPTION_FILE
    for file in (*files, option_file):
        _require_free(file, overwrite)
    for file, data in files.items():
        write_bytes(file, data)
    write_text(option_file, _option_text(model, path, folder))
    return [*files, option_file]


def _option_text(model: StoredModel, path: Path, folder: Path) -> str:
    """An option file for test.py, which also says what reading the folder again needs."""
    data: dict[str, Any] = {"name": "photographs", "type": "PairedImageIRDataset"}
    data["dataroot_lq"] = "photographs"
    if model.normalization:
        data |= dataclasses.asdict(model.normalization)
    if model.patch_size:
        data["gt_size"] = model.patch_size
    sections = {
        "name": re.sub(r"[^\w.+-]", "_", f"test_{model.name}")[:100],
        "datasets": {"test_1": data},
        **model.sections,
        "path": {"weights": str(folder)},
    }
    return (
        f"# The model of a packed file with SHA-256 {file_sha256(path)}.\n"
        "# To restore a folder of photographs: python test.py -opt THIS_FILE "
        "--force_yml datasets.test_1.dataroot_lq=FOLDER\n\n"
        f"{yaml.safe_dump(plain(sections), sort_keys=False, allow_unicode=True)}"
    )


def _require_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; take another name, or replace it with --overwrite")


def _convert(network: nn.Module, dtype: torch.dtype, where: str) -> None:
    """Make the weights of a network those of another dtype.

    Raises:
        UserError: one of them is too large for it.
    """
    network.to(dtype)
    for key, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f"{where}: the weights {key} are too large for {dtype}; take bfloat16")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} ({path.stat().st_size} bytes) is damaged or no safetensors file: {reason}; copy "
        "or download it again"
    )


def _metadata_sha256(metadata: Mapping[str, Any]) -> str:
    """Of all but the sums themselves."""
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _parsed(texts: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The metadata of a packed file.

    Raises:
        UserError: it is of another format, damaged or not complete.
    """
    if (found := texts["hidiff_format"]) != str(FORMAT):
        raise UserError(
            f"{path}: its format is {found[:20]}, this version of hidiff reads {FORMAT}; update "
            "hidiff, or pack the model again with this version"
        )
    try:
        metadata = {key: json.loads(text) for key, text in texts.items()}
        sums = metadata["sha256"]
        whole = sums["metadata"] == _metadata_sha256(metadata)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"its metadata cannot be read ({error!r})") from None
    if not whole:
        raise _damaged(path, "the SHA-256 of its metadata is another")
    return metadata
