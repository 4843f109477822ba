"""Losses against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn

from hidiff import UserError
from hidiff.registry import LOSSES

PRED = torch.tensor([0.0, 1.0, 4.0])
TARGET = torch.tensor([3.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ({"type": "L1Loss"}, 7 / 3),
        ({"type": "L1Loss", "loss_weight": 2, "reduction": "sum"}, 14.0),
        ({"type": "MSELoss"}, 25 / 3),
        ({"type": "MSELoss", "reduction": "sum", "loss_weight": 0.5}, 12.5),
        ({"type": "CharbonnierLoss", "eps": 16.0}, (5 + 4 + math.sqrt(32)) / 3),
    ],
)
def test_values(section, value):
    loss = LOSSES.build(section, "train.pixel_opt")(PRED, TARGET)
    assert loss.item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "L2Loss"}, "did you mean 'L1Loss'"),
        ({"type": "L1Loss", "reduction": "none"}, r"train\.pixel_opt\.reduction: "),
        ({"type": "L1Loss", "weight": 1}, "no option 'weight'; did you mean 'loss_weight'"),
        ({}, r"train\.pixel_opt\.type: "),
    ],
)
def test_mistakes(section, message):
    with pytest.raises(UserError, match=message):
        LOSSES.build(section, "train.pixel_opt")


def _torchvision_works():
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


@pytest.mark.skipif(_torchvision_works(), reason="torchvision works here")
def test_perceptual_loss_says_when_torchvision_is_broken(tmp_path):
    with pytest.raises(UserError, match="torchvision"):
        LOSSES.build({"type": "PerceptualLoss", "weights": "x.pth"}, "train.perceptual_opt")


@pytest.mark.skipif(not _torchvision_works(), reason="needs torchvision's compiled part")
def test_perceptual_loss_compares_vgg_features(tmp_path):
    from torchvision.models import vgg19

    network = vgg19()
    torch.save(network.state_dict(), tmp_path / "vgg19.pth")
    section = {"type": "PerceptualLoss", "weights": str(tmp_path / "vgg19.pth"), "layers": [1]}
    loss = LOSSES.build(section, "train.perceptual_opt")
    pred, target = torch.rand(2, 1, 3, 16, 16).unbind(0)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    features = [nn.functional.relu(network.features[0]((x - mean) / std)) for x in (pred, target)]
    expected = (features[0] - features[1]).abs().mean()
    torch.testing.assert_close(loss(pred, target), expected)
    assert loss(pred, pred).item() == 0
