"""The networks that HI-Diff is compared with, tiny: the sections of their option files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from small_data import train_options

DIFFIR = {"n_encoder_res": 0, "n_feats": 4, "dim": 8, "num_blocks": [1, 1, 1, 1]}
DIFFIR |= {"num_refinement_blocks": 0}
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
BASELINES["DiffIRS1"] = {"model_type": "DiffIR_S1", "network_g": {"type": "DiffIRS1", **DIFFIR}}
BASELINES["DiffIRS2"] = {
    "model_type": "DiffIR_S2",
    "network_g": {"type": "DiffIRS2", **DIFFIR},
    "network_le": {"type": "DiffIREncoder", "n_encoder_res": 0, "n_feats": 4},
}
"""`model_type` and networks by the type of `network_g`."""


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
