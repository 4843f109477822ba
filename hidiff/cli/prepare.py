"""Bring data into the layout of datasets/README.md, or make it.

    hidiff prepare gopro    --source DOWNLOADS/GOPRO_Large
    hidiff prepare hide     --source DOWNLOADS/HIDE_dataset
    hidiff prepare realblur --source DOWNLOADS/RealBlur
    hidiff prepare patches
    hidiff prepare video    --input CLIPS/*.mp4 --output datasets/mine --frames 7-13
    hidiff prepare synthetic --input PHOTOGRAPHS --output datasets/synthetic
    hidiff prepare quickstart

gopro, hide and realblur make the layout of links to the download (or copies, with --copy). Nothing
that exists is overwritten: a file that differs stops the program before it has changed anything. A
second run adds what is missing. patches cuts GoPro: 512×512 patches of the training frames (8 of a
1280×720 frame, 16824 in all) and a centre crop of each test frame; existing ones are kept, so an
interrupted run goes on. video makes pairs of high-rate
video: the mean of consecutive frames is the blurry image, the frame in their middle the sharp one;
a sequence is in one part only, train/ or test/. synthetic blurs sharp photographs as
SyntheticBlurDataset does in training. quickstart makes a small data set of photographs that come
with scikit-image.

Exit code: 0, 1 where pairs could not be cut or made (they are named), 2 for a mistake in the call.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hidiff.cli.arguments import at_least_one
from hidiff.utils.errors import UserError, require_positive

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
        command = commands.add_parser(name, help=f"--source is {source}")
        command.add_argument("--source", type=Path, required=True, metavar="DIR", help=source)
        command.add_argument(
            "--root", type=Path, default=Path("datasets"), help="the layout (default: datasets)"
        )
        command.add_argument(
            "--copy",
            action="store_true",
            help="copy; a picture's second place, under test/, is a link to the copy (default: "
            "link to the download, which must stay)",
        )
    command = commands.add_parser(
        "patches",
        help="cut GoPro for training and validation",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--root", type=Path, default=Path("datasets/GoPro"), help="GoPro's folder")
    command.add_argument("--size", type=int, default=512, help="side of a training patch, pixels")
    command.add_argument("--overlap", type=int, default=256, help="of neighbouring patches, pixels")
    command.add_argument("--val_size", type=int, default=256, help="side of a validation crop")
    command.add_argument("--jobs", type=int, help="worker processes (default: one a core)")
    command = commands.add_parser("video", help="pairs from high-rate video or folders of frames")
    command.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="SEQUENCE",
        help="videos, and folders that hold the frames of one sequence each",
    )
    command.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="where train/ and test/ go"
    )
    command.add_argument(
        "--frames",
        required=True,
        metavar="N",
        help="frames that make a blurry image: an odd number, or a range such as 7-13, whose odd "
        "numbers the pairs take in turn",
    )
    command.add_argument(
        "--stride",
        type=int,
        metavar="S",
        help="frames from the beginning of a pair to that of the next (default: its own frames, so "
        "that none is in two pairs)",
    )
    command.add_argument(
        "--response",
        choices=("gamma2.2", "srgb", "none"),
        default="gamma2.2",
        help="the camera's, undone before averaging and applied after it; none averages stored "
        "values, as in GoPro's folder blur (default: gamma2.2)",
    )
    parts = command.add_mutually_exclusive_group()
    parts.add_argument(
        "--split",
        type=float,
        default=0.8,
        metavar="SHARE",
        help="of the sequences, in the order of their names, for training; the last ones are for "
        "testing (default: 0.8)",
    )
    parts.add_argument(
        "--test", nargs="+", default=[], metavar="NAME", help="the sequences for testing, by name"
    )
    command.add_argument("--jobs", type=int, help="worker processes (default: one a core)")
    command = commands.add_parser("synthetic", help="pairs of sharp photographs")
    command.add_argument(
        "--input", type=Path, required=True, metavar="DIR", help="folder of photographs"
    )
    command.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for input/ (blurry) and target/ (sharp); pairs that are there are kept",
    )
    command.add_argument(
        "--count",
        type=at_least_one,
        metavar="N",
        help="pairs to make (default: one of each photograph)",
    )
    command.add_argument(
        "--opt",
        type=Path,
        metavar="FILE.yml",
        help="an option file whose datasets.train says how to blur (default: as without options)",
    )
    command = commands.add_parser("quickstart", help="the data of scripts/quickstart.sh")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("datasets/quickstart"),
        metavar="DIR",
        help="folder to make (default: datasets/quickstart)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that cannot be.

    Raises:
        UserError: there is one.
    """
    from hidiff.utils.workers import available_cores

    if getattr(args, "jobs", 1) is None:
        args.jobs = available_cores()
    if args.what == "patches":
        require_positive(**{f"--{key}": getattr(args, key) for key in ("size", "val_size", "jobs")})
        if not 0 <= args.overlap < args.size:
            raise UserError(f"--overlap {args.overlap} must be 0 to {args.size - 1}, below --size")
    if args.what == "video":
        require_positive(**{"--jobs": args.jobs})
        if args.stride is not None:
            require_positive(**{"--stride": args.stride})
        if not 0 <= args.split <= 1:
            raise UserError(f"--split {args.split:g} must be 0 to 1")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.prepare.patches import cut_gopro
    from hidiff.prepare.quickstart import make_quickstart
    from hidiff.prepare.synthetic import synthetic_dataset, write_pairs
    from hidiff.prepare.video import frame_counts, prepare_video, video_tasks

    check_arguments(args)
    if args.what == "patches":
        sizes = {key: getattr(args, key) for key in ("size", "overlap", "val_size")}
        return 0 if cut_gopro(args.root, **sizes, jobs=args.jobs) else 1
    if args.what == "video":
        tasks = video_tasks(
            args.input,
            args.output,
            counts=frame_counts(args.frames, args.stride),
            stride=args.stride,
            response=args.response,
            split=args.split,
            test=args.test,
        )
        return 0 if prepare_video(tasks, args.jobs) else 1
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
    from hidiff.prepare.layout import place_all, placements_of, summary

    placements = placements_of(args.what, args.source, args.root)
    placed = place_all(placements, args.root, copy=args.copy)
    print(f"{placed} files placed, {len(placements) - placed} there already")
    for line in summary(args.root, placements):
        print(line)
    if args.what == "gopro":
        print("Next: hidiff prepare patches")
