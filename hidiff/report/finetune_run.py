"""Fine-tuning: an option file for the pairs of a folder, the training, and what it has changed.

`experiments/{name}` is an ordinary experiment. `experiments/{name}_finetune` holds what it was made
from (option file, lists of pairs, the model before) and `finetune.json`, `finetune.md`: what came
of it. A second call with the same arguments goes on where the first was stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hidiff.data.image import listing
from hidiff.engine.logger import start_logging
from hidiff.engine.trainer import Trainer
from hidiff.evaluation.record import Scores, for_json, read_json, read_scores
from hidiff.evaluation.test_run import run_test
from hidiff.options import MANUAL_SEED, Options, load_options, parse_options
from hidiff.options.yaml_file import apply_overrides
from hidiff.report.finetune_pairs import FoundPair, find_pairs, split, usable
from hidiff.utils.distributed import Processes
from hidiff.utils.errors import UserError
from hidiff.utils.files import set_aside, write_text
from hidiff.utils.tables import markdown_table, text_table
from hidiff.weights.experiment import EXPERIMENTS, RESULTS, Experiment
from hidiff.weights.experiment import MODEL_SUFFIX as SUFFIX
from hidiff.weights.export import pack
from hidiff.weights.find import FoundModel, find_model

LOG = logging.getLogger("hidiff")

USUAL_PATCH, LEAST_PATCH = 256, 64
"""Sides of patches in pixels: of a model that does not say its own, and of smaller images."""

PIXELS = {"cuda": 8 * 128 * 128, "cpu": 2 * 128 * 128}
"""Of a batch, by the kind of device: on GPUs about those of the release's phases."""

MAX_BATCH = 16


@dataclass(frozen=True)
class Asked:
    """The arguments of a fine-tuning.

    Args:
        data: folder of pairs, see `find_pairs`.
        weights: the model to start from, see `hidiff.weights.find`.
        steps: of the training.
        lr: learning rate of the first step.
        test, held_out, seed: see `split`; `seed` is `manual_seed` too.
        overrides: `--force_yml` texts.
    """

    data: str
    weights: str
    steps: int = 2000
    lr: float = 5e-5
    test: Sequence[str] = ()
    held_out: int | None = None
    seed: int = MANUAL_SEED
    overrides: Sequence[str] = ()


def files_of(name: str) -> Path:
    """The folder of what a fine-tuning was made from, and of what came of it."""
    return EXPERIMENTS / f"{name}_finetune"


