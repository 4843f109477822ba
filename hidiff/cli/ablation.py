#!/usr/bin/env python
"""Train and score a list of option files with one budget on one data set.

    # Table 1 and the T sweep of Fig. 3 as published: GoPro, full width
    torchrun --nproc_per_node=4 -m hidiff ablation --output results/ablation --launcher pytorch

    # the same with tiny networks on a CPU: about half an hour a seed on two cores
    hidiff ablation --tiny --data datasets/mine --seeds 0 1 2 --output results/tiny

    # a part of it
    hidiff ablation options/ablation/HI_Diff_S1.yml options/ablation/T_4.yml --output DIR

Stage 1 is trained before the stage 2 that starts from it; the list must hold both. Everything is
written to DIR: ablation.md, ablation.json and psnr_over_T.png, the option file of every run in
runs/, and the folders of train.py and test.py. Called again it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from hidiff.engine.distributed import LAUNCHERS, Processes, start_processes
from hidiff.engine.logger import start_logging
from hidiff.engine.trainer import Trainer
from hidiff.errors import UserError
from hidiff.files import write_bytes, write_text
from hidiff.paper.ablation import (
    Changes,
    DataFolders,
    Run,
    finished,
    for_testing,
    plan,
    scored,
)
from hidiff.paper.ablation_table import collect, markdown, plot, sweep
from hidiff.scoring.test_run import run_test
from hidiff.yaml_file import read_yaml

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE_1 = ("Baseline", "Single_Guide_S1", "Single_Guide_S2", "HI_Diff_S1", "Split_Training_S2")
SWEEP = ("T_1", "T_2", "T_4", "HI_Diff_S2", "T_16", "T_32")  # of HI_Diff_S2, whose T is 8
DEFAULT_FILES = [ROOT / "options" / "ablation" / f"{stem}.yml" for stem in (*TABLE_1, *SWEEP)]
PLOT = "psnr_over_T.png"
RUNS = "runs"
FOLDER_OPTIONS = ("train_input", "train_target", "test_input", "test_target")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        default=DEFAULT_FILES,
        metavar="FILE",
        help="option files (default: all of options/ablation)",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="manual_seed of the runs (default: 0)"
    )
    parser.add_argument("--steps", type=int, help="train.total_iter of every stage")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny networks, patches and budget, for a CPU"
    )
    parser.add_argument(
        "--data", type=Path, metavar="ROOT", help="folder with {train,test}/{input,target}"
    )
    for name in FOLDER_OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR")
    parser.add_argument(
        "--force_yml",
        nargs="+",
        default=[],
        metavar="SECTION:OPTION=VALUE",
        help="set options of all files; networks that a file has not are left out",
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="as for train.py")
    return parser.parse_args(arguments)


def data_folders(args: argparse.Namespace) -> DataFolders | None:
    """The folders of --data or of the four options; None for the option files' own data.

    Raises:
        UserError: the options are incomplete or contradict each other, or a folder is missing.
    """
    given = {name: getattr(args, name) for name in FOLDER_OPTIONS if getattr(args, name)}
    if args.data is not None:
        if given:
            raise UserError("give either --data or the folders one by one, not both")
        given = {name: args.data.joinpath(*name.split("_")) for name in FOLDER_OPTIONS}
    if not given:
        return None
    for name in FOLDER_OPTIONS:
        option = f"--{name.replace('_', '-')}"
        if name not in given:
            raise UserError(f"{option} is missing: give all four folders, or --data")
        if not given[name].is_dir():
            where = "--data" if args.data is not None else option
            raise UserError(f"{where}: the folder {given[name]} does not exist")
    return DataFolders(**given)


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
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        path = folder / f"{run.name}.yml"
        if path.is_file() and read_yaml(path)[0] != run.content:
            raise UserError(
                f"{path} is of an earlier call with another budget, data set or option file; "
                "choose another --output, or move the earlier one away"
            )
    for run in runs:
        text = yaml.safe_dump(dict(run.content), sort_keys=False, allow_unicode=True)
        write_text(
            folder / f"{run.name}.yml",
            f"# Written by `hidiff ablation` for {run.label}.\n{text}",
        )


def train(run: Run, processes: Processes) -> None:
    """Train, from the newest training state if there is one."""
    Trainer(run.options, processes, auto_resume=True).run()


def report(runs: Sequence[Run], command: str) -> None:
    """Write table, JSON and plot of what has been scored so far into the current folder."""
    rows = collect(runs)
    series = sweep(rows)
    if series:
        seeds = len({run.seed for run in runs})
        title = f"PSNR over T (mean and std of {seeds} seeds)" if seeds > 1 else "PSNR over T"
        write_bytes(PLOT, plot(series, title=title))
    text = markdown(rows, command=command, plot=PLOT if series else None)
    write_text("ablation.md", text)
    write_text("ablation.json", json.dumps([row.as_dict() for row in rows], indent=2) + "\n")


@contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """Run the body in a folder; train.py and test.py write where they are called."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_all(runs: Sequence[Run], processes: Processes, command: str) -> bool:
    """Train and score what is left to do, in the current folder; False if an image failed."""
    complete = True
    for number, run in enumerate(runs, start=1):
        if not scored(run):
            if processes.is_main:
                print(f"== {number} of {len(runs)}: {run.name}", flush=True)
            started = time.monotonic()
            if not finished(run):
                train(run, processes)
            start_logging(is_main=processes.is_main)
            complete &= run_test(for_testing(run), processes)
            processes.barrier()
            if processes.is_main:
                print(f"== {run.name} took {time.monotonic() - started:.0f} s", flush=True)
        last_of_seed = number == len(runs) or runs[number].seed != run.seed
        if processes.is_main and last_of_seed:
            report(runs, command)
    return complete


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    command = shlex.join(["hidiff", "ablation", *arguments])
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps {args.steps}: at least one step is needed")
    changes = Changes(args.tiny, args.steps, data_folders(args), args.force_yml)
    runs = plan(args.files, args.seeds, changes)
    output = args.output.absolute()
    with start_processes(runs[0].options, args.launcher) as processes:
        with processes.main_first():
            if processes.is_main:
                write_option_files(runs, output)
        runs = [
            dataclasses.replace(
                run,
                options=dataclasses.replace(run.options, file=output / RUNS / f"{run.name}.yml"),
            )
            for run in runs
        ]
        with working_folder(output):
            complete = run_all(runs, processes, command)
        if processes.is_main:
            print((output / "ablation.md").read_text(encoding="utf-8"))
    # Failed images are named in the table; the exit code tells a script about them.
    return 0 if complete else 1
