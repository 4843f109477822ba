"""Ablations: several option files, each with its own data and budget or all with one, over seeds.

`plan` turns option files into runs, `run_all` trains and tests what is left of them.
`hidiff.report.ablation_table` reports on them.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hidiff.engine.logger import start_logging
from hidiff.engine.trainer import Trainer
from hidiff.evaluation.record import SCORES_FILE as JSON
from hidiff.evaluation.test_run import run_test
from hidiff.models import DeblurModel, build_model
from hidiff.options import Options, parse_options
from hidiff.options.yaml_file import read_yaml
from hidiff.report.ablation_changes import Changes, changed
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError
from hidiff.utils.files import write_text
from hidiff.weights.experiment import RESULTS, Experiment
from hidiff.weights.start import stage1_name

RUNS = "runs"


@dataclass(frozen=True)
class Run:
    """One training and its test.

    Args:
        label: stem of the option file; its name where several have that stem.
        content: the whole option file of the run.
        options: the same, checked.
        model: without data, on the meta device.
    """

    label: str
    content: Mapping[str, Any]
    options: Options
    model: DeblurModel

    @property
    def name(self) -> str:
        """The experiment's."""
        return self.options.name

    @property
    def seed(self) -> int:
        """`manual_seed`."""
        return self.options.manual_seed

    @property
    def finished(self) -> bool:
        """Whether its training has ended, in the current folder."""
        total_iter = self.options.for_training()[0].total_iter
        return (Experiment(self.name).states / f"{total_iter}.state").is_file()

    @property
    def tested(self) -> bool:
        """Whether it has test sets. A stage 1 needs none: its stage 2 can be what counts."""
        return any(key.startswith("test") for key in self.options.datasets)

    @property
    def scored(self) -> bool:
        """Whether its test has ended, in the current folder."""
        return (RESULTS / self.name / JSON).is_file()

    @property
    def done(self) -> bool:
        """Whether nothing of it is left to do, in the current folder."""
        return self.scored if self.tested else self.finished


def _checked(content: dict[str, Any], file: Path) -> tuple[Options, DeblurModel]:
    """The options and the model, on the meta device; everything that training would refuse is."""
    options = parse_options(copy.deepcopy(content), file=file)
    train, data = options.for_training()
    data.phases(train.total_iter)
    with torch.device("meta"):
        model = build_model(options.sections)
    if not model.restores_from_gt:
        options.test_sets()
    return options, model


def _set_stage1(content: dict[str, Any], file: Path, names: Sequence[str], seed: int) -> None:
    """Name the weights of stage 1 under `path`, in place.

    Args:
        file: where the content came from.
        names: of the option files of stage 1 in the list.
    """
    paths = content["path"]
    keys = [key for key in ("pretrain_network_g", "pretrain_network_le") if paths.get(key)]
    stage1 = paths.get("stage1") or stage1_name(content["name"]) or "stage 1"
    found = Experiment(str(stage1)).newest_model()
    if keys and all(Path(paths[key]).is_file() for key in keys):
        paths |= {key: str(Path(paths[key]).absolute()) for key in keys}
    elif stage1 in names:
        paths["stage1"] = f"{stage1}_seed{seed}"
    elif found is not None:
        paths["stage1"] = str(found.parent.absolute())
    else:
        raise UserError(
            f"{file}: path.stage1: it starts from '{stage1}'; add the option file of that stage 1 "
            "to the list"
        )


def _require_same_tests(options: Mapping[Path, Options]) -> None:
    """Make sure that test sets of one name, a column of the table, are one and scored in one way.

    Args:
        options: by option file.

    Raises:
        UserError: two files mean different things.
    """
    known: dict[str, tuple[Path, Any]] = {}
    for file, of_file in options.items():
        for key, section in of_file.datasets.items():
            if not key.startswith("test"):
                continue
            meaning = section.source, of_file.val.protocol, of_file.val.metrics
            other, expected = known.setdefault(section.name, (file, meaning))
            if meaning != expected:
                raise UserError(
                    f"{file}: {section.where}.name: '{section.name}' is other data or is scored in "
                    f"another way than in {other}; give it another name"
                )


def plan(files: Sequence[Path], seeds: Sequence[int], changes: Changes) -> list[Run]:
    """The runs that a list of option files asks for, seed after seed, stage 1 before stage 2.

    Raises:
        UserError: an option file is wrong, lacks data to train or test on, or starts from a stage
            1 that is not in the list; two files have one name, or other test sets of one name.
    """
    contents: dict[str, dict[str, Any]] = {}
    origins, models, checked = {}, {}, {}
    for file in files:
        content = changed(file, changes)
        try:
            # A mistake in the last file must not show after hours of training the first.
            options, model = _checked(content, file)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        if options.name in contents:
            raise UserError(f"two of the option files have the name '{options.name}'; rename one")
        contents[options.name], origins[options.name], models[options.name] = content, file, model
        checked[file] = options
    _require_same_tests(checked)
    stems = Counter(file.stem for file in files)
    ordered = sorted(contents, key=lambda name: bool(models[name].from_stage1))
    first = [name for name in ordered if not models[name].from_stage1]
    runs = []
    for seed in dict.fromkeys(seeds):
        for name in ordered:
            content, file = copy.deepcopy(contents[name]), origins[name]
            content["manual_seed"] = seed
            content["path"] = dict(content.get("path") or {})
            if models[name].from_stage1:
                _set_stage1(content, file, first, seed)
            content["name"] = f"{name}_seed{seed}"
            options = parse_options(
                copy.deepcopy(content), file=Path(RUNS, f"{content['name']}.yml")
            )
            label = file.stem if stems[file.stem] == 1 else name
            runs.append(Run(label, content, options, models[name]))
    return runs


def write_option_files(runs: Sequence[Run], output: Path) -> None:
    """Write the option file of every run; files of an earlier call must say the same.

    Raises:
        UserError: one does not, or the folder holds something else than an ablation.
    """
    folder = output / RUNS
    if output.exists() and not (
        output.is_dir() and (folder.is_dir() or not list(output.iterdir()))
    ):
        raise UserError(f"--output {output} holds other files; name a new folder")
    for run in runs:
        path = output / run.options.file
        if path.is_file() and read_yaml(path)[0] != run.content:
            raise UserError(
                f"{path} is of an earlier call with another budget, data set or option file; "
                "choose another --output, or move the earlier one away"
            )
    for run in runs:
        text = yaml.safe_dump(dict(run.content), sort_keys=False, allow_unicode=True)
        write_text(
            output / run.options.file, f"# Written by `hidiff ablation` for {run.label}.\n{text}"
        )


def _for_testing(run: Run) -> Options:
    """The run's options with the weights that it has trained under `path`."""
    content = copy.deepcopy(dict(run.content))
    content["path"]["weights"] = run.name
    return parse_options(content, file=run.options.file)


def run_all(runs: Sequence[Run], processes: Processes) -> bool:
    """Train and test what is left to do, in the current folder; False if an image failed.

    Both go on where an earlier call was stopped.
    """
    complete = True
    for run in runs:
        if run.done:
            continue
        if processes.is_main:
            print(f"== {run.name}", flush=True)
        started = time.monotonic()
        if not run.finished:
            Trainer(run.options, processes, auto_resume=True).run()
        start_logging(is_main=processes.is_main)
        if run.tested:
            # What an earlier training has left is set aside.
            complete &= run_test(_for_testing(run), processes, overwrite=True)
        processes.barrier()
        if processes.is_main:
            print(f"== {run.name} took {time.monotonic() - started:.0f} s", flush=True)
    return complete
