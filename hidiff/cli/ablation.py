"""Train and score a list of option files over several seeds, and compare them in a table.

    # Table 1 and the T sweep of Fig. 3 as published: GoPro, full width
    torchrun --nproc_per_node=4 -m hidiff ablation --output results/ablation --launcher pytorch

    # the same with tiny networks on a CPU: about half an hour a seed on two cores
    hidiff ablation --tiny --data datasets/mine --seeds 0 1 2 --output results/tiny

    # any other files, each with its own training data, test sets and budget
    hidiff ablation my/*.yml --seeds 0 1 2 --output results/mine

Stage 1 is trained before the stage 2 that starts from it; the list must hold both. Each test set
has its columns in the table; a stage 1 without test sets is only trained. Everything is written to
DIR: ablation.md, ablation.json, psnr_over_T.png where files differ in T alone, the option file of
every run in runs/, and the folders of train.py and test.py. Called again it goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from pathlib import Path

from hidiff.cli.arguments import add_launcher
from hidiff.utils.errors import UserError, require_positive

TABLE_1 = ("Baseline", "Single_Guide_S1", "Single_Guide_S2", "HI_Diff_S1", "Split_Training_S2")
SWEEP = ("T_1", "T_2", "T_4", "HI_Diff_S2", "T_16", "T_32")  # of HI_Diff_S2, whose T is 8
FOLDERS = ("train_input", "train_target", "test_input", "test_target")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
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
        "--data",
        type=Path,
        metavar="ROOT",
        help="folder with {train,test}/{input,target}, in place of the data in the files",
    )
    for name in FOLDERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR")
    parser.add_argument(
        "--force_yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION:OPTION=VALUE",
        help="set options of all files; networks that a file has not are left out",
    )
    add_launcher(parser)


def data_folders(args: argparse.Namespace) -> dict[str, Path] | None:
    """The folders of --data or of the four options; None for the option files' own data.

    Raises:
        UserError: the options are incomplete or contradict each other, or a folder is missing.
    """
    given = {name: getattr(args, name) for name in FOLDERS if getattr(args, name)}
    if args.data is not None:
        if given:
            raise UserError("--data: give either this or the folders one by one, not both")
        given = {name: args.data.joinpath(*name.split("_")) for name in FOLDERS}
    if not given:
        return None
    for name in FOLDERS:
        option = f"--{name.replace('_', '-')}"
        if name not in given:
            raise UserError(f"{option} is missing: give all four folders, or --data")
        if not given[name].is_dir():
            where = "--data" if args.data is not None else option
            raise UserError(f"{where}: the folder {given[name]} does not exist")
    return given


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: a mistake in the call, the option files, the data or the folder to write to.
        Interrupted: a training was stopped and can go on.
    """
    from hidiff.options import shipped_options
    from hidiff.report.ablation import plan, run_all, write_option_files
    from hidiff.report.ablation_changes import Changes
    from hidiff.report.ablation_table import write_report
    from hidiff.utils.distributed import start_processes

    folder = shipped_options() / "ablation"
    files = args.files or [folder / f"{stem}.yml" for stem in (*TABLE_1, *SWEEP)]
    if args.steps is not None:
        require_positive(**{"--steps": args.steps})
    changes = Changes(args.tiny, args.steps, data_folders(args), args.force_yml)
    runs = plan(files, args.seeds, changes)
    complete = True
    with start_processes(args.launcher, **runs[0].options.launch_arguments) as processes:
        with processes.main_first():
            if processes.is_main:
                write_option_files(runs, args.output)
        # train.py and test.py write where they are called.
        with contextlib.chdir(args.output):
            for _, of_seed in itertools.groupby(runs, key=lambda run: run.seed):
                complete &= run_all(list(of_seed), processes)
                if processes.is_main:
                    write_report(runs, args.call)
            if processes.is_main:
                print(Path("ablation.md").read_text(encoding="utf-8"))
    # Failed images are named in the table; the exit code tells a script about them.
    return 0 if complete else 1
