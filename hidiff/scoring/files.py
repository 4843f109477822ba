"""The files that scores are written to: a CSV of the images and a JSON of everything else."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from hidiff.errors import UserError
from hidiff.files import write_text
from hidiff.scoring.folders import FolderScores

KIND = "hidiff scores of a folder"
"""What `kind` says in the JSON files."""

CSV_HEADER = ("image", "psnr", "ssim", "aligned", "error")


def score_paths(folder: Path, dataset: str, protocol: str) -> tuple[Path, Path]:
    """Where the JSON and the CSV of a data set go: `folder/score_{dataset}_{protocol}.…`."""
    stem = f"score_{dataset}_{protocol}"
    return folder / f"{stem}.json", folder / f"{stem}.csv"


def check_replaceable(json_path: Path, csv_path: Path) -> None:
    """Make sure that writing the two files loses nothing but earlier scores.

    Raises:
        UserError: a file is there that this program has not written.
    """
    if json_path.exists():
        try:
            read_scores(json_path)
        except UserError:
            _refuse(json_path)
    if csv_path.exists():
        try:
            with csv_path.open(encoding="utf-8", newline="") as file:
                ours = next(csv.reader(file), None) == list(CSV_HEADER)
        except (OSError, UnicodeDecodeError, csv.Error):
            ours = False
        if not ours:
            _refuse(csv_path)


def _refuse(path: Path) -> None:
    raise UserError(
        f"{path} exists and is no file of scores, so it is not replaced; "
        "move it away or choose another folder with --output"
    )


def write_scores(scores: FolderScores, json_path: Path, csv_path: Path) -> None:
    """Write both files, replacing earlier ones; missing folders are made.

    Raises:
        UserError: they cannot be written.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(CSV_HEADER)
    for image in scores.images:
        row = (image.name, image.psnr, image.ssim, image.aligned, image.error)
        writer.writerow(["" if value is None else value for value in row])
    for name in scores.missing_restored:
        writer.writerow([name, "", "", "", "no restored image"])
    for name in scores.missing_target:
        writer.writerow([name, "", "", "", "no sharp image"])
    write_text(csv_path, table.getvalue())
    write_text(json_path, json.dumps({"kind": KIND, **scores.summary()}, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The section that a JSON file holds.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON, or a damaged file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def read_scores(path: Path) -> dict[str, Any]:
    """The JSON that `write_scores` has written; see `FolderScores.summary`.

    Raises:
        UserError: the file cannot be read, or was written by something else.
    """
    content = read_json(path)
    if content.get("kind") != KIND:
        raise UserError(f"{path}: this file does not hold the scores of a folder")
    return content
