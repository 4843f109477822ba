"""Perceptual loss on VGG-19 features (Johnson et al., ECCV 2016); needs torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.registry import LOSSES
from hidiff.utils.errors import UserError
from hidiff.utils.torch_file import load_torch_file

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@LOSSES.register()
class PerceptualLoss(nn.Module):
    """L1 between VGG-19 features of two images, averaged over the chosen layers.

    An addition of this project, not part of HI-Diff's training: name it under
    `train.perceptual_opt` to add it.

    Args:
        weights: path of torchvision's VGG-19 state dict (`vgg19-dcbb9e9d.pth`).
        layers: indices into VGG-19's `features`; the default takes relu3_4 and relu4_4.
        loss_weight: factor on the loss.

    Raises:
        UserError: torchvision does not work here, or the weights file is missing or another.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, weights: Path, layers: Sequence[int] = (17, 26), loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        try:
            from torchvision.models import vgg19
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"PerceptualLoss needs a working torchvision ({error}); install the build that "
                "belongs to this PyTorch, or take the loss out of the option file"
            ) from None
        state_dict, _ = load_torch_file(weights, "PerceptualLoss: weights")
        network = vgg19()
        network.load_state_dict(state_dict)
        self.layers = sorted(layers)
        self.features = network.features[: self.layers[-1] + 1].eval().requires_grad_(False)
        self.loss_weight = loss_weight
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1], twice → weighted scalar."""
        x = torch.cat([pred, target])
        x = (x - self.mean) / self.std
        loss = pred.new_zeros(())
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.layers:
                ours, theirs = x.chunk(2)
                loss = loss + F.l1_loss(ours, theirs.detach())
        return self.loss_weight * loss / len(self.layers)
