"""Option files: what is accepted, and what is said about what is not."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from golden_values import load_json

from hidiff import UserError, build_model, build_network
from hidiff.archs import Denoiser
from hidiff.options import Phase, load_options, parse_options
from hidiff.options.yaml_file import apply_overrides

ROOT = Path(__file__).resolve().parent.parent.parent
OPTION_FILES = sorted((ROOT / "options").rglob("*.yml"))
RELEASED = load_json("released_options.json")
RELEASED_PHASES = [(128, 16), (160, 10), (192, 8), (256, 4), (320, 2), (384, 2)]


def released_text(name: str) -> str:
    """The released file as text: its content, the repeated keys, numbers tagged !!float."""

    def emit(value, indent, repeated):
        lines = []
        for key, item in value.items():
            if isinstance(item, dict):
                lines += [f"{indent}{key}:", *emit(item, indent + "  ", repeated)]
            else:
                tag = "!!float " if isinstance(item, float) else ""
                line = f"{indent}{key}: {tag}{yaml.safe_dump(item, default_flow_style=True)}"
                line = line.splitlines()[0]
                lines.append(line)
                for entry in [r for r in repeated if r[0] == key]:
                    repeated.remove(entry)
                    lines.append(line)
        return lines

    reference = RELEASED[name]
    repeated = [list(entry) for entry in reference["repeated_keys"]]
    lines = emit(reference["options"], "", repeated)
    assert not repeated
    return "\n".join(lines)


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_released_option_files_run_as_they_are(name, tmp_path):
    path = tmp_path / Path(name).name
    path.write_text(released_text(name))
    options = load_options(path)
    reference = RELEASED[name]
    assert options.name == reference["options"]["name"]
    repeats = [n for n in options.notices if "repeated with the same value" in n]
    assert len(repeats) == len(reference["repeated_keys"])
    if options.train is not None:
        dead = ("use_shuffle", "prefetch_mode", "mixing_augs")
        for key in dead:
            assert any(key in notice and "no effect" in notice for notice in options.notices)
        train, data = options.for_training()
        phases = data.phases(train.total_iter)
        assert [(p.patch_size, p.batch_size) for p in phases] == RELEASED_PHASES
        assert options.val.val_freq == 4000
    with torch.device("meta"):
        build_model(options.sections)


@pytest.mark.parametrize("path", OPTION_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_option_files_load_and_build(path):
    options = load_options(path)
    assert options.notices == ()
    assert path.read_text().startswith("#"), "the command stands at the top"
    with torch.device("meta"):
        model = build_model(options.sections)
    assert set(model.networks()) >= {"net_g"}
    if options.train is not None:
        options.for_training()[1].phases(options.train.total_iter)
    else:
        options.test_sets()


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_shipped_experiments_are_the_released_ones(name):
    """Everything that decides the result equals the release; only the known defects differ."""
    ours = load_options(ROOT / "options" / name)
    theirs = parse_options(copy.deepcopy(RELEASED[name]["options"]))
    for key in ("network_g", "network_le_dm", "network_d", "diffusion_schedule"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.manual_seed == theirs.manual_seed
    assert ours.val == theirs.val
    if theirs.train is None:
        assert ours.path == theirs.path
        return
    assert ours.name == f"train_HI_Diff_{Path(name).stem}"
    assert ours.network_le == theirs.network_le
    for key in ("total_iter", "optim_total", "scheduler", "use_grad_clip", "pixel_opt"):
        assert getattr(ours.train, key) == getattr(theirs.train, key), key
    assert ours.datasets["train"] == theirs.datasets["train"]


@pytest.fixture
def content():
    return copy.deepcopy(RELEASED["train/GoPro_S2.yml"]["options"])


def with_value(content, path, value):
    section = content
    *sections, last = path.split(".")
    for key in sections:
        section = section[key]
    section[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("network_g.dims", 48, r"network_g\.dims: Transformer has no option 'dims'.*'dim'"),
        ("network_g.dim", "48", r"network_g\.dim: .*48"),
        ("network_g.dim", True, r"network_g\.dim: "),
        ("network_g.num_blocks", 4, r"network_g\.num_blocks: "),
        ("network_g.heads", [1, 2, 4], r"network_g\.heads: "),
        ("network_g.heads", [1, 2, 4, 7], r"network_g: heads\[3\] = 7 does not divide the 384"),
        ("network_g.type", "Transfomer", r"network_g\.type: there is no network.*'Transformer'"),
        ("network_g.bias", 1, r"network_g\.bias: "),
        ("network_le.in_chans", 3, r"network_le: in_chans 3 does not fit stage 1"),
        ("network_le.embed_dim", 32, r"network_le: its prior has 128 channels"),
        ("network_le_dm.group", 8, r"network_le_dm\.group: 8 differs from network_g\.group 4"),
        ("diffusion_schedule.schedule", "linaer", r"diffusion_schedule\.schedule.*'linear'"),
        ("diffusion_schedule.timesteps", 0, r"diffusion_schedule\.timesteps: 0"),
        ("diffusion_schedule.step", 3, r"diffusion_schedule\.step: .*no option 'step'"),
        ("train.optim_total.lr", "0.1", r"train\.optim_total\.lr: .*\"0\.1\""),
        ("train.optim_total.lr", float("inf"), r"train\.optim_total\.lr: "),
        ("train.optim_total.lr", "1e999", r"train\.optim_total\.lr: "),
        ("train.optim_total.lr", 10**400, r"train\.optim_total\.lr: "),
        ("train.optim_total.type", "Adamw", r"train\.optim_total\.type: .*'AdamW'"),
        ("train.pixel_opt.loss_weight", float("nan"), r"train\.pixel_opt\.loss_weight: "),
        ("train.total_iter", float("inf"), r"train\.total_iter: "),
        ("train.pixel_opt.type", "L1", r"train\.pixel_opt\.type: there is no loss 'L1'.*L1Loss"),
        ("train.total_iters", 5, r"train\.total_iters: .*did you mean 'total_iter'"),
        ("train.total_iter", 0.5, r"train\.total_iter: "),
        ("model_type", "HI_Diff_S3", r"model_type: there is no model 'HI_Diff_S3'"),
        ("scale", 4, r"scale: "),
        ("name", "../elsewhere", r"name: '../elsewhere'"),
        ("val.val_freqs", 1, r"val\.val_freqs: .*'val_freq'"),
        ("val.num_workers", -1, r"val\.num_workers: "),
        ("val.num_workers", "all", r"val\.num_workers: .*auto"),
        ("logger.print_freq", 0, r"logger\.print_freq: "),
        ("path.pretrain_network", "x", r"path\.pretrain_network: .*did you mean"),
        ("datasets.training", {}, r"datasets\.training: "),
        ("num_gpu", "all", r"num_gpu: .*auto"),
        ("networkg", {}, r"networkg: .*'network_g'"),
        ("network_g.dim", 0, r"network_g\.dim: .*got 0"),
        ("network_g.heads", [0, 2, 4, 8], r"network_g\.heads\[0\]: .*got 0"),
        ("network_g.num_blocks", [-1, 5, 6, 6], r"network_g\.num_blocks\[0\]: .*got -1"),
        ("network_g.ffn_expansion_factor", 0, r"network_g: ffn_expansion_factor 0\.0"),
        ("network_g.out_channels", 1, r"network_g: out_channels 1 must equal inp_channels 3"),
        ("network_g.type", ["Transformer"], r"network_g\.type: there is no network"),
        ("network_d.out_channel", 8, r"network_d\.out_channel: 8 must equal in_channel 256"),
        ("network_d.group", 8, r"network_d\.group: 8 differs from network_g\.group 4"),
        ("network_le_dm.block_num", -3, r"network_le_dm\.block_num: .*-3"),
        ("manual_seed", -1, r"manual_seed: "),
        ("train.optim_total.lr", -1.0, r"train\.optim_total: Invalid learning rate"),
        ("train.optim_total.betas", [0.9, 1.5], r"train\.optim_total: Invalid beta"),
        ("train.optim_total.betas", [0.9], r"train\.optim_total\.betas: "),
        ("train.scheduler.periods", [0, 5], r"train\.scheduler\.periods: \[0, 5\]"),
        ("train.ema_decay", 1.0, r"train\.ema_decay: "),
        ("val.metrics.psnr.better", "highest", r"val\.metrics\.psnr\.better: .*'higher'"),
        ("datasets.train.std", [1, 1, 1], r"datasets\.train\.std: remove it"),
        ("datasets.train.mean", [0.5], r"datasets\.train\.mean: remove it"),
        ("train.optim_total", {"type": "AdamW"}, r"train\.optim_total\.lr: this option is missing"),
        ("datasets.train.num_prefetch_queue", 0, r"datasets\.train\.num_prefetch_queue: "),
        ("name", "a" * 300, r"name: 300 bytes"),
        ("name", "a" + "ä" * 100, r"name: 201 bytes"),
        ("datasets.train.name", "a" * 300, r"datasets\.train\.name: 300 bytes"),
        ("val.protocol", "matlba", r"val\.protocol: .*did you mean 'matlab'"),
        ("val.metrics.psnr.type", "psnr", r"val\.metrics\.psnr\.type: .*'calculate_psnr'"),
        ("manual_seed", "__import__('os').getpid()", r"manual_seed: "),
    ],
)
def test_mistakes_name_their_place_and_the_way_out(content, path, value, message):
    from hidiff.engine.optim import build_lr_schedule, build_optimizer

    with_value(content, path, value)
    with pytest.raises(UserError, match=message):
        options = parse_options(content)
        with torch.device("meta"):
            model = build_model(options.sections)
        build_optimizer(options.train.optim_total, model)
        build_lr_schedule(options.train.scheduler, base_lr=1e-3, total_iter=5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("gt_sizes", [128, 160], "one entry a phase in each list"),
        ("gt_size", 256, "256 is less than the largest of gt_sizes, 384"),
        ("mini_batch_sizes", [32, 10, 8, 4, 2, 2], "32 exceeds batch_size_per_gpu 16"),
        ("iters", None, "progressive training also needs iters"),
        ("iters", [20000, 0, 1, 1, 1, 1], r"datasets\.train\.iters\[1\]: "),
    ],
)
def test_phase_lists_must_fit(content, key, value, message):
    content["datasets"]["train"][key] = value
    with pytest.raises(UserError, match=message):
        parse_options(content).for_training()[1].phases(300000)


@pytest.mark.parametrize(
    ("total_iter", "lengths"),
    [
        (300000, [20000] * 5 + [200000]),
        (350000, [20000] * 5 + [250000]),
        (70000, [20000] * 3 + [10000]),
        (40000, [20000] * 2),
        (7, [7]),
    ],
)
def test_phases_end_with_the_training(content, total_iter, lengths):
    content["train"]["total_iter"] = total_iter
    options = parse_options(content)
    phases = options.datasets["train"].phases(total_iter)
    assert [phase.iters for phase in phases] == lengths
    told = [notice for notice in options.notices if notice.startswith("datasets.train.iters: ")]
    assert len(told) == (total_iter != 300000)


@pytest.mark.parametrize(
    ("path", "value", "effect"),
    [
        ("datasets.train.pin_memory", True, True),
        ("datasets.train.num_prefetch_queue", 3, True),
        ("datasets.train.persistent_workers", True, False),
        ("train.ema_decay", 0, True),
        ("train.optim_total.amsgrad", True, True),
        ("val.pbar", False, True),
        ("val.metrics.psnr.better", "lower", True),
        ("val.metrics.psnr.input_order", "HWC", False),
        ("path.ignore_resume_networks", "network_le", False),
        ("find_unused_parameters", True, False),
    ],
)
def test_options_of_the_release_beyond_its_files(content, path, value, effect):
    """Accepted; those without an effect here are named."""
    from hidiff.engine.optim import build_optimizer
    from hidiff.evaluation.evaluator import build_metrics

    known = len(parse_options(copy.deepcopy(content)).notices)
    options = parse_options(with_value(content, path, value))
    told = [notice for notice in options.notices if notice.startswith(f"{path} ")]
    assert len(told) == (not effect)
    assert len(options.notices) == known + len(told)
    build_metrics(options.val.metrics)
    parameter = torch.nn.Linear(1, 1)
    optimizer = build_optimizer(options.train.optim_total, parameter)
    assert optimizer.defaults["amsgrad"] == path.endswith("amsgrad")
    assert options.val.is_better("psnr", 2, 1) == (not path.endswith("better"))


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    path = tmp_path / "a.yml"
    text = released_text("train/GoPro_S1.yml")
    text = text.replace("!!float 0.0002", "2e-4").replace("total_iter: 300000", "total_iter: 3e5")
    assert "lr: 2e-4" in text and "total_iter: 3e5" in text
    path.write_text(text)
    from hidiff.engine.optim import build_optimizer

    options = load_options(path)
    optimizer = build_optimizer(options.train.optim_total, torch.nn.Linear(1, 1))
    assert optimizer.defaults["lr"] == 2e-4
    assert options.train.total_iter == 300000


def test_home_and_variables_are_replaced_in_paths(content, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", "elsewhere")
    data = content["datasets"]["train"]
    data |= {"dataroot_lq": "~/lq", "dataroot_gt": "$HOME/gt", "cache": "/${WHERE}/c"}
    content["path"] |= {"pretrain_network_g": "~/g.pth", "resume_state": "$WHERE/1.state"}
    options = parse_options(content)
    source = options.datasets["train"].source
    assert source["dataroot_lq"] == str(tmp_path / "lq")
    assert source["dataroot_gt"] == str(tmp_path / "gt")
    assert source["cache"] == "/elsewhere/c"
    assert options.path.pretrain_network_g == tmp_path / "g.pth"
    assert options.path.resume_state == Path("elsewhere/1.state")


def test_without_lists_there_is_one_phase(content):
    for key in ("mini_batch_sizes", "iters", "gt_sizes"):
        del content["datasets"]["train"][key]
    assert parse_options(content).datasets["train"].phases(70) == (Phase(384, 16, 70),)


def test_none_on_the_command_line_is_nothing(content):
    """And the choice of that name, where there is one."""
    apply_overrides(content, ["path:resume_state=none", "network_g:guidance=none"])
    options = parse_options(content)
    assert options.path.resume_state is None
    with torch.device("meta"):
        assert build_network(options.network_g).guidance == "none"


def test_what_a_file_leaves_out_is_filled_in(content):
    del content["network_d"]["block_num"], content["train"]["pixel_opt"]
    content["network_g"] |= {"guidance": None, "bias": None}
    content["logger"] = None
    sections = parse_options(copy.deepcopy(content)).sections
    assert sections["network_d"]["block_num"] == Denoiser.__init__.__kwdefaults__["block_num"]
    assert sections["network_g"]["guidance"] == "none"
    assert sections["network_g"]["bias"] is False
    assert sections["logger"]["print_freq"] == 100
    assert sections["train"]["optim_total"]["eps"] == 1e-8
    assert sections["val"]["metrics"]["psnr"]["crop_border"] == 0
    # The model has a default of its own for a loss that is left out, and none for `~`.
    assert "pixel_opt" not in sections["train"]
    assert parse_options(copy.deepcopy(sections)).sections == sections
    assert yaml.safe_load(yaml.safe_dump(sections)) == sections


def test_encoders_in_each_others_place_are_refused(content):
    content["network_le"], content["network_le_dm"] = (
        content["network_le_dm"],
        content["network_le"],
    )
    with pytest.raises(UserError, match=r"^network_le(_dm)?\.in_chans: "):
        build_model(parse_options(content).sections)


def test_two_test_sets_of_one_name_are_refused():
    content = copy.deepcopy(RELEASED["test/GoPro.yml"]["options"])
    content["datasets"]["test_2"]["name"] = "GoPro"
    with pytest.raises(UserError, match=r"datasets\.test_2\.name: "):
        parse_options(content)


def test_overrides_are_recorded(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text(released_text("train/GoPro_S1.yml"))
    options = load_options(path, ["name=other", "logger:print_freq=5"])
    assert options.overrides == ("name=other", "logger:print_freq=5")
    assert "set on the command line: logger:print_freq=5" in options.notices
