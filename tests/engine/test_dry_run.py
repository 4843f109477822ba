"""A training tried out, and the trace of some of its steps."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from small_data import make_pairs, train_options, write_yaml
from small_training import quick_options, validated

from hidiff import UserError
from hidiff.cli import main
from hidiff.models import Stage1


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def files_here():
    return sorted(str(path) for path in Path.cwd().rglob("*"))


def try_out(content, *more):
    """The exit code of a dry run, which writes nothing."""
    options = write_yaml(Path("o.yml"), content)
    before = files_here()
    try:
        return main(["train", "-opt", str(options), "--dry_run", *more])
    finally:
        assert files_here() == before
        assert multiprocessing.active_children() == []  # the program would wait for them


def test_every_phase_is_tried_and_the_call_that_was_made_is_printed(data, capsys):
    content = train_options(data, 1, total_iter=12)
    content["datasets"]["train"] |= {"iters": [10, 2], "num_worker_per_gpu": 1, "cache": "cached"}
    assert try_out(content, "--force_yml", "name=other") == 0
    lines = capsys.readouterr().out.splitlines()
    for start in ("1: 10 × 2×16²", "2: 2 × 1×32²"):
        assert any(line.startswith(start) for line in lines), start
    assert lines[-1].endswith("train -opt o.yml --force_yml name=other")
    assert "dry" not in lines[-1]


def test_a_phase_that_does_not_fit_is_a_problem(data, capsys, monkeypatch):
    forward = Stage1.forward

    def no_room(self, lq, gt, **draws):
        if lq.shape[-1] == 32:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(self, lq, gt, **draws)

    monkeypatch.setattr(Stage1, "forward", no_room)
    assert try_out(train_options(data, 1)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "not ready"
    assert any("phase 2" in line and "train.micro_batch" in line for line in lines)


@pytest.mark.parametrize("part", ["train", "test"])
def test_damaged_images_are_problems_that_do_not_suggest_memory(tmp_path, capsys, part):
    for name in ("train", "test"):
        make_pairs(tmp_path / name, 3)
    (tmp_path / part / "target" / "scene-000.png").write_bytes(b"\x89PNG damaged")
    assert try_out(validated(quick_options(tmp_path), tmp_path, 4)) == 1
    printed = capsys.readouterr().out
    assert "scene-000.png" in printed
    assert "micro_batch" not in printed
    assert printed.splitlines()[-1] == "not ready"


def test_stage_2_is_tried_before_stage_1_is_trained(data, capsys):
    content = train_options(data, 2)
    content["path"] = {"stage1": "tiny_S1"}
    assert try_out(content) == 0
    printed = capsys.readouterr().out
    assert "tiny_S1" in printed


def test_an_experiment_that_exists_is_named(data):
    Path("experiments/quick/training_states").mkdir(parents=True)
    Path("experiments/quick/training_states/4.state").write_bytes(b"x")
    with pytest.raises((UserError, SystemExit)):
        try_out(quick_options(data))


def test_a_profile_is_a_trace_and_a_table(data, capsys):
    options = write_yaml(Path("o.yml"), quick_options(data))
    earlier = Path("results/profile/quick/trace.json")
    earlier.parent.mkdir(parents=True)
    earlier.write_text("earlier")
    assert main(["train", "-opt", str(options), "--profile", "1"]) == 0
    trace = json.loads(earlier.read_text())
    assert any("conv" in event.get("name", "") for event in trace["traceEvents"])
    lines = capsys.readouterr().out.splitlines()
    assert any("aten::" in line and line.rstrip()[-1].isdigit() for line in lines)
    kept = [path.read_text() for path in Path().glob("results/profile/*/*") if path != earlier]
    assert kept == ["earlier"]
    assert not Path("experiments").exists()
