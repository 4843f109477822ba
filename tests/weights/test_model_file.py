"""A model is one file: written, read, damaged, hostile; packed and unpacked."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from small_data import train_options
from small_models import make_experiment, presets, random_model, same, small

from hidiff import UserError
from hidiff.cli import call
from hidiff.evaluation.record import ImageScore, Scores, write_scores
from hidiff.options import load_options, parse_options
from hidiff.weights.experiment import training_facts
from hidiff.weights.export import pack, unpack
from hidiff.weights.find import find_model, load_model
from hidiff.weights.model_file import _checksum, read_model_file, save_model


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Of a tiny stage 2 that keeps an average of its weights."""
    return parse_options(train_options(tmp_path_factory.mktemp("data"), 2, ema_decay=0.9))


@pytest.fixture(scope="module")
def sections(options):
    return options.sections


@pytest.fixture(scope="module")
def packed(options, tmp_path_factory):
    """A model file of that for others."""
    folder = tmp_path_factory.mktemp("packed")
    facts = training_facts(options)
    make_experiment(folder / "experiment", options.sections, averaged=True, facts=facts)
    pack(find_model(folder / "experiment"), folder / "model.safetensors")
    return folder / "model.safetensors"


def raw(path):
    """Texts and tensors of a safetensors file."""
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_a_file_holds_every_network_and_its_average(sections, tmp_path):
    model, average = random_model(sections, seed=1), random_model(sections, seed=2)
    known = {"name": "x", "step": 3, "total_iter": 9, "licence": "CC0-1.0"}
    save_model(tmp_path / "x.safetensors", model, options=sections, average=average, **known)
    file = read_model_file(tmp_path / "x.safetensors")
    assert {key: getattr(file.about, key) for key in known} == known
    assert file.about.options == json.loads(json.dumps(sections))
    assert set(file.networks) == {"net_g", "net_le_dm", "net_d", "net_le"}
    assert set(file.averages) == {"net_g", "net_le_dm", "net_d"}
    for source, found in ((model, file.networks), (average, file.averages)):
        for name, state in found.items():
            for key, value in source.networks()[name].state_dict().items():
                assert torch.equal(state[key], value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def check_round_trip(sections, folder):
    model = make_experiment(folder / "experiment", sections)
    pack(find_model(folder / "experiment"), folder / "model.safetensors")
    found = find_model(folder / "model.safetensors")
    files = unpack(found, folder / "released")
    names = [*(f"{name}.pth" for name in found.model.networks()), "options.yml"]
    assert [file.name for file in files] == names
    for name in found.model.networks():
        content = torch.load(folder / "released" / f"{name}.pth", weights_only=True)
        assert content["step"] == 8
        ours = model.networks()[name].state_dict()
        assert list(content["params"]) == list(ours)
        for key, value in content["params"].items():
            assert value.dtype == torch.float32
            assert torch.equal(value.view(torch.int32), ours[key].view(torch.int32))
    assert found.options == find_model(folder / "released").options
    assert load_options(files[-1]).test_sets()


def small_presets():
    """One of those that are equal with small widths."""
    found = {}
    for name, sections in presets().items():
        sections = small(sections)
        parts = {k: v for k, v in sections.items() if k.startswith(("model_", "network_", "diff"))}
        found.setdefault(str(parts), pytest.param(sections, id=name))
    return found.values()


@pytest.mark.parametrize("sections", small_presets())
def test_every_preset_is_packed_and_unpacked_bit_for_bit(sections, tmp_path):
    check_round_trip(sections, tmp_path)


def test_a_packed_file_says_what_others_need(packed, sections):
    about = read_model_file(packed).about
    for key in ("model_type", "network_g", "network_le_dm", "network_d", "diffusion_schedule"):
        assert about.options[key] == json.loads(json.dumps(sections[key]))
    assert "network_le" not in about.options and "train" not in about.options
    assert (about.name, about.patch_size, about.step) == ("experiment", 32, 8)
    assert about.data["name"] == "TrainSet"
    assert about.data["dataroot_gt"].endswith("train/target")
    assert not about.data["dataroot_gt"].startswith("/")
    assert set(about.versions) == {"hidiff", "python", "torch", "safetensors"}


def test_the_average_is_taken_where_validation_takes_it(packed, sections):
    for use_ema in (True, False):
        folder = packed.parent / f"ema_{use_ema}"
        val = {**sections["val"], "use_ema": use_ema}
        make_experiment(folder, {**sections, "val": val}, averaged=True)
        file = read_model_file(folder / "models" / f"{folder.name}_8.safetensors")
        expected = (file.averages if use_ema else file.networks)["net_g"]
        found = find_model(folder).model.net_g.state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_half_is_stored_rounded_and_read_as_float32(packed, tmp_path):
    half, path = "bfloat16", tmp_path / "half.safetensors"
    pack(find_model(packed), path, half=half)
    assert path.stat().st_size < 0.75 * packed.stat().st_size
    whole, rounded = (load_model(p).model.state_dict() for p in (packed, path))
    for key, value in whole.items():
        stored = value if key.startswith("diffusion") else value.to(getattr(torch, half)).float()
        assert rounded[key].dtype == torch.float32
        assert torch.equal(rounded[key], stored)
    unpack(find_model(path), tmp_path / "folder")
    assert same(load_model(tmp_path / "folder").model, load_model(path).model)


def test_weights_too_large_for_half_are_refused(packed, tmp_path):
    model = find_model(packed)
    with torch.no_grad():
        model.model.net_d.time_mlp.fill_(1e5)
    with pytest.raises(UserError, match=r"net_d: .*time_mlp.*float16"):
        pack(model, tmp_path / "half.safetensors", half="float16")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unless_asked(packed, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        pack(find_model(packed), path)
    (tmp_path / "net_d.pth").write_text("mine")
    with pytest.raises(UserError, match=r"net_d\.pth"):
        unpack(find_model(packed), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "net_d.pth"]
    assert path.read_text() == (tmp_path / "net_d.pth").read_text() == "mine"
    pack(find_model(packed), path, overwrite=True)
    unpack(find_model(path), tmp_path, overwrite=True)
    assert same(find_model(path).model, find_model(packed).model)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        pack(find_model(packed), tmp_path / "file" / "model.safetensors")
    with pytest.raises(UserError, match="safetensors"):
        pack(find_model(packed), tmp_path / "model.pth")


def test_every_flipped_bit_and_every_cut_is_noticed(packed, tmp_path):
    content = packed.read_bytes()
    rng = random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [rng.randrange(header) for _ in range(60)]
    places += [rng.randrange(header, len(content)) for _ in range(20)]
    path = tmp_path / "damaged.safetensors"
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged\.safetensors"):
            find_model(path)
    for length in (0, 5, header // 2, header, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"damaged\.safetensors"):
            find_model(path)


def rewritten(packed, path, change):
    """The model file after `change(about, tensors)`, with fitting sums."""
    texts, tensors = raw(packed)
    about = json.loads(texts["hidiff"])
    changed = change(about, tensors)
    text = changed if isinstance(changed, str) else json.dumps(about)
    sums = {"hidiff_format": "2", "hidiff": text, "sha256": _checksum(text, tensors)}
    safetensors.torch.save_file(tensors, path, sums)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m, t: m.update(name=None), "name"),
        (lambda m, t: m.update(patch_size="large"), "patch_size"),
        (lambda m, t: m.update(scores=[{"dataset": "a"}]), "scores"),
        (lambda m, t: m.update(scores=5), "scores"),
        (lambda m, t: "[" * 100000, "metadata"),
        (lambda m, t: '{"name": ' + "[" * 100000 + "]" * 100000 + "}", "metadata"),
        (lambda m, t: m["options"].update(model_type="HI_Diff_S9"), "model_type"),
        (lambda m, t: m["options"].update(model_type=[5]), "model_type"),
        (lambda m, t: m["options"].update(network_g=5), "network_g"),
        (lambda m, t: m["options"].update(val=5, network_g=[]), "network_g"),
        (lambda m, t: m["options"]["network_g"].update(dims=8), r"network_g\.dims"),
        (lambda m, t: m["options"]["network_g"].update(dim=4), r"net_g: .*shape"),
        (lambda m, t: m["options"]["network_g"].update(dim=10**9), "larger"),
        (lambda m, t: m["options"]["network_g"].update(num_blocks=[10**6, 1, 1, 1]), "larger"),
        (lambda m, t: m["options"]["network_d"].update(block_num=10**9), "larger"),
        (lambda m, t: m["options"]["network_d"].update(block_num=2), "net_d: .*unknown"),
        (lambda m, t: m["options"]["diffusion_schedule"].update(timesteps=10**12), "timesteps"),
        (lambda m, t: t["net_g.output.weight"].fill_(float("nan")), r"output\.weight"),
        (lambda m, t: t.update({"other.weight": torch.zeros(1)}), "other"),
        (lambda m, t: t.clear(), "no networks"),
        (
            lambda m, t: t.update({"net_d.time_mlp": torch.zeros(1, dtype=torch.int32)}),
            "net_d.time_mlp.*int32",
        ),
        (
            lambda m, t: t.update({"net_d.time_mlp": torch.zeros(1).to(torch.float8_e4m3fn)}),
            "net_d.time_mlp.*float8",
        ),
    ],
)
def test_what_does_not_fit_is_named_at_once(packed, tmp_path, change, place):
    """Whatever the sums say, and however large the network would be that the options ask for."""
    path = tmp_path / "other.safetensors"
    rewritten(packed, path, change)
    start = time.process_time()
    with pytest.raises(UserError, match=place) as error:
        load_model(path)
    assert "other.safetensors" in str(error.value)
    assert time.process_time() - start < 5


