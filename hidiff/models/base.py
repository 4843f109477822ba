"""What the training stages share: networks, losses, and restoring images of any size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.archs.denoiser import Denoiser, SimpleDenoiser
from hidiff.archs.latent_encoder import LatentEncoder
from hidiff.archs.restormer import DepthwiseConv2d
from hidiff.archs.strips import Progress, restore_in_strips
from hidiff.archs.transformer import Transformer
from hidiff.archs.windows import Windows
from hidiff.diffusion import LatentDDPM
from hidiff.kernels import Mode
from hidiff.models.memory import StripRows, plan
from hidiff.utils.errors import UserError

Transform = Callable[[Tensor, Tensor | None], Tensor]
"""From images (B, 3, H, W) and prior (B, N, C') to images, as the Transformer does."""

CHANNELS = 3
"""Of the images in all data sets: RGB."""

LOSS_OPTIONS = {
    "l_pix": "pixel_opt",
    "l_pix_diff": "pixel_diff_opt",
    "l_percep": "perceptual_opt",
    "l_edge": "edge_opt",
    "l_freq": "frequency_opt",
}
"""Loss → its option under `train`; L1 with weight 1 where a stage needs it and it is absent, none
where it is `~`."""

IMAGE_LOSSES = [name for name in LOSS_OPTIONS if name != "l_pix_diff"]
"""Those between restored and sharp images."""


def pad_to_multiple(image: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Pad (B, C, H, W) at the right and bottom by reflection to H and W that are multiples.

    Raises:
        UserError: a side is too short to reflect (the padding must be smaller than the side).
    """
    height, width = image.shape[-2:]
    bottom, right = -height % multiple[0], -width % multiple[1]
    if bottom >= height or right >= width:
        raise UserError(
            f"an image of {height}×{width} pixels is too small to restore; the sides must have at "
            f"least {max(multiple) // 2 + 1} pixels"
        )
    return F.pad(image, (0, right, 0, bottom), mode="reflect") if bottom or right else image


def resized(image: Tensor, like: Tensor) -> Tensor:
    """(B, C, H, W) bilinearly at the size of another image; as it is where it has that."""
    size = like.shape[-2:]
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def section_of(network: str) -> str:
    """'net_le' → 'network_le', its section in an option file."""
    return network.replace("net_", "network_")


class DeblurModel(nn.Module):
    """Networks, diffusion and losses of one training stage.

    A stage is built from its parts; the names of its constructor's arguments are those of the
    option sections, see `hidiff.models.build_model`. The attribute names of the networks are those
    of the weights files: `net_g` is kept in `net_g_*.pth`.

    Args:
        networks: by official name; a network that is None is left out.
        losses: by name; one that is None is left out.
        frozen: networks that the stage uses and does not train.
        from_stage1: networks that start from stage 1's weights of the same name.
        guided: whether prior tokens guide the Transformer; its option `guidance` must fit.
        restores_from_gt: `restore` needs the sharp image: its scores are an upper bound.

    Raises:
        UserError: the networks do not fit each other.
    """

    trains: tuple[type[nn.Module], ...] = (Transformer,)
    """Classes of `net_g`."""

    net_g: Any
    net_le: LatentEncoder
    net_le_dm: LatentEncoder
    net_d: Denoiser | SimpleDenoiser
    diffusion: LatentDDPM

    def __init__(
        self,
        networks: Mapping[str, nn.Module | None],
        losses: Mapping[str, nn.Module | None],
        *,
        frozen: tuple[str, ...] = (),
        from_stage1: tuple[str, ...] = (),
        guided: bool = False,
        restores_from_gt: bool = False,
    ) -> None:
        super().__init__()
        self.frozen, self.from_stage1 = frozen, from_stage1
        self.guided, self.restores_from_gt = guided, restores_from_gt
        self.notices: tuple[str, ...] = ()
        """What of the model differs from the release, to be told to the user."""
        self.strip_rows: StripRows = "auto"
        present = {name: net for name, net in networks.items() if net is not None}
        self._network_names = tuple(present)
        for name, network in present.items():
            setattr(self, name, network)
            if name in frozen:
                network.requires_grad_(False)
        self.losses = nn.ModuleDict({k: v for k, v in losses.items() if v is not None})
        if losses and not self.losses.keys() & set(IMAGE_LOSSES):
            raise UserError(
                "train.pixel_opt: without it and perceptual_opt nothing compares restored and "
                "sharp images; name a loss, for example type: L1Loss"
            )
        if not isinstance(self.net_g, self.trains):
            raise UserError(
                f"network_g.type: {type(self.net_g).__name__} does not fit the model_type, which "
                f"trains a {' or '.join(kind.__name__ for kind in self.trains)}"
            )
        if isinstance(self.net_g, Transformer):
            self._check_guidance(self.net_g)
        if self.net_g.in_channels != CHANNELS:
            raise UserError(
                f"network_g: it takes {self.net_g.in_channels} channels, but the data sets "
                f"hold RGB images, {CHANNELS}; change its option for that"
            )
        self.train()

    def _check_guidance(self, network: Transformer) -> None:
        if (network.guidance != "none") != self.guided:
            wanted = "multi_scale or single_scale" if self.guided else "none"
            raise UserError(
                f"network_g.guidance: '{network.guidance}' does not fit the model_type, which "
                f"trains a network {'with' if self.guided else 'without'} a prior; use {wanted}"
            )

    def use_kernels(self, mode: Mode) -> None:
        """Choose how `net_g` computes depthwise convolutions on GPUs, 'auto' at first."""
        for module in self.net_g.modules():
            if isinstance(module, DepthwiseConv2d):
                module.kernels = mode

    def recompute_levels(self, levels: Collection[int]) -> None:
        """See `Transformer.recompute_levels`.

        Raises:
            UserError: there are levels to recompute, and `net_g` is another network.
        """
        if isinstance(self.net_g, Transformer):
            self.net_g.recompute_levels(levels)
        elif levels:
            raise UserError(
                "train.activation_checkpointing: only the Transformer has levels to compute again; "
                "leave it out, and save memory with train.micro_batch: auto"
            )

    def networks(self) -> dict[str, nn.Module]:
        """The networks by official name, frozen ones included: what is saved and loaded."""
        return {name: getattr(self, name) for name in self._network_names}

    def trained_networks(self) -> dict[str, nn.Module]:
        """The networks that this stage trains."""
        return {name: net for name, net in self.networks().items() if name not in self.frozen}

    def train(self, mode: bool = True) -> DeblurModel:
        """As in torch, but frozen networks stay in evaluation mode."""
        super().train(mode)
        for name, network in self.networks().items():
            network.train(mode and name not in self.frozen)
        return self

    def forward(
        self, lq: Tensor, gt: Tensor, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The weighted losses of one batch; their sum is what training minimises.

        Args:
            lq, gt: blurry and sharp images (B, 3, H, W), RGB in [0, 1], H and W multiples of
                `net_g.pad_multiple`.
            generator: CPU generator of all that the model draws; torch's global one by default.

        A stage takes what `draw` returns as further arguments, in place of drawing it.
        """
        raise AssertionError("a stage defines `forward`")

    def draw(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """All that a training step on `count` images draws, by the names of `forward`'s arguments.

        Every tensor has a row for each image. They are on the CPU, so that every device sees the
        same numbers.
        """
        return {}

    def is_sum(self, loss: str) -> bool:
        """Whether a loss is a sum over the images and pixels, not a mean (`reduction: sum`)."""
        return loss in self.losses and getattr(self.losses[loss], "reduction", "mean") == "sum"

    def image_losses(self, restored: Tensor | Sequence[Tensor], gt: Tensor) -> dict[str, Tensor]:
        """The losses between restored and sharp images.

        Args:
            restored: (B, 3, H, W), or several outputs (B, 3, h, w), over which each loss is summed.
                Where they are smaller, the sharp images are reduced bilinearly (MIMO-UNet).
            gt: (B, 3, H, W).
        """
        outputs = (restored,) if isinstance(restored, Tensor) else restored
        pairs = [(out, resized(gt, out)) for out in outputs]
        return {
            name: torch.stack([self.losses[name](*pair) for pair in pairs]).sum()
            for name in IMAGE_LOSSES
            if name in self.losses
        }

    def draw_noise(self, count: int, generator: torch.Generator | None) -> Tensor | None:
        """What restoring `count` images starts from, on the CPU; None where it needs no noise."""
        return None

    def draw_step_noise(self, count: int, generator: torch.Generator | None) -> Tensor | None:
        """Eq. 6's noise for `count` images, on the CPU; None where the chain needs none."""
        return None

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        transform: Transform | None = None,
    ) -> Tensor:
        """Restore images whose sides are multiples of `net_g.pad_multiple`; stages define it.

        Args:
            lq, gt, noise, step_noise: see `restore`.
            transform: what computes the Transformer, from image and prior; `net_g` by default.
        """
        raise AssertionError("a stage defines `predict`")

    @torch.no_grad()
    def restore(
        self,
        lq: Tensor,
        gt: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        local: Windows | None = None,
    ) -> Tensor:
        """Restore blurry images of any size.

        Sides that are no multiples of `net_g.pad_multiple` are padded at the right and bottom by
        reflection, and the result is cropped. The attribute `strip_rows` says whether the
        Transformer computes strip by strip, which gives the same but for rounding.

        Args:
            lq: (B, 3, H, W) RGB in [0, 1].
            gt: the sharp images; only where `restores_from_gt`, ignored otherwise.
            noise: see `draw_noise`; where the reverse chain starts, standard normal by default.
            step_noise: see `draw_step_noise`; drawn by default.
            generator: CPU generator for these draws; torch's global one by default.
            progress: called with the part that is done, from 0 to 1, after each strip.
            local: MDTA's statistics are those of such windows, see `restore_in_strips`.

        Returns:
            (B, 3, H, W) RGB, about [0, 1], not clamped.

        Raises:
            UserError: an image is too small, too large for the memory or no such tensor, or the
                sharp image is needed and absent or of another size.
        """
        gt = gt if self.restores_from_gt else None
        _check_images(lq=lq, gt=gt)
        height, width = lq.shape[-2:]
        lq = self.padded(lq)
        gt = None if gt is None else self.padded(gt)
        transform = self._transform(lq, progress, local)
        if noise is None:
            noise = self.draw_noise(len(lq), generator)
        if step_noise is None:
            step_noise = self.draw_step_noise(len(lq), generator)
        restored = self.predict(lq, gt, noise, step_noise, transform)
        if progress is not None:
            progress(1.0)
        return restored[..., :height, :width]

    def padded(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) with sides that `net_g` takes, see `pad_to_multiple`."""
        return pad_to_multiple(image, self.net_g.pad_multiple)

    def _transform(
        self, lq: Tensor, progress: Progress | None, local: Windows | None
    ) -> Transform | None:
        """How the Transformer restores these images; None where `net_g` is another network."""
        if not isinstance(self.net_g, Transformer):
            if local is not None or isinstance(self.strip_rows, int):
                raise UserError(
                    f"{'val.strip_rows' if local is None else 'val.local.mode: tlc'}: only the "
                    "Transformer is computed in strips; leave it out, or restore in tiles "
                    "(val.local.mode: tile; --local tile)"
                )
            return None
        encoder = getattr(self, "net_le" if self.restores_from_gt else "net_le_dm", None)
        strips = plan(self.net_g, encoder, lq, self.strip_rows, only_strips=local is not None)
        if strips is None:
            return self.net_g
        return functools.partial(
            restore_in_strips, self.net_g, strips=strips, progress=progress, local=local
        )

    def check_encoder(self, name: str, channels: int) -> None:
        """Make sure that a latent encoder has as many input channels, and the prior of `net_g`.

        Raises:
            UserError: it has not.
        """
        encoder, where = getattr(self, name), section_of(name)
        if encoder.in_chans != channels:
            raise UserError(
                f"{where}.in_chans: {encoder.in_chans}, but this encoder sees "
                f"{'sharp and blurry image, 6' if channels == 6 else 'the blurry image, 3'} "
                f"channels; set in_chans: {channels} and stage: {6 // channels}"
            )
        self.check_prior(name, "embed_dim")

    def check_prior(self, name: str, option: str) -> None:
        """Make sure that a network's prior has the width (`option`) and the tokens of `net_g`'s.

        Raises:
            UserError: it has not.
        """
        network, where = getattr(self, name), section_of(name)
        if network.prior_dim != self.net_g.prior_dim:
            raise UserError(
                f"{where}: its prior has {network.prior_dim} channels and network_g's has "
                f"{self.net_g.prior_dim} (4 · embed_dim); change {option} or network_g.embed_dim"
            )
        if network.group not in (None, self.net_g.group):
            raise UserError(
                f"{where}.group: {network.group} differs from network_g.group "
                f"{self.net_g.group}; the prior has group² tokens in all networks"
            )


def _check_images(lq: Tensor, gt: Tensor | None) -> None:
    for name, images in {"lq": lq, "gt": gt}.items():
        if images is None and name == "gt":
            continue
        if not isinstance(images, Tensor):
            found = f"a {type(images).__name__}"
        elif not images.is_floating_point() or images.ndim != 4 or images.shape[1] != CHANNELS:
            found = f"{images.dtype} {tuple(images.shape)}"
        elif name == "gt" and images.shape != lq.shape:
            raise UserError(f"gt {tuple(images.shape)} must have the shape of lq {tuple(lq.shape)}")
        else:
            continue
        raise UserError(
            f"{name}: images are restored from floating-point tensors (B, 3, H, W), RGB in [0, 1]; "
            f"got {found}. For one uint8 image (H, W, 3): "
            "torch.from_numpy(image).permute(2, 0, 1)[None] / 255; repeat a grey one three times"
        )
