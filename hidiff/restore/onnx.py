"""A model as one ONNX file: image in, image out, with the reverse chain inside."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidiff.models import DeblurModel
from hidiff.utils.errors import UserError
from hidiff.utils.files import replacing

EXTRA = "pip install onnx onnxscript onnxruntime"

EXAMPLE_STEPS = (8, 12)
"""Height and width, in multiples of the network, that free sides are traced at."""

NOISE_SEED = 0
"""Seed of the starting noise that stands in the file for callers who give none."""


class ExportableModel(nn.Module):
    """A model as a function of tensors alone: (image, noise) → image in [0, 1].

    Args:
        model: in evaluation mode, with its parameters in `dtype`.
        dtype: in which it computes; image, noise and result are float32 in any case.
    """

    def __init__(self, model: DeblurModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """(1, 3, H, W) in [0, 1] and noise (1, N, C') → (1, 3, H, W)."""
        start = None if noise is None else noise.to(self.dtype)
        restored = self.model.predict(image.to(self.dtype), None, noise=start)
        return restored.float().clamp(0, 1)


def pooling_matrix(length: int, bins: int) -> Tensor:
    """Adaptive average pooling of `length` values to `bins` as a matrix (bins, length).

    Bin i reaches from ⌊i·length/bins⌋ to ⌈(i + 1)·length/bins⌉, as in
    `torch.nn.functional.adaptive_avg_pool2d`. While tracing, `length` may be a symbol.
    """
    index = torch.arange(bins)
    starts = (index * length) // bins
    ends = ((index + 1) * length + bins - 1) // bins
    places = torch.arange(length)
    covered = (places >= starts[:, None]) & (places < ends[:, None])
    return covered.float() / (ends - starts)[:, None]


def pool_by_products(x: Tensor, bins: int) -> Tensor:
    """`adaptive_avg_pool2d` of (B, C, h, w) to bins × bins, as two matrix products.

    The operator itself is exported with the bins of the traced size; the products follow the size.
    """
    rows = pooling_matrix(x.shape[-2], bins).to(x)
    columns = pooling_matrix(x.shape[-1], bins).to(x)
    return rows @ x @ columns.T


def export_onnx(
    model: DeblurModel,
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    half: bool = False,
) -> None:
    """Write a model as one ONNX file.

    Its input `image` is (1, 3, H, W) RGB in [0, 1], its output `restored` the same, clamped. Where
    the model starts from noise there is a second input `noise` (1, N, C'), standard normal, with a
    fixed default in the file.

    Args:
        model: on the CPU, restoring without the sharp image.
        path: of the file.
        size: fixed (H, W); None makes one file for all sides that are multiples of the network's.
        half: weights and arithmetic in float16.

    Raises:
        UserError: a package is missing, the size does not fit the network, the model cannot be
            exported, or the file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (the exporter needs it)
    except ImportError:
        raise UserError(f"exporting needs more packages: {EXTRA}") from None
    multiples = model.net_g.pad_multiple
    if size is not None and any(side % step for side, step in zip(size, multiples, strict=True)):
        raise UserError(
            f"--size {size[0]} {size[1]}: height and width must be multiples of {multiples[0]} and "
            f"{multiples[1]}; pad the image"
        )
    dtype = torch.float16 if half else torch.float32
    exportable = ExportableModel(model.eval().to(dtype), dtype)
    example = (steps * step for steps, step in zip(EXAMPLE_STEPS, multiples, strict=True))
    height, width = size or example
    noise = model.draw_noise(1, torch.Generator().manual_seed(NOISE_SEED))
    inputs: dict[str, Tensor] = {"image": torch.rand(1, 3, height, width)}
    if noise is not None:
        inputs["noise"] = noise
    free: dict[str, Any] | None = None
    if size is None:
        rows, columns = (torch.export.Dim(name, min=2, max=4096) for name in ("rows", "columns"))
        free = dict.fromkeys(inputs)
        free["image"] = {2: multiples[0] * rows, 3: multiples[1] * columns}
    said = io.StringIO()
    try:
        with (
            torch.no_grad(),
            mock.patch.object(F, "adaptive_avg_pool2d", pool_by_products),
            redirect_stdout(said),
            redirect_stderr(said),
        ):
            program = torch.onnx.export(
                exportable,
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=free,
                input_names=list(inputs),
                output_names=["restored"],
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(_reason(error, size)) from None
    assert program is not None
    proto = program.model_proto
    if noise is not None:
        # An input that is an initialiser too has that as its default.
        default = onnx.numpy_helper.from_array(noise.numpy(), "noise")
        proto.graph.initializer.append(default)
    with replacing(path) as file:
        file.write(proto.SerializeToString())


def _reason(error: Exception, size: tuple[int, int] | None) -> str:
    """What cannot be exported, in a sentence."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    first = str(cause).strip().splitlines()[0]
    way = "" if size is not None else "; a fixed --size may still work"
    return f"this model cannot be exported to ONNX ({type(cause).__name__}: {first}){way}"
