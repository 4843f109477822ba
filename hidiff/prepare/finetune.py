"""Fine-tuning on a folder of pairs: which are held out, and the option file of the training."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from hidiff.data.image import listing
from hidiff.data.pairs import Pair, find_pairs
from hidiff.evaluation.record import Scores, read_scores
from hidiff.evaluation.test_run import run_test
from hidiff.options import Options, load_options, parse_options
from hidiff.options.yaml_file import apply_overrides, read_yaml, shipped_options
from hidiff.prepare.pair_check import check_pair
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError, suggestion
from hidiff.utils.files import write_text
from hidiff.utils.workers import available_cores, ordered_pipeline
from hidiff.weights.experiment import EXPERIMENTS, MODEL_SUFFIX, RESULTS, Experiment
from hidiff.weights.export import pack
from hidiff.weights.find import FoundModel, find_model

LOG = logging.getLogger("hidiff")

USUAL_PATCH, MIN_SIDE = 256, 64
"""Side in pixels of the patches of a model that does not say its own, and least side of images."""

BATCH_PIXELS = {"cuda": 8 * 128 * 128, "cpu": 2 * 128 * 128}
"""Pixels of a batch by the kind of device: on GPUs about those of the release's phases."""

MAX_BATCH = 16


def finetune_folder(name: str) -> Path:
    """The folder of the option file and the lists of pairs of a fine-tuning."""
    return EXPERIMENTS / f"{name}_finetune"


