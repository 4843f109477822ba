"""The paper's tables with the figures of result folders beside the published ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hidiff.errors import UserError
from hidiff.metrics.published import (
    BENCHMARKS,
    HI_DIFF,
    HI_DIFF_2,
    TABLES,
    Benchmark,
    Published,
    Score,
    find_row,
)
from hidiff.scoring.files import read_json, read_scores
from hidiff.typecheck import suggestion

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


@dataclass(frozen=True)
class Result:
    """The score of one result folder on one data set.

    Args:
        folder: the result folder.
        model: a key of `MODELS`.
        dataset: its name in the result folder.
        protocol: one of `hidiff.metrics.PROTOCOLS`.
        source: name of the file that says so.
        images: how many are in the mean.
        psnr, ssim: the means; PSNR in dB.
        remarks: what keeps the score from being the benchmark's.
        versions: of the libraries.
    """

    folder: Path
    model: str
    dataset: str
    protocol: str
    source: str
    images: int
    psnr: float
    ssim: float | None
    remarks: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def benchmark(self) -> Benchmark | None:
        """The benchmark of that name, if it is one."""
        return BENCHMARKS.get(self.dataset)

    def difference(self, published: Score) -> tuple[float | None, float | None]:
        """PSNR and SSIM minus published ones; None where the protocols make them incomparable."""
        assert self.benchmark is not None
        wanted = self.benchmark.protocol
        # The two differ in SSIM only.
        same_psnr = self.protocol == wanted or {self.protocol, wanted} == {"basicsr", "matlab"}
        psnr = self.psnr - published.psnr if same_psnr else None
        if self.protocol != wanted or self.ssim is None or published.ssim is None:
            return psnr, None
        return psnr, self.ssim - published.ssim


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


def collect_results(folder: Path, model: str) -> list[Result]:
    """All scores that are in a result folder.

    Read are the score_*.json files of the scoring programs and test.py's metrics.json.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    results = []
    readers = [(path, _from_scores) for path in sorted(folder.glob("score_*.json"))]
    if (folder / "metrics.json").is_file():
        readers.append((folder / "metrics.json", _from_metrics))
    if not readers:
        raise UserError(
            f"{folder} holds no scores (score_*.json or metrics.json); make them with test.py, "
            "scripts/evaluate_gopro_hide.py --dir or evaluate_realblur.py --dir"
        )
    for path, read in readers:
        try:
            results += read(path, folder, model)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not what this project's programs write; remove it") from None
    return results


def _from_scores(path: Path, folder: Path, model: str) -> list[Result]:
    content = read_scores(path)
    mean, counts = content["mean"], content["counts"]
    if not mean:
        return []
    remarks = _remarks(counts["failed"], counts["unaligned"])
    return [
        _result(folder, model, content["dataset"], content["protocol"], path, counts["scored"],
                mean, remarks, content["versions"])
    ]  # fmt: skip


def _from_metrics(path: Path, folder: Path, model: str) -> list[Result]:
    content = read_json(path)
    results = []
    for dataset, data in content["datasets"].items():
        protocol = data["protocol"]
        mean = {
            name: value
            for name, value in data["restored"].items()
            if protocol != "basicsr" or _is_plain(name, content["metrics"].get(name))
        }
        if "psnr" not in mean:
            continue
        remarks = _remarks(len(data["failed"]), len(data["unaligned"]))
        if content["upper_bound"]:
            remarks.append("stage 1 sees the sharp image: an upper bound, no deblurring score")
        results.append(
            _result(folder, model, dataset, protocol, path, data["scored"], mean, remarks,
                    content["versions"])
        )  # fmt: skip
    return results


def _is_plain(name: str, section: Mapping[str, Any] | None) -> bool:
    """Whether a metric of `val.metrics` is what its name says, on the whole image in RGB."""
    return section is None or (
        section.get("type") == f"calculate_{name}"
        and not section.get("crop_border")
        and not section.get("test_y_channel")
    )


def _remarks(failed: int, unaligned: int | None) -> list[str]:
    remarks = [f"{failed} images failed"] if failed else []
    if unaligned:
        remarks.append(f"{unaligned} images scored without alignment")
    return remarks


def _result(
    folder: Path,
    model: str,
    dataset: str,
    protocol: str,
    path: Path,
    images: int,
    mean: Mapping[str, Any],
    remarks: list[str],
    versions: Mapping[str, str],
) -> Result:
    benchmark = BENCHMARKS.get(dataset)
    if benchmark is not None and images != benchmark.images:
        remarks = [f"{images} images; the benchmark has {benchmark.images}", *remarks]
    if benchmark is not None and protocol != benchmark.protocol:
        remarks = [*remarks, f"protocol {protocol}, the published scores: {benchmark.protocol}"]
    psnr, ssim = (float(mean[n]) if n in mean else None for n in ("psnr", "ssim"))
    return Result(
        folder, model, dataset, protocol, path.name, images, psnr, ssim, tuple(remarks), versions
    )


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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown, one line each."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _score_text(psnr: float, ssim: float | None, digits: int) -> str:
    return f"{psnr:.2f}" if ssim is None else f"{psnr:.2f} / {ssim:.{digits}f}"


