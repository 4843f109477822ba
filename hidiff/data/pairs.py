"""Matching blurry and sharp images by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hidiff.data.image import listing
from hidiff.data.store import ImageStore
from hidiff.data.transforms import Normalization
from hidiff.utils.errors import UserError, counted_from
from hidiff.utils.files import is_file, read_lines

SIDES = (("input", "target"), ("blur", "sharp"), ("blurry", "sharp"), ("lq", "gt"))
"""Names of the folders of blurry and sharp images that stand beside each other."""


@dataclass(frozen=True)
class Pair:
    """One blurry image and, unless only restoring, its sharp counterpart.

    `lq` and `gt` are keys of an `ImageStore`.
    """

    name: str
    lq: str
    gt: str | None


class PairSet(Protocol):
    """What a data set has; see `PairedImageIRDataset`."""

    pairs: list[Pair]
    notices: list[str]
    normalization: Normalization | None

    def __len__(self) -> int: ...
    def __getitem__(self, item: Any, /) -> dict[str, Any]: ...
    def fingerprint(self) -> str: ...


class SourceSet(PairSet, Protocol):
    """A data set of one section of the options."""

    has_gt: bool

    def files(self, index: int) -> list[str]: ...


def refuse_one_place(lq: str, gt: str | None, where: str) -> None:
    """Refuse one folder or LMDB as both sides: every image would be its own sharp one.

    Raises:
        UserError: `lq` and `gt` are one place, if by different names.
    """
    if gt is not None and Path(lq).resolve() == Path(gt).resolve():
        raise UserError(
            f"{where}: blurry and sharp images are the same folder, {Path(gt).resolve()}, so every "
            "image would be its own sharp one; name the folder of each, or leave the sharp one out "
            "to restore without scores"
        )


def counterparts(
    lq: Iterable[str], gt: Iterable[str], filename_tmpl: str
) -> tuple[list[tuple[str, str]], dict[str, str], list[str]]:
    """Pairs (lq name, gt name) such that lq = filename_tmpl.format(gt), ordered by gt name.

    Returns:
        The pairs; blurry names that are missing, each with its sharp one; blurry ones without.
    """
    lq = set(lq)
    wanted = {filename_tmpl.format(name): name for name in gt}
    pairs = sorted(((n, wanted[n]) for n in lq & wanted.keys()), key=lambda pair: pair[1])
    no_blurry = {name: wanted[name] for name in sorted(wanted.keys() - lq)}
    return pairs, no_blurry, sorted(lq - wanted.keys())


def match_names(
    lq: Iterable[str], gt: Iterable[str], filename_tmpl: str, where: str
) -> list[tuple[str, str]]:
    """The pairs of `counterparts`.

    Raises:
        UserError: any name lacks its counterpart.
    """
    pairs, no_blurry, no_sharp = counterparts(lq, gt, filename_tmpl)
    if not (no_blurry or no_sharp):
        return pairs
    parts = [
        f"{len(names)} {sides} ({listing(names)})"
        for names, sides in (
            (no_blurry, "sharp without blurry"),
            (no_sharp, "blurry without sharp"),
        )
        if names
    ]
    if not {n.casefold() for n in no_blurry}.isdisjoint(n.casefold() for n in no_sharp):
        parts.append("some differ only in upper and lower case, which counts")
    raise UserError(
        f"{where}: images are paired by name, and {len(no_blurry) + len(no_sharp)} have no "
        f"counterpart: {'; '.join(parts)}. Complete the folders or remove these images; "
        "hidiff check (-opt FILE, or --input DIR --target DIR) lists them all"
    )


def match_stores(
    lq: ImageStore, gt: ImageStore | None, filename_tmpl: str, where: str
) -> list[Pair]:
    """Pairs of the images of two stores; only blurry ones when `gt` is None.

    Raises:
        UserError: an image has no counterpart.
    """
    if gt is None:
        return [Pair(name, key, None) for name, key in lq.names.items()]
    return [
        Pair(lq_name, lq.names[lq_name], gt.names[gt_name])
        for lq_name, gt_name in match_names(lq.names, gt.names, filename_tmpl, where)
    ]


def _one_file(lq: str, gt: str) -> bool:
    return lq == gt or Path(lq).samefile(gt)


def pairs_from_list(
    meta_info_file: str,
    dataroot_lq: str,
    dataroot_gt: str | None,
    filename_tmpl: str,
    where: str,
) -> list[Pair]:
    """Pairs named by a text file, one a line, relative to the two data roots.

    A line is `name.png` (optionally followed by a shape such as `(720,1280,3)`), the same name on
    both sides up to `filename_tmpl`; or `sharp/path.png blurry/path.png` as in RealBlur's lists.
    With a tab between the two paths there may be spaces in them.

    Raises:
        UserError: the list is missing or empty, names a file that does not exist, or one file as
            both images of a pair.
    """
    path = Path(meta_info_file)
    if not is_file(path):
        raise UserError(f"{where}.meta_info_file: there is no file {path}{counted_from(path)}")
    pairs = []
    missing = []
    for number, line in read_lines(path, f"{where}.meta_info_file"):
        fields = line.split("\t") if "\t" in line else line.split("(")[0].split()
        if not fields:
            continue
        if len(fields) > 2:
            raise UserError(
                f"{where}.meta_info_file: {path}, line {number}: expected 'name' or "
                f"'sharp blurry', got '{line}'; put a tab between names with spaces"
            )
        gt_rel = Path(fields[0])
        if len(fields) == 2:
            lq_rel = Path(fields[1])
        else:
            lq_rel = gt_rel.with_name(filename_tmpl.format(gt_rel.stem) + gt_rel.suffix)
        lq = Path(dataroot_lq) / lq_rel
        gt = None if dataroot_gt is None else Path(dataroot_gt) / gt_rel
        missing += [str(p) for p in (lq, gt) if p is not None and not is_file(p)]
        # Only what tells images apart goes into the name: RealBlur repeats file names per scene.
        name = lq_rel.with_suffix("").as_posix().replace("/", "-")
        pairs.append(Pair(name, str(lq), None if gt is None else str(gt)))
    if missing:
        raise UserError(
            f"{where}.meta_info_file: {path} names {len(missing)} files that do not exist "
            f"({listing(missing, 3)}){counted_from(missing[0])}; check dataroot_gt and dataroot_lq"
        )
    same = [pair.name for pair in pairs if pair.gt is not None and _one_file(pair.lq, pair.gt)]
    if same:
        raise UserError(
            f"{where}: of {len(same)} pairs of {path} both images are one file "
            f"({listing(same, 3)}); check dataroot_gt, dataroot_lq and the list"
        )
    if not pairs:
        raise UserError(f"{where}.meta_info_file: {path} names no image")
    twice = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
    if twice:
        raise UserError(
            f"{where}.meta_info_file: {path} names {len(twice)} images twice ({listing(twice)}), "
            "and their results would replace each other; '/' and '-' count as the same"
        )
    return pairs
