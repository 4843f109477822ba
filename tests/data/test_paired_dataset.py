"""Reading pairs: folders, LMDB, lists; conversions; and every kind of bad image."""

import re
import shlex

import cv2
import numpy as np
import pytest
import torch
from small_data import make_lmdb, make_pairs, picture, write_rgb

from hidiff import UserError
from hidiff.cli import call
from hidiff.data import CropRequest
from hidiff.data.image import read_image, to_float, to_uint8, write_image
from hidiff.registry import DATASETS

SIDES = {"lq": "input", "gt": "target"}


def check_data(arguments):
    return call("check", *map(str, arguments))


@pytest.fixture
def folder(tmp_path):
    make_pairs(tmp_path, 3)
    return tmp_path


def dataset(folder, **kwargs):
    roots = {f"dataroot_{key}": str(folder / side) for key, side in SIDES.items()}
    section = {"type": "PairedImageIRDataset", **roots, **kwargs}
    return DATASETS.build(section, "datasets.train", where="datasets.train")


def test_whole_images_are_float_rgb(folder):
    data = dataset(folder)
    assert len(data) == 3
    item = data[1]
    assert item["name"] == "scene-001"
    expected = cv2.imread(str(folder / "target" / "scene-001.png"))[..., ::-1] / 255.0
    assert item["gt"].shape == (3, 40, 48)
    assert item["gt"].dtype == torch.float32
    np.testing.assert_allclose(item["gt"].numpy().transpose(1, 2, 0), expected, atol=1e-7)


def test_without_ground_truth_there_is_only_the_blurry_image(folder):
    data = dataset(folder, dataroot_gt=None)
    assert set(data[0]) == {"lq", "name"}
    assert not data.has_gt


def test_lmdb_gives_what_the_folders_give(folder):
    pytest.importorskip("lmdb", reason="lmdb is an optional package")
    for side in SIDES.values():
        make_lmdb(folder / side, folder / f"{side}.lmdb")
    roots = {f"dataroot_{key}": str(folder / f"{side}.lmdb") for key, side in SIDES.items()}
    stored = dataset(folder, **roots, io_backend={"type": "lmdb"})
    files = dataset(folder)
    assert len(stored) == len(files) == 3
    for item, expected in zip(stored, files, strict=True):
        assert item["name"] == expected["name"]
        assert torch.equal(item["lq"], expected["lq"])
        assert torch.equal(item["gt"], expected["gt"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dataroot_lq": "x" * 300}, r"datasets\.train\.dataroot_lq: "),
        ({"dataroot_lq": "x\0"}, r"datasets\.train\.dataroot_lq: "),
        ({"meta_info_file": "x" * 300}, r"datasets\.train\.meta_info_file: "),
        ({"dataroot_lq": "/proc/no"}, r"datasets\.train\.dataroot_lq: the folder /proc/no "),
        ({"io_backend": {"type": "lmbd"}}, r"io_backend\.type: .*did you mean 'lmdb'"),
        ({"io_backend": {"type": "disk", "x": 1}}, r"io_backend\.x: "),
        ({"filename_tmpl": "x"}, r"filename_tmpl: 'x' must contain"),
        ({"meta_info_file": "/nowhere.txt"}, r"meta_info_file: .* /nowhere\.txt"),
    ],
)
def test_wrong_options_are_named(folder, kwargs, message):
    with pytest.raises(UserError, match=message):
        dataset(folder, **kwargs)


def test_a_pair_of_two_sizes_is_named(folder):
    write_rgb(folder / "input" / "scene-001.png", picture(1, 40, 50))
    with pytest.raises(UserError, match=r"'scene-001' has two sizes.*50×40.*48×40"):
        dataset(folder)[1]


def test_a_larger_sharp_image_is_cropped_but_for_training(folder):
    """As in the release: the part at the top left."""
    write_rgb(folder / "target" / "scene-001.png", picture(1, 44, 60))
    item = dataset(folder)[1]
    assert item["cropped"]
    assert torch.equal(
        item["gt"] * 255, torch.from_numpy(picture(1, 44, 60)[:40, :48]).permute(2, 0, 1)
    )
    assert "cropped" not in dataset(folder)[0]
    with pytest.raises(UserError, match=r"'scene-001' has two sizes.*48×40.*60×44"):
        dataset(folder)[CropRequest(1, 16, 16, (0,))]


def test_an_image_smaller_than_the_patch_is_named(folder):
    with pytest.raises(UserError, match=r"scene-000.png"):
        dataset(folder)[CropRequest(0, 32, 64, (0,))]


