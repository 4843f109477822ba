"""evaluate_realblur.py and scripts/evaluate_gopro_hide.py as programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_data import picture, write_rgb

import evaluate_realblur
from hidiff.cli import score as evaluate_gopro_hide
from hidiff.errors import UserError
from hidiff.metrics import evaluate_pair

ROOT = Path(__file__).resolve().parent.parent.parent


def make(result: Path, dataset: str, target: Path, count: int = 3) -> None:
    """Restored and sharp images of a data set."""
    for index in range(count):
        sharp = picture(index, 32, 40)
        write_rgb(target / f"{index}.png", sharp)
        write_rgb(result / "visualization" / dataset / f"{index}.png", cv2.blur(sharp, (3, 3)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with result folder `results/mine` and data of all four benchmarks."""
    for dataset in ("HIDE", "RealBlur_R", "RealBlur_J"):
        make(tmp_path / "results/mine", dataset, tmp_path / f"datasets/test/{dataset}/target")
    make(tmp_path / "results/mine", "GoPro", tmp_path / "datasets/GoPro/test/target")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def expected(protocol: str, count: int = 3) -> dict[str, float]:
    """The mean scores of the images that `make` writes."""
    pictures = [picture(index, 32, 40) for index in range(count)]
    scores = [evaluate_pair(cv2.blur(p, (3, 3)), p, protocol) for p in pictures]
    return {name: np.mean([score[name] for score in scores]) for name in ("psnr", "ssim")}


def test_realblur_as_released(folder):
    """The released command line, in another folder than the checkout, with worker processes."""
    result = run("evaluate_realblur.py", "--dataset", "RealBlur_J", "--dir", "results/mine",
                 "--jobs", "2", folder=folder)  # fmt: skip
    assert result.returncode == 0, result.stderr
    mean = expected("realblur")
    assert (
        f"RealBlur_J: PSNR {mean['psnr']:.4f} dB, SSIM {mean['ssim']:.4f} "
        "(protocol realblur, 3 images; the benchmark RealBlur-J has 980)\n"
    ) in result.stdout
    assert "paper, Table 2: PSNR 29.15 dB, SSIM 0.890 (protocol realblur)" in result.stdout
    assert "paper, Table 3: PSNR 33.70 dB, SSIM 0.941 (protocol realblur)" in result.stdout
    content = json.loads((folder / "results/mine/score_RealBlur_J_realblur.json").read_text())
    assert content["mean"] == pytest.approx(mean)
    lines = (folder / "results/mine/score_RealBlur_J_realblur.csv").read_text().splitlines()
    assert len(lines) == 4


def test_both_of_gopro_and_hide_by_default(folder):
    result = run("scripts/evaluate_gopro_hide.py", "--dir", "results/mine", "--jobs", "1",
                 folder=folder)  # fmt: skip
    assert result.returncode == 0, result.stderr
    mean = expected("matlab")
    for dataset, count in (("GoPro", 1111), ("HIDE", 2025)):
        assert (
            f"{dataset}: PSNR {mean['psnr']:.4f} dB, SSIM {mean['ssim']:.4f} "
            f"(protocol matlab, 3 images; the benchmark {dataset} has {count})\n"
        ) in result.stdout
        content = json.loads((folder / f"results/mine/score_{dataset}_matlab.json").read_text())
        assert content["mean"] == pytest.approx(mean)
        assert content["counts"]["benchmark"] == count


def test_another_protocol_other_folders_and_one_data_set(folder, capsys):
    (folder / "datasets/GoPro/test/target").rename(folder / "sharp")
    code = evaluate_gopro_hide.main(
        ["--dir", "results/mine", "--dataset", "GoPro", "--target", "GoPro=sharp",
         "--protocol", "basicsr", "--output", "scores", "--jobs", "1"]
    )  # fmt: skip
    assert code == 0
    output = capsys.readouterr().out
    mean = expected("basicsr")
    assert f"PSNR {mean['psnr']:.4f} dB, SSIM {mean['ssim']:.4f} (protocol basicsr" in output
    assert "published scores of GoPro follow the protocol 'matlab'" in output
    assert "HIDE" not in output
    assert sorted(p.name for p in (folder / "scores").iterdir()) == [
        "score_GoPro_basicsr.csv", "score_GoPro_basicsr.json",
    ]  # fmt: skip
    assert not list((folder / "results/mine").glob("score_*"))


def test_only_what_the_result_folder_has(folder, capsys):
    for path in (folder / "results/mine/visualization/HIDE").iterdir():
        path.unlink()
    (folder / "results/mine/visualization/HIDE").rmdir()
    assert evaluate_gopro_hide.main(["--dir", "results/mine", "--jobs", "1"]) == 0
    assert "HIDE" not in capsys.readouterr().out


def test_the_data_of_the_other_layout_is_found(folder):
    (folder / "datasets/GoPro/test").rename(folder / "datasets/test/GoPro")
    assert evaluate_gopro_hide.main(["--dir", "results/mine", "--jobs", "1"]) == 0


