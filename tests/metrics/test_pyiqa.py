"""Metrics of the package pyiqa, with a stand-in for it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_data import picture, write_rgb

from hidiff import UserError
from hidiff.cli import call
from hidiff.evaluation.evaluator import build_metrics
from hidiff.evaluation.record import read_scores
from hidiff.metrics import pyiqa


class Metric:
    """Mean absolute difference, or the mean; the images are (1, 3, H, W) in [0, 1]."""

    def __init__(self, mode):
        self.metric_mode = mode

    def __call__(self, image, target=None):
        assert image.shape[:2] == (1, 3) and image.min() >= 0 and image.max() <= 1
        return (image.mean() if target is None else (image - target).abs().mean())[None]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    def create_metric(name, device):
        if name == "musiq":
            raise OSError("no network")
        return Metric({"lpips": "FR", "niqe": "NR"}[name])

    package = SimpleNamespace(
        list_models=lambda: ["lpips", "niqe", "musiq"], create_metric=create_metric
    )
    monkeypatch.setitem(sys.modules, "pyiqa", package)
    pyiqa._load.cache_clear()
    yield
    pyiqa._load.cache_clear()


def test_values_are_those_of_the_package():
    restored, target = picture(0, 12, 16), picture(1, 12, 16)
    found = pyiqa.pyiqa_score(restored, target, metric="lpips")
    assert found == pytest.approx(np.abs(restored / 255 - target / 255).mean(), rel=1e-5)
    assert pyiqa.pyiqa_score(restored, metric="niqe") == pytest.approx(restored.mean() / 255)


def test_option_files_name_them_and_images_without_a_sharp_one_have_the_others():
    scorer = build_metrics(
        {
            "lpips": {"type": "pyiqa", "metric": "lpips", "better": "lower"},
            "niqe": {"type": "pyiqa", "metric": "niqe"},
        }
    )
    image = picture(0, 12, 16)
    assert set(scorer(image, image)) == {"lpips", "niqe"}
    assert set(scorer(image, None)) == {"niqe"}


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(UserError, match="lpips"):
        pyiqa.pyiqa_score(picture(0, 12, 16), metric="lpisp")
    with pytest.raises(UserError, match="no network"):
        pyiqa.needs_target("musiq")
    with pytest.raises(UserError, match="sharp"):
        pyiqa.pyiqa_score(picture(0, 12, 16), metric="lpips")
    pyiqa._load.cache_clear()
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # as where it is not installed
    with pytest.raises(UserError, match="pip install"):
        pyiqa.needs_target("lpips")


def test_folders_are_scored_with_and_without_sharp_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rgb(Path("restored/a.png"), picture(0, 24, 32))
    write_rgb(Path("sharp/a.png"), picture(1, 24, 32))
    folders = ["--restored", "restored", "--output", "out", "--jobs", "1"]
    assert call("score", *folders, "--target", "sharp", "--metrics", "lpips,niqe") == 0
    (scores,) = read_scores(Path("out"))
    assert set(scores.mean()) == {"psnr", "ssim", "lpips", "niqe"}
    assert call("score", *folders, "--metrics", "niqe") == 0
    (scores,) = read_scores(Path("out"))
    assert set(scores.mean()) == {"niqe"} and scores.target is None
    with pytest.raises(UserError, match="lpips"):
        call("score", *folders, "--metrics", "lpips")
    with pytest.raises(UserError):
        call("score", *folders)
