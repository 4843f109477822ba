"""A model is one file: a safetensors file with every network and what is known about the model.

A safetensors file holds named tensors and texts, nothing that can run. The tensors of the network
net_g are called `net_g.…`, those of its average `average.net_g.…`. Its metadata has three texts:
`hidiff_format`; `hidiff`, the JSON of `About`; and `sha256` of that text and all tensors.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import hidiff
from hidiff.models import DeblurModel, build_model, section_of
from hidiff.registry import plain
from hidiff.utils.errors import UserError, missing
from hidiff.utils.files import file_sha256, write_bytes
from hidiff.weights.experiment import MODEL_SUFFIX
from hidiff.weights.tensors import Weights, load_network, require_weights, state_sha256

FORMAT = "2"
"""Of the metadata; a reader refuses files of another one."""

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""Dtypes of 16 bits that a model can be stored in."""

MOST_TIMESTEPS = 10_000
"""A file that says more is damaged: no diffusion model has so many steps."""

AVERAGE = "average."
"""Prefix of the averaged networks' names."""


class Score(BaseModel):
    """Mean scores on one data set."""

    model_config = ConfigDict(extra="allow")

    dataset: str
    protocol: str
    source: str
    restored: dict[str, float]
    local: str | None = None
    images: NonNegativeInt | None = None
    upper_bound: bool = False


