"""Scoring folders of pictures: pairing, failures, workers, and the command `hidiff score`."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_programs
from golden_values import load_arrays, load_json
from small_data import picture, write_rgb

from hidiff.cli import call
from hidiff.evaluation.folders import score_folders
from hidiff.evaluation.record import read_scores
from hidiff.evaluation.summary import remarks
from hidiff.metrics import evaluate_pair
from hidiff.utils.errors import UserError


def main(arguments):
    return call("score", *map(str, arguments))


ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def folders(tmp_path):
    """Five pairs, the restored ones slightly blurred: folders `restored` and `target`."""
    for index in range(5):
        sharp = picture(index, 32, 40)
        write_rgb(tmp_path / "target" / f"{index}.png", sharp)
        write_rgb(tmp_path / "restored" / f"{index}.png", cv2.blur(sharp, (3, 3)))
    return tmp_path


def score(folder, protocol="matlab", dataset="set", **options):
    places = folder / "restored", folder / "target"
    return score_folders(*places, protocol=protocol, dataset=dataset, **options)


def test_golden_images_as_files(tmp_path):
    """Means over the reference pairs, through PNG files and the pairing."""
    arrays, values = load_arrays("metric_pairs.npz"), load_json("metrics.json")
    for name in values:
        write_rgb(tmp_path / "restored" / f"{name}.png", arrays[f"{name}/restored"])
        write_rgb(tmp_path / "target" / f"{name}.png", arrays[f"{name}/gt"])
    for protocol, psnr, ssim, close in (
        ("basicsr", "psnr_rgb", "ssim_2d_per_channel", (1e-6, 1e-6)),
        ("matlab", "psnr_rgb", "ssim_matlab_volume", (1e-6, 1e-6)),
        ("realblur", "realblur_psnr", "realblur_ssim", (1e-2, 1e-3)),
    ):
        mean = score(tmp_path, protocol).mean()
        assert abs(mean["psnr"] - sum(v[psnr] for v in values.values()) / 4) < close[0]
        assert abs(mean["ssim"] - sum(v[ssim] for v in values.values()) / 4) < close[1]


def test_every_score_is_that_of_its_own_pair(folders):
    result = score(folders)
    assert [image.name for image in result.images] == list("01234")
    for image in result.images:
        sharp = picture(int(image.name), 32, 40)
        assert image.restored == evaluate_pair(cv2.blur(sharp, (3, 3)), sharp, "matlab")
        assert image.aligned is None
    assert not result.failed


def test_pairs_are_matched_by_name_not_by_position(folders):
    (folders / "restored/0.png").unlink()
    (folders / "target/4.png").unlink()
    result = score(folders)
    assert [image.name for image in result.scored] == ["1", "2", "3"]
    assert result.failed == {"0": "no restored image", "4": "no sharp image"}
    assert min(image.restored["psnr"] for image in result.scored) > 25


def test_workers_change_nothing(folders):
    (folders / "restored/2.png").write_bytes(b"\x89PNG")
    alone, shared = score(folders, jobs=1), score(folders, jobs=2)
    assert alone == shared
    assert len(alone.scored) == 4


def test_damaged_and_mismatched_images_fail_and_the_rest_goes_on(folders):
    (folders / "restored/0.png").write_bytes(b"this is no picture")
    sound = (folders / "target/1.png").read_bytes()
    (folders / "target/1.png").write_bytes(sound[:-30])
    write_rgb(folders / "restored/2.png", picture(2, 32, 32))
    result = score(folders)
    assert [image.name for image in result.scored] == ["3", "4"]
    assert set(result.failed) == {"0", "1", "2"}
    assert "restored/0.png" in result.failed["0"]
    assert "target/1.png" in result.failed["1"]
    assert "(32, 32, 3) and target uint8 (32, 40, 3)" in result.failed["2"]
    pairs = [picture(index, 32, 40) for index in (3, 4)]
    expected = [evaluate_pair(cv2.blur(p, (3, 3)), p, "matlab")["psnr"] for p in pairs]
    assert result.mean()["psnr"] == pytest.approx(sum(expected) / 2)


def test_sixteen_bits_are_rounded_to_eight(tmp_path):
    sharp = picture(0, 24, 24)
    write_rgb(tmp_path / "target/a.png", sharp)
    write_rgb(tmp_path / "restored/a.png", np.full_like(sharp, 100))
    reference = score(tmp_path).images
    write_rgb(tmp_path / "restored/a.png", np.full(sharp.shape, 100 * 257 + 60, np.uint16))
    assert score(tmp_path).images == reference


def test_suffix_of_the_restored_images(folders):
    expected = score(folders).images
    for path in list((folders / "restored").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mine.png"))
    write_rgb(folders / "restored/other.png", picture(0, 32, 40))
    assert score(folders, suffix="_mine").images == expected
    with pytest.raises(UserError, match="restored"):
        score(folders)


def renamed(folder, name):
    for path in list(folder.iterdir()):
        path.rename(path.with_name(name(path)))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda f: [p.unlink() for p in (f / "restored").iterdir()], "restored"),
        (lambda f: [p.unlink() for p in (f / "target").iterdir()], "target"),
        (lambda f: (f / "target").rename(f / "elsewhere"), "target"),
        (lambda f: renamed(f / "restored", lambda p: f"{p.stem}.txt"), "restored"),
        (lambda f: renamed(f / "restored", lambda p: f"x{p.name}"), "x0, x1 and 3 more"),
    ],
    ids=["no restored", "no sharp", "no folder", "no pictures", "other names"],
)
def test_folders_that_cannot_be_scored_say_why(folders, change, place):
    change(folders)
    with pytest.raises(UserError, match=place):
        score(folders)


def test_a_folder_is_not_scored_against_itself(folders):
    with pytest.raises(UserError, match="target is given both"):
        score_folders(folders / "target", folders / "restored/../target", protocol="matlab",
                      dataset="x")  # fmt: skip
    with pytest.raises(UserError, match="'mathlab'.*'matlab'"):
        score(folders, "mathlab")


def test_alignment_that_fails_is_counted_and_scored(folders):
    """A uniform image has nothing to align; its score is the one without alignment."""
    write_rgb(folders / "restored/1.png", np.full((32, 40, 3), 90, np.uint8))
    result = score(folders, "realblur")
    assert [image.name for image in result.images if image.aligned is False] == ["1"]
    assert len(result.scored) == 5
    assert not result.failed
    assert math.isfinite(result.images[1].restored["psnr"])
    assert "1 of 5 images" in remarks(result)[0]


def make(result: Path, dataset: str, target: Path, count: int = 3) -> None:
    """Restored and sharp images of a data set."""
    for index in range(count):
        sharp = picture(index, 32, 40)
        write_rgb(target / f"{index}.png", sharp)
        write_rgb(result / "visualization" / dataset / f"{index}.png", cv2.blur(sharp, (3, 3)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with result folder `mine` and data of all four benchmarks."""
    for dataset in ("HIDE", "RealBlur_R", "RealBlur_J"):
        make(tmp_path / "mine", dataset, tmp_path / f"datasets/test/{dataset}/target")
    make(tmp_path / "mine", "GoPro", tmp_path / "datasets/GoPro/test/target")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> int:
    return main(["--dir", "mine", "--jobs", "1", *arguments])


