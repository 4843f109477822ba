"""Packed files: what is put in comes out, and nothing damaged does."""

import json
import random
import shutil
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from small_data import train_options
from small_models import make_experiment, presets, same, small
from small_training import ALONE, parameters

from hidiff import UserError
from hidiff.cli import main
from hidiff.engine.trainer import Trainer
from hidiff.evaluation.record import ImageScore, Scores, write_scores
from hidiff.evaluation.test_run import run_test
from hidiff.options import load_options, parse_options
from hidiff.weights.load import find_model, load_model
from hidiff.weights.packed import _metadata_sha256, describe, pack, read_packed, unpack
from hidiff.weights.read import state_sha256


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """Of a tiny stage 2 that sees normalised images and keeps an average of its weights."""
    options = train_options(tmp_path_factory.mktemp("data"), 2, ema_decay=0.9)
    options["datasets"]["train"] |= {"mean": [0.4, 0.5, 0.6], "std": [0.5, 0.5, 1.0]}
    return parse_options(options).sections


@pytest.fixture(scope="module")
def packed(sections, tmp_path_factory):
    """A packed file of that."""
    folder = tmp_path_factory.mktemp("packed")
    make_experiment(folder / "experiment", sections, averaged=True)
    pack(find_model(folder / "experiment"), folder / "model.safetensors")
    return folder / "model.safetensors"


def raw(path):
    """Texts and tensors of a safetensors file."""
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def check_round_trip(sections, folder):
    model = make_experiment(folder / "experiment", sections)
    packed = pack(find_model(folder / "experiment"), folder / "model.safetensors")
    states = [network.state_dict().values() for network in model.networks().values()]
    content = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == sum(value.nbytes for state in states for value in state)
    files = unpack(folder / "model.safetensors", folder / "released")
    names = [*(f"{name}.pth" for name in model.networks()), "options.yml"]
    assert [file.name for file in files] == names
    for name, network in model.networks().items():
        content = torch.load(folder / "released" / f"{name}.pth", weights_only=True)
        assert content["step"] == 8
        ours = network.state_dict()
        assert list(content["params"]) == list(ours)
        for key, value in content["params"].items():
            assert value.dtype == torch.float32
            assert torch.equal(value.view(torch.int32), ours[key].view(torch.int32))
    before, after = (
        {k: v for k, v in describe(m).items() if k.startswith(("network_", "diff", "model_"))}
        for m in (packed, find_model(folder / "released"))
    )
    assert before == after
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


def test_the_metadata_says_all_there_is_to_know(packed, sections):
    texts, _ = raw(packed)
    found = {key: json.loads(text) for key, text in texts.items()}
    for key in ("model_type", "network_g", "network_le_dm", "network_d", "diffusion_schedule"):
        assert found[key] == sections[key]
    assert "network_le" not in found and "train" not in found
    assert found["hidiff_format"] == 1
    assert found["name"] == "experiment"
    assert found["normalization"] == {"mean": [0.4, 0.5, 0.6], "std": [0.5, 0.5, 1]}
    assert (found["patch_size"], found["step"]) == (32, 8)
    assert found["data"]["name"] == "TrainSet"
    assert found["data"]["dataroot_gt"].endswith("train/target")
    assert not found["data"]["dataroot_gt"].startswith("/")
    assert set(found["versions"]) == {"hidiff", "python", "torch", "safetensors"}
    assert set(found["sha256"]) == {"net_g", "net_le_dm", "net_d", "metadata"}
    assert found["origin"]["net_g"]["entry"] == "params_ema"
    assert found["origin"]["net_g"]["file"] == "net_g_latest.pth"


