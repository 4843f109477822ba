"""A training tried out, and the trace of some of its steps."""

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from small_data import make_pairs, train_options, write_yaml

from hidiff.cli import call
from hidiff.engine import dry_run as module


def main(arguments):
    return call("train", *map(str, arguments))


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_pairs(folder / "train", 3)
    make_pairs(folder / "test", 2)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options_of(data, *iters):
    options = train_options(data, 1, total_iter=sum(iters), reference_world_size=2)
    options["datasets"]["train"] |= {"iters": list(iters)}
    return options


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


def files_in(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_nothing_is_written_and_every_phase_is_measured(data, here, capsys):
    content = options_of(data, 20, 4)
    content["datasets"]["train"]["num_worker_per_gpu"] = 1
    options = write_yaml(here / "o.yml", content)
    before = files_in(here)
    assert main(["-opt", str(options), "--dry_run"]) == 0
    assert multiprocessing.active_children() == []  # the program would wait for them
    assert files_in(here) == before
    lines = lines_of(capsys)
    for start in ("1: 20 × 2×16²", "2: 4 × 1×32²", "with 2 processes"):
        assert any(line.startswith(start) for line in lines), start
    assert not any(line.startswith("with 4") for line in lines)  # another global batch
    assert lines[-1].startswith("ready")


def test_a_phase_that_does_not_fit_is_a_problem(data, here, capsys, monkeypatch):
    def no_room(self, lq, gt, **draws):
        if lq.shape[-1] == 32:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(self, lq, gt, **draws)

    from hidiff.models.stage1 import Stage1

    forward = Stage1.forward
    monkeypatch.setattr(Stage1, "forward", no_room)
    options = write_yaml(here / "o.yml", options_of(data, 3, 3))
    assert main(["-opt", str(options), "--dry_run"]) == 1
    lines = lines_of(capsys)
    assert lines[-1] == "not ready"
    assert any(line.startswith("problem:") and "phase 2" in line for line in lines)
    assert any(line.startswith("suggestion: train.micro_batch") for line in lines)


def test_a_phase_that_failed_leaves_no_gradients(data, here, monkeypatch):
    from small_training import ALONE

    from hidiff.engine.trainer import Trainer
    from hidiff.options import parse_options

    trainer = Trainer(parse_options(options_of(data, 3, 3)), ALONE, dry=True)

    def fails_later(step, source):
        next(trainer.model.parameters()).sum().backward()
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer.gradients, "accumulate", fails_later)
    assert module.measure_phase(trainer, 0).problem
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    trainer.batches.close()


def test_a_disk_without_room_is_a_problem(data, here, capsys, monkeypatch):
    """Also of a training so short that its last step is measured."""
    usage = shutil.disk_usage(here)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    options = write_yaml(here / "o.yml", options_of(data, 1, 1))
    assert main(["-opt", str(options), "--dry_run"]) == 1
    assert any("save_checkpoint_freq" in line for line in lines_of(capsys))


def test_the_disk_that_checkpoints_take(data, here):
    """Against a training that writes them."""
    from small_training import ALONE

    from hidiff.engine.trainer import Trainer
    from hidiff.options import parse_options

    options = train_options(data, 1, ema_decay=0.9)
    del options["datasets"]["val"]
    trainer = Trainer(parse_options(options), ALONE)
    trainer.run()
    needed, _ = module._disk(trainer)
    written = sum(
        path.stat().st_size
        for folder in (trainer.experiment.models, trainer.experiment.states)
        for path in folder.glob("*")
        if path.is_file() and not path.is_symlink()
    )
    # Two of the three states that are kept, and the archives' own entries.
    assert len(list(trainer.experiment.states.glob("*.state"))) == 2
    state = next(trainer.experiment.states.glob("*.state")).stat().st_size
    assert needed == pytest.approx(written + state, rel=0.15)


def test_an_experiment_that_exists_is_named(data, here):
    from hidiff import UserError

    (here / "experiments/tiny_S1/training_states").mkdir(parents=True)
    (here / "experiments/tiny_S1/training_states/4.state").write_bytes(b"x")
    options = write_yaml(here / "o.yml", options_of(data, 1, 1))
    with pytest.raises(UserError, match="--auto_resume"):
        main(["-opt", str(options), "--dry_run"])


def test_a_profile_is_a_trace_and_a_table(data, here, capsys):
    options = write_yaml(here / "o.yml", options_of(data, 3, 1))
    earlier = here / "results/profile/tiny_S1/trace.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    assert main(["-opt", str(options), "--profile", "1"]) == 0
    trace = json.loads((here / "results/profile/tiny_S1/trace.json").read_text())
    assert any("conv" in event.get("name", "") for event in trace["traceEvents"])
    assert any("aten::" in line and line.rstrip()[-1].isdigit() for line in lines_of(capsys))
    kept = [path.read_text() for path in here.glob("results/profile/*/*") if path != earlier]
    assert kept == ["earlier"]
    assert not (here / "experiments").exists()
