"""Variants of computing the same thing, and the machine's speed at what none can avoid."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch

from hidiff.archs.reference import as_written
from hidiff.benchmark.roofline import Work
from hidiff.benchmark.timing import copy_rate, matmul_rate
from hidiff.kernels import Mode
from hidiff.models import DeblurModel
from hidiff.models.compilation import compile_blocks
from hidiff.models.precision import precision
from hidiff.options import Precision
from hidiff.utils.errors import UserError


@dataclass(frozen=True)
class Variant:
    """One way of computing, such as `bf16+compile`; see `parse`."""

    name: str
    precision: Precision
    plain: bool = False
    compile: bool = False
    strips: bool = False
    checkpoint: tuple[int, ...] = ()
    kernels: Mode | None = None

    @classmethod
    def parse(cls, name: str) -> Variant:
        """From its name: a precision of `hidiff.models.precision` and what is switched on beside.

        '+compile' compiles the blocks, '+strips' restores in strips in place of the whole image at
        once, '+checkpoint1' checkpoints the activations of level 1 ('+checkpoint1234' of all).
        '+eager' or '+triton' behind the precision fixes the kernels. 'plain+' before it computes as
        the papers write it.

        Raises:
            UserError: there is no such variant.
        """
        match = re.fullmatch(
            r"(plain\+)?(fp32|tf32|bf16)(\+eager|\+triton)?(\+compile|\+strips)?"
            r"(?:\+checkpoint([1-4]+))?",
            name,
        )
        if match is None or (match[1] and match[4] == "+strips"):
            raise UserError(
                f"--variants {name}: give one of fp32, tf32, bf16, with plain+ before it, or "
                "+eager or +triton, +compile or +strips, or +checkpoint and levels after it, for "
                "example bf16+compile+checkpoint12"
            )
        plain, precision, kernels, way, levels = match.groups()
        return cls(
            name,
            cast(Precision, precision),
            bool(plain),
            way == "+compile",
            way == "+strips",
            checkpoint=tuple(map(int, levels or "")),
            kernels=cast(Mode, kernels.removeprefix("+")) if kernels else None,
        )

    def prepare(self, model: DeblurModel) -> DeblurModel:
        """A copy of the model for this variant."""
        model = copy.deepcopy(model)
        model.recompute_levels(self.checkpoint)
        model.strip_rows = "auto" if self.strips else "whole"
        if self.kernels:
            model.use_kernels(self.kernels)
        if self.compile:
            compile_blocks(model, f"--variants {self.name}")
        return model

    def wrap(self, model: DeblurModel, work: Callable[[], Any]) -> Callable[[], Any]:
        """The work, done as this variant says with the model of `prepare`."""

        def call() -> Any:
            with ExitStack() as stack:
                stack.enter_context(precision(model, self.precision))
                if self.plain:
                    stack.enter_context(as_written())
                return work()

        return call


class Machine:
    """The device, and its speed at what cannot be avoided: matrix products and copying."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copy_rate = copy_rate(device)
        self._matmul_rates: dict[str, float] = {}

    def roofline(self, work: Work, variant: Variant) -> dict[str, float]:
        """See `Work.roofline`; for the variant's precision."""
        if variant.precision not in self._matmul_rates:
            dtype = torch.bfloat16 if variant.precision == "bf16" else torch.float32
            tf32 = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = variant.precision == "tf32"
            self._matmul_rates[variant.precision] = matmul_rate(self.device, dtype)
            torch.backends.cuda.matmul.allow_tf32 = tf32
        element_bytes = 2 if variant.precision == "bf16" else 4
        return work.roofline(self._matmul_rates[variant.precision], self.copy_rate, element_bytes)

    def rates(self) -> dict[str, Any]:
        """What was measured, for the report."""
        return {"copy": self.copy_rate, "matmul": dict(self._matmul_rates)}
