"""Small data sets and option files that tests make."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

TINY_G = {
    "type": "Transformer",
    "dim": 8,
    "num_blocks": [1, 1, 1, 1],
    "num_refinement_blocks": 1,
    "heads": [1, 2, 4, 8],
    "ffn_expansion_factor": 2,
    "embed_dim": 8,
}
TRANSFORMERS = {
    "released": {"ffn_expansion_factor": 2.66},
    "bias": {"bias": True},
    "bias_free": {"LayerNorm_type": "BiasFree", "bias": True},
    "single_scale": {"guidance": "single_scale"},
    "no_prior": {"guidance": "none"},
}
"""Changes that make the Transformer compute something else."""

TINY_LE = {"type": "latent_encoder_gelu", "embed_dim": 8, "block_num": 1}
STAGE2 = {
    "network_le_dm": {**TINY_LE, "in_chans": 3, "stage": 2},
    "network_d": {
        "type": "denoising",
        "in_channel": 32,
        "out_channel": 32,
        "inner_channel": 16,
        "block_num": 3,
    },
    "diffusion_schedule": {"apply_ldm": False, "timesteps": 2},
}


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth coloured uint8 picture (H, W, 3) RGB."""
    noise = np.random.default_rng(seed).random((height // 4 + 2, width // 4 + 2, 3))
    smooth = cv2.resize(noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return (np.clip(smooth, 0, 1) * 255).astype(np.uint8)


def write_rgb(path: Path, image: np.ndarray) -> None:
    """Write with OpenCV itself, not with the code under test."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def make_lmdb(folder: Path, output: Path) -> None:
    """A folder's images in an LMDB, in BasicSR's layout."""
    import lmdb

    with lmdb.open(str(output), map_size=2**24) as database, database.begin(write=True) as write:
        for path in sorted(folder.iterdir()):
            write.put(path.stem.encode(), path.read_bytes())


def make_pairs(folder: Path, count: int, height: int = 40, width: int = 48) -> list[str]:
    """`count` pairs in folder/{input,target}: pictures and the same blurred; returns the names."""
    names = []
    for index in range(count):
        sharp = picture(index, height, width)
        name = f"scene-{index:03d}"
        write_rgb(folder / "target" / f"{name}.png", sharp)
        write_rgb(folder / "input" / f"{name}.png", cv2.blur(sharp, (5, 5)))
        names.append(name)
    return names


def train_options(folder: Path, stage: int, **changes: Any) -> dict[str, Any]:
    """A training option file of a few steps on CPU; `changes` replace values of `train`."""
    data = {"type": "PairedImageIRDataset"}
    roots = {
        part: {
            "dataroot_gt": str(folder / part / "target"),
            "dataroot_lq": str(folder / part / "input"),
        }
        for part in ("train", "test")
    }
    options = {
        "name": f"tiny_S{stage}",
        "model_type": f"HI_Diff_S{stage}",
        "manual_seed": 3,
        "num_gpu": 0,
        "datasets": {
            "train": {
                **data,
                **roots["train"],
                "name": "TrainSet",
                "num_worker_per_gpu": 0,
                "batch_size_per_gpu": 2,
                "mini_batch_sizes": [2, 1],
                "iters": [2, 2],
                "gt_sizes": [16, 32],
                "gt_size": 32,
            },
            "val": {**data, **roots["test"], "name": "ValSet"},
        },
        "network_g": copy.deepcopy(TINY_G),
        "network_le": {**TINY_LE, "in_chans": 6, "stage": 1},
        "train": {
            "total_iter": 4,
            "scheduler": {"type": "CosineAnnealingLR"},
            "optim_total": {"type": "AdamW", "lr": 1e-3},
            **changes,
        },
        "val": {"val_freq": 4, "metrics": {"psnr": {"type": "calculate_psnr"}}},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2},
    }
    if stage == 2:
        options |= copy.deepcopy(STAGE2)
    return options


def test_options(folder: Path) -> dict[str, Any]:
    """An option file for test.py on the weights of `train_options(folder, 2)`."""
    models = Path("experiments/tiny_S2/models")
    return {
        "name": "tiny_test",
        "model_type": "HI_Diff_S2",
        "manual_seed": 3,
        "num_gpu": 0,
        "datasets": {
            "test_1": {
                "type": "PairedImageIRDataset",
                "name": "small",
                "dataroot_gt": str(folder / "test/target"),
                "dataroot_lq": str(folder / "test/input"),
            }
        },
        "network_g": copy.deepcopy(TINY_G),
        **copy.deepcopy(STAGE2),
        "path": {
            f"pretrain_network_{n}": str(models / f"net_{n}_latest.pth")
            for n in ("g", "le_dm", "d")
        },
        "val": {
            "save_img": True,
            "metrics": {"psnr": {"type": "calculate_psnr"}, "ssim": {"type": "calculate_ssim"}},
        },
    }


test_options.__test__ = False  # a function for tests, no test


def write_yaml(path: Path, options: dict[str, Any]) -> Path:
    """Write an option file."""
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return path