def test_files_of_other_programs_and_formats_are_refused(tmp_path, packed):
    texts, tensors = raw(packed)
    safetensors.torch.save_file(
        tensors, tmp_path / "c.safetensors", {**texts, "hidiff_format": "9"}
    )
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_text("no tensors")
    for name in ("a", "b", "c", "absent"):
        with pytest.raises(UserError, match=rf"{name}\.safetensors"):
            find_model(tmp_path / f"{name}.safetensors")


def test_the_commands(packed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(packed.parent / "experiment", "experiments/mine")
    told = ["--licence", "CC-BY-4.0", "--data", "photographs of cats"]
    assert call("pack", "mine", "-o", "a.safetensors", "--half", *told) == 0
    assert call("unpack", "a.safetensors", "-o", "b") == 0
    capsys.readouterr()
    for source in ("a.safetensors", "b", "mine", "mine@8"):
        assert call("info", source) == 0
        table = capsys.readouterr().out
        assert "HI_Diff_S2" in table and "dim 8" in table
        assert ("float16" in table) == (source in ("a.safetensors", "b"))
        assert ("CC-BY-4.0" in table) == (source == "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors"):
        call("pack", "mine", "-o", "a.safetensors")
    assert call("pack", "a.safetensors", "-o", "a.safetensors", "--overwrite") == 0
    assert find_model("a.safetensors").licence == "CC-BY-4.0"
    assert find_model("a.safetensors").data["description"] == "photographs of cats"
    scores = Scores(
        dataset="mine",
        protocol="basicsr",
        source="test",
        images=[ImageScore(name="0", restored={"psnr": 30.0})],
    )
    Path("scored").mkdir()
    write_scores(Path("scored"), [scores])
    assert call("pack", "mine", "-o", "c.safetensors", "--scores", "scored") == 0
    (row,) = find_model("c.safetensors").scores
    assert (row["dataset"], row["restored"]) == ("mine", {"psnr": 30.0})
