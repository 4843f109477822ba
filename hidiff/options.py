"""Option files: YAML → checked, typed options with all defaults filled in.

Every section has a frozen dataclass here; a section that names a registered class (`type: X`) is a
mapping, checked against X's signature. Every error names its place in the file and the way out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hidiff.diffusion import LatentDDPM
from hidiff.errors import UserError
from hidiff.registry import ARCHS, DATASETS, LOSSES, METRICS, OPTIMIZERS, SCHEDULERS, Registry
from hidiff.typecheck import check_call, expanded, plain, suggestion
from hidiff.yaml_file import apply_overrides, merged, read_layers, read_yaml

Section = Mapping[str, Any]
Precision = Literal["fp32", "tf32", "bf16"]
LEVELS = (1, 2, 3, 4)
"""The Transformer's levels, from full to an eighth of the resolution."""

DEAD_OPTIONS = {
    r"datasets\.\w+\.use_shuffle": "training data is always shuffled, validation data never",
    r"datasets\.\w+\.prefetch_mode": "batches are always prefetched by the loader's workers",
    r"datasets\.\w+\.persistent_workers": "the loader's workers always live as long as the run",
    r"train\.mixing_augs": "the released training never mixes images",
    r"logger\.wandb": "metrics go to TensorBoard",
    r"val\.metrics\.\w+\.input_order": "pictures are always height × width × channels",
    r"path\.ignore_resume_networks": "a training state holds all networks and resumes them all",
    r"find_unused_parameters": "every parameter takes part in every step",
}
"""Options that the release accepts and that have no effect here, and why."""

PATH_OPTIONS = r"dataroot_\w+|meta_info_file|cache"
"""Options of a data set's `source` that are paths."""

MAX_NAME = 150
"""Bytes of a name that becomes part of file names, which may have 255 with what is added."""


def _error(where: str, message: str) -> UserError:
    return UserError(f"{where}: {message}")


def _require_file_name(name: str, where: str, first: str = r"[\w.+-]") -> None:
    """Refuse what cannot be part of a file's or folder's name; `first` is the first character."""
    if not re.fullmatch(rf"{first}[\w.+-]*", name) or name in (".", ".."):
        raise _error(
            where, f"'{name}' becomes part of file names; use letters, digits, and . + - _"
        )
    if (length := len(name.encode())) > MAX_NAME:
        raise _error(where, f"{length} bytes are too long for a file's name; use up to {MAX_NAME}")


@dataclass(frozen=True)
class Phase:
    """One phase of progressive training.

    `patch_size` is in pixels, `batch_size` per process, `iters` the phase's length in steps.
    """

    patch_size: int
    batch_size: int
    iters: int


