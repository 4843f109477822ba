"""The record of scores: means, deviations, remarks, and the files that keep it."""

import json
import math

import pytest

from hidiff.evaluation.record import (
    ImageScore,
    ScoredModel,
    Scores,
    mean_metrics,
    read_scores,
    write_scores,
)
from hidiff.evaluation.summary import remarks, score_lines
from hidiff.metrics.published import BENCHMARKS
from hidiff.utils.errors import UserError


def scores_of(dataset: str, psnr: float, count: int | None = None, **fields) -> Scores:
    """A data set whose images have one PSNR; as many as the benchmark has."""
    benchmark = BENCHMARKS.get(dataset)
    images = [
        ImageScore(name=str(index), restored={"psnr": psnr, "ssim": 0.9})
        for index in range(count or benchmark.images)
    ]
    protocol = benchmark.protocol if benchmark else "basicsr"
    known = {"protocol": protocol, "source": "pictures", "target": "datasets/test/x/target"}
    return Scores(**{"dataset": dataset, "images": images, **known, **fields})


def of_values(values, seed=None):
    return [
        ImageScore(name=str(i), seed=seed, restored={"psnr": value}, blurry={"psnr": value})
        for i, value in enumerate(values)
    ]


def test_the_mean_is_exact():
    images = of_values((1e16, 1.0, -1e16, 1.0))
    assert mean_metrics(images) == mean_metrics(images, "blurry") == {"psnr": 0.5}


def test_deviation_over_seeds_leaves_out_what_failed():
    images = [*of_values((30.0, 20.0, 9.0), 1), *of_values((32.0, 20.0, 9.0), 2)]
    images[5] = ImageScore(name="2", seed=2, error="no memory")
    scores = scores_of("x", 0.0, 1, images=images)
    assert scores.deviation()["psnr"] == pytest.approx(abs(59 / 3 - 26) / math.sqrt(2))
    assert scores.failed == {"2": "no memory"}
    infinite = [*of_values((math.inf,), 1), *of_values((math.inf,), 2)]
    assert math.isnan(scores_of("x", 0.0, 1, images=infinite).deviation()["psnr"])
    assert scores_of("x", 0.0, 1, images=images[:3]).deviation() == {}


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
def test_scores_far_from_the_published_ones_are_remarked(dataset, psnr, warned):
    found = remarks(scores_of(dataset, psnr))
    assert len(found) == warned
    other = {"RealBlur_R": "RealBlur_J", "RealBlur_J": "RealBlur_R"}.get(dataset)
    if warned:
        assert f"{psnr:.2f} dB" in found[0]
        assert (f"{other} given for {dataset}" in found[0]) == (other is not None)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        # HI-Diff trained on J scores 33.70 dB there, which is not out of the question for R.
        (scores_of("RealBlur_R", 33.7, target="data/RealBlur_J/target"), "RealBlur_J given for"),
        (scores_of("RealBlur_R", 36.0, target="data/RealBlur_R/target"), None),
        (scores_of("GoPro", 33.0, protocol="basicsr"), "'basicsr'"),
        (scores_of("GoPro", 33.0, 1110), "1110 images; the benchmark GoPro has 1111"),
        (scores_of("RealBlur_J", 29.0, 981), "the benchmark RealBlur-J has 980"),
        (scores_of("HIDE", 31.0, local="tile 384/32"), "local mode 'tile 384/32'"),
        (scores_of("mine", 29.0, 2, local="tlc 384/32"), None),
        (scores_of("mine", math.inf, 2), "identical"),
        (scores_of("mine", 29.0, 2, target=None), "no ground truth"),
        (scores_of("mine", 29.0, 2, upper_bound=True), "upper bound"),
    ],
)
def test_remarks(scores, words):
    found = remarks(scores)
    assert len(found) == (words is not None)
    assert not found or words in found[0]


@pytest.fixture
def several():
    best, blurry = {"psnr": math.inf, "ssim": 1.0}, {"psnr": 20.0, "ssim": 0.5}
    images = [
        ImageScore(name="a", seed=3, restored=best, blurry=blurry, aligned=True, seconds=0.5),
        ImageScore(name="b", seed=3, restored={"psnr": 30.0, "ssim": 0.9}, aligned=False),
        *(ImageScore(name=name, seed=3, error="damaged") for name in "cd"),
        ImageScore(name="e", seed=3, error="too small", cropped=True),
    ]
    tested = Scores(
        dataset="RealBlur_J",
        protocol="realblur",
        source="test",
        seed=3,
        model=ScoredModel(description="a model", sha256="00", trained_on={"name": "photos"}),
        images=images,
        folder="r",
        target="t",
        input="i",
        local="tile 64/8",
        upper_bound=True,
        settings={"name": "x"},
    )
    return [tested, scores_of("mine", 25.0, 2)]


def test_the_file_holds_all_of_it(several, tmp_path):
    write_scores(tmp_path / "new", several)
    assert read_scores(tmp_path / "new") == several
    text = (tmp_path / "new/scores.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)["sets"][0]
    assert content["summary"]["restored"]["psnr"] == "Infinity"
    assert content["summary"]["blurry"]["psnr"] == 20.0
    assert content["summary"]["seconds_per_image"] == 0.5
    assert content["images"][2] == {"name": "c", "seed": 3, "error": "damaged"}


def test_scores_replace_their_like_and_no_others(several, tmp_path):
    write_scores(tmp_path, several)
    newer, other = scores_of("mine", 26.0, 3), scores_of("mine", 27.0, 3, protocol="matlab")
    write_scores(tmp_path, [newer, other])
    assert read_scores(tmp_path) == [several[0], newer, other]


def test_the_table_has_the_papers_scores_and_every_failure(several):
    lines = score_lines(several)
    rows = [line.split() for line in lines]
    assert rows[2][:5] == ["RealBlur_J", "realblur", "tile", "64/8", "2"]
    assert rows[3][-2:] == ["29.15", "0.890"]
    assert rows[4][-2:] == ["33.70", "0.941"]
    assert rows[5] == ["mine", "basicsr", "?", "2", "-", "25.0000", "-", "0.9000"]
    assert "RealBlur_J: 2 images (c, d): damaged" in lines
    assert "RealBlur_J/e: too small" in lines


@pytest.mark.parametrize("text", ['{"mine": 1}', "[1]", "notes", "", '{"kind": 1, "sets": [1]}'])
def test_files_of_the_user_are_not_replaced(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(UserError, match=r"scores\.json"):
        write_scores(tmp_path, [])
    assert (tmp_path / "scores.json").read_text() == text
