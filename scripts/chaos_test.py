"""Kill a training of two processes again and again, and check that nothing of it is lost.

    python scripts/chaos_test.py --kills 20 --output results/chaos

A tiny network trains on generated images, on CPUs. The run is killed at random moments in five
ways, and continued by the same command with --auto_resume, until it is complete. Then

- the last training state (weights, their average, optimiser, best scores) and the weights files
  must equal those of a run that nobody killed, bit for bit;
- every loss line must stand exactly once in the merged log, and equal the line of that run. Merged
  means: lines count up to the step from which the next attempt went on;
- after every kill all processes must be gone within a minute;
- SIGTERM must lose no step, and any other kill none before the last checkpoint.

Prints a table and writes it to FOLDER/report.md; the exit code is 1 if anything differs. For Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from chaos_job import NAME, Job, partial_files, running, wait_for

from hidiff import build_model
from hidiff.data.image import write_image
from hidiff.errors import UserError, friendly_errors
from hidiff.prepare.camera_shake import shake

SAVE_EVERY = 4
"""Steps between checkpoints."""

STEPS_PER_KILL = 8
"""Steps of the whole training for each kill, so that each has new steps to hit."""

EXIT_LIMIT = 60.0
"""Seconds after a kill until the last process of the training must be gone."""

RANK_0, RANK_1, ALL, TERM, WRITING = KINDS = (
    "SIGKILL to rank 0",
    "SIGKILL to rank 1",
    "SIGKILL to all",
    "SIGTERM to torchrun",
    "SIGKILL during a write",
)


@dataclass
class Kill:
    """What one kill did; `reached` and `resumed` are steps."""

    kind: str
    reached: int
    hit: str
    seconds: float | None
    resumed: int | None = None
    problems: list[str] = field(default_factory=list)


def option_file(steps: int) -> dict[str, Any]:
    """Stage 2 with everything that a state has to carry: phases, accumulation, average, scores."""
    data = {"type": "PairedImageIRDataset"}
    roots = {
        part: {f"dataroot_{key}": f"../data/{part}/{key}" for key in ("lq", "gt")}
        for part in ("train", "val")
    }
    encoder = {"type": "latent_encoder_gelu", "embed_dim": 8, "block_num": 1}
    first = steps // 2
    return {
        "name": NAME,
        "model_type": "HI_Diff_S2",
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
        "network_le_dm": {**encoder, "in_chans": 3, "stage": 2},
        "network_d": {
            "type": "denoising",
            "in_channel": 32,
            "out_channel": 32,
            "inner_channel": 16,
            "block_num": 2,
        },
        "diffusion_schedule": {"apply_ldm": False, "timesteps": 2},
        "path": {f"pretrain_network_{n}": f"../data/net_{n}.pth" for n in ("g", "le")},
        "train": {
            "total_iter": steps,
            "reference_world_size": 4,
            "ema_decay": 0.9,
            "optim_total": {"type": "AdamW", "lr": 1e-3},
            "scheduler": {"type": "CosineAnnealingLR"},
        },
        "val": {"val_freq": 3 * SAVE_EVERY, "metrics": {"psnr": {"type": "calculate_psnr"}}},
        "logger": {
            "print_freq": 1,
            "save_checkpoint_freq": SAVE_EVERY,
            "use_tb_logger": False,
        },
    }


def make_data(folder: Path, options: dict[str, Any], seed: int) -> None:
    """Generated pairs, and weights to start stage 2 from."""
    rng = np.random.default_rng(seed)
    for part, count in (("train", 5), ("val", 2)):
        for index in range(count):
            coarse = rng.random((10, 12, 3)).astype(np.float32)
            picture = cv2.resize(coarse, (48, 40), interpolation=cv2.INTER_LINEAR)
            blurry, sharp = shake(np.rint(picture * 255).astype(np.uint8), rng=rng, frames=9)
            write_image(folder / part / "lq" / f"{index}.png", blurry)
            write_image(folder / part / "gt" / f"{index}.png", sharp)
    torch.manual_seed(seed)
    networks = build_model(options).networks()
    for name in ("net_g", "net_le"):
        torch.save({"params": networks[name].state_dict()}, folder / f"{name}.pth")


def strike(job: Job, kind: str, rng: random.Random, limit: int) -> str | None:
    """Kill at a random moment, before step `limit` where the training has not passed it yet.

    Returns:
        When it was hit; None when the training ended before.
    """
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
    if kind in (RANK_0, RANK_1):
        os.kill(ranks[(RANK_0, RANK_1).index(kind)], signal.SIGKILL)
        return "while training"
    if kind == TERM:
        os.kill(job.launcher.pid, signal.SIGTERM)
        return "while training"
    if kind == ALL:
        job.kill_all()
        return "while training"
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
    return f"left {min(left)}" if left else "just after a write"


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
    if kill.kind == TERM:
        earliest = kill.reached
    if resumed < earliest:
        kill.problems.append(f"steps after {resumed} are lost")


def torture(
    folder: Path, kills: int, steps: int, rng: random.Random
) -> tuple[list[Kill], dict[int, list[str]]]:
    """Train to the end with that many kills; returns them, and the merged loss lines by step."""
    kinds = [KINDS[index % len(KINDS)] for index in range(kills)]
    rng.shuffle(kinds)
    done: list[Kill] = []
    pending: list[Kill] = []
    merged: dict[int, list[str]] = {}
    reached = 0
    for number, kind in enumerate([*kinds, None], start=1):
        with running(folder, number) as job:
            if kind is None:
                hit = None
                wait_for(job, lambda: False, "end of the training", pause=0.1)
            else:
                hit = strike(job, kind, rng, limit=steps * number // (kills + 1))
            seconds = job.wait_until_gone(EXIT_LIMIT)
            resumed, lines, code = job.resumed_from(), job.lines(), job.launcher.poll()
        if (hit is None) != (kind is None) or (kind is None and code != 0):
            sys.exit(
                f"attempt {number} ended by itself with exit code {code} after {len(done)} of "
                f"{kills} kills; see {job.console}; if it was complete, give more --steps"
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
        if resumed is None:
            hit = "while starting"
        kill = Kill(kind, reached, hit, seconds)
        if seconds is None:
            kill.problems.append(f"processes were left after {EXIT_LIMIT:.0f} s")
        done.append(kill)
        pending.append(kill)
        print(f"kill {len(done)} of {kills}: {kind} ({hit}), step {reached}", flush=True)
    return done, merged


def uninterrupted(folder: Path) -> dict[int, list[str]]:
    """Train without a kill; returns the loss lines by step."""
    with running(folder, 1) as job:
        wait_for(job, lambda: False, "end of the training", pause=0.1)
        if job.launcher.poll() != 0:
            sys.exit(f"the training without kills failed; see {job.console}")
        return job.lines()


def report(kills: list[Kill], steps: int, problems: list[str]) -> str:
    """The Markdown table and the verdict on the whole."""
    rows = [
        "| kill | kind | when | step reached | resumed after step | gone after | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, kill in enumerate(kills, start=1):
        gone = "never" if kill.seconds is None else f"{kill.seconds:.1f} s"
        verdict = "; ".join(kill.problems) or "ok"
        rows.append(
            f"| {number} | {kill.kind} | {kill.hit} | {kill.reached} | {kill.resumed} | {gone} | "
            f"{verdict} |"
        )
    if problems:
        verdict = [f"- {problem}" for problem in problems]
    else:
        verdict = [
            f"After {len(kills)} kills the last training state and the weights files of step "
            f"{steps} equal those of an uninterrupted run bit for bit, and each of the {steps} "
            "loss lines stands exactly once in the merged log, as in that run."
        ]
    return "\n".join([*rows, "", *verdict, ""])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="default: 20")
    parser.add_argument("--steps", type=int, help=f"default: {STEPS_PER_KILL} for each kill")
    parser.add_argument(
        "--output", type=Path, default=Path("results/chaos"), help="default: results/chaos"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the kills; default: 0")
    options = parser.parse_args(arguments)
    # The training processes are in sessions of their own; leave none behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with friendly_errors():
        steps = STEPS_PER_KILL * options.kills if options.steps is None else options.steps
        if options.kills < 1 or steps < 2 * options.kills:
            raise UserError("--kills must be at least 1, and --steps at least two for each kill")
        if not Path("/proc/self/environ").is_file():
            raise UserError("this program finds its processes in /proc, which only Linux has")
        folder = options.output.resolve()
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--output: {folder} is not empty; name another folder")
        content = option_file(steps)
        make_data(folder / "data", content, seed=0)
        places = [folder / "killed", folder / "uninterrupted"]
        for place in places:
            place.mkdir()
            text = yaml.safe_dump(content, sort_keys=False)
            (place / f"{NAME}.yml").write_text(text, encoding="utf-8")
        expected = uninterrupted(places[1])
        kills, merged = torture(places[0], options.kills, steps, random.Random(options.seed))
        problems = compare_files(*(place / "experiments" / NAME for place in places), steps)
        problems += compare_logs(merged, expected)
        if sorted(expected) != list(range(1, steps + 1)):
            problems.append("the run without kills has not logged every step")
        failed = [f"kill {i}: {p}" for i, k in enumerate(kills, start=1) for p in k.problems]
        text = report(kills, steps, problems + failed)
        (folder / "report.md").write_text(text, encoding="utf-8")
        print(text)
    raise SystemExit(1 if problems or failed else 0)


if __name__ == "__main__":
    main()
