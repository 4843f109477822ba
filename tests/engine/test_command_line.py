"""train.py and test.py as programs: exit codes, messages, several processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_data import make_pairs, test_options, train_options, write_yaml

from hidiff.scoring.files import read_scores

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    make_pairs(folder / "train", 3)
    make_pairs(folder / "test", 3)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["train:optim_total:lrr=1"], "train.optim_total.lrr: AdamW has no option 'lrr'"),
        (["datasets:train:dataroot_lq=/nowhere"], "dataroot_lq: the folder /nowhere does not"),
        (["datasets:train:gt_sizes=[16, 64]", "datasets:train:gt_size=64"], "smaller than the"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(folder, change, message):
    options = write_yaml(folder / "bad.yml", {**train_options(folder, 1), "name": "bad"})
    result = run(folder, ROOT / "train.py", "-opt", options, "--force_yml", *change)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_a_stop_has_an_exit_code_of_its_own(folder):
    options = train_options(folder, 1, total_iter=10**6)
    options["datasets"]["train"]["iters"] = [2, 10**6 - 2]
    path = write_yaml(folder / "long.yml", {**options, "name": "long"})
    with subprocess.Popen(
        [sys.executable, ROOT / "train.py", "-opt", path],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True,
    ) as training:  # fmt: skip
        assert any(line.startswith("step 1/") for line in training.stdout)
        training.send_signal(signal.SIGHUP)
        training.stdout.read()
        assert training.wait() == 75
    assert list((folder / "experiments/long/training_states").glob("*.state"))


def test_two_processes_train_and_test(folder):
    """The launch line of the release, on CPUs with gloo; then a test shared out over both."""
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"--master_port={free.getsockname()[1]}"
    released = ["-m", "torch.distributed.launch", "--nproc_per_node=2", port]
    for stage, launch in ((1, released), (2, torchrun)):
        options = write_yaml(folder / f"S{stage}.yml", train_options(folder, stage))
        result = run(folder, *launch, ROOT / "train.py", "-opt", options, "--launcher", "pytorch")
        assert result.returncode == 0, result.stderr
        assert "2 processes × 2 × 1 accumulated" in result.stdout
        assert result.stdout.count("saved weights and training state") == 2
    options = write_yaml(folder / "test.yml", test_options(folder))
    result = run(folder, *torchrun, ROOT / "test.py", "-opt", options, "--launcher", "pytorch")
    assert result.returncode == 0, result.stderr
    (shared,) = read_scores(folder / "results/tiny_test")
    result = run(folder, ROOT / "test.py", "-opt", options)
    assert result.returncode == 0, result.stderr
    (alone,) = read_scores(folder / "results/tiny_test")
    for image in (*shared.images, *alone.images):
        assert image.seconds > 0
        image.seconds = None
    assert shared == alone


def test_a_damaged_image_makes_exit_code_1(folder):
    if not (folder / "experiments/tiny_S2/models").exists():
        pytest.skip("needs the weights of test_two_processes_train_and_test")
    make_pairs(folder / "damaged" / "test", 2)
    (folder / "damaged" / "test" / "input" / "scene-000.png").write_bytes(b"\x89PNG")
    options = write_yaml(
        folder / "damaged.yml", {**test_options(folder / "damaged"), "name": "damaged"}
    )
    result = run(folder, ROOT / "test.py", "-opt", options)
    assert result.returncode == 1
    assert "small/scene-000: " in result.stdout
    assert "Traceback" not in result.stderr


def test_launcher_without_its_variables_says_so(folder):
    options = write_yaml(folder / "S1.yml", train_options(folder, 1))
    for launcher, variable in (("pytorch", "RANK"), ("slurm", "SLURM_PROCID")):
        result = run(folder, ROOT / "train.py", "-opt", options, "--launcher", launcher)
        assert result.returncode == 2
        assert variable in result.stderr
