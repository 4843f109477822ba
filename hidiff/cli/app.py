"""A page on this machine to drop photographs on: hidiff app."""

from __future__ import annotations

import argparse

from hidiff.cli.arguments import add_device

EPILOG = """\
The page is served to this machine only (127.0.0.1), nothing is sent anywhere, and uploads and
results are removed when the program ends (Ctrl-C). It needs one more package: pip install gradio"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    text = (
        "a model to choose from, as of restore; may be given several times (default: the bundled "
        "model and those that were downloaded)"
    )
    parser.add_argument("-m", "--model", action="append", metavar="MODEL", help=text)
    parser.add_argument("--port", type=int, metavar="N", help="default: a free one from 7860 on")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command until it is interrupted; returns its exit code."""
    import threading

    from hidiff.cli.restore import find_device
    from hidiff.restore.app import serve
    from hidiff.weights.experiment import downloaded_models

    models = args.model or [*downloaded_models(), "bundled"]
    with serve(models, find_device(args.device), args.port) as address:
        print(f"open {address} in a browser; Ctrl-C ends the page", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("ended")
    return 0
