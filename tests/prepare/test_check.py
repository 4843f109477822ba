"""What the data check notices, and its exit codes."""

import cv2
import numpy as np
import pytest
from PIL import Image
from small_data import make_lmdb

from hidiff.cli import call
from hidiff.data.decode import read_header
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


def check(source, **options):
    return check_dataset(source, progress=False, **options)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("jobs", [1, 3])
def test_sound_data_passes(source, fast, jobs):
    report = check(source, fast=fast, jobs=jobs)
    assert (report.pairs, report.problems, report.notes) == (3, [], [])


def test_images_without_counterpart_are_all_listed(source, tmp_path):
    for number in range(20):
        write_image(tmp_path / "in" / f"b{number}.png", picture(number))
    write_image(tmp_path / "gt" / "s.png", picture(0))
    report = check(source)
    assert report.pairs == 3
    assert len(report.problems) == 21
    assert sum(problem.startswith("b") for problem in report.problems) == 20
    assert any(problem.startswith("s: sharp") for problem in report.problems)


def test_damage_is_found_by_decoding_only(source, tmp_path):
    path = tmp_path / "gt" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])
    (problem,) = check(source).problems
    assert problem.startswith("1 (sharp): ")
    assert "truncated" in problem
    assert check(source, fast=True).problems == []


@pytest.mark.parametrize("fast", [False, True])
def test_empty_file(source, tmp_path, fast):
    (tmp_path / "in" / "2.png").write_bytes(b"")
    (problem,) = check(source, fast=fast).problems
    assert problem.startswith("2 (blurry): ")


@pytest.mark.parametrize("fast", [False, True])
def test_two_sizes(source, tmp_path, fast):
    write_image(tmp_path / "gt" / "1.png", picture(1, 8, 10))
    (problem,) = check(source, fast=fast).problems
    assert problem == "1: blurry is 20×16, sharp 10×8 (width×height)"


@pytest.mark.parametrize("fast", [False, True])
def test_smaller_than_the_patch(source, fast):
    assert check(source, patch_size=16, fast=fast).problems == []
    problems = check(source, patch_size=17, fast=fast).problems
    assert len(problems) == 6
    assert "20×16 is smaller than the patch size 17" in problems[0]


def test_identical_pairs(source, tmp_path):
    write_image(tmp_path / "gt" / "1.png", picture(1))
    (problem,) = check(source).problems
    assert problem.startswith("1: the blurry image is identical")
    # Without decoding, at least one file under two names is told.
    (tmp_path / "gt" / "1.png").unlink()
    (tmp_path / "gt" / "1.png").symlink_to(tmp_path / "in" / "1.png")
    assert len(check(source, fast=True).problems) == 1


@pytest.mark.parametrize("fast", [False, True])
def test_conversions_are_notes_not_problems(source, tmp_path, fast):
    write_raw(tmp_path / "in" / "0.png", picture(5)[..., 0])
    write_raw(tmp_path / "in" / "1.png", picture(5, channels=4))
    write_raw(tmp_path / "gt" / "2.png", picture(5).astype(np.uint16) * 257)
    report = check(source, fast=fast)
    assert report.problems == []
    assert [note.split(";")[0] for note in report.notes] == [
        "1 blurry images grey",
        "1 blurry images with an alpha channel",
        "1 sharp images of 16 bits",
    ]


def test_header_of_16_bit_grey(tmp_path):
    write_raw(tmp_path / "g.png", picture(1, 5, 7)[..., 0].astype(np.uint16) * 257)
    header = read_header(tmp_path / "g.png", "g")
    assert (header.height, header.width) == (5, 7)
    assert (header.grey, header.alpha, header.bits16) == (True, False, True)


def test_blurry_images_alone(source):
    report = check(DataSource("set", source.lq, None))
    assert (report.pairs, report.problems) == (3, [])


def test_missing_folder_is_a_problem(source, tmp_path):
    (problem,) = check(DataSource("set", source.lq, str(tmp_path / "none"))).problems
    assert "does not exist" in problem


def test_one_folder_as_both_sides(source):
    (problem,) = check(DataSource("set", source.lq, source.lq)).problems
    assert problem.startswith("set: ")


@pytest.mark.parametrize("fast", [False, True])
def test_what_is_passed_over_is_a_note(source, tmp_path, fast):
    (tmp_path / "gt" / "3.avif").write_bytes(b"x")
    report = check(source, fast=fast)
    assert report.problems == []
    (note,) = report.notes
    assert "3.avif" in note


def test_name_template(source, tmp_path):
    for path in list((tmp_path / "in").iterdir()):
        path.rename(path.with_name(f"{path.stem}_blur.png"))
    assert len(check(source).problems) == 6
    report = check(DataSource("set", source.lq, source.gt, filename_tmpl="{}_blur"))
    assert (report.pairs, report.problems) == (3, [])


def test_list_of_pairs(source, tmp_path):
    (tmp_path / "list.txt").write_text("0.png\n2.png (16,20,3)\n")
    meta = str(tmp_path / "list.txt")
    assert check(DataSource("set", source.lq, source.gt, meta_info_file=meta)).pairs == 2
    (tmp_path / "list.txt").write_text("7.png\n")
    (problem,) = check(DataSource("set", source.lq, source.gt, meta_info_file=meta)).problems
    assert "do not exist" in problem


