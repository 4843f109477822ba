"""Published weights of every network, recognised by names and shapes."""

import pytest
import torch
from golden_values import load_json
from small_data import test_options, train_options
from small_models import make_released, random_model, same, small

from hidiff import UserError, build_network
from hidiff.options import load_options, parse_options
from hidiff.weights.find import find_model
from hidiff.weights.published import recognise

MANIFEST = load_json("baselines/manifest.json")["networks"]
PUBLISHED = [name for name, entry in MANIFEST.items() if not entry["type"].startswith("DiffIR")]

SMALL = {
    "DMPHN": {"stack": 1, "levels": 3, "width": 8},
    "MIMOUNetPlus": {"num_res": 1},
    "MPRNet": {"n_feat": 4, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1},
    "HINet": {"wf": 4, "depth": 2},
    "NAFNetLocal": {"width": 4, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "Transformer": {
        **{"dim": 8, "num_blocks": [1, 1, 1, 2], "num_refinement_blocks": 1, "guidance": "none"},
        **{"LayerNorm_type": "BiasFree", "heads": [1, 1, 2, 2]},
    },
}
"""Sizes that no published network has."""


def on_meta(section):
    with torch.device("meta"):
        return build_network(section).state_dict()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_network_is_recognised(name):
    entry = MANIFEST[name]
    shapes = {key: torch.empty(shape, device="meta") for key, shape in entry["state_dict"].items()}
    section = recognise(shapes, name)
    assert section["type"].removesuffix("Local") == entry["type"].removesuffix("Local")
    found = {key: list(value.shape) for key, value in on_meta(section).items()}
    assert found == entry["state_dict"]


@pytest.mark.parametrize("kind", SMALL)
def test_other_sizes_are_recognised_in_a_file(kind, tmp_path):
    network = build_network({"type": kind, **SMALL[kind]})
    torch.save({"params_ema": network.state_dict(), "params": {}}, tmp_path / "w.pth")
    found = find_model(tmp_path / "w.pth")
    assert found.options["network_g"]["type"] == kind
    assert "published weights" in found.description
    for key, value in network.state_dict().items():
        assert torch.equal(found.model.net_g.state_dict()[key], value)


def test_a_network_in_parts_is_recognised(tmp_path):
    network = build_network({"type": "DMPHN", **SMALL["DMPHN"]})
    for name, part in network.named_children():
        torch.save(part.state_dict(), tmp_path / f"{name}.pkl")
    found = find_model(tmp_path)
    for key, value in network.state_dict().items():
        assert torch.equal(found.model.net_g.state_dict()[key], value)
    (tmp_path / f"{name}.pkl").unlink()
    with pytest.raises(UserError, match="DMPHN"):
        find_model(tmp_path)


@pytest.mark.parametrize("name", ["GoPro", "RealBlur_J"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_released_files_need_no_option_file(root, tmp_path, name, prefix):
    sections = small(load_options(root / f"options/test/{name}.yml").sections)
    model = make_released(tmp_path / "released", sections, prefix)
    found = find_model(tmp_path / "released")
    assert same(found.model, model)
    for key in ("network_g", "network_le_dm", "network_d", "diffusion_schedule"):
        expected = {**sections[key]}
        assert {k: v for k, v in found.options[key].items() if v != expected.get(k, v)} == {}
    assert any("diffusion_schedule" in notice for notice in found.notices)


def test_part_of_a_model_is_named(tmp_path):
    sections = parse_options(train_options(tmp_path, 2)).sections
    make_released(tmp_path / "a", sections)
    with pytest.raises(UserError, match=r"net_g\.pth is one part.*net_le_dm\.pth, net_d\.pth"):
        find_model(tmp_path / "a" / "net_g.pth")
    (tmp_path / "a" / "net_d.pth").unlink()
    with pytest.raises(UserError, match=r"a is one part.*net_d\.pth"):
        find_model(tmp_path / "a")


def test_the_entry_of_an_option_file_is_taken(tmp_path):
    sections = parse_options(test_options(tmp_path)).sections
    models = {entry: random_model(sections, seed) for seed, entry in enumerate(("params", "x"))}
    for name in models["x"].networks():
        content = {key: m.networks()[name].state_dict() for key, m in models.items()}
        torch.save(content, tmp_path / f"{name}.pth")
    assert same(find_model(tmp_path).model, models["params"])
