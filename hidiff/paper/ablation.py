"""Ablations: several option files with one budget and one data set, over several seeds.

`plan` turns option files into runs, `run_all` trains and tests what is left of them.
`hidiff.paper.ablation_table` reports on them.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hidiff.engine.distributed import Processes
from hidiff.engine.logger import start_logging
from hidiff.engine.trainer import Trainer
from hidiff.errors import UserError
from hidiff.files import write_text
from hidiff.models import DeblurModel, build_model
from hidiff.options import Options, parse_options
from hidiff.options.yaml_file import apply_overrides, read_yaml
from hidiff.scoring.files import JSON
from hidiff.scoring.test_run import run_test
from hidiff.weights.experiment import RESULTS, Experiment
from hidiff.weights.pretrained import stage1_name, weights_in

TINY_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "Transformer": {
        "dim": 16,
        "num_blocks": [1, 1, 1, 1],
        "num_refinement_blocks": 1,
        "heads": [1, 2, 4, 8],
        "embed_dim": 16,
    },
    "latent_encoder_gelu": {"embed_dim": 16, "block_num": 1},
    "latent_encoder_lrelu": {"embed_dim": 16, "block_num": 1},
    "simple_denoise": {"n_feats": 16},
    "denoising": {"in_channel": 64, "out_channel": 64, "inner_channel": 64, "block_num": 3},
}
"""Sizes of --tiny by network type: priors of 64 channels in all of them."""

TINY_STEPS = 400
"""Steps a stage with --tiny: one seed of everything in about half an hour on two cores."""

TINY_TRAIN_SET = {"batch_size_per_gpu": 8, "gt_size": 64, "num_worker_per_gpu": 1}
RUNS = "runs"


@dataclass(frozen=True)
class Changes:
    """What is done to every option file, in this order.

    Args:
        tiny: the sizes of `TINY_NETWORKS`, small patches, `TINY_STEPS`.
        steps: `train.total_iter` of every stage, its schedules scaled with it.
        data: folders in place of the option files' data: `train_input`, `train_target`,
            `test_input` and `test_target`.
        overrides: `--force_yml` texts; those of networks that a file has not are left out there.
    """

    tiny: bool = False
    steps: int | None = None
    data: Mapping[str, Path] | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Run:
    """One training and its test.

    Args:
        label: stem of the option file.
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
        return (Experiment(self.name).states / f"{self.options.train.total_iter}.state").is_file()

    @property
    def scored(self) -> bool:
        """Whether its test has ended, in the current folder."""
        return (RESULTS / self.name / JSON).is_file()


def set_steps(content: dict[str, Any], steps: int) -> None:
    """Train for `steps`, in place; what counts in steps is scaled with it."""
    train = content["train"]
    ratio = steps / train["total_iter"]

    def scaled(numbers: Sequence[int]) -> list[int]:
        return [max(1, round(number * ratio)) for number in numbers]

    train["total_iter"] = steps
    scheduler, data = train["scheduler"], _loader_section(content)
    if "periods" in scheduler:
        scheduler["periods"] = scaled(scheduler["periods"])
        # Rounding must not leave steps without a period.
        scheduler["periods"][-1] += max(0, steps - sum(scheduler["periods"]))
    if "milestones" in scheduler:
        scheduler["milestones"] = [min(n, steps - 1) for n in scaled(scheduler["milestones"])]
    if train.get("warmup_iter", -1) > 0:
        train["warmup_iter"] = scaled([train["warmup_iter"]])[0]
    if data.get("iters"):
        data["iters"] = scaled(data["iters"])


def _loader_section(content: dict[str, Any]) -> dict[str, Any]:
    """`datasets.train`, or the first entry of a mixture, which has the options of the phases."""
    train = content["datasets"]["train"]
    return train[0] if isinstance(train, list) else train


def shrink(content: dict[str, Any]) -> None:
    """The sizes of --tiny, in place.

    Raises:
        UserError: a network type without tiny sizes.
    """
    for key, section in content.items():
        if key.startswith("network_") and section:
            if section["type"] not in TINY_NETWORKS:
                raise UserError(
                    f"{key}: --tiny has no sizes for the type '{section['type']}'; leave --tiny "
                    "out and give sizes with --force_yml"
                )
            section.update(copy.deepcopy(TINY_NETWORKS[section["type"]]))
    set_steps(content, TINY_STEPS)
    data = _loader_section(content)
    for key in ("mini_batch_sizes", "iters", "gt_sizes"):
        data.pop(key, None)
    data.update(TINY_TRAIN_SET)
    content["train"]["reference_world_size"] = 1
    content["train"]["optim_total"]["lr"] = 1e-3
    _without_validation(content)
    content["logger"] = {"print_freq": 50, "save_checkpoint_freq": 200, "use_tb_logger": False}


