"""The quickstart's parts, with a few steps in place of its minutes."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from small_data import make_pairs, picture, write_rgb

from hidiff.engine.trainer import Trainer
from hidiff.evaluation.record import read_scores
from hidiff.evaluation.test_run import run_test
from hidiff.options import load_options
from hidiff.utils.distributed import Processes

ROOT = Path(__file__).resolve().parent.parent.parent
ALONE = Processes(0, 1, torch.device("cpu"))


def test_its_option_files_train_and_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        photograph = tmp_path / f"datasets/quickstart/photographs/train/{number}.png"
        write_rgb(photograph, picture(number, 256, 260))
    make_pairs(tmp_path / "datasets/quickstart/test", 2, height=41, width=50)
    few = [
        "train:total_iter=2",
        "datasets:train:iters=[1, 1]",
        "datasets:train:batch_size_per_gpu=2",
        "datasets:train:mini_batch_sizes=[2, 1]",
        "datasets:train:num_worker_per_gpu=0",
    ]
    for stage in ("S1", "S2"):
        options = load_options(ROOT / f"options/quickstart/{stage}.yml", few)
        Trainer(options, ALONE).run()
    assert run_test(load_options(ROOT / "options/quickstart/test.yml"), ALONE)
    (scores,) = read_scores(tmp_path / "results/quickstart")
    assert len(scores.scored) == 2
    assert set(scores.mean("blurry")) == set(scores.mean()) == {"psnr", "ssim"}


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "setup_env.sh"])
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], check=True, timeout=20)


def test_requirements_are_installed_once(tmp_path):
    """With an active environment: pip is called the first time, not the second."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    calls = tmp_path / "calls.txt"
    python = binaries / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    python.chmod(0o755)
    environment = {**os.environ, "VIRTUAL_ENV": str(tmp_path)}
    command = f"source {ROOT}/scripts/setup_env.sh requirements.txt && echo PYTHON=$PYTHON"
    for expected in (1, 1):
        result = subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        assert f"PYTHON={python}" in result.stdout
        assert calls.read_text().count("pip install") == expected
