"""Networks that map an image to images: how they are trained and how they restore."""

import pytest
import torch
import torch.nn.functional as F
from baseline_options import BASELINES
from small_data import TINY_G

from hidiff import UserError, build_model
from hidiff.archs import ImageNetwork
from hidiff.models.regression import Regression
from hidiff.registry import ARCHS

SIZE = (37, 43)  # no multiples of anything


class Places(ImageNetwork):
    """Adds to an image its largest row and column, as seen by the network."""

    pad_multiple = (4, 4)
    crop = 16

    def outputs(self, image):
        rows, columns = (image.flatten(2).amax(2), image.flatten(2).amin(2))
        return (image + (rows - columns)[..., None, None],)


@pytest.mark.parametrize("name", [n for n in BASELINES if not n.startswith("DiffIR")])
def test_restoring_is_the_padded_image_of_the_networks_result(name):
    model = build_model(BASELINES[name]).eval()
    network, lq = model.net_g, torch.rand(1, 3, *SIZE)
    restored = model.restore(lq)
    pad = [-side % m for side, m in zip(SIZE, network.pad_multiple, strict=True)]
    padded = F.pad(lq, (0, pad[1], 0, pad[0]), mode="reflect")
    with torch.no_grad():
        expected = network(padded - network.shift)[network.final_output] + network.shift
    torch.testing.assert_close(restored, expected[..., : SIZE[0], : SIZE[1]])
    assert restored.shape == lq.shape


def test_crops_are_evenly_spaced_and_averaged():
    lq = torch.rand(2, 3, 36, 22)
    restored = Regression(net_g=Places(), l_pix=torch.nn.L1Loss()).restore(lq)
    padded = F.pad(lq, (0, 2, 0, 0), mode="reflect")  # 36 × 24
    total, count = torch.zeros_like(padded), torch.zeros_like(padded)
    for top in (0, 10, 20):
        for left in (0, 8):
            place = (..., slice(top, top + 16), slice(left, left + 16))
            total[place] += Places()(padded[place])[0]
            count[place] += 1
    torch.testing.assert_close(restored, (total / count)[..., :22])


def test_dropped_channels_come_from_the_generator():
    model = build_model(BASELINES["MIMOUNetPlus"])
    lq, gt = torch.rand(2, 2, 3, 16, 16)

    def losses(seed):
        return model(lq, gt, generator=torch.Generator().manual_seed(seed))["l_pix"]

    assert torch.equal(losses(1), losses(1))
    assert not torch.equal(losses(1), losses(2))
    kept = model.draw(2, torch.Generator().manual_seed(1))
    assert torch.equal(model(lq, gt, **kept)["l_pix"], losses(1))
    shares = [model.draw(200)["kept"].float().mean().item() for _ in range(3)]
    assert shares == pytest.approx([0.9] * 3, abs=0.01)


def test_kept_channels_are_those_of_dropout():
    network = build_model(BASELINES["MIMOUNetPlus"]).net_g
    lq = torch.rand(1, 3, 16, 16)
    channels = network.draw(1)["kept"].shape[1]
    everything = torch.ones(1, channels, dtype=torch.bool)
    for fusion in network.AFFs:
        for parameter in fusion.parameters():
            torch.nn.init.zeros_(parameter)
    # Of empty skip connections nothing is dropped.
    assert torch.equal(network(lq, kept=~everything)[2], network(lq)[2])
    torch.nn.init.ones_(network.AFFs[1].conv[1].main[0].bias)
    first = everything.clone()
    first[:, : 2 * channels // 3] = False  # the map at half the resolution
    assert torch.equal(network(lq, kept=first)[0], network(lq)[0])
    assert not torch.equal(network(lq, kept=first)[1], network(lq)[1])
    torch.nn.init.constant_(network.AFFs[1].conv[1].main[0].bias, 1 / 0.9)
    scaled = network(lq)
    torch.nn.init.ones_(network.AFFs[1].conv[1].main[0].bias)
    torch.testing.assert_close(network(lq, kept=everything)[1], scaled[1])


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"model_type": "Regression", "network_g": TINY_G}, "network_g.guidance"),
        (
            {**BASELINES["DiffIRS2"], "network_le": {"type": "DiffIREncoder", "embed_dim": 8}},
            "network_le",
        ),
        (
            {
                "model_type": "HI_Diff_S1",
                "network_g": BASELINES["NAFNet"]["network_g"],
                "network_le": {"type": "latent_encoder_gelu", "in_chans": 6, "stage": 1},
            },
            "network_g.type",
        ),
        ({**BASELINES["DiffIRS1"], "train": {"edge_opt": {"type": "EdgeLoss"}}}, "train.edge_opt"),
        ({**BASELINES["NAFNet"], "train": {"pixel_opt": None}}, "train.pixel_opt"),
    ],
)
def test_parts_that_do_not_fit_are_named(options, place):
    with torch.device("meta"), pytest.raises(UserError, match=f"^{place}: "):
        build_model(options)


def test_what_only_the_transformer_has_is_refused():
    model = build_model(BASELINES["NAFNet"])
    model.recompute_levels(())
    with pytest.raises(UserError, match=r"train\.activation_checkpointing"):
        model.recompute_levels((1,))
    model.strip_rows = 16
    with pytest.raises(UserError, match=r"val\.strip_rows"):
        model.restore(torch.rand(1, 3, 16, 16))


def test_every_network_is_among_the_small_ones():
    networks = {name for name in ARCHS if issubclass(ARCHS.get(name, ""), ImageNetwork)}
    networks.remove("Transformer")
    assert networks | {"DiffIRS1", "DiffIRS2"} == set(BASELINES)
