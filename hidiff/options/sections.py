"""The sections of an option file: what each option means, its type, range and default.

Two marks on a field say what a change of it does: `resume_safe`, a resumed training ends with the
same weights; `affects_scores`, a test gives other scores or pictures. A mark on a section holds
for all in it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from hidiff.registry import (
    ARCHS,
    LOSSES,
    METRICS,
    OPTIMIZERS,
    SCHEDULERS,
    Registry,
    StrictModel,
    option_error,
)
from hidiff.utils.errors import expanded

Section = Mapping[str, Any]
Precision = Literal["fp32", "tf32", "bf16"]
LocalMode = Literal["none", "tile", "tlc"]
MicroBatch = PositiveInt | Literal["auto"] | None

MAX_NAME = 150
"""Bytes of a name that becomes part of file names, which may have 255 with what is added."""

MANUAL_SEED = 100
"""The release's seed of a training."""

SOURCE_RESUME_SAFE = re.compile(r"dataroot_\w+|io_backend.*|meta_info_file|cache|filename_tmpl")
"""Options of a data set's class that say where the images lie; that they are the same images is the
user's word."""


@dataclass(frozen=True)
class BuiltFrom:
    """Marks a section `{type: X, …}` as the arguments of X in a registry.

    `supplied` are arguments that the program adds itself.
    """

    registry: Registry
    supplied: tuple[str, ...] = ()


def option(
    meaning: str,
    default: Any = ...,
    *,
    resume_safe: bool = False,
    affects_scores: bool = True,
    **limits: Any,
) -> Any:
    """A field with its meaning in one line, its marks and, as pydantic has them, its limits."""
    marks: Any = {"resume_safe": resume_safe, "affects_scores": affects_scores}
    return Field(default, description=meaning, json_schema_extra=marks, **limits)


def file_name(name: str, first: str = r"[\w.+-]") -> str:
    """Refuse what cannot be part of a file's or folder's name; `first` is the first character.

    Raises:
        ValueError: it cannot.
    """
    if not re.fullmatch(rf"{first}[\w.+-]*", name) or name in (".", ".."):
        raise ValueError(f"'{name}' becomes part of file names; use letters, digits, and . + - _")
    if (length := len(name.encode())) > MAX_NAME:
        raise ValueError(f"{length} bytes are too long for a file's name; use up to {MAX_NAME}")
    return name


FileName = Annotated[str, AfterValidator(file_name)]
RunName = Annotated[str, AfterValidator(lambda name: file_name(name, r"[A-Za-z0-9_]"))]
ExpandedPath = Annotated[Path, AfterValidator(lambda path: Path(expanded(str(path))))]
Network = Annotated[Section | None, BuiltFrom(ARCHS)]
Loss = Annotated[Section | None, BuiltFrom(LOSSES)]


@dataclass(frozen=True)
class Phase:
    """One phase of progressive training.

    `patch_size` is in pixels, `batch_size` per process, `iters` the phase's length in steps.
    """

    patch_size: int
    batch_size: int
    iters: int


