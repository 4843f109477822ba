"""Folders of an experiment, and the weights that a model starts from."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hidiff.engine.checkpoint import (
    Weights,
    load_network,
    load_weights,
    newest_state,
    require_one_step,
)
from hidiff.engine.distributed import Processes
from hidiff.errors import UserError, missing
from hidiff.files import write_text
from hidiff.models import DeblurModel
from hidiff.options import Options

EXPERIMENTS = Path("experiments")
TENSORBOARD = Path("tb_logger")
RESULTS = Path("results")


def timestamp() -> str:
    """Now, as it stands in file names."""
    return datetime.datetime.now().strftime("%Y%m%d_%H%M%S")


@dataclass(frozen=True)
class Experiment:
    """The folders of one training: `experiments/{name}` and `tb_logger/{name}`."""

    name: str

    @property
    def folder(self) -> Path:
        """experiments/{name}."""
        return EXPERIMENTS / self.name

    @property
    def models(self) -> Path:
        """Weights files."""
        return self.folder / "models"

    @property
    def states(self) -> Path:
        """Training states."""
        return self.folder / "training_states"

    @property
    def visualization(self) -> Path:
        """Pictures of the validation."""
        return self.folder / "visualization"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return TENSORBOARD / self.name

    def create(self, options: Options, *, resuming: bool) -> Path:
        """Make the folders and copy the option file.

        Where the command line has changed options, what they are now stands beside the copy.

        Returns:
            Path of the new log file.

        Raises:
            UserError: the experiment exists already and is not to be resumed.
        """
        if not resuming and self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(
                f"{self.folder} holds an experiment already. To continue it add --auto_resume; to "
                f"start another one give it another name (--force_yml name={self.name}_b) or move "
                "the folder away"
            )
        # A tb_logger that is read-only or no folder ends nothing; `MetricsWriter` tells of it.
        with suppress(OSError):
            if not resuming and self.tensorboard.exists():
                set_aside(self.tensorboard)
        try:
            for folder in (self.models, self.states, self.visualization):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made ({error.strerror or error})") from None
        now = timestamp()
        if options.file.is_file():
            shutil.copyfile(options.file, self.folder / f"{now}_{options.file.name}")
        if options.overrides:
            text = yaml.safe_dump(dict(options.sections), sort_keys=False, allow_unicode=True)
            heading = "".join(f"# --force_yml {override}\n" for override in options.overrides)
            write_text(self.folder / f"{now}_effective.yml", heading + text)
        return self.folder / f"train_{self.name}_{now}.log"


def set_aside(folder: Path) -> Path:
    """Rename a folder of an earlier run so that nothing of it is lost; returns its new path."""
    archived = folder.with_name(f"{folder.name}_archived_{timestamp()}")
    number = 1
    while archived.exists():
        number += 1
        archived = folder.with_name(f"{folder.name}_archived_{timestamp()}_{number}")
    return folder.rename(archived)


def _train_first(options: Options, name: str) -> str:
    """What to do about missing weights of stage 1, as part of an error."""
    stage1 = options.file.with_name(options.file.name.replace("S2", "S1"))
    if stage1 != options.file and stage1.is_file():
        return f"train stage 1 first: python train.py -opt {stage1}"
    return f"train stage 1 first, or name its weights under path.pretrain_network_{name[4:]}"


def stage1_name(name: str) -> str | None:
    """`…_S2` → `…_S1`, the experiment that a stage 2 starts from; None without an `S2`.

    A second try called `…_S2_b` starts from `…_S1_b` where that exists, else from `…_S1`.
    """
    before, stage2, after = name.rpartition("S2")
    if not stage2:
        return None
    exact = f"{before}S1{after}"
    return exact if Experiment(exact).models.is_dir() else f"{before}S1"


def stage1_weights(options: Options, name: str) -> Path:
    """Where stage 1 of this experiment has saved a network: `…_S2` starts from `…_S1`.

    Raises:
        UserError: the experiment's name has no `S2` to replace, or the file does not exist.
    """
    where = f"path.pretrain_network_{name.removeprefix('net_')}"
    # A --debug run of stage 2 starts from the real stage 1.
    experiment = stage1_name(options.name.removeprefix("debug_"))
    if experiment is None:
        raise UserError(
            f"{where}: stage 2 needs stage 1's weights; name the file here, or call the "
            f"experiments …_S1 and …_S2 (this one is '{options.name}')"
        )
    path = Experiment(experiment).models / f"{name}_latest.pth"
    if not path.is_file():
        raise UserError(f"{where}: {missing(path)}; {_train_first(options, name)}")
    return path


def _saved_step(weights: Weights, name: str) -> int | None:
    """The step that a weights file is of, by its content or its name."""
    number = weights.path.stem.removeprefix(f"{name}_")
    return int(number) if weights.step is None and number.isdigit() else weights.step


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_complete(path: Path, where: str) -> None:
    """Refuse weights of an experiment here that has not reached its last step.

    Raises:
        UserError: its newest training state is of an earlier one.
    """
    try:
        saved, _ = newest_state(path.parent.parent / "training_states")
    except UserError:
        # Those of another program, or damaged; the weights are checked for themselves.
        saved = None
    if saved is None:
        return
    state, total = saved.content, saved.content["options"]["train"]["total_iter"]
    if state["step"] < total:
        raise UserError(
            f"{where}: {path} is of a training that stands at step {state['step']} of {total}; "
            "finish that (the same command with --auto_resume), or start from what there is with "
            "path.allow_incomplete_stage1: true"
        )


def changed_since_start(started_from: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Notices about weights files that are others now than when a training started from them."""
    return [
        f"{name}: {origin['file']} has changed since this training started from it (then step "
        f"{origin['step']}, SHA-256 {origin['sha256'][:12]}); the training goes on as it began"
        for name, origin in started_from.items()
        if Path(origin["file"]).is_file() and _sha256(Path(origin["file"])) != origin["sha256"]
    ]


