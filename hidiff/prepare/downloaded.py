"""A data set as it came out of an archive, brought into the layout and checked."""

from __future__ import annotations

from pathlib import Path

from hidiff.data.store import list_images
from hidiff.prepare.check import LAYOUT, check_dataset, layout_sources
from hidiff.prepare.layout import (
    REALBLUR_LISTS,
    Placement,
    gopro_placements,
    gopro_sequences,
    hide_placements,
    place_all,
    realblur_placements,
)
from hidiff.utils.errors import UserError


def place_download(folder: Path, root: Path) -> list[str]:
    """Copy what an unpacked download holds to its places in the layout; lines about the data sets.

    It is found wherever it lies in the folder: in the layout already, or as its authors
    distribute it.

    Raises:
        UserError: no data set of the layout is there, a file differs from one that is there, or
            pairs are damaged.
    """
    placements = _in_layout(folder, root)
    for place in (
        [] if placements else [folder, *sorted(p for p in folder.rglob("*") if p.is_dir())]
    ):
        if any(gopro_sequences(place / part) for part in ("train", "test")):
            placements += gopro_placements(place, root)
        elif any((place / name).is_file() for name in REALBLUR_LISTS.values()):
            placements += realblur_placements(place, root)
        elif (place / "GT").is_dir() and (place / "test").is_dir():
            placements += hide_placements(place, root)
    if not placements:
        raise UserError(
            f"the download holds none of {', '.join(LAYOUT)}; put it into the layout by hand, see "
            "datasets/README.md"
        )
    count = place_all(placements, root, copy=True)
    lines = [f"{count} files were placed under {root}"]
    touched = {placement.target.parent.parent for placement in placements}
    for source in layout_sources(root)[0]:
        if Path(source.lq).parent in touched:
            report = check_dataset(source, patch_size=None, fast=True, jobs=1)
            state = "; ".join(report.problems) or "ok"
            lines.append(f"{report.name}: {report.pairs} pairs: {state}")
    return lines


def _in_layout(folder: Path, root: Path) -> list[Placement]:
    """Placements of the folders that already end as those of the layout do."""
    placements = []
    for entry in LAYOUT.values():
        parts = Path(entry.name).parts
        for place in sorted(folder.rglob(entry.lq)):
            ends = place.parent.parts[-len(parts) :]
            if ends == parts and place.is_dir() and (place.parent / entry.gt).is_dir():
                lq = list_images(place, "--from")
                gt = list_images(place.parent / entry.gt, "--from")
                target = root / entry.name
                for name in lq.keys() & gt.keys():
                    for side, origin in ((entry.lq, lq[name]), (entry.gt, gt[name])):
                        placements.append(Placement(origin, target / side / origin.name))
    return placements
