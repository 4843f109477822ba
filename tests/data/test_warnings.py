"""What is said of swapped, identical and shared folders, and of one-sided orientation tags."""

import cv2
import pytest
from PIL import Image
from small_data import make_pairs, picture, write_rgb

from hidiff.data import find_pairs
from hidiff.data.warnings import pair_warnings, shared_pairs


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        sharp = picture(number, 40, 48)
        write_rgb(tmp_path / "target" / f"{number}.png", sharp)
        write_rgb(tmp_path / "input" / f"{number}.png", cv2.blur(sharp, (5, 5)))
    return tmp_path


def test_good_pairs_and_single_images_are_not_mentioned(folder):
    assert pair_warnings(find_pairs(folder).pairs, "here") == []
    assert pair_warnings(find_pairs(blurry=folder / "input").pairs, "here") == []


def test_swapped_folders(folder):
    pairs = find_pairs(blurry=folder / "target", sharp=folder / "input").pairs
    (warning,) = pair_warnings(pairs, "here")
    assert warning.startswith("here: ")
    assert "swapped" in warning


def test_identical_sides(folder):
    write_rgb(folder / "input" / "0.png", picture(0, 40, 48))
    (warning,) = pair_warnings(find_pairs(folder).pairs, "here")
    assert "identical" in warning


def test_orientation_on_one_side(folder):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(cv2.blur(picture(0, 40, 48), (5, 5))).save(folder / "input/0.png", exif=exif)
    (warning,) = pair_warnings(find_pairs(folder).pairs, "here")
    assert "orientation" in warning


def test_training_images_in_the_validation(folder):
    pairs = find_pairs(folder).pairs
    make_pairs(folder / "other", 2)
    others = find_pairs(folder / "other").pairs
    assert shared_pairs(pairs, {"val": others}) == []
    (warning,) = shared_pairs(pairs, {"val": [*others, pairs[0]]})
    assert warning.startswith("val: 1 of its 3 pairs")
