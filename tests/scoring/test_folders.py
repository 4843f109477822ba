"""Scoring folders: pairing, failures, worker processes, warnings and the files written."""

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from golden_values import load_arrays, load_json
from small_data import picture, write_rgb

from hidiff.errors import UserError
from hidiff.metrics import evaluate_pair
from hidiff.metrics.published import BENCHMARKS, TABLES, find_row, hi_diff_scores
from hidiff.prepare.check import LAYOUT
from hidiff.scoring.files import (
    CSV_HEADER,
    check_replaceable,
    read_scores,
    score_paths,
    write_scores,
)
from hidiff.scoring.folders import FolderScores, ImageScore, score_folders


@pytest.fixture
def folders(tmp_path):
    """Five pairs, the restored ones slightly blurred: folders `restored` and `target`."""
    for index in range(5):
        sharp = picture(index, 32, 40)
        write_rgb(tmp_path / "target" / f"{index}.png", sharp)
        write_rgb(tmp_path / "restored" / f"{index}.png", cv2.blur(sharp, (3, 3)))
    return tmp_path


def score(folder, protocol="matlab", dataset="set", **options):
    return score_folders(
        folder / "restored", folder / "target", protocol=protocol, dataset=dataset,
        progress=False, **options,
    )  # fmt: skip


def scores_of(dataset: str, psnr: float, count: int = 1, **options) -> FolderScores:
    images = tuple(ImageScore(str(index), psnr, 0.9) for index in range(count))
    protocol = options.pop("protocol", BENCHMARKS[dataset].protocol)
    target = Path(options.pop("target", "datasets/test/x/target"))
    return FolderScores(protocol, dataset, Path("restored"), target, images, **options)


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
        expected = evaluate_pair(cv2.blur(sharp, (3, 3)), sharp, "matlab")
        assert (image.psnr, image.ssim) == (expected["psnr"], expected["ssim"])
        assert image.aligned is None
    assert result.all_scored


def test_pairs_are_matched_by_name_not_by_position(folders):
    (folders / "restored/0.png").unlink()
    (folders / "target/4.png").unlink()
    result = score(folders)
    assert [image.name for image in result.images] == ["1", "2", "3"]
    assert result.missing_restored == ("0",)
    assert result.missing_target == ("4",)
    assert not result.all_scored
    assert len({image.psnr for image in result.images}) == 3
    assert min(image.psnr for image in result.images) > 25


def test_worker_processes_change_nothing(folders):
    (folders / "restored/2.png").write_bytes(b"\x89PNG")
    alone, shared = score(folders, jobs=1), score(folders, jobs=2)
    assert alone == shared
    assert len(alone.scored) == 4
    assert alone.summary() == shared.summary()


def test_mean_is_the_exact_mean(folders):
    result = score(folders)
    expected = math.fsum(image.psnr for image in result.images) / 5
    assert result.mean()["psnr"] == expected
    values = (1e16, 1.0, -1e16, 1.0)
    images = tuple(ImageScore(str(i), value, 0.0) for i, value in enumerate(values))
    assert FolderScores("matlab", "x", Path(), Path(), images).mean()["psnr"] == 0.5


def test_damaged_and_mismatched_images_fail_and_the_rest_goes_on(folders):
    (folders / "restored/0.png").write_bytes(b"this is no picture")
    sound = (folders / "target/1.png").read_bytes()
    (folders / "target/1.png").write_bytes(sound[:-30])
    write_rgb(folders / "restored/2.png", picture(2, 32, 32))
    result = score(folders)
    assert [image.name for image in result.scored] == ["3", "4"]
    assert set(result.failed) == {"0", "1", "2"}
    assert "restored/0.png: not an image" in result.failed["0"]
    assert "target/1.png: the image file is truncated" in result.failed["1"]
    assert "(32, 32, 3) and target uint8 (32, 40, 3)" in result.failed["2"]
    only_sound = [evaluate_pair(cv2.blur(picture(i, 32, 40), (3, 3)), picture(i, 32, 40), "matlab")
                  for i in (3, 4)]  # fmt: skip
    assert result.mean()["psnr"] == pytest.approx(sum(s["psnr"] for s in only_sound) / 2)
    assert not result.all_scored


