"""Restore photographs.

    hidiff restore photo.jpg -o restored
    hidiff restore photo.jpg -o sharp.png
    hidiff restore holidays --recursive -o restored --compare

What stands beside the pixels is kept: orientation (applied), colour profile, EXIF, texts,
resolution, transparency; 16 bits stay 16 bits.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hidiff.cli.arguments import (
    LOCAL_MODES,
    add_device,
    add_model,
    add_output,
    add_overwrite,
    add_precision,
    add_seeds,
    at_least_one,
)
from hidiff.utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOG = logging.getLogger("hidiff")

PAGE = "compare.html"
"""Name of the page in the folder of the results."""


EPILOG = (
    "Exit code: 0 all restored, 1 some failed, 2 a mistake in the call, 130 Ctrl-C: "
    "what is finished stays, and the same call restores the rest."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="PHOTO_OR_FOLDER")
    add_output(parser, "a folder, or of one photograph the file (sharp.png)", required=True)
    add_model(parser, text="a downloaded model, else bundled")
    add("--recursive", action="store_true", help="search sub-folders too")
    add_precision(parser)
    text = "the mean over the image's 8 symmetries: 8 times as long, a little better"
    add("--ensemble", action="store_true", help=text)
    add_seeds(parser, "the mean of K restorations from different noise: K times as long")
    text = (
        "tile: overlapping tiles, each with a prior of its own, blended; tlc: the attention's "
        "statistics of overlapping windows; default: none, the whole image as the paper has it"
    )
    add("--local", choices=LOCAL_MODES, default="none", help=text)
    text = "of a tile or window, a multiple of 8 pixels (default: the training's patch size)"
    add("--size", type=at_least_one, help=text)
    add("--overlap", type=int, help="of them, in pixels; default: 32, or half the size if less")
    add("--suffix", default="", metavar="TEXT", help="added to the results' names")
    formats = ("auto", "png", "jpg", "jpeg", "tif", "tiff", "webp", "bmp")
    add("--format", choices=formats, default="auto", help="auto: that of each photograph")
    add("--compare", action="store_true", help=f"write OUT/{PAGE}, to look at them")
    add("--embed", action="store_true", help="put the pictures into that page; with --compare")
    text = "also write the restorations after each step of the reverse process, and show them"
    add("--trajectory", action="store_true", help=text)
    add_overwrite(parser, "replace results that exist")
    add_device(parser)


def find_device(name: str) -> torch.device:
    """The device of --device.

    Raises:
        UserError: there is no such one.
    """
    import torch

    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.index or 0) >= max(count, 1):
        raise UserError(f"--device: there is no '{name}'; use auto, cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and not count:
        raise UserError("--device: PyTorch finds no GPU here; use auto or cpu")
    return device


def check(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect.

    Raises:
        UserError: there is one.
    """
    if args.embed and not args.compare:
        raise UserError("--embed is of the page that --compare writes; add --compare")
    if args.trajectory and (args.ensemble or args.seeds > 1 or args.local != "none"):
        raise UserError(
            "--trajectory shows one restoration of the whole image; leave out --ensemble, --seeds "
            "and --local"
        )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.engine.logger import start_logging
    from hidiff.restore.image import restore_image, restore_steps
    from hidiff.restore.page import PageEntry, check_replaceable, extend_page
    from hidiff.restore.run import find_jobs, local_options, prepare_folder, restore_photos
    from hidiff.utils.workers import thread_count
    from hidiff.weights.find import default_model, load_model

    check(args)
    start_logging(is_main=True)
    device = find_device(args.device)
    jobs, notices = find_jobs(
        args.inputs,
        args.output,
        recursive=args.recursive,
        suffix=args.suffix,
        ending=None if args.format == "auto" else f".{args.format}",
    )
    folder = args.output
    if any(job.target == args.output for job in jobs):
        folder = args.output.parent
    prepare_folder(folder, jobs)
    page = folder / PAGE
    if args.compare:
        check_replaceable(page)
    if args.model is None:
        args.model, advice = default_model()
        notices.append(advice)
    loaded = load_model(args.model, device=device)
    for line in (loaded.description, *loaded.notices, *notices):
        LOG.info("%s", line)

    local = local_options(
        args.local, size=args.size, overlap=args.overlap, patch_size=loaded.patch_size
    )

    def restore(image: Tensor, name: str, progress: Callable[[float], None]) -> Tensor:
        if args.trajectory:
            return restore_steps(loaded.model, image, name=name, precision=args.precision)
        return restore_image(
            loaded.model,
            image,
            name=name,
            self_ensemble=args.ensemble,
            seeds=args.seeds,
            local=local,
            precision=args.precision,
            progress=progress,
        )

    restore_photos(
        jobs,
        restore,
        overwrite=args.overwrite,
        steps=args.trajectory,
        workers=thread_count("auto", device),
    )
    done = [job for job in jobs if job.state in ("written", "skipped")]
    if args.compare and done:
        entries = [
            PageEntry(str(job.target.relative_to(folder)), job.source, job.target, steps=job.steps)
            for job in done
        ]
        left_out = extend_page(page, entries, title=loaded.description, embed=args.embed)
        for name, reason in left_out.items():
            LOG.info("not on the page: %s: %s", name, reason)
        LOG.info("to look at: %s", page)
    return int(any(job.state == "failed" for job in jobs))
