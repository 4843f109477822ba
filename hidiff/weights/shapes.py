"""The options of networks, read off the names and shapes of their weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from hidiff.diffusion import LatentDDPM
from hidiff.models import section_of
from hidiff.registry import ARCHS
from hidiff.utils.errors import UserError
from hidiff.utils.typecheck import check_call
from hidiff.weights.read import Weights

Shapes = Mapping[str, tuple[int, ...]]

SCHEDULES = {
    "denoising": {"apply_ldm": False, "timesteps": 8},
    "simple_denoise": {"apply_ldm": True, "timesteps": 16},
}
"""What the released models beside each denoiser were trained with, where it is not the default."""

USUAL_HEADS = (1, 2, 4, 8)
USUAL_GROUP = 4


def read_off(weights: Mapping[str, Weights]) -> tuple[dict[str, Any], list[str]]:
    """The sections of an option file that fit some weights.

    Args:
        weights: by the networks' official names; `net_g` alone is plain Restormer's, `net_g` and
            `net_le` are those of stage 1, otherwise `net_le_dm` and `net_d` stand beside it.

    Returns:
        `model_type`, the networks' sections and the schedule, defaults filled in; and notices that
        say what was read off and what no shape shows.

    Raises:
        UserError: a network is missing, or its weights are not those of a network of this project.
    """
    shapes = {name: _shapes(part.state_dict) for name, part in weights.items()}
    found: dict[str, dict[str, Any]] = {}
    group = USUAL_GROUP
    # Encoders first: the others do not always show how many tokens the prior has.
    for name in sorted(weights, key=lambda name: not name.startswith("net_le")):
        where = section_of(name)
        try:
            section = READERS.get(name, _encoder)(shapes[name], group)
            found[name] = ARCHS.resolved(section, where)
        except (LookupError, ValueError, ArithmeticError) as error:
            raise UserError(
                f"{name}: {weights[name].path} holds the weights of another architecture "
                f"({error}); if it is one of this project, put its option file beside it"
            ) from None
        group = found[name].get("group", group)
    sections = {section_of(name): found[name] for name in weights}
    model_type = _model_type(found, next(iter(weights.values())).path.parent)
    assumed = []
    if 0 in found.get("net_g", {}).get("num_blocks", ()):
        assumed.append(f"network_g.heads {list(found['net_g']['heads'])} of levels without blocks")
    if model_type == "HI_Diff_S2":
        kind = found["net_d"]["type"]
        sections["diffusion_schedule"] = check_call(
            LatentDDPM, SCHEDULES[kind], "diffusion_schedule"
        )
        known = sections["diffusion_schedule"].items()
        words = ", ".join(f"{key} {value}" for key, value in known if value is not None)
        assumed.append(f"diffusion_schedule: {words}")
        if kind == "simple_denoise":
            assumed.append(f"network_d.timesteps {found['net_d']['timesteps']}")
    notices = [
        f"{section_of(name)}: read off the shapes: {_words(part)}" for name, part in found.items()
    ]
    notices += [
        f"{what}: no shape shows it; taken from the released models, unless an option file beside "
        "the weights says otherwise"
        for what in assumed
    ]
    return {"model_type": model_type, **sections}, notices


def _model_type(found: Mapping[str, Any], folder: Path) -> str:
    """The model that networks make together.

    Raises:
        UserError: none, because one is missing.
    """
    if found.get("net_g", {}).get("guidance") == "none":
        return "Restormer"
    missing = [name for name in ("net_g", "net_le_dm", "net_d") if name not in found]
    if not missing:
        return "HI_Diff_S2"
    if "net_g" in found and "net_le" in found:
        return "HI_Diff_S1"
    raise UserError(f"{folder}: restoring needs {', '.join(f'{n}.pth' for n in missing)} there too")


def _shapes(state_dict: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def _words(section: Mapping[str, Any]) -> str:
    """The type, and the options that are not its defaults."""
    defaults = ARCHS.resolved({"type": section["type"]}, "")
    known = [f"{key} {value}" for key, value in section.items() if value != defaults[key]]
    return ", ".join([section["type"], *known])


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand at the place of `pattern`'s group in the names."""
    return len({found[1] for key in shapes if (found := re.match(pattern, key))})


def _side(tokens: int) -> int:
    """The side of a square of tokens.

    Raises:
        ValueError: there is none.
    """
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"{tokens} tokens are no square")
    return math.isqrt(tokens)


