"""What an ablation changes in its option files: the budget, the data, the size of the networks."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidiff.options import DatasetOptions, parse_options
from hidiff.options.parsing import PATH_OPTIONS
from hidiff.options.yaml_file import apply_overrides, read_yaml
from hidiff.utils.errors import UserError, expanded

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
    loader = {field.name for field in dataclasses.fields(DatasetOptions)} - {"name", "weight"}
    train = {k: v for k, v in _loader_section(content).items() if k in loader}
    content["datasets"] = {"train": train, "test_1": {"name": "test"}}
    for part, section in zip(("train", "test"), content["datasets"].values(), strict=True):
        section["type"] = "PairedImageIRDataset"
        section["dataroot_lq"] = str(data[f"{part}_input"])
        section["dataroot_gt"] = str(data[f"{part}_target"])


def _absolute(paths: str | list[str]) -> str | list[str]:
    if isinstance(paths, list):
        return [str(_absolute(path)) for path in paths]
    return str(Path(expanded(paths)).absolute())


def changed(file: Path, changes: Changes) -> dict[str, Any]:
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
        for key, value in section.items():
            if value and re.fullmatch(PATH_OPTIONS, key):
                section[key] = _absolute(value)
    return content