def _existing(options: Options, name: str, path: Path) -> tuple[Path, list[str]]:
    """The named file, or the one that the release's stage-2 files mean by it."""
    if path.is_file():
        return path, []
    # Released behaviour: stage 2 looks in experiments/debug_train_…, where stage 1 never writes,
    # and for step 300000, before which it ends.
    mended = Path(str(path).replace("debug_train_", "train_", 1))
    for other in (mended, *(p.with_name(f"{name}_latest.pth") for p in (path, mended))):
        named = other.name == path.name or path.name == f"{name}_300000.pth"
        if named and other.is_file():
            return other, [f"{path} does not exist; {other} is taken"]
    if path.is_dir():
        return path, []  # The reader says so.
    where = f"path.pretrain_network_{name.removeprefix('net_')}"
    advice = _train_first(options, name) if "S1" in str(path) else "download it, or mend the path"
    raise UserError(f"{where}: {missing(path)}; {advice}")


def _read_together(read: Callable[[], dict[str, Weights]]) -> dict[str, Weights]:
    """Weights of one step, also while a training saves others in the same place.

    Raises:
        UserError: see `require_one_step`.
    """
    for _ in range(2):
        weights = read()
        with suppress(UserError):
            require_one_step(weights.values())
            return weights
    weights = read()
    require_one_step(weights.values())
    return weights


def load_pretrained(
    model: DeblurModel, options: Options, *, training: bool
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Load the weights that the `path` section names.

    Where it names none, stage 2's training takes those of stage 1 for the networks that stage 1
    trains; testing needs a file for every network.

    Returns:
        Notices, and of each network its `file`, the `step` of that where it is known, and the
        file's `sha256`.

    Raises:
        UserError: a file is missing, damaged, of another configuration, of another step than
            those beside it, or of a stage 1 that is not complete
            (`path.allow_incomplete_stage1`).
    """
    notices, origins = [], {}
    check = training and not options.path.allow_incomplete_stage1
    complete: set[Path] = set()
    files: dict[str, tuple[Path, str, str | None]] = {}
    for name in model.networks():
        file, param_key, _ = options.path.of(name)
        where = f"path.pretrain_network_{name.removeprefix('net_')}"
        if file is not None:
            path, found = _existing(options, name, file)
            notices += found
        elif not training:
            raise UserError(f"{where}: testing needs a weights file for {name}; name it here")
        elif name in model.from_stage1:
            path = stage1_weights(options, name)
        else:
            continue
        if check and name in model.from_stage1 and path.parent not in complete:
            _require_complete(path, where)
            complete.add(path.parent)
        files[name] = (path, where, param_key)
    read = _read_together(lambda: {name: load_weights(*file) for name, file in files.items()})
    for name, weights in read.items():
        strict = options.path.of(name)[2]
        notices += load_network(model.networks()[name], weights, strict=strict)
        step = _saved_step(weights, name)
        origins[name] = {"file": str(weights.path), "step": step, "sha256": weights.sha256}
        saved = "" if step is None else f", saved after step {step}"
        notices.append(f"{name}: weights from {weights.path}{saved}")
    return notices, origins


def training_warnings(options: Options, model: DeblurModel, processes: Processes) -> list[str]:
    """What in the options has no effect on a training here, or another than it may seem."""
    used = {**model.sections, **model.training_sections}.values()
    networks = {key for key in options.sections if key.startswith("network_")}
    warnings = [
        *model.notices,
        *(
            f"{key} has no effect: {options.model_type} has no such network"
            for key in sorted(networks - set(used))
        ),
    ]
    if options.train.reference_world_size is None:
        warnings.append(
            "train.reference_world_size is not set, so the global batch depends on the number of "
            f"processes, {processes.world_size} here; the release's batch sizes are meant for 4 "
            "(train.reference_world_size: 4 keeps their global batch)"
        )
    if options.num_gpu not in ("auto", 0, processes.world_size):
        warnings.append(
            f"num_gpu is {options.num_gpu}, and {processes.world_size} process(es) train; start "
            f"torchrun --nproc_per_node={options.num_gpu} train.py … --launcher pytorch to use "
            f"{options.num_gpu}"
        )
    return warnings
