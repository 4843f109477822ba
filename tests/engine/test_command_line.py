"""train.py and test.py as programs: exit codes, messages, several processes."""

import signal
import socket
from pathlib import Path

import pytest
from small_data import make_pairs, test_options, train_options, write_yaml
from small_programs import run, start

from hidiff.evaluation.record import read_scores

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    make_pairs(folder / "train", 3)
    make_pairs(folder / "test", 3)
    return folder


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (["train:optim_total:lrr=1"], "train.optim_total.lrr: "),
        (["datasets:train:dataroot_lq=/nowhere"], "datasets.train.dataroot_lq: "),
        (["datasets:train:gt_sizes=[16, 64]", "datasets:train:gt_size=64"], "train/input/scene-"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(folder, change, place):
    options = write_yaml(folder / "bad.yml", {**train_options(folder, 1), "name": "bad"})
    result = run(folder, ROOT / "train.py", "-opt", options, "--force_yml", *change)
    assert result.returncode == 2
    assert place in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_a_stop_has_an_exit_code_of_its_own(folder):
    options = train_options(folder, 1, total_iter=10**6)
    options["datasets"]["train"]["iters"] = [2, 10**6 - 2]
    path = write_yaml(folder / "long.yml", {**options, "name": "long"})
    with start(folder, ROOT / "train.py", "-opt", path) as training:
        assert any(line.startswith("step 1/") for line in training.output)
        training.send_signal(signal.SIGHUP)
        assert training.wait() == 75
    assert list((folder / "experiments/long/training_states").glob("*.state"))


@pytest.fixture(scope="module")
def trained(folder):
    """The folder, in which two processes trained both stages."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"--master_port={free.getsockname()[1]}"
    # The launch line of the release, and today's.
    released = ["-m", "torch.distributed.launch", "--nproc_per_node=2", port]
    for stage, launch in ((1, released), (2, TORCHRUN)):
        content = train_options(folder, stage, total_iter=2)
        content["datasets"]["train"]["iters"] = [1, 1]
        content["logger"]["save_checkpoint_freq"] = 1
        options = write_yaml(folder / f"S{stage}.yml", content)
        result = run(folder, *launch, ROOT / "train.py", "-opt", options, "--launcher", "pytorch")
        assert result.returncode == 0, result.stderr
        assert "2 processes × 2 × 1 accumulated" in result.stdout
        assert result.stdout.count("saved weights and training state") == 2
    return folder


@pytest.mark.slow("two trainings and a test of two processes under torchrun")
def test_two_processes_train_and_test(trained):
    """On CPUs with gloo; the test is shared out over both."""
    options = write_yaml(trained / "test.yml", test_options(trained))
    reports = []
    for launch, more in ((TORCHRUN, ["--launcher", "pytorch"]), ([], [])):
        result = run(trained, *launch, ROOT / "test.py", "-opt", options, *more)
        assert result.returncode == 0, result.stderr
        reports += read_scores(trained / "results/tiny_test")
        for image in reports[-1].images:
            assert image.seconds > 0
            image.seconds = None
    shared, alone = reports
    assert shared == alone


@pytest.mark.slow("needs the trained weights of the test above")
def test_a_damaged_image_makes_exit_code_1(trained):
    make_pairs(trained / "damaged" / "test", 2)
    (trained / "damaged" / "test" / "input" / "scene-000.png").write_bytes(b"\x89PNG")
    options = write_yaml(
        trained / "damaged.yml", {**test_options(trained / "damaged"), "name": "damaged"}
    )
    result = run(trained, ROOT / "test.py", "-opt", options)
    assert result.returncode == 1
    assert "small/scene-000: " in result.stdout
    assert "Traceback" not in result.stderr


def test_launcher_without_its_variables_says_so(folder):
    options = write_yaml(folder / "S1.yml", train_options(folder, 1))
    for launcher, variable in (("pytorch", "RANK"), ("slurm", "SLURM_PROCID")):
        result = run(folder, ROOT / "train.py", "-opt", options, "--launcher", launcher)
        assert result.returncode == 2
        assert variable in result.stderr
