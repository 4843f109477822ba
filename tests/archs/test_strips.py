"""Restoring in strips against the whole image at once."""

import itertools

import pytest
import torch

from hidiff import build_network
from hidiff.archs.strips import Strips, restore_in_strips

CONFIGURATIONS = {
    "released": {"ffn_expansion_factor": 2.66},
    "bias": {"bias": True},
    "bias_free": {"LayerNorm_type": "BiasFree", "bias": True},
    "single_scale": {"guidance": "single_scale"},
    "no_prior": {"guidance": "none"},
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


def test_the_comparison_sees_a_row_that_is_missing():
    """Or it would prove nothing: an error at the seams is larger than the limits by far."""
    net = network().double()
    image, prior = inputs(net, torch.float64)
    parts = [net(part, prior) for part in image.split(8, dim=2)]
    assert relative(torch.cat(parts, dim=2), net(image, prior)) > 1e-3


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