def test_nothing_scored_has_no_mean(folders):
    for path in (folders / "restored").iterdir():
        path.write_bytes(b"text")
    result = score(folders)
    assert result.mean() == {}
    assert result.warnings() == []
    assert result.summary()["counts"]["failed"] == 5


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
    result = score(folders, suffix="_mine")
    assert result.images == expected
    assert result.all_scored
    with pytest.raises(UserError, match="no name is both in"):
        score(folders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: [p.unlink() for p in (f / "restored").iterdir()], "restored holds no image"),
        (lambda f: [p.unlink() for p in (f / "target").iterdir()], "target holds no image"),
        (lambda f: (f / "target").rename(f / "elsewhere"), "target does not exist"),
        (lambda f: [p.rename(p.with_suffix(".txt")) for p in (f / "restored").iterdir()],
         "restored holds no image"),
        (lambda f: [p.rename(p.with_name(f"x{p.name}")) for p in (f / "restored").iterdir()],
         r"no name is both in .*restored \(x0, x1 and 3 more\)"),
    ],
    ids=["no restored", "no sharp", "no folder", "no pictures", "other names"],
)  # fmt: skip
def test_folders_that_cannot_be_scored_say_why(folders, change, message):
    change(folders)
    with pytest.raises(UserError, match=message):
        score(folders)


def test_a_folder_is_not_scored_against_itself(folders):
    with pytest.raises(UserError, match="both as the restored and as the sharp"):
        score_folders(folders / "target", folders / "restored/../target", protocol="matlab",
                      dataset="x")  # fmt: skip
    with pytest.raises(UserError, match="no evaluation protocol 'mathlab'; did you mean 'matlab'"):
        score(folders, "mathlab")


def test_alignment_that_fails_is_counted_and_scored(folders):
    """A uniform image has nothing to align; its score is the one without alignment."""
    write_rgb(folders / "restored/1.png", np.full((32, 40, 3), 90, np.uint8))
    result = score(folders, "realblur")
    assert result.unaligned == ["1"]
    assert len(result.scored) == 5
    assert result.all_scored
    assert math.isfinite(result.images[1].psnr)
    assert result.summary()["counts"]["unaligned"] == 1
    assert "no alignment was found for 1 of 5 images" in result.warnings()[0]


def test_identical_images_warn():
    warnings = scores_of("HIDE", math.inf).warnings()
    assert "1 restored images are identical to the sharp ones" in warnings[0]
    summary = scores_of("HIDE", math.inf).summary()
    assert summary["mean"]["psnr"] == "inf"
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("dataset", "psnr", "warned"),
    [
        # HI-Diff trained on GoPro has 36.28 dB on R and 29.15 on J: given for R, J is 7 dB low.
        ("RealBlur_R", 29.15, True),
        ("RealBlur_R", 36.28, False),
        ("RealBlur_R", 31.27, True),
        ("RealBlur_R", 31.29, False),
        ("RealBlur_R", 45.9, False),
        ("RealBlur_R", 46.1, True),
        ("RealBlur_J", 41.01, True),
        ("RealBlur_J", 33.7, False),
        ("GoPro", 25.0, True),
        ("GoPro", 30.0, False),
        ("HIDE", 37.0, True),
    ],
)
def test_scores_far_from_the_published_ones_warn(dataset, psnr, warned):
    warnings = scores_of(dataset, psnr).warnings()
    assert len(warnings) == warned
    if warned:
        assert f"{psnr:.2f} dB is more than 5 dB off every score" in warnings[0]
        other = {"RealBlur_R": "RealBlur_J", "RealBlur_J": "RealBlur_R"}.get(dataset)
        assert (f"is this {other} given for {dataset}" in warnings[0]) == (other is not None)


def test_j_given_for_r_is_seen_in_the_path_too():
    """HI-Diff trained on J scores 33.70 dB there, which is not out of the question for R."""
    warnings = scores_of("RealBlur_R", 33.7, target="datasets/test/RealBlur_J/target").warnings()
    assert len(warnings) == 1
    assert "is this RealBlur_J given for RealBlur_R?" in warnings[0]
    right = scores_of("RealBlur_R", 36.0, target="datasets/test/RealBlur_R/target")
    assert right.warnings() == []


def test_another_protocol_than_the_published_warns():
    (warning,) = scores_of("GoPro", 33.0, protocol="basicsr").warnings()
    assert "follow the protocol 'matlab', this one 'basicsr'" in warning


def test_counts_that_are_not_the_benchmarks():
    assert scores_of("GoPro", 33.0, 1111).count_note() is None
    assert scores_of("GoPro", 33.0, 1110).count_note() == "the benchmark GoPro has 1111"
    assert scores_of("RealBlur_J", 29.0, 981).count_note() == "the benchmark RealBlur-J has 980"
    assert FolderScores("matlab", "mine", Path(), Path(), ()).count_note() is None