def _difference_text(psnr: float | None, ssim: float | None, digits: int, *, pair: bool) -> str:
    texts = ["–" if psnr is None else f"{psnr:+.2f}"]
    if pair:
        texts.append("–" if ssim is None else f"{ssim:+.{digits}f}")
    return " / ".join(texts)


def best_results(results: Iterable[Result]) -> dict[str, Result]:
    """For each benchmark the result to compare: that of its own protocol, if there is one."""
    best: dict[str, Result] = {}
    for result in results:
        if result.benchmark is None:
            continue
        known = best.get(result.dataset)
        if known is None or known.protocol != known.benchmark.protocol == result.protocol:
            best[result.dataset] = result
    return best


def table_lines(number: int, results: Iterable[Result]) -> list[str]:
    """One table of the paper with the rows that the results add to it; empty when there are none.

    Args:
        number: a key of `hidiff.metrics.published.TABLES`.
    """
    rows = TABLES[number]
    benchmarks = [name for name in BENCHMARKS if any(name in row.scores for row in rows)]
    sizes = rows[-1].parameters is not None
    digits = 4 if number == 1 else 3
    groups: dict[tuple[Path, str], list[Result]] = {}
    for result in results:
        # Table 3 tests each model on the part of RealBlur that it was trained on.
        if number in MODELS[result.model] and (number != 3 or result.dataset == result.model):
            groups.setdefault((result.folder, result.model), []).append(result)

    notes = _Footnotes()
    ours: list[list[str]] = []
    for (folder, model), members in groups.items():
        best = best_results(members)
        shown = [best.get(name) for name in benchmarks]
        if any(shown):
            row = find_row(number, MODELS[model][number])
            ours += _own_rows(folder, row, shown, notes, digits, sizes)
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
                _score_text(*row.scores[name], digits) if name in row.scores else "N/A"
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


def _own_rows(
    folder: Path,
    published: Published,
    shown: Sequence[Result | None],
    notes: _Footnotes,
    digits: int,
    sizes: bool,
) -> list[list[str]]:
    """The row of a result folder, and that of its differences from the published one."""
    scores = [f"**this project**, {folder.resolve().name}", *(["", ""] if sizes else [])]
    differences = [f"difference from {published.method}", *(["", ""] if sizes else [])]
    for result in shown:
        if result is None:
            scores.append("")
            differences.append("")
            continue
        row = published.scores[result.dataset]
        ssim = result.ssim if row.ssim is not None else None
        scores.append(_score_text(result.psnr, ssim, digits) + notes.marks(result.remarks))
        differences.append(
            _difference_text(*result.difference(row), digits, pair=row.ssim is not None)
        )
    return [scores, differences]


def all_scores_lines(results: Iterable[Result], title: str = "All scores") -> list[str]:
    """Every one of the scores, with its protocol, count and source."""
    rows = [
        [
            result.folder.resolve().name,
            result.dataset,
            result.protocol,
            str(result.images),
            f"{result.psnr:.4f}",
            "–" if result.ssim is None else f"{result.ssim:.4f}",
            "; ".join(result.remarks),
            result.source,
        ]
        for result in results
    ]
    header = ["folder", "data set", "protocol", "images", "PSNR (dB)", "SSIM", "remarks", "file"]
    return [f"## {title}", "", *markdown_table(header, rows), ""]


def version_lines(results: Iterable[Result]) -> list[str]:
    """The library versions behind the scores, each combination once."""
    texts = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in result.versions.items())
        for result in results
    )
    return ["## Versions", "", *(f"- {text}" for text in texts), ""]


def report_lines(results: Sequence[Result]) -> list[str]:
    """The tables 2, 3, 4 and 1, as far as the results add rows to them, then all scores.

    Data sets that are none of the paper's have a section of their own, without published figures.

    Raises:
        UserError: none of the results belongs into a table or that section.
    """
    tables = [line for number in (2, 3, 4, 1) for line in table_lines(number, results)]
    own = [result for result in results if result.benchmark is None]
    if own:
        tables += all_scores_lines(own, "Other data sets, not in the paper")
    if not tables:
        found = ", ".join(sorted({f"{r.dataset} as {r.model}" for r in results})) or "none"
        raise UserError(
            f"no score of these folders belongs into a table of the paper (found: {found}). The "
            f"tables have the data sets {', '.join(BENCHMARKS)}, and Table 3 each part of RealBlur "
            "with the model trained on it; --results FOLDER=MODEL says which model a folder is of "
            f"({', '.join(MODELS)})"
        )
    return [*tables, *all_scores_lines(results), *version_lines(results)]
