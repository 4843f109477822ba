"""Where patches lie, and what cutting a pair writes, keeps and reports."""

import numpy as np
import pytest

from hidiff.data.image import read_image, write_image
from hidiff.errors import UserError
from hidiff.prepare.patches import (
    CropTask,
    centre_corner,
    check_existing,
    cut_pair,
    patch_corners,
    patch_offsets,
)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def task(tmp_path):
    """A 20 × 28 pair, patches of 12 that overlap by 4."""
    write_image(tmp_path / "in" / "f.png", picture(1, 20, 28))
    write_image(tmp_path / "gt" / "f.png", picture(2, 20, 28))
    return CropTask(
        "f", tmp_path / "in/f.png", tmp_path / "gt/f.png", tmp_path / "a", tmp_path / "b", 12, 4
    )


@pytest.mark.parametrize(
    ("length", "size", "overlap", "expected"),
    [
        (1280, 512, 256, [0, 256, 512, 768]),
        (720, 512, 256, [0, 208]),
        (512, 512, 256, [0]),
        (513, 512, 256, [0, 1]),
        (768, 512, 256, [0, 256]),
        (769, 512, 256, [0, 256, 257]),
        (1280, 512, 0, [0, 512, 768]),
    ],
)
def test_offsets(length, size, overlap, expected):
    assert patch_offsets(length, size, overlap) == expected


@pytest.mark.parametrize(("length", "overlap"), [(511, 256), (720, 512), (720, -1)])
def test_offsets_that_cannot_be(length, overlap):
    with pytest.raises(UserError):
        patch_offsets(length, 512, overlap)


def test_a_gopro_frame_gives_eight_patches_row_by_row():
    tops_lefts = [(0, 0), (0, 256), (0, 512), (0, 768)]
    tops_lefts += [(208, 0), (208, 256), (208, 512), (208, 768)]
    assert patch_corners(720, 1280, 512, 256) == tops_lefts


def test_centre():
    assert centre_corner(720, 1280, 256) == (232, 512)
    assert centre_corner(257, 256, 256) == (0, 0)
    with pytest.raises(UserError, match="255 pixels"):
        centre_corner(255, 999, 256)


def test_patches_are_the_right_pixels_under_the_right_names(task):
    result = cut_pair(task)
    # Tops 0, 8; lefts 0, 8, 16.
    assert result.names == tuple(f"f-{n}.png" for n in range(1, 7))
    assert (result.written, result.problem) == (6, None)
    for folder, seed in ((task.lq_folder, 1), (task.gt_folder, 2)):
        assert sorted(path.name for path in folder.iterdir()) == list(result.names)
        whole = picture(seed, 20, 28)
        np.testing.assert_array_equal(read_image(folder / "f-1.png"), whole[:12, :12])
        np.testing.assert_array_equal(read_image(folder / "f-3.png"), whole[:12, 16:28])
        np.testing.assert_array_equal(read_image(folder / "f-5.png"), whole[8:20, 8:20])


def test_centre_crop_keeps_the_name(task):
    crop = CropTask("f", task.lq, task.gt, task.lq_folder, task.gt_folder, 8, None)
    assert cut_pair(crop).names == ("f.png",)
    np.testing.assert_array_equal(
        read_image(task.gt_folder / "f.png"), picture(2, 20, 28)[6:14, 10:18]
    )


def test_only_missing_patches_are_written(task):
    cut_pair(task)
    (task.lq_folder / "f-2.png").unlink()
    kept = (task.gt_folder / "f-2.png").stat().st_mtime_ns
    assert cut_pair(task).written == 1
    assert (task.gt_folder / "f-2.png").stat().st_mtime_ns == kept
    np.testing.assert_array_equal(
        read_image(task.lq_folder / "f-2.png"), picture(1, 20, 28)[:12, 8:20]
    )
    assert cut_pair(task).written == 0


def test_a_pair_with_all_patches_is_not_decoded_again(task):
    cut_pair(task)
    task.gt.write_bytes(b"damaged since")
    result = cut_pair(task)
    assert (result.written, result.problem, len(result.names)) == (0, None, 6)


def test_problems_are_reported_and_nothing_is_written(task):
    write_image(task.gt, picture(2, 20, 27))
    assert "28×20 and 27×20" in cut_pair(task).problem
    write_image(task.lq, picture(1, 11, 28))
    assert "11 pixels" in cut_pair(task).problem
    task.lq.write_bytes(b"no image")
    assert str(task.lq) in cut_pair(task).problem
    assert not task.lq_folder.exists()
    assert not task.gt_folder.exists()


def with_settings(task: CropTask, size: int, overlap: int) -> CropTask:
    return CropTask(task.name, task.lq, task.gt, task.lq_folder, task.gt_folder, size, overlap)


def test_existing_patches_of_the_same_settings_pass(task):
    check_existing([task])
    cut_pair(task)
    check_existing([task])


@pytest.mark.parametrize(("size", "overlap"), [(10, 4), (12, 5), (12, 0), (20, 4)])
def test_existing_patches_of_other_settings_are_refused(task, size, overlap):
    cut_pair(with_settings(task, size, overlap))
    with pytest.raises(UserError, match="another size or overlap"):
        check_existing([task])


def test_patches_that_only_have_one_too_many_are_refused(task):
    cut_pair(task)
    write_image(task.gt_folder / "f-7.png", picture(3, 12, 12))
    with pytest.raises(UserError, match=r"f-7\.png"):
        check_existing([task])


def test_existing_patches_of_other_images_are_refused(task):
    cut_pair(task)
    write_image(task.lq, picture(3, 20, 28))
    with pytest.raises(UserError, match="from other images"):
        check_existing([task])
