"""What the items of `hidiff gpu-check` share: device, sizes, data, and how they note figures."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hidiff.benchmark.variants import Machine
from hidiff.engine.distributed import Processes
from hidiff.errors import is_out_of_memory
from hidiff.options import Options, load_options

Row = dict[str, Any]
"""Figures by name. `ok` True or False is a verdict; without it something is just measured."""


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Attributes:
        stage1, stage2, test: option files.
        small: one whose training is resumed, and run in several processes.
        numbers: (height, width) of the image whose numbers are compared, in pixels.
        golden, trajectories: presets and trainings of the reference values.
        precisions: that are compared with float64; fp64 is one of them.
        kernels: side of the image whose convolutions are checked, in pixels.
        kernel_types: of its features.
        restored: (height, width) of the image that is timed.
        variants, compiled: that are timed; the first is what the others are compared with.
        repeats: of a timed call.
        phases: that are timed, the longest; all by default.
        batch, patch: in place of the phases' own.
        steps, batch_size, patch_size: of a small training.
        most_steps: of the trainings that compare precisions.
        loaded, loaded_steps: crops in a batch, and steps, of the training whose loader is measured;
            many more steps than the loader has batches ready when the first one ends.
        processes: that train together; 0 for one a GPU.
    """

    stage1: str = "options/train/GoPro_S1.yml"
    stage2: str = "options/train/GoPro_S2.yml"
    test: str = "options/test/GoPro.yml"
    small: str = "options/quickstart/S1.yml"
    numbers: tuple[int, int] = (24, 32)
    golden: tuple[str, ...] = ("gopro", "realblur", "hidiff2")
    trajectories: tuple[str, ...] = ("gopro_s1", "gopro_s2", "realblur_s1", "realblur_s2")
    precisions: tuple[str, ...] = ("fp64", "fp32", "tf32", "bf16")
    kernels: int = 256
    kernel_types: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    restored: tuple[int, int] = (720, 1280)
    variants: tuple[str, ...] = (
        *("plain+fp32", "fp32+eager", "tf32+eager", "bf16+eager", "tf32", "bf16"),
    )
    compiled: tuple[str, ...] = ("bf16", "bf16+compile")
    repeats: int = 3
    phases: int | None = None
    batch: int | None = None
    patch: int | None = None
    steps: int = 6
    batch_size: int = 4
    patch_size: int = 128
    most_steps: int = 500
    loaded: int = 16
    loaded_steps: int = 40
    processes: int = 0


FULL = Sizes()
"""For a GPU."""

TINY = Sizes(
    stage1="options/quickstart/S1.yml",
    stage2="options/quickstart/S2.yml",
    test="options/quickstart/test.yml",
    numbers=(16, 16),
    golden=(),
    trajectories=("gopro_s2",),
    precisions=("fp32", "bf16"),
    kernels=8,
    kernel_types=(torch.float32,),
    restored=(32, 40),
    variants=("plain+fp32", "fp32+eager", "bf16"),
    compiled=(),
    repeats=1,
    phases=1,
    batch=1,
    patch=16,
    steps=2,
    batch_size=2,
    patch_size=16,
    most_steps=3,
    loaded=2,
    loaded_steps=2,
    processes=2,
)
"""For a CPU, where nothing but the check itself is tried."""


@dataclass
class Setting:
    """Where an item runs.

    Attributes:
        device: the first GPU, or the CPU.
        sizes: how much is computed.
        data: folder with pairs, as `hidiff prepare quickstart` makes it; absolute.
        folder: for what the item writes; it is also the current folder.
        seconds: the item's share of the time.
    """

    device: torch.device
    sizes: Sizes
    data: Path
    folder: Path
    seconds: float

    @functools.cached_property
    def machine(self) -> Machine:
        """The device's speed at copying and matrix products."""
        return Machine(self.device)

    @property
    def processes(self) -> Processes:
        """This process alone, on the device."""
        return Processes(0, 1, self.device)

    def training(self, name: str, *changes: str, file: str | None = None) -> Options:
        """A small training of stage 1, see `overrides`; of another option file of that stage."""
        return load_options(file or self.sizes.stage1, self.overrides(name, *changes))

    def overrides(self, name: str, *changes: str) -> list[str]:
        """What makes the option file of stage 1 a small training on the pairs, in one phase.

        Args:
            name: of the experiment.
            changes: further ones, as of `--force_yml`.
        """
        sizes = self.sizes
        folders = {
            f"datasets:{section}:dataroot_{side}": json.dumps(str(self.data / split / folder))
            for section, split in (("train", "train"), ("val", "test"))
            for side, folder in (("lq", "input"), ("gt", "target"))
        }
        own = {
            "name": name,
            "num_gpu": "auto" if self.device.type == "cuda" else 0,
            "train:reference_world_size": 1,
            "train:total_iter": sizes.steps,
            "datasets:train:batch_size_per_gpu": sizes.batch_size,
            "datasets:train:mini_batch_sizes": f"[{sizes.batch_size}]",
            "datasets:train:iters": f"[{sizes.most_steps}]",
            "datasets:train:gt_size": sizes.patch_size,
            "datasets:train:gt_sizes": f"[{sizes.patch_size}]",
            "val:val_freq": sizes.most_steps,
            "logger:use_tb_logger": "false",
        }
        return [*(f"{key}={value}" for key, value in (folders | own).items()), *changes]


def attempt(place: Row, work: Callable[[], Row]) -> Row:
    """A row with the figures of `work`, or with its error, which is a negative verdict.

    Memory that is used up says nothing about what is correct, so it is no verdict.

    Args:
        place: what the row is about.
    """
    try:
        return place | work()
    except Exception as error:
        free()
        verdict = {} if is_out_of_memory(error) else {"ok": False}
        return place | verdict | {"error": in_a_line(error)}


def in_a_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def free() -> None:
    """Give memory back that PyTorch keeps for later, and what only cycles hold."""
    gc.collect()
    # Not where a kernel's wrong access to memory has lost the GPU.
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """PyTorch's deterministic algorithms, and a warning for each operation that has none."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
