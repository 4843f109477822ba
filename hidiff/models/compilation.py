"""torch.compile, block by block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from hidiff.archs.restormer import TransformerBlock
from hidiff.archs.transformer import HIM
from hidiff.models.base import DeblurModel
from hidiff.utils.errors import UserError

RECOMPILE_LIMIT = 512
"""Forms that the blocks may be compiled in. The widths of five places in the Transformer and each
batch and image size are forms of their own: the released schedule of six phases needs 30."""


INDUCTOR_OPTIONS = {"force_layout_optimization": True}
"""Inductor decides for channels last by the convolutions in a graph, and a backward graph has none
of those, only their derivatives: it would copy the features to the other layout and back."""


def check_compiler(device: torch.device, where: str) -> None:
    """Compile something small, so that a missing compiler shows at once and not at step 1.

    Raises:
        UserError: it cannot be compiled; `where` is the option to turn off.
    """

    def double(x: torch.Tensor) -> torch.Tensor:
        return x + x

    try:
        torch.compile(double, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"{where}: torch.compile does not work here ({reason}); it needs a C++ compiler on "
            "CPUs and Triton on GPUs. Install it, or set this to false"
        ) from None


def compile_blocks(
    model: DeblurModel, where: str, *, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile the Transformer's blocks in place, when each is first called with new shapes.

    Blocks of the same widths share their code. What was compiled for a batch and image size is
    kept, so a phase that returns is not compiled again. Parameter names stay as they are.

    Args:
        model: on its device; not the wrapper around it.
        where: the option that asks for it, for messages.
        backend: of torch.compile; the others are for finding errors.

    Raises:
        UserError: see `check_compiler`; or the network has no such blocks.
    """
    blocks = [m for m in model.net_g.modules() if isinstance(m, (TransformerBlock, HIM))]
    if not blocks:
        raise UserError(f"{where}: only the Transformer's blocks are compiled; set this to false")
    options = None
    if backend == "inductor":
        check_compiler(next(model.parameters()).device, where)
        options = INDUCTOR_OPTIONS
    # Within a data-parallel model Dynamo would cut every large block in two, to send the gradients
    # of the one while those of the other are computed. That is so between the blocks anyway.
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT
    for block in blocks:
        # Static shapes: with dynamic ones Inductor neither tunes nor lays out as well.
        block.compile(dynamic=False, backend=backend, options=options)


def uncompiled() -> AbstractContextManager[None]:
    """Context in which compiled blocks run as if they were not, for images of many sizes."""
    return torch.compiler.set_stance("force_eager")
