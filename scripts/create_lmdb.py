"""Put a folder of images into an LMDB, for file systems that are slow with many small files.

    python scripts/create_lmdb.py --input datasets/GoPro/crop/train/input_crops \
        --output datasets/GoPro/crop/train/input_crops.lmdb

The files' bytes are stored as they are, so nothing is lost; every image is decoded once to see
that it is sound. Needs the package lmdb: pip install lmdb
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hidiff.data.lmdb_store import create_lmdb
from hidiff.errors import friendly_errors


def main(arguments: list[str] | None = None) -> None:
    """Run the program.

    Raises:
        UserError: see `create_lmdb`.
    """
    parser = argparse.ArgumentParser(description="Put a folder of images into an LMDB.")
    parser.add_argument("--input", required=True, metavar="DIR", help="the folder of images")
    parser.add_argument(
        "--output", required=True, metavar="X.lmdb", help="the LMDB to make; must not exist"
    )
    options = parser.parse_args(arguments)
    count = create_lmdb(options.input, options.output)
    print(f"{options.output}: {count} images")


if __name__ == "__main__":
    with friendly_errors():
        main()
