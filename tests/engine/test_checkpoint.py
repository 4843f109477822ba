"""Weights files of the release and training states."""

import errno
import os
import pickle
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from hidiff import UserError
from hidiff.engine import checkpoint
from hidiff.weights.pretrained import read_together
from hidiff.weights.read import load_network, load_weights, require_one_step

WHERE = "path.pretrain_network_g"


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def other(network):
    """The same network with other weights."""
    copy = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert not torch.equal(copy[0].weight, network[0].weight)
    return copy


def load(network, path, param_key="params", strict=True):
    weights = load_weights(path, WHERE, param_key)
    return load_network(network, weights, strict=strict)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", ["params", "params_ema", None])
def test_every_layout_of_a_released_file_loads(tmp_path, network, prefix, key):
    state = {prefix + k: v for k, v in network.state_dict().items()}
    torch.save(state if key is None else {key: state}, tmp_path / "net_g.pth")
    loaded = other(network)
    assert load(loaded, tmp_path / "net_g.pth", param_key=key) == []
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_saved_files_have_the_released_names_and_layout(tmp_path, network):
    checkpoint.save_networks({"net_g": network}, tmp_path, 40, 100)
    visible = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))
    assert visible == ["net_g_40.pth", "net_g_latest.pth"]
    for name in visible:
        content = torch.load(tmp_path / name, weights_only=True)
        assert list(content) == ["params", "step", "total_iter"]
        assert list(content["params"]) == list(network.state_dict())
        assert load_weights(tmp_path / name, WHERE).step == 40


NETWORKS = {"net_g": nn.Linear(2, 2), "net_d": nn.Linear(2, 2)}


def latest(folder):
    """The steps that the `…_latest.pth` files are of."""
    paths = [folder / f"{name}_latest.pth" for name in NETWORKS]
    return [load_weights(p, WHERE).step if p.exists() else None for p in paths]


def no_links(monkeypatch, number=errno.EPERM):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("before", ["links", "copies", "nothing"])
def test_the_latest_files_of_all_networks_change_together(tmp_path, monkeypatch, before):
    """At every call that changes the folder they are of one step."""
    if before != "nothing":
        with monkeypatch.context() as patch:
            if before == "copies":
                no_links(patch)
            for step in (1, 2):
                checkpoint.save_networks(NETWORKS, tmp_path, step, 100)
        assert (tmp_path / "net_g_latest.pth").is_symlink() == (before == "links")
    old = None if before == "nothing" else 2
    seen = []

    def watched(function):
        def call(*args, **kwargs):
            seen.append(latest(tmp_path))
            try:
                return function(*args, **kwargs)
            finally:
                seen.append(latest(tmp_path))

        return call

    with monkeypatch.context() as patch:
        for name in ("link", "symlink", "replace", "rename", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, watched(getattr(os, name)))
        checkpoint.save_networks(NETWORKS, tmp_path, 4, 100)
    assert len(seen) > 10
    assert all(len({step for step in steps if step is not None}) <= 1 for steps in seen)
    if old is not None:
        assert all(None not in steps for steps in seen)
        assert [old, old] in seen
    assert latest(tmp_path) == seen[-1] == [4, 4]
    # Who clears away the numbered files keeps the latest ones.
    (tmp_path / "net_g_4.pth").unlink()
    assert latest(tmp_path) == [4, 4]


def test_of_replaced_latest_files_only_one_is_kept(tmp_path):
    for step in range(5):
        checkpoint.save_networks(NETWORKS, tmp_path, step, 100)
    assert len(list(tmp_path.glob(".newest-*"))) == 2


def test_a_full_disk_makes_no_copies(tmp_path, monkeypatch):
    checkpoint.save_networks(NETWORKS, tmp_path, 1, 100)
    with monkeypatch.context() as patch:
        no_links(patch, errno.ENOSPC)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save_networks(NETWORKS, tmp_path, 2, 100)
    assert latest(tmp_path) == [1, 1]


