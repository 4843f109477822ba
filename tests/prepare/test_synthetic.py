"""Synthetic pairs as files, and the quickstart's data, which are such pairs."""

import numpy as np
import pytest
import yaml
from small_data import picture, write_rgb

from hidiff import UserError
from hidiff.cli import call
from hidiff.data.image import read_image
from hidiff.data.synthetic_dataset import SyntheticBlurDataset
from hidiff.prepare import quickstart
from hidiff.prepare.quickstart import make_quickstart

NOISE_ALONE = {
    **dict.fromkeys(("shake", "object", "defocus", "saturation", "processing", "jpeg")),
    "noise": {"probability": 1},
}


def main(arguments):
    return call("prepare", *map(str, arguments))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        write_rgb(folder / f"photo-{number}.png", picture(number, 256, 260))
    return folder


@pytest.fixture
def option_file(tmp_path):
    section = {
        "type": "SyntheticBlurDataset",
        "dataroot_gt": "elsewhere",
        "cache": "cache",
        "scale": [0.5, 0.5],
        "blur": NOISE_ALONE,
    }
    path = tmp_path / "train.yml"
    path.write_text(yaml.safe_dump({"datasets": {"train": section}}))
    return path


def test_pairs_are_those_that_testing_reads_and_more(photographs, tmp_path, option_file):
    arguments = ["synthetic", "--input", photographs, "--output", tmp_path / "pairs"]
    arguments += ["--opt", option_file, "--count", "3"]
    assert main(arguments) == 0
    names = ["photo-0-2.png", "photo-0.png", "photo-1.png"]
    for side in ("input", "target"):
        assert sorted(p.name for p in (tmp_path / "pairs" / side).iterdir()) == names
    data = SyntheticBlurDataset(
        where="x", dataroot_gt=str(photographs), scale=(0.5, 0.5), blur=NOISE_ALONE
    )
    item = data[1]
    for side, key in (("input", "lq"), ("target", "gt")):
        written = read_image(tmp_path / "pairs" / side / "photo-1.png")
        np.testing.assert_array_equal(written, np.rint(item[key].numpy().transpose(1, 2, 0) * 255))

    kept = tmp_path / "pairs" / "input" / "photo-0.png"
    kept.write_bytes(b"mine")
    assert main(arguments) == 0
    assert kept.read_bytes() == b"mine"


def test_an_option_file_without_synthetic_blur_is_refused(photographs, tmp_path):
    path = tmp_path / "other.yml"
    path.write_text("datasets: {train: {type: PairedImageIRDataset, dataroot_gt: a}}")
    with pytest.raises(UserError, match="--opt"):
        main(["synthetic", "--input", photographs, "--output", tmp_path / "x", "--opt", path])


def test_the_quickstart_has_blurry_pairs_of_other_photographs(tmp_path):
    folder = tmp_path / "quickstart"
    assert make_quickstart(folder) == 3
    names = {part: set(files) for part, files in quickstart.PHOTOGRAPHS.items()}
    assert not names["train"] & names["test"]
    errors, sizes = [], []
    for name in sorted(path.name for path in (folder / "test/input").iterdir()):
        blurry, sharp = (read_image(folder / "test" / s / name) for s in ("input", "target"))
        assert blurry.shape == sharp.shape
        sizes.append(sharp.shape[:2])
        errors.append(((blurry - sharp.astype(float)) ** 2).mean())
    assert any(height % 8 and width % 8 for height, width in sizes)
    assert 20 < np.mean(10 * np.log10(255**2 / np.array(errors))) < 28
    # What is missing is made again, as it was.
    victim = folder / "test/input/coffee.png"
    before = victim.read_bytes()
    victim.unlink()
    assert make_quickstart(folder) == 1
    assert victim.read_bytes() == before
    assert make_quickstart(folder) == 0


def test_mistakes_about_the_quickstart_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file"):
        make_quickstart(tmp_path / "file" / "set")
    write_rgb(tmp_path / "old/test/input/astronaut-1.png", picture(1, 32, 32))
    with pytest.raises(UserError, match=r"astronaut-1\.png"):
        make_quickstart(tmp_path / "old")
    monkeypatch.setattr(quickstart.skimage, "__file__", str(tmp_path / "skimage/__init__.py"))
    with pytest.raises(UserError, match=r"motorcycle_left\.png"):
        make_quickstart(tmp_path / "set")
