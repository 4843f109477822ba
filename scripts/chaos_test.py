"""Kill a training of two stages and two processes again and again; nothing of it may be lost.

    python scripts/chaos_test.py --kills 20 --output results/chaos

A tiny network trains on generated images, on CPUs. The run is killed at random moments in eleven
ways, and continued by the same command with --auto_resume, until it is complete. Stage 2 starts
when stage 1 exits with 0, as in a shell's `stage 1 && stage 2`. Then

- the last training state (weights, their average, optimiser, best scores) and the weights files of
  both stages must equal those of a run that nobody killed, bit for bit;
- every loss line must stand exactly once in the merged log, and equal the line of that run. Merged
  means: lines count up to the step from which the next attempt went on;
- after every kill all processes must be gone within a minute, and the exit code is not 0;
- SIGTERM and the end of torchrun must lose no step, and any other kill none before the last
  checkpoint that could be written, which is the validated step's own where a validation was hit.

The full disk is a limit on the size of a file (RLIMIT_FSIZE), set on the process that writes: its
writes fail from there on, with another error number than those on a full disk.

Prints a table and writes it to FOLDER/report.md; the exit code is 1 if anything differs. For Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import yaml
from chaos_job import STAGES, Job, name_of, partial_files, running, wait_for

from hidiff.data.image import write_image
from hidiff.errors import UserError, friendly_errors
from hidiff.synthesis.shake import shake

SAVE_EVERY = 4
"""Steps between checkpoints."""

VALIDATE_EVERY = 6
"""Steps between validations; every other one has no checkpoint of its own."""

DISK = 100_000
"""Bytes that a file may have on the full disk: more than a log, fewer than weights."""

STEPS_PER_KILL = 10
"""Steps of the whole training for each kill, so that each has new steps to hit."""

EXIT_LIMIT = 60.0
"""Seconds after a kill until the last process of the training must be gone."""

BETWEEN = "SIGKILL between the stages"
"""Comes once, when stage 1 says that it is complete."""

STOPPED, WORKER, FULL, WRITING, VALIDATING, AGENT, RANK_0, RANK_1, ALL, TERM = KINDS = (
    "SIGTERM during validation",
    "SIGKILL to a loader process",
    "disk full, then SIGKILL to all",
    "SIGKILL during a write",
    "SIGKILL during validation",
    "SIGKILL to torchrun",
    "SIGKILL to rank 0",
    "SIGKILL to rank 1",
    "SIGKILL to all",
    "SIGTERM to torchrun",
)


@dataclass
class Kill:
    """What one kill did; `reached`, `earliest` and `resumed` are steps of the stage.

    The training must go on from `earliest` or later; None: from the checkpoint before `reached`.
    """

    kind: str
    reached: int
    hit: str
    seconds: float | None
    stage: int = 1
    earliest: int | None = None
    resumed: int | None = None
    problems: list[str] = field(default_factory=list)


def option_file(stage: int, steps: int) -> dict[str, Any]:
    """Everything that a state has to carry: phases, accumulation, average, scores."""
    data = {"type": "PairedImageIRDataset"}
    roots = {
        part: {f"dataroot_{key}": f"../data/{part}/{key}" for key in ("lq", "gt")}
        for part in ("train", "val")
    }
    encoder = {"type": "latent_encoder_gelu", "embed_dim": 8, "block_num": 1}
    first = steps // 2
    options = {
        "name": name_of(stage),
        "model_type": f"HI_Diff_S{stage}",
        "num_gpu": 0,
        "manual_seed": 5,
        "datasets": {
            "train": {
                **data,
                **roots["train"],
                "name": "generated",
                "num_worker_per_gpu": 1,
                "batch_size_per_gpu": 2,
                "mini_batch_sizes": [2, 1],
                "iters": [first, steps - first],
                "gt_sizes": [16, 24],
                "gt_size": 24,
            },
            "val": {**data, **roots["val"], "name": "generated"},
        },
        "network_g": {
            "type": "Transformer",
            "dim": 8,
            "num_blocks": [1, 1, 1, 1],
            "num_refinement_blocks": 1,
            "heads": [1, 2, 4, 8],
            "ffn_expansion_factor": 2,
            "embed_dim": 8,
        },
        "network_le": {**encoder, "in_chans": 6, "stage": 1},
        "train": {
            "total_iter": steps,
            "reference_world_size": 4,
            "ema_decay": 0.9,
            "optim_total": {"type": "AdamW", "lr": 1e-3},
            "scheduler": {"type": "CosineAnnealingLR"},
        },
        "val": {
            "val_freq": VALIDATE_EVERY,
            "save_img": True,
            "metrics": {"psnr": {"type": "calculate_psnr"}},
        },
        "logger": {
            "print_freq": 1,
            "save_checkpoint_freq": SAVE_EVERY,
            "use_tb_logger": False,
        },
    }
    if stage == 1:
        return options
    return options | {
        "network_le_dm": {**encoder, "in_chans": 3, "stage": 2},
        "network_d": {
            "type": "denoising",
            "in_channel": 32,
            "out_channel": 32,
            "inner_channel": 16,
            "block_num": 2,
        },
        "diffusion_schedule": {"apply_ldm": False, "timesteps": 2},
    }


def make_data(folder: Path, seed: int) -> None:
    """Generated pairs; those of the validation are larger, so that it lasts long enough to hit."""
    rng = np.random.default_rng(seed)
    for part, count, size in (("train", 5, (48, 40)), ("val", 8, (96, 80))):
        for index in range(count):
            coarse = rng.random((10, 12, 3)).astype(np.float32)
            picture = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
            blurry, sharp = shake(np.rint(picture * 255).astype(np.uint8), rng=rng, frames=9)
            write_image(folder / part / "lq" / f"{index}.png", blurry)
            write_image(folder / part / "gt" / f"{index}.png", sharp)


class Hit(NamedTuple):
    """What a kill has met; for `earliest` see `Kill`."""

    when: str
    earliest: int | None = None
    validating: int | None = None


def validated_step(job: Job) -> int | None:
    """The step whose validation has begun last: it has written a picture."""
    pictures = job.experiment.glob("visualization/*/*/*_*.png")
    return max((int(path.stem.rpartition("_")[2]) for path in pictures), default=None)


def strike_validation(job: Job, kind: str) -> Hit | None:
    """Kill in the next validation; see `strike`."""
    before = validated_step(job)
    if not wait_for(job, lambda: validated_step(job) != before, "validation", pause=0.001):
        return None
    step = validated_step(job)
    if kind == STOPPED:
        os.kill(job.launcher.pid, signal.SIGTERM)
    else:
        job.kill_all(first=next(iter(job.ranks()), None))
    saved = step % SAVE_EVERY == 0 or kind == STOPPED
    return Hit("in it", step if saved else None, step)


def strike_on_full_disk(job: Job, rank_0: int) -> Hit | None:
    """Let the next checkpoint fail and the training go on, then kill; see `strike`."""
    _, hard = resource.prlimit(rank_0, resource.RLIMIT_FSIZE)
    resource.prlimit(rank_0, resource.RLIMIT_FSIZE, (DISK, hard))

    def failed() -> list[int]:
        found = re.findall(r"step (\d+): the checkpoint could not be written", job.log())
        return [int(step) for step in found]

    def goes_on() -> bool:
        return bool(failed()) and max(job.lines(), default=0) > failed()[0]

    if not wait_for(job, goes_on, "failed checkpoint") and not failed():
        return None
    job.kill_all()
    step = failed()[0]
    return Hit(f"step {step} not saved", (step - 1) // SAVE_EVERY * SAVE_EVERY)


def strike(job: Job, kind: str, rng: random.Random, limit: int) -> Hit | None:
    """Kill at a random moment, before step `limit` where the training has not passed it yet.

    Returns:
        None when the training ended before.
    """
    if kind == BETWEEN:
        complete = "training is complete"
        if not wait_for(job, lambda: complete in job.log(), complete) and complete not in job.log():
            return None
        job.kill_all()
        return Hit("stage 1 is complete")
    if not wait_for(job, lambda: len(job.ranks()) == 2, "second process", pause=0.05):
        return None
    before = partial_files(job.experiment)
    if kind in (RANK_0, RANK_1, ALL) and rng.random() < 0.2:
        time.sleep(rng.uniform(0.0, 4.0))
    else:
        if not wait_for(job, lambda: job.resumed_from() is not None, "start of the training"):
            return None
        start = job.resumed_from()
        target = rng.randint(start, max(start, limit - 1))
        if not wait_for(job, lambda: max(job.lines(), default=start) >= target, f"step {target}"):
            return None
        time.sleep(rng.uniform(0.0, 0.2))
    ranks = job.ranks()
    if not job.is_running() or len(ranks) < 2:
        return None
    if kind in (VALIDATING, STOPPED):
        return strike_validation(job, kind)
    if kind == FULL:
        return strike_on_full_disk(job, ranks[0])
    if kind in (RANK_0, RANK_1):
        os.kill(ranks[(RANK_0, RANK_1).index(kind)], signal.SIGKILL)
        return Hit("while training")
    if kind == WORKER:
        os.kill(rng.choice(job.loaders()), signal.SIGKILL)
        return Hit("while training")
    if kind in (TERM, AGENT):
        os.kill(job.launcher.pid, signal.SIGTERM if kind == TERM else signal.SIGKILL)
        return Hit("while training")
    if kind == ALL:
        job.kill_all()
        return Hit("while training")
    wanted = rng.choice((".pth.", ".state."))

    def new_partial_files() -> list[str]:
        now = partial_files(job.experiment).items()
        return [name for name, changed in now if before.get(name) != changed]

    def is_writing() -> bool:
        return any(wanted in name for name in new_partial_files())

    if not wait_for(job, is_writing, "checkpoint", pause=0.0):
        return None
    job.kill_all(first=ranks[0])
    left = new_partial_files()
    return Hit(f"left {re.sub(r'[0-9a-f]{12}', '…', min(left))}" if left else "just after it")


def differences(ours: Any, theirs: Any, where: str) -> list[str]:
    """Places where two training states differ."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        return [] if same else [f"{where} differs"]
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return [f"{where}: other entries"]
        return [d for key in ours for d in differences(ours[key], theirs[key], f"{where}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for index, (a, b) in pairs for d in differences(a, b, f"{where}[{index}]")]
    return [] if ours == theirs else [f"{where}: {ours!r} and {theirs!r}"]


def compare_files(ours: Path, theirs: Path, steps: int) -> list[str]:
    """Differences of the last training state and weights files of two experiments."""
    names = sorted(p.relative_to(theirs) for p in theirs.glob(f"models/*_{steps}.pth"))
    names += sorted(p.relative_to(theirs) for p in theirs.glob("models/*_latest.pth"))
    names.append(Path("training_states") / f"{steps}.state")
    found = []
    for name in names:
        if not (ours / name).is_file():
            found.append(f"{name} is missing")
            continue
        pair = [torch.load(folder / name, weights_only=True) for folder in (ours, theirs)]
        found += differences(*pair, str(name))
    return found


def compare_logs(merged: dict[int, list[str]], reference: dict[int, list[str]]) -> list[str]:
    """Differences of the loss lines; each step must have one."""
    return [
        f"step {step}: the loss lines are {merged.get(step)}, expected {reference[step]}"
        for step in sorted(reference)
        if merged.get(step) != reference[step]
    ] + [f"step {step}: no such line expected" for step in sorted(set(merged) - set(reference))]


def judge(kill: Kill, resumed: int) -> None:
    """Note from where the next attempt went on, and whether that is far enough."""
    kill.resumed = resumed
    if resumed > kill.reached:
        kill.problems.append("resumed from a step that was not logged")
    saved = kill.reached - kill.reached % SAVE_EVERY
    # The step itself may be logged and its checkpoint not written yet.
    earliest = saved - SAVE_EVERY if saved == kill.reached else saved
    if kill.kind in (TERM, AGENT, STOPPED, BETWEEN):
        earliest = kill.reached
    if kill.earliest is not None:
        earliest = kill.earliest
    if resumed < earliest:
        kill.problems.append(f"steps after {resumed} are lost")


def schedule(kills: int, rng: random.Random) -> dict[int, list[str]]:
    """The kinds of kill in each stage."""
    kinds = list(islice(cycle(KINDS), kills - 1))
    rng.shuffle(kinds)
    half = len(kinds) // 2
    return {1: [*kinds[:half], BETWEEN], 2: kinds[half:]}


def torture(
    folder: Path, stage: int, kinds: list[str], steps: int, rng: random.Random
) -> tuple[list[Kill], dict[int, list[str]]]:
    """Train a stage to its end with these kills; returns them and the merged loss lines by step."""
    done: list[Kill] = []
    pending: list[Kill] = []
    merged: dict[int, list[str]] = {}
    reached = 0
    for number, kind in enumerate([*kinds, None], start=1):
        with running(folder, stage, number) as job:
            if kind is None:
                hit = None
                wait_for(job, lambda: False, "end of the training", pause=0.1)
            else:
                hit = strike(job, kind, rng, limit=steps * number // (len(kinds) + 1))
            seconds = job.wait_until_gone(EXIT_LIMIT)
            resumed, lines, log = job.resumed_from(), job.lines(), job.log()
            code = job.launcher.poll()
        if (hit is None) != (kind is None) or (kind is None and code != 0):
            sys.exit(
                f"attempt {number} at stage {stage} ended by itself with exit code {code} after "
                f"{len(done)} of {len(kinds)} kills; see {job.console}; if it was complete, give "
                "more --steps"
            )
        if resumed is not None:
            for kill in pending:
                judge(kill, resumed)
            pending = []
            merged = {step: texts for step, texts in merged.items() if step <= resumed}
            for step, texts in lines.items():
                merged[step] = merged.get(step, []) + texts
            reached = max(lines, default=resumed)
        if kind is None:
            break
        when = hit.when
        if resumed is None:
            when = "while starting"
        elif hit.validating is not None and f"step {hit.validating}: val" in log:
            when = "just after it"
        kill = Kill(kind, reached, when, seconds, stage, hit.earliest)
        if seconds is None:
            kill.problems.append(f"processes were left after {EXIT_LIMIT:.0f} s")
        if code == 0 and kind != BETWEEN:
            kill.problems.append("exit code 0")
        done.append(kill)
        pending.append(kill)
        print(f"stage {stage}, {kind} ({when}), step {reached}", flush=True)
    return done, merged


def uninterrupted(folder: Path, stage: int) -> dict[int, list[str]]:
    """Train a stage without a kill; returns the loss lines by step."""
    with running(folder, stage, 1) as job:
        wait_for(job, lambda: False, "end of the training", pause=0.1)
        if job.launcher.poll() != 0:
            sys.exit(f"the training without kills failed; see {job.console}")
        return job.lines()


def report(kills: list[Kill], steps: dict[int, int], problems: list[str]) -> str:
    """The Markdown table and the verdict on the whole."""
    rows = [
        "| kill | stage | kind | when | step reached | resumed after step | gone after | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, kill in enumerate(kills, start=1):
        gone = "never" if kill.seconds is None else f"{kill.seconds:.1f} s"
        verdict = "; ".join(kill.problems) or "ok"
        rows.append(
            f"| {number} | {kill.stage} | {kill.kind} | {kill.hit} | {kill.reached} | "
            f"{kill.resumed} | {gone} | {verdict} |"
        )
    if problems:
        verdict = [f"- {problem}" for problem in problems]
    else:
        verdict = [
            f"After {len(kills)} kills the last training state and the weights files of both "
            f"stages (steps {steps[1]} and {steps[2]}) equal those of an uninterrupted run bit for "
            f"bit, and each of the {sum(steps.values())} loss lines stands exactly once in the "
            "merged log, as in that run."
        ]
    return "\n".join([*rows, "", *verdict, ""])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="default: 20")
    parser.add_argument(
        "--steps", type=int, help=f"of both stages; default: {STEPS_PER_KILL} for each kill"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/chaos"), help="default: results/chaos"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the kills; default: 0")
    options = parser.parse_args(arguments)
    # The training processes are in sessions of their own; leave none behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with friendly_errors():
        total = STEPS_PER_KILL * options.kills if options.steps is None else options.steps
        if options.kills < 1 or total < 4 * options.kills:
            raise UserError("--kills must be at least 1, and --steps at least four for each kill")
        if not Path("/proc/self/fd").is_dir():
            raise UserError("this program finds its processes in /proc, which only Linux has")
        folder = options.output.resolve()
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--output: {folder} is not empty; name another folder")
        make_data(folder / "data", seed=0)
        steps = {1: total // 2, 2: total - total // 2}
        places = [folder / "killed", folder / "uninterrupted"]
        for place in places:
            place.mkdir()
            for stage in STAGES:
                text = yaml.safe_dump(option_file(stage, steps[stage]), sort_keys=False)
                (place / f"{name_of(stage)}.yml").write_text(text, encoding="utf-8")
        rng = random.Random(options.seed)
        kinds = schedule(options.kills, rng)
        expected = {stage: uninterrupted(places[1], stage) for stage in STAGES}
        kills, problems = [], []
        for stage in STAGES:
            survived, merged = torture(places[0], stage, kinds[stage], steps[stage], rng)
            kills += survived
            experiments = (place / "experiments" / name_of(stage) for place in places)
            found = compare_files(*experiments, steps[stage])
            found += compare_logs(merged, expected[stage])
            if sorted(expected[stage]) != list(range(1, steps[stage] + 1)):
                found.append("the run without kills has not logged every step")
            problems += [f"stage {stage}: {problem}" for problem in found]
        failed = [f"kill {i}: {p}" for i, k in enumerate(kills, start=1) for p in k.problems]
        text = report(kills, steps, problems + failed)
        (folder / "report.md").write_text(text, encoding="utf-8")
        print(text)
    raise SystemExit(1 if problems or failed else 0)


if __name__ == "__main__":
    main()
