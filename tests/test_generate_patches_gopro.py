"""The program that cuts GoPro, on a tiny data set."""

import subprocess
import sys

import numpy as np
import pytest

from generate_patches_gopro import main, process_context
from hidiff.data.image import read_image, write_image
from hidiff.errors import UserError

SMALL = ["--size", "12", "--overlap", "4", "--val_size", "8"]


def picture(seed: int, height: int = 20, width: int = 28) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def gopro(tmp_path):
    """Two training pairs and one test pair of 20 × 28."""
    for seed, name in enumerate(("train/{}/S-1.png", "train/{}/S-2.png", "test/{}/T-1.png")):
        write_image(tmp_path / "GoPro" / name.format("input"), picture(2 * seed))
        write_image(tmp_path / "GoPro" / name.format("target"), picture(2 * seed + 1))
    return tmp_path / "GoPro"


def run(root, *arguments) -> int:
    return main(["--root", str(root), "--jobs", "1", *SMALL, *arguments])


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_is_cut(gopro, capsys):
    assert run(gopro) == 0
    for side in ("input_crops", "target_crops"):
        expected = [f"S-{frame}-{n}.png" for frame in (1, 2) for n in range(1, 7)]
        assert names(gopro / "crop/train" / side) == expected
        assert names(gopro / "crop/val" / side) == ["T-1.png"]
    # Patch 4 is the first of the second row: tops 0, 8; lefts 0, 8, 16.
    np.testing.assert_array_equal(
        read_image(gopro / "crop/train/target_crops/S-2-4.png"), picture(3)[8:20, :12]
    )
    np.testing.assert_array_equal(
        read_image(gopro / "crop/val/input_crops/T-1.png"), picture(4)[6:14, 10:18]
    )
    output = capsys.readouterr().out
    assert "train: 2 pairs of frames, 12 pairs of crops (12 written, 0 there already)" in output
    assert "test: 1 pairs of frames, 1 pairs of crops (1 written, 0 there already)" in output


def test_a_second_run_completes_the_first(gopro, capsys):
    run(gopro)
    for lost in ("input_crops/S-1-6.png", "target_crops/S-2-1.png"):
        (gopro / "crop/train" / lost).unlink()
    capsys.readouterr()
    assert run(gopro) == 0
    assert "12 pairs of crops (2 written, 10 there already)" in capsys.readouterr().out
    assert len(names(gopro / "crop/train/input_crops")) == 12
    assert len(names(gopro / "crop/train/target_crops")) == 12


def test_other_settings_do_not_mix(gopro):
    run(gopro)
    before = names(gopro / "crop/train/input_crops")
    with pytest.raises(UserError, match="another size or overlap"):
        run(gopro, "--overlap", "8")
    assert names(gopro / "crop/train/input_crops") == before


def test_bad_pairs_are_named_and_the_rest_is_cut(gopro, capsys):
    frame = gopro / "train/input/S-1.png"
    frame.write_bytes(frame.read_bytes()[:-30])
    write_image(gopro / "test/target/T-1.png", picture(9, 20, 26))
    assert run(gopro) == 1
    error = capsys.readouterr().err
    assert "2 pairs could not be cut" in error
    assert "train/S-1: " in error
    assert "truncated" in error
    assert "test/T-1: " in error
    assert "28×20 and 26×20" in error
    assert names(gopro / "crop/train/input_crops") == [f"S-2-{n}.png" for n in range(1, 7)]


def test_small_images_are_named(gopro, capsys):
    for side in ("input", "target"):
        write_image(gopro / "train" / side / "S-1.png", picture(1, 11, 28))
    assert run(gopro) == 1
    assert "train/S-1: 11 pixels are fewer than the 12 of a patch" in capsys.readouterr().err


def test_an_image_without_counterpart_stops_before_any_work(gopro):
    (gopro / "test/target/T-1.png").rename(gopro / "test/target/T-2.png")
    with pytest.raises(UserError, match="T-1"):
        run(gopro)
    assert not (gopro / "crop").exists()


def test_one_part_is_enough(gopro, capsys):
    (gopro / "test").rename(gopro / "elsewhere")
    assert run(gopro) == 0
    assert "test: not cut" in capsys.readouterr().out
    (gopro / "train").rename(gopro / "elsewhere2")
    with pytest.raises(UserError, match="neither train/ nor test/"):
        run(gopro)


def test_images_of_no_frame_are_noted(gopro, capsys):
    write_image(gopro / "crop/train/input_crops/old-1.png", picture(0, 12, 12))
    assert run(gopro) == 0
    assert "1 images that come from none of these frames" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--jobs", "0"], ["--overlap", "12"], ["--val_size", "0"]])
def test_impossible_options(gopro, wrong):
    with pytest.raises(UserError, match=wrong[0]):
        run(gopro, *wrong)


def test_workers_do_not_inherit_the_threads_of_opencv():
    # A fork would hang, but only now and then: no run of the program can show that it does not.
    assert process_context().get_start_method() in ("forkserver", "spawn")


def test_as_a_program_in_several_processes(root, tmp_path):
    frame = np.repeat(picture(0, 9, 16), 80, axis=0).repeat(80, axis=1)
    for name in ("input/S-1.png", "target/S-1.png", "input/S-2.png", "target/S-2.png"):
        write_image(tmp_path / "datasets/GoPro/train" / name, frame)
    crops = tmp_path / "datasets/GoPro/crop/train"
    write_image(crops / "input_crops/S-1-8.png", frame[208:, 768:])
    write_image(crops / "input_crops/S-1-1.png", frame[:512, :512])

    call = [sys.executable, str(root / "generate_patches_gopro.py"), "--jobs", "2"]
    first = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert first.returncode == 0, first.stderr
    assert "16 pairs of crops (16 written, 0 there already)" in first.stdout
    for side in ("input_crops", "target_crops"):
        assert names(crops / side) == [
            f"S-{frame}-{n}.png" for frame in (1, 2) for n in range(1, 9)
        ]
    np.testing.assert_array_equal(
        read_image(crops / "target_crops/S-2-6.png"), frame[208:720, 256:768]
    )

    missing = [*call, "--root", "nowhere"]
    second = subprocess.run(missing, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert second.stderr.startswith("error: --root: ")
    assert "Traceback" not in second.stderr