@pytest.mark.parametrize("kept", [0, 10, 200, -1, -20, None])
def test_a_damaged_image_is_named(folder, kept):
    """One that is cut short, and one with a flipped byte."""
    path = folder / "input" / "scene-001.png"
    data = bytearray(path.read_bytes())
    if kept is None:
        data[len(data) // 2] ^= 255
    path.write_bytes(data[:kept])
    with pytest.raises(UserError, match=r"scene-001\.png: "):
        dataset(folder)[1]


def test_grey_alpha_and_16_bit_images_are_converted(tmp_path):
    rgb = picture(0, 8, 8)
    grey = rgb[..., 0]
    alpha = np.dstack([rgb[..., ::-1], np.full((8, 8), 7, np.uint8)])
    deep = rgb.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "alpha.png"), alpha)
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.dstack([grey] * 3))
    assert np.array_equal(read_image(tmp_path / "alpha.png"), rgb)
    assert np.array_equal(read_image(tmp_path / "deep.png"), deep)
    np.testing.assert_allclose(to_float(deep), rgb / 255.0, atol=1e-7)
    assert np.array_equal(to_uint8(deep), rgb)


def test_writing_is_atomic_and_lossless(tmp_path):
    rgb = picture(0, 8, 9)
    write_image(tmp_path / "new" / "a.png", rgb)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), rgb)


def test_rounding_to_uint8_clips():
    values = np.array([-0.2, 0.0, 0.49999 / 255, 0.50001 / 255, 1.0, 1.7])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]


def test_one_folder_as_both_sides_is_refused(folder):
    (folder / "link").symlink_to(folder / "input")
    listed = folder / "pairs.txt"
    listed.write_text("scene-000.png\n")
    for changes in (
        {"dataroot_gt": str(folder / "link")},
        {"dataroot_gt": str(folder / "target" / ".." / "input")},
        {"dataroot_gt": str(folder / "link"), "meta_info_file": str(listed)},
    ):
        with pytest.raises(UserError, match=r"datasets\.train"):
            dataset(folder, **changes)


def test_a_file_as_folder_is_named_with_its_folder(folder):
    path = folder / "input" / "scene-000.png"
    with pytest.raises(UserError, match=rf"dataroot_lq: {path}"):
        dataset(folder, dataroot_lq=str(path))


def test_a_relative_folder_says_where_it_counts_from(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=rf"inputs.*{folder}"):
        dataset(folder, dataroot_lq="inputs")
    with pytest.raises(UserError, match=rf"meta_info_file: .* pairs\.txt .*{folder}"):
        dataset(folder, meta_info_file="pairs.txt")


@pytest.mark.parametrize("other", ["scene-001.PNG", "scene-001.jpg", "Scene-001.png"])
def test_names_that_differ_only_in_case_or_ending_are_refused(folder, other):
    (folder / "input" / other).write_bytes((folder / "input" / "scene-001.png").read_bytes())
    with pytest.raises(UserError, match=r"dataroot_lq: ") as caught:
        dataset(folder)
    assert other in str(caught.value)
    assert "scene-001.png" in str(caught.value)


def test_counterparts_that_differ_in_case_are_told(folder):
    (folder / "input" / "scene-001.png").rename(folder / "input" / "Scene-001.png")
    with pytest.raises(UserError, match=r"scene-001.*Scene-001"):
        dataset(folder)


def test_what_is_passed_over_is_a_notice(folder):
    assert dataset(folder).notices == []
    for name in ("b.avif", "a.GIF", ".hidden"):
        (folder / "input" / name).write_bytes(b"x")
    (folder / "input" / "more").mkdir()
    (folder / "input" / "folder.png").mkdir()
    data = dataset(folder)
    assert len(data) == 3
    (notice,) = data.notices
    assert notice.startswith("datasets.train.dataroot_lq: 4 ")
    assert "(a.GIF, b.avif, folder.png/, more/)" in notice


def test_the_advice_for_small_images_lists_them(folder, capsys):
    make_pairs(folder, 4)
    write_rgb(folder / "input" / "scene-003.png", picture(3, 64, 64))
    write_rgb(folder / "target" / "scene-003.png", picture(4, 64, 64))
    with pytest.raises(UserError) as caught:
        dataset(folder)[CropRequest(0, 32, 64, (0,))]
    command = re.search(r"hidiff check (.*) lists", str(caught.value))[1]
    assert check_data(shlex.split(command)) == 1
    output = capsys.readouterr().out
    assert [f"scene-00{i} " in output for i in range(4)] == [True, True, True, False]
