"""Weights files of torch.save from elsewhere: layouts, damage, malice."""

import pickle
import re
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from hidiff import UserError
from hidiff.weights.published import load_weights
from hidiff.weights.tensors import load_network

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


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.", "net_g."])
@pytest.mark.parametrize("key", ["params", "params_ema", None])
def test_every_layout_of_a_released_file_loads(tmp_path, network, prefix, key):
    """What tools add to the names is left out, and said."""
    state = {prefix + k: v for k, v in network.state_dict().items()}
    if prefix == "net_g.":
        state |= {f"{prefix}0.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    torch.save(state if key is None else {key: state}, tmp_path / "net_g.pth")
    loaded = other(network)
    notices = load(loaded, tmp_path / "net_g.pth", param_key=key)
    assert all(prefix in notice or "2 counters" in notice for notice in notices)
    assert len(notices) == {"": 0, "net_g.": 2}.get(prefix, 1)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_checkpoint_of_another_configuration_says_what_differs(tmp_path, network):
    torch.save({"params": nn.Sequential(nn.Linear(3, 5)).state_dict()}, tmp_path / "net_g.pth")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(
        UserError,
        match=r"0 of 4 parameters fit: 2 parameters are missing \(1\.bias, 1\.weight\); "
        r"2 parameters are of another shape \(0\.bias: \(5,\) in the file, \(4,\) here\)",
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
    assert "3 of 4 parameters" in notices[0]
    assert "1.bias" in notices[0] and "extra" in notices[0]
    assert torch.equal(network[0].weight, source[0].weight)
    assert torch.equal(network[1].bias, kept)
    torch.save({"params": {f"net.{k}": v for k, v in state.items()}}, tmp_path / "net_g.pth")
    with pytest.raises(UserError, match="0 of 4 parameters"):
        load(network, tmp_path / "net_g.pth", strict=False)


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
    assert ("git lfs pull" in str(caught.value)) == content.startswith(b"version")
    assert ("web page" in str(caught.value)) == content.startswith(b"<html")


@pytest.mark.parametrize("params", [5, {1: torch.ones(1)}, {"a": [1]}])
def test_an_entry_that_is_no_state_dict_is_named(tmp_path, network, params):
    torch.save({"params": params, "step": 1}, tmp_path / "net_g.pth")
    with pytest.raises(UserError, match="'params'"):
        load(network, tmp_path / "net_g.pth")


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
    path = tmp_path / "net_g.pth"
    weight = torch.randn(100, 100)
    torch.save({"params": {"weight": weight}}, path)
    whole = path.read_bytes()
    refused = silent = 0
    for _ in range(100):
        path.write_bytes(damage(rng, whole))
        try:
            assert torch.equal(load_weights(path, WHERE).state_dict["weight"], weight)
        except UserError:
            refused += 1
        with suppress(Exception):
            theirs = torch.load(path, weights_only=True)["params"]["weight"]
            silent += not torch.equal(theirs, weight)
    assert refused >= silent > 50


def test_what_would_ask_for_too_much_memory_is_refused(tmp_path):
    """A tensor of 10^12 numbers that are one, and a record that compression made small."""
    path = tmp_path / "net_g.pth"
    torch.save({"params": {"weight": torch.zeros(1).expand(10**6, 10**6)}}, path)
    with pytest.raises(UserError, match=r"net_g\.pth"):
        load_weights(path, WHERE)
    torch.save({"params": {"weight": torch.zeros(10**6)}}, path)
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    with pytest.raises(UserError, match=r"small\.pth"):
        load_weights(tmp_path / "small.pth", WHERE)


@pytest.mark.parametrize("nested", [False, True])
def test_the_command_for_a_pickled_model_works(tmp_path, network, nested):
    path = tmp_path / "w.pth"
    torch.save({"epoch": 1, "model": network} if nested else network, path)
    with pytest.raises(UserError) as caught:
        load_weights(path, WHERE)
    command = re.search(r'python -c "(.*)"$', str(caught.value))[1]
    exec(command, {})
    loaded = other(network)
    load(loaded, tmp_path / "w_weights.pth")
    assert torch.equal(loaded[1].bias, network[1].bias)


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
