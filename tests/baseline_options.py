"""The networks that HI-Diff is compared with, tiny: the sections of their option files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from small_data import train_options

_DIFFIR_S1: dict[str, Any] = {
    "network_g": {"type": "Transformer", "guidance": "vector", "embed_dim": 4, "dim": 8}
    | {"num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 0},
    "network_le": {"type": "DiffIREncoder", "block_num": 0, "embed_dim": 4},
}
_DIFFIR_S2: dict[str, Any] = {
    **_DIFFIR_S1,
    "network_le_dm": {**_DIFFIR_S1["network_le"], "in_chans": 3, "stage": 2},
    "network_d": {"type": "simple_denoise", "n_feats": 4, "n_denoise_res": 1, "timesteps": 4},
    "diffusion_schedule": {"apply_ldm": True, "timesteps": 4},
}
NAFNET = {"width": 4, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1], "middle_blk_num": 0}

_NETWORKS: dict[str, dict[str, Any]] = {
    "DMPHN": {"stack": 2, "width": 4},
    "MIMOUNetPlus": {"num_res": 0, "width": 8},
    "MPRNet": {"n_feat": 4, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 0},
    "HINet": {"wf": 4, "depth": 3},
    "Stripformer": {"width": 4},
    "NAFNet": NAFNET,
    "NAFNetLocal": {**NAFNET, "train_size": [1, 3, 16, 16]},
}

BASELINES: dict[str, dict[str, Any]] = {
    name: {"model_type": "Regression", "network_g": {"type": name, **options}}
    for name, options in _NETWORKS.items()
}
BASELINES["DiffIRS1"] = {"model_type": "HI_Diff_S1", **_DIFFIR_S1}
BASELINES["DiffIRS2"] = {"model_type": "HI_Diff_S2", **_DIFFIR_S2}
"""`model_type` and networks by the type of `network_g`; DiffIR has several networks a stage."""


def baseline_options(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A training option file of a few steps, as `train_options`; `name` is that of `net_g`."""
    options = train_options(folder, 1, **{"total_iter": 2, **changes})
    for phases in ("mini_batch_sizes", "iters", "gt_sizes"):
        del options["datasets"]["train"][phases]
    options["datasets"]["train"]["gt_size"] = 16
    options["logger"]["save_checkpoint_freq"] = 1
    del options["network_le"]
    options |= {**copy.deepcopy(BASELINES[name]), "name": f"tiny_{name}", "val": {}}
    options["datasets"]["test_1"] = options["datasets"].pop("val") | {"name": "small"}
    if name == "DiffIRS2":
        options["path"] = {"stage1": "tiny_DiffIRS1"}
    return options
