"""The quickstart's data: photographs that come with scikit-image; nothing is downloaded.

Training blurs `photographs/train` as it reads them (`options/quickstart/S1.yml`); the pairs in
`test` are other photographs with the same kind of blur.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import skimage

from hidiff.data.image import listing
from hidiff.options.yaml_file import shipped_options
from hidiff.prepare.synthetic import synthetic_dataset, write_pairs
from hidiff.utils.errors import UserError
from hidiff.utils.files import read_regular_file, write_bytes

PHOTOGRAPHS = {
    # The two motorcycles are one scene seen by two cameras: they must stay on one side.
    "train": ("motorcycle_left.png", "motorcycle_right.png", "chelsea.png", "rocket.jpg"),
    "test": ("astronaut.png", "camera.png", "coffee.png"),
}
"""Names in scikit-image's data folder."""


def make_quickstart(folder: Path) -> int:
    """Make what is missing of the data set.

    Returns:
        How many pairs were written.

    Raises:
        UserError: a file cannot be written, scikit-image came without its photographs, or other
            pictures are in the folder of the test pairs.
    """
    source = Path(skimage.__file__).parent / "data"
    for part, names in PHOTOGRAPHS.items():
        for name in names:
            if not (source / name).is_file():
                raise UserError(
                    f"{source / name} is missing: scikit-image {version('scikit-image')} is "
                    "installed without it; install it from PyPI: python -m pip install "
                    "--force-reinstall 'scikit-image>=0.22,<1'"
                )
            copy = folder / "photographs" / part / name
            if not copy.exists():
                write_bytes(copy, read_regular_file(source / name))
    expected = {f"{Path(name).stem}.png" for name in PHOTOGRAPHS["test"]}
    others = {path.name for path in (folder / "test").glob("*/*")} - expected
    if others:
        raise UserError(
            f"--output: {folder / 'test'} holds other pictures ({listing(others)}); remove or "
            "rename the folder, or name another --output"
        )
    dataset = synthetic_dataset(
        folder / "photographs" / "test", shipped_options() / "quickstart" / "S1.yml"
    )
    return write_pairs(dataset, folder / "test")
