"""The files and the table of scores: scores.json with everything, scores.csv with the images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hidiff.data.image import listing
from hidiff.evaluation.record import SetScores
from hidiff.metrics.published import BENCHMARKS, hi_diff_scores
from hidiff.utils.errors import UserError
from hidiff.utils.files import write_text
from hidiff.utils.tables import text_table

JSON, CSV = "scores.json", "scores.csv"
"""Names of the two files in a folder of results."""

KIND = "hidiff scores"
"""What `kind` says in `JSON`."""

FIRST_COLUMNS = ("dataset", "protocol", "local", "source", "image", "seed")
"""The columns that every `CSV` starts with."""


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


def read_scores(folder: Path) -> list[SetScores]:
    """The scores in a folder of results.

    Raises:
        UserError: there is no scores.json, or something else has written it.
    """
    path = folder / JSON
    content = read_json(path)
    try:
        if content.get("kind") == KIND:
            return [SetScores.from_json(part) for part in content["sets"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise UserError(f"{path}: this file holds no scores of this project")


def check_replaceable(folder: Path) -> None:
    """Make sure that writing scores into a folder loses nothing but earlier ones.

    Raises:
        UserError: a file is there that this project has not written.
    """
    try:
        if (folder / JSON).exists():
            read_scores(folder)
        blamed = folder / CSV
        if blamed.exists():
            with blamed.open(encoding="utf-8", newline="") as file:
                if tuple(next(csv.reader(file), ()))[: len(FIRST_COLUMNS)] == FIRST_COLUMNS:
                    return
            raise UserError(f"{blamed} has other columns than scores")
    except (UserError, OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{folder} holds a {JSON} or {CSV} of another program, which is not replaced "
            f"({error}); move it away or choose another folder with --output"
        ) from None


def write_scores(folder: Path, scores: Sequence[SetScores]) -> None:
    """Write both files; scores of other sets, protocols and sources in the folder are kept.

    Raises:
        UserError: they cannot be written, or are of another program.
    """
    kept = {old.key: old for old in (read_scores(folder) if (folder / JSON).exists() else ())}
    merged = list((kept | {new.key: new for new in scores}).values())
    write_text(folder / CSV, _csv(merged))
    write_text(folder / JSON, _json(merged))


def _json(scores: Sequence[SetScores]) -> str:
    """JSON to look at: indented, with one line an image."""
    parts = []
    for content in (each.as_json() for each in scores):
        images = ",\n".join(f"  {json.dumps(image)}" for image in content.pop("images"))
        head = json.dumps(content, indent=1, allow_nan=False).removesuffix("\n}")
        parts.append(f'{head},\n "images": [\n{images}\n ]\n}}')
    sets = ",\n".join(parts)
    return f'{{"kind": "{KIND}", "sets": [\n{sets}\n]}}\n'


def _csv(scores: Sequence[SetScores]) -> str:
    """One row per image and seed: metrics of restored and blurry image, time, error."""
    rows = [(data, image) for data in scores for image in data.images]
    names = sorted({name for _, image in rows for name in image.restored})
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    blurry = [f"blurry_{name}" for name in names]
    writer.writerow([*FIRST_COLUMNS, *names, *blurry, "aligned", "seconds", "error"])
    for data, image in rows:
        values = [part.get(name) for part in (image.restored, image.blurry) for name in names]
        seconds = None if image.seconds is None else f"{image.seconds:.4f}"
        place = (data.dataset, data.protocol, data.local, data.source, image.name, image.seed)
        row = [*place, *values, image.aligned, seconds, image.error]
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def score_lines(scores: Sequence[SetScores]) -> list[str]:
    """A table of the means with the paper's below, then remarks and failures."""
    columns = [
        (name, side)
        for name in sorted({name for data in scores for name in data.mean()})
        for side in ("blurry", "restored")
        if any(name in data.mean(side) for data in scores)
    ]
    rows, notes = [], []
    for data in scores:
        means = {side: data.mean(side) for side in ("blurry", "restored")}
        values = [means[side].get(name) for name, side in columns]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        done = sum(image.error is None for image in data.first)
        rows.append([data.dataset, data.protocol, data.local or "?", str(done), *cells])
        for table, published in hi_diff_scores(data.dataset).items():
            found = {"psnr": f"{published.psnr:.2f}", "ssim": f"{published.ssim:.3f}"}
            cells = [found.get(name, "") if side == "restored" else "" for name, side in columns]
            of_paper = BENCHMARKS[data.dataset]
            about = [of_paper.protocol, "none", str(of_paper.images)]
            rows.append([f"  paper, Table {table}", *about, *cells])
        deviation = data.deviation()
        notes += [
            f"{data.dataset}: {name} over {len(data.runs)} seeds {data.mean()[name]:.4f} "
            f"± {spread:.4f} (mean of the set), ± {deviation['of_image'][name]:.4f} (one image)"
            for name, spread in deviation.get("of_mean", {}).items()
        ]
        notes += [f"{data.dataset}: {remark}" for remark in data.remarks()]
        failures: dict[str, list[str]] = {}
        for name, error in data.failed.items():
            failures.setdefault(error, []).append(name)
        notes += [
            f"{data.dataset}/{names[0]}: {error}"
            if len(names) == 1
            else f"{data.dataset}: {len(names)} images ({listing(names, 20)}): {error}"
            for error, names in failures.items()
        ]
    header = [
        "data set",
        "protocol",
        "local",
        "images",
        *(f"{side} {name}" for name, side in columns),
    ]
    return [*text_table(header, rows), *notes]
