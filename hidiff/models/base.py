"""What the training stages share: networks, losses, and restoring images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.archs import build_network
from hidiff.errors import UserError
from hidiff.registry import LOSSES

SIDE_MULTIPLE = 8
"""The U-shape halves the image three times, so its sides must be multiples of this."""


def pad_to_multiple(image: Tensor, multiple: int = SIDE_MULTIPLE) -> Tensor:
    """Pad (B, C, H, W) at the right and bottom by reflection to sides that are multiples.

    Raises:
        UserError: a side is too short to reflect (the padding must be smaller than the side).
    """
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom >= height or right >= width:
        raise UserError(
            f"an image of {height}×{width} pixels is too small to restore; the sides must have at "
            f"least {multiple // 2 + 1} pixels"
        )
    return F.pad(image, (0, right, 0, bottom), mode="reflect") if bottom or right else image


class DeblurModel(nn.Module):
    """Networks, diffusion and losses of one training stage.

    Subclasses say which networks they have, what a training step computes (`forward`) and how an
    image is restored (`predict`). The attribute names of the networks are those of the weights
    files: `net_g` is kept in `net_g_*.pth`.
    """

    sections: ClassVar[dict[str, str]]
    """Network attribute → option section, for the networks that the stage needs to restore."""

    training_sections: ClassVar[dict[str, str]] = {}
    """The same for networks that only training needs; restoring works without their sections."""

    frozen: ClassVar[tuple[str, ...]] = ()
    """Networks that this stage uses and does not train."""

    from_stage1: ClassVar[tuple[str, ...]] = ()
    """Networks that start from the weights that stage 1 has trained."""

    guided: ClassVar[bool] = True
    """Whether a prior guides `net_g`; its option `guidance` must fit."""

    restores_from_gt: ClassVar[bool] = False
    """True when `restore` needs the sharp image: its scores are an upper bound, no deblurring."""

    def __init__(self, networks: Mapping[str, nn.Module], losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, network in networks.items():
            if name in self.frozen:
                network.requires_grad_(False).eval()
            setattr(self, name, network)
        self._network_names = tuple(networks)
        self.losses = nn.ModuleDict(losses)
        if (self.net_g.guidance != "none") != self.guided:
            wanted = "multi_scale or single_scale" if self.guided else "none"
            raise UserError(
                f"network_g.guidance: '{self.net_g.guidance}' does not fit the model_type, which "
                f"trains a network {'with' if self.guided else 'without'} a prior; use {wanted}"
            )
        _check_widths(self.networks(), {**self.sections, **self.training_sections})

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> DeblurModel:
        """Build from option sections as parsed from YAML; see `hidiff.build_model`."""
        networks = {}
        for name, section in {**cls.sections, **cls.training_sections}.items():
            if options.get(section) is not None:
                networks[name] = build_network(options[section], section)
            elif name in cls.sections:
                raise UserError(f"{section}: model_type {options['model_type']} needs this section")
        return cls(networks, **cls._other_arguments(options))

    @classmethod
    def _other_arguments(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The constructor's further arguments, from the option sections."""
        return {"losses": build_losses(options.get("train") or {}, cls.loss_sections)}

    loss_sections: ClassVar[dict[str, str]] = {"l_pix": "pixel_opt"}
    """Loss name → option under `train`; L1 with weight 1 where the option is absent, no such loss
    where it is `~`."""

    def networks(self) -> dict[str, nn.Module]:
        """The networks by official name, frozen ones included: what is saved and loaded."""
        return {name: getattr(self, name) for name in self._network_names}

    def trained_networks(self) -> dict[str, nn.Module]:
        """The networks that this stage trains."""
        return {name: net for name, net in self.networks().items() if name not in self.frozen}

    def train(self, mode: bool = True) -> DeblurModel:
        """As in torch, but frozen networks stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            if name in self._network_names:
                getattr(self, name).eval()
        return self

    @property
    def notices(self) -> tuple[str, ...]:
        """What of the model differs from the release, to be told to the user."""
        return ()

    def noise_shape(self, batch_size: int) -> tuple[int, ...] | None:
        """Shape of the noise that `forward` and `restore` take, None when they need none."""
        return None

    def forward(self, lq: Tensor, gt: Tensor, *, noise: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted losses of one batch; their sum is what training minimises.

        Args:
            lq, gt: blurry and sharp images (B, 3, H, W), RGB in [0, 1], H and W multiples of 8.
            noise: (B, N, C') in place of the standard normal draw.
        """
        raise AssertionError("a stage defines `forward`")

    def image_losses(self, restored: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """The losses between restored and sharp images (B, 3, H, W)."""
        return {
            name: self.losses[name](restored, gt)
            for name in ("l_pix", "l_percep")
            if name in self.losses
        }

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Restore images whose sides are multiples of 8; subclasses define it."""
        raise AssertionError("a stage defines `predict`")

    @torch.no_grad()
    def restore(
        self,
        lq: Tensor,
        gt: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Restore blurry images of any size.

        Sides that are no multiples of 8 are padded at the right and bottom by reflection, and the
        result is cropped.

        Args:
            lq: (B, 3, H, W) RGB in [0, 1].
            gt: the sharp images; only where `restores_from_gt`, ignored otherwise.
            noise: (B, N, C'), where the reverse chain starts; standard normal by default.
            generator: CPU generator for that draw (and for Eq. 6's noise); torch's global one by
                default.

        Returns:
            (B, 3, H, W) RGB, about [0, 1], not clamped.

        Raises:
            UserError: an image is too small or no such tensor, or the sharp image is needed and
                absent or of another size.
        """
        _check_images(lq=lq, gt=gt if self.restores_from_gt else None)
        if self.restores_from_gt and gt is None:
            raise UserError(
                "stage 1 restores with the sharp image at hand only (its latent encoder reads "
                "it); to restore blurry photographs, train stage 2 and test with model_type "
                "HI_Diff_S2"
            )
        height, width = lq.shape[-2:]
        shape = self.noise_shape(lq.shape[0])
        if shape is not None and noise is None:
            noise = torch.randn(shape, generator=generator)
        if noise is not None:
            noise = noise.to(lq)
        padded_gt = pad_to_multiple(gt) if gt is not None and self.restores_from_gt else None
        return self.predict(pad_to_multiple(lq), padded_gt, noise, generator)[..., :height, :width]


def _check_images(lq: Tensor, gt: Tensor | None) -> None:
    for name, images in {"lq": lq, "gt": gt}.items():
        if images is None and name == "gt":
            continue
        if not isinstance(images, Tensor):
            found = f"a {type(images).__name__}"
        elif not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
            found = f"{images.dtype} {tuple(images.shape)}"
        elif name == "gt" and images.shape != lq.shape:
            raise UserError(f"gt {tuple(gt.shape)} must have the shape of lq {tuple(lq.shape)}")
        else:
            continue
        raise UserError(
            f"{name}: images are restored from floating-point tensors (B, 3, H, W), RGB in [0, 1]; "
            f"got {found}. For one uint8 image (H, W, 3): "
            "torch.from_numpy(image).permute(2, 0, 1)[None] / 255; repeat a grey one three times"
        )


def build_losses(train: Mapping[str, Any], sections: Mapping[str, str]) -> dict[str, nn.Module]:
    """The losses of a stage from the `train` section, by name.

    `train.perceptual_opt` adds `l_percep` to any stage.

    Raises:
        UserError: a loss section is wrong, or no loss is left that compares images.
    """
    wanted = {name: train.get(key, {"type": "L1Loss"}) for name, key in sections.items()}
    wanted["l_percep"] = train.get("perceptual_opt")
    places = {**sections, "l_percep": "perceptual_opt"}
    losses = {
        name: LOSSES.build(section, f"train.{places[name]}")
        for name, section in wanted.items()
        if section is not None
    }
    if "l_pix" in sections and not losses.keys() & {"l_pix", "l_percep"}:
        raise UserError(
            "train.pixel_opt: without it and perceptual_opt nothing compares restored and sharp "
            "images; name a loss, for example type: L1Loss"
        )
    return losses


def _check_widths(networks: Mapping[str, nn.Module], sections: Mapping[str, str]) -> None:
    """The prior's width and token count must be the same in every network."""
    reference = networks["net_g"]
    for name, channels in (("net_le", 6), ("net_le_dm", 3)):
        if name in networks and networks[name].in_chans != channels:
            raise UserError(
                f"{sections[name]}.in_chans: {networks[name].in_chans}, but this encoder sees "
                f"{'sharp and blurry image, 6' if channels == 6 else 'the blurry image, 3'} "
                f"channels; set in_chans: {channels} and stage: {6 // channels}"
            )
    if (channels := reference.patch_embed.proj.in_channels) != 3:
        raise UserError(
            f"{sections['net_g']}.inp_channels: {channels}, but the data sets hold RGB images: 3"
        )
    for name, network in networks.items():
        if getattr(network, "out_channel", network.prior_dim) != network.prior_dim:
            raise UserError(
                f"{sections[name]}.out_channel: {network.out_channel} must equal in_channel "
                f"{network.prior_dim}: what is predicted has the prior's width"
            )
        if network.prior_dim != reference.prior_dim:
            option = "in_channel" if hasattr(network, "time_mlp") else "embed_dim (or n_feats)"
            raise UserError(
                f"{sections[name]}: its prior has {network.prior_dim} channels and network_g's has "
                f"{reference.prior_dim} (4 · embed_dim); change {option} or network_g.embed_dim"
            )
        group = getattr(network, "group", reference.group)
        if group != reference.group:
            raise UserError(
                f"{sections[name]}.group: {group} differs from network_g.group "
                f"{reference.group}; the prior has group² tokens in all networks"
            )
