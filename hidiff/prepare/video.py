"""Blurry and sharp pairs made of high-rate video, as GoPro and REDS were.

A long exposure is the mean of the short ones that it consists of. So the mean of N consecutive
frames is the blurry image, and the frame in their middle is its sharp target. Light adds up, stored
values do not: frames pass the inverse of the camera's response before and the response after it.
Frames are averaged as they are; none are made up between them, so motion must be small from one to
the next, or the blur shows them as copies.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from hidiff.data.decode import check_size
from hidiff.data.image import listing, read_image, to_uint8, write_image
from hidiff.data.store import list_images
from hidiff.synthesis.tone import linear_to_srgb, srgb_to_linear
from hidiff.utils.errors import UserError, missing, print_problems, suggestion
from hidiff.utils.workers import ordered_pipeline

Curve = Callable[[np.ndarray], np.ndarray]

RESPONSES: dict[str, tuple[Curve, Curve]] = {
    "gamma2.2": (lambda stored: stored**2.2, lambda light: light ** (1 / 2.2)),
    "srgb": (srgb_to_linear, linear_to_srgb),
    "none": (lambda stored: stored, lambda light: light),
}
"""From stored values to light, and back; both in [0, 1]."""

PARTS = ("train", "test")


@dataclass(frozen=True)
class VideoTask:
    """One sequence, and the pairs to be made of it.

    Args:
        name: of the sequence; its pairs are called `{name}-{number of the centre frame}.png`.
        source: a video, or a folder of frames.
        folder: whose `input` and `target` the pairs go to.
        counts: frames of a pair, odd; the pairs take these numbers in turn.
        stride: frames from the beginning of a pair to that of the next; None for its own frames,
            so that no frame is in two pairs.
        response: one of `RESPONSES`.
    """

    name: str
    source: Path
    folder: Path
    counts: tuple[int, ...]
    stride: int | None
    response: str

    def exposures(self) -> Iterator[range]:
        """The frames of each pair, without end."""
        start = 0
        for count in itertools.cycle(self.counts):
            yield range(start, start + count)
            start += self.stride or count

    def files(self, exposure: range) -> tuple[Path, Path]:
        """Blurry and sharp image of a pair."""
        name = f"{self.name}-{_centre(exposure):06d}.png"
        return self.folder / "input" / name, self.folder / "target" / name


@dataclass
class VideoResult:
    """What became of a `VideoTask`: its pairs, how many were written now, and what went wrong."""

    task: VideoTask
    pairs: int = 0
    written: int = 0
    problem: str | None = None


@dataclass
class _Exposure:
    """A pair in the making: the sum of the light so far, and the frame in the middle."""

    frames: range
    light: np.ndarray | float = 0.0
    sharp: np.ndarray | None = None


def _centre(exposure: range) -> int:
    return exposure[len(exposure) // 2]


def _in_order(name: str) -> list[str | int]:
    """Sorts frame2 before frame10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def read_frames(source: Path) -> Iterator[np.ndarray]:
    """The frames of a video or a folder, (H, W, 3) RGB, uint8 or uint16.

    Images of a folder follow one another as numbers do: frame2 before frame10.

    Raises:
        UserError: it cannot be read, or has no frames, or they differ in size.
    """
    first = None
    for place, frame in _folder_frames(source) if source.is_dir() else _video_frames(source):
        kind = f"{frame.shape[1]}×{frame.shape[0]} pixels of {frame.dtype}"
        first = first or kind
        if kind != first:
            raise UserError(
                f"{place}: {kind} (width×height), and the frames before it {first}; the frames of "
                "a sequence have one size and bit depth"
            )
        yield frame
    if first is None:
        raise UserError(f"{source}: no frame can be read; name a video, or a folder of images")


