"""Names of blurry and sharp images: the words that tell them apart, and templates.

A template is the blurry image's name from the sharp one's, '{}_blur' for example; or both names
from what they have in common, '{}_blur|{}_sharp'.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence

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
    core = last.removeprefix(before).removesuffix(after)
    return "/".join([*folders, core]) if before + core + after == last else None


def split_template(template: str) -> tuple[str, str]:
    """The templates of the blurry and of the sharp image's name."""
    blurry, _, sharp = template.partition("|")
    return blurry, sharp or EQUAL_NAMES


def check_template(template: str, where: str) -> None:
    """Refuse what is no template.

    Raises:
        UserError: the braces are missing, are there twice, or there are more than two names.
    """
    parts = template.split("|")
    braces = [re.sub("[^{}]", "", part) for part in parts]
    if len(parts) > 2 or any(part.count("{}") != 1 for part in parts) or {*braces} != {"{}"}:
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
    templates = f"{lq_before}{{}}{lq_after}", f"{gt_before}{{}}{gt_after}"
    cores = [
        sorted(str(core_of(name, template)) for name in names)
        for names, template in zip((lq, gt), templates, strict=True)
    ]
    if cores[0] != cores[1] or templates[0] == templates[1]:
        return None
    return "|".join(templates).removesuffix(f"|{EQUAL_NAMES}")


def _affixes(names: Sequence[str]) -> tuple[str, str]:
    """What all names begin and end with; digits at its edge belong to what tells them apart."""
    common = os.path.commonprefix  # of characters, not of folders
    before = re.sub(r"\d+$", "", common(names))
    after = common([name[len(before) :][::-1] for name in names])[::-1]
    return before, re.sub(r"^\d+", "", after)


def word_templates(names: Collection[str]) -> list[str]:
    """Templates of the words of `SIDES`, at the end or the beginning of names, that fit some."""
    forms = ("{}_WORD", "{}-WORD", "{}.WORD", "WORD_{}", "WORD-{}")
    templates = []
    for sides in SIDES:
        for form in forms:
            pair = [form.replace("WORD", word) for word in sides]
            if all(any(core_of(name, one) is not None for name in names) for one in pair):
                templates.append("|".join(pair))
    return templates
