"""An ablation: option files × seeds, each trained and tested; `hidiff report` makes the table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hidiff.engine.logger import start_logging
from hidiff.engine.trainer import Trainer
from hidiff.evaluation.test_run import run_test
from hidiff.models import build_model
from hidiff.options import Options, load_options
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError
from hidiff.weights.experiment import RESULTS, Experiment
from hidiff.weights.start import stage1_name

LOG = logging.getLogger("hidiff")


@dataclass(frozen=True)
class Run:
    """One training, and its test where the option file has test sets.

    Args:
        file: the option file.
        overrides: `--force_yml` texts that make it this run.
        options: the file with them.
    """

    file: Path
    overrides: tuple[str, ...]
    options: Options

    @property
    def results(self) -> Path | None:
        """The folder of its scores; None where it is only trained, as a stage 1 may be."""
        tested = any(key.startswith("test") for key in self.options.datasets)
        return RESULTS / self.options.name if tested else None

    @property
    def trained(self) -> bool:
        """Whether its training has ended."""
        total_iter = self.options.for_training()[0].total_iter
        return (Experiment(self.options.name).states / f"{total_iter}.state").is_file()


def plan(files: Sequence[Path], seeds: Sequence[int], overrides: Sequence[str] = ()) -> list[Run]:
    """The runs that option files ask for, seed after seed, stage 1 before the stage 2 from it.

    Each is called as its file says with `_seedS` behind, and a stage 2 starts from the stage 1 of
    its own seed. All files are read and their models built on torch's meta device: a mistake in the
    last one must not show after hours of training the first.

    Args:
        files: option files with training data.
        seeds: values of `manual_seed`.
        overrides: `--force_yml` texts for all of them; those of networks and diffusion schedules
            count where a file has that section.

    Raises:
        UserError: an option file is wrong, two have one name, or a stage 1 is not in the list.
    """
    own: dict[Path, list[str]] = {}
    names: dict[Path, str] = {}
    first: dict[Path, str | None] = {}
    for file in files:
        options = load_options(file)
        own[file] = [text for text in overrides if _applies(text, options)]
        options = load_options(file, own[file])
        options.for_training()
        with torch.device("meta"):
            from_stage1 = build_model(options.sections).from_stage1
        if options.name in names.values():
            raise UserError(f"{file}: another of the option files has the name '{options.name}'")
        names[file] = options.name
        before = options.path.stage1 or stage1_name(options.name)
        first[file] = Path(before).name if from_stage1 and before else None
    runs = []
    ordered = sorted(files, key=lambda file: first[file] is not None)
    for seed in dict.fromkeys(seeds):
        for file in ordered:
            texts = [*own[file], f"name={names[file]}_seed{seed}", f"manual_seed={seed}"]
            stage1 = first[file]
            if stage1 in names.values():
                texts.append(f"path.stage1={stage1}_seed{seed}")
            elif stage1 is not None and not Experiment(stage1).folder.is_dir():
                raise UserError(
                    f"{file}: path.stage1: it starts from '{stage1}'; add the option file of that "
                    "stage 1 to the list"
                )
            options = load_options(file, texts)
            if options.for_training()[0].reference_world_size is None:
                # The global batch is part of the budget; it must not follow the processes.
                texts.append("train.reference_world_size=1")
                options = load_options(file, texts)
            runs.append(Run(file, tuple(texts), options))
    return runs


def _applies(override: str, options: Options) -> bool:
    section = override.replace(":", ".").partition(".")[0]
    optional = section.startswith("network_") or section == "diffusion_schedule"
    return not optional or bool(options.sections.get(section))


def train_and_test(run: Run, processes: Processes) -> bool:
    """Do what is left of a run; False where an image failed.

    An interrupted training goes on from its newest state.

    Raises:
        Interrupted: it was stopped and can go on.
    """
    if not run.trained:
        Trainer(run.options, processes, auto_resume=True).run()
    start_logging(is_main=processes.is_main)
    if run.results is None:
        return True
    # With its own option file, so that everything but the weights is as trained.
    weights = f"path.weights={run.options.name}"
    return run_test(load_options(run.file, [*run.overrides, weights]), processes)
