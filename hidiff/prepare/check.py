"""Looking a data set over before anything is trained on it or scored with it."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hidiff.data.decode import decode, read_header
from hidiff.data.pairs import Pair, find_pairs
from hidiff.data.store import file_of, read_location
from hidiff.data.warnings import pair_warnings
from hidiff.options import load_datasets
from hidiff.prepare.noise import NOISY, noise_level
from hidiff.utils.errors import UserError, expanded
from hidiff.utils.workers import run_in_order


@dataclass(frozen=True)
class LayoutEntry:
    """One data set of the layout under `datasets/`.

    Args:
        name: its folder, relative to the root.
        pairs: how many pairs the benchmark has.
        command: what makes the folder.
        lq, gt: the sub-folders of blurry and of sharp images.
    """

    name: str
    pairs: int
    command: str
    lq: str = "input"
    gt: str = "target"


_GOPRO, _HIDE, _REALBLUR = (
    f"hidiff prepare {name} --source DOWNLOAD" for name in ("gopro", "hide", "realblur")
)
_CUT = "python generate_patches_gopro.py"

LAYOUT = {
    entry.name: entry
    for entry in (
        LayoutEntry("GoPro/train", 2103, _GOPRO),
        LayoutEntry("GoPro/test", 1111, _GOPRO),
        LayoutEntry("GoPro/crop/train", 8 * 2103, _CUT, "input_crops", "target_crops"),
        LayoutEntry("GoPro/crop/val", 1111, _CUT, "input_crops", "target_crops"),
        LayoutEntry("RealBlur/train/RealBlur_R", 3758, _REALBLUR),
        LayoutEntry("RealBlur/train/RealBlur_J", 3758, _REALBLUR),
        LayoutEntry("RealBlur/test/RealBlur_R", 980, _REALBLUR),
        LayoutEntry("RealBlur/test/RealBlur_J", 980, _REALBLUR),
        LayoutEntry("test/GoPro", 1111, _GOPRO),
        LayoutEntry("test/HIDE", 2025, _HIDE),
        LayoutEntry("test/RealBlur_R", 980, _REALBLUR),
        LayoutEntry("test/RealBlur_J", 980, _REALBLUR),
    )
}
"""The data sets of the layout, by name."""


def against_benchmark(count: int, entry: LayoutEntry) -> str | None:
    """What is wrong with a number of pairs, or None when it is the benchmark's."""
    if count == entry.pairs:
        return None
    word = "incomplete" if count < entry.pairs else "too many"
    return f"{word}: {count} pairs, the benchmark has {entry.pairs}"


@dataclass(frozen=True)
class DataSource:
    """Where one data set lies, and what is known of it.

    Args:
        name: for the report.
        lq, gt: folders or LMDBs; `gt` None when there is no sharp side.
        filename_tmpl: a blurry image's name from its sharp one's; see `find_pairs`.
        meta_info_file: a list of the pairs, for data that is not all of its folders.
        patch_size: training patches of this size (pixels) will be cut from it, if known.
        photographs: they are sharp, in `lq`, and blurry ones will be made of them.
    """

    name: str
    lq: str
    gt: str | None
    filename_tmpl: str | None = None
    meta_info_file: str | None = None
    patch_size: int | None = None
    photographs: bool = False

    def layout_entry(self) -> LayoutEntry | None:
        """The entry of the layout whose folders these are, by the ends of their paths."""
        if self.meta_info_file is None:
            # RealBlur/test/RealBlur_R ends like test/RealBlur_R: the longest name decides.
            for entry in sorted(LAYOUT.values(), key=lambda entry: -len(entry.name)):
                tail = Path(entry.name, entry.lq).parts
                if Path(self.lq).parts[-len(tail) :] == tail:
                    return entry
        return None


@dataclass
class Report:
    """What was found: `problems` to mend, and `notes` worth knowing."""

    name: str
    pairs: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def layout_sources(root: str | os.PathLike[str]) -> tuple[list[DataSource], list[LayoutEntry]]:
    """The data sets of the layout that are under `root`, at least in part, and those that are not.

    Raises:
        UserError: there is no such folder, or no data set of the layout in it.
    """
    root = Path(root)
    found, absent = [], []
    for entry in LAYOUT.values():
        lq, gt = root / entry.name / entry.lq, root / entry.name / entry.gt
        if lq.is_dir() or gt.is_dir():
            found.append(DataSource(entry.name, str(lq), str(gt)))
        else:
            absent.append(entry)
    if not found:
        raise UserError(
            f"--root: {root.absolute()} holds no data set of the layout ({', '.join(LAYOUT)}); "
            "datasets/README.md shows how to get there"
        )
    return found, absent


def dataset_folders(option_file: str | Path) -> list[DataSource]:
    """The data sets that an option file names under `datasets`.

    Raises:
        UserError: the option file is wrong (see `hidiff.options`), or names no data set.
    """
    datasets = load_datasets(option_file)
    if not datasets:
        raise UserError(f"-opt: {option_file} has no section 'datasets' with data sets in it")
    sources = []
    entries = [(main, entry) for main in datasets.values() for entry in main.mixture or [main]]
    for main, options in entries:
        section = options.source
        if section.get("type") == "SyntheticBlurDataset":
            roots = section.get("dataroot_gt") or []
            roots = roots if isinstance(roots, list) else [roots]
            if not roots:
                raise UserError(f"{option_file}: {options.where}.dataroot_gt is missing")
            # Sharp photographs alone; the blurry ones are made of them.
            sources += [
                DataSource(
                    options.label,
                    expanded(str(root)),
                    None,
                    patch_size=main.gt_size,
                    photographs=True,
                )
                for root in roots
            ]
            continue
        if not section.get("dataroot_lq"):
            raise UserError(f"{option_file}: {options.where}.dataroot_lq is missing")
        sources.append(
            DataSource(
                name=options.label,
                lq=str(section["dataroot_lq"]),
                gt=str(section["dataroot_gt"]) if section.get("dataroot_gt") else None,
                filename_tmpl=section.get("filename_tmpl"),
                meta_info_file=str(meta) if (meta := section.get("meta_info_file")) else None,
                patch_size=main.gt_size,
            )
        )
    return sources


