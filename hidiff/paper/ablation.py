"""Ablations: several option files with one budget and one data set, over several seeds.

`plan` turns option files into runs; `finished` and `scored` say what is left to do.
`hidiff.paper.ablation_table` reports on them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hidiff.errors import UserError
from hidiff.models import DeblurModel, build_model
from hidiff.options import Options, parse_options
from hidiff.registry import MODELS
from hidiff.weights.experiment import EXPERIMENTS, RESULTS, Experiment
from hidiff.weights.pretrained import stage1_name
from hidiff.yaml_file import apply_overrides, read_yaml

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
PHASE_LISTS = ("mini_batch_sizes", "iters", "gt_sizes")
SOURCE_KEYS = ("dataroot_lq", "dataroot_gt")


@dataclass(frozen=True)
class DataFolders:
    """Folders of blurry (input) and sharp (target) images to train and to test on."""

    train_input: Path
    train_target: Path
    test_input: Path
    test_target: Path


@dataclass(frozen=True)
class Changes:
    """What is done to every option file, in this order.

    Args:
        tiny: the sizes of `TINY_NETWORKS`, small patches, `TINY_STEPS`.
        steps: `train.total_iter` of every stage, its schedules scaled with it.
        data: data in place of the option files'.
        overrides: `--force_yml` texts; those of networks that a file has not are left out there.
    """

    tiny: bool = False
    steps: int | None = None
    data: DataFolders | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Run:
    """One training and its test.

    Args:
        label: stem of the option file.
        seed: `manual_seed`.
        content: the whole option file of the run.
        options: the same, checked.
        model_class: of its `model_type`.
    """

    label: str
    seed: int
    content: Mapping[str, Any]
    options: Options
    model_class: type[DeblurModel]

    @property
    def name(self) -> str:
        """The experiment's."""
        return self.options.name


def set_steps(content: dict[str, Any], steps: int) -> None:
    """Train for `steps`, in place; what counts in steps is scaled with it."""
    train = content["train"]
    ratio = steps / train["total_iter"]

    def scaled(numbers: Sequence[int]) -> list[int]:
        return [max(1, round(number * ratio)) for number in numbers]

    train["total_iter"] = steps
    scheduler, data = train["scheduler"], content["datasets"]["train"]
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
    data = content["datasets"]["train"]
    for key in PHASE_LISTS:
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


def _set_data(content: dict[str, Any], data: DataFolders) -> None:
    """Train and test on these folders, in place; validation on other data ends."""
    _without_validation(content)
    train = content["datasets"]["train"]
    for key in ("io_backend", "filename_tmpl", "meta_info_file"):
        train.pop(key, None)
    train.update(dataroot_lq=str(data.train_input), dataroot_gt=str(data.train_target))
    content["datasets"] = {
        "train": train,
        "test_1": {
            "name": "test",
            "type": train["type"],
            "dataroot_lq": str(data.test_input),
            "dataroot_gt": str(data.test_target),
        },
    }


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
    for section in filter(None, content["datasets"].values()):
        for key in (*SOURCE_KEYS, "meta_info_file"):
            if section.get(key):
                section[key] = str(Path(section[key]).absolute())
    try:
        checked = parse_options(copy.deepcopy(content), file=file)
        train, data = checked.for_training()
        data.phases(train.total_iter)
        checked.test_sets()
        with torch.device("meta"):
            build_model(checked.sections)
    except UserError as error:
        # A mistake in the last file must not show after hours of training the first.
        raise UserError(f"{file}: {error}") from None
    return content


def _stage1_paths(
    file: Path, content: dict[str, Any], names: Sequence[str], stage1: Mapping[str, Run]
) -> None:
    """Name the weights of stage 1 under `path`, in place.

    Args:
        file: where the content came from.
        names: networks that start from stage 1.
        stage1: the runs of stage 1 with this seed, by the `name` in their option files.
    """
    paths = content["path"] = dict(content.get("path") or {})
    for name in names:
        key = f"pretrain_network_{name.removeprefix('net_')}"
        given = paths.get(key)
        if given:
            parts = Path(given).parts
            experiment = parts[1] if parts[0] == str(EXPERIMENTS) and len(parts) > 2 else None
        else:
            experiment = stage1_name(content["name"])
        if experiment in stage1:
            paths[key] = str(Experiment(stage1[experiment].name).models / f"{name}_latest.pth")
        elif given and Path(given).is_file():
            paths[key] = str(Path(given).absolute())
        else:
            wanted = f"the experiment '{experiment}'" if experiment else given or "stage 1"
            raise UserError(
                f"{file}: path.{key}: it starts from {wanted}; add the option file of that stage 1 "
                "to the list"
            )


def plan(files: Sequence[Path], seeds: Sequence[int], changes: Changes) -> list[Run]:
    """The runs that a list of option files asks for, seed after seed, stage 1 before stage 2.

    Raises:
        UserError: an option file is wrong, lacks data to train or test on, or starts from a stage
            1 that is not in the list; two files have one name.
    """
    contents = {file: _changed(file, changes) for file in files}
    names = [content["name"] for content in contents.values()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two of the option files have the name '{name}'; rename one")
    classes = {f: MODELS.get(c["model_type"], "model_type") for f, c in contents.items()}
    # Python's sort keeps the order of equal keys.
    ordered = sorted(contents, key=lambda file: bool(classes[file].from_stage1))
    runs = []
    for seed in dict.fromkeys(seeds):
        by_name: dict[str, Run] = {}
        for file in ordered:
            content = copy.deepcopy(contents[file])
            content["manual_seed"] = seed
            name = content["name"]
            if classes[file].from_stage1:
                _stage1_paths(file, content, classes[file].from_stage1, by_name)
            content["name"] = f"{name}_seed{seed}"
            options = parse_options(copy.deepcopy(content), file=file)
            by_name[name] = Run(file.stem, seed, content, options, classes[file])
        runs += by_name.values()
    return runs


def finished(run: Run) -> bool:
    """Whether its training has ended, in the current folder."""
    return (Experiment(run.name).states / f"{run.options.train.total_iter}.state").is_file()


def scored(run: Run) -> bool:
    """Whether its test has ended, in the current folder."""
    return (RESULTS / run.name / "scores.json").is_file()


def for_testing(run: Run) -> Options:
    """The run's options with the weights that it has trained under `path`."""
    content = copy.deepcopy(dict(run.content))
    paths = content["path"] = dict(content.get("path") or {})
    for name in {**run.model_class.sections, **run.model_class.training_sections}:
        if name not in run.model_class.frozen:
            paths[f"pretrain_network_{name.removeprefix('net_')}"] = str(
                Experiment(run.name).models / f"{name}_latest.pth"
            )
    return parse_options(content, file=run.options.file)
