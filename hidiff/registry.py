"""Names in option files → classes and functions, and checks of what a file gives them.

Constructors are checked through a pydantic model made from their signature, option sections are
pydantic models themselves (`hidiff.options.sections`); the words of a mistake are the same.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from hidiff.utils.errors import UserError, expanded, suggestion

T = TypeVar("T", bound=Callable[..., Any])

WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "path_type": "a path",
    "dict_type": "a section (key: value lines)",
    "model_type": "a section (key: value lines)",
    "model_attributes_type": "a section (key: value lines)",
    "list_type": "a list",
    "tuple_type": "a list",
    "missing": "more entries",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_long": "fewer entries",
}
"""Pydantic's kinds of mistakes, in words of option files; other kinds have pydantic's words."""


class OptionError(UserError):
    """A mistake in an option; `place` is its YAML path, with which the message begins."""

    place = ""


def option_error(place: str, message: str) -> OptionError:
    """The mistake `message` at a YAML path, which may be '' for the whole file."""
    error = OptionError(f"{place}: {message}" if place else message)
    error.place = place
    return error


def plain(value: Any) -> Any:
    """The value as YAML and JSON know it; numbers without a fraction are whole (`4e3`)."""
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return str(value) if isinstance(value, Path) else value


class StrictModel(BaseModel):
    """What all checks share: nothing unknown, no conversion of texts or truth values to numbers.

    `key: ~` asks for the default, or for 'none' where that is a choice, unless nothing is a value
    of the option.
    """

    # Strict JSON: lists are tuples and texts are paths, but true is no number and '48' neither.
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )

    @classmethod
    def checked(cls, content: Any, place: str, label: str | None = None) -> Self:
        """Check plain data, as read from YAML.

        Args:
            place: YAML path of the section, '' for the whole file.
            label: what has these options, for messages.

        Raises:
            OptionError: an option is unknown, missing, not finite or of a wrong type.
        """
        if not isinstance(content, Mapping):
            raise option_error(place, f"expected a section, got {content!r}{_colon(content)}")
        given = _filled(cls, plain(content))
        try:
            return cls.model_validate_json(json.dumps(given))
        except ValidationError as error:
            _explain(cls, error, given, place, label)


def _filled(model: type[BaseModel], content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a section with a value for each `key: ~` that asks for one."""
    filled = {}
    for key, value in content.items():
        field, inner = model.model_fields.get(key), inner_model(model, key)
        if value is None and field is not None:
            choices = get_args(field.annotation) or (field.annotation,)
            if "none" in choices:
                value = "none"
            elif not field.is_required() and not {type(None), Any} & set(choices):
                continue
        is_section = inner is not None and isinstance(value, Mapping)
        filled[key] = _filled(inner, value) if is_section else value
    return filled


def _explain(
    model: type[BaseModel], error: ValidationError, given: Any, place: str, label: str | None
) -> NoReturn:
    """Raise the first mistake, at its own location, in words of option files."""
    first, *others = error.errors(include_url=False)
    value, known, section = given, model, model
    for step in first["loc"]:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            if first["type"] != "missing" or not isinstance(step, str):
                continue  # the branch of a union, or an entry that is absent
        place = f"{place}[{step}]" if isinstance(step, int) else f"{place}.{step}".lstrip(".")
        if isinstance(value, Mapping) and isinstance(value.get("where"), str):
            place = value["where"]  # a data set, whose options lie apart from its source's
        section, known = known, inner_model(known, step)
    message = _expected(value, first, others)
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        message = "this option is missing" + (f", {label} needs it" if label else "")
    elif first["type"] == "extra_forbidden":
        key = first["loc"][-1]
        what = f"{label} has no option '{key}'" if label else "there is no such option"
        message = f"{what}{suggestion(str(key), section.model_fields)}"
    elif first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    raise option_error(place, message) from None


def _expected(value: Any, first: Any, others: Iterable[Any]) -> str:
    """What was wanted, by pydantic's mistakes about one value, and what was got."""
    top = first["loc"][0]
    same = [first, *(e for e in others if e["loc"][0] == top and e["input"] == first["input"])]
    wanted = " or ".join(dict.fromkeys(map(_wanted, same)))
    choices = [c for e in same for c in e.get("ctx", {}).get("expected", "").split("'")[1::2]]
    hint = suggestion(value, choices) if choices and isinstance(value, str) else _colon(value)
    return f"expected {wanted}, got {json.dumps(value, ensure_ascii=False)}{hint}"


def inner_model(model: Any, step: Any) -> Any:
    """The model of a field, if it has one."""
    field = model.model_fields.get(step) if model is not None else None
    kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
    return next((k for k in kinds if inspect.isclass(k) and issubclass(k, BaseModel)), None)