def _without_validation(content: dict[str, Any]) -> None:
    datasets = content["datasets"]
    content["datasets"] = {k: v for k, v in datasets.items() if not k.startswith("val")}
    content["val"] = {**(content.get("val") or {}), "val_freq": None}


def _set_data(content: dict[str, Any], data: Mapping[str, Path]) -> None:
    """Train and test on these folders, in place; validation on other data ends."""
    _without_validation(content)
    train = _loader_section(content)
    train.pop("weight", None)
    for key in ("io_backend", "filename_tmpl", "meta_info_file"):
        train.pop(key, None)
    test = {"name": "test", "type": train["type"]}
    for part, section in (("train", train), ("test", test)):
        section["dataroot_lq"] = str(data[f"{part}_input"])
        section["dataroot_gt"] = str(data[f"{part}_target"])
    content["datasets"] = {"train": train, "test_1": test}


def _changed(file: Path, changes: Changes) -> dict[str, Any]:
    """The content of an option file after all changes; file paths in it are absolute."""
    content, _ = read_yaml(file)
    # The changes below rely on sections that a checked file has.
    parse_options(copy.deepcopy(content), file=file).for_training()
    if changes.tiny:
        shrink(content)
    if changes.steps is not None:
        set_steps(content, changes.steps)
    if content["train"].get("reference_world_size") is None:
        # The global batch is part of the budget; it must not follow the number of processes.
        content["train"]["reference_world_size"] = 1
    if changes.data is not None:
        _set_data(content, changes.data)
    for override in changes.overrides:
        section = override.partition(":")[0]
        if not section.startswith(("network_", "diffusion_schedule")) or content.get(section):
            apply_overrides(content, [override])
    sets = [s if isinstance(s, list) else [s] for s in content["datasets"].values() if s]
    for section in itertools.chain(*sets):
        for key in ("dataroot_lq", "dataroot_gt", "meta_info_file"):
            if section.get(key):
                section[key] = str(Path(section[key]).absolute())
    return content


def _checked(content: dict[str, Any], file: Path) -> tuple[Options, DeblurModel]:
    """The options and the model, on the meta device; everything that training would refuse is."""
    options = parse_options(copy.deepcopy(content), file=file)
    train, data = options.for_training()
    data.phases(train.total_iter)
    options.test_sets()
    with torch.device("meta"):
        return options, build_model(options.sections)


def _set_stage1(content: dict[str, Any], file: Path, names: Sequence[str], seed: int) -> None:
    """Name the weights of stage 1 under `path`, in place.

    Args:
        file: where the content came from.
        names: of the option files of stage 1 in the list.
    """
    paths = content["path"]
    keys = [key for key in ("pretrain_network_g", "pretrain_network_le") if paths.get(key)]
    stage1 = paths.get("stage1") or stage1_name(content["name"]) or "stage 1"
    found = weights_in(Path(stage1), "net_g")
    if keys and all(Path(paths[key]).is_file() for key in keys):
        paths |= {key: str(Path(paths[key]).absolute()) for key in keys}
    elif stage1 in names:
        paths["stage1"] = f"{stage1}_seed{seed}"
    elif found.is_file():
        paths["stage1"] = str(found.parent.absolute())
    else:
        raise UserError(
            f"{file}: path.stage1: it starts from '{stage1}'; add the option file of that stage 1 "
            "to the list"
        )


def plan(files: Sequence[Path], seeds: Sequence[int], changes: Changes) -> list[Run]:
    """The runs that a list of option files asks for, seed after seed, stage 1 before stage 2.

    Raises:
        UserError: an option file is wrong, lacks data to train or test on, or starts from a stage
            1 that is not in the list; two files have one name.
    """
    contents: dict[str, dict[str, Any]] = {}
    origins, models = {}, {}
    for file in files:
        content = _changed(file, changes)
        try:
            # A mistake in the last file must not show after hours of training the first.
            options, model = _checked(content, file)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        if options.name in contents:
            raise UserError(f"two of the option files have the name '{options.name}'; rename one")
        contents[options.name], origins[options.name], models[options.name] = content, file, model
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
            runs.append(Run(file.stem, content, options, models[name]))
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
        if run.scored:
            continue
        if processes.is_main:
            print(f"== {run.name}", flush=True)
        started = time.monotonic()
        trained = run.finished
        if not trained:
            Trainer(run.options, processes, auto_resume=True).run()
        start_logging(is_main=processes.is_main)
        # What an earlier training has left is set aside.
        complete &= run_test(_for_testing(run), processes, resume=trained)
        processes.barrier()
        if processes.is_main:
            print(f"== {run.name} took {time.monotonic() - started:.0f} s", flush=True)
    return complete