class DatasetOptions(StrictModel):
    """A `datasets.*` section: what the loader needs; all else goes to the class that `type` names.

    A mixture has sections of its own within `datasets.train`, each with `type`; they are the
    `mixture` here, and `source` is empty.
    """

    name: FileName = option("What results of this data set are called.", resume_safe=True)
    source: Section = option("What the data set's class is built from.", {})
    where: str = option("Its YAML path.", "", resume_safe=True, affects_scores=False)
    weight: NonNegativeFloat = option("Share of a mixture's samples, in proportion.", 1.0)
    mixture: tuple[DatasetOptions, ...] = option("The sets that are mixed.", ())
    num_worker_per_gpu: NonNegativeInt = option(
        "Loader processes of each training process.", 4, resume_safe=True, affects_scores=False
    )
    timeout: PositiveFloat = option(
        "Seconds that a training waits for a batch.", 600.0, resume_safe=True, affects_scores=False
    )
    num_prefetch_queue: PositiveInt = option(
        "Batches that each loader process keeps ready.", 2, resume_safe=True, affects_scores=False
    )
    pin_memory: bool | None = option(
        "Copy to a GPU without waiting; unset: where there is one.",
        None,
        resume_safe=True,
        affects_scores=False,
    )
    batch_size_per_gpu: PositiveInt | None = option("Samples a step and process.", None)
    dataset_enlarge_ratio: PositiveInt = option("Passes that count as one epoch.", 1)
    mini_batch_sizes: tuple[PositiveInt, ...] | None = option("Batch size of each phase.", None)
    iters: tuple[PositiveInt, ...] | None = option("Steps of each phase.", None)
    gt_size: PositiveInt | None = option("Side of the crops, in pixels.", None)
    gt_sizes: tuple[PositiveInt, ...] | None = option("Side of each phase's patches.", None)

    @property
    def label(self) -> str:
        """Its place in the option file, with its name where it has one of its own."""
        default = self.where.rpartition(".")[2]
        return self.where if self.name == default else f"{self.where} ({self.name})"

    def phases(self, total_iter: int) -> tuple[Phase, ...]:
        """The phases of progressive training up to `total_iter`; one when the file lists none.

        As in the release the last phase goes on to the end of the training, and what `iters`
        names beyond it is cut off.

        Raises:
            OptionError: the lists do not fit each other, `gt_size` or `batch_size_per_gpu`.
        """
        if self.gt_size is None or self.batch_size_per_gpu is None:
            raise option_error(self.where, "training needs gt_size and batch_size_per_gpu")
        sizes, batches, iters = self.gt_sizes, self.mini_batch_sizes, self.iters
        if sizes is None and batches is None and iters is None:
            return (Phase(self.gt_size, self.batch_size_per_gpu, total_iter),)
        if sizes is None or batches is None or iters is None:
            lists = {"gt_sizes": sizes, "iters": iters, "mini_batch_sizes": batches}
            absent = ", ".join(key for key, values in lists.items() if values is None)
            raise option_error(self.where, f"progressive training also needs {absent}")
        if not len(sizes) == len(batches) == len(iters):
            raise option_error(
                self.where,
                "one entry a phase in each list, but they have mini_batch_sizes "
                f"{len(batches)}, iters {len(iters)}, gt_sizes {len(sizes)}",
            )
        if max(sizes) > self.gt_size:
            raise option_error(
                f"{self.where}.gt_size",
                f"{self.gt_size} is less than the largest of gt_sizes, {max(sizes)}: patches are "
                "cut from crops of that size",
            )
        if max(batches) > self.batch_size_per_gpu:
            raise option_error(
                f"{self.where}.mini_batch_sizes",
                f"{max(batches)} exceeds batch_size_per_gpu {self.batch_size_per_gpu}",
            )
        starts = [0, *itertools.accumulate(iters[:-1])]
        reached = [index for index, start in enumerate(starts) if start < total_iter]
        ends = [*(starts[index] for index in reached[1:]), total_iter]
        return tuple(
            Phase(sizes[index], batches[index], end - starts[index])
            for index, end in zip(reached, ends, strict=True)
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


class PathOptions(StrictModel):
    """`path`: weights to start from and the state to resume. None of them is required."""

    weights: ExpandedPath | None = option(
        "Model to start from or to test: a training's name, a file or a folder.", None
    )
    stage1: ExpandedPath | None = option(
        "Stage 1 that stage 2 starts from; unset: …_S1 for …_S2.", None
    )
    pretrain_network_g: ExpandedPath | None = option("Weights of network_g alone.", None)
    pretrain_network_le: ExpandedPath | None = option("Weights of network_le alone.", None)
    pretrain_network_le_dm: ExpandedPath | None = option("Weights of network_le_dm alone.", None)
    pretrain_network_d: ExpandedPath | None = option("Weights of network_d alone.", None)
    param_key_g: str | None = option("Which tensors of its file: params or params_ema.", "params")
    param_key_le: str | None = option("The same of network_le.", "params")
    param_key_le_dm: str | None = option("The same of network_le_dm.", "params")
    param_key_d: str | None = option("The same of network_d.", "params")
    strict_load_g: bool = option("Refuse weights that do not fit network_g wholly.", True)
    strict_load_le: bool = option("The same of network_le.", True)
    strict_load_le_dm: bool = option("The same of network_le_dm.", True)
    strict_load_d: bool = option("The same of network_d.", True)
    resume_state: ExpandedPath | None = option("Training state to go on from.", None)
    allow_incomplete_stage1: bool = option("Take a stage 1 that has stopped early.", False)

    def of(self, network: str) -> tuple[Path | None, str | None, bool]:
        """(file, parameter key, strict) for a network name such as `net_le_dm`."""
        suffix = network.removeprefix("net_")
        return (
            getattr(self, f"pretrain_network_{suffix}"),
            getattr(self, f"param_key_{suffix}"),
            getattr(self, f"strict_load_{suffix}"),
        )


class TrainOptions(StrictModel):
    """`train`: how long, with which optimiser, schedule and losses; and what to survive."""

    total_iter: PositiveInt = option("Steps of the training.")
    optim_total: Annotated[Section, BuiltFrom(OPTIMIZERS, ("params",))] = option(
        "Optimiser of all networks; `lr` is required."
    )
    scheduler: Annotated[Section, BuiltFrom(SCHEDULERS, ("base_lr", "total_iter"))] = option(
        "Learning rate over the steps."
    )
    warmup_iter: int = option("Steps in which the learning rate rises from 0; -1: none.", -1)
    use_grad_clip: bool = option("Clip the gradients' global L2 norm to 0.01.", True)
    reference_world_size: PositiveInt | None = option(
        "Processes whose global batch is kept by accumulation.", None, resume_safe=True
    )
    ema_decay: float | None = option(
        "Decay of the weights' average; unset or 0: none is kept.", None, ge=0, lt=1
    )
    max_bad_steps: PositiveInt = option(
        "Steps in a row with a gradient that is not finite that stop the run.", 10, resume_safe=True
    )
    on_bad_image: Literal["stop", "skip"] = option(
        "What to do about an image that cannot be used; skip: take another.",
        "stop",
        resume_safe=True,
    )
    precision: Precision = option("Of matrix products and convolutions.", "tf32")
    compile: bool = option("Use torch.compile.", False, resume_safe=True)
    activation_checkpointing: tuple[Literal[1, 2, 3, 4], ...] = option(
        "Levels whose blocks compute their activations again backward.", (), resume_safe=True
    )
    micro_batch: MicroBatch = option(
        "Images computed at once; auto: halved when memory runs out.", None, resume_safe=True
    )
    pixel_opt: Loss = option("Loss of the restored image; left out: L1.", None)
    pixel_diff_opt: Loss = option("Loss of the prior; left out: L1.", None)
    perceptual_opt: Loss = option("Loss of VGG's features.", None)
    edge_opt: Loss = option("Loss of edges.", None)
    frequency_opt: Loss = option("Loss in the frequency domain.", None)


class LocalOptions(StrictModel):
    """`val.local`: whether statistics and prior are those of a part of the image."""

    mode: LocalMode = option(
        "none: of the whole image, as in the paper; tile: of tiles, each with a prior of its own; "
        "tlc: attention's statistics of windows, the prior of the whole.",
        "none",
    )
    size: PositiveInt = option("Of tiles and windows, in pixels.", 384)
    overlap: NonNegativeInt = option("Of tiles and windows, in pixels.", 32)

    @field_validator("overlap")
    @classmethod
    def _below_size(cls, overlap: int, info: ValidationInfo) -> int:
        size = info.data.get("size", overlap + 1)
        if overlap >= size:
            raise ValueError(f"{overlap} must be 0 to {size - 1}, less than the size")
        return overlap

    def __str__(self) -> str:
        return self.mode if self.mode == "none" else f"{self.mode} {self.size}/{self.overlap}"


class ValOptions(StrictModel):
    """`val`: validation during training, and what a test does."""

    val_freq: PositiveInt | None = option(
        "Steps between validations; unset: never.", None, affects_scores=False
    )
    protocol: Literal["basicsr", "matlab", "realblur", "benchmark"] | None = option(
        "Score tests by this protocol in place of `metrics`; benchmark: that of each data set.",
        None,
    )
    use_ema: bool = option("Validate the average of the weights.", True, affects_scores=False)
    save_img: bool | None = option("Write the pictures; unset: of a test, not of validation.", None)
    pbar: bool = option("Show a progress bar on a terminal.", True, affects_scores=False)
    suffix: str = option("End of the pictures' names.", "")
    selfensemble_testing: bool = option("The mean over the image's 8 symmetries.", False)
    num_workers: NonNegativeInt | Literal["auto"] = option(
        "Threads that read, score and write; auto: up to 4 beside a GPU, none beside a CPU.",
        "auto",
        affects_scores=False,
    )
    precision: Precision = option("Of matrix products and convolutions.", "tf32")
    compile: bool = option("Use torch.compile in a test.", False)
    local: LocalOptions = option("Statistics of a part of the image.", LocalOptions())
    strip_rows: PositiveInt | Literal["auto", "whole"] = option(
        "Rows that are restored at once; auto: by memory; whole: the image.",
        "auto",
        validate_default=True,
    )
    metrics: Annotated[Mapping[str, Section], BuiltFrom(METRICS, ("restored", "target"))] = option(
        "Scores by name; `better: lower` where a lower value is the better one.", {}
    )

    @field_validator("suffix")
    @classmethod
    def _suffix_of_a_file(cls, suffix: str) -> str:
        return file_name(suffix) if suffix else suffix

    @field_validator("strip_rows")
    @classmethod
    def _strips_or_compiled(cls, rows: int | str, info: ValidationInfo) -> int | str:
        compiled, local = info.data.get("compile"), info.data.get("local")
        if compiled and isinstance(rows, int):
            raise ValueError(
                f"{rows} does not go with val.compile, which restores images all at once; leave "
                "one of them out"
            )
        if local is not None and local.mode == "tlc" and (compiled or rows == "whole"):
            raise ValueError(
                "val.local.mode tlc is computed in strips, so it goes neither with val.compile "
                "nor with val.strip_rows: whole"
            )
        return rows

    def is_better(self, metric: str, value: float, than: float) -> bool:
        """Whether a value of a metric is better than another one."""
        if self.metrics[metric].get("better") == "lower":
            return value < than
        return value > than


class WandbOptions(StrictModel):
    """`logger.wandb`: Weights & Biases gets TensorBoard's numbers where `project` is named."""

    project: str | None = option("The project.", None)
    resume_id: str | None = option("Run to go on with; unset: the experiment's name.", None)


class LoggerOptions(StrictModel):
    """`logger`: steps between log lines and between checkpoints, and who else gets the numbers."""

    print_freq: PositiveInt = option("Steps between log lines.", 100)
    save_checkpoint_freq: PositiveInt = option("Steps between checkpoints.", 4000)
    keep: PositiveInt | None = option(
        "Newest model files that stay, beside the best ones; unset: all.", None
    )
    use_tb_logger: bool = option("Write TensorBoard's event files.", True)
    wandb: WandbOptions = option("Weights & Biases.", WandbOptions())


class DistOptions(StrictModel):
    """`dist_params`: how several processes find and wait for each other."""

    backend: str = option("On GPUs; CPUs use gloo.", "nccl")
    port: int = option("Under SLURM.", 29500)
    timeout: PositiveFloat = option("Seconds that a process waits for the others.", 1800.0)


class Options(StrictModel):
    """A whole option file.

    `sections` is all of it as plain data, defaults filled in: what `hidiff.build_model` takes and
    training states keep. `notices` is what to tell the user, `overrides` and `file` say where the
    options come from.
    """

    name: RunName = option(
        "Of the experiment and its folders.", resume_safe=True, affects_scores=False
    )
    model_type: str = option("What is trained, a stage or `Regression`.")
    datasets: Mapping[str, DatasetOptions] = option("train, val, test_1, test_2, …", {})
    network_g: Annotated[Section, BuiltFrom(ARCHS)] = option("The network that restores.")
    network_le: Network = option("Latent encoder of stage 1.", None)
    network_le_dm: Network = option("Latent encoder of the blurry image.", None)
    network_d: Network = option("Denoiser of the prior.", None)
    diffusion_schedule: Section | None = option("Diffusion of the prior.", None)
    scale: Literal[1] = option("Of the release; deblurring keeps the size.", 1)
    num_gpu: NonNegativeInt | Literal["auto"] = option(
        "0: train on CPUs.", "auto", resume_safe=True, affects_scores=False
    )
    kernels: Literal["auto", "eager", "triton"] = option(
        "Depthwise convolutions on GPUs.", "auto", resume_safe=True
    )
    manual_seed: int = option(
        "Of a training's random numbers.", MANUAL_SEED, affects_scores=False, ge=0, lt=2**63
    )
    path: PathOptions = option(
        "Weights and states.", PathOptions(), resume_safe=True, affects_scores=False
    )
    train: TrainOptions | None = option("Training.", None, affects_scores=False)
    val: ValOptions = option("Validation and tests.", ValOptions(), resume_safe=True)
    logger: LoggerOptions = option(
        "Logs and checkpoints.", LoggerOptions(), resume_safe=True, affects_scores=False
    )
    dist_params: DistOptions = option(
        "Several processes.", DistOptions(), resume_safe=True, affects_scores=False
    )
    sections: Section = Field({}, repr=False)
    notices: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    file: Path = Path()

    @property
    def launch_arguments(self) -> dict[str, Any]:
        """What `hidiff.utils.distributed.start_processes` takes of the options."""
        return {"num_gpu": self.num_gpu, **dict(self.dist_params)}

    def test_sets(self) -> dict[str, DatasetOptions]:
        """The sections `datasets.test*`, in file order.

        Raises:
            OptionError: there is none.
        """
        found = {key: value for key, value in self.datasets.items() if key.startswith("test")}
        if not found:
            of_training = self.train is not None
            hint = f"; `hidiff train -opt {self.file}` trains with this file" if of_training else ""
            raise option_error("datasets", f"testing needs a section test_1 (and test_2, …){hint}")
        return found

    def for_training(self) -> tuple[TrainOptions, DatasetOptions]:
        """The sections that training needs.

        Raises:
            OptionError: `train` or `datasets.train` is missing.
        """
        if self.train is None:
            hint = f"; `hidiff test -opt {self.file}` tests with this file"
            of_tests = any(key.startswith("test") for key in self.datasets)
            raise option_error("train", f"this section is missing{hint if of_tests else ''}")
        if "train" not in self.datasets:
            raise option_error("datasets.train", "this section is missing")
        return self.train, self.datasets["train"]
