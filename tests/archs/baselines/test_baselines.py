"""The baseline networks' options, sizes and training, and NAFNet's windows."""

import pytest
import torch
import torch.nn.functional as F

from hidiff import UserError, build_network
from hidiff.archs import ImageNetwork
from hidiff.archs.baselines import DMPHN, NAFNet, NAFNetLocal
from hidiff.archs.baselines.nafnet import LocalMean
from hidiff.registry import ARCHS

NETWORKS = [name for name in ARCHS if issubclass(ARCHS.get(name, ""), ImageNetwork)]
BASELINES = [name for name in NETWORKS if name != "Transformer"]


@pytest.mark.parametrize("name", BASELINES)
def test_sizes_that_do_not_fit_are_refused(name):
    with torch.device("meta"):
        network = build_network({"type": name})
        multiple = network.pad_multiple[1]
        side = 64 + multiple // 2
        if multiple > 1:
            with pytest.raises(UserError, match=f"{name}.*{multiple}.*64×{side}"):
                network(torch.empty(1, 3, 64, side))
        else:
            assert network(torch.empty(1, 3, 61, 67))[0].shape == (1, 3, 61, 67)


def test_hinet_normalises_no_single_pixel():
    with torch.device("meta"):
        network = build_network({"type": "HINet", "wf": 2, "depth": 3})
        with pytest.raises(UserError, match="HINet.*8 pixels.*4×4"):
            network(torch.empty(1, 3, 4, 4))
        assert network(torch.empty(1, 3, 4, 8))[1].shape == (1, 3, 4, 8)
        without = build_network({"type": "HINet", "wf": 2, "depth": 3, "hin_position_right": 1})
        assert without(torch.empty(1, 3, 4, 4))[1].shape == (1, 3, 4, 4)


def test_dmphns_width_needs_multiples_of_eight_only():
    with torch.device("meta"):
        network = build_network({"type": "DMPHN", "stack": 1, "levels": 4, "width": 2})
        assert network.pad_multiple == (16, 8)
        assert network(torch.empty(1, 3, 48, 24))[0].shape == (1, 3, 48, 24)
        with pytest.raises(UserError, match="DMPHN.*24×48"):
            network(torch.empty(1, 3, 24, 48))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"type": "NAFNet", "dec_blk_nums": [1, 1]}, "dec_blk_nums"),
        ({"type": "NAFNet", "enc_blk_nums": [1, 1, 1, -1]}, "enc_blk_nums"),
        ({"type": "NAFNet", "width": 0}, "width"),
        ({"type": "NAFNetLocal", "train_size": [1, 3, 256, 8]}, "train_size"),
        ({"type": "NAFNetLocal", "train_size": [256, 256]}, "train_size"),
        ({"type": "HINet", "wf": 7}, "wf"),
        ({"type": "HINet", "depth": 1}, "depth"),
        ({"type": "DMPHN", "stack": 2, "levels": 4}, "levels"),
        ({"type": "DMPHN", "stack": 1, "levels": 2}, "levels"),
        ({"type": "MIMOUNetPlus", "num_res": -1}, "num_res"),
        ({"type": "MIMOUNetPlus", "num_ress": 2}, "num_res"),
        ({"type": "MPRNet", "out_c": 1}, "out_c"),
        ({"type": "MPRNet", "kernel_size": 4}, "kernel_size"),
        ({"type": "MPRNet", "n_feat": 2}, "n_feat"),
        ({"type": "Stripformer", "dim": 320}, "dim"),
        ({"type": "DiffIREncoder", "in_chans": 3}, "in_chans"),
        ({"type": "Transformer", "guidance": "vector", "heads": [1, 2, 4, 5]}, "heads"),
    ],
)
def test_impossible_options_are_named(options, named):
    with torch.device("meta"), pytest.raises(UserError, match=f"^network_g.*{named}"):
        build_network(options, "network_g")


@pytest.mark.parametrize("window", [(5, 4), (4, 30), (12, 13), (30, 30)])
def test_local_mean_is_the_mean_of_windows(window):
    x = torch.rand(2, 3, 12, 13, dtype=torch.float64)
    height, width = (min(w, side) for w, side in zip(window, x.shape[-2:], strict=True))
    means = F.avg_pool2d(x, (height, width), stride=1)
    left, top = (width - 1) // 2, (height - 1) // 2
    padded = F.pad(means, (left, width - 1 - left, top, height - 1 - top), mode="replicate")
    torch.testing.assert_close(LocalMean(window)(x).expand_as(x), padded)


def test_local_nafnet_is_nafnet_where_the_windows_cover_the_image():
    options = {"width": 4, "enc_blk_nums": (1, 1), "dec_blk_nums": (1, 1)}
    network = NAFNet(**options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    local = NAFNetLocal(**options, train_size=(1, 3, 32, 32))
    local.load_state_dict(network.state_dict())
    covered, larger = torch.rand(1, 3, 48, 40), torch.rand(1, 3, 64, 40)
    torch.testing.assert_close(local(covered), network(covered))
    assert not torch.allclose(local(larger)[0], network(larger)[0], atol=1e-3)


def test_a_new_nafnet_leaves_features_as_they_are_in_its_blocks():
    network = NAFNet(width=4, enc_blk_nums=(1,), dec_blk_nums=(1,))
    x = torch.rand(1, 4, 8, 8)
    assert torch.equal(network.encoders[0](x), x)


def test_dmphn_begins_as_published():
    network = DMPHN(stack=1)
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 10_000:
            transposed = key.split(".")[1] in ("layer16", "layer20")
            outputs = parameter.shape[1 if transposed else 0] * parameter[0, 0].numel()
            assert parameter.var().item() == pytest.approx(0.5 / outputs, rel=0.1), key
