"""How a field of an option section is written: its meaning, its limits and its marks.

Two marks on a field say what a change of it does: `resume_safe`, a resumed training ends with the
same weights; `affects_scores`, a test gives other scores or pictures. A mark on a section holds
for all in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hidiff.registry import Registry
from hidiff.utils.errors import expanded

Section = Mapping[str, Any]

MAX_NAME = 150
"""Bytes of a name that becomes part of file names, which may have 255 with what is added."""


@dataclass(frozen=True)
class BuiltFrom:
    """Marks a section `{type: X, …}` as the arguments of X in a registry.

    `supplied` are arguments that the program adds itself.
    """

    registry: Registry
    supplied: tuple[str, ...] = ()


def option(
    meaning: str,
    default: Any = ...,
    *,
    resume_safe: bool = False,
    affects_scores: bool = True,
    **limits: Any,
) -> Any:
    """A field with its meaning in one line, its marks and, as pydantic has them, its limits."""
    marks: Any = {"resume_safe": resume_safe, "affects_scores": affects_scores}
    return Field(default, description=meaning, json_schema_extra=marks, **limits)


def file_name(name: str, first: str = r"[\w.+-]") -> str:
    """Refuse what cannot be part of a file's or folder's name; `first` is the first character.

    Raises:
        ValueError: it cannot.
    """
    if not re.fullmatch(rf"{first}[\w.+-]*", name) or name in (".", ".."):
        raise ValueError(f"'{name}' becomes part of file names; use letters, digits, and . + - _")
    if (length := len(name.encode())) > MAX_NAME:
        raise ValueError(f"{length} bytes are too long for a file's name; use up to {MAX_NAME}")
    return name


FileName = Annotated[str, AfterValidator(file_name)]
RunName = Annotated[str, AfterValidator(lambda name: file_name(name, r"[A-Za-z0-9_]"))]
ExpandedPath = Annotated[Path, AfterValidator(lambda path: Path(expanded(str(path))))]
