"""Looking a data set over before anything is trained on it or scored with it."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from hidiff.data.pairs import Pair, find_pairs
from hidiff.data.warnings import shared_pairs
from hidiff.options import load_datasets
from hidiff.prepare.layout import LAYOUT, LayoutEntry
from hidiff.prepare.pair_check import check_pair
from hidiff.utils.errors import UserError, expanded
from hidiff.utils.workers import ordered_pipeline


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
        whole: `lq` and `gt` are one folder, in which the pairs are to be found.
    """

    name: str
    lq: str
    gt: str | None
    filename_tmpl: str | None = None
    meta_info_file: str | None = None
    patch_size: int | None = None
    photographs: bool = False
    whole: bool = False

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
    """What was found: the pairs, `problems` to mend, and `notes` worth knowing."""

    name: str
    pairs: list[Pair] = field(default_factory=list)
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
    for main in datasets.values():
        for options in main.mixture or [main]:
            section = options.source
            # Sharp photographs alone; the blurry ones are made of them.
            photographs = section.get("type") == "SyntheticBlurDataset"
            key = "dataroot_gt" if photographs else "dataroot_lq"
            roots = section.get(key)
            if not roots:
                raise UserError(f"{option_file}: {options.where}.{key} is missing")
            sources += [
                DataSource(
                    name=options.label,
                    lq=expanded(str(root)),
                    gt=None if photographs else section.get("dataroot_gt"),
                    filename_tmpl=section.get("filename_tmpl"),
                    meta_info_file=section.get("meta_info_file"),
                    patch_size=main.gt_size,
                    photographs=photographs,
                )
                for root in (roots if isinstance(roots, list) else [roots])
            ]
    return sources


def check_dataset(
    source: DataSource,
    *,
    patch_size: int | None = None,
    fast: bool = False,
    align: bool = False,
    jobs: int = 1,
) -> Report:
    """Check that a data set is complete, paired by name, readable and equal in size per pair.

    Args:
        patch_size: report images with a side below this many pixels (default: the data set's own).
        fast: read the images' headers only; truncated and damaged files then pass.
        align: look for misaligned pairs.
        jobs: threads (decoding runs outside Python's lock).

    Returns:
        The report. Mistakes in folders and files are its `problems`, not exceptions.
    """
    report = Report(source.name)
    try:
        found = find_pairs(
            source.lq if source.whole else None,
            blurry=None if source.whole else source.lq,
            sharp=None if source.whole else source.gt,
            lists=source.meta_info_file,
            template=source.filename_tmpl,
            where=source.name,
            complete=False,
        )
    except UserError as error:
        report.problems.append(str(error))
        return report
    report.pairs = pairs = found.pairs
    report.notes += found.notices
    hint = f" (set filename_tmpl: '{found.template}')" if found.template is not None else ""
    for names, there, lacking in (
        (found.no_blurry, "sharp", "blurry"),
        (found.no_sharp, "blurry", "sharp"),
    ):
        report.problems += [
            f"{name}: {there}, but no {lacking} image is of its name{hint}" for name in names
        ]
    entry = source.layout_entry()
    if entry is not None and (wrong := entry.wrong_count(len(pairs))):
        report.problems.append(f"{wrong}; made by {entry.command}")
    check = functools.partial(
        check_pair,
        patch_size=patch_size or source.patch_size,
        fast=fast,
        photographs=source.photographs,
        align=align,
    )
    conversions: Counter[str] = Counter()
    sharper = []
    with closing(ordered_pipeline(pairs, load=check, workers=jobs)) as checked:
        for pair in tqdm(checked, source.name, len(pairs), unit="pair", disable=None):
            report.problems += pair.problems
            report.notes += pair.notes
            conversions.update(pair.conversions)
            if pair.sharper is not None:
                sharper.append(pair.sharper)
    if sum(sharper) > max(1, len(sharper) / 2):
        report.problems.append(
            f"the blurry image is the sharper one in {sum(sharper)} of {len(sharper)} pairs: the "
            "folders of blurry and sharp images seem to be swapped"
        )
    report.notes += [
        f"{count} {kind}; converted to RGB on reading, see datasets/README.md"
        for kind, count in sorted(conversions.items())
    ]
    return report


def shared_images(reports: Sequence[Report]) -> list[str]:
    """What is wrong with validation sets of an option file that hold images of its training."""
    training: list[Pair] = []
    others = {}
    for report in reports:
        if report.name.startswith("datasets.train"):
            training += report.pairs
        else:
            others[report.name] = report.pairs
    return shared_pairs(training, others)
