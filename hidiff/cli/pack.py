"""Put all that restoring needs into one file: hidiff pack EXPERIMENT -o NAME.safetensors."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from hidiff.cli.arguments import add_overwrite

EPILOG = (
    "The file holds the networks and, as texts, their options, the diffusion schedule, "
    "data, scores, versions and check sums. Scores are those of the experiment's validation "
    "and of folders in results/ that test.py has written with these very weights."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    text = (
        "an experiment's name or folder (NAME@best, NAME@STEP), or a folder with net_g.pth and its "
        "like; where the training keeps an average of the weights, that is packed"
    )
    add("model", metavar="EXPERIMENT", help=text)
    add("-o", "--output", type=Path, required=True, metavar="NAME.safetensors", help="the new file")
    text = "store the weights in 16 bits (default: float16); they are read back as float32"
    add("--half", nargs="?", const="float16", choices=("float16", "bfloat16"), help=text)
    text = "keep the encoder of stage 1 too, which training on from the file needs"
    add("--for-training", action="store_true", help=text)
    add("--licence", metavar="TEXT", help="of the weights, such as CC-BY-4.0")
    add("--data", metavar="TEXT", help="what it was trained on, in words")
    text = "folders of test.py whose scores to note, in place of those that it finds"
    add("--scores", nargs="+", type=Path, metavar="DIR", help=text)
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.cli.info import lines_about
    from hidiff.evaluation.record import read_scores
    from hidiff.evaluation.results import with_scores
    from hidiff.weights.export import pack
    from hidiff.weights.find import find_model

    model = find_model(args.model, training=args.for_training)
    if args.scores:
        scores = [data.row() for folder in args.scores for data in read_scores(folder)]
        model = dataclasses.replace(model, scores=scores)
    model = with_scores(model)
    if args.licence:
        model = dataclasses.replace(model, licence=args.licence)
    if args.data:
        model = dataclasses.replace(model, data={**(model.data or {}), "description": args.data})
    how = {"for_training": args.for_training, "overwrite": args.overwrite}
    pack(model, args.output, half=args.half, **how)
    print("\n".join(lines_about(find_model(args.output))))
    print(f"written to {args.output}, {args.output.stat().st_size / 2**20:.1f} MiB")
    return 0
