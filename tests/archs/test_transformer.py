"""The Transformer's options; its values are those of the reference and of the released models."""

import pytest
import torch

from hidiff import UserError, build_network

TINY = {
    "type": "Transformer",
    "dim": 8,
    "num_blocks": [1, 1, 1, 1],
    "num_refinement_blocks": 1,
    "heads": [1, 2, 4, 8],
    "embed_dim": 4,
}


def test_without_a_prior_it_is_plain_restormer():
    """HIM, the modulation and the prior's downsampling play no part then."""
    network = build_network(TINY)
    x = torch.rand(1, 3, 16, 24)
    before = network(x)
    for name, parameter in network.named_parameters():
        if any(part in name for part in (".him.", ".ln1.", ".ln2.", "down_1.", "down_2.")):
            torch.nn.init.normal_(parameter)
    assert torch.equal(network(x), before)
    assert not torch.equal(network(x, torch.randn(1, 16, 16)), before)


def test_every_option_of_the_constructor_builds():
    network = build_network(
        {**TINY, "bias": True, "LayerNorm_type": "BiasFree", "dual_pixel_task": True,
         "inp_channels": 6, "ffn_expansion_factor": 2}
    )  # fmt: skip
    assert network.output.bias is not None
    assert network.patch_embed.proj.bias is None, "as in Restormer, whatever `bias` says"
    assert not any(name.endswith("norm1.body.bias") for name, _ in network.named_parameters())
    assert network(torch.rand(1, 6, 16, 16), torch.rand(1, 16, 16)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("group", [5, 6, 7])
def test_a_level_has_a_fourth_of_the_tokens_rounded_down(group):
    network = build_network({**TINY, "group": group})
    assert network.down_1[1].weight.shape == (group**2 // 4, group**2)
    assert network.down_2[1].weight.shape == (1, group**2 // 4)
    prior = torch.rand(1, group**2, 16)
    assert network(torch.rand(1, 3, 16, 16), prior).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("latent_encoder_gelu", {"blocks.3.0.bias": (64,), "blocks.4.0.bias": None}),
        ("latent_encoder_lrelu", {"blocks.3.0.bias": (64,), "blocks.4.0.bias": None}),
        (
            "denoising",
            {
                "first_layer.0.weight": (32, 18),
                "blocks.0.0.channel_mixer.0.weight": (128, 32),
                "blocks.1.0.channel_mixer.0.weight": None,
                "final_layer.0.weight": (3, 32),
            },
        ),
        ("simple_denoise", {"resmlp.6.resmlp.0.bias": (256,), "resmlp.7.resmlp.0.bias": None}),
    ],
)
def test_defaults_are_the_released_ones(kind, expected):
    shapes = {key: tuple(t.shape) for key, t in build_network({"type": kind}).state_dict().items()}
    assert {key: shapes.get(key) for key in expected} == expected


@pytest.mark.parametrize("option", ["patch_expansion", "channel_expansion"])
def test_an_expansion_to_nothing_is_refused(option):
    with pytest.raises(UserError, match=f"^network_le: {option}"):
        build_network({"type": "latent_encoder_gelu", option: 0.001}, "network_le")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 7}, "dim 7 must be even"),
        ({"group": 3}, "group 3 must be at least 4"),
        ({"ffn_expansion_factor": 0.001}, r"network_g: ffn_expansion_factor 0\.001"),
        ({"dim": 10**8}, "^network_g: "),
        ({"dim": 10**30}, "^network_g: "),
        ({"num_refinement_blocks": 3, "dim": 10**7}, "^network_g: .*memory"),
        ({"num_blocks": [1, 1]}, r"network_g\.num_blocks"),
        ({"LayerNorm_type": "None"}, r"network_g\.LayerNorm_type: .*'BiasFree'"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_network({**TINY, **changes}, "network_g")
