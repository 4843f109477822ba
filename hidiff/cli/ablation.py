"""Train and test option files over several seeds, and put their scores into one table.

    # Table 1 and the T sweep of Fig. 3 as published: GoPro, full width
    torchrun --nproc_per_node=4 -m hidiff ablation --launcher pytorch

    # nine small networks of one budget, on a CPU
    hidiff ablation options/baselines/small/*.yml --seeds 0 1 2 -o results/small.md

Stage 1 is trained before the stage 2 that starts from it; the list must hold both. Trainings are in
experiments/NAME_seedS and scores in results/NAME_seedS, as those of `hidiff train` and `hidiff
test`; called again it goes on where it stopped. The table is that of `hidiff report`. Other budgets
and data: --force_yml, or option files with `base:`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hidiff.cli.arguments import add_launcher, add_output, add_overrides

EPILOG = "Exit code: 0 all done, 1 images failed, 2 a mistake, 75 stopped: the same call goes on."

TABLE_1 = ("Baseline", "Single_Guide_S1", "Single_Guide_S2", "HI_Diff_S1", "Split_Training_S2")
SWEEP = ("T_1", "T_2", "T_4", "HI_Diff_S2", "T_16", "T_32")  # of HI_Diff_S2, whose T is 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    text = "option files (default: those of options/ablation, the paper's Table 1 and Fig. 3)"
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help=text)
    text = "manual_seed of the runs (default: 0)"
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help=text)
    add_output(parser, "the table, a Markdown file (default: results/ablation.md)")
    add_overrides(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.options import shipped_options
    from hidiff.report.ablation import plan, train_and_test
    from hidiff.report.rows import read_rows
    from hidiff.report.table import make_tables
    from hidiff.utils.distributed import start_processes
    from hidiff.utils.files import write_text

    folder = shipped_options() / "ablation"
    files = args.files or [folder / f"{stem}.yml" for stem in (*TABLE_1, *SWEEP)]
    output = args.output or Path("results/ablation.md")
    runs = plan(files, args.seeds, args.force_yml)
    complete = True
    with start_processes(args.launcher, **runs[0].options.launch_arguments) as processes:
        for each in runs:
            complete &= train_and_test(each, processes)
            processes.barrier()
        if processes.is_main:
            rows = read_rows([each.results for each in runs if each.results is not None])
            tables = make_tables(rows, paper=[] if args.files else [1])
            lines = [f"    {args.call}", ""]
            lines += [line for table in tables for line in table.markdown()]
            write_text(output, "\n".join(lines).rstrip() + "\n")
            print("\n".join(lines))
    # Failed images are named below the table; the exit code tells a script about them.
    return 0 if complete else 1
