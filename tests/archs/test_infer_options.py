"""Options of networks as the names and shapes of their weights show them."""

import json

import pytest
import torch

from hidiff import build_network
from hidiff.registry import ARCHS

BLOCKS = {"num_blocks": [1, 2, 1, 0], "num_refinement_blocks": 1}
SIZES = [
    {"type": "Transformer"},
    {"type": "Transformer", "embed_dim": 64, "num_refinement_blocks": 0, "group": 6},
    {"type": "Transformer", "guidance": "none", **BLOCKS, "ffn_expansion_factor": 2.0},
    {"type": "Transformer", "guidance": "none", "LayerNorm_type": "BiasFree", "dim": 16, **BLOCKS},
    {"type": "Transformer", "guidance": "single_scale", "bias": True, "heads": [2, 2, 2, 8]},
    {"type": "Transformer", "guidance": "none", "inp_channels": 1, "out_channels": 1},
    {"type": "Transformer", "guidance": "none", "inp_channels": 6, "dual_pixel_task": True},
    {"type": "Transformer", "guidance": "vector", "embed_dim": 64, "ffn_expansion_factor": 2.0},
    {"type": "DiffIREncoder"},
    {"type": "DiffIREncoder", "in_chans": 3, "stage": 2, "block_num": 0, "embed_dim": 12},
    {"type": "latent_encoder_gelu", "embed_dim": 48, "block_num": 6},
    {"type": "latent_encoder_gelu", "in_chans": 3, "stage": 2, "group": 8, "patch_expansion": 1.0},
    {"type": "latent_encoder_lrelu", "in_chans": 1, "stage": 2, "channel_expansion": 2.5},
    {"type": "denoising", "in_channel": 192, "out_channel": 192, "channel_expansion": 2.0},
    {"type": "denoising", "in_channel": 8, "out_channel": 8, "inner_channel": 12, "block_num": 8},
    {"type": "denoising", "in_channel": 8, "out_channel": 8, "block_num": 2},
    {"type": "simple_denoise", "n_feats": 48, "n_denoise_res": 1},
    {"type": "DMPHN"},
    {"type": "DMPHN", "stack": 1, "levels": 3},
    {"type": "DMPHN", "stack": 1, "levels": 4, "width": 16},
    {"type": "HINet"},
    {"type": "HINet", "wf": 32, "depth": 4, "hin_position_left": 2, "hin_position_right": 3},
    {"type": "HINet", "in_chn": 1, "depth": 3, "hin_position_left": 3, "hin_position_right": 3},
    {"type": "MIMOUNetPlus"},
    {"type": "MIMOUNetPlus", "num_res": 8, "width": 16},
    {"type": "MPRNet"},
    {"type": "MPRNet", "n_feat": 40, "scale_unetfeats": 20, "scale_orsnetfeats": 16},
    {"type": "MPRNet", "kernel_size": 5, "reduction": 8, "bias": True, "num_cab": 0, "in_c": 1}
    | {"out_c": 1},
    {"type": "NAFNet"},
    {"type": "NAFNet", "width": 64, "middle_blk_num": 12, "enc_blk_nums": [2, 2, 4, 8]}
    | {"dec_blk_nums": [2, 2, 2, 2]},
    {"type": "NAFNet", "width": 8, "img_channel": 1, "enc_blk_nums": [], "dec_blk_nums": []},
    {"type": "NAFNetLocal", "enc_blk_nums": [0, 3], "dec_blk_nums": [1, 0]},
    {"type": "Stripformer"},
    {"type": "Stripformer", "width": 16},
]


@pytest.mark.parametrize("section", SIZES, ids=str)
def test_every_size_is_recognised(section):
    with torch.device("meta"):
        weights = build_network(section).state_dict()
        kind = ARCHS.get(section["type"], "")
        found = {"type": section["type"], **kind.infer_options(weights)}
        again = build_network(found).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in weights.items()}
    wanted = ARCHS.resolved(section, "")
    assert json.dumps(found) == json.dumps({key: wanted[key] for key in found})


def test_weights_belong_to_one_kind_of_network():
    with torch.device("meta"):
        states = {kind: build_network({"type": kind}).state_dict() for kind in ARCHS}
    alike = {frozenset({"NAFNet", "NAFNetLocal"})}
    for kind, state in states.items():
        for other in ARCHS:
            if kind == other or frozenset({kind, other}) in alike:
                continue
            with pytest.raises(ValueError):
                ARCHS.get(other, "").infer_options(state)