def _factor(pairs: list[tuple[int, int]], default: float) -> float:
    """The number f with the fewest decimals for which int(width · f) is the hidden width.

    Args:
        pairs: (width, hidden width) of every layer; `default` is returned where there are none.

    Raises:
        ValueError: there is none.
    """
    if not pairs or all(int(width * default) == hidden for width, hidden in pairs):
        return default
    low = max(Fraction(hidden, width) for width, hidden in pairs)
    for decimals in range(17):
        candidate = math.ceil(low * 10**decimals) / 10**decimals
        if all(int(width * candidate) == hidden for width, hidden in pairs):
            return candidate
    raise ValueError(f"no factor makes the hidden widths {sorted(set(pairs))}")


def _transformer(shapes: Shapes, group: int) -> dict[str, Any]:
    dim, channels = shapes["patch_embed.proj.weight"][:2]
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    blocks = [_count(shapes, rf"{level}\.blocks\.(\d+)\.") for level in levels]
    heads = list(USUAL_HEADS)
    for index, level in enumerate(levels):
        # The refinement has the heads of level 1, which may itself have no blocks.
        for place in (level, "refinement")[: 1 if index else 2]:
            if temperature := shapes.get(f"{place}.blocks.0.attn.temperature"):
                heads[index] = temperature[0]
                break
    hidden = [
        (shape[0], shape[1])
        for key, shape in shapes.items()
        if key.endswith("ffn.project_out.weight")
    ]
    section = {
        "type": "Transformer",
        "inp_channels": channels,
        "out_channels": shapes["output.weight"][0],
        "dim": dim,
        "num_blocks": blocks,
        "num_refinement_blocks": _count(shapes, r"refinement\.blocks\.(\d+)\."),
        "heads": heads,
        "ffn_expansion_factor": _factor(hidden, 2.66),
        "bias": "output.bias" in shapes,
        "dual_pixel_task": "skip_conv.weight" in shapes,
        "guidance": "none",
    }
    if any(key.endswith("norm1.body.weight") for key in shapes):
        with_bias = any(key.endswith("norm1.body.bias") for key in shapes)
        section["LayerNorm_type"] = "WithBias" if with_bias else "BiasFree"
    if "down_1.1.weight" in shapes:
        group, prior = _side(shapes["down_1.1.weight"][1]), shapes["down_1.3.weight"][0]
        section |= {"guidance": "multi_scale", "group": group, "embed_dim": prior // 4}
    elif "encoder_level1.him.kv.weight" in shapes:
        prior = shapes["encoder_level1.him.kv.weight"][1]
        section |= {"guidance": "single_scale", "group": group, "embed_dim": prior // 4}
    return section


def _mixer(shapes: Shapes, place: str, channel_expansion: float) -> dict[str, Any]:
    token_hidden, tokens = shapes[f"{place}.patch_mixer.0.weight"]
    channel_hidden, width = shapes[f"{place}.channel_mixer.0.weight"]
    return {
        "group": _side(tokens),
        "patch_expansion": _factor([(tokens, token_hidden)], 0.5),
        "channel_expansion": _factor([(width, channel_hidden)], channel_expansion),
    }


def _encoder(shapes: Shapes, group: int) -> dict[str, Any]:
    embed_dim, channels = shapes["conv1.0.weight"][:2]
    return {
        "type": "latent_encoder_gelu" if "conv2.weight" in shapes else "latent_encoder_lrelu",
        "in_chans": channels // 16,
        "stage": 96 // channels,
        "embed_dim": embed_dim,
        "block_num": _count(shapes, r"blocks\.(\d+)\."),
        **_mixer(shapes, "mlp", 4.0),
    }


def _denoiser(shapes: Shapes, group: int) -> dict[str, Any]:
    if "time_mlp" not in shapes:
        return {
            "type": "simple_denoise",
            "n_feats": shapes["resmlp.0.weight"][0] // 4,
            "n_denoise_res": _count(shapes, r"resmlp\.(\d+)\.resmlp\."),
        }
    inner, channels = shapes["first_layer.0.weight"]
    mixers = _count(shapes, r"blocks\.(\d+)\.")
    return {
        "type": "denoising",
        "in_channel": channels // 3,
        "out_channel": shapes["final_layer.0.weight"][0],
        "inner_channel": inner,
        "block_num": mixers + 2,
        **(_mixer(shapes, "blocks.0.0", 2.0) if mixers else {"group": group}),
    }


READERS = {"net_g": _transformer, "net_d": _denoiser}
