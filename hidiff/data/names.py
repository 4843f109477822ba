"""Names of blurry and sharp images: the words that tell them apart, and templates.

A template is the blurry image's name from the sharp one's, '{}_blur' for example; or both names
from what they have in common, '{}_blur|{}_sharp'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hidiff.utils.errors import UserError

SIDES = (
    ("input", "target"),
    ("blur", "sharp"),
    ("blurry", "sharp"),
    ("lq", "gt"),
    ("input", "gt"),
    ("blur", "gt"),
)
"""Names of the folders of blurry and sharp images that stand beside each other, in any case; both
may begin with the same text, as REDS's train_blur and train_sharp do."""

EQUAL_NAMES = "{}"
"""The template of pairs whose two images have the same name."""


def core_of(name: str, template: str) -> str | None:
    """What stands for the braces of a template in a name; None where it does not fit."""
    before, _, after = template.partition("{}")
    *folders, last = name.split("/")
    if len(last) < len(before) + len(after):
        return None
    if not (last.startswith(before) and last.endswith(after)):
        return None
    return "/".join([*folders, last[len(before) : len(last) - len(after)]])


def check_template(template: str, where: str) -> None:
    parts = template.split("|")
    braces = ["".join(c for c in part if c in "{}") for part in parts]
    if len(parts) > 2 or any(
        b != "{}" or "{}" not in p for b, p in zip(braces, parts, strict=True)
    ):
        raise UserError(
            f"{where}.filename_tmpl: '{template}' must contain {{}} once, for the sharp image's "
            "name; or be two such names, blurry|sharp"
        )


def guess_template(blurry: Iterable[str], sharp: Iterable[str]) -> str | None:
    """The template by which all images of two sides would be paired, if there is one."""
    lq, gt = ([name.rsplit("/", 1)[-1] for name in names] for names in (blurry, sharp))
    (lq_before, lq_after), (gt_before, gt_after) = _affixes(lq), _affixes(gt)
    if lq_before == gt_before:
        lq_before = gt_before = ""
    if lq_after == gt_after:
        lq_after = gt_after = ""
    lq_template, gt_template = f"{lq_before}{{}}{lq_after}", f"{gt_before}{{}}{gt_after}"
    lq_cores = sorted(str(core_of(name, lq_template)) for name in lq)
    gt_cores = sorted(str(core_of(name, gt_template)) for name in gt)
    if lq_cores != gt_cores or lq_template == gt_template:
        return None
    return lq_template if gt_template == EQUAL_NAMES else f"{lq_template}|{gt_template}"


def _affixes(names: Sequence[str]) -> tuple[str, str]:
    """What all names begin and end with; digits at its edge belong to what tells them apart."""
    before = re.sub(r"\d+$", "", _common_start(names))
    after = _common_start([name[len(before) :][::-1] for name in names])[::-1]
    return before, re.sub(r"^\d+", "", after)


def _common_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))]


def word_templates(names: Iterable[str]) -> list[str]:
    """Templates of the words of `SIDES`, at the end or the beginning of names, that fit some."""
    lasts = [name.rsplit("/", 1)[-1] for name in names]
    forms = [f"{{}}{s}{{word}}" for s in ("_", "-", ".")] + [f"{{word}}{s}{{}}" for s in ("_", "-")]
    templates = []
    for lq, gt in SIDES:
        for form in forms:
            lq_template, gt_template = (form.replace("{word}", word) for word in (lq, gt))
            fits = [
                any(core_of(n, t) is not None for n in lasts) for t in (lq_template, gt_template)
            ]
            if all(fits):
                templates.append(f"{lq_template}|{gt_template}")
    return templates
