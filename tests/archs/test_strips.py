"""Restoring in strips against the whole image at once."""

import itertools

import pytest
import torch
from small_data import TRANSFORMERS

from hidiff import build_network
from hidiff.archs.restormer import Attention
from hidiff.archs.strips import Strips, restore_in_strips
from hidiff.archs.windows import Windows

CONFIGURATIONS = TRANSFORMERS | {
    "dual_pixel": {"dual_pixel_task": True},
    "no_blocks": {"num_blocks": [0, 1, 0, 1], "num_refinement_blocks": 0},
}
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
CUTS = {
    "one row": Strips(1, None),
    "no divisor": Strips(3, None),
    "blocks": Strips(8, 1),  # the narrowest, 16 columns
    "narrow and low": Strips(1, 1),
    "one strip": Strips(64, None),
}


def network(**changes):
    torch.manual_seed(0)
    options = {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}
    options |= {"heads": [1, 2, 4, 8], "embed_dim": 8, **changes}
    net = build_network({"type": "Transformer", **options}).requires_grad_(False)
    for parameter in net.parameters():
        if parameter.ndim < 2:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return net


def inputs(net, dtype=torch.float32, batch=1):
    """An image of 24 × 40 pixels, and a prior where the network takes one."""
    prior = None if net.guidance == "none" else torch.randn(batch, 16, 32, dtype=dtype)
    return torch.rand(batch, 3, 24, 40, dtype=dtype), prior


def relative(out, reference):
    return float((out - reference).norm() / reference.norm())


@pytest.mark.parametrize("dtype", LIMITS, ids=["float64", "float32"])
@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_strips_are_the_whole_image(changes, dtype):
    net = network(**changes).to(dtype)
    images = inputs(net, dtype, batch=2)
    reference = net(*images)
    for strips in (CUTS["no divisor"], CUTS["blocks"]):
        assert relative(restore_in_strips(net, *images, strips), reference) < LIMITS[dtype]


@pytest.mark.parametrize("strips", CUTS.values(), ids=CUTS)
def test_every_height_and_width_of_a_strip_gives_the_same(strips):
    net = network().double()
    images = inputs(net, torch.float64)
    assert relative(restore_in_strips(net, *images, strips), net(*images)) < 1e-10


def test_an_image_without_a_prior_and_one_with_an_unused_prior():
    net = network()
    image, _ = inputs(net)
    assert relative(restore_in_strips(net, image), net(image)) < 1e-5
    with pytest.raises(AssertionError):
        restore_in_strips(network(guidance="none"), image, torch.randn(1, 16, 32))


def test_bfloat16_is_as_close_as_bfloat16_at_once():
    """To the float32 result, because two orders of bfloat16 sums are no better to each other."""
    net = network()
    images = inputs(net)
    exact = net(*images)
    net.feature_dtype = torch.bfloat16
    at_once = relative(net(*images), exact)
    strips = restore_in_strips(net, *images, Strips(3, 1))
    assert strips.dtype == torch.float32
    assert 0 < relative(strips, exact) < 1.1 * at_once
    # Maps are kept in bfloat16 between the steps, whatever blocks are computed in.
    assert relative(strips, exact) > 100 * LIMITS[torch.float32] / 5


def test_progress_rises_to_one():
    net = network()
    seen = []
    restore_in_strips(net, *inputs(net, batch=2), Strips(4), seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.05
    assert seen[-1] == pytest.approx(1.0)
    assert max(b - a for a, b in itertools.pairwise(seen)) < 0.1


def attention_in_windows(windows, height):
    """MDTA with the attention of each window, computed as the network's own on what is cut out."""

    def forward(attn, x):
        qkv = attn.qkv_dwconv(attn.qkv(x))
        out = torch.zeros_like(x)
        for place, weight in windows.over(*x.shape[2:], scale=height // x.shape[2]):
            part = qkv[..., *place]
            q, k, v = (t.flatten(2).unflatten(1, (attn.num_heads, -1)) for t in part.chunk(3, 1))
            q, k = (torch.nn.functional.normalize(t, dim=-1) for t in (q, k))
            attention = (q @ k.transpose(-2, -1) * attn.temperature).softmax(dim=-1)
            restored = attn.project_out((attention @ v).reshape(part[:, : x.shape[1]].shape))
            out[..., *place] += restored * weight.to(x)
        return out

    return forward


@pytest.mark.parametrize("strips", [Strips(3, 1), Strips(64, None)], ids=["blocks", "one strip"])
def test_local_statistics_are_those_of_the_windows(monkeypatch, strips):
    net = network(bias=True).double()
    images = inputs(net, torch.float64, batch=2)
    windows = Windows(16, 8)
    local = restore_in_strips(net, *images, strips, local=windows)
    whole = net(*images)
    monkeypatch.setattr(Attention, "forward", attention_in_windows(windows, 24))
    # The windows' weights are float32, and sum to 1 as such.
    assert relative(local, net(*images)) < 1e-7
    assert relative(local, whole) > 1e-4
    one = restore_in_strips(net, *images, strips, local=Windows(40, 8))
    assert relative(one, whole) < 1e-10
