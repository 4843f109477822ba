"""The options of networks, read off their weights."""

import random
from pathlib import Path

import pytest
import torch
from small_models import presets

from hidiff import UserError, build_network
from hidiff.models import build_model, section_of
from hidiff.registry import ARCHS
from hidiff.weights.read import Weights
from hidiff.weights.shapes import read_off

# Other networks than HI-Diff's are found by their names, see test_published_layouts.py.
PRESETS = {
    name: sections
    for name, sections in presets().items()
    if sections["model_type"] not in ("Regression", "DiffIR_S1", "DiffIR_S2")
}


def blank(section):
    with torch.device("meta"):
        return build_network(section).state_dict()


def weights(**state_dicts):
    return {
        name: Weights(Path(f"folder/{name}.pth"), name, state_dict, None, None, "")
        for name, state_dict in state_dicts.items()
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_read_off_its_weights(preset):
    """At full size, and the schedule where it is that of the release."""
    sections = PRESETS[preset]
    with torch.device("meta"):
        networks = build_model(sections, training=False).networks()
    found, notices = read_off(weights(**{n: net.state_dict() for n, net in networks.items()}))
    for name in networks:
        where = section_of(name)
        assert found[where] == ARCHS.resolved(sections[where], where)
        assert any(notice.startswith(where) for notice in notices)
    expected = sections["model_type"].removesuffix("_Split")
    assert found["model_type"] == expected
    assert (expected == "HI_Diff_S2") == any("diffusion_schedule" in notice for notice in notices)
    if not preset.startswith("ablation") and expected == "HI_Diff_S2":
        assert found["diffusion_schedule"] == sections["diffusion_schedule"]


def draw(rng):
    """Sections of a random model that restores."""
    embed_dim, group = rng.choice([4, 6, 10]), rng.choice([4, 5, 6])
    dim = rng.choice([8, 12, 48])
    guidance = rng.choice(["multi_scale", "single_scale"])
    heads = [rng.choice([h for h in (1, 2, 4) if dim * 2**i % h == 0]) for i in range(4)]
    mixer = {
        "group": group,
        "patch_expansion": rng.choice([0.25, 0.5, 1.3]),
        "channel_expansion": rng.choice([0.75, 2, 4]),
    }
    return {
        "network_g": {
            "type": "Transformer",
            "dim": dim,
            "num_blocks": [rng.randint(1, 2), rng.randint(1, 3), 1, rng.choice([1, 11])],
            "num_refinement_blocks": rng.randint(0, 3),
            "heads": heads,
            "ffn_expansion_factor": rng.choice([1, 1.33, 2, 2.66, 4.1, 1 / 3]),
            "bias": rng.random() < 0.5,
            "LayerNorm_type": rng.choice(["WithBias", "BiasFree"]),
            "dual_pixel_task": rng.random() < 0.3,
            "embed_dim": embed_dim,
            "group": group,
            "guidance": guidance,
        },
        "network_le_dm": {
            "type": rng.choice(["latent_encoder_gelu", "latent_encoder_lrelu"]),
            "in_chans": 3,
            "stage": 2,
            "embed_dim": embed_dim,
            "block_num": rng.choice([0, 1, 11]),
            **mixer,
        },
        "network_d": rng.choice(
            [
                {
                    "type": "denoising",
                    "in_channel": 4 * embed_dim,
                    "out_channel": 4 * embed_dim,
                    "inner_channel": rng.choice([6, 32]),
                    "block_num": rng.randint(2, 5),
                    **mixer,
                },
                {
                    "type": "simple_denoise",
                    "n_feats": embed_dim,
                    "n_denoise_res": rng.choice([0, 1, 12]),
                },
            ]
        ),
    }


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_are_read_off_their_weights(seed):
    sections = draw(random.Random(seed))
    shapes = {key.replace("network_", "net_"): blank(part) for key, part in sections.items()}
    found, _ = read_off(weights(**shapes))
    for where, section in sections.items():
        read, given = found[where], ARCHS.resolved(section, where)
        # Of factors only what they make of a width can be seen, which the shapes below compare.
        hidden = {key for key in read if key.endswith(("_factor", "_expansion"))}
        assert {key: read[key] for key in read if key not in hidden} == {
            key: given[key] for key in given if key not in hidden
        }
        rebuilt = {key: value.shape for key, value in blank(read).items()}
        name = where.replace("network_", "net_")
        assert rebuilt == {key: value.shape for key, value in shapes[name].items()}


def test_what_no_weight_shows_is_said():
    section = {"type": "Transformer", "dim": 8, "num_blocks": [0, 1, 1, 1], "guidance": "none"}
    found, notices = read_off(weights(net_g=blank({**section, "num_refinement_blocks": 0})))
    assert found["model_type"] == "Restormer"
    assert any("heads" in notice and "levels without blocks" in notice for notice in notices)


def test_other_architectures_and_missing_networks_are_named():
    with pytest.raises(UserError, match=r"^net_g: .*net_g\.pth"):
        read_off(weights(net_g={"conv1.weight": torch.zeros(64, 3, 7, 7)}))
    section = {"type": "Transformer", "dim": 8, "num_blocks": [1] * 4}
    with pytest.raises(UserError, match=r"^folder: .*net_le_dm\.pth, net_d\.pth"):
        read_off(weights(net_g=blank(section)))
    uneven = blank({"type": "latent_encoder_gelu"})
    uneven["mlp.patch_mixer.0.weight"] = torch.zeros(4, 7)
    with pytest.raises(UserError, match=r"^net_le: .*7 tokens"):
        read_off(weights(net_g=blank(section), net_le=uneven))
