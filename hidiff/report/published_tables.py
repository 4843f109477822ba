"""The paper's tables with the figures of result folders beside the published ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hidiff.data.image import list_images
from hidiff.evaluation.folders import find_data, restored_folder
from hidiff.evaluation.record import SCORES_FILE as JSON
from hidiff.evaluation.record import Scores, read_scores
from hidiff.evaluation.summary import remarks
from hidiff.metrics.published import (
    BENCHMARKS,
    HI_DIFF,
    HI_DIFF_2,
    TABLES,
    Score,
    find_row,
)
from hidiff.restore.page import Comparison
from hidiff.utils.errors import UserError, suggestion
from hidiff.utils.tables import markdown_table

Results = dict[tuple[Path, str], list[Scores]]
"""The scores of result folders, by the folder and the model that it is of, a key of `MODELS`."""

MODELS: Mapping[str, Mapping[int, str]] = {
    "HI-Diff-2": {4: HI_DIFF_2},
    "Baseline": {1: "Baseline"},
    "Single-Guide": {1: "Single-Guide"},
    "Split-Training": {1: "Split-Training"},
    "Ablation-HI-Diff": {1: HI_DIFF},
    "RealBlur_R": {3: HI_DIFF},
    "RealBlur_J": {3: HI_DIFF},
    "GoPro": {2: HI_DIFF, 4: HI_DIFF},
}
"""The models of the paper by short name, each with its rows: table → method.

The data sets' names stand for HI-Diff trained on them.
"""

TITLES = {
    1: "ablation study on GoPro",
    2: "trained on GoPro",
    3: "trained and tested on the same part of RealBlur",
    4: "model sizes, PSNR on GoPro",
}


def guess_model(name: str) -> str | None:
    """The key of `MODELS` that the name of a result folder mentions, if any.

    'test_HI_Diff_RealBlur_J' mentions 'RealBlur_J'; of several the one listed first counts.
    """
    for model in MODELS:
        pattern = re.sub(r"[-_]", "[-_]?", model)
        # HI_Diff_2 is HI-Diff-2, HI_Diff_20 is not.
        if re.search(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])", name, re.IGNORECASE):
            return model
    return None


def parse_result_folder(text: str) -> tuple[Path, str, bool]:
    """A FOLDER or FOLDER=MODEL argument.

    Returns:
        The folder, the model (see `MODELS`), and whether the model is a guess without any hint.

    Raises:
        UserError: no such folder or model.
    """
    folder, sign, model = text.rpartition("=")
    if Path(text).is_dir() or not sign:
        folder, model = text, ""
    elif model not in MODELS:
        raise UserError(f"--results {text}: there is no model '{model}'{suggestion(model, MODELS)}")
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"--results: {path} is no folder; give result folders of test.py")
    guess = guess_model(path.resolve().name)
    return path, model or guess or "GoPro", not (model or guess)


def collect_results(folder: Path) -> list[Scores]:
    """The scores in a result folder that have a PSNR.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    if not (folder / JSON).is_file():
        raise UserError(
            f"{folder} holds no {JSON}; make it with test.py or `hidiff score --dir {folder}`"
        )
    return [scores for scores in read_scores(folder) if "psnr" in plain_mean(scores)]


def plain_mean(scores: Scores) -> dict[str, float]:
    """The means of PSNR and SSIM that are what their names say, on the whole image in RGB."""
    plain = {}
    for name, value in scores.mean().items():
        section = scores.settings.get("metrics", {}).get(name)
        if scores.protocol != "basicsr" or section is None or (
            section.get("type") == f"calculate_{name}"
            and not section.get("crop_border")
            and not section.get("test_y_channel")
        ):  # fmt: skip
            plain[name] = value
    return plain


def _remarks(scores: Scores) -> list[str]:
    found = [f"{len(scores.failed)} images have no score"] if scores.failed else []
    if scores.local not in (None, "none"):
        found.append(f"restored in the local mode '{scores.local}', the published ones as a whole")
    return [*found, *remarks(scores)]


