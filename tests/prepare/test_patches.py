"""Where patches lie, and what cutting GoPro writes, keeps and reports."""

import dataclasses

import numpy as np
import pytest
import small_programs

from hidiff.cli import call
from hidiff.data.image import read_image, write_image
from hidiff.prepare.patches import CropTask, check_existing, cut_pair, piece_offsets
from hidiff.utils.errors import UserError


def main(arguments):
    return call("prepare", *map(str, arguments))


SMALL = ["--size", "12", "--overlap", "4", "--val_size", "8"]


def picture(seed: int, height: int = 20, width: int = 28) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def task(tmp_path):
    """A 20 × 28 pair, patches of 12 that overlap by 4."""
    for side, seed in (("in", 1), ("gt", 2)):
        write_image(tmp_path / side / "f.png", picture(seed))
    images = (tmp_path / "in/f.png", tmp_path / "gt/f.png")
    return CropTask("f", images, (tmp_path / "a", tmp_path / "b"), 12, 4)


@pytest.mark.parametrize(
    ("length", "size", "overlap", "expected"),
    [
        (1280, 512, 256, [0, 256, 512, 768]),
        (720, 512, 256, [0, 208]),
        (512, 512, 256, [0]),
        (513, 512, 256, [0, 1]),
        (769, 512, 256, [0, 256, 257]),
        (1280, 512, 0, [0, 512, 768]),
        (720, 256, None, [232]),
        (257, 256, None, [0]),
    ],
)
def test_offsets(length, size, overlap, expected):
    assert piece_offsets(length, size, overlap) == expected


@pytest.mark.parametrize("overlap", [256, None])
def test_an_axis_that_is_too_short(overlap):
    with pytest.raises(UserError, match="511 pixels"):
        piece_offsets(511, 512, overlap)


def test_a_gopro_frame_gives_eight_patches_row_by_row(task):
    pieces = dataclasses.replace(task, size=512, overlap=256).areas(720, 1280)
    assert list(pieces) == [f"f-{n}.png" for n in range(1, 9)]
    corners = [(rows.start, columns.start) for rows, columns in pieces.values()]
    assert corners == [(top, left) for top in (0, 208) for left in (0, 256, 512, 768)]


def test_patches_are_the_right_pixels_under_the_right_names(task):
    result = cut_pair(task)
    # Tops 0, 8; lefts 0, 8, 16.
    assert result.names == tuple(f"f-{n}.png" for n in range(1, 7))
    assert (result.written, result.problem) == (6, None)
    for folder, seed in zip(task.folders, (1, 2), strict=True):
        assert names(folder) == list(result.names)
        np.testing.assert_array_equal(read_image(folder / "f-3.png"), picture(seed)[:12, 16:28])
        np.testing.assert_array_equal(read_image(folder / "f-5.png"), picture(seed)[8:20, 8:20])


def test_centre_crop_keeps_the_name(task):
    assert cut_pair(dataclasses.replace(task, size=8, overlap=None)).names == ("f.png",)
    np.testing.assert_array_equal(read_image(task.folders[1] / "f.png"), picture(2)[6:14, 10:18])


def test_only_missing_patches_are_written_and_a_whole_pair_is_not_decoded(task):
    cut_pair(task)
    lost, kept = (folder / "f-2.png" for folder in task.folders)
    lost.unlink()
    time = kept.stat().st_mtime_ns
    assert cut_pair(task).written == 1
    assert kept.stat().st_mtime_ns == time
    np.testing.assert_array_equal(read_image(lost), picture(1)[:12, 8:20])
    task.images[1].write_bytes(b"damaged since")
    result = cut_pair(task)
    assert (result.written, result.problem, len(result.names)) == (0, None, 6)


def test_problems_are_reported_and_nothing_is_written(task):
    lq, gt = task.images
    write_image(gt, picture(2, 20, 27))
    assert "28×20 and 27×20" in cut_pair(task).problem
    write_image(lq, picture(1, 11, 28))
    assert "11 pixels" in cut_pair(task).problem
    lq.write_bytes(b"no image")
    assert str(lq) in cut_pair(task).problem
    assert not any(folder.exists() for folder in task.folders)


