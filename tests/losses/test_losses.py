"""Losses against published values, numbers worked out by hand and plain slow formulas."""

import math

import numpy as np
import pytest
import torch
from golden_values import image, load_json
from torch import nn

from hidiff import UserError
from hidiff.archs import ImageNetwork
from hidiff.models.regression import Regression
from hidiff.registry import LOSSES

GOLDEN = load_json("baselines/manifest.json")["losses"]
BINOMIAL = [0.05, 0.25, 0.4, 0.25, 0.05]
BLURRY, SHARP = image(5, (2, 3, 32, 48)), image(6, (2, 3, 32, 48))


def build(name, **options):
    return LOSSES.build({"type": name, **options}, "train.pixel_opt")


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
    pred, target = torch.tensor([0.0, 1.0, 4.0]), torch.tensor([3.0, 1.0, 0.0])
    loss = LOSSES.build(section, "train.pixel_opt")(pred, target)
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


class Fixed(ImageNetwork):
    """A network whose outputs are given."""

    def __init__(self, *outputs):
        super().__init__()
        self.given = outputs

    def outputs(self, image):
        return self.given


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("charbonnier", build("CharbonnierLoss", eps=1e-6)),
        ("edge", build("EdgeLoss")),
        ("psnr", build("PSNRLoss")),
    ],
)
def test_values_are_the_published_ones(name, loss):
    assert loss(BLURRY, SHARP).item() == pytest.approx(GOLDEN[name], rel=1e-9)


def test_every_output_has_its_losses_at_its_size():
    scales = [BLURRY[..., ::step, ::step] for step in (4, 2, 1)]
    model = Regression(net_g=Fixed(*scales), l_pix=build("L1Loss"), l_freq=build("FrequencyLoss"))
    losses = model(SHARP, SHARP)
    assert losses.keys() == {"l_pix", "l_freq"}
    assert losses["l_pix"].item() == pytest.approx(GOLDEN["mimo_content"], rel=1e-9)
    assert losses["l_freq"].item() == pytest.approx(GOLDEN["mimo_fft"], rel=1e-9)


def test_a_network_that_works_on_shifted_images_has_the_loss_of_the_images():
    network = Fixed(BLURRY - 0.5)
    network.shift = 0.5
    model = Regression(net_g=network, l_pix=nn.L1Loss())
    torch.testing.assert_close(model(SHARP, SHARP)["l_pix"], (BLURRY - SHARP).abs().mean())
    torch.testing.assert_close(model.restore(SHARP), BLURRY)


def test_edges_are_what_a_coarser_image_lacks():
    """Pixel by pixel, on one channel."""

    def blurred(x):
        height, width = x.shape
        out = np.zeros_like(x)
        for i, j in np.ndindex(height, width):
            for di, dj in np.ndindex(5, 5):
                y, z = min(max(i + di - 2, 0), height - 1), min(max(j + dj - 2, 0), width - 1)
                out[i, j] += BINOMIAL[di] * BINOMIAL[dj] * x[y, z]
        return out

    def edges(x):
        coarse = np.zeros_like(x)
        coarse[::2, ::2] = 4 * blurred(x)[::2, ::2]
        return x - blurred(coarse)

    pred, target = BLURRY[0, 0, :7, :9], SHARP[0, 0, :7, :9]
    expected = np.sqrt((edges(pred.numpy()) - edges(target.numpy())) ** 2 + 1e-6)
    weighted = build("EdgeLoss", loss_weight=0.05)(pred[None, None], target[None, None])
    assert weighted.item() == pytest.approx(0.05 * expected.mean(), rel=1e-12)
    total = build("EdgeLoss", reduction="sum")(pred[None, None], target[None, None])
    assert total.item() == pytest.approx(expected.sum(), rel=1e-12)


def test_frequencies_are_those_of_the_fourier_sum():
    difference = (BLURRY - SHARP)[0, 0, :3, :4].numpy()
    waves = [np.exp(-2j * math.pi * np.outer(np.arange(n), np.arange(n)) / n) for n in (3, 4)]
    spectrum = waves[0] @ difference @ waves[1]
    parts = np.abs([spectrum.real, spectrum.imag])
    pair = BLURRY[:1, :1, :3, :4], SHARP[:1, :1, :3, :4]
    loss = build("FrequencyLoss", loss_weight=0.1)(*pair)
    assert loss.item() == pytest.approx(0.1 * parts.mean(), rel=1e-12)
    assert build("FrequencyLoss", reduction="sum")(*pair).item() == pytest.approx(parts.sum())


def test_psnr_is_averaged_over_images_in_db():
    pred = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    target = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)]).double()
    # 20 dB and, with 1e-8 beside an error of 1e-4, nearly 40 dB.
    second = -10 * math.log10(1e-4 + 1e-8)
    first = -10 * math.log10(1e-2 + 1e-8)
    loss = build("PSNRLoss", loss_weight=0.5)(pred, target).item()
    assert loss == pytest.approx(-0.5 * (first + second) / 2, rel=1e-7)