def expected(protocol: str, count: int = 3) -> dict[str, float]:
    """The mean scores of the images that `make` writes."""
    pictures = [picture(index, 32, 40) for index in range(count)]
    scores = [evaluate_pair(cv2.blur(p, (3, 3)), p, protocol) for p in pictures]
    return {name: np.mean([score[name] for score in scores]) for name in ("psnr", "ssim")}


def test_the_released_command_line(folder):
    """In another folder than the checkout, with workers."""
    arguments = ["--dir", "mine", "--dataset", "RealBlur_J", "--jobs", "2"]
    result = small_programs.run(folder, ROOT / "evaluate_realblur.py", *arguments)
    assert result.returncode == 0, result.stderr
    (data,) = read_scores(folder / "mine")
    mean = expected("realblur")
    assert (data.dataset, data.mean()) == ("RealBlur_J", pytest.approx(mean))
    assert f"{mean['psnr']:.4f}" in result.stdout
    assert str(data.benchmark.images) in result.stdout


def test_every_benchmark_that_is_there_is_scored_by_its_protocol(folder):
    (folder / "mine/visualization/HIDE").rename(folder / "gone")
    (folder / "datasets/GoPro/test").rename(folder / "datasets/test/GoPro")  # the other layout
    assert command() == 0
    protocols = {data.dataset: data.protocol for data in read_scores(folder / "mine")}
    assert protocols == {"GoPro": "matlab", "RealBlur_R": "realblur", "RealBlur_J": "realblur"}


