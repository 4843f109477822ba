"""The comparison of two precisions, on a training of a few steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_data import make_pairs, train_options, write_yaml

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts/compare_precision.py"


@pytest.fixture
def run(tmp_path):
    make_pairs(tmp_path / "train", 3)
    make_pairs(tmp_path / "test", 1)
    options = write_yaml(tmp_path / "S1.yml", train_options(tmp_path, 1))

    def start(*precisions):
        result = subprocess.run(
            [sys.executable, str(SCRIPT), "-opt", str(options), "--steps", "3",
             "--output", "out/result.json", "--precisions", *precisions],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return result, tmp_path / "out/result.json"

    return start


def test_bf16_differs_a_little_from_fp32(run, tmp_path):
    result, file = run("fp32", "bf16")
    assert result.returncode == 0, result.stderr
    report = json.loads(file.read_text())
    assert report["steps"] == 3
    assert 0 < report["largest_loss_difference"] < 0.01
    assert 0 < abs(report["score_difference"]["ValSet/psnr"]) < 0.5
    (a,), (b,) = report["loss_windows"].values()
    assert report["largest_loss_difference"] == pytest.approx(abs(b - a) / a)
    assert "largest difference of a window: 0." in result.stdout
    for precision in ("fp32", "bf16"):
        assert (tmp_path / f"experiments/tiny_S1_{precision}/models/net_g_latest.pth").exists()


def test_what_is_the_same_on_a_cpu_is_found_the_same(run):
    result, file = run("fp32", "tf32")
    assert result.returncode == 0, result.stderr
    report = json.loads(file.read_text())
    assert report["largest_loss_difference"] == 0
    assert report["score_difference"]["ValSet/psnr"] == 0


def test_one_precision_is_no_comparison(run):
    result, _ = run("bf16", "bf16")
    assert result.returncode == 2
    assert "--precisions: name two different ones" in result.stderr