def plan(asked: Asked, name: str) -> Options:
    """The option file of a fine-tuning; that of an earlier call with the same arguments.

    Raises:
        UserError: the pairs cannot be used, the model cannot be trained on, an option is wrong,
            or there is another experiment or fine-tuning of that name.
    """
    folder = files_of(name)
    option_file, record = folder / f"{name}.yml", folder / "finetune.json"
    wanted = json.loads(json.dumps(dataclasses.asdict(asked)))
    if record.is_file():
        before = read_json(record).get("asked", {})
        changed = [key for key in wanted if before.get(key) != wanted[key]]
        if changed:
            raise UserError(
                f"-o {name}: {folder} is of a call with another {', '.join(changed)}; repeat that "
                "call to go on with it, or name another one with -o"
            )
        return load_options(option_file)
    if Experiment(name).folder.exists():
        raise UserError(f"-o {name}: there is an experiment of that name; name another one")
    start = find_model(asked.weights, training=True)
    if start.model.restores_from_gt:
        raise UserError(f"--weights: {start.place} is of stage 1; take a model of stage 2")
    train, held_out = split(
        find_pairs(Path(asked.data)), test=asked.test, held_out=asked.held_out, seed=asked.seed
    )
    patch = start.patch_size or USUAL_PATCH
    LOG.info("measuring the alignment of %d pairs", len(train) + len(held_out))
    good, left_out, side = usable([*train, *held_out], min(patch, LEAST_PATCH))
    for file, reason in left_out.items():
        LOG.info("left out: %s: %s", file, reason)
    parts = {
        "train": [pair for pair in train if pair in good],
        "held_out": [pair for pair in held_out if pair in good],
    }
    for part, pairs in parts.items():
        if not pairs:
            raise UserError(f"--data: all pairs of the part '{part}' are left out; see above")
    content = _content(asked, name, start, min(patch, side // 8 * 8))
    apply_overrides(content, asked.overrides)
    options = parse_options(copy.deepcopy(content), file=option_file)
    for folder_of_scores in (RESULTS / f"{name}_before", RESULTS / f"{name}_after"):
        if folder_of_scores.exists():
            LOG.info("earlier results were moved to %s", set_aside(folder_of_scores))
    for part, pairs in parts.items():
        lines = [_line(pair, Path(asked.data)) for pair in pairs]
        write_text(folder / f"{part}.txt", "\n".join(lines) + "\n")
    pack(start, folder / f"start{SUFFIX}", for_training=True, overwrite=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_text(option_file, f"# Written by `hidiff finetune` for {asked.weights}.\n{text}")
    facts = {
        "asked": wanted,
        "model": start.description,
        "scenes": {part: sorted({p.scene for p in pairs}) for part, pairs in parts.items()},
        "pairs": {part: len(pairs) for part, pairs in parts.items()},
        "left_out": left_out,
    }
    _write_record(record, facts)
    return options


def _line(pair: FoundPair, data: Path) -> str:
    """Of the list of pairs, see `hidiff.data.pairs.find_pairs`."""
    return "\t".join(side.relative_to(data).as_posix() for side in (pair.gt, pair.lq))


def _content(asked: Asked, name: str, start: FoundModel, patch: int) -> dict[str, Any]:
    """The option file: the model's own networks, a short schedule and a low learning rate."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = {
        "type": "PairedImageIRDataset",
        "dataroot_lq": asked.data,
        "dataroot_gt": asked.data,
    }
    lists = {part: str(files_of(name) / f"{part}.txt") for part in ("train", "held_out")}
    return {
        "name": name,
        **start.options,
        "manual_seed": asked.seed,
        "datasets": {
            "train": {
                "name": "own_pairs",
                **data,
                "meta_info_file": lists["train"],
                "num_worker_per_gpu": 4 if device == "cuda" else 1,
                "batch_size_per_gpu": max(1, min(MAX_BATCH, PIXELS[device] // patch**2)),
                "gt_size": patch,
            },
            "test_1": {"name": "held_out", **data, "meta_info_file": lists["held_out"]},
        },
        "path": {"weights": str(files_of(name) / f"start{SUFFIX}")},
        "train": {
            "total_iter": asked.steps,
            "reference_world_size": 1,
            # The average is over a part of the training, however short that is.
            "ema_decay": min(0.999, max(0.0, 1 - 10 / asked.steps)),
            "optim_total": {"type": "AdamW", "lr": asked.lr, "weight_decay": 1e-4},
            "scheduler": {"type": "CosineAnnealingLR", "eta_min": asked.lr / 100},
        },
        "val": {
            "metrics": {"psnr": {"type": "calculate_psnr"}, "ssim": {"type": "calculate_ssim"}},
        },
        "logger": {
            "print_freq": max(1, asked.steps // 40),
            "save_checkpoint_freq": max(1, asked.steps // 4),
        },
    }


def finetune(options: Options, processes: Processes) -> bool:
    """Score the held-out pairs, train, and score them again; what is done is not done again.

    Args:
        options: of `plan`.
        processes: one.

    Returns:
        Whether the mean PSNR of the held-out pairs is better. Only then the result is packed, into
        `experiments/{name}/{name}.safetensors`.

    Raises:
        UserError: anything in the data or the files that a person must mend.
        Interrupted: the training was stopped; the same call goes on.
    """
    name, folder = options.name, files_of(options.name)
    experiment = Experiment(name)
    start, tuned = (folder / f"{part}{SUFFIX}" for part in ("start", "tuned"))
    before = _held_out(options, f"{name}_before", start, processes)
    if before.failed:
        raise UserError(
            f"--weights: {len(before.failed)} of the held-out images have no score "
            f"({listing(before.failed)}); the reasons stand above"
        )
    total_iter = options.for_training()[0].total_iter
    if not (experiment.states / f"{total_iter}.state").is_file():
        Trainer(options, processes, auto_resume=True).run()
        start_logging(is_main=True)
    model = dataclasses.replace(find_model(name), licence=find_model(start).licence)
    pack(model, tuned, for_training=True, overwrite=True)
    after = _held_out(options, f"{name}_after", tuned, processes)
    tuned.unlink()
    gain = after.mean().get("psnr", math.nan) - before.mean()["psnr"]
    # What a training that has failed restores cannot even be scored.
    better = gain > 0 and not after.failed
    _write_record(
        folder / "finetune.json",
        read_json(folder / "finetune.json")
        | {"before": before.mean(), "after": after.mean(), "better": better},
    )
    _write_table(folder / "finetune.md", before, after)
    if after.mean().get("psnr", 0.0) < before.mean("blurry")["psnr"]:
        LOG.warning("the blurry images score higher than what is restored of them, also now")
    if not better:
        LOG.error(
            "fine-tuning made it no better: %+.3f dB on the held-out pairs. No result is written; "
            "restore with the model that it started from, or try again with a lower --lr, more "
            "--steps or more pairs, and another -o",
            gain,
        )
        return False
    result = experiment.folder / f"{name}{SUFFIX}"
    pack(dataclasses.replace(model, scores=[after.row()]), result, overwrite=True)
    LOG.info("%+.3f dB on the held-out pairs; the result: hidiff restore -m %s", gain, result)
    return True


def _held_out(options: Options, name: str, weights: Path, processes: Processes) -> Scores:
    """The scores of a packed file on the held-out pairs."""
    content = copy.deepcopy(dict(options.sections))
    content |= {"name": name, "path": {"weights": str(weights)}}
    run_test(parse_options(content, file=options.file), processes, overwrite=True)
    (scores,) = read_scores(RESULTS / name)
    return scores


def _write_record(path: Path, facts: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(for_json(facts), indent=1, ensure_ascii=False) + "\n")


def _write_table(path: Path, before: Scores, after: Scores) -> None:
    """Write and log a row an image, and the means."""
    metrics = sorted(before.mean())

    def row(name: str, *sides: Mapping[str, float]) -> list[str]:
        values = [side.get(metric) for metric in metrics for side in sides]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        return [name, *cells]

    columns = [f"{metric} {side}" for metric in metrics for side in ("blurry", "before", "after")]
    rows = [
        row(old.name, old.blurry, old.restored, new.restored)
        for old, new in zip(before.images, after.images, strict=True)
    ]
    rows.append(row("mean", before.mean("blurry"), before.mean(), after.mean()))
    header = ["image", *columns]
    title = "# Held-out pairs before and after fine-tuning"
    lines = [title, "", *markdown_table(header, rows, numbers=range(1, len(header))), ""]
    write_text(path, "\n".join(lines))
    for line in (*text_table(header, rows), f"written to {path}"):
        LOG.info(line)
