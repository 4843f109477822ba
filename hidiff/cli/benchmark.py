"""Measure how fast restoring, training, test runs and loading are, against the plain formulas.

    hidiff benchmark restore    -opt options/test/GoPro.yml --size 720 1280 --device cuda
    hidiff benchmark train-step -opt options/train/GoPro_S2.yml --device cuda
    hidiff benchmark evaluate   -opt options/test/GoPro.yml --device cuda
    hidiff benchmark data       -opt options/train/GoPro_S1.yml --cache datasets/cache

restore, train-step and evaluate compare variants with the papers' formulas computed step by step
(hidiff/archs/reference.py) in eager float32. data compares reading just a phase's batch with the
release's way: reading `batch_size_per_gpu` crops of `gt_size` and keeping the phase's. All variants
run in turn in one process on the same input; their medians and the ratio count.

A variant is a precision (fp32, tf32, bf16) with what is switched on beside it: +compile, +strips
(restoring in strips, as val.strip_rows: auto does on CPUs; without it the whole image at once),
+checkpoint1 (activation checkpointing of level 1; +checkpoint1234 of all). 'plain+' before it
computes as the papers write it. +eager or +triton fixes the kernels, as the option does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hidiff.cli.arguments import add_option_file
from hidiff.utils.errors import UserError

DEFAULT_SIZE = (256, 256)
DEFAULT_VARIANTS = {
    "cpu": ("fp32", "fp32+strips"),
    "cuda": ("plain+tf32", "tf32", "bf16", "bf16+compile"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("case", choices=("restore", "train-step", "evaluate", "data"))
    add_option_file(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1, for example")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="compared with plain+fp32")
    parser.add_argument(
        "--alone", action="store_true", help="without plain+fp32, compared with the first variant"
    )
    parser.add_argument("--size", type=int, nargs=2, default=DEFAULT_SIZE, metavar=("H", "W"))
    parser.add_argument(
        "--phase", type=int, nargs="+", metavar="N", help="of progressive training; default: all"
    )
    parser.add_argument("--batch", type=int, help="batch size in place of the phase's")
    parser.add_argument("--patch", type=int, help="patch size in place of the phase's")
    parser.add_argument("--images", type=int, default=20, help="of the test set, for evaluate")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="of decoded frames, for data")
    parser.add_argument("--repeats", type=int, default=5, help="measured calls of each variant")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured; the device becomes torch's."""
    import torch

    from hidiff.models.base import SIDE_MULTIPLE

    try:
        args.device = torch.device(args.device)
    except RuntimeError:
        raise UserError(f"--device {args.device}: use cpu, cuda or cuda:N") from None
    gpus = torch.cuda.device_count()
    if args.device.type == "cuda" and (args.device.index or 0) >= gpus:
        found = f"{gpus} GPUs" if gpus else "no GPU"
        raise UserError(f"--device {args.device}: PyTorch sees {found} here")
    for name in ("batch", "patch", "repeats", "images"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if min(args.size) < 1:
        raise UserError("--size: give height and width in pixels, for example 720 1280")
    if args.patch and args.patch % SIDE_MULTIPLE:
        raise UserError(f"--patch {args.patch}: must be a multiple of {SIDE_MULTIPLE}")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    import torch

    from hidiff.benchmark.cases import BASELINE, CASES
    from hidiff.benchmark.table import table, write_table
    from hidiff.benchmark.timing import machine_name
    from hidiff.benchmark.variants import Machine, Variant
    from hidiff.evaluation.record import library_versions
    from hidiff.options import load_options

    _check(args)
    torch.backends.cudnn.benchmark = True
    names = args.variants or DEFAULT_VARIANTS.get(args.device.type, ("fp32",))
    if args.case == "train-step":
        if any("+strips" in name for name in args.variants or ()):
            raise UserError("--variants: training is never in strips; leave +strips out")
        names = [name for name in names if "+strips" not in name]
    names = dict.fromkeys(names if args.alone else (BASELINE, *names))
    args.variants = [Variant.parse(name) for name in names]
    machine = Machine(args.device)
    cases = CASES[args.case](load_options(args.opt, args.force_yml), args, machine)
    report = {
        "command": args.call.replace(f" --write {args.write}", ""),
        "machine": machine_name(args.device),
        "repeats": args.repeats,
        "rates": machine.rates(),
        "cases": cases,
        "versions": library_versions(),
    }
    if args.write:
        of = f", patch {args.patch}" if args.patch else ""
        if tuple(args.size) != DEFAULT_SIZE:
            of = f" {args.size[0]}×{args.size[1]}"
        name = f"{args.case}{of} on {args.device.type}"
        write_table(args.write, name, table(report))
    print(json.dumps(report, indent=2) if args.json else table(report))
    return 0