def test_lmdb(source, tmp_path):
    pytest.importorskip("lmdb")
    for side in ("in", "gt"):
        make_lmdb(tmp_path / side, tmp_path / f"{side}.lmdb")
    stores = DataSource("set", str(tmp_path / "in.lmdb"), str(tmp_path / "gt.lmdb"))
    report = check(stores, jobs=3)
    assert (report.pairs, report.problems) == (3, [])
    assert len(check(stores, patch_size=17, fast=True).problems) == 6


def test_counts_of_the_benchmark():
    counts = {name: entry.pairs for name, entry in LAYOUT.items()}
    assert counts == {
        "GoPro/train": 2103,
        "GoPro/test": 1111,
        "GoPro/crop/train": 16824,
        "GoPro/crop/val": 1111,
        "RealBlur/train/RealBlur_R": 3758,
        "RealBlur/train/RealBlur_J": 3758,
        "RealBlur/test/RealBlur_R": 980,
        "RealBlur/test/RealBlur_J": 980,
        "test/GoPro": 1111,
        "test/HIDE": 2025,
        "test/RealBlur_R": 980,
        "test/RealBlur_J": 980,
    }


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


def test_option_file_names_the_patch_size(source, tmp_path, capsys):
    file = tmp_path / "o.yml"
    file.write_text(
        f"datasets:\n  train:\n    dataroot_lq: {source.lq}\n    dataroot_gt: {source.gt}\n"
        "    gt_size: 17\n"
    )
    assert main(["-opt", str(file)]) == 1
    assert "6 problems" in capsys.readouterr().out
    assert main(["-opt", str(file), "--patch", "16"]) == 0


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
    for side, seed in (("input", 1), ("target", 2)):
        write_image(tmp_path / "GoPro/test" / side / "1.png", picture(seed))
    assert main(["--root", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "GoPro/test: 1 pair (the benchmark: 1111): 1 problem\n" in output
    assert "incomplete: 1 pairs, the benchmark has 1111" in output
    assert "GoPro/crop/train: not there (16824 pairs; made by hidiff prepare patches)" in output
    assert output.count("not there") == 11


def test_half_a_data_set_is_a_problem(tmp_path, capsys):
    write_image(tmp_path / "test/HIDE/input/1.png", picture(1))
    assert main(["--root", str(tmp_path)]) == 1
    assert "target does not exist" in capsys.readouterr().out


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
    arguments = ["--input", str(tmp_path / "in"), "--target", str(tmp_path / "gt")]
    assert main(arguments) == 0
    path.write_bytes(whole[:1500] + bytes(200) + whole[1700:])
    assert main(arguments) == 1
    assert main([*arguments, "--fast"]) == 0


def test_swapped_folders_are_noticed(tmp_path):
    for number in range(3):
        sharp = picture(number, 64, 64)
        write_image(tmp_path / "in" / f"{number}.png", sharp)
        write_image(tmp_path / "gt" / f"{number}.png", cv2.blur(sharp, (5, 5)))
    lq, gt = str(tmp_path / "in"), str(tmp_path / "gt")
    (problem,) = check(DataSource("set", lq, gt)).problems
    assert "swapped" in problem
    assert check(DataSource("set", gt, lq)).problems == []


def test_a_misaligned_pair_is_a_problem_with_align(tmp_path):
    scene = cv2.resize(picture(0, 24, 32), (128, 96), interpolation=cv2.INTER_CUBIC)
    for number, moved in enumerate((0, 4)):
        write_image(
            tmp_path / "in" / f"{number}.png", cv2.blur(scene, (5, 5))[:, moved : moved + 96]
        )
        write_image(tmp_path / "gt" / f"{number}.png", scene[:, :96])
    arguments = ["--input", tmp_path / "in", "--target", tmp_path / "gt"]
    assert main(arguments) == 0
    assert main([*arguments, "--align"]) == 1
    source = DataSource("set", str(tmp_path / "in"), str(tmp_path / "gt"))
    (problem,) = check(source, align=True).problems
    assert problem.startswith("1: misaligned")


def test_training_images_in_the_validation_are_a_problem(source, tmp_path, capsys):
    section = f"{{dataroot_lq: {source.lq}, dataroot_gt: {source.gt}}}"
    file = tmp_path / "o.yml"
    file.write_text(f"datasets:\n  train: {section}\n  val: {section}\n")
    assert main(["-opt", file]) == 1
    assert "datasets.val: 3 of its 3 pairs are trained on" in capsys.readouterr().out


def test_bands_that_are_not_read_are_a_problem(source, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "in" / "0.png").unlink()
    bands = picture(0, channels=4)
    options = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    tifffile.imwrite(tmp_path / "in" / "0.tif", bands, **options)
    (problem,) = check(source).problems
    assert problem.startswith("0 (blurry): ")


def test_pairs_turned_on_one_side_are_a_problem(source, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.fromarray(picture(0))
    image.save(tmp_path / "in" / "0.png", exif=exif)
    (problem,) = check(source).problems
    assert problem.startswith("0: the images are turned differently")