@dataclass(frozen=True)
class DatasetOptions:
    """A `datasets.*` section: what the loader needs; `source` goes to the dataset class.

    A training waits `timeout` seconds for a batch of its loader processes. `pin_memory` makes
    copies to a GPU that do not block, by default where there is one; each loader process keeps
    `num_prefetch_queue` batches ready. `mean` and `std` of red, green and blue are what networks
    see images normalised by; scores and pictures are of what they restore, taken back to [0, 1].
    """

    name: str
    source: Section
    where: str
    num_worker_per_gpu: int = 4
    timeout: float = 600.0
    num_prefetch_queue: int = 2
    pin_memory: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    batch_size_per_gpu: int | None = None
    dataset_enlarge_ratio: int = 1
    mini_batch_sizes: tuple[int, ...] | None = None
    iters: tuple[int, ...] | None = None
    gt_size: int | None = None
    gt_sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _require_file_name(self.name, f"{self.where}.name")
        for key in ("batch_size_per_gpu", "dataset_enlarge_ratio", "gt_size", "num_prefetch_queue"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise _error(f"{self.where}.{key}", f"{value} must be at least 1")
        if self.std is not None and min(self.std) <= 0:
            raise _error(f"{self.where}.std", f"{list(self.std)} must be above 0")
        if self.num_worker_per_gpu < 0:
            raise _error(f"{self.where}.num_worker_per_gpu", "must not be negative")
        if not 0 < self.timeout < math.inf:
            raise _error(f"{self.where}.timeout", f"{self.timeout} seconds must be above 0")

    def phases(self, total_iter: int) -> tuple[Phase, ...]:
        """The phases of progressive training up to `total_iter`; one when the file lists none.

        As in the release the last phase goes on to the end of the training, and what `iters`
        names beyond it is cut off.

        Raises:
            UserError: the lists do not fit each other, `gt_size` or `batch_size_per_gpu`.
        """
        if self.gt_size is None or self.batch_size_per_gpu is None:
            raise _error(self.where, "training needs gt_size and batch_size_per_gpu")
        lists = {key: getattr(self, key) for key in ("mini_batch_sizes", "iters", "gt_sizes")}
        given = {key: values for key, values in lists.items() if values is not None}
        if given and len(given) < 3:
            absent = ", ".join(sorted(set(lists) - set(given)))
            raise _error(self.where, f"progressive training also needs {absent}")
        if not given:
            phases = [Phase(self.gt_size, self.batch_size_per_gpu, total_iter)]
        else:
            if len({len(values) for values in given.values()}) > 1:
                lengths = ", ".join(f"{key} {len(values)}" for key, values in given.items())
                raise _error(self.where, f"one entry a phase in each list, but they have {lengths}")
            if max(self.gt_sizes) > self.gt_size:
                raise _error(
                    f"{self.where}.gt_size",
                    f"{self.gt_size} is less than the largest of gt_sizes, {max(self.gt_sizes)}: "
                    "patches are cut from crops of that size",
                )
            if max(self.mini_batch_sizes) > self.batch_size_per_gpu:
                raise _error(
                    f"{self.where}.mini_batch_sizes",
                    f"{max(self.mini_batch_sizes)} exceeds batch_size_per_gpu "
                    f"{self.batch_size_per_gpu}",
                )
            phases = [
                Phase(*values)
                for values in zip(self.gt_sizes, self.mini_batch_sizes, self.iters, strict=True)
            ]
        for index, phase in enumerate(phases):
            if min(dataclasses.astuple(phase)) < 1:
                raise _error(self.where, f"phase {index + 1} has a number below 1: {phase}")
            if phase.patch_size % 8:
                raise _error(
                    self.where,
                    f"phase {index + 1}: patch size {phase.patch_size} must be a multiple of 8",
                )
        starts = [0, *itertools.accumulate(phase.iters for phase in phases[:-1])]
        reached = [pair for pair in zip(phases, starts, strict=True) if pair[1] < total_iter]
        ends = [*(start for _, start in reached[1:]), total_iter]
        return tuple(
            dataclasses.replace(phase, iters=end - start)
            for (phase, start), end in zip(reached, ends, strict=True)
        )

    def phase_notices(self, total_iter: int) -> list[str]:
        """What becomes of `iters` that do not add up to `total_iter`."""
        named = sum(self.iters or [total_iter])
        if named == total_iter:
            return []
        phases = self.phases(total_iter)
        cut = "" if len(phases) == len(self.iters) else ", and those after it are never reached"
        return [
            f"{self.where}.iters: they add up to {named} steps and train.total_iter is "
            f"{total_iter}, so phase {len(phases)} has {phases[-1].iters} steps{cut}"
        ]


@dataclass(frozen=True)
class PathOptions:
    """`path`: weights to start from and the state to resume. None of the files is required.

    `weights` and `stage1` are an experiment's name or a folder: that of all networks, before the
    single files, and that of the stage 1 which stage 2 starts from, by default …_S1 for …_S2.
    Stage 2 starts from a stage 1 that stopped early only with `allow_incomplete_stage1`.
    """

    weights: Path | None = None
    stage1: Path | None = None
    pretrain_network_g: Path | None = None
    pretrain_network_le: Path | None = None
    pretrain_network_le_dm: Path | None = None
    pretrain_network_d: Path | None = None
    param_key_g: str | None = "params"
    param_key_le: str | None = "params"
    param_key_le_dm: str | None = "params"
    param_key_d: str | None = "params"
    strict_load_g: bool = True
    strict_load_le: bool = True
    strict_load_le_dm: bool = True
    strict_load_d: bool = True
    resume_state: Path | None = None
    allow_incomplete_stage1: bool = False

    def of(self, network: str) -> tuple[Path | None, str | None, bool]:
        """(file, parameter key, strict) for a network name such as `net_le_dm`."""
        suffix = network.removeprefix("net_")
        return (
            getattr(self, f"pretrain_network_{suffix}"),
            getattr(self, f"param_key_{suffix}"),
            getattr(self, f"strict_load_{suffix}"),
        )


@dataclass(frozen=True)
class TrainOptions:
    """`train`: how long, with which optimiser, schedule and losses; and what to survive.

    `reference_world_size` is the number of processes whose global batch is kept by accumulation.
    `ema_decay` turns on the average of the weights, 0 turns it off. `max_bad_steps` in a row with a
    non-finite gradient stop the run. `on_bad_image: skip` replaces an image that cannot be used by
    another.
    `precision` is that of `hidiff.models.precision`; `compile` uses torch.compile. The blocks of
    the levels in `activation_checkpointing` keep no activations and compute them again backward.
    """

    total_iter: int
    optim_total: Section
    scheduler: Section
    warmup_iter: int = -1
    use_grad_clip: bool = True
    reference_world_size: int | None = None
    ema_decay: float | None = None
    max_bad_steps: int = 10
    on_bad_image: Literal["stop", "skip"] = "stop"
    precision: Precision = "tf32"
    compile: bool = False
    activation_checkpointing: tuple[int, ...] = ()
    pixel_opt: Section | None = None
    pixel_diff_opt: Section | None = None
    perceptual_opt: Section | None = None

    def __post_init__(self) -> None:
        for key in ("total_iter", "reference_world_size", "max_bad_steps"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise _error(f"train.{key}", f"{value} must be at least 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise _error("train.ema_decay", f"{self.ema_decay} must be at least 0 and below 1")
        for level in self.activation_checkpointing:
            if level not in LEVELS:
                raise _error(
                    "train.activation_checkpointing", f"there is no level {level}, only 1, 2, 3, 4"
                )


@dataclass(frozen=True)
class ValOptions:
    """`val`: validation during training, and what test.py does.

    `protocol` scores test sets with PSNR and SSIM of that protocol in place of `metrics`;
    'benchmark' takes the published one of each data set, known by its name. `use_ema` validates
    the averaged weights where `train.ema_decay` keeps them; test.py takes those that
    `path.param_key_*` names. `pbar` shows a progress bar on a terminal. `better` in a section of
    `metrics` says which of its values is the best, 'higher' by default. `save_img` unset writes the
    pictures of a test and none of validation. `precision` is that of `hidiff.models.precision`;
    `compile` uses torch.compile in test.py, which pays for many images of one size. `num_workers`
    threads read, score and write while the GPU restores: 'auto' takes up to 4 beside a GPU and none
    beside a CPU.
    """

    val_freq: int | None = None
    protocol: Literal["basicsr", "matlab", "realblur", "benchmark"] | None = None
    use_ema: bool = True
    save_img: bool | None = None
    pbar: bool = True
    suffix: str = ""
    selfensemble_testing: bool = False
    num_workers: int | Literal["auto"] = "auto"
    precision: Precision = "tf32"
    compile: bool = False
    metrics: Mapping[str, Section] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.val_freq is not None and self.val_freq < 1:
            raise _error("val.val_freq", f"{self.val_freq} must be at least 1")
        if self.num_workers != "auto" and self.num_workers < 0:
            raise _error(
                "val.num_workers",
                f"{self.num_workers} must be auto or a number of threads, 0 for none",
            )
        if self.suffix:
            _require_file_name(self.suffix, "val.suffix")
        for name, section in self.metrics.items():
            if (better := section.get("better", "higher")) not in ("higher", "lower"):
                raise _error(f"val.metrics.{name}.better", f"'{better}' is not 'higher' or 'lower'")

    def is_better(self, metric: str, value: float, than: float) -> bool:
        """Whether a value of a metric is better than another one."""
        if self.metrics[metric].get("better") == "lower":
            return value < than
        return value > than


@dataclass(frozen=True)
class LoggerOptions:
    """`logger`: steps between log lines and between checkpoints."""

    print_freq: int = 100
    save_checkpoint_freq: int = 4000
    use_tb_logger: bool = True

    def __post_init__(self) -> None:
        for key in ("print_freq", "save_checkpoint_freq"):
            if getattr(self, key) < 1:
                raise _error(f"logger.{key}", f"{getattr(self, key)} must be at least 1")


@dataclass(frozen=True)
class DistOptions:
    """`dist_params`: the backend on GPUs (gloo is used on CPUs) and the port under SLURM.

    A process waits `timeout` seconds for the others, then the run ends.
    """

    backend: str = "nccl"
    port: int = 29500
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise _error("dist_params.timeout", f"{self.timeout} seconds must be above 0")


@dataclass(frozen=True)
class Options:
    """A whole option file.

    `kernels` chooses the depthwise convolutions on GPUs, see `hidiff.kernels`.
    `sections` is all of it as plain data, defaults filled in: what `hidiff.build_model` takes and
    training states keep.
    """

    name: str
    model_type: str
    datasets: Mapping[str, DatasetOptions]
    network_g: Section
    network_le: Section | None = None
    network_le_dm: Section | None = None
    network_d: Section | None = None
    diffusion_schedule: Section | None = None
    scale: int = 1
    num_gpu: int | Literal["auto"] = "auto"
    kernels: Literal["auto", "eager", "triton"] = "auto"
    manual_seed: int = 100
    path: PathOptions = field(default_factory=PathOptions)
    train: TrainOptions | None = None
    val: ValOptions = field(default_factory=ValOptions)
    logger: LoggerOptions = field(default_factory=LoggerOptions)
    dist_params: DistOptions = field(default_factory=DistOptions)
    sections: Section = field(default_factory=dict, repr=False)
    notices: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    file: Path = Path()

    def __post_init__(self) -> None:
        _require_file_name(self.name, "name", first="[A-Za-z0-9_]")
        if self.scale != 1:
            raise _error("scale", f"{self.scale} is not possible: deblurring keeps the size, 1")
        if not 0 <= self.manual_seed < 2**63:
            raise _error("manual_seed", f"{self.manual_seed} must be between 0 and 2^63 − 1")
        if self.num_gpu != "auto" and self.num_gpu < 0:
            raise _error("num_gpu", f"{self.num_gpu} must be 0 (CPU), a number of GPUs or auto")

    def test_sets(self) -> dict[str, DatasetOptions]:
        """The sections `datasets.test*`, in file order.

        Raises:
            UserError: there is none.
        """
        found = {key: value for key, value in self.datasets.items() if key.startswith("test")}
        if not found:
            raise _error("datasets", "testing needs a section test_1 (and test_2, …)")
        return found

    def for_training(self) -> tuple[TrainOptions, DatasetOptions]:
        """The sections that training needs.

        Raises:
            UserError: `train` or `datasets.train` is missing.
        """
        if self.train is None:
            raise _error("train", "this section is missing; is this an option file for test.py?")
        if "train" not in self.datasets:
            raise _error("datasets.train", "this section is missing")
        return self.train, self.datasets["train"]


_LOADER_FIELDS = [
    f.name for f in dataclasses.fields(DatasetOptions) if f.name not in ("source", "where")
]
_INTERNAL_FIELDS = {"sections", "notices", "overrides", "file"}
_LOSS_OPTIONS = ("pixel_opt", "pixel_diff_opt", "perceptual_opt")
_TYPES: dict[str, tuple[Registry, tuple[str, ...]]] = {
    "network_g": (ARCHS, ()),
    "network_le": (ARCHS, ()),
    "network_le_dm": (ARCHS, ()),
    "network_d": (ARCHS, ()),
    "train.optim_total": (OPTIMIZERS, ("params",)),
    "train.scheduler": (SCHEDULERS, ("base_lr", "total_iter")),
    "train.pixel_opt": (LOSSES, ()),
    "train.pixel_diff_opt": (LOSSES, ()),
    "train.perceptual_opt": (LOSSES, ()),
}
"""Sections that name a class by `type`: where they stand, and what the program adds itself."""

_SECTION_CLASSES = {
    "path": PathOptions,
    "train": TrainOptions,
    "val": ValOptions,
    "logger": LoggerOptions,
    "dist_params": DistOptions,
}


def _checked(cls: type, content: Any, where: str, supplied: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of a section's dataclass, with their defaults."""
    if not isinstance(content, Mapping):
        raise _error(where, f"expected a section, got {content!r}")
    return check_call(cls, content, where, supplied=supplied)


def _dataset(key: str, content: Any) -> DatasetOptions:
    where = f"datasets.{key}"
    if not isinstance(content, Mapping):
        raise _error(where, f"expected a section, got {content!r}")
    loader = {"name": key, **{k: v for k, v in content.items() if k in _LOADER_FIELDS}}
    source = {
        k: expanded(v) if isinstance(v, str) and re.fullmatch(PATH_OPTIONS, k) else v
        for k, v in content.items()
        if k not in _LOADER_FIELDS
    }
    return DatasetOptions(
        **_checked(DatasetOptions, loader, where, ("source", "where")),
        source=source,
        where=where,
    )


def _drop_dead_options(content: dict[str, Any], where: str = "") -> list[str]:
    """Remove the release's dead options, in place; a notice for each."""
    notices = []
    for key in list(content):
        place = f"{where}{key}"
        reason = next((r for p, r in DEAD_OPTIONS.items() if re.fullmatch(p, place)), None)
        if reason is not None:
            del content[key]
            notices.append(f"{place} has no effect: {reason}")
        elif isinstance(content[key], dict):
            notices += _drop_dead_options(content[key], f"{place}.")
    return notices


def _datasets(content: Mapping[str, Any]) -> dict[str, DatasetOptions]:
    datasets = content.get("datasets") or {}
    if not isinstance(datasets, Mapping):
        raise _error("datasets", f"expected sections train, val or test_1, got {datasets!r}")
    for key in datasets:
        if not re.fullmatch(r"train|val\w*|test\w*", str(key)):
            raise _error(f"datasets.{key}", "a data set is called train, val or test_1, test_2, …")
    checked = {key: _dataset(key, value) for key, value in datasets.items() if value is not None}
    for kind in ("val", "test"):
        names: dict[str, str] = {}
        for key, section in checked.items():
            if key.startswith(kind) and (other := names.setdefault(section.name, key)) != key:
                raise _error(
                    f"datasets.{key}.name",
                    f"'{section.name}' is the name of datasets.{other} too; results go by it",
                )
    return checked


def load_datasets(path: str | Path) -> dict[str, DatasetOptions]:
    """The `datasets` sections of an option file, whatever else is in it.

    Raises:
        UserError: the file is no YAML, or one of these sections is wrong.
    """
    content, _ = read_yaml(path)
    _drop_dead_options(content)
    return _datasets(content)


def _resolve_types(sections: dict[str, Any]) -> None:
    """Check the sections that a class is built from, and fill in its defaults, in place."""
    for place, (registry, supplied) in _TYPES.items():
        outer, _, key = place.rpartition(".")
        section = sections.get(outer, {}) if outer else sections
        if section.get(key) is not None:
            section[key] = registry.resolved(section[key], place, supplied=supplied)
    val = sections["val"]
    val["metrics"] = {
        name: METRICS.resolved(
            {key: value for key, value in section.items() if key != "better"},
            f"val.metrics.{name}",
            supplied=("restored", "target"),
        )
        | {"better": section.get("better", "higher")}
        for name, section in val["metrics"].items()
    }
    if sections["diffusion_schedule"] is not None:
        sections["diffusion_schedule"] = check_call(
            LatentDDPM, sections["diffusion_schedule"], "diffusion_schedule", label="the schedule"
        )


def parse_options(content: dict[str, Any], *, file: Path = Path()) -> Options:
    """Check the content of an option file, and fill in what it leaves out.

    Args:
        content: sections as parsed from YAML; the release's dead options are removed from it.
        file: where it came from.

    Raises:
        UserError: an option is unknown, missing, of a wrong type or at odds with another.
    """
    notices = _drop_dead_options(content)
    known = {f.name for f in dataclasses.fields(Options)} - _INTERNAL_FIELDS
    for key in content:
        if key not in known:
            raise _error(str(key), f"there is no such option{suggestion(str(key), known)}")
    datasets = {
        key: dataclasses.replace(
            section,
            source=DATASETS.resolved(section.source, section.where, supplied=("where",)),
        )
        for key, section in _datasets(content).items()
    }
    apart = {*_SECTION_CLASSES, "datasets"}
    rest = {key: value for key, value in content.items() if key not in apart}
    sections = check_call(Options, rest, "", supplied=apart | _INTERNAL_FIELDS)
    for key, cls in _SECTION_CLASSES.items():
        section = content.get(key)
        if section is not None or key != "train":
            sections[key] = _checked(cls, {} if section is None else section, key)
    _resolve_types(sections)
    built = {key: cls(**sections[key]) for key, cls in _SECTION_CLASSES.items() if key in sections}
    options = Options(**{**sections, **built}, datasets=datasets)
    for key in _LOSS_OPTIONS:
        # Which losses a model has without these options is the model's to say.
        if options.train is not None and key not in content["train"]:
            del sections["train"][key]
    sections["datasets"] = {
        key: {**{name: getattr(section, name) for name in _LOADER_FIELDS}, **section.source}
        for key, section in datasets.items()
    }
    if options.train is not None and "train" in datasets:
        notices += datasets["train"].phase_notices(options.train.total_iter)
    return dataclasses.replace(
        options,
        sections=plain({key: value for key, value in sections.items() if value is not None}),
        notices=tuple(notices),
        file=file,
    )


def load_options(path: str | Path, overrides: Sequence[str] = ()) -> Options:
    """Read and check an option file.

    Args:
        path: the YAML file.
        overrides: `section:option=value` texts of `--force_yml`.

    Raises:
        UserError: see `parse_options` and `hidiff.yaml_file.read_yaml`; the message begins with
            the file that the wrong option stands in.
    """
    layers, notices = read_layers(path)
    content = merged(layers)
    apply_overrides(content, overrides)
    try:
        options = parse_options(content, file=Path(path))
    except UserError as error:
        chosen: dict[str, Any] = {}
        apply_overrides(chosen, overrides)
        raise UserError(
            f"{_origin(str(error), {'--force_yml': chosen, **layers})}{error}"
        ) from None
    notices += [f"set on the command line: {override}" for override in overrides]
    return dataclasses.replace(
        options, notices=(*notices, *options.notices), overrides=tuple(overrides)
    )


def _origin(message: str, layers: Mapping[Any, Section]) -> str:
    """The layer, and ': ', that the option at the beginning of a message stands in; '' if none."""
    place = message.partition(":")[0].partition("[")[0].split(".")
    for file, content in layers.items():
        found: Any = content
        for key in place:
            found = found.get(key, layers) if isinstance(found, Mapping) else layers
        if found is not layers:
            return f"{file}: "
    return ""


def flatten(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train': {'total_iter': 5}} → {'train.total_iter': 5}."""
    flat = {}
    for key, value in sections.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
