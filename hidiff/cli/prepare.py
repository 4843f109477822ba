"""Bring data into the layout of datasets/README.md, or make it.

    hidiff prepare gopro    --source DOWNLOADS/GOPRO_Large
    hidiff prepare hide     --source DOWNLOADS/HIDE_dataset
    hidiff prepare realblur --source DOWNLOADS/RealBlur
    hidiff prepare patches
    hidiff prepare video    --input CLIPS/*.mp4 --output datasets/mine --frames 7-13
    hidiff prepare synthetic --input PHOTOGRAPHS --output datasets/synthetic
    hidiff prepare quickstart

gopro, hide and realblur make the layout of links to the download, or of copies. Nothing that exists
is overwritten: a file that differs stops the program before it has changed anything, and a second
run adds what is missing.

Exit code: 0, 1 where pairs could not be cut or made (they are named), 2 for a mistake in the call.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hidiff.cli.arguments import add_jobs, at_least_one
from hidiff.utils.errors import UserError

DOWNLOADS = {
    "gopro": "the folder with train/SEQUENCE/{blur,sharp} and test/…",
    "hide": "the folder with test/{test-close-ups,test-long-shot} and GT",
    "realblur": "the folder with RealBlur_J_train_list.txt and the like",
}
"""What can be downloaded, and what --source then is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, source in DOWNLOADS.items():
        add = commands.add_parser(name, help=f"--source is {source}").add_argument
        add("--source", type=Path, required=True, metavar="DIR", help=source)
        add("--root", type=Path, default=Path("datasets"), help="the layout (default: datasets)")
        text = "copy the download (default: link to it, which must stay then)"
        add("--copy", action="store_true", help=text)
    _add_patches(commands.add_parser("patches", help="cut GoPro for training and validation"))
    text = "pairs from high-rate video: the mean of frames, and the one in their middle"
    _add_video(commands.add_parser("video", help=text))
    add = commands.add_parser("synthetic", help="pairs of sharp photographs").add_argument
    add("--input", type=Path, required=True, metavar="DIR", help="folder of photographs")
    add("--output", type=Path, required=True, metavar="DIR", help="where input/, target/ go")
    add("--count", type=at_least_one, metavar="N", help="pairs (default: one a photograph)")
    text = "an option file whose datasets.train says how to blur (default: as without options)"
    add("--opt", type=Path, metavar="FILE.yml", help=text)
    add = commands.add_parser("quickstart", help="the data of scripts/quickstart.sh").add_argument
    folder = Path("datasets/quickstart")
    add("--output", type=Path, default=folder, metavar="DIR", help="default: %(default)s")


def _add_patches(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--root", type=Path, default=Path("datasets/GoPro"), help="default: %(default)s")
    add("--size", type=at_least_one, default=512, help="of training patches (default: 512 pixels)")
    add("--overlap", type=int, default=256, help="of neighbouring ones (default: 256 pixels)")
    text = "side of the crops for validation (default: 256 pixels)"
    add("--val_size", type=at_least_one, default=256, help=text)
    add_jobs(parser)


def _add_video(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "videos, and folders that hold the frames of one sequence each"
    add("--input", type=Path, nargs="+", required=True, metavar="SEQUENCE", help=text)
    text = "where train/ and test/ go; a sequence is in one of them only"
    add("--output", type=Path, required=True, metavar="DIR", help=text)
    text = "frames that make a blurry image: an odd number, or a range of them such as 7-13"
    add("--frames", required=True, metavar="N", help=text)
    text = "frames from the beginning of a pair to that of the next (default: its own frames)"
    add("--stride", type=at_least_one, metavar="S", help=text)
    text = "the camera's, undone before averaging (default: gamma2.2; none: as GoPro's folder blur)"
    add("--response", choices=("gamma2.2", "srgb", "none"), default="gamma2.2", help=text)
    parts = parser.add_mutually_exclusive_group()
    text = "of the sequences, by name, for training; the others are for testing (default: 0.8)"
    parts.add_argument("--split", type=float, default=0.8, metavar="SHARE", help=text)
    text = "the sequences for testing"
    parts.add_argument("--test", nargs="+", default=[], metavar="NAME", help=text)
    add_jobs(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.prepare.patches import cut_gopro
    from hidiff.prepare.quickstart import make_quickstart
    from hidiff.prepare.synthetic import synthetic_dataset, write_pairs
    from hidiff.prepare.video import frame_counts, prepare_video, video_tasks
    from hidiff.utils.workers import available_cores

    if args.what == "patches":
        if not 0 <= args.overlap < args.size:
            raise UserError(f"--overlap {args.overlap} must be 0 to {args.size - 1}, below --size")
        sizes = {key: getattr(args, key) for key in ("size", "overlap", "val_size")}
        return 0 if cut_gopro(args.root, **sizes, jobs=args.jobs or available_cores()) else 1
    if args.what == "video":
        if not 0 <= args.split <= 1:
            raise UserError(f"--split {args.split:g} must be 0 to 1")
        tasks = video_tasks(
            args.input,
            args.output,
            counts=frame_counts(args.frames, args.stride),
            stride=args.stride,
            response=args.response,
            split=args.split,
            test=args.test,
        )
        return 0 if prepare_video(tasks, args.jobs or available_cores()) else 1
    if args.what == "synthetic":
        dataset = synthetic_dataset(args.input, args.opt)
        for notice in dataset.notices:
            print(notice)
        print(f"{args.output}: {write_pairs(dataset, args.output, args.count)} pairs written")
    elif args.what == "quickstart":
        print(f"{args.output}: {make_quickstart(args.output)} pairs written")
    else:
        _place(args)
    return 0


def _place(args: argparse.Namespace) -> None:
    from hidiff.prepare.distributions import placements_of
    from hidiff.prepare.layout import place_all, summary

    placements = placements_of(args.what, args.source, args.root)
    placed = place_all(placements, args.root, copy=args.copy)
    print(f"{placed} files placed, {len(placements) - placed} there already")
    for line in summary(args.root, placements):
        print(line)
    if args.what == "gopro":
        print("Next: hidiff prepare patches")
