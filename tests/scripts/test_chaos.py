"""A short form of scripts/chaos_test.py; and that it sees differences."""

import os
import re
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from small_programs import Program

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "scripts"))

import chaos_job  # noqa: E402
import chaos_test  # noqa: E402

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="finds processes in /proc"
)


def start_fast(command, *, cwd, env, stdout, **_):
    """`subprocess.Popen` for Python, which need not import PyTorch."""
    outputs = [Connection(os.dup(stdout.fileno()), readable=False) for _ in range(2)]
    return Program(cwd, command[1:], env, outputs)


@pytest.mark.slow("six trainings by torchrun")
def test_two_kills_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos_job.subprocess, "Popen", start_fast)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        chaos_test.main(["--kills=2", "--steps=16", f"--output={tmp_path / 'chaos'}"])
    signal.signal(signal.SIGTERM, handler)
    assert end.value.code == 0
    report = (tmp_path / "chaos/report.md").read_text()
    rows = re.findall(r"^\| \d+ \| \d \| ([^|]+) \|.*\| ok \|$", report, re.MULTILINE)
    assert sorted(rows) == sorted([chaos_test.BETWEEN, chaos_test.KINDS[0]])
    assert "bit for bit" in report
    # The states that were compared are complete: the killed run has every one of its steps.
    states = tmp_path / "chaos/killed/experiments/chaos_S2/training_states"
    state = torch.load(states / "8.state", weights_only=True)
    assert (state["step"], state["validated"]) == (8, True)
    assert {"networks", "average", "optimizer", "best"} <= set(state)
    assert state["started_from"]["net_g"]["step"] == 8


def test_a_difference_in_one_bit_or_line_is_seen(tmp_path):
    tensor = torch.ones(3)
    other = torch.nextafter(tensor, torch.tensor(2.0))
    for name, value in (("ours", other), ("theirs", tensor)):
        folder = tmp_path / name / "training_states"
        folder.mkdir(parents=True)
        torch.save({"a": [1, {"b": value}], "c": "text"}, folder / "8.state")
    assert chaos_test.compare_files(tmp_path / "ours", tmp_path / "theirs", 8) == [
        "training_states/8.state.a[1].b differs"
    ]
    assert chaos_test.compare_files(tmp_path / "theirs", tmp_path / "theirs", 8) == []
    expected = {1: ["l_pix 0.5"], 2: ["l_pix 0.4"]}
    assert chaos_test.compare_logs(expected, expected) == []
    for merged in (
        {1: ["l_pix 0.5"]},
        {1: ["l_pix 0.5"], 2: ["l_pix 0.4", "l_pix 0.4"]},
        {1: ["l_pix 0.5"], 2: ["l_pix 0.3"]},
        {**expected, 3: ["l_pix 0.3"]},
    ):
        assert len(chaos_test.compare_logs(merged, expected)) == 1


def test_lost_steps_are_seen():
    def problems(kind, reached, resumed):
        kill = chaos_test.Kill(kind, reached, "", 1.0)
        chaos_test.judge(kill, resumed)
        return kill.problems

    assert problems(chaos_test.TERM, 6, 6) == []
    assert problems(chaos_test.TERM, 6, 4) == ["steps after 4 are lost"]
    assert problems(chaos_test.ALL, 6, 4) == []
    assert problems(chaos_test.ALL, 8, 4) == []  # killed between the line and the checkpoint
    assert problems(chaos_test.ALL, 9, 4) == ["steps after 4 are lost"]
    assert problems(chaos_test.ALL, 6, 8) == ["resumed from a step that was not logged"]