def _wanted(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "literal_error":
        return problem["ctx"]["expected"]
    wanted = WANTED.get(problem["type"])
    return wanted.format(**problem.get("ctx", {})) if wanted else problem["msg"]


def _colon(value: Any) -> str:
    """A hint at `key:value`, which YAML takes for a text."""
    missing = isinstance(value, str) and re.match(r"\w+:\S", value)
    return "; write a space after the colon" if missing else ""


@functools.cache
def arguments_model(
    function: Callable[..., Any], supplied: frozenset[str] = frozenset()
) -> type[StrictModel]:
    """The model of a function's or class's keyword arguments, without those that are `supplied`."""
    called = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(called, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in supplied:
            required = parameter.default is inspect.Parameter.empty
            fields[name] = (hints.get(name, Any), ... if required else parameter.default)
    return create_model("Arguments", __base__=StrictModel, **fields)


def check_call(
    function: Callable[..., Any],
    kwargs: Mapping[str, Any],
    where: str,
    *,
    label: str | None = None,
    supplied: Iterable[str] = (),
) -> dict[str, Any]:
    """Check keyword arguments from an option section against a signature.

    Numbers without a fraction are whole numbers where those are wanted, lists become tuples, texts
    paths with `~` and `$HOME` replaced.

    Args:
        where: YAML path of the section, '' for the whole file.
        label: what has these options, for messages.
        supplied: parameters that the program gives itself; the section may not set them.

    Returns:
        All keyword arguments, converted to the annotated types, with their defaults.

    Raises:
        OptionError: an argument is unknown, missing, not finite or of a wrong type.
    """
    checked = arguments_model(function, frozenset(supplied)).checked(kwargs, where, label)
    return {
        key: Path(expanded(str(value))) if isinstance(value, Path) else value
        for key, value in checked
    }


class Registry:
    """Maps the names used in option files to classes or functions.

    Args:
        kind: what is registered, in the singular, for messages ("network", "loss", …).
        module: registers it when imported, which happens when it is first asked for.
        elsewhere: names that other programs use → what is written here.
    """

    def __init__(self, kind: str, module: str, elsewhere: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.module = module
        self.elsewhere = elsewhere or {}
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
        importlib.import_module(self.module)
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def get(self, name: Any, where: str) -> Callable[..., Any]:
        """The entry of that name.

        Raises:
            OptionError: there is none; `where` is the YAML path to name.
        """
        if not isinstance(name, str) or name not in self:
            other = self.elsewhere.get(str(name))
            hint = f"; here it is {other}" if other else suggestion(str(name), self)
            raise option_error(where, f"there is no {self.kind} '{name}'{hint}")
        return self._entries[name]

    def check(
        self, section: Any, where: str, *, supplied: tuple[str, ...] = ()
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The entry that a `{type: X, **kwargs}` section names, and its checked arguments.

        Raises:
            OptionError: no such type, or an argument that X does not take or of a wrong type.
        """
        if not isinstance(section, Mapping):
            raise option_error(where, f"expected a section with 'type', got {section!r}")
        if "type" not in section:
            known = ", ".join(self)
            raise option_error(f"{where}.type", f"this option is missing; known: {known}")
        entry = self.get(section["type"], f"{where}.type")
        kwargs = {key: value for key, value in section.items() if key != "type"}
        checked = check_call(entry, kwargs, where, label=section["type"], supplied=supplied)
        return entry, checked

    def resolved(
        self, section: Any, where: str, *, supplied: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The section with the defaults of what it does not say.

        Raises:
            OptionError: see `check`.
        """
        _, kwargs = self.check(section, where, supplied=supplied)
        return {"type": section["type"], **kwargs}

    def build(self, section: Mapping[str, Any], where: str, /, **supplied: Any) -> Any:
        """Build the object that a `{type: X, **kwargs}` section describes.

        `supplied` are arguments that the program adds itself; the section cannot set them.

        Raises:
            OptionError: see `check`.
        """
        entry, kwargs = self.check(section, where, supplied=tuple(supplied))
        return entry(**kwargs, **supplied)


ARCHS = Registry("network", "hidiff.archs", {"Restormer": "type: Transformer with guidance: none"})
MODELS = Registry(
    "model",
    "hidiff.models",
    dict.fromkeys(("ImageCleanModel", "ImageRestorationModel"), "model_type: Regression"),
)
DATASETS = Registry(
    "dataset",
    "hidiff.data",
    dict.fromkeys(
        ("Dataset_PairedImage", "PairedImageDataset", "PairedImageSRLRDataset"),
        "type: PairedImageIRDataset",
    ),
)
DIFFUSIONS = Registry("diffusion process", "hidiff.diffusion")
LOSSES = Registry("loss", "hidiff.losses")
METRICS = Registry("metric", "hidiff.metrics")
OPTIMIZERS = Registry("optimiser", "hidiff.engine.optim")
SCHEDULERS = Registry(
    "learning rate schedule",
    "hidiff.engine.optim",
    {"TrueCosineAnnealingLR": "type: CosineAnnealingLR"},
)