class _Footnotes:
    """Remarks below a table, numbered as they occur."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def marks(self, remarks: Iterable[str]) -> str:
        numbers = []
        for remark in remarks:
            if remark not in self.texts:
                self.texts.append(remark)
            numbers.append(self.texts.index(remark) + 1)
        return "".join(f" [{number}]" for number in numbers)

    def lines(self) -> list[str]:
        return [f"- [{number}] {text}" for number, text in enumerate(self.texts, start=1)]


def _cells(scores: Scores, published: Score, digits: int) -> tuple[str, str]:
    """The score and its difference from a published one, with SSIM if that has it.

    Where the protocols differ, so that the two cannot be compared, there is a dash.
    """
    mean, wanted = plain_mean(scores), BENCHMARKS[scores.dataset].protocol
    own, differences = [f"{mean['psnr']:.2f}"], ["–"]
    # These two differ in SSIM only.
    if scores.protocol == wanted or {scores.protocol, wanted} == {"basicsr", "matlab"}:
        differences = [f"{mean['psnr'] - published.psnr:+.2f}"]
    if published.ssim is not None:
        same = scores.protocol == wanted and "ssim" in mean
        differences.append(f"{mean['ssim'] - published.ssim:+.{digits}f}" if same else "–")
        if "ssim" in mean:
            own.append(f"{mean['ssim']:.{digits}f}")
    return " / ".join(own), " / ".join(differences)


def best_scores(sets: Iterable[Scores]) -> dict[str, Scores]:
    """For each benchmark the scores to compare: those of its own protocol, if there are any."""
    best: dict[str, Scores] = {}
    for scores in sets:
        benchmark, known = scores.benchmark, best.get(scores.dataset)
        if benchmark is not None and (
            known is None or known.protocol != benchmark.protocol == scores.protocol
        ):
            best[scores.dataset] = scores
    return best


def table_lines(number: int, results: Results) -> list[str]:
    """One table of the paper with the rows that the results add to it; empty when there are none.

    Args:
        number: a key of `hidiff.metrics.published.TABLES`.
    """
    rows = TABLES[number]
    benchmarks = [name for name in BENCHMARKS if any(name in row.scores for row in rows)]
    sizes = rows[-1].parameters is not None
    digits = 4 if number == 1 else 3
    notes = _Footnotes()
    ours: list[list[str]] = []
    for (folder, model), sets in results.items():
        best = best_scores(sets) if number in MODELS[model] else {}
        # Table 3 tests each model on the part of RealBlur that it was trained on.
        shown = {n: best[n] for n in benchmarks if n in best and (number != 3 or n == model)}
        if shown:
            row = find_row(number, MODELS[model][number])
            cells = {n: _cells(scores, row.scores[n], digits) for n, scores in shown.items()}
            blank = ["", ""] if sizes else []
            own = [
                cells[n][0] + notes.marks(_remarks(shown[n])) if n in cells else ""
                for n in benchmarks
            ]
            differences = [cells[n][1] if n in cells else "" for n in benchmarks]
            ours.append([f"**this project**, {folder.resolve().name}", *blank, *own])
            ours.append([f"difference from {row.method}", *blank, *differences])
    if not ours:
        return []
    header = ["method", *(["parameters (M)", "MACs (G)"] if sizes else [])]
    pair = "PSNR (dB)" if number == 4 else "PSNR (dB) / SSIM"
    header += [f"{BENCHMARKS[b].title}, {pair}, {BENCHMARKS[b].protocol}" for b in benchmarks]
    published = [
        [
            row.method,
            *([f"{row.parameters:.2f}", f"{row.macs:.2f}"] if sizes else []),
            *(
                _published(row.scores[name], digits) if name in row.scores else "N/A"
                for name in benchmarks
            ),
        ]
        for row in rows
    ]
    footnotes = notes.lines()
    return [
        f"## Table {number}: {TITLES[number]}",
        "",
        *markdown_table(header, [*published, *ours]),
        *(["", *footnotes] if footnotes else []),
        "",
    ]


def _published(score: Score, digits: int) -> str:
    ssim = "" if score.ssim is None else f" / {score.ssim:.{digits}f}"
    return f"{score.psnr:.2f}{ssim}"


def all_scores_lines(results: Results, title: str = "All scores") -> list[str]:
    """Every one of the scores, with its protocol, count and source."""
    rows = []
    for (folder, _), sets in results.items():
        for scores in sets:
            mean = plain_mean(scores)
            rows.append(
                [
                    folder.resolve().name,
                    *(scores.dataset, scores.protocol, scores.local or "–", scores.source),
                    str(len(scores.scored)),
                    f"{mean['psnr']:.4f}",
                    f"{mean['ssim']:.4f}" if "ssim" in mean else "–",
                    "; ".join(_remarks(scores)),
                ]
            )
    header = ["folder", "data set", "protocol", "local", "source", "images", "PSNR (dB)", "SSIM"]
    header.append("remarks")
    return [f"## {title}", "", *markdown_table(header, rows), ""]


def version_lines(results: Results) -> list[str]:
    """The library versions behind the scores, each combination once."""
    texts = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in scores.versions.items())
        for sets in results.values()
        for scores in sets
    )
    return ["## Versions", "", *(f"- {text}" for text in texts), ""]


def report_lines(results: Results) -> list[str]:
    """The tables 2, 3, 4 and 1, as far as the results add rows to them, then all scores.

    Data sets that are none of the paper's have a section of their own, without published figures.

    Raises:
        UserError: none of the results belongs into a table or that section.
    """
    tables = [line for number in (2, 3, 4, 1) for line in table_lines(number, results)]
    own = {key: [s for s in sets if s.benchmark is None] for key, sets in results.items()}
    if any(own.values()):
        tables += all_scores_lines(own, "Other data sets, not in the paper")
    if not tables:
        found = sorted({f"{s.dataset} as {model}" for (_, model), v in results.items() for s in v})
        raise UserError(
            "no score of these folders belongs into a table of the paper (found: "
            f"{', '.join(found) or 'none'}). The tables have the data sets "
            f"{', '.join(BENCHMARKS)}, and Table 3 each part of RealBlur "
            "with the model trained on it; --results FOLDER=MODEL says which model a folder is of "
            f"({', '.join(MODELS)})"
        )
    return [*tables, *all_scores_lines(results), *version_lines(results)]


def photograph_files(
    folder: Path, scores: Scores, data: Path | None = None
) -> dict[str, dict[str, Path]]:
    """The files 'blurry', 'restored' and 'sharp' of each photograph of a data set, by name.

    Args:
        folder: the result folder.
        scores: of the data set.
        data: folder with `input` (blurry) and `target` (sharp); None for those that the test run
            read, or else the layout's.

    Raises:
        UserError: a folder is not known, missing or empty, or no name occurs in all three.
    """
    dataset = scores.dataset
    if data is None and scores.input and scores.target and Path(scores.input).is_dir():
        blurry, sharp = Path(scores.input), Path(scores.target)
    elif (data := data or find_data(dataset)) is not None:
        blurry, sharp = data / "input", data / "target"
    else:
        raise UserError(f"its images are not here; name them with --data {dataset}=DIR")
    folders = {"blurry": blurry, "restored": restored_folder(folder, dataset), "sharp": sharp}
    found = {side: list_images(path, f"{side} images") for side, path in folders.items()}
    names = [name for name in found["restored"] if all(name in side for side in found.values())]
    if not names:
        raise UserError(
            f"no image name occurs in all of {', '.join(str(path) for path in folders.values())}"
        )
    return {name: {side: found[side][name] for side in folders} for name in names}


def comparisons(
    photographs: Mapping[str, Mapping[str, Path]], scores: Scores, *, title: str = ""
) -> list[Comparison]:
    """Photographs with their scores, for `hidiff.restore.page.write_page`.

    Args:
        photographs: see `photograph_files`.
        scores: of the data set.
        title: stands before each name.
    """
    by_name = {image.name: image for image in scores.scored}
    entries = []
    for name, files in photographs.items():
        image = by_name.get(name)
        texts = {}
        for metric, value in image.restored.items() if image else ():
            values = [image.blurry[metric]] if image and metric in image.blurry else []
            decibel = metric == "psnr"
            numbers = " → ".join(f"{v:.{2 if decibel else 4}f}" for v in [*values, value])
            texts[metric.upper()] = numbers + " dB" * decibel
        entries.append(
            Comparison(
                f"{title} {name}".strip(), files["blurry"], files["restored"], files["sharp"], texts
            )
        )
    return entries
