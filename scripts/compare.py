"""Draw blurry, restored and sharp photographs side by side, with an enlarged detail of each.

    python scripts/compare.py --input datasets/quickstart/test/input \\
        --restored results/quickstart/visualization/photographs \\
        --target datasets/quickstart/test/target --output comparison.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hidiff.data.image import EXTENSIONS, list_images, write_image
from hidiff.errors import UserError, friendly_errors
from hidiff.paper.sheet import comparison_sheet, photograph_row, spread


def choose(names: list[str], wanted: list[str] | None, rows: int) -> list[str]:
    """The images to draw: the wanted ones, or `rows` of them spread over the list.

    Raises:
        UserError: a wanted image is not among the restored ones.
    """
    if wanted:
        for name in wanted:
            if name not in names:
                raise UserError(f"--images {name}: no restored image has this name")
        return wanted
    return spread(names, rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit code.

    Raises:
        UserError: a mistake in the call, or an image that cannot be used.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, type=Path, help="folder of blurry images")
    parser.add_argument("--restored", required=True, type=Path, help="folder of restored images")
    parser.add_argument("--target", type=Path, help="folder of sharp images, if there are any")
    parser.add_argument(
        "--output", required=True, type=Path, help="picture to write, .png; must not exist"
    )
    parser.add_argument("--images", nargs="+", help="names (without ending) to draw")
    parser.add_argument("--rows", type=int, default=3, help="how many to draw otherwise")
    args = parser.parse_args(arguments)
    if args.rows < 1:
        raise UserError(f"--rows: must be at least 1, not {args.rows}")
    if args.output.suffix.lower() not in EXTENSIONS:
        raise UserError(f"--output {args.output}: name a picture, one of {', '.join(EXTENSIONS)}")
    if args.output.exists():
        raise UserError(
            f"--output: {args.output} exists and is not replaced; remove it or choose another name"
        )
    folders = {"blurry": args.input, "restored": args.restored, "sharp": args.target}
    names = {"blurry": "--input", "restored": "--restored", "sharp": "--target"}
    files = {k: list_images(v, names[k]) for k, v in folders.items() if v is not None}
    rows = []
    for name in choose(list(files["restored"]), args.images, args.rows):
        for side, images in files.items():
            if name not in images:
                raise UserError(f"{folders[side]} has no image called {name}")
        rows.append(photograph_row(name, {side: images[name] for side, images in files.items()}))
    write_image(args.output, comparison_sheet(rows))
    print(f"{args.output}: {len(rows)} photographs")
    return 0


if __name__ == "__main__":
    with friendly_errors():
        raise SystemExit(main())
