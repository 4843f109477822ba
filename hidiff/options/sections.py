"""The sections of an option file: what each option means, its default and its range."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from hidiff.utils.errors import UserError

Section = Mapping[str, Any]
Precision = Literal["fp32", "tf32", "bf16"]
LocalMode = Literal["none", "tile", "tlc"]
MicroBatch = PositiveInt | Literal["auto"] | None

MAX_NAME = 150
"""Bytes of a name that becomes part of file names, which may have 255 with what is added."""


def error(where: str, message: str) -> UserError:
    """A mistake in an option file; `where` is its YAML path."""
    return UserError(f"{where}: {message}")


def _require_file_name(name: str, where: str, first: str = r"[\w.+-]") -> None:
    """Refuse what cannot be part of a file's or folder's name; `first` is the first character."""
    if not re.fullmatch(rf"{first}[\w.+-]*", name) or name in (".", ".."):
        raise error(where, f"'{name}' becomes part of file names; use letters, digits, and . + - _")
    if (length := len(name.encode())) > MAX_NAME:
        raise error(where, f"{length} bytes are too long for a file's name; use up to {MAX_NAME}")


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

    Where `datasets.train` is a list, this is its first entry and `mixture` has all of them; the
    share of each in the samples is in proportion to its `weight`.
    """

    name: str
    source: Section
    where: str
    weight: NonNegativeFloat = 1.0
    mixture: tuple[DatasetOptions, ...] = ()
    num_worker_per_gpu: NonNegativeInt = 4
    timeout: PositiveFloat = 600.0
    num_prefetch_queue: PositiveInt = 2
    pin_memory: bool | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    batch_size_per_gpu: PositiveInt | None = None
    dataset_enlarge_ratio: PositiveInt = 1
    mini_batch_sizes: tuple[PositiveInt, ...] | None = None
    iters: tuple[PositiveInt, ...] | None = None
    gt_size: PositiveInt | None = None
    gt_sizes: tuple[PositiveInt, ...] | None = None

    def __post_init__(self) -> None:
        _require_file_name(self.name, f"{self.where}.name")

    @property
    def label(self) -> str:
        """Its place in the option file, with its name where it has one of its own."""
        default = self.where.removeprefix("datasets.").partition("[")[0]
        return self.where if self.name == default else f"{self.where} ({self.name})"

    def phases(self, total_iter: int) -> tuple[Phase, ...]:
        """The phases of progressive training up to `total_iter`; one when the file lists none.

        As in the release the last phase goes on to the end of the training, and what `iters`
        names beyond it is cut off.

        Raises:
            UserError: the lists do not fit each other, `gt_size` or `batch_size_per_gpu`.
        """
        if self.gt_size is None or self.batch_size_per_gpu is None:
            raise error(self.where, "training needs gt_size and batch_size_per_gpu")
        sizes, batches, iters = self.gt_sizes, self.mini_batch_sizes, self.iters
        lists = {"mini_batch_sizes": batches, "iters": iters, "gt_sizes": sizes}
        given = {key: values for key, values in lists.items() if values is not None}
        if not given:
            phases = [Phase(self.gt_size, self.batch_size_per_gpu, total_iter)]
        elif sizes is None or batches is None or iters is None:
            absent = ", ".join(sorted(set(lists) - set(given)))
            raise error(self.where, f"progressive training also needs {absent}")
        else:
            if len({len(values) for values in given.values()}) > 1:
                lengths = ", ".join(f"{key} {len(values)}" for key, values in given.items())
                raise error(self.where, f"one entry a phase in each list, but they have {lengths}")
            if max(sizes) > self.gt_size:
                raise error(
                    f"{self.where}.gt_size",
                    f"{self.gt_size} is less than the largest of gt_sizes, {max(sizes)}: "
                    "patches are cut from crops of that size",
                )
            if max(batches) > self.batch_size_per_gpu:
                raise error(
                    f"{self.where}.mini_batch_sizes",
                    f"{max(batches)} exceeds batch_size_per_gpu {self.batch_size_per_gpu}",
                )
            phases = [Phase(*values) for values in zip(sizes, batches, iters, strict=True)]
        for index, phase in enumerate(phases):
            if phase.patch_size % 8:
                raise error(
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
        all_reached = len(phases) == len(self.iters or phases)
        cut = "" if all_reached else ", and those after it are never reached"
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
    `micro_batch` images of a batch are computed at once and their gradients added up; 'auto' takes
    as many as fit, and half of them when memory runs out.
    """

    total_iter: PositiveInt
    optim_total: Section
    scheduler: Section
    warmup_iter: int = -1
    use_grad_clip: bool = True
    reference_world_size: PositiveInt | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_bad_steps: PositiveInt = 10
    on_bad_image: Literal["stop", "skip"] = "stop"
    precision: Precision = "tf32"
    compile: bool = False
    activation_checkpointing: tuple[Literal[1, 2, 3, 4], ...] = ()
    micro_batch: MicroBatch = None
    pixel_opt: Section | None = None
    pixel_diff_opt: Section | None = None
    perceptual_opt: Section | None = None
    edge_opt: Section | None = None
    frequency_opt: Section | None = None


@dataclass(frozen=True)
class LocalOptions:
    """`val.local`: whether statistics and prior are those of a part of the image.

    'none' (the paper's): of the whole. 'tile': the image is restored in tiles, each with a prior of
    its own (`hidiff.restore.image`). 'tlc': MDTA's statistics are those of windows, the prior and
    all else that of the whole (`hidiff.archs.strips`). `size` and `overlap` of both are
    in pixels.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    mode: LocalMode = "none"
    size: PositiveInt = 384
    overlap: NonNegativeInt = 32

    def __post_init__(self) -> None:
        if self.size % 8:
            raise error("val.local.size", f"{self.size} must be a multiple of 8")
        if not 0 <= self.overlap < self.size:
            raise error("val.local.overlap", f"{self.overlap} must be 0 to {self.size - 1}")

    def __str__(self) -> str:
        return self.mode if self.mode == "none" else f"{self.mode} {self.size}/{self.overlap}"


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
    beside a CPU. `strip_rows` is that of `hidiff.models.memory`: images are restored in strips of
    so many rows, or all at once, as compiled blocks always do.
    """

    val_freq: PositiveInt | None = None
    protocol: Literal["basicsr", "matlab", "realblur", "benchmark"] | None = None
    use_ema: bool = True
    save_img: bool | None = None
    pbar: bool = True
    suffix: str = ""
    selfensemble_testing: bool = False
    num_workers: NonNegativeInt | Literal["auto"] = "auto"
    precision: Precision = "tf32"
    compile: bool = False
    local: LocalOptions = field(default_factory=LocalOptions)
    strip_rows: PositiveInt | Literal["auto", "whole"] = "auto"
    metrics: Mapping[str, Section] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.compile and isinstance(self.strip_rows, int):
            raise error(
                "val.strip_rows",
                f"{self.strip_rows} does not go with val.compile, which restores images all at "
                "once; leave one of them out",
            )
        if self.local.mode == "tlc" and (self.compile or self.strip_rows == "whole"):
            raise error(
                "val.local.mode",
                "tlc is computed in strips, so it goes neither with val.compile nor with "
                "val.strip_rows: whole",
            )
        if self.suffix:
            _require_file_name(self.suffix, "val.suffix")
        for name, section in self.metrics.items():
            if (better := section.get("better", "higher")) not in ("higher", "lower"):
                raise error(f"val.metrics.{name}.better", f"'{better}' is not 'higher' or 'lower'")

    def is_better(self, metric: str, value: float, than: float) -> bool:
        """Whether a value of a metric is better than another one."""
        if self.metrics[metric].get("better") == "lower":
            return value < than
        return value > than


@dataclass(frozen=True)
class WandbOptions:
    """`logger.wandb`: Weights & Biases gets the numbers of TensorBoard where `project` is named.

    `resume_id` is the run to go on with, by default that of the experiment's name. The package is
    wandb's own; its variables, such as WANDB_MODE=offline, count.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    project: str | None = None
    resume_id: str | None = None


@dataclass(frozen=True)
class LoggerOptions:
    """`logger`: steps between log lines and between checkpoints, and who else gets the numbers.

    `keep` is the number of newest model files that stay, beside the best ones; None keeps all.
    """

    print_freq: PositiveInt = 100
    save_checkpoint_freq: PositiveInt = 4000
    keep: PositiveInt | None = None
    use_tb_logger: bool = True
    wandb: WandbOptions = field(default_factory=WandbOptions)


@dataclass(frozen=True)
class DistOptions:
    """`dist_params`: the backend on GPUs (gloo is used on CPUs) and the port under SLURM.

    A process waits `timeout` seconds for the others, then the run ends.
    """

    backend: str = "nccl"
    port: int = 29500
    timeout: PositiveFloat = 1800.0


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
    scale: Literal[1] = 1
    num_gpu: NonNegativeInt | Literal["auto"] = "auto"
    kernels: Literal["auto", "eager", "triton"] = "auto"
    manual_seed: Annotated[int, Field(ge=0, lt=2**63)] = 100
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

    @property
    def launch_arguments(self) -> dict[str, Any]:
        """What `hidiff.utils.distributed.start_processes` takes of the options."""
        return {"num_gpu": self.num_gpu, **dataclasses.asdict(self.dist_params)}

    def test_sets(self) -> dict[str, DatasetOptions]:
        """The sections `datasets.test*`, in file order.

        Raises:
            UserError: there is none.
        """
        found = {key: value for key, value in self.datasets.items() if key.startswith("test")}
        if not found:
            raise error("datasets", "testing needs a section test_1 (and test_2, …)")
        return found

    def for_training(self) -> tuple[TrainOptions, DatasetOptions]:
        """The sections that training needs.

        Raises:
            UserError: `train` or `datasets.train` is missing.
        """
        if self.train is None:
            raise error("train", "this section is missing; is this an option file for test.py?")
        if "train" not in self.datasets:
            raise error("datasets.train", "this section is missing")
        return self.train, self.datasets["train"]
