"""Registries: from a name in an option file to the class or function of that name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from hidiff.utils.errors import UserError, suggestion
from hidiff.utils.typecheck import check_call

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """Maps the names used in option files to classes or functions.

    Args:
        kind: what is registered, in the singular, for messages ("network", "loss", …).
        room: the module that registers it when imported, which happens when it is first asked for.
    """

    def __init__(self, kind: str, room: str) -> None:
        self.kind = kind
        self.room = room
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str | None = None) -> Callable[[T], T]:
        """Decorator that files its class or function under `name` (default: its own name)."""

        def decorate(entry: T) -> T:
            key = name or entry.__name__
            assert key not in self._entries, f"{self.kind} '{key}' is registered twice"
            self._entries[key] = entry
            return entry

        return decorate

    def __iter__(self) -> Iterator[str]:
        importlib.import_module(self.room)
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def get(self, name: Any, where: str) -> Callable[..., Any]:
        """The entry of that name.

        Raises:
            UserError: there is none; `where` is the YAML path to name.
        """
        if not isinstance(name, str) or name not in self:
            raise UserError(
                f"{where}: there is no {self.kind} '{name}'{suggestion(str(name), self)}"
            )
        return self._entries[name]

    def check(
        self, section: Mapping[str, Any], where: str, *, supplied: tuple[str, ...] = ()
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The entry that a `{type: X, **kwargs}` section names, and its checked arguments.

        Raises:
            UserError: no such type, or an argument that X does not take or of a wrong type.
        """
        if not isinstance(section, Mapping):
            raise UserError(f"{where}: expected a section with 'type', got {section!r}")
        if "type" not in section:
            raise UserError(f"{where}: the option 'type' is missing; known: {', '.join(self)}")
        entry = self.get(section["type"], f"{where}.type")
        kwargs = {key: value for key, value in section.items() if key != "type"}
        checked = check_call(entry, kwargs, where, label=section["type"], supplied=supplied)
        return entry, checked

    def resolved(
        self, section: Any, where: str, *, supplied: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The section with the defaults of what it does not say.

        Raises:
            UserError: see `check`.
        """
        _, kwargs = self.check(section, where, supplied=supplied)
        return {"type": section["type"], **kwargs}

    def build(self, section: Mapping[str, Any], where: str, /, **supplied: Any) -> Any:
        """Build the object that a `{type: X, **kwargs}` section describes.

        `supplied` are arguments that the program adds itself; the section cannot set them.

        Raises:
            UserError: see `check`.
        """
        entry, kwargs = self.check(section, where, supplied=tuple(supplied))
        return entry(**kwargs, **supplied)


ARCHS = Registry("network", "hidiff.archs")
MODELS = Registry("model", "hidiff.models")
DATASETS = Registry("dataset", "hidiff.data")
LOSSES = Registry("loss", "hidiff.losses")
METRICS = Registry("metric", "hidiff.metrics")
OPTIMIZERS = Registry("optimiser", "hidiff.engine.optim")
SCHEDULERS = Registry("learning rate schedule", "hidiff.engine.optim")