def split(
    pairs: Sequence[Pair], *, test: Sequence[str] = (), held_out: int | None = None, seed: int = 0
) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on, and those that are held out to score.

    Parts of the folder other than `train` (`test`, `val`, `valid`, `validation`) are held out.
    Where there are none, a tenth of the scenes is, at least one: pictures of one scene on both
    sides would make the result look better than it is.

    Args:
        test: scenes or names of pairs to hold out.
        held_out: the number of pairs to hold out, the last by name, whatever scene they show.
        seed: of the choice of scenes.

    Raises:
        UserError: a name is unknown, or nothing is left on one side.
    """
    scenes = sorted({pair.scene for pair in pairs})
    parts = sorted({pair.part for pair in pairs} - {"", "train"})
    if parts:
        if test or held_out:
            raise UserError(
                f"--test, --held_out: the folder has {listing(parts)}, which is held out; leave "
                "these options out, or move that folder away"
            )
        chosen = {pair for pair in pairs if pair.part in parts}
    elif test:
        known = {*scenes, *(pair.name for pair in pairs)}
        for name in test:
            if name not in known:
                raise UserError(
                    f"--test: there is no scene or pair '{name}'{suggestion(name, scenes)}"
                )
        chosen = {pair for pair in pairs if pair.scene in test or pair.name in test}
    elif held_out:
        chosen = set(pairs[-held_out:])
    elif len(scenes) == 1:
        raise UserError(
            f"--data: all {len(pairs)} pairs are of one scene, '{scenes[0]}', and scores on a "
            "scene that was trained on say little about others. Give each scene a folder, name "
            "what to hold out with --test, or take the last pairs by name with --held_out N"
        )
    else:
        held = random.Random(seed).sample(scenes, max(1, round(len(scenes) / 10)))
        chosen = {pair for pair in pairs if pair.scene in held}
    rest = [pair for pair in pairs if pair not in chosen]
    if not rest:
        raise UserError("--data: all pairs are held out, and none is left to train on")
    return rest, [pair for pair in pairs if pair in chosen]


def usable(pairs: Sequence[Pair], min_side: int) -> tuple[set[Pair], int]:
    """The pairs in which `check_pair` finds nothing wrong; the others are logged and skipped.

    Args:
        min_side: least side of the images in pixels.

    Returns:
        The pairs, and the shortest side of their images in pixels.

    Raises:
        UserError: more than half of the pairs cannot be used.
    """
    LOG.info("checking the images and the alignment of %d pairs", len(pairs))
    found = ordered_pipeline(
        pairs,
        load=lambda pair: check_pair(pair, patch_size=min_side, align=True),
        workers=available_cores(),
    )
    results = dict(zip(pairs, found, strict=True))
    problems = [problem for result in results.values() for problem in result.problems[:1]]
    for problem in problems:
        LOG.info("skipped: %s", problem)
    if len(problems) > len(pairs) / 2:
        raise UserError(
            f"--data: {len(problems)} of {len(pairs)} pairs cannot be used, which is more than a "
            f"mistake in some: {listing(problems, 3)}"
        )
    good = {pair for pair, result in results.items() if not result.problems}
    return good, min(results[pair].side for pair in good)


def plan(asked: Mapping[str, Any], name: str) -> Options:
    """The option file of a fine-tuning; that of an earlier call with the same arguments.

    Args:
        asked: the arguments of the command: data, model, steps, lr, test, held_out, seed and
            force_yml.
        name: of the experiment.

    Raises:
        UserError: the pairs cannot be used, the model cannot be trained on, an option is wrong,
            or there is another experiment or fine-tuning of that name.
    """
    folder = finetune_folder(name)
    option_file, record = folder / f"{name}.yml", folder / "arguments.json"
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = [key for key in asked if before.get(key) != asked[key]]
        if changed:
            raise UserError(
                f"-o {name}: {folder} is of a call with another {', '.join(changed)}; repeat that "
                "call to go on with it, or name another one with -o"
            )
        return load_options(option_file)
    if Experiment(name).folder.exists():
        raise UserError(f"-o {name}: there is an experiment of that name; name another one")
    start = find_model(asked["model"], training=True)
    if start.model.restores_from_gt:
        raise UserError(f"--model: {start.place} is of stage 1; take a model of stage 2")
    data = Path(asked["data"])
    train, held_out = split(
        find_pairs(data).pairs, test=asked["test"], held_out=asked["held_out"], seed=asked["seed"]
    )
    patch = start.patch_size or USUAL_PATCH
    good, side = usable([*train, *held_out], min(patch, MIN_SIDE))
    parts = {
        "train": [pair for pair in train if pair in good],
        "held_out": [pair for pair in held_out if pair in good],
    }
    for part, pairs in parts.items():
        if not pairs:
            raise UserError(f"--data: all pairs of the part '{part}' are skipped; see above")
        scenes = {f"{pair.part}/{pair.scene}".strip("/") for pair in pairs}
        LOG.info("%s: %d pairs of %s", part, len(pairs), listing(scenes, 20))
    content = _content(asked, name, start, min(patch, side // 8 * 8))
    apply_overrides(content, asked["force_yml"])
    options = parse_options(copy.deepcopy(content), file=option_file)
    for part, pairs in parts.items():
        sides = [
            [Path(str(side)).relative_to(data).as_posix() for side in (pair.gt, pair.lq)]
            for pair in pairs
        ]
        write_text(folder / f"{part}.txt", "".join(f"{gt}\t{lq}\n" for gt, lq in sides))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text(option_file, f"# Written by hidiff finetune.\n{text}")
    write_text(record, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
    return options


def _content(asked: Mapping[str, Any], name: str, start: FoundModel, patch: int) -> dict[str, Any]:
    """`options/finetune.yml` with the model's networks, the pairs and the arguments."""
    content, _, _ = read_yaml(shipped_options() / "finetune.yml")
    own = ("network_", "model_type", "diffusion_schedule")
    content = {key: value for key, value in content.items() if not key.startswith(own)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for key, part in (("train", "train"), ("test_1", "held_out")):
        content["datasets"][key] |= {
            "dataroot_lq": asked["data"],
            "dataroot_gt": asked["data"],
            "meta_info_file": str(finetune_folder(name) / f"{part}.txt"),
        }
    content["datasets"]["train"] |= {
        "num_worker_per_gpu": 4 if device == "cuda" else 1,
        "batch_size_per_gpu": max(1, min(MAX_BATCH, BATCH_PIXELS[device] // patch**2)),
        "gt_size": patch,
    }
    content["train"] |= {
        "total_iter": asked["steps"],
        # The average is over a part of the training, however short that is.
        "ema_decay": min(0.999, max(0.0, 1 - 10 / asked["steps"])),
    }
    content["train"]["optim_total"]["lr"] = asked["lr"]
    content["train"]["scheduler"]["eta_min"] = asked["lr"] / 100
    content["path"] = {"weights": asked["model"]}
    return {**content, **start.options, "name": name, "manual_seed": asked["seed"]}


def score(options: Options, name: str, model: str, processes: Processes) -> Scores:
    """The scores of a model on the held-out pairs, in `results/{name}`."""
    content = copy.deepcopy(dict(options.sections))
    content |= {"name": name, "path": {"weights": model}}
    run_test(parse_options(content, file=options.file), processes, overwrite=True)
    (scores,) = read_scores(RESULTS / name)
    return scores


def pack_result(name: str, start: str, scores: Scores) -> Path:
    """Write the model with its new scores to `experiments/{name}/{name}.safetensors`."""
    path = Experiment(name).folder / f"{name}{MODEL_SUFFIX}"
    model = dataclasses.replace(
        find_model(name), scores=[scores.row()], licence=find_model(start).licence
    )
    pack(model, path, overwrite=True)
    return path
