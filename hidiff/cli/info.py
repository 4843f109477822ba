"""Say what is known about a model: hidiff info MODEL."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hidiff.utils.errors import printable

if TYPE_CHECKING:
    from hidiff.weights.find import FoundModel

EPILOG = "All files are read and checked; nothing is written."


def lines_about(model: FoundModel) -> list[str]:
    """A table of what is known about a model, its scores, and notices."""
    from hidiff.utils.tables import text_table

    rows = [["model", model.description], ["name", model.name]]
    for name, network in model.model.networks().items():
        parameters = list(network.parameters())
        kinds = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
        rows.append([name, f"{sum(p.numel() for p in parameters)} parameters, {kinds}"])
    rows += [[key, _text(value)] for key, value in model.options.items()]
    for key in ("step", "patch_size", "data", "licence", "source", "versions"):
        rows.append([key.replace("_", " "), _text(getattr(model, key))])
    width = max(len(key) for key, _ in rows)
    lines = [f"{key:{width}}  {value}" for key, value in rows]
    if model.scores:
        metrics = sorted({metric for row in model.scores for metric in row["restored"]})
        header = ["data set", "protocol", "local", "source", "images", *metrics]
        lines += ["", *text_table(header, [_score_row(row, metrics) for row in model.scores])]
    return [printable(line) for line in (*lines, *model.notices)]


def _text(value: Any) -> str:
    if value is None or value == {}:
        return "not known"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in value.items() if part is not None)
    return str(value)


def _score_row(row: Mapping[str, Any], metrics: list[str]) -> list[str]:
    means = row["restored"]
    source = row["source"] + " (upper bound)" * bool(row.get("upper_bound"))
    cells = [f"{float(means[metric]):.4f}" if metric in means else "-" for metric in metrics]
    known = (row["dataset"], row["protocol"], row.get("local") or "?", source)
    return [*known, str(row.get("images", "-")), *cells]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model file, bundled, a download (gopro), an experiment's name or folder "
        "(NAME@best, NAME@STEP), published weights, or hf:OWNER/NAME",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.evaluation.results import with_scores
    from hidiff.weights.find import find_model

    print("\n".join(lines_about(with_scores(find_model(args.model)))))
    return 0