def _find_pairs(source: DataSource, report: Report) -> list[Pair]:
    """The pairs of a data set; images without counterpart go into the report, each by name."""
    found = find_pairs(
        blurry=source.lq,
        sharp=source.gt,
        lists=source.meta_info_file,
        template=source.filename_tmpl,
        where=source.name,
        complete=False,
    )
    report.notes += found.notices
    hint = f" (set filename_tmpl: '{found.template}')" if found.template is not None else ""
    report.problems += [
        *(f"{name}: sharp, but no blurry image is of its name{hint}" for name in found.no_blurry),
        *(f"{name}: blurry, but no sharp image is of its name{hint}" for name in found.no_sharp),
    ]
    return found.pairs


def _check_pair(
    pair: Pair,
    patch_size: int | None,
    *,
    fast: bool,
    photographs: bool,
) -> tuple[list[str], set[str], list[str]]:
    """Problems of one pair, the conversions that reading it will make, and notes."""
    problems, conversions, notes, sizes, pixels = [], set(), [], [], []
    turns = []
    for side, key in (("blurry", pair.lq), ("sharp", pair.gt)):
        if key is None:
            continue
        try:
            if fast:
                source = Path(key) if key == file_of(key) else read_location(key)
                header, image = read_header(source, key), None
            else:
                data = read_location(key)
                header, image = read_header(data, key), decode(data, key, thorough=True).pixels
        except UserError as error:
            problems.append(f"{pair.name} ({side}): {error}")
            continue
        # Decoding turns a picture by its orientation tag; the header does not.
        height, width = image.shape[:2] if image is not None else (header.height, header.width)
        if patch_size is not None and min(height, width) < patch_size:
            problems.append(
                f"{pair.name} ({side}): {width}×{height} is smaller than the patch size "
                f"{patch_size}; take the pair out (both images) or train with smaller patches"
            )
        if photographs and image is not None and (level := noise_level(image)) > NOISY:
            notes.append(
                f"{pair.name} is noisy ({level:.1f} of 255), or fine texture everywhere; networks "
                "learn to make such noise: take it out, or make it smaller (the option scale)"
            )
        sizes.append((width, height))
        turns.append(header.turn)
        pixels.append(image)
        for kind, is_so in (
            ("grey", header.grey),
            ("with an alpha channel", header.alpha),
            ("of 16 bits", header.bits16),
        ):
            if is_so:
                conversions.add(f"{side} images {kind}")
    if len(sizes) == 2:
        if turns[0] != turns[1]:
            problems.append(
                f"{pair.name}: the images are turned differently by their orientation tags "
                f"(blurry {turns[0]}, sharp {turns[1]}, 1 is upright); save both upright, or check "
                "by eye that they fit when turned"
            )
        if sizes[0] != sizes[1]:
            blurry, sharp = (f"{width}×{height}" for width, height in sizes)
            problems.append(f"{pair.name}: blurry is {blurry}, sharp {sharp} (width×height)")
        elif _same(pair, *pixels):
            problems.append(f"{pair.name}: the blurry image is identical to the sharp one")
    return problems, conversions, notes


def _same(pair: Pair, lq: np.ndarray | None, gt: np.ndarray | None) -> bool:
    if lq is not None and gt is not None:
        return np.array_equal(lq, gt)
    # Without the pixels only two names of one file can be told; LMDB keys are no files.
    if pair.gt is None or not (Path(pair.lq).exists() and Path(pair.gt).exists()):
        return False
    return Path(pair.lq).samefile(pair.gt)


def check_dataset(
    source: DataSource,
    *,
    patch_size: int | None = None,
    fast: bool = False,
    jobs: int = 1,
    progress: bool = True,
) -> Report:
    """Check that a data set is complete, paired by name, readable and equal in size per pair.

    Args:
        patch_size: report images with a side below this many pixels (default: the data set's own).
        fast: read the images' headers only; truncated and damaged files then pass.
        jobs: threads (decoding runs outside Python's lock).
        progress: show a progress bar on standard error.

    Returns:
        The report. Mistakes in folders and files are its `problems`, not exceptions.
    """
    report = Report(source.name)
    try:
        pairs = _find_pairs(source, report)
    except UserError as error:
        report.problems.append(str(error))
        return report
    report.pairs = len(pairs)
    if not fast:
        report.notes += pair_warnings(pairs, source.name)
    entry = source.layout_entry()
    if entry is not None and (wrong := against_benchmark(len(pairs), entry)):
        report.problems.append(f"{wrong}; made by {entry.command}")

    def check(pair: Pair) -> tuple[list[str], set[str], list[str]]:
        return _check_pair(
            pair,
            patch_size or source.patch_size,
            fast=fast,
            photographs=source.photographs,
        )

    conversions: Counter[str] = Counter()
    hidden = None if progress else True
    with closing(run_in_order(pairs, read=check, workers=jobs)) as checked:
        for problems, found, notes in tqdm(
            checked, source.name, len(pairs), unit="pair", disable=hidden
        ):
            report.problems += problems
            report.notes += notes
            conversions.update(found)
    report.notes += [
        f"{count} {kind}; converted to RGB on reading, see datasets/README.md"
        for kind, count in sorted(conversions.items())
    ]
    return report