def test_the_average_of_the_weights_is_packed_where_it_is_kept(packed, sections):
    for use_ema, entry in ((True, "params_ema"), (False, "params")):
        folder = packed.parent / entry
        options = {**sections, "val": {**sections["val"], "use_ema": use_ema}}
        make_experiment(folder, options, averaged=True)
        expected = torch.load(folder / "models/net_g_8.pth", weights_only=True)[entry]
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
    unpack(path, tmp_path / "folder")
    content = torch.load(tmp_path / "folder/net_g.pth", weights_only=True)["params"]
    assert {value.dtype for value in content.values()} == {getattr(torch, half)}
    assert same(load_model(tmp_path / "folder").model, load_model(path).model)


def test_weights_too_large_for_half_are_refused(packed, tmp_path):
    model = find_model(packed)
    with torch.no_grad():
        model.model.net_d.time_mlp.fill_(1e5)
    with pytest.raises(UserError, match=r"net_d: .*time_mlp.*bfloat16"):
        pack(model, tmp_path / "half.safetensors", half="float16")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unless_asked(packed, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        pack(find_model(packed), path)
    (tmp_path / "net_d.pth").write_text("mine")
    with pytest.raises(UserError, match=r"net_d\.pth"):
        unpack(packed, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "net_d.pth"]
    assert path.read_text() == (tmp_path / "net_d.pth").read_text() == "mine"
    pack(find_model(packed), path, overwrite=True)
    unpack(path, tmp_path, overwrite=True)
    assert same(find_model(path).model, find_model(packed).model)


def test_a_file_that_cannot_be_written_leaves_nothing(packed, tmp_path):
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
            read_packed(path)
    for length in (0, 5, header // 2, header, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"damaged\.safetensors"):
            read_packed(path)


def rewritten(packed, path, change):
    """The packed file after `change(metadata, tensors)`, with fitting sums."""
    texts, tensors = raw(packed)
    metadata = {key: json.loads(text) for key, text in texts.items()}
    change(metadata, tensors)
    for name in [name for name in metadata["sha256"] if name != "metadata"]:
        part = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(name)}
        metadata["sha256"][name] = state_sha256(part)
    metadata["sha256"]["metadata"] = _metadata_sha256(metadata)
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    safetensors.torch.save_file(tensors, path, texts)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m, t: m.update(hidiff_format=2), "format is 2"),
        (lambda m, t: m.pop("name"), "name"),
        (lambda m, t: m.update(patch_size="large"), "patch_size"),
        (lambda m, t: m.update(normalization=[1]), "normalization"),
        (lambda m, t: m.update(model_type="HI_Diff_S9"), "model_type"),
        (lambda m, t: m["network_g"].update(dims=8), r"network_g\.dims"),
        (lambda m, t: m["network_g"].update(dim=16), r"net_g: .*patch_embed|net_g: .*shape"),
        (lambda m, t: m["network_d"].update(block_num=4), "net_d: .*missing"),
        (lambda m, t: m["sha256"].pop("net_d"), "no network|net_d"),
        (lambda m, t: t["net_g.output.weight"].fill_(float("nan")), r"net_g: .*output\.weight"),
        (lambda m, t: t.update({"other.weight": torch.zeros(1)}), "no network"),
        (
            lambda m, t: t.update({"net_d.time_mlp": torch.zeros(1, dtype=torch.int32)}),
            "net_d: .*time_mlp.*int32",
        ),
    ],
)
def test_what_does_not_fit_is_named(packed, tmp_path, change, place):
    path = tmp_path / "other.safetensors"
    rewritten(packed, path, change)
    with pytest.raises(UserError, match=place) as error:
        load_model(path)
    assert "other.safetensors" in str(error.value)


