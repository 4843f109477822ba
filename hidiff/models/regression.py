"""Training a network that maps an image to one or several images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hidiff.archs import ImageNetwork
from hidiff.archs.windows import Windows
from hidiff.models.base import DeblurModel, Transform
from hidiff.registry import MODELS


@MODELS.register("Restormer")  # Baseline of Table 1 and Restormer of Table 4: the Transformer alone
@MODELS.register("Regression")
class Regression(DeblurModel):
    """Restored = network(lq). Every output of the network has each of the losses; they are summed.

    How an image is restored is the network's own property, see `hidiff.archs.baselines`.
    """

    trains = (ImageNetwork,)

    def __init__(
        self,
        *,
        net_g: nn.Module,
        l_pix: nn.Module | None,
        l_percep: nn.Module | None = None,
        l_edge: nn.Module | None = None,
        l_freq: nn.Module | None = None,
    ) -> None:
        losses = {"l_pix": l_pix, "l_percep": l_percep, "l_edge": l_edge, "l_freq": l_freq}
        super().__init__({"net_g": net_g}, losses)

    def forward(
        self,
        lq: Tensor,
        gt: Tensor,
        *,
        generator: torch.Generator | None = None,
        **draws: Tensor,
    ) -> dict[str, Tensor]:
        """See `DeblurModel.forward`; `draws` are those of `ImageNetwork.draw`."""
        draws = draws or self.draw(len(lq), generator)
        return self.image_losses(self._outputs(lq, **draws), gt)

    def draw(self, count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """See `DeblurModel.draw`: what the network itself draws in training."""
        return self.net_g.draw(count, generator)

    def _outputs(self, image: Tensor, **draws: Tensor) -> tuple[Tensor, ...]:
        """All that the network makes of an image, RGB about [0, 1]."""
        self.net_g.check_size(*image.shape[-2:])
        shift = self.net_g.shift
        draws = {name: values.to(image.device) for name, values in draws.items()}
        return tuple(out + shift for out in self.net_g.outputs(image - shift, **draws))

    def predict(
        self,
        lq: Tensor,
        gt: Tensor | None,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        transform: Transform | None = None,
    ) -> Tensor:
        """(B, 3, H, W) → (B, 3, H, W)."""
        if transform is not None:
            return transform(lq, None)
        if self.net_g.crop is None:
            return self._outputs(lq)[self.net_g.final_output]
        total, count = torch.zeros_like(lq), torch.zeros_like(lq)
        for place, _ in Windows(self.net_g.crop, overlap=0).over(*lq.shape[-2:]):
            total[..., *place] += self._outputs(lq[..., *place])[self.net_g.final_output]
            count[..., *place] += 1
        return total / count
