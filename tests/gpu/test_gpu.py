"""What only a GPU can show, most important first: `pytest tests/gpu`."""

import os
import subprocess
import sys
import time

import golden_values as golden
import pytest
import torch
from golden_values import fill, image, load_json, relative_error
from small_data import train_options
from small_training import ALONE, parameters

from hidiff import build_model, build_network, kernels
from hidiff.engine.trainer import Trainer
from hidiff.options import parse_options

pytestmark = pytest.mark.cuda

NETWORKS = ("network_g", "network_le", "network_le_dm", "network_d")
NETWORK_LIMITS = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 5e-2}
STEP_LIMITS = {"fp32": 1e-3, "tf32": 5e-2, "bf16": 1e-1}
TWO_RANKS = """
import torch, torch.distributed as dist
dist.init_process_group("nccl")
torch.cuda.set_device(dist.get_rank())
total = torch.full((1000,), dist.get_rank() + 1.0, device="cuda")
dist.all_reduce(total)
assert (total == sum(range(1, dist.get_world_size() + 1))).all()
dist.destroy_process_group()
"""


@pytest.fixture(params=["fp32", "tf32", "bf16"])
def precision(request):
    """Its name; TF32 is switched on while the test runs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = request.param == "tf32"
    yield request.param
    torch.set_float32_matmul_precision(before)


FILES = {"gopro": "GoPro", "realblur": "RealBlur_J"}
TRAJECTORIES = [f"{dataset}_{stage}" for dataset in FILES for stage in ("s1", "s2")]


def tiny(name):
    """The released option file of a trajectory, its networks made tiny."""
    dataset, stage = name.split("_")
    file = f"train/{FILES[dataset]}_{stage.upper()}.yml"
    return golden.tiny_options(load_json("released_options.json")[file]["options"])


def of_precision(network, precision):
    """The Transformer computes bfloat16 features, where that is the precision."""
    if precision == "bf16" and hasattr(network, "feature_dtype"):
        network.feature_dtype = torch.bfloat16
    return network


@pytest.mark.parametrize("key", NETWORKS)
@pytest.mark.parametrize("preset", golden.PRESETS)
def test_networks_give_the_released_outputs(preset, key, precision, device):
    network = build_network(load_json("manifest.json")[preset][key]["options"])
    network = of_precision(fill(network, key).to(device), precision)
    inputs, expected = golden.network_case(preset, key, torch.float32)
    with torch.no_grad():
        out = network(*(t.to(device) if isinstance(t, torch.Tensor) else t for t in inputs))
    assert relative_error(out, expected) < NETWORK_LIMITS[precision]


@pytest.mark.parametrize("channels", [96, 254, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_are_exact_and_no_slower(channels, dtype):
    x = torch.randn(2, channels, 128, 128, device="cuda").to(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, 3, 3, device="cuda")
    limit = 1e-6 if dtype == torch.float32 else 1e-2
    for function in (kernels.depthwise_conv3x3, kernels.gated_depthwise_conv3x3):
        exact = function(x.to(dtype).double(), weight.double(), mode="eager")
        seconds = {}
        for mode in ("eager", "auto"):
            out = function(x.to(dtype), weight, mode=mode)
            assert relative_error(out, exact) < limit, (function.__name__, mode)
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(50):
                function(x.to(dtype), weight, mode=mode)
            torch.cuda.synchronize()
            seconds[mode] = time.perf_counter() - begun
        assert seconds["auto"] < 1.2 * seconds["eager"], function.__name__


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_five_steps_follow_the_released_trajectory(name, precision, device):
    reference = load_json("train.json")[name]
    options = tiny(name)
    model = golden.filled_model(options, torch.float32).to(device)
    of_precision(model.net_g, precision)
    for step, found in enumerate(golden.five_steps(model, options["train"])):
        for loss, wanted in reference["losses"][step].items():
            assert found[loss] == pytest.approx(wanted, rel=STEP_LIMITS[precision]), (step, loss)


def test_a_resumed_training_is_bit_for_bit_the_same(data, tmp_path, monkeypatch, request, device):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))

    def run(name, total, resume=False):
        options = train_options(data, 1, total_iter=4)
        options["name"] = name
        trainer = Trainer(parse_options(options), ALONE, auto_resume=resume)
        trainer.total_iter = total
        trainer.run()
        return parameters(trainer)

    whole = run("whole", 4)
    run("cut", 2)
    for key, value in run("cut", 4, resume=True).items():
        assert torch.equal(value, whole[key]), key


def test_all_gpus_add_up(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(TWO_RANKS)
    launch = ["-m", "torch.distributed.run", "--standalone"]
    launch += [f"--nproc_per_node={torch.cuda.device_count()}"]
    subprocess.run([sys.executable, *launch, script], check=True, timeout=200, env=os.environ)


def test_bfloat16_learns_what_float32_learns(device):
    last = {}
    for dtype in (None, torch.bfloat16):
        options = tiny("gopro_s1")
        model = golden.filled_model(options, torch.float32).to(device)
        model.net_g.feature_dtype = dtype
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(200):
            gt = torch.rand(2, 3, 4, 4, generator=generator).repeat_interleave(8, 2)
            gt = gt.repeat_interleave(8, 3).to(device)
            lq = torch.nn.functional.avg_pool2d(gt, 5, 1, 2)
            loss = sum(model(lq, gt).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        last[dtype] = sum(losses[-20:]) / 20
        assert last[dtype] < 0.5 * losses[0]
    assert last[torch.bfloat16] == pytest.approx(last[None], rel=0.1)


@pytest.mark.parametrize("size", [(720, 1280), (96, 80)])
def test_strips_give_what_the_whole_image_gives(size, device):
    if size[0] > 100 and device.type == "cpu":
        pytest.skip("takes minutes on a CPU")
    options = tiny("gopro_s2")
    model = build_model(options, training=False).to(device).eval()
    lq = image(1, (1, 3, *size), torch.float32).to(device)
    noise = model.draw_noise(1, torch.Generator().manual_seed(0)).to(device)
    restored = []
    for rows in ("whole", 64):
        model.strip_rows = rows
        restored.append(model.restore(lq, noise=noise))
    assert relative_error(restored[1], restored[0]) < 1e-4
