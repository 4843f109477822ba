"""The folders of a training run, and what a reader of its log must know about its options."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import yaml

from hidiff.archs import ImageNetwork
from hidiff.engine.checkpoint import archive_newer
from hidiff.models import DeblurModel, section_of
from hidiff.options import Options
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError
from hidiff.utils.files import archive, partial_files, timestamp, write_text
from hidiff.weights.experiment import Experiment, models_by_step


def prepare_folder(
    experiment: Experiment, options: Options, *, step: int | None
) -> tuple[Path, list[str]]:
    """Make the folders ready on the main process, and write the options in force.

    In these, bases are merged and those of the command line set. An attempt that ended before its
    first training state makes room: it is renamed.

    Args:
        experiment: its folders; `refuse_another` has been asked.
        options: of the run.
        step: after which a state is resumed; None for a new training.

    Returns:
        Path of the new log file, and notices.

    Raises:
        UserError: the folders cannot be made.
    """
    folder, notices = experiment.folder, []
    if step is None and folder.exists() and any(folder.iterdir()):
        archived = archive(folder)
        notices.append(f"{folder} had no training state to resume; it is now {archived}")
    # A tb_logger that is read-only or no folder ends nothing; `MetricsWriter` tells of it.
    with suppress(OSError):
        if step is None and experiment.tensorboard.exists():
            archive(experiment.tensorboard)
    try:
        for place in (experiment.models, experiment.states, experiment.visualization):
            place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror or error})") from None
    now = timestamp()
    text = yaml.safe_dump(dict(options.sections), sort_keys=False, allow_unicode=True)
    origin = [str(options.file), *(f"--force_yml {override}" for override in options.overrides)]
    heading = "".join(f"# {line}\n" for line in origin)
    copy = f"{now}_{options.file.name or 'options.yml'}"
    write_text(folder / copy, heading + text)
    for place in (experiment.models, experiment.states):
        for path in partial_files(place):  # what killed writes have left
            path.unlink(missing_ok=True)
    if step is not None:
        # Later states are another branch's; --auto_resume must not return to it.
        notices += archive_newer(experiment.states, step)
    return folder / f"train_{experiment.name}_{now}.log", notices


def refuse_another(experiment: Experiment, *, step: int | None, auto_resume: bool) -> None:
    """Make sure that a new training would not go into the folder of another.

    Args:
        experiment: its folders.
        step: after which a state is resumed; None for a new training.
        auto_resume: whether the run may go on with an earlier attempt. Without it the weights that
            one may have saved, without a training state, are enough to keep the name.

    Raises:
        UserError: the experiment exists already and is not to be resumed.
    """
    kept = [*experiment.states.glob("*.state")]
    if not auto_resume:
        kept += models_by_step(experiment.models).values()
    if step is None and kept:
        raise UserError(
            f"{experiment.folder} holds an experiment already. To continue it add --auto_resume; "
            "to start another one give it another name (--force_yml name="
            f"{experiment.name}_b) or move the folder away"
        )


def _require_patch_sizes(options: Options, model: DeblurModel) -> None:
    """Make sure that the network takes the patches of every phase.

    Raises:
        UserError: it does not.
    """
    if not isinstance(model.net_g, ImageNetwork):
        return
    train, data = options.for_training()
    key = "gt_sizes" if data.gt_sizes else "gt_size"
    for phase in data.phases(train.total_iter):
        try:
            model.net_g.check_size(phase.patch_size, phase.patch_size)
        except UserError as error:
            raise UserError(f"{data.where}.{key}: {phase.patch_size}, but {error}") from None


def training_warnings(options: Options, model: DeblurModel, processes: Processes) -> list[str]:
    """What in the options has no effect on a training here, or another than it may seem.

    Raises:
        UserError: the network does not take the training's patches.
    """
    _require_patch_sizes(options, model)
    used = map(section_of, model.networks())
    networks = {key for key in options.sections if key.startswith("network_")}
    warnings = [
        *model.notices,
        *(
            f"{key} has no effect: {options.model_type} has no such network"
            for key in sorted(networks - set(used))
        ),
    ]
    if options.for_training()[0].reference_world_size is None and processes.world_size > 1:
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
