"""How the paper's counter (fvcore) counts: some operations that are no products count, too.

Its Table 4 was counted so, and only for what the restored image needs.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from hidiff.archs import ImageNetwork
from hidiff.archs.reference import reference_formulas
from hidiff.report.macs import count_macs

OTHER_OUTPUTS = "heads of other outputs"


def _per_element(share, *, of_output=False):
    """A rule that counts `share` for each element of the input or the output."""

    def rule(shape, *args, out_shape=None, **kwargs):
        return share * math.prod(out_shape if of_output else shape)

    return rule


def _pooled(shape, dim, *args, **kwargs):
    """A mean over height and width, 1 for each element of the input; nothing for other means."""
    image = len(shape) == 4 and dim is not None and {axis % 4 for axis in dim} == {2, 3}
    return math.prod(shape) if image else 0


aten = torch.ops.aten
RULES = {
    aten.mean: ("pooling", _pooled),
    aten._adaptive_avg_pool2d: ("pooling", _per_element(1)),
    aten.upsample_nearest2d: ("nearest resizing", _per_element(1, of_output=True)),
    aten.upsample_bilinear2d: ("bilinear resizing", _per_element(4, of_output=True)),
    aten.native_layer_norm: ("LayerNorm", _per_element(5)),
    aten.native_batch_norm: ("InstanceNorm", _per_element(5)),
}
"""What fvcore counts although it is no product: the operation, its kind, and how it counts it."""


def besides(network, *inputs):
    """What fvcore counts in a call and `count_macs` does not, by kind; below 0 what it omits."""
    # By overload too, or the counter takes some apart before it asks for their rule.
    rules = {
        name: rule
        for operation, (_, rule) in RULES.items()
        for name in (operation, *(getattr(operation, o) for o in operation.overloads()))
    }
    counter = FlopCounterMode(display=False, custom_mapping=rules)
    with torch.no_grad(), reference_formulas(), counter:
        outputs = network(*inputs)
    counts = counter.get_flop_counts()
    found = Counter()
    for operation, (kind, _) in RULES.items():
        found[kind] += counts["Global"].get(operation, 0)
    if isinstance(network, ImageNetwork) and len(outputs) > 1:
        for name in _of_other_outputs(network, *inputs):
            layer = counts.get(f"{type(network).__name__}.{name}", {})
            found[OTHER_OUTPUTS] -= sum(n for op, n in layer.items() if op not in RULES) // 2
    return {kind: number for kind, number in found.items() if number}


def count_as_the_paper(network, *inputs):
    """All that fvcore counts in a call."""
    return count_macs(network, *inputs) + sum(besides(network, *inputs).values())


def _of_other_outputs(network, *inputs):
    """Names of the layers on which the restored image does not depend."""
    restored = network(*inputs)[network.final_output]
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(restored.sum(), [*parameters.values()], allow_unused=True)
    return {
        name.rpartition(".")[0]
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is None
    }
