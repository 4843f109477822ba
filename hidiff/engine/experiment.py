"""The folders of a training run, and what a reader of its log must know about its options."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import yaml

from hidiff.engine.distributed import Processes
from hidiff.errors import UserError
from hidiff.files import set_aside, timestamp, write_text
from hidiff.models import DeblurModel
from hidiff.options import Options
from hidiff.weights.experiment import Experiment


def create_experiment(experiment: Experiment, options: Options, *, resuming: bool) -> Path:
    """Make the folders and write the options in force: bases merged, those of the command line set.

    Returns:
        Path of the new log file.

    Raises:
        UserError: the experiment exists already and is not to be resumed.
    """
    if not resuming and experiment.folder.exists() and any(experiment.folder.iterdir()):
        raise UserError(
            f"{experiment.folder} holds an experiment already. To continue it add --auto_resume; "
            "to start another one give it another name (--force_yml name="
            f"{experiment.name}_b) or move the folder away"
        )
    # A tb_logger that is read-only or no folder ends nothing; `MetricsWriter` tells of it.
    with suppress(OSError):
        if not resuming and experiment.tensorboard.exists():
            set_aside(experiment.tensorboard)
    try:
        for folder in (experiment.models, experiment.states, experiment.visualization):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{experiment.folder} cannot be made ({error.strerror or error})") from None
    now = timestamp()
    text = yaml.safe_dump(dict(options.sections), sort_keys=False, allow_unicode=True)
    origin = [str(options.file), *(f"--force_yml {override}" for override in options.overrides)]
    heading = "".join(f"# {line}\n" for line in origin)
    copy = f"{now}_{options.file.name or 'options.yml'}"
    write_text(experiment.folder / copy, heading + text)
    return experiment.folder / f"train_{experiment.name}_{now}.log"


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
