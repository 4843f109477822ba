"""torch.compile per block: same numbers, no compiling twice, and the layout that is meant."""

import copy
import re

import pytest
import torch
from small_data import train_options
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from hidiff import build_model
from hidiff.archs.restormer import FeedForward
from hidiff.models import compilation
from hidiff.models.compilation import INDUCTOR_OPTIONS, check_compiler, compile_blocks, uncompiled
from hidiff.utils.errors import UserError


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


ONE_BLOCK = {"num_blocks": [0, 0, 0, 1], "num_refinement_blocks": 0}


# What Dynamo traces, and when again, does not depend on the backend; "eager" is the fastest one.
@pytest.fixture(params=["eager"])
def models(request, tmp_path):
    """A model of stage 2 and the same one compiled."""
    torch.manual_seed(0)
    options = train_options(tmp_path, 2)
    options["network_g"] |= ONE_BLOCK
    plain = build_model(options).train()
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled, "train.compile", backend=request.param)
    return plain, compiled


def step(model, size):
    """Losses and gradients of one step on images of this size."""
    generator = torch.Generator().manual_seed(size)
    lq, gt = torch.rand(2, 2, 3, size, size, generator=generator)
    noise = torch.randn(2, 16, 32, generator=generator)
    losses = model(lq, gt, noise=noise)
    trained = [p for p in model.parameters() if p.requires_grad]
    return losses, torch.autograd.grad(sum(losses.values()), trained)


def compiled_graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow("traces every form of a block at two sizes")
def test_a_phase_that_returns_is_not_compiled_again(models):
    """And restoring in between costs it nothing."""
    plain, compiled = models
    compiled.strip_rows = "whole"
    counts = []
    for size in (16, 24, 16):
        expected, reference = step(plain, size)
        losses, gradients = step(compiled, size)
        counts.append(compiled_graphs())
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(gradients, reference, rtol=1e-4, atol=1e-6)
    first, second, third = counts
    assert first > 1  # the block and HIM
    assert second == third == 2 * first
    assert not counters["graph_break"]

    image, noise = torch.rand(1, 3, 16, 24), torch.zeros(1, 16, 32)
    with uncompiled():
        eager = compiled.restore(image, noise=noise)
    assert compiled_graphs() == third
    torch.testing.assert_close(compiled.restore(image, noise=noise), eager)
    restoring = compiled_graphs()
    assert restoring > third
    step(compiled, 24)
    assert compiled_graphs() == restoring


@pytest.mark.parametrize("models", ["aot_eager"], indirect=True)
def test_checkpointed_blocks_are_compiled_too(models):
    plain, compiled = models
    compiled.net_g.recompute_levels((1, 2, 3, 4))
    expected, reference = step(plain, 16)
    losses, gradients = step(compiled, 16)
    assert compiled_graphs() > 1
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients, reference, rtol=1e-4, atol=1e-6)


def test_weights_keep_their_names(models):
    plain, compiled = models
    assert list(compiled.state_dict()) == list(plain.state_dict())


def convolution_layouts(code):
    """For each convolution's result in Inductor's code, whether it is channels last."""
    pattern = r"assert_size_stride\(\w+, \((\d+), (\d+), (\d+), (\d+)\), \(([\d, ]+)\), 'torch"
    found = []
    for *size, strides in re.findall(pattern, code):
        _, channels, height, width = map(int, size)
        if min(height, width) > 3:  # no weight
            expected = [channels * height * width, 1, width * channels, channels]
            found.append([int(s) for s in strides.split(",")] == expected)
    return found


@pytest.mark.slow("compiles C++")
def test_features_stay_channels_last_forward_and_backward():
    """With the options that Inductor has by default PyTorch 2.13 fails this going backward."""
    if not has_compiler():
        pytest.skip("Inductor finds no C++ compiler here")
    block = FeedForward(8, 2)
    compiled = torch.compile(block, dynamic=False, options=INDUCTOR_OPTIONS)
    x = torch.rand(2, 8, 12, 12).contiguous(memory_format=torch.channels_last).requires_grad_()

    def forward_and_backward():
        compiled(x).square().sum().backward()

    _, (forward, backward) = run_and_get_code(forward_and_backward)
    assert len(convolution_layouts(forward)) == 3
    assert all(convolution_layouts(forward))
    assert len(convolution_layouts(backward)) == 3
    assert all(convolution_layouts(backward))
    gradient = x.grad.clone()
    x.grad = None
    block(x).square().sum().backward()
    torch.testing.assert_close(gradient, x.grad, rtol=1e-4, atol=1e-5)


def has_compiler():
    try:
        check_compiler(torch.device("cpu"), "here")
    except UserError:
        return False
    return True


def test_a_missing_compiler_is_told_at_once(monkeypatch):
    def compile_nothing(function, **options):
        def fail(x):
            raise RuntimeError("no C++ compiler found\nand a long story")

        return fail

    monkeypatch.setattr(compilation.torch, "compile", compile_nothing)
    with pytest.raises(UserError, match=r"train.compile: .*no C\+\+ compiler found\);.*false"):
        check_compiler(torch.device("cpu"), "train.compile")


def test_data_parallel_training_does_not_cut_the_blocks(tmp_path):
    """Dynamo would, from 1 MiB of parameters on, and Inductor then fails for a batch of one."""
    pieces = []

    def counting(graph, inputs):
        pieces.append(graph)
        return graph

    options = train_options(tmp_path, 1)
    options["model_type"] = "Restormer"
    options["network_g"] |= {"dim": 24, "heads": [1, 1, 1, 1], "guidance": "none", **ONE_BLOCK}
    del options["network_le"]
    model = build_model(options).train()
    alone = copy.deepcopy(model)
    (block,) = model.net_g.latent.blocks
    assert sum(p.numel() for p in block.parameters()) > 2**20 / 4
    compile_blocks(model, "train.compile", backend=counting)
    lq, gt = torch.rand(2, 1, 3, 16, 16)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        sum(wrapped(lq, gt).values()).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(pieces) == 1
    sum(alone(lq, gt).values()).backward()
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
