"""The fast formulations against the reference: forward and gradients."""

import pytest
import torch
from small_data import TRANSFORMERS

from hidiff import build_network
from hidiff.archs.reference import reference_formulas

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


def relative(out, reference):
    return float(((out - reference).norm() / reference.norm()).detach())


@pytest.fixture(params=TRANSFORMERS, ids=str)
def options(request):
    return {
        "type": "Transformer",
        "dim": 8,
        "num_blocks": [1, 1, 1, 1],
        "num_refinement_blocks": 1,
        "heads": [1, 2, 4, 8],
        "embed_dim": 8,
        **TRANSFORMERS[request.param],
    }


@pytest.mark.parametrize("dtype", LIMITS, ids=["float64", "float32"])
def test_forward_and_gradients_are_those_of_the_reference(options, dtype):
    network = build_network(options).to(dtype)
    for parameter in network.parameters():
        if parameter.ndim < 2:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    x = torch.rand(2, 3, 16, 24, dtype=dtype)
    prior = None
    if options.get("guidance") != "none":
        prior = torch.randn(2, 16, 32, dtype=dtype, requires_grad=True)
    weights = torch.randn(2, 3, 16, 24, dtype=dtype)
    inputs = [p for p in (*network.parameters(), prior) if p is not None]

    with reference_formulas():
        reference = network(x, prior)
        expected = torch.autograd.grad((reference * weights).sum(), inputs, allow_unused=True)
    out = network(x, prior)
    gradients = torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True)
    with torch.no_grad():
        restored = network(x, prior)

    limit = LIMITS[dtype]
    assert relative(out, reference) < limit
    assert relative(restored, reference) < limit
    scale = max(float(g.norm()) for g in expected if g is not None)
    compared = 0
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            # Relative to the largest one: some gradients are zero but for rounding.
            assert float((ours - theirs).norm()) < limit * scale
            compared += 1
    assert compared > 40


def test_features_stay_channels_last():
    """A copy back to the other layout somewhere would cost more than it saves."""
    network = build_network({"type": "Transformer", "dim": 16, "num_blocks": [1, 1, 1, 1],
                             "num_refinement_blocks": 1, "embed_dim": 8})  # fmt: skip
    layouts = {}

    def watch(name):
        def hook(module, inputs, output):
            layouts[name] = output.is_contiguous(memory_format=torch.channels_last)

        return hook

    for name, module in network.named_modules():
        if name.endswith(("attn", "ffn", "him", "qkv_dwconv")) or name.startswith(("up", "down")):
            module.register_forward_hook(watch(name))
    with torch.no_grad():
        network(torch.rand(1, 3, 32, 32), torch.randn(1, 16, 32))
    layouts = {k: v for k, v in layouts.items() if not k.startswith(("down_1", "down_2"))}
    assert len(layouts) > 20
    assert all(layouts.values()), [name for name, kept in layouts.items() if not kept]