@pytest.mark.parametrize(("size", "overlap"), [(10, 4), (12, 5), (12, 0), (20, 4)])
def test_existing_patches_of_other_settings_are_refused(task, size, overlap):
    check_existing(task)
    cut_pair(dataclasses.replace(task, size=size, overlap=overlap))
    with pytest.raises(UserError, match=r"f-\d\.png"):
        check_existing(task)


def test_existing_patches_of_other_images_are_refused(task):
    cut_pair(task)
    check_existing(task)
    write_image(task.images[0], picture(3))
    with pytest.raises(UserError, match=r"f-1\.png"):
        check_existing(task)


# The program -------------------------------------------------------------------------------------


@pytest.fixture
def gopro(tmp_path):
    """Two training pairs and one test pair of 20 × 28."""
    for seed, name in enumerate(("train/{}/S-1.png", "train/{}/S-2.png", "test/{}/T-1.png")):
        write_image(tmp_path / "GoPro" / name.format("input"), picture(2 * seed))
        write_image(tmp_path / "GoPro" / name.format("target"), picture(2 * seed + 1))
    return tmp_path / "GoPro"


def run(root, *arguments) -> int:
    return main(["patches", "--root", str(root), "--jobs", "1", *SMALL, *arguments])


def test_everything_is_cut_and_a_second_run_completes_the_first(gopro, capsys):
    assert run(gopro) == 0
    crops = gopro / "crop/train"
    for side in ("input_crops", "target_crops"):
        assert names(crops / side) == [f"S-{f}-{n}.png" for f in (1, 2) for n in range(1, 7)]
        assert names(gopro / "crop/val" / side) == ["T-1.png"]
    assert np.array_equal(read_image(crops / "target_crops/S-2-4.png"), picture(3)[8:20, :12])
    val = read_image(gopro / "crop/val/input_crops/T-1.png")
    assert np.array_equal(val, picture(4)[6:14, 10:18])
    assert "12 pairs of crops (12 written, 0 there already)" in capsys.readouterr().out
    for lost in ("input_crops/S-1-6.png", "target_crops/S-2-1.png"):
        (crops / lost).unlink()
    assert run(gopro) == 0
    assert "12 pairs of crops (2 written, 10 there already)" in capsys.readouterr().out
    with pytest.raises(UserError, match="crop/train"):
        run(gopro, "--overlap", "8")
    assert len(names(crops / "input_crops")) == 12


def test_bad_pairs_are_named_and_the_rest_is_cut(gopro, capsys):
    frame = gopro / "train/input/S-1.png"
    frame.write_bytes(frame.read_bytes()[:-30])
    write_image(gopro / "test/target/T-1.png", picture(9, 20, 26))
    assert run(gopro) == 1
    error = capsys.readouterr().err
    assert "train/S-1: " in error
    assert "test/T-1: " in error
    assert names(gopro / "crop/train/input_crops") == [f"S-2-{n}.png" for n in range(1, 7)]


def test_parts_without_counterpart_and_one_part_alone(gopro, capsys):
    (gopro / "test/target/T-1.png").rename(gopro / "test/target/T-2.png")
    with pytest.raises(UserError, match="T-1"):
        run(gopro)
    assert not (gopro / "crop").exists()
    write_image(gopro / "crop/train/input_crops/old-1.png", picture(0, 12, 12))
    (gopro / "test").rename(gopro / "elsewhere")
    assert run(gopro) == 0
    output = capsys.readouterr().out
    assert "test: not cut" in output
    assert "old-1.png" in output, "an image of no frame is noted"
    (gopro / "train").rename(gopro / "elsewhere2")
    with pytest.raises(UserError, match="--root"):
        run(gopro)


@pytest.mark.parametrize("wrong", [["--jobs", "0"], ["--overlap", "12"], ["--val_size", "0"]])
def test_impossible_options(gopro, wrong):
    with pytest.raises(UserError, match=wrong[0]):
        run(gopro, *wrong)


def test_as_a_program_in_several_processes(root, gopro):
    call = (root / "generate_patches_gopro.py", "--jobs", "2", *SMALL, "--root", gopro)
    done = small_programs.run(gopro.parent, *call)
    assert done.returncode == 0, done.stderr
    for side in ("input_crops", "target_crops"):
        assert len(names(gopro / "crop/train" / side)) == 12
