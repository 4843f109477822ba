"""Cut GoPro into training patches and validation crops.

    python generate_patches_gopro.py

reads datasets/GoPro/train/{input,target} and writes 512×512 patches that overlap by 256 into
datasets/GoPro/crop/train/{input_crops,target_crops} (8 of a 1280×720 frame, 16824 in all), and
reads datasets/GoPro/test/{input,target} and writes 256×256 centre crops into
datasets/GoPro/crop/val/{input_crops,target_crops}. What is there already is kept, so an
interrupted run goes on where it stopped.

Exit code: 0 all cut, 1 some pairs could not be cut (they are named at the end), 2 nothing was
done because of a mistake in the call or the folders.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
from tqdm import tqdm

from hidiff.data.image import list_images, listing
from hidiff.data.pairs import match_names
from hidiff.errors import UserError, friendly_errors
from hidiff.prepare.patches import CropResult, CropTask, check_existing, cut_pair


def crop_tasks(source: Path, target: Path, size: int, overlap: int | None) -> list[CropTask]:
    """The pairs of source/{input,target}, to be cut into target/{input_crops,target_crops}.

    Raises:
        UserError: a folder is missing or empty, or an image has no counterpart.
    """
    lq = list_images(source / "input", "blurry images")
    gt = list_images(source / "target", "sharp images")
    return [
        CropTask(
            name=name,
            lq=lq[name],
            gt=gt[name],
            lq_folder=target / "input_crops",
            gt_folder=target / "target_crops",
            size=size,
            overlap=overlap,
        )
        for name, _ in match_names(lq, gt, "{}", str(source))
    ]


def process_context() -> multiprocessing.context.BaseContext:
    """How worker processes start: never by forking this one."""
    # After this process has decoded images, setNumThreads in a fork of it can wait forever for
    # OpenCV's threads, which a fork does not have. A fork server has decoded nothing; unlike
    # spawned processes, its forks share the imports.
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def _start_worker() -> None:
    # One process per core already; Ctrl-C is for the parent, which stops the workers.
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def cut_all(tasks: list[CropTask], jobs: int, label: str) -> list[CropResult]:
    """Cut every pair, in `jobs` processes, behind a progress bar.

    Raises:
        UserError: a piece cannot be written, or a worker process died.
    """
    if jobs == 1:
        return list(_progress(map(cut_pair, tasks), len(tasks), label))
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=process_context(), initializer=_start_worker
    )
    try:
        return list(_progress(pool.map(cut_pair, tasks), len(tasks), label))
    except BrokenProcessPool:
        raise UserError(
            f"{label}: a worker process ended unexpectedly, perhaps for want of memory; what it "
            f"wrote is complete: run again with fewer --jobs than {jobs}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _progress(results: Iterator[CropResult], total: int, label: str) -> Iterator[CropResult]:
    return tqdm(results, total=total, desc=label, unit="pair", disable=None)


def report(label: str, tasks: list[CropTask], results: list[CropResult]) -> None:
    """Print the counts of one part, and what else lies in its folders."""
    names = {name for result in results for name in result.names}
    written = sum(result.written for result in results)
    failed = sum(result.problem is not None for result in results)
    print(
        f"{label}: {len(tasks)} pairs of frames, {len(names)} pairs of crops "
        f"({written} written, {len(names) - written} there already) "
        f"in {tasks[0].lq_folder.parent}"
    )
    if failed:
        return
    for folder in (tasks[0].lq_folder, tasks[0].gt_folder):
        others = {path.name for path in list_images(folder, label).values()} - names
        if others:
            print(
                f"note: {folder} holds {len(others)} images that come from none of these frames "
                f"and would be used with them: {listing(others)}"
            )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Cut GoPro into training patches and validation crops.",
        epilog="Existing crops are kept: an interrupted run goes on where it stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--root", type=Path, default=Path("datasets/GoPro"), help="GoPro's folder")
    parser.add_argument("--size", type=int, default=512, help="side of a training patch, pixels")
    parser.add_argument("--overlap", type=int, default=256, help="of neighbouring patches, pixels")
    parser.add_argument("--val_size", type=int, default=256, help="side of a validation crop")
    parser.add_argument("--jobs", type=int, default=cores, metavar="N", help="worker processes")
    options = parser.parse_args(arguments)
    for name, least in (("size", 1), ("overlap", 0), ("val_size", 1), ("jobs", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name}: must be at least {least}, not {getattr(options, name)}")
    if options.overlap >= options.size:
        raise UserError(f"--overlap: must be below --size ({options.size}), not {options.overlap}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit code.

    Raises:
        UserError: a mistake in the call or the folders, or the crops cannot be written.
    """
    options = parse_arguments(arguments)
    root = options.root
    parts = {}
    for part, crop, size, overlap in (
        ("train", "train", options.size, options.overlap),
        ("test", "val", options.val_size, None),
    ):
        if (root / part).is_dir():
            parts[part] = crop_tasks(root / part, root / "crop" / crop, size, overlap)
    if not parts:
        raise UserError(
            f"--root: {root.absolute()} holds neither train/ nor test/ with input/ and target/ in "
            "them; python scripts/prepare_data.py gopro --source DOWNLOAD makes them"
        )
    for tasks in parts.values():
        check_existing(tasks)

    results = {part: cut_all(tasks, options.jobs, part) for part, tasks in parts.items()}
    for part in ("train", "test"):
        if part in parts:
            report(part, parts[part], results[part])
        else:
            print(f"{part}: not cut, {root / part} does not exist")
    problems = [
        f"{part}/{result.name}: {result.problem}"
        for part in results
        for result in results[part]
        if result.problem is not None
    ]
    if problems:
        print(f"error: {len(problems)} pairs could not be cut:", file=sys.stderr)
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        print("Replace or remove these images, then run again.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with friendly_errors():
        sys.exit(main())
