"""The one table of results folders: a row a model, the paper's rows beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hidiff.evaluation.summary import remarks
from hidiff.metrics.published import BENCHMARKS, HI_DIFF, TABLE_4, TABLES, Published
from hidiff.report.rows import LEVEL, RESAMPLES, Row, difference
from hidiff.utils.tables import markdown_table

UNITS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "niqe": "NIQE", "musiq": "MUSIQ"}
DIGITS = {"psnr": 2}
ABOUT_INTERVALS = (
    f"An interval holds {LEVEL:.0%} of the means of {RESAMPLES} bootstrap samples of the images "
    "that both have. It says nothing of other training seeds, and is too narrow where images are "
    "alike, such as frames of one scene."
)


@dataclass(frozen=True)
class Table:
    """The rows of one data set and protocol.

    Args:
        title: what it is of.
        header: one text a column.
        cells: a row a model.
        notes: what to know about the scores.
    """

    title: str
    header: list[str]
    cells: list[list[str]]
    notes: list[str]

    def markdown(self) -> list[str]:
        """As lines of Markdown."""
        numbers = range(2, len(self.header))
        lines = [f"## {self.title}", "", *markdown_table(self.header, self.cells, numbers=numbers)]
        return [*lines, "", *(f"- {note}" for note in self.notes), *([""] if self.notes else [])]

    def latex(self) -> list[str]:
        """As lines of LaTeX, for the package booktabs."""
        columns = "ll" + "r" * (len(self.header) - 2)
        body = [f"{' & '.join(map(_latex, row))} \\\\" for row in (self.header, *self.cells)]
        return [
            f"% {self.title}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            body[0],
            "\\midrule",
            *body[1:],
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]


def _latex(text: str) -> str:
    """Text as LaTeX takes it, scores with their spread in mathematics."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    return re.sub("[±−×Δ]", lambda m: f"${LATEX_SIGNS[m[0]]}$", text)


LATEX_SIGNS = {"±": r"\pm", "−": "-", "×": r"\times", "Δ": r"\Delta"}


def make_tables(
    rows: Sequence[Row], *, baseline: str | None = None, paper: Sequence[int] = ()
) -> list[Table]:
    """A table for each data set and protocol.

    Args:
        rows: see `read_rows`.
        baseline: label of the row that the others' differences are from.
        paper: tables of the paper whose rows are shown; by default those of the models' training
            sets.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.runs[0].dataset, row.runs[0].protocol), []).append(row)
    return [_table(*key, group, baseline, paper) for key, group in groups.items()]


def _table(
    dataset: str, protocol: str, rows: list[Row], baseline: str | None, paper: Sequence[int]
) -> Table:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    base = next((row for row in rows if row.label == baseline), None)
    columns = ["model", "trained on", "images"]
    columns += [column for m in metrics for column in _columns(m, base)]
    columns += ["seeds", "s/image", "params (M)"]
    lines = [_blurry(rows[0], columns, metrics), *(_line(row, metrics, base) for row in rows)]
    lines += _published(dataset, protocol, rows, paper)
    # A column that no row fills says nothing.
    header = [c for c in columns if any(line.get(c) for line in lines)]
    cells = [[line.get(column, "") for column in header] for line in lines if line]
    notes = [f"{row.label}: {note}" for row in rows for note in _notes(row)]
    notes += [ABOUT_INTERVALS] if base is not None and len(rows) > 1 else []
    return Table(f"{dataset}, protocol {protocol}", header, cells, notes)


def _columns(metric: str, base: Row | None) -> list[str]:
    unit = UNITS.get(metric, metric)
    if base is None:
        return [unit]
    return [unit, f"Δ {unit} from {base.label} [{LEVEL:.0%} interval]", f"higher {unit}"]


def _number(metric: str, value: float) -> str:
    return f"{value:.{DIGITS.get(metric, 4)}f}"


def _blurry(row: Row, columns: Sequence[str], metrics: Sequence[str]) -> dict[str, str]:
    """The scores of the images before they are restored; empty where they were not measured."""
    means = row.runs[0].mean("blurry")
    found = {UNITS.get(m, m): _number(m, means[m]) for m in metrics if m in means}
    return {"model": "blurry input", **found} if found else {}


def _line(row: Row, metrics: Sequence[str], base: Row | None) -> dict[str, str]:
    cells = {
        "model": row.label,
        "trained on": row.trained_on,
        "images": str(len(row.runs[0].scored)),
        "seeds": row.seeds,
        "s/image": "" if row.seconds is None else f"{row.seconds:.3g}",
        "params (M)": "" if row.parameters is None else f"{row.parameters / 1e6:.2f}",
    }
    for metric in row.metrics:
        mean, spread = row.spread(metric)
        names = _columns(metric, base)
        cells[names[0]] = _number(metric, mean)
        if spread is not None:
            cells[names[0]] += f" ± {_number(metric, spread)}"
        found = None
        if base is not None and base is not row:
            found = difference(row.values(metric), base.values(metric))
        if found is not None:
            digits = DIGITS.get(metric, 4) + 1
            cells[names[1]] = f"{found.mean:+.{digits}f}"
            if found.low is not None and found.high is not None:
                cells[names[1]] += f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
            cells[names[2]] = f"{found.higher} of {found.images}"
    return cells


def _notes(row: Row) -> list[str]:
    """What to know about a row's scores."""
    found: list[str] = []
    for run in row.runs:
        if run.failed:
            found.append(f"{len(run.failed)} images have no score")
        found += remarks(run)
    return list(dict.fromkeys(found))


def _published(
    dataset: str, protocol: str, rows: Sequence[Row], paper: Sequence[int]
) -> list[dict[str, str]]:
    """The paper's rows for a benchmark, where the protocols are comparable.

    Without `paper`: all methods of the table whose training set the models' files name, else
    HI-Diff's rows alone.
    """
    benchmark = BENCHMARKS.get(dataset)
    # 'basicsr' and 'matlab' differ in SSIM only.
    if benchmark is None or {protocol, benchmark.protocol} not in (
        {benchmark.protocol}, {"basicsr", "matlab"}
    ):  # fmt: skip
        return []
    sets = {row.training_set for row in rows}
    lines = []
    for number in paper or (2, 3):
        # Table 3 has each part of RealBlur for training and testing.
        origin = dataset if number == 3 else "GoPro"
        for method in TABLES[number]:
            if dataset in method.scores and (
                paper or origin in sets or (None in sets and method.method == HI_DIFF)
            ):
                known = benchmark.protocol == protocol
                lines.append(_published_line(method, number, dataset, origin, with_ssim=known))
    return lines


def _published_line(
    method: Published, number: int, dataset: str, origin: str, *, with_ssim: bool
) -> dict[str, str]:
    score = method.scores[dataset]
    cells = {
        "model": f"{method.method}, paper's Table {number}",
        "trained on": origin,
        "images": str(BENCHMARKS[dataset].images),
        UNITS["psnr"]: f"{score.psnr:.2f}",
    }
    if score.ssim is not None and with_ssim:
        cells[UNITS["ssim"]] = str(score.ssim)
    sizes = {row.method: row.parameters for row in TABLE_4}
    parameters = method.parameters or sizes.get(method.method)
    # HI-Diff of Table 3 is another network than that of Table 4.
    if parameters is not None and number != 3:
        cells["params (M)"] = f"{parameters:.2f}"
    return cells
