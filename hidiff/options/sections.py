"""The sections of an option file: what each option means, its type, range and default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from hidiff.options.datasets import DatasetOptions
from hidiff.options.fields import (
    FREE,
    BuiltFrom,
    ExpandedPath,
    RunName,
    ScoredBy,
    Section,
    file_name,
    option,
)
from hidiff.registry import (
    ARCHS,
    DIFFUSIONS,
    LOSSES,
    METRICS,
    OPTIMIZERS,
    SCHEDULERS,
    StrictModel,
    option_error,
)

Precision = Literal["fp32", "tf32", "bf16"]
LocalMode = Literal["none", "tile", "tlc"]
MicroBatch = PositiveInt | Literal["auto"] | None

MANUAL_SEED = 100
"""The release's seed of a training."""

Network = Annotated[Section | None, BuiltFrom(ARCHS)]
Loss = Annotated[Section | None, BuiltFrom(LOSSES)]


class PathOptions(StrictModel):
    """`path`: weights to start from and the state to resume. None of them is required."""

    weights: ExpandedPath | None = option("Start or test with: a name, a file or a folder.", None)
    stage1: ExpandedPath | None = option("Stage 1 to start from; unset: …_S1 for …_S2.", None)
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
        "Decay of the weights' average; unset, 0: none.", None, ge=0, lt=1
    )
    max_bad_steps: PositiveInt = option(
        "Steps in a row without a finite gradient that stop the run.", 10, resume_safe=True
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
    metrics: Annotated[Mapping[str, Section], ScoredBy(METRICS, ("restored", "target"))] = option(
        "Scores by name, `better: lower` where low is good; none: of a test PSNR and SSIM.", {}
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

    backend: Literal["nccl", "gloo"] = option("On GPUs; CPUs use gloo.", "nccl")
    port: int = option("Under SLURM.", 29500)
    timeout: PositiveFloat = option("Seconds that a process waits for the others.", 1800.0)


class Options(StrictModel):
    """A whole option file.

    `sections` is all of it as plain data, defaults filled in: what `hidiff.build_model` takes and
    training states keep. `notices` is what to tell the user, `overrides` and `file` say where the
    options come from.
    """

    name: RunName = option("Of the experiment and its folders.", **FREE)
    model_type: str = option("What is trained, a stage or `Regression`.")
    datasets: Mapping[str, DatasetOptions] = option("train, val, test_1, test_2, …", {})
    network_g: Annotated[Section, BuiltFrom(ARCHS)] = option("The network that restores.")
    network_le: Network = option("Latent encoder of stage 1.", None)
    network_le_dm: Network = option("Latent encoder of the blurry image.", None)
    network_d: Network = option("Denoiser of the prior.", None)
    diffusion_schedule: Annotated[Section | None, BuiltFrom(DIFFUSIONS, type="LatentDDPM")] = (
        option("Diffusion of the prior.", None)
    )
    scale: Literal[1] = option("Of the release; deblurring keeps the size.", 1)
    num_gpu: NonNegativeInt | Literal["auto"] = option("0: train on CPUs.", "auto", **FREE)
    kernels: Literal["auto", "eager", "triton"] = option(
        "Depthwise convolutions on GPUs.", "auto", resume_safe=True
    )
    manual_seed: int = option(
        "Of a training's random numbers.", MANUAL_SEED, affects_scores=False, ge=0, lt=2**63
    )
    path: PathOptions = option("Weights and states.", PathOptions(), **FREE)
    train: TrainOptions | None = option("Training.", None, affects_scores=False)
    val: ValOptions = option("Validation and tests.", ValOptions(), resume_safe=True)
    logger: LoggerOptions = option("Logs and checkpoints.", LoggerOptions(), **FREE)
    dist_params: DistOptions = option("Several processes.", DistOptions(), **FREE)
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
