"""What the data check notices, and its exit codes."""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image
from small_data import make_lmdb

from hidiff.cli import call
from hidiff.data.image import write_image
from hidiff.prepare.check import DataSource, check_dataset, dataset_folders
from hidiff.prepare.layout import LAYOUT
from hidiff.utils.errors import UserError


def main(arguments):
    return call("check", *map(str, arguments))


def picture(seed: int, height: int = 16, width: int = 20, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def write_raw(path, pixels: np.ndarray) -> None:
    """As stored, unlike `write_image`: any channels and depth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


@pytest.fixture
def source(tmp_path):
    """Three sound pairs."""
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", picture(number))
        write_image(tmp_path / "gt" / f"{number}.png", picture(10 + number))
    return DataSource("set", str(tmp_path / "in"), str(tmp_path / "gt"))


@pytest.mark.parametrize("options", [{}, {"fast": True}, {"jobs": 3}])
def test_sound_data_passes(source, options):
    report = check_dataset(source, **options)
    assert (len(report.pairs), report.problems, report.notes) == (3, [], [])


def test_images_without_counterpart_are_all_listed(source, tmp_path):
    for number in range(20):
        write_image(tmp_path / "in" / f"b{number}.png", picture(number))
    write_image(tmp_path / "gt" / "s.png", picture(0))
    report = check_dataset(source)
    assert len(report.pairs) == 3
    assert len(report.problems) == 21
    assert sum(problem.startswith("b") for problem in report.problems) == 20
    assert any(problem.startswith("s: sharp") for problem in report.problems)


def cut_short(folder):
    path = folder / "gt/1.png"
    path.write_bytes(path.read_bytes()[:-40])


def emptied(folder):
    (folder / "in/2.png").write_bytes(b"")


def of_another_size(folder):
    write_image(folder / "gt/1.png", picture(1, 8, 10))


def of_equal_pixels(folder):
    write_image(folder / "gt/1.png", picture(1))


def of_one_file(folder):
    (folder / "gt/1.png").unlink()
    (folder / "gt/1.png").symlink_to(folder / "in/1.png")


def turned_on_one_side(folder):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(picture(0)).save(folder / "in/0.png", exif=exif)


def with_a_fourth_band(folder):
    tifffile = pytest.importorskip("tifffile")
    (folder / "in/0.png").unlink()
    options = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    tifffile.imwrite(folder / "in/0.tif", picture(0, channels=4), **options)


@pytest.mark.parametrize(
    ("spoil", "place", "fast_too"),
    [
        (cut_short, "1 (sharp): ", False),
        (emptied, "2 (blurry): ", True),
        (of_another_size, "1: blurry is 20×16, sharp 10×8 (width×height)", True),
        (of_equal_pixels, "1: the blurry image is identical", False),
        (of_one_file, "1: the blurry image is identical", True),
        (turned_on_one_side, "0: the images are turned differently", True),
        (with_a_fourth_band, "0 (blurry): ", False),
    ],
)
def test_a_pair_that_is_spoilt_is_a_problem(source, tmp_path, spoil, place, fast_too):
    spoil(tmp_path)
    (problem,) = check_dataset(source).problems
    assert problem.startswith(place)
    assert bool(check_dataset(source, fast=True).problems) == fast_too


@pytest.mark.parametrize("fast", [False, True])
def test_smaller_than_the_patch(source, fast):
    assert check_dataset(source, patch_size=16, fast=fast).problems == []
    problems = check_dataset(source, patch_size=17, fast=fast).problems
    assert len(problems) == 6
    assert "20×16 is smaller than the patch size 17" in problems[0]


@pytest.mark.parametrize("fast", [False, True])
def test_conversions_and_what_is_passed_over_are_notes(source, tmp_path, fast):
    write_raw(tmp_path / "in" / "0.png", picture(5)[..., 0])
    write_raw(tmp_path / "in" / "1.png", picture(5, channels=4))
    write_raw(tmp_path / "gt" / "2.png", picture(5).astype(np.uint16) * 257)
    (tmp_path / "gt" / "3.avif").write_bytes(b"x")
    report = check_dataset(source, fast=fast)
    assert report.problems == []
    passed_over, *conversions = report.notes
    assert "3.avif" in passed_over
    assert [note.split(";")[0] for note in conversions] == [
        "1 blurry images grey",
        "1 blurry images with an alpha channel",
        "1 sharp images of 16 bits",
    ]


def test_sides_that_are_missing_or_the_same(source, tmp_path):
    report = check_dataset(DataSource("set", source.lq, None))
    assert (len(report.pairs), report.problems) == (3, [])
    (problem,) = check_dataset(DataSource("set", source.lq, str(tmp_path / "none"))).problems
    assert "does not exist" in problem
    (problem,) = check_dataset(DataSource("set", source.lq, source.lq)).problems
    assert problem.startswith("set: ")


def test_templates_and_lists_of_pairs(source, tmp_path):
    (tmp_path / "list.txt").write_text("0.png\n2.png (16,20,3)\n")
    listed = dataclasses.replace(source, meta_info_file=str(tmp_path / "list.txt"))
    assert len(check_dataset(listed).pairs) == 2
    (tmp_path / "list.txt").write_text("7.png\n")
    (problem,) = check_dataset(listed).problems
    assert "do not exist" in problem
    for path in list((tmp_path / "in").iterdir()):
        path.rename(path.with_name(f"{path.stem}_blur.png"))
    assert len(check_dataset(source).problems) == 6
    report = check_dataset(dataclasses.replace(source, filename_tmpl="{}_blur"))
    assert (len(report.pairs), report.problems) == (3, [])


def test_lmdb(source, tmp_path):
    pytest.importorskip("lmdb")
    for side in ("in", "gt"):
        make_lmdb(tmp_path / side, tmp_path / f"{side}.lmdb")
    stores = DataSource("set", str(tmp_path / "in.lmdb"), str(tmp_path / "gt.lmdb"))
    report = check_dataset(stores, jobs=3)
    assert (len(report.pairs), report.problems) == (3, [])
    assert len(check_dataset(stores, patch_size=17, fast=True).problems) == 6


def test_counts_of_the_benchmark():
    """Those of the tests are `hidiff.metrics.published.BENCHMARKS`."""
    assert LAYOUT["GoPro/train"].pairs == 2103
    assert LAYOUT["GoPro/crop/train"].pairs == 16824
    assert LAYOUT["RealBlur/train/RealBlur_J"].pairs == 3758
    assert LAYOUT["test/HIDE"].pairs == 2025


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("x/GoPro/test/input", "GoPro/test"),
        ("x/test/GoPro/input", "test/GoPro"),
        ("x/GoPro/crop/train/input_crops", "GoPro/crop/train"),
        ("RealBlur/test/RealBlur_R/input", "RealBlur/test/RealBlur_R"),
        ("test/RealBlur_R/input", "test/RealBlur_R"),
        ("GoPro/test", None),
        ("mine/input", None),
    ],
)
def test_folders_of_the_layout_are_known_by_their_end(folder, name):
    entry = DataSource("set", folder, None).layout_entry()
    assert (entry.name if entry else None) == name


def test_option_file(tmp_path):
    file = tmp_path / "o.yml"
    file.write_text(
        "lr: !!float 2e-4\n"
        "datasets:\n"
        "  train:\n"
        "    name: TrainSet\n"
        "    dataroot_gt: a/gt\n"
        "    dataroot_lq: a/lq\n"
        "    filename_tmpl: '{}x'\n"
        "    gt_size: !!float 384\n"
        "  test_1:\n"
        "    dataroot_lq: b\n"
    )
    assert dataset_folders(file) == [
        DataSource("datasets.train (TrainSet)", "a/lq", "a/gt", "{}x", None, 384),
        DataSource("datasets.test_1", "b", None),
    ]


@pytest.mark.parametrize(
    "text", ["a: [", "name: x", "datasets: ~", "datasets:\n  train:\n    name: x", "- 1"]
)
def test_option_files_without_data(tmp_path, text):
    file = tmp_path / "o.yml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"o\.yml"):
        dataset_folders(file)


def test_option_file_names_the_patch_size_and_shares_no_images(source, tmp_path, capsys):
    file, section = tmp_path / "o.yml", f"dataroot_lq: {source.lq}, dataroot_gt: {source.gt}"
    file.write_text(f"datasets: {{train: {{{section}, gt_size: 17}}}}")
    assert main(["-opt", str(file)]) == 1
    assert "6 problems" in capsys.readouterr().out
    assert main(["-opt", str(file), "--patch", "16"]) == 0
    file.write_text(f"datasets: {{train: {{{section}}}, val: {{{section}}}}}")
    assert main(["-opt", file]) == 1
    assert "datasets.val: 3 of its 3 pairs are trained on" in capsys.readouterr().out


def test_photographs_to_be_blurred_must_not_be_noisy(tmp_path, capsys):
    noise = np.random.default_rng(0).normal(0, 25, (64, 96, 3))
    for name, image in (("clean", 128 + 0 * noise), ("noisy", 128 + noise)):
        write_image(tmp_path / f"{name}.png", np.clip(image, 0, 255).astype(np.uint8))
    file = tmp_path / "o.yml"
    file.write_text(
        f"datasets:\n  train:\n    type: SyntheticBlurDataset\n    dataroot_gt: {tmp_path}\n"
    )
    assert main(["-opt", str(file)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "nois" in line]
    assert len(notes) == 1
    assert "noisy" in notes[0].split()


def test_root_lists_what_is_there_and_what_is_not(tmp_path, capsys):
    for side, seed in (("GoPro/test/input", 1), ("GoPro/test/target", 2), ("test/HIDE/input", 3)):
        write_image(tmp_path / side / "1.png", picture(seed))
    assert main(["--root", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "GoPro/test: 1 pair (the benchmark: 1111): 1 problem\n" in output
    assert "incomplete: 1 pairs, the benchmark has 1111" in output
    assert f"{tmp_path}/test/HIDE/target does not exist" in output
    assert "GoPro/crop/train: not there (16824 pairs; made by hidiff prepare patches)" in output
    assert output.count("not there") == 10


def test_exit_codes(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--input", "in", "--target", "gt"]) == 0
    assert capsys.readouterr().out == "in, gt: 3 pairs: ok\nAll good: 1 data set.\n"
    (tmp_path / "gt" / "1.png").unlink()
    assert main(["--input", "in", "--target", "gt"]) == 1
    assert "problem: 1: blurry" in capsys.readouterr().out
    with pytest.raises(UserError, match="^--root: "):
        main(["--root", "nowhere"])


@pytest.mark.parametrize(
    "wrong",
    [
        ["--target", "gt"],
        ["--align", "--fast"],
        ["--input", "nowhere"],
        ["--input", "x" * 300],
        ["--input", "in/0.png"],
        ["--target", "nowhere", "--input", "in"],
        ["--input", "in", "--target", "./in"],
    ],
)
def test_usage(source, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=wrong[0]):
        main(wrong)


def test_a_damaged_jpeg_is_a_problem(source, tmp_path):
    whole = cv2.imencode(".jpg", picture(3, 64, 64))[1].tobytes()
    (tmp_path / "in" / "0.png").unlink()
    write_image(tmp_path / "gt" / "0.png", picture(4, 64, 64))
    path = tmp_path / "in" / "0.jpg"
    path.write_bytes(whole)
    assert check_dataset(source).problems == []
    path.write_bytes(whole[:1500] + bytes(200) + whole[1700:])
    (problem,) = check_dataset(source).problems
    assert problem.startswith("0 (blurry): ")
    assert check_dataset(source, fast=True).problems == []


def test_swapped_folders_and_misaligned_pairs_are_noticed(tmp_path):
    scene = cv2.resize(picture(0, 24, 32), (128, 96), interpolation=cv2.INTER_CUBIC)
    lq, gt = str(tmp_path / "in"), str(tmp_path / "gt")
    for number, moved in enumerate((0, 4, 0)):
        blurry = cv2.blur(scene, (5, 5))[:, moved : moved + 96]
        write_image(tmp_path / f"in/{number}.png", blurry)
        write_image(tmp_path / f"gt/{number}.png", scene[:, :96])
    assert main(["--input", lq, "--target", gt]) == 0
    assert main(["--input", lq, "--target", gt, "--align"]) == 1
    (problem,) = check_dataset(DataSource("set", lq, gt), align=True).problems
    assert problem.startswith("1: misaligned")
    (problem,) = check_dataset(DataSource("set", gt, lq)).problems
    assert "swapped" in problem