def test_latest_files_of_several_steps_are_refused(tmp_path, monkeypatch):
    checkpoint.save_networks(NETWORKS, tmp_path, 1, 100)
    no_links(monkeypatch)
    checkpoint.save_networks({"net_d": NETWORKS["net_d"]}, tmp_path, 2, 100)
    names = ("net_g_latest", "net_d_latest", "net_d_1")
    loaded = {n: load_weights(tmp_path / f"{n}.pth", WHERE) for n in names}
    message = r"net_g_latest\.pth of step 1, net_d_latest\.pth of step 2"
    with pytest.raises(UserError, match=message):
        require_one_step(loaded.values())
    del loaded["net_d_latest"]
    require_one_step(loaded.values())


def test_weights_beside_a_training_that_saves_are_read_again(tmp_path):
    def reader(saves):
        def read():
            loaded = {}
            for name in NETWORKS:
                loaded[name] = load_weights(tmp_path / f"{name}_latest.pth", WHERE)
                if saves:
                    checkpoint.save_networks(NETWORKS, tmp_path, saves.pop(0), 100)
            return loaded

        return read

    checkpoint.save_networks(NETWORKS, tmp_path, 0, 100)
    read = read_together(reader([1, 2]))
    assert [weights.step for weights in read.values()] == [2, 2]
    with pytest.raises(UserError, match=r"_latest\.pth of step"):
        read_together(reader([3, 4, 5, 6, 7, 8]))


def test_a_checkpoint_of_another_configuration_says_what_differs(tmp_path, network):
    torch.save({"params": nn.Sequential(nn.Linear(3, 5)).state_dict()}, tmp_path / "net_g.pth")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(
        UserError,
        match=r"another configuration: 2 parameters are missing \(first: 1\.bias\).*"
        r"2 have another shape \(first: 0\.bias, \(5,\) in the file, \(4,\) here\)",
    ):
        load(network, tmp_path / "net_g.pth")
    for name, tensor in network.state_dict().items():
        assert torch.equal(before[name], tensor)


def test_loading_that_is_not_strict_takes_what_fits(tmp_path, network):
    source = other(network)
    state = {**source.state_dict(), "extra": torch.zeros(1)}
    del state["1.bias"]
    torch.save({"params": state}, tmp_path / "net_g.pth")
    kept = network[1].bias.clone()
    notices = load(network, tmp_path / "net_g.pth", strict=False)
    assert "1 parameters are missing" in notices[0]
    assert "1 are unknown (first: extra)" in notices[0]
    assert torch.equal(network[0].weight, source[0].weight)
    assert torch.equal(network[1].bias, kept)


def test_a_missing_entry_names_the_ones_there_are(tmp_path, network):
    torch.save({"generator": network.state_dict(), "step": 4}, tmp_path / "net_g.pth")
    with pytest.raises(UserError, match=r"no entry 'params',.* only generator, step; .*param_key_"):
        load(network, tmp_path / "net_g.pth")


def test_without_the_entry_asked_for_params_is_taken_and_said(tmp_path, network):
    torch.save({"params": network.state_dict()}, tmp_path / "net_g.pth")
    loaded = other(network)
    (notice,) = load(loaded, tmp_path / "net_g.pth", param_key="params_ema")
    assert "'params_ema'" in notice and "'params'" in notice
    assert torch.equal(loaded[0].weight, network[0].weight)


def test_a_folder_or_text_as_weights_is_named(tmp_path, network):
    path = tmp_path / "net_g.pth"
    path.mkdir()
    with pytest.raises(UserError, match=r"path\.pretrain_network_g: .*net_g\.pth"):
        load(network, path)
    path = tmp_path / "notes.txt"
    path.write_text("text\n" * 9)
    with pytest.raises(UserError, match=r"path\.pretrain_network_g: .*notes\.txt"):
        load(network, path)


@pytest.mark.parametrize("kept", [0, 10, 300, -1])
def test_a_truncated_weights_file_is_named(tmp_path, network, kept):
    path = tmp_path / "net_g.pth"
    torch.save({"params": network.state_dict()}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        UserError, match=r"path\.pretrain_network_g: .*net_g\.pth \(\d+ b.* damaged"
    ):
        load(network, path)


class _Malicious:
    def __reduce__(self):
        return (print, ("this must not be run",))


def test_a_file_with_code_in_it_is_refused(tmp_path, network, capsys):
    path = tmp_path / "net_g.pth"
    torch.save({"params": _Malicious()}, path)
    with pytest.raises(UserError):
        load(network, path)
    path.write_bytes(pickle.dumps(_Malicious()))
    with pytest.raises(UserError):
        load(network, path)
    assert "must not be run" not in capsys.readouterr().out