def test_j_given_for_r_warns(folder, capsys):
    """Bright pictures of R are far below every published score, and the path says J."""
    code = evaluate_realblur.main(
        ["--dataset", "RealBlur_R", "--dir", "results/mine", "--jobs", "1",
         "--target", "datasets/test/RealBlur_J/target"]
    )  # fmt: skip
    assert code == 0
    output = capsys.readouterr().out
    assert "datasets/test/RealBlur_J/target: is this RealBlur_J given for RealBlur_R?" in output

    for path in (folder / "results/mine/visualization/RealBlur_R").iterdir():
        noise = np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8)
        write_rgb(path, noise)
    arguments = ["--dataset", "RealBlur_R", "--dir", "results/mine", "--jobs", "1"]
    assert evaluate_realblur.main(arguments) == 0
    output = capsys.readouterr().out
    assert "more than 5 dB off every score that the paper reports for HI-Diff on RealBlur-R" in (
        output
    )
    assert "(36.28, 41.01 dB): is this RealBlur_J given for RealBlur_R" in output


def test_missing_and_damaged_images_are_listed_and_make_exit_code_1(folder, capsys):
    restored = folder / "results/mine/visualization/RealBlur_R"
    (restored / "0.png").write_text("no picture")
    (restored / "1.png").unlink()
    write_rgb(restored / "more.png", picture(7, 32, 40))
    arguments = ["--dataset", "RealBlur_R", "--dir", "results/mine", "--jobs", "1"]
    assert evaluate_realblur.main(arguments) == 1
    output = capsys.readouterr().out
    assert "realblur, 1 image; the benchmark RealBlur-R has 980)" in output
    assert "failed: 0: " in output
    assert "0.png: not an image" in output
    assert "without a restored image: 1 (1)" in output
    assert "without a sharp image: 1 (more)" in output
    content = json.loads((folder / "results/mine/score_RealBlur_R_realblur.json").read_text())
    assert content["counts"]["failed"] == 1


def test_each_kind_of_missing_image_alone_makes_exit_code_1(folder):
    arguments = ["--dataset", "RealBlur_R", "--dir", "results/mine", "--jobs", "1"]
    extra = folder / "results/mine/visualization/RealBlur_R/more.png"
    write_rgb(extra, picture(7, 32, 40))
    assert evaluate_realblur.main(arguments) == 1
    extra.unlink()
    assert evaluate_realblur.main(arguments) == 0
    (folder / "results/mine/visualization/RealBlur_R/0.png").unlink()
    assert evaluate_realblur.main(arguments) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dir", "elsewhere"], "there is neither .*GoPro nor .*HIDE; restore the images first"),
        (["--dir", "elsewhere", "--dataset", "HIDE"], "visualization/HIDE does not exist"),
        (["--dir", "results/mine", "--target", "GoPro"], "--target GoPro: expected NAME=DIR"),
        (["--dir", "results/mine", "--target", "Gopro=x"], "where NAME is GoPro or HIDE"),
        (["--dir", "results/mine", "--target", "GoPro=nowhere"], "nowhere is no folder"),
        (["--dir", "results/mine", "--jobs", "0"], "--jobs: must be at least 1"),
    ],
)
def test_mistakes_in_the_call(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate_gopro_hide.main(arguments)
    assert not list(folder.glob("results/mine/score_*"))


def test_folders_that_are_empty_or_absent(folder):
    (folder / "datasets/test/HIDE").rename(folder / "datasets/test/gone")
    with pytest.raises(UserError, match="not in datasets/test/HIDE/target; .*--target HIDE=DIR"):
        evaluate_gopro_hide.main(["--dir", "results/mine"])
    # Nothing was started: the data set before it was not scored either.
    assert not list((folder / "results/mine").glob("score_*"))
    for path in (folder / "results/mine/visualization/RealBlur_J").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="RealBlur_J is empty; restore the images"):
        evaluate_realblur.main(["--dir", "results/mine", "--dataset", "RealBlur_J"])


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("scripts/evaluate_gopro_hide.py", ["--dir", "nowhere"], "error: --dir: "),
        ("scripts/report.py", ["--results", "nowhere", "--output", "a.md"], "error: --results: "),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(folder, script, arguments, message):
    result = run(script, *arguments, folder=folder)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.stderr


def test_only_files_of_scores_are_replaced(folder, capsys):
    arguments = ["--dataset", "RealBlur_J", "--dir", "results/mine", "--jobs", "1"]
    assert evaluate_realblur.main(arguments) == 0
    json_path = folder / "results/mine/score_RealBlur_J_realblur.json"
    first = json_path.read_text()
    assert evaluate_realblur.main(arguments) == 0
    assert json_path.read_text() == first
    json_path.write_text("my notes")
    with pytest.raises(UserError, match="exists and is no file of scores"):
        evaluate_realblur.main(arguments)
    assert json_path.read_text() == "my notes"


@pytest.mark.parametrize("program", [evaluate_realblur, evaluate_gopro_hide])
def test_help_says_what_is_replaced_and_the_exit_codes(program, capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "files of earlier scores are replaced" in text
    assert "Exit code: 0 all images scored, 1 images failed or are missing" in text
