"""Training states."""

import pytest
import torch
from torch import nn

from hidiff import UserError
from hidiff.engine import checkpoint


def state(step):
    return {"step": step, **{entry: {} for entry in checkpoint.STATE_ENTRIES - {"step"}}}


def test_only_the_newest_states_are_kept(tmp_path):
    for step in (2, 4, 6, 8, 10):
        checkpoint.save_state(state(step), tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10.state", "6.state", "8.state"]
    assert checkpoint.newest_state(tmp_path)[0].content["step"] == 10


def test_a_damaged_state_is_passed_over_with_a_notice(tmp_path):
    for step in (2, 4):
        checkpoint.save_state(state(step), tmp_path, step)
    newest = tmp_path / "4.state"
    newest.write_bytes(newest.read_bytes()[:100])
    found, notices = checkpoint.newest_state(tmp_path)
    assert found.content["step"] == 2
    assert "4.state (" in notices[0]


def test_no_states_is_no_error(tmp_path):
    assert checkpoint.newest_state(tmp_path / "nothing") == (None, [])


def test_states_of_an_abandoned_branch_are_set_aside(tmp_path):
    for step in (3, 8, 9):
        checkpoint.save_state(state(step), tmp_path, step)
    notices = checkpoint.set_aside_newer(tmp_path, 3)
    assert "8.state, 9.state were renamed" in notices[0]
    assert checkpoint.newest_state(tmp_path)[0].content["step"] == 3
    checkpoint.save_state(state(4), tmp_path, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "3.state",
        "4.state",
        "8.state.superseded",
        "9.state.superseded",
    ]
    assert checkpoint.set_aside_newer(tmp_path, 4) == []


def test_when_no_state_is_readable_it_is_not_started_over(tmp_path):
    for step in (2, 4):
        checkpoint.save_state(state(step), tmp_path, step)
        (tmp_path / f"{step}.state").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"4\.state \(.*2\.state \(") as caught:
        checkpoint.newest_state(tmp_path)
    assert "add --auto_resume" not in str(caught.value)


def test_weights_that_are_not_finite_are_passed_over(tmp_path):
    bad = nn.Linear(1, 1)
    with torch.no_grad():
        bad.bias[0] = float("nan")
    networks = {2: {"net_g": nn.Linear(1, 1).state_dict()}, 4: {"net_g": bad.state_dict()}}
    for step, content in networks.items():
        checkpoint.save_state({**state(step), "networks": content}, tmp_path, step)
    found, (notice,) = checkpoint.newest_state(tmp_path)
    assert found.content["step"] == 2
    assert "4.state: net_g: " in notice and "bias" in notice


def test_weights_are_no_training_state(tmp_path):
    torch.save({"params": {"a": torch.zeros(1)}}, tmp_path / "net_g.pth")
    with pytest.raises(UserError, match="no training state"):
        checkpoint.load_state(tmp_path / "net_g.pth", "path.resume_state")