class About(BaseModel):
    """What is known about a model.

    `options` are sections of an option file: `model_type`, `network_*` and `diffusion_schedule`
    at least. `patch_size` is the side of the largest training patch in pixels. `data` says what the
    model was trained on, `source` where somebody else has published it. What is not known is None
    or empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    name: str
    options: dict[str, Any]
    step: NonNegativeInt | None = None
    total_iter: NonNegativeInt | None = None
    patch_size: PositiveInt | None = None
    data: dict[str, Any] | None = None
    scores: tuple[Score, ...] = ()
    licence: str | None = None
    source: str | None = None
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class ModelFile:
    """A model file as read.

    Args:
        path: the file.
        sha256: of the file's bytes.
        about: what is known about the model.
        networks: of each network its tensors by name.
        averages: the same of the averaged networks; empty where no average is kept.
    """

    path: Path
    sha256: str
    about: About
    networks: dict[str, dict[str, Tensor]]
    averages: dict[str, dict[str, Tensor]]

    def weights(self, name: str, where: str, *, average: bool) -> Weights:
        """The weights of a network, the averaged ones where they are wanted and there."""
        averaged = self.averages.get(name) if average else None
        return Weights(
            self.path,
            where,
            averaged or self.networks[name],
            self.about.step,
            self.about.total_iter,
            self.sha256,
        )


def save_model(
    path: Path,
    model: DeblurModel,
    *,
    options: Mapping[str, Any],
    name: str,
    step: int | None,
    total_iter: int | None,
    average: DeblurModel | None = None,
    without: Collection[str] = (),
    scores: Sequence[Mapping[str, Any]] = (),
    data: Mapping[str, Any] | None = None,
    patch_size: int | None = None,
    half: str | None = None,
    licence: str | None = None,
    source: str | None = None,
) -> None:
    """Write every network of a model to one file, atomically.

    Args:
        path: of the file, ending in `.safetensors`; missing folders are made.
        model: its networks may be on any device.
        options, name, step, total_iter, scores, data, patch_size, licence, source: see
            `About`.
        average: the model with the average of the trained networks' weights.
        without: networks that are left out.
        half: one of `HALVES`, in which the weights are stored then; they are read back as float32.

    Raises:
        UserError: the file cannot be written, or a weight is too large for `half`.
    """
    versions = {
        "hidiff": hidiff.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }
    about = About.model_validate(
        plain(
            {
                **{"name": name, "options": options, "step": step, "total_iter": total_iter},
                **{"patch_size": patch_size, "data": data, "scores": list(scores)},
                **{"licence": licence, "source": source, "versions": versions},
            }
        )
    )
    networks = {key: net for key, net in model.networks().items() if key not in without}
    tensors = _tensors(networks, "", half)
    if average is not None:
        tensors |= _tensors(average.trained_networks(), AVERAGE, half)
    text = about.model_dump_json(exclude_none=True)
    metadata = {"hidiff_format": FORMAT, "hidiff": text, "sha256": _checksum(text, tensors)}
    write_bytes(path, safetensors.torch.save(tensors, metadata))


def _tensors(networks: Mapping[str, nn.Module], prefix: str, half: str | None) -> dict[str, Tensor]:
    """Copies on the CPU, because tensors that share memory cannot be saved.

    Raises:
        UserError: a weight is too large for `half`.
    """
    found = {}
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            tensor = value.detach().to("cpu", HALVES.get(half or ""), copy=True).contiguous()
            if half is not None and not torch.isfinite(tensor).all():
                raise UserError(f"{name}: the weights {key} are too large for {half}")
            found[f"{prefix}{name}.{key}"] = tensor
    return found


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{text}\n{state_sha256(tensors)}".encode()).hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The texts and the tensors of a safetensors file.

    Raises:
        UserError: it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is a folder" if path.is_dir() else missing(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # Copies, which do not change with the file.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except Exception as error:
        # Whatever the reader stumbles over, the file is the reason.
        raise damaged(path, (str(error) or repr(error)).splitlines()[0]) from None


def is_model_file(path: Path) -> bool:
    """Whether a file is called as model files are, and does not hold mere tensors."""
    if path.suffix != MODEL_SUFFIX or not path.is_file():
        return False
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "hidiff_format" in (file.metadata() or {})
    except Exception:
        return True  # Its reader says what is wrong with it.


def read_model_file(path: Path) -> ModelFile:
    """Read a model file, and check all of it but whether the weights fit the options.

    Raises:
        UserError: the file is missing, damaged or no model file, of another format, or its weights
            are not finite.
    """
    texts, tensors = read_tensors(path)
    if "hidiff_format" not in texts:
        raise UserError(f"{path}: not a model file of this project; `hidiff pack` makes them")
    if (found := texts["hidiff_format"]) != FORMAT:
        raise UserError(
            f"{path}: its format is {found[:20]!r}, this version of hidiff reads {FORMAT}; update "
            "hidiff, or pack the model again with this version"
        )
    try:
        about = About.model_validate_json(texts["hidiff"])
        whole = texts["sha256"] == _checksum(texts["hidiff"], tensors)
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"its metadata cannot be read ({_reason(error)})") from None
    if not whole:
        raise damaged(path, "checksum mismatch")
    require_weights(tensors, str(path))
    networks: dict[str, dict[str, Tensor]] = {}
    averages: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group = averages if key.startswith(AVERAGE) else networks
        name, _, parameter = key.removeprefix(AVERAGE).partition(".")
        group.setdefault(name, {})[parameter] = value
    if not networks:
        raise damaged(path, "it holds no networks")
    for name in {*networks, *averages}:
        if section_of(name) not in about.options or name not in networks:
            raise damaged(path, f"it holds weights of {name[:60]} without options for it")
    return ModelFile(path, file_sha256(path), about, networks, averages)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))[:60]}: {first['msg']}"
    return type(error).__name__


def damaged(path: Path, reason: str) -> UserError:
    """That a file is damaged, and why."""
    return UserError(
        f"{path} ({path.stat().st_size} bytes) is damaged or no safetensors file: {reason}; copy "
        "or download it again"
    )


class _TooLarge(Exception):
    """Options ask for more parameters than a file holds."""


@contextmanager
def _no_larger_than(tensors: int, numbers: int) -> Iterator[None]:
    """Stop the building of networks with more than so many parameters or numbers in them."""
    left = [tensors, numbers]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            left[0] -= 1
            left[1] -= parameter.numel()
        if min(left) < 0:
            raise _TooLarge

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def build_from(
    sections: Mapping[str, Any], weights: Mapping[str, Weights], place: str
) -> DeblurModel:
    """The model of some option sections with these weights, without copies of them.

    It is built without memory first, and not if it would be far larger than its weights.

    Args:
        sections: `model_type`, `network_*`, `diffusion_schedule`; others are not looked at.
        weights: of every network; without those of `net_le` a stage 2 is built for restoring only.
        place: where they come from, for messages.

    Raises:
        UserError: a section is missing or wrong, or the weights belong to other sections.
    """
    tensors = [tensor for part in weights.values() for tensor in part.state_dict.values()]
    sections = {key: value for key, value in sections.items() if key != "train"}
    schedule = sections.get("diffusion_schedule")
    timesteps = schedule.get("timesteps", 0) if isinstance(schedule, Mapping) else 0
    if not isinstance(timesteps, int) or timesteps > MOST_TIMESTEPS:
        raise UserError(f"{place}: diffusion_schedule.timesteps: {timesteps} cannot be right")
    try:
        with (
            torch.device("meta"),
            _no_larger_than(
                4 * len(tensors) + 1000, 16 * sum(tensor.numel() for tensor in tensors) + 10**7
            ),
        ):
            model = build_model(sections, training="net_le" in weights)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    except (_TooLarge, RuntimeError, OverflowError, MemoryError, TypeError, RecursionError):
        raise UserError(
            f"{place}: its options describe a far larger network than its weights: it is damaged"
        ) from None
    if absent := sorted(set(model.networks()) - set(weights)):
        raise UserError(f"{place}: it has no {', '.join(absent)}; the file is damaged")
    for name, network in model.networks().items():
        load_network(network, weights[name], assign=True)
    return model


def model_sections(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of some option sections those that a model is built from."""
    return {
        key: value
        for key, value in options.items()
        if key in ("model_type", "diffusion_schedule") or key.startswith("network_")
    }