def test_a_failed_write_leaves_the_old_file(tmp_path, network, monkeypatch):
    path = tmp_path / "a.pth"
    checkpoint.save_atomically({"old": torch.ones(1)}, path)

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_atomically({"new": torch.ones(1)}, path)
    monkeypatch.undo()
    assert list(torch.load(path, weights_only=True)) == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


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


def test_weights_are_no_training_state(tmp_path, network):
    checkpoint.save_networks({"net_g": network}, tmp_path, 1, 100)
    with pytest.raises(UserError, match="no training state"):
        checkpoint.load_state(tmp_path / "net_g_1.pth", "path.resume_state")


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\n",
        b"404: Not Found",
        b"<html><body>quota exceeded</body></html>",
        b"hello world, this is text",
    ],
)
def test_a_download_that_is_no_weights_file_is_named(tmp_path, network, content):
    path = tmp_path / "net_g.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(network, path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("params", [5, {1: torch.ones(1)}, {"a": [1]}])
def test_an_entry_that_is_no_state_dict_is_named(tmp_path, network, params):
    torch.save({"params": params, "step": 1}, tmp_path / "net_g.pth")
    with pytest.raises(UserError, match="'params'"):
        load(network, tmp_path / "net_g.pth")


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


def bit_flip(rng, content):
    place, bit = int(rng.integers(len(content))), int(rng.integers(8))
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def zeroed_page(rng, content):
    page = int(rng.integers(-(-len(content) // 4096))) * 4096
    length = len(content[page : page + 4096])
    return content[:page] + bytes(length) + content[page + length :]


@pytest.mark.parametrize("damage", [bit_flip, zeroed_page])
def test_damage_anywhere_in_a_file_is_noticed_or_harmless(tmp_path, damage):
    """PyTorch itself reads most of these files without an error, and with other values."""
    rng = np.random.default_rng(0)
    networks = {"net_g": {"weight": torch.randn(100, 100), "steps": torch.arange(9)}}
    for step in (2, 4):
        content = {**state(step), "networks": networks}
        checkpoint.save_state(content, tmp_path, step)
    newest = tmp_path / "4.state"
    whole = newest.read_bytes()
    refused = silent = 0
    for _ in range(100):
        newest.write_bytes(damage(rng, whole))
        found, notices = checkpoint.newest_state(tmp_path)
        assert len(notices) == (found.content["step"] == 2)
        refused += len(notices)
        for key, value in networks["net_g"].items():
            assert torch.equal(found.content["networks"]["net_g"][key], value)
        with suppress(Exception):
            theirs = torch.load(newest, weights_only=True)["networks"]["net_g"]["weight"]
            silent += not torch.equal(theirs, networks["net_g"]["weight"])
    assert refused >= silent > 50


def test_files_of_an_old_torch_load(tmp_path, network):
    content = {"params": network.state_dict()}
    torch.save(content, tmp_path / "net_g.pth", _use_new_zipfile_serialization=False)
    loaded = other(network)
    load(loaded, tmp_path / "net_g.pth")
    assert torch.equal(loaded[1].bias, network[1].bias)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, network, value):
    with torch.no_grad():
        network[1].bias[1] = value
    torch.save({"params": network.state_dict()}, tmp_path / "net_g.pth")
    with pytest.raises(UserError, match=rf"{WHERE}: .*net_g\.pth: .*1\.bias"):
        load(other(network), tmp_path / "net_g.pth")
    good = {"net_g": nn.Linear(1, 1).state_dict()}
    for step, networks in ((2, good), (4, {"net_g": network.state_dict()})):
        checkpoint.save_state({**state(step), "networks": networks}, tmp_path, step)
    found, (notice,) = checkpoint.newest_state(tmp_path)
    assert found.content["step"] == 2
    assert "4.state: net_g: " in notice and "1.bias" in notice


def test_when_no_state_is_readable_it_is_not_started_over(tmp_path):
    for step in (2, 4):
        checkpoint.save_state(state(step), tmp_path, step)
        (tmp_path / f"{step}.state").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"4\.state \(.*2\.state \(") as caught:
        checkpoint.newest_state(tmp_path)
    assert "add --auto_resume" not in str(caught.value)