def test_a_packed_file_is_tested_after_unpacking(packed, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unpack(packed, Path("folder"))
    images = f"datasets.test_1.dataroot_lq={data / 'test/input'}"
    options = load_options("folder/options.yml", [images])
    assert run_test(options, ALONE)
    pictures = [path.read_bytes() for path in sorted(tmp_path.rglob("photographs/*.png"))]
    assert len(pictures) == 2
    # Or without unpacking: the same pictures.
    options = load_options("folder/options.yml", [images, f"path.weights={packed}", "name=direct"])
    assert run_test(options, ALONE)
    assert pictures == [p.read_bytes() for p in sorted(Path("results/direct").rglob("*.png"))]
    options = load_options("folder/options.yml", [images, "path.weights=folder/net_g.pth"])
    with pytest.raises(UserError, match=r"^path\.weights: .*net_g\.pth"):
        run_test(options, ALONE)


def test_a_file_packed_for_training_is_trained_on(trained, data, tmp_path, monkeypatch):
    monkeypatch.chdir(trained[0])
    expected = find_model("tiny_S2", training=True)
    for options, name in (([], "plain"), (["--for-training", "--half"], "whole")):
        assert main(["pack", "tiny_S2", "-o", str(tmp_path / f"{name}.safetensors"), *options]) == 0
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"plain\.safetensors: .*net_le.*--for-training"):
        find_model("plain.safetensors", training=True)
    model = find_model("whole.safetensors", training=True)
    encoder = expected.model.net_le.state_dict()
    assert all(
        torch.equal(value, encoder[key].half())
        for key, value in model.model.net_le.state_dict().items()
    )
    assert model.description.split(", ")[1] == expected.description.split(", ")[1]
    monkeypatch.setattr("hidiff.weights.load.BUNDLED", tmp_path / "bundled.safetensors")
    monkeypatch.setattr("hidiff.weights.pretrained.BUNDLED", tmp_path / "bundled.safetensors")
    with pytest.raises(UserError, match=r"^bundled: "):
        find_model("bundled")
    Path("whole.safetensors").rename("bundled.safetensors")
    assert same(find_model("bundled").model, model.model)
    options = train_options(data, 2) | {"path": {"weights": "bundled"}, "name": "on"}
    before = parameters(trainer := Trainer(parse_options(options), ALONE))
    assert set(before) > {f"net_le.{key}" for key in encoder}
    for key, value in before.items():
        network, _, entry = key.partition(".")
        assert torch.equal(value, model.model.networks()[network].state_dict()[entry].float())
    trainer.run()
    changed = {
        key for key, value in parameters(trainer).items() if not torch.equal(value, before[key])
    }
    assert {key.partition(".")[0] for key in changed} == {"net_g", "net_le_dm", "net_d"}
    options["path"]["weights"] = "plain.safetensors"
    with pytest.raises(UserError, match=r"^path\.weights: plain\.safetensors has no net_le"):
        Trainer(parse_options({**options, "name": "other"}), ALONE)


def test_files_of_other_programs_are_refused(tmp_path, packed):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_text("no tensors")
    for name in ("a", "b", "absent"):
        with pytest.raises(UserError, match=rf"{name}\.safetensors"):
            read_packed(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="folder"):
        read_packed(tmp_path)


def test_the_commands(packed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(packed.parent / "experiment", "experiments/mine")
    told = ["--licence", "CC-BY-4.0", "--data", "photographs of cats"]
    assert main(["pack", "mine", "-o", "a.safetensors", "--half", *told]) == 0
    assert main(["unpack", "a.safetensors", "-o", "b"]) == 0
    capsys.readouterr()
    for source in ("a.safetensors", "b", "mine", "mine@8"):
        assert main(["info", source]) == 0
        table = capsys.readouterr().out
        assert "HI_Diff_S2" in table and "dim 8" in table
        assert ("float16" in table) == (source in ("a.safetensors", "b"))
        assert ("CC-BY-4.0" in table) == (source == "a.safetensors")
    with pytest.raises(SystemExit) as end:
        main(["pack", "mine", "-o", "a.safetensors"])
    assert end.value.code == 2
    assert main(["pack", "a.safetensors", "-o", "a.safetensors", "--overwrite"]) == 0
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
    assert main(["pack", "mine", "-o", "c.safetensors", "--scores", "scored"]) == 0
    (row,) = find_model("c.safetensors").scores
    assert (row["dataset"], row["restored"]) == ("mine", {"psnr": 30.0})
