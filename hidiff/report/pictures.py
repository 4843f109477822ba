"""The page of a report: the pictures of results folders, to be looked at beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hidiff.data.store import list_images
from hidiff.evaluation.folders import restored_folder
from hidiff.evaluation.record import ImageScore
from hidiff.report.rows import Row
from hidiff.restore.page import PageEntry, write_page
from hidiff.utils.errors import UserError


def write_pictures(
    path: Path, rows: Sequence[Row], *, baseline: str | None = None, embed: bool = False
) -> list[str]:
    """Write a page on which each restored picture lies over the blurry one.

    Args:
        path: of the page, a name that ends in .html.
        rows: whose first runs are shown.
        baseline: label of a row whose pictures the others' lie over, in place of the blurry ones.
        embed: put the pictures into the page, which can then be sent alone.

    Returns:
        What is not on the page, and why.

    Raises:
        UserError: no picture is left, or the page cannot be written.
    """
    entries, left_out = [], []
    for row in rows:
        base = next((r for r in rows if r.label == baseline and _same_data(r, row)), None)
        try:
            restored, blurry, sharp = _files(row)
            before = _files(base)[0] if base not in (None, row) else blurry
        except UserError as error:
            left_out.append(f"{row.label}: {error}")
            continue
        scores = {image.name: image for image in row.runs[0].scored}
        for name in restored:
            if name in before:
                files = before[name], restored[name], sharp.get(name)
                title = f"{row.label}: {name}"
                entries.append(PageEntry(title, *files, _texts(scores.get(name))))
    left_out += [
        f"{name}: {why}" for name, why in write_page(path, entries, title="Report", embed=embed)
        .items()
    ]  # fmt: skip
    return left_out


def _same_data(first: Row, second: Row) -> bool:
    keys = [(row.runs[0].dataset, row.runs[0].protocol) for row in (first, second)]
    return keys[0] == keys[1]


def _files(row: Row) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path]]:
    """The restored, blurry and sharp pictures by name; those that are not known are empty.

    Raises:
        UserError: the restored ones are not there any more.
    """
    run = row.runs[0]
    folder = restored_folder(row.folders[0], run.dataset)
    restored = list_images(folder if folder.is_dir() else Path(run.folder), "restored images")
    blurry, sharp = (
        list_images(root, "images") if root is not None and Path(root).is_dir() else {}
        for root in (run.input, run.target)
    )
    return restored, blurry, sharp


def _texts(image: ImageScore | None) -> dict[str, str]:
    """An image's scores in words, such as {'PSNR': '28.10 → 33.40 dB'}."""
    if image is None:
        return {}
    texts = {}
    for metric, value in image.restored.items():
        digits, unit = (2, " dB") if metric == "psnr" else (4, "")
        values = [image.blurry[metric], value] if metric in image.blurry else [value]
        texts[metric.upper()] = " → ".join(f"{v:.{digits}f}" for v in values) + unit
    return texts
