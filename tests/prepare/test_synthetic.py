"""Synthetic pairs as files, and the sheet of the parts."""

import numpy as np
import pytest
import yaml
from small_data import picture, write_rgb

from hidiff import UserError
from hidiff.cli import call
from hidiff.data.image import read_image
from hidiff.data.synthetic_dataset import SyntheticBlurDataset
from hidiff.report.synthesis import PATCH


def main(arguments):
    return call("prepare", *map(str, arguments))


OFF = dict.fromkeys(("shake", "object", "defocus", "saturation", "processing", "jpeg"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        write_rgb(folder / f"photo-{number}.png", picture(number, 256, 260))
    return folder


@pytest.fixture
def option_file(tmp_path):
    """A mixture: only its second entry is synthetic, and only noisy."""
    entries = [
        {"type": "PairedImageIRDataset", "dataroot_lq": "a", "dataroot_gt": "b"},
        {"type": "SyntheticBlurDataset", "dataroot_gt": "elsewhere", "cache": "cache",
         "scale": [0.5, 0.5], "blur": {**OFF, "noise": {"probability": 1}}},
    ]  # fmt: skip
    path = tmp_path / "train.yml"
    path.write_text(yaml.safe_dump({"datasets": {"train": entries}}))
    return path


def test_pairs_are_those_that_testing_reads_and_more(photographs, tmp_path, option_file):
    arguments = ["synthetic", "--input", str(photographs), "--output", str(tmp_path / "pairs")]
    arguments += ["--opt", str(option_file), "--count", "3"]
    assert main(arguments) == 0
    names = ["photo-0-2.png", "photo-0.png", "photo-1.png"]
    for side in ("input", "target"):
        assert sorted(p.name for p in (tmp_path / "pairs" / side).iterdir()) == names
    data = SyntheticBlurDataset(
        where="x",
        dataroot_gt=str(photographs),
        scale=(0.5, 0.5),
        blur={**OFF, "noise": {"probability": 1}},
    )
    blurry, sharp = (
        read_image(tmp_path / "pairs" / s / "photo-1.png") for s in ("input", "target")
    )
    item = data[1]
    np.testing.assert_array_equal(blurry, np.rint(item["lq"].numpy().transpose(1, 2, 0) * 255))
    np.testing.assert_array_equal(sharp, np.rint(item["gt"].numpy().transpose(1, 2, 0) * 255))

    kept = tmp_path / "pairs" / "input" / "photo-0.png"
    kept.write_bytes(b"mine")
    assert main(arguments) == 0
    assert kept.read_bytes() == b"mine"


def test_the_sheet_has_a_row_for_each_part_that_is_on(photographs, tmp_path, option_file):
    sheet = tmp_path / "sheet.png"
    command = ["synthetic", "--input", str(photographs), "--sheet", str(sheet)]
    assert main([*command, "--opt", str(option_file)]) == 0
    height, width = read_image(sheet).shape[:2]
    assert height // PATCH == 3  # none, noise, all
    assert width // PATCH == 2


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ([], "--output"),
        (["--output", "x", "--count", "0"], "--count"),
        (["--sheet", "x.png", "--opt", "options/quickstart/S1.yml"], "--opt"),
    ],
)
def test_mistakes_name_the_argument(photographs, arguments, place):
    with pytest.raises(UserError, match=place):
        main(["synthetic", "--input", str(photographs), *arguments])
