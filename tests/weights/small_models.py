"""Experiments and folders of the released layout, with weights that nobody has trained."""

import copy
import functools
from pathlib import Path

import torch
from baseline_options import BASELINES

from hidiff.models import build_model
from hidiff.options import load_options
from hidiff.weights.model_file import save_model

ROOT = Path(__file__).resolve().parent.parent.parent
WIDTHS = {
    **{"dim": 8, "embed_dim": 8, "inner_channel": 16, "n_feats": 8},
    **{"in_channel": 32, "out_channel": 32},
}


def small(sections):
    """The same with small widths and few blocks; types, heads and all else are left."""
    sections = copy.deepcopy(dict(sections))
    if sections["network_g"]["type"] in BASELINES:
        tiny = BASELINES[sections["network_g"]["type"]]
        return sections | {k: sections[k] | v for k, v in tiny.items() if k.startswith("network_")}
    for key in [key for key in sections if key.startswith("network_")]:
        sections[key] |= {k: v for k, v in WIDTHS.items() if sections[key].get(k) is not None}
        if "block_num" in sections[key]:
            sections[key]["block_num"] = 3
    sections["network_g"] |= {"num_blocks": [1, 1, 1, 2], "num_refinement_blocks": 1}
    return sections


@functools.cache
def presets():
    """Sections of the option files by their path in options/, one of those with equal networks.

    Only T differs between some of them.
    """
    found = {}
    for path in sorted((ROOT / "options").rglob("*.yml")):
        sections = load_options(path).sections
        unused = "network_le" if "network_le_dm" in sections else "train"
        parts = [
            value
            for key, value in sections.items()
            if key.startswith(("model_", "network_")) and key != unused
        ]
        found.setdefault(str(parts), (str(path.relative_to(ROOT / "options")), sections))
    return dict(found.values())


def random_model(sections, seed=0):
    """A model with random weights; to initialise them as for a training takes longer."""
    torch.manual_seed(seed)
    sections = {key: value for key, value in sections.items() if key != "train"}
    with torch.device("meta"):
        model = build_model(sections)
    with torch.no_grad():
        for network in model.networks().values():
            for parameter in network.to_empty(device="cpu").parameters():
                parameter.normal_(std=0.1)
    # Whether parameters need a gradient decides how matmul rounds.
    return model.eval().requires_grad_(False)


def make_experiment(folder, sections, step=8, averaged=False, total_iter=100, facts=None):
    """`folder` as a training leaves it that has saved after `step`; returns its model."""
    model = random_model(sections, seed=step)
    save_model(
        folder / "models" / f"{folder.name}_{step}.safetensors",
        model,
        options=sections,
        name=folder.name,
        step=step,
        total_iter=total_iter,
        average=random_model(sections, seed=step + 1) if averaged else None,
        **(facts or {}),
    )
    return model


def make_released(folder, sections, prefix=""):
    """`folder` with net_g.pth and its like, without an option file; returns the model."""
    folder.mkdir(parents=True)
    model = random_model(sections, seed=1)
    for name, network in model.networks().items():
        params = {prefix + key: value for key, value in network.state_dict().items()}
        torch.save({"params": params}, folder / f"{name}.pth")
    return model


def same(model, other):
    """Whether two models have the same networks, bit for bit."""
    ours, theirs = model.networks(), other.networks()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name].state_dict()[key])
        for name, network in ours.items()
        for key, value in network.state_dict().items()
    )
