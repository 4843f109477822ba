"""Bring published weights or data sets: hidiff download NAME, hidiff download data NAME.

    hidiff download                     # what there is
    hidiff download gopro               # HI-Diff's weights for GoPro; then: hidiff restore -m gopro
    hidiff download data gopro          # a data set, unpacked into datasets/ and checked
    hidiff download gopro --from FILE   # of a download made in a browser

Weights become one model file in the user's folder (HIDIFF_HOME), found by name from everywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hidiff.cli.arguments import add_overwrite
from hidiff.utils.errors import UserError, suggestion

if TYPE_CHECKING:
    from hidiff.weights.download import Download


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="of weights, or data and a data set's name")
    text = "take a download that was made in a browser"
    add("--from", dest="source", type=Path, metavar="FILE_OR_FOLDER", help=text)
    text = "also put net_*.pth where the released option files look"
    add("--released-layout", action="store_true", help=text)
    text = "of data sets (default: datasets)"
    add("--root", type=Path, default=Path("datasets"), help=text)
    add_overwrite(parser, "bring anew what is there")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.weights.download import DATA, WEIGHTS, fetch, install
    from hidiff.weights.experiment import downloaded_model

    data = args.names[:1] == ["data"]
    table, names = (DATA, args.names[1:]) if data else (WEIGHTS, args.names)
    for name in names:
        if name not in table:
            raise UserError(f"there is no download '{name}'{suggestion(name, table)}")
    if not names:
        print("\n".join(_listing()))
        return 0
    if args.source is not None and len(names) > 1:
        raise UserError("--from: name one download")
    for name in names:
        entry = table[name]
        if data:
            _place_data(name, entry, args)
            continue
        if downloaded_model(name).is_file() and not args.overwrite and args.source is None:
            print(f"{name} is there already: {downloaded_model(name)}")
        else:
            if entry.licence is None:
                print(f"{name}: no licence is stated at {entry.page}; ask its authors before use")
            install(name, entry, args.source or fetch(name, entry))
            print(f"written to {downloaded_model(name)}; use it with -m {name}")
        if args.released_layout:
            _write_released(name, entry)
    return 0


def _listing() -> list[str]:
    """What there is to download."""
    from hidiff.utils.tables import text_table
    from hidiff.weights.download import DATA, WEIGHTS
    from hidiff.weights.experiment import downloaded_model

    rows = []
    for name, entry in WEIGHTS.items():
        path = downloaded_model(name)
        state = "there" if path.is_file() else "would be"
        licence = entry.licence or "none stated"
        rows.append([name, entry.what, entry.size or "?", licence, f"{state}: {path}"])
    for name, entry in DATA.items():
        rows.append([f"data {name}", entry.what, entry.size or "?", "see its page", "datasets/"])
    return text_table(["name", "what", "size", "licence", "where"], rows)


def _write_released(name: str, entry: Download) -> None:
    from hidiff.weights.download import RELEASED
    from hidiff.weights.export import unpack
    from hidiff.weights.find import find_model

    if entry.released is None:
        raise UserError(f"--released-layout: no released option file is for {name}")
    for path in unpack(find_model(name), RELEASED / entry.released, overwrite=True):
        print(f"written to {path}")


def _place_data(name: str, entry: Download, args: argparse.Namespace) -> None:
    from hidiff.prepare.distributions import place_download
    from hidiff.weights.archives import unpacked
    from hidiff.weights.download import fetch

    with unpacked(args.source or fetch(name, entry), args.root) as folder:
        lines = place_download(folder, args.root)
    print("\n".join(lines))
