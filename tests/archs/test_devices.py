"""No computation mixes devices: a tensor made on the CPU meets fake ones that are elsewhere.

The fake tensors say that they are on a GPU where there is a build of PyTorch that can compute with
such ones. On 'meta', with which every build can, the kernels for GPUs are left out and convolutions
are not checked.
"""

import pytest
import torch
from golden_values import load_json, tiny_options
from small_data import TRANSFORMERS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hidiff.archs import ImageNetwork
from hidiff.archs.windows import Windows
from hidiff.models import build_model
from hidiff.registry import ARCHS
from hidiff.restore.image import restore_in_tiles

TINY = {"dim": 8, "num_blocks": [1, 0, 0, 0], "num_refinement_blocks": 0, "guidance": "none"}
SMALL = {
    "Transformer": TINY | TRANSFORMERS["bias_free"],
    "DMPHN": {"stack": 2},
    "MIMOUNetPlus": {"num_res": 1},
    "MPRNet": {"num_cab": 1},
    "NAFNet": {"enc_blk_nums": [1], "dec_blk_nums": [1]},
    "NAFNetLocal": {"enc_blk_nums": [1], "dec_blk_nums": [1]},
}
LOSSES = {
    "pixel_opt": {"type": "CharbonnierLoss"},
    "edge_opt": {"type": "EdgeLoss"},
    "frequency_opt": {"type": "FrequencyLoss"},
}
NETWORKS = [name for name in ARCHS if issubclass(ARCHS.get(name, ""), ImageNetwork)]


@pytest.fixture(params=["meta", "cuda:0"])
def device(request, monkeypatch):
    monkeypatch.setattr("hidiff.models.memory.free_memory", lambda device: 2**40)
    with FakeTensorMode(), torch.no_grad():
        try:
            fake(torch.empty(2, device="meta"), request.param)[0] + 1
        except RuntimeError as error:
            pytest.skip(f"this build of PyTorch has no such device: {error}")
        yield request.param


def fake(tensor, device):
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return FakeTensor(mode, torch.empty_like(tensor, device="meta"), torch.device(device))


def build(options, device):
    """The model, its parameters and buffers elsewhere."""
    with torch.device("meta"):
        model = build_model(options)
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            table |= {k: fake(t, device) for k, t in table.items() if t is not None}
    return model


def released(stage):
    """A released option file with tiny networks."""
    return tiny_options(load_json("released_options.json")[f"train/{stage}.yml"]["options"])


def images(device, height, width=32):
    return [fake(torch.empty(1, 3, height, width, device="meta"), device) for _ in range(2)]


def test_a_mixture_is_noticed(device):
    with pytest.raises(RuntimeError, match="same device"):
        images(device, 8)[0] + torch.rand(32)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_from_image_to_image(device, name):
    network = {"type": name, **SMALL.get(name, {})}
    model = build({"model_type": "Regression", "network_g": network, "train": LOSSES}, device)
    losses = model(*images(device, 32))
    restored = model.restore(images(device, 27)[0])
    assert {str(t.device) for t in (*losses.values(), restored)} == {device}


@pytest.mark.parametrize("stage", ["GoPro_S1", "GoPro_S2", "RealBlur_J_S2"])
def test_stages(device, stage):
    model = build(released(stage), device)
    losses = model(*images(device, 16))
    model.strip_rows = "whole"
    restored = model.restore(*images(device, 13))
    assert {str(t.device) for t in (*losses.values(), restored)} == {device}


def test_restoring_in_strips_in_windows_and_in_tiles(device):
    options = released("GoPro_S2")
    options["network_g"] |= {"num_blocks": [0, 1, 0, 0], "num_refinement_blocks": 0}
    model = build(options, device)
    model.strip_rows, model.net_g.feature_dtype = 16, torch.bfloat16
    windows = Windows(24, 8)
    lq = images(device, 24, 37)[0]
    assert str(model.restore(lq, local=windows).device) == device
    assert str(restore_in_tiles(model, windows, lq).device) == device
