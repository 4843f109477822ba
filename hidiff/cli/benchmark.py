"""Measure time and memory of restoring an image or of training steps.

    hidiff benchmark restore -opt options/test/GoPro.yml --size 720 1280 --reference \\
        --set val.strip_rows=whole --set val.strip_rows=auto
    hidiff benchmark train-step -opt options/train/GoPro_S2.yml --device cuda \\
        --set train.precision=tf32 --set train.precision=bf16,train.compile=true

Each --set is a variant: the option file with these options. All of them do the same work in turn
in one process; the medians and their ratio to the first variant count. --reference adds the papers'
formulas, computed step by step (hidiff/archs/reference.py), as the first one.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING

from hidiff.cli.arguments import add_device, add_json, add_option_file, add_size, at_least_one

if TYPE_CHECKING:
    from hidiff.benchmark.cases import Cases, Variant

ALONE = "as in the file"
"""Name of the variant without --set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("case", choices=("restore", "train-step"))
    add_option_file(parser)
    add_device(parser)
    text = "a variant: options of the file that it changes; may be given several times"
    add("--set", action="append", default=[], metavar="OPTION=VALUE,…", help=text)
    text = "compare with the papers' formulas, float32"
    add("--reference", action="store_true", help=text)
    add_size(parser)
    text = "of progressive training (default: all)"
    add("--phase", type=at_least_one, nargs="+", metavar="N", help=text)
    add("--batch", type=at_least_one, help="batch size in place of the phase's")
    add("--patch", type=at_least_one, help="patch size in place of the phase's")
    text = "measured calls of each variant (default: %(default)s)"
    add("--repeats", type=at_least_one, default=5, help=text)
    add_json(parser)


def _variants(args: argparse.Namespace) -> list[Variant]:
    """What is compared."""
    from hidiff.benchmark.cases import Variant
    from hidiff.options import load_options

    found = []
    if args.reference:
        section = "val" if args.case == "restore" else "train"
        options = load_options(args.opt, [*args.force_yml, f"{section}.precision=fp32"])
        found.append(Variant("reference", options, reference=True))
    for text in dict.fromkeys(args.set or [ALONE]):
        # A comma within brackets is part of a list.
        parts = [] if text == ALONE else re.split(r",(?![^\[]*\])", text)
        found.append(Variant(text, load_options(args.opt, [*args.force_yml, *parts])))
    return found


def _rows(cases: Cases) -> list[list[str]]:
    """A row a case and variant."""
    rows = []
    for case, variants in cases.items():
        first = next(iter(variants.values())).timing.median
        for name, measured in variants.items():
            timing, least = measured.timing, measured.roofline
            range_ = f"{_seconds(timing.smallest)} to {_seconds(timing.largest)}"
            time, speedup = f"{_seconds(timing.median)} ({range_})", f"{first / timing.median:.2f}"
            share = f"{timing.median / least:.1f}" if least else ""
            memory = [_megabytes(timing.peak_bytes), _megabytes(measured.kept_bytes)]
            rows.append([case, name, time, speedup, share, *memory])
    return rows


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f}"


HEADER = ("case", "variant", "time", "speedup", "time / roofline", "memory (MB)", "kept (MB)")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    import dataclasses

    import torch

    from hidiff.benchmark.cases import measure_restoring, measure_training
    from hidiff.benchmark.roofline import Machine
    from hidiff.benchmark.timing import machine_name
    from hidiff.cli.restore import find_device
    from hidiff.utils.tables import markdown_table

    variants = _variants(args)
    device = find_device(args.device)
    torch.backends.cudnn.benchmark = True
    common = {"device": device, "machine": Machine(device), "repeats": args.repeats}
    if args.case == "restore":
        cases = measure_restoring(variants, size=tuple(args.size), **common)
    else:
        cases = measure_training(
            variants, phases=args.phase, batch=args.batch, patch=args.patch, **common
        )
    if args.json:
        plain = {
            case: {name: dataclasses.asdict(measured) for name, measured in of_case.items()}
            for case, of_case in cases.items()
        }
        print(json.dumps({"machine": machine_name(device), "cases": plain}, indent=2))
        return 0
    print(f"{machine_name(device)}, PyTorch {torch.__version__}")
    print(f"time: median of {args.repeats} alternating runs (smallest to largest)\n")
    print("\n".join(markdown_table(HEADER, _rows(cases), numbers=range(2, len(HEADER)))))
    return 0
