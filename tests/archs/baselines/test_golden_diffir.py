"""DiffIR's two stages: the published files' names, figures, outputs and gradients."""

import re
from functools import cache

import pytest
import torch
from golden_values import fill, image, load_arrays, load_json, normal, relative_error

from hidiff.archs.baselines.diffir import published_networks
from hidiff.models import build_model
from hidiff.report.macs import model_complexity

MANIFEST = load_json("baselines/manifest.json")
CASES = {
    f"{case['type']}-{case['case']}": case
    for case in MANIFEST["cases"]
    if case["type"].startswith("DiffIR")
}
GRADIENTS = [name for name, case in CASES.items() if "gradients" in case]
PARTS = {"DiffIRS1": {"net_g": "G", "net_le": "E"}}
PARTS["DiffIRS2"] = {"net_g": "G", "net_le_dm": "condition", "net_d": "denoise"}


def sections(case):
    """Our option sections of a stage of DiffIR."""
    options = dict(case["options"])
    encoder = {"type": "DiffIREncoder", "block_num": options.pop("n_encoder_res", 5)}
    network = {"num_blocks": (3, 5, 6, 6), "ffn_expansion_factor": 2}
    own = {"n_denoise_res": 1, "linear_start": 0.1, "linear_end": 0.99, "timesteps": 4}
    own = {key: options.pop(key, value) for key, value in own.items()}
    network |= {"type": "Transformer", "guidance": "vector", "embed_dim": 64, **options}
    if case["type"] == "DiffIRS1":
        return {"model_type": "HI_Diff_S1", "network_g": network, "network_le": encoder}
    denoiser = {key: own[key] for key in ("n_denoise_res", "timesteps")}
    schedule = {key: own[key] for key in ("linear_start", "linear_end", "timesteps")}
    return {
        "model_type": "HI_Diff_S2",
        "network_g": network,
        "network_le_dm": {**encoder, "in_chans": 3, "stage": 2},
        "network_d": {"type": "simple_denoise", **denoiser},
        "diffusion_schedule": {"apply_ldm": True, **schedule},
    }


def published_shapes(model, kind):
    """The shapes of the published file, from our networks' by the inverse of the renaming."""
    shapes = {}
    for name, network in model.networks().items():
        part = PARTS[kind][name]
        blocks = len(getattr(network, "blocks", ()))
        for key, value in network.state_dict().items():
            shape = list(value.shape)
            if ".ln2." in key:
                continue
            if part == "G":
                key = key.replace(".blocks.", ".", 1)
                if ".ln1." in key:
                    key, shape[0] = key.replace(".ln1.", ".kernel.0."), 2 * shape[0]
            elif part != "denoise":
                key = re.sub(r"^end\.0", "mlp.2", key)
                key = re.sub(r"^conv1\.0", "E.0", key)
                key = re.sub(r"^blocks\.(\d+)\.", lambda m: f"E.{int(m[1]) + 2}.body.", key)
                key = re.sub(r"^conv2\.(\d+)", lambda m, n=blocks: f"E.{int(m[1]) + 2 + n}", key)
            shapes[f"{part}.{key}"] = shape
    return shapes


class Published(torch.nn.Module):
    """Parameters of the published names and shapes, which `fill` takes as it takes a network."""

    def __init__(self, shapes):
        super().__init__()
        self.tensors = {k: torch.empty(v, dtype=torch.float64) for k, v in shapes.items()}

    def state_dict(self):
        return self.tensors


@cache
def computed(name):
    """The model of a case in float64, filled by rule, and its outputs by their names."""
    case = CASES[name]
    model = build_model(sections(case), training=False).double()
    published = Published(published_shapes(model, case["type"]))
    fill(published, case["type"], gain=MANIFEST["fill"]["gain"])
    for network, weights in published_networks(published.tensors).items():
        model.networks()[network].load_state_dict(weights)
    size = case["image"]
    batch, shape = size["batch"], (size["batch"], 3, size["height"], size["width"])
    blurry = image(size["seed"], shape)
    with torch.set_grad_enabled("gradients" in case):
        if case["type"] == "DiffIRS1":
            prior = model.net_le(blurry, image(size["seed"] + 1000, shape))
            return model, {"out0": model.net_g(blurry, prior), "ipr": prior[:, 0]}
        noise = normal(size["seed"] + 2000, (batch, 256))[:, None]
        prior = normal(size["seed"] + 3000, (batch, 256))[:, None]
        condition = model.net_le_dm(blurry)
        chain = model.diffusion.reverse
        start = model.diffusion.training_start(prior, noise)
        generated, trained = (chain(model.net_d, z, condition) for z in (noise, start))
        return model, {
            "out0": model.net_g(blurry, generated),
            "ipr": generated[:, 0],
            "condition": condition[:, 0],
            "denoise_t1": model.net_d(noise, condition, 1)[:, 0],
            "train_out": model.net_g(blurry, trained),
            "train_ipr": trained[:, 0],
        }


@pytest.mark.parametrize("kind", ["DiffIRS1", "DiffIRS2"])
def test_names_shapes_and_figures_are_the_published_ones(kind):
    reference = MANIFEST["networks"][kind]
    with torch.device("meta"):
        model = build_model(sections(reference), training=False)
    published = {
        key: shape
        for key, shape in reference["state_dict"].items()
        if not key.startswith("diffusion.")
    }
    assert published_shapes(model, kind) == published
    counted = model_complexity(sections(reference), (256, 256))
    assert counted.parameters == reference["parameters"]
    assert counted.macs == reference["macs_256"]["total"]


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_published_ones(name):
    case, values = CASES[name], load_arrays("baselines/outputs.npz")
    _, outputs = computed(name)
    for key in case["outputs"]:
        reference = values[f"{case['type']}/{case['case']}/{key}"]
        ours = outputs["train_ipr"] if key == "train_ipr_list" else outputs[key]
        if key == "train_ipr_list":
            reference = reference[-1]
        assert relative_error(ours, reference) < 1e-9, key


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_the_published_ones(name):
    reference = CASES[name]["gradients"]
    model, outputs = computed(name)
    loss = outputs["out0"].square().mean()
    assert loss.item() == pytest.approx(reference["loss"], rel=1e-9)
    for network, part in PARTS[CASES[name]["type"]].items():
        parameters = list(model.networks()[network].parameters())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        norm = sum(g.square().sum() for g in gradients).sqrt().item()
        assert norm == pytest.approx(reference["norms"][part], rel=1e-8), part


def test_what_is_no_file_of_diffir_is_refused():
    with pytest.raises(ValueError):
        published_networks({"intro.weight": torch.zeros(1)})
    with pytest.raises(ValueError):
        published_networks({"G.output.weight": torch.zeros(1)})