@pytest.mark.parametrize("target", ["GoPro=sharp=1", "sharp=1"])
def test_another_protocol_other_folders_and_one_data_set(folder, capsys, target):
    (folder / "datasets/GoPro/test/target").rename(folder / "sharp=1")
    arguments = ["--dataset", "GoPro", "--target", target, "--protocol", "basicsr"]
    assert command(*arguments, "--output", "scores") == 0
    (scores,) = read_scores(folder / "scores")
    assert scores.key == ("GoPro", "basicsr", "pictures")
    assert scores.mean() == pytest.approx(expected("basicsr"))
    assert "'basicsr'" in capsys.readouterr().out
    assert not (folder / "mine/scores.json").exists()


def test_any_two_folders(folder):
    pictures = ["--restored", "mine/visualization/HIDE", "--target", "datasets/test/HIDE/target"]
    assert main([*pictures, "--dataset", "x", "--output", "out", "--jobs", "1"]) == 0
    assert main([*pictures, "--protocol", "matlab", "--output", "out", "--jobs", "1"]) == 0
    first, second = read_scores(folder / "out")
    assert first.key == ("x", "basicsr", "pictures")
    assert second.key == ("HIDE", "matlab", "pictures")
    for arguments in (pictures, [*pictures, "--dataset", "x", "y", "--output", "out"]):
        with pytest.raises(UserError, match="--restored"):
            main(arguments)


def test_pairs_with_scenes_score_the_blurry_images_too(tmp_path):
    for index, name in enumerate(("s1/0.png", "s1/1.png", "s2/0.png")):
        sharp = picture(index, 32, 40)
        write_rgb(tmp_path / "data/sharp" / name, sharp)
        write_rgb(tmp_path / "data/blur" / name, cv2.blur(sharp, (5, 5)))
        write_rgb(tmp_path / "restored" / name.replace("/", "-"), cv2.blur(sharp, (3, 3)))
    arguments = ["--restored", tmp_path / "restored", "--output", tmp_path / "out", "--jobs", "1"]
    assert main([*arguments, "--data", tmp_path / "data"]) == 0
    (scores,) = read_scores(tmp_path / "out")
    assert len(scores.scored) == 3
    assert scores.mean("blurry")["psnr"] < scores.mean()["psnr"]
    assert main([*arguments, "--target", tmp_path / "data/sharp", "--dataset", "other"]) == 0
    other = next(found for found in read_scores(tmp_path / "out") if found.dataset == "other")
    assert other.mean() == scores.mean()


def test_missing_images_are_listed_and_make_exit_code_1(folder, capsys):
    restored = folder / "mine/visualization/RealBlur_R"
    write_rgb(restored / "more.png", picture(7, 32, 40))
    (restored / "1.png").unlink()
    assert command("--dataset", "RealBlur_R") == 1
    output = capsys.readouterr().out
    assert "RealBlur_R/1: " in output
    assert "RealBlur_R/more: " in output


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["--dir", "elsewhere"], "elsewhere/visualization"),
        (["--dir", "elsewhere", "--dataset", "HIDE"], "visualization/HIDE"),
        (["--target", "GoPro"], "--target GoPro"),
        (["--target", "Gopro=x"], "--target Gopro=x"),
        (["--target", "GoPro=nowhere"], "nowhere"),
        (["--dataset", "other"], "visualization/other"),
    ],
)
def test_mistakes_in_the_call(folder, arguments, place):
    with pytest.raises(UserError, match=place):
        command(*arguments)
    assert not (folder / "mine/scores.json").exists()


def test_nothing_is_scored_where_one_data_set_has_no_sharp_images(folder):
    (folder / "datasets/test/HIDE").rename(folder / "datasets/test/gone")
    with pytest.raises(UserError, match="datasets/test/HIDE/target.*--target HIDE=DIR"):
        command()
    assert not (folder / "mine/scores.json").exists()
