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

from hidiff.registry import Registry, option_error
from hidiff.utils.errors import expanded

Section = Mapping[str, Any]

MAX_NAME = 150
"""Bytes of a name that becomes part of file names, which may have 255 with what is added."""


@dataclass(frozen=True)
class BuiltFrom:
    """Marks a section `{type: X, …}` as the arguments of X in a registry.

    `supplied` are arguments that the program adds itself. `type` is X where the section cannot
    choose it.
    """

    registry: Registry
    supplied: tuple[str, ...] = ()
    type: str | None = None

    def resolved(self, section: Section, place: str) -> dict[str, Any]:
        """The section with the defaults of what it does not say.

        Raises:
            OptionError: an option of the section, which stands at `place`, is wrong.
        """
        if self.type is None:
            return self.registry.resolved(section, place, supplied=self.supplied)
        return self.registry.check({**section, "type": self.type}, place)[1]


@dataclass(frozen=True)
class ScoredBy(BuiltFrom):
    """Marks a section of such sections by name, each of which may also say what is `better`."""

    def resolved(self, section: Section, place: str) -> dict[str, Any]:
        """See `BuiltFrom.resolved`."""
        metrics = {}
        for name, metric in section.items():
            better = metric.get("better", "higher")
            if better not in ("higher", "lower"):
                message = f"'{better}' is not 'higher' or 'lower'"
                raise option_error(f"{place}.{name}.better", message)
            own = {option: value for option, value in metric.items() if option != "better"}
            metrics[name] = {**super().resolved(own, f"{place}.{name}"), "better": better}
        return metrics


FREE: Any = {"resume_safe": True, "affects_scores": False}
"""Marks of an option that decides neither the weights nor the scores."""


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