def _folder_frames(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    images = list_images(folder, "--input")
    for name in sorted(images, key=_in_order):
        yield str(images[name]), read_image(images[name])


def _video_frames(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    video = cv2.VideoCapture(str(file))
    try:
        width, height = (
            int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        check_size(width, height, str(file))
        number, announced = 0, video.get(cv2.CAP_PROP_FRAME_COUNT)
        while (found := video.read())[0]:
            yield f"{file}, frame {number}", cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB)
            number += 1
        # The header's number is an estimate for some kinds of files.
        if 0 < number < 0.9 * announced:
            raise UserError(
                f"{file} ends after {number} frames of {announced:.0f}; copy or download it again"
            )
    finally:
        video.release()


def make_pairs(task: VideoTask) -> VideoResult:
    """Write the pairs of one sequence that are not there yet.

    Images are written atomically, so one that is there is complete. The first pair that is there is
    made again and compared, which notices other frames and another response. In memory are the sums
    of the pairs in the making (one unless the stride lets them overlap), not their frames.

    A sequence that cannot be read, or not to its end, that is too short, or of which another image
    is there already, comes back with a `problem`.
    """
    result = VideoResult(task)
    try:
        for written in _pairs(task):
            result.pairs += 1
            result.written += written
    except UserError as error:
        result.problem = str(error)
    return result


def _pairs(task: VideoTask) -> Iterator[bool]:
    """Make the pairs of a sequence one after the other; whether each was written."""
    to_light, to_stored = RESPONSES[task.response]
    exposures = task.exposures()
    following, compared = next(exposures), False
    making: list[_Exposure] = []
    table, number = None, 0
    for number, frame in enumerate(read_frames(task.source), 1):
        if table is None:
            limit = np.iinfo(frame.dtype).max
            table = to_light(np.arange(limit + 1) / limit).astype(np.float32)
        if number - 1 == following.start:
            there = all(path.exists() for path in task.files(following))
            if there and compared:
                yield False
            else:
                making.append(_Exposure(following))
            compared = compared or there
            following = next(exposures)
        light = table[frame] if making else 0.0
        for exposure in list(making):
            exposure.light += light
            if number - 1 == _centre(exposure.frames):
                exposure.sharp = to_uint8(frame)
            if number == exposure.frames.stop:
                making.remove(exposure)
                yield _write(task, exposure, to_stored)
    if number < task.counts[0]:
        raise UserError(f"{task.source}: {number} frames are fewer than a pair's {task.counts[0]}")


def _write(task: VideoTask, exposure: _Exposure, to_stored: Curve) -> bool:
    """Write those images of a pair that are not there; whether there were any.

    Raises:
        UserError: another image is there, or one cannot be written.
    """
    assert exposure.sharp is not None
    # Rounded here and nowhere before.
    blurry = to_uint8(to_stored(np.asarray(exposure.light) / len(exposure.frames)))
    written = False
    for path, image in zip(task.files(exposure.frames), (blurry, exposure.sharp), strict=True):
        if not path.exists():
            write_image(path, image)
            written = True
        elif not np.array_equal(read_image(path), image):
            raise UserError(
                f"{path} exists and is another image; it was made with other frames or another "
                "--response. Remove it, or name another --output"
            )
    return written


def frame_counts(text: str, stride: int | None) -> tuple[int, ...]:
    """The numbers of frames that `--frames` gives: '7', or the odd ones of '7-13'.

    Raises:
        UserError: it is not of this form, a number is even or too small, or the stride would give
            two pairs one centre frame.
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 3 <= least <= most or not least % 2 or not most % 2:
        raise UserError(
            f"--frames {text}: write an odd number from 3 on, such as 7, or a range of them, such "
            "as 7-13; with an even number no frame is in the middle"
        )
    if stride is not None and stride <= (most - least) // 2:
        raise UserError(
            f"--stride {stride} must be more than {(most - least) // 2} with --frames {text}, or "
            "two pairs would have one centre frame"
        )
    return tuple(range(least, most + 1, 2))


def video_tasks(
    sources: Sequence[Path],
    output: Path,
    *,
    counts: tuple[int, ...],
    stride: int | None,
    response: str,
    split: float,
    test: Sequence[str] = (),
) -> list[VideoTask]:
    """The sequences of the command line, each in one part of the data set.

    Args:
        sources: videos, and folders of frames.
        output: where train/ and test/ go.
        counts, stride, response: see `VideoTask`.
        split: share of the sequences, in the order of their names, that is for training; the rest
            is for testing. Of two or more neither part gets none, unless the share is 0 or 1.
        test: names of the sequences for testing, in place of `split`.

    Raises:
        UserError: a source is missing, two have one name, `test` names none of them, or the output
            has images of a sequence that this call would not make.
    """
    named: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise UserError(f"--input: {missing(source)}")
        path = source.resolve()
        name = path.name if path.is_dir() else path.stem
        other = next((n for n in named if n.casefold() == name.casefold()), None)
        if other is not None:
            raise UserError(
                f"--input: {named[other]} and {source} are both called '{other}', and pairs are "
                "named by it; rename one"
            )
        named[name] = source
    for name in test:
        if name not in named:
            raise UserError(f"--test: there is no sequence '{name}'{suggestion(name, named)}")
    names = sorted(named, key=_in_order)
    if not test:
        first = round(split * len(names))
        if 0 < split < 1 and len(names) > 1:
            first = min(max(first, 1), len(names) - 1)
        test = names[first:]
    tasks = [
        VideoTask(name, named[name], output / PARTS[name in test], counts, stride, response)
        for name in names
    ]
    _refuse_others(tasks, output)
    return tasks


def _refuse_others(tasks: Sequence[VideoTask], output: Path) -> None:
    """Refuse images of the sequences that belong to no pair of them.

    Raises:
        UserError: there are some; they would be used with the new ones.
    """
    there: dict[str, dict[Path, int]] = {task.name: {} for task in tasks}
    for path in output.glob("*/*/*.png"):
        name, _, number = path.stem.rpartition("-")
        if name in there and number.isdecimal():
            there[name][path] = int(number)
    for task in tasks:
        last = max(there[task.name].values(), default=-1)
        own: set[Path] = set()
        for exposure in task.exposures():
            if _centre(exposure) > last:
                break
            own.update(task.files(exposure))
        if others := there[task.name].keys() - own:
            raise UserError(
                f"{len(others)} images of {task.name} were made with other --frames, another "
                f"--stride or for the other part: {listing(map(str, others))}; give the same "
                "options again (--test names the sequences for testing), or another --output"
            )


def prepare_video(tasks: Sequence[VideoTask], jobs: int) -> bool:
    """Make the pairs of all sequences, and print what was done.

    Args:
        tasks: see `video_tasks`.
        jobs: processes; each works on one sequence at a time.

    Returns:
        Whether every sequence was read to its end.

    Raises:
        UserError: a process died.
    """
    making = ordered_pipeline(tasks, load=make_pairs, workers=min(jobs, len(tasks)), processes=True)
    results = list(tqdm(making, "averaging", len(tasks), unit="sequence", disable=None))
    for part in PARTS:
        print(f"{part}:")
        for result in results:
            if result.task.folder.name == part:
                print(
                    f"  {result.task.name}: {result.pairs} pairs ({result.written} written, "
                    f"{result.pairs - result.written} there already)"
                )
    problems = [result.problem for result in results if result.problem is not None]
    print_problems(problems, "sequences have a problem", "Mend or leave out these, then run again.")
    return not problems