def test_files_hold_every_image_and_the_summary(folders, tmp_path):
    (folders / "restored/0.png").unlink()
    (folders / "restored/1.png").write_bytes(b"")
    write_rgb(folders / "restored/new.png", picture(9, 32, 40))
    result = score(folders, "realblur", "RealBlur_J")
    paths = score_paths(tmp_path / "new/out", "RealBlur_J", "realblur")
    assert [p.name for p in paths] == [f"score_RealBlur_J_realblur.{e}" for e in ("json", "csv")]
    check_replaceable(*paths)
    write_scores(result, *paths)
    content = json.loads(paths[0].read_text())
    assert content["protocol"] == "realblur"
    assert content["counts"] == {
        "scored": 3, "failed": 1, "missing_restored": 1, "missing_target": 1, "unaligned": 0,
        "benchmark": 980,
    }  # fmt: skip
    assert content["count_note"] == "the benchmark RealBlur-J has 980"
    assert (content["missing_restored"], content["missing_target"]) == (["0"], ["new"])
    assert content["versions"]["opencv"] == cv2.__version__
    with paths[1].open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["1", "2", "3", "4", "0", "new"]
    assert float(rows["3"]["psnr"]) == result.images[2].psnr
    assert rows["3"]["aligned"] == "True"
    assert "not an image" in rows["1"]["error"]
    assert rows["0"]["error"] == "no restored image"
    assert rows["new"]["error"] == "no sharp image"
    assert not list(paths[0].parent.glob("*.part"))
    # Scores give way to scores.
    check_replaceable(*paths)
    write_scores(score(folders, "realblur", "RealBlur_J"), *paths)
    assert read_scores(paths[0]) == content


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("json", '{"mine": 1}'),
        ("json", "[1]"),
        ("json", "notes"),
        ("json", ""),
        ("csv", "image,psnr\n1,2\n"),
        ("csv", ""),
    ],
)
def test_files_of_the_user_are_not_replaced(tmp_path, name, text):
    paths = dict(zip(("json", "csv"), score_paths(tmp_path, "x", "matlab"), strict=True))
    paths[name].write_text(text)
    with pytest.raises(UserError, match=f"x_matlab.{name} exists and is no file of scores"):
        check_replaceable(*paths.values())
    paths[name].unlink()
    paths["csv"].write_text(",".join(CSV_HEADER) + "\n")
    check_replaceable(*paths.values())


def test_benchmarks_agree_with_the_layout_of_the_data():
    assert {n: b.images for n, b in BENCHMARKS.items()} == {
        n: LAYOUT[f"test/{n}"].pairs for n in BENCHMARKS
    }


def test_published_numbers():
    """The targets, and the gains that Section 4 states in words."""
    assert hi_diff_scores("GoPro") == {2: (33.33, 0.964)}
    assert hi_diff_scores("HIDE") == {2: (31.46, 0.945)}
    assert hi_diff_scores("RealBlur_R") == {2: (36.28, 0.958), 3: (41.01, 0.978)}
    assert hi_diff_scores("RealBlur_J") == {2: (29.15, 0.890), 3: (33.70, 0.941)}
    assert hi_diff_scores("photographs") == {}

    def gain(table, over, dataset):
        best, other = (find_row(table, m).scores[dataset].psnr for m in ("HI-Diff (ours)", over))
        return round(best - other, 2)

    assert gain(2, "Stripformer", "GoPro") == 0.25
    assert (gain(2, "Restormer", "GoPro"), gain(2, "Restormer", "HIDE")) == (0.41, 0.24)
    assert gain(2, "Stripformer", "RealBlur_J") == 0.33
    assert (gain(2, "Restormer", "RealBlur_R"), gain(2, "Restormer", "RealBlur_J")) == (0.09, 0.19)
    assert gain(3, "Stripformer", "RealBlur_R") == 1.17
    assert gain(3, "Stripformer", "RealBlur_J") == 1.22
    assert gain(1, "Baseline", "GoPro") == 0.28
    assert gain(1, "Single-Guide", "GoPro") == 0.24
    assert gain(1, "Split-Training", "GoPro") == 1.51
    baseline, full = find_row(1, "Baseline"), find_row(1, "HI-Diff (ours)")
    assert round(full.parameters - baseline.parameters, 2) == 4.86
    assert round(full.macs - baseline.macs, 2) == 8.22
    # Table 4 repeats Table 2's GoPro column.
    for row in TABLES[4]:
        if row.method != "HI-Diff-2 (ours)":
            assert row.scores["GoPro"].psnr == find_row(2, row.method).scores["GoPro"].psnr
    assert [len(TABLES[number]) for number in (1, 2, 3, 4)] == [4, 16, 7, 8]
