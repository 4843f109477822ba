"""List the option files of this project, or copy one as a template.

hidiff options
hidiff options baselines/nafnet_32 -o mine.yml
hidiff options --reference
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from hidiff.cli.arguments import add_output
from hidiff.utils.errors import UserError, suggestion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the option file to print or copy")
    text = "print all options, as in docs/options.md"
    parser.add_argument("--reference", action="store_true", help=text)
    add_output(parser, "the file to write; it must not exist")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from hidiff.options import shipped_options

    if args.reference:
        from hidiff.options.reference import reference

        print(reference(), end="")
        return 0
    folder = shipped_options()
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yml"))
    }
    if args.name is None:
        if args.output is not None:
            raise UserError("-o: name the option file to copy")
        for name, path in files.items():
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            print(f"{name:36}{first.lstrip('# ')}")
        return 0
    name = args.name.removeprefix("options/").removesuffix(".yml")
    if name not in files:
        raise UserError(f"there is no option file '{name}'{suggestion(name, files)}")
    text = _with_own_base(files[name], args.output)
    if args.output is None:
        print(text, end="")
        return 0
    try:
        with args.output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"-o {args.output}: cannot be written ({error.strerror})") from None
    print(f"written to {args.output}")
    return 0


def _with_own_base(path: Path, output: Path | None) -> str:
    """The text of an option file, whose `base:` is found from where the copy will lie."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    folder = Path.cwd() if output is None else output.absolute().parent
    for number, line in enumerate(lines):
        if line.startswith("base: "):
            base = (path.parent / line.removeprefix("base: ").strip()).resolve()
            lines[number] = f"base: {Path(os.path.relpath(base, folder)).as_posix()}\n"
    return "".join(lines)
