"""Check and convert values read from YAML against the annotations of what takes them.

pydantic checks; the words, the YAML paths and the suggestions are ours, the same wherever a wrong
option stands.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # what pydantic wants before Python 3.12

from hidiff.utils.errors import UserError, expanded, suggestion

WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "path_type": "a path",
    "dict_type": "a section (key: value lines)",
    "dataclass_type": "a section (key: value lines)",
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


def plain(value: Any) -> Any:
    """The value as YAML and JSON know it; numbers without a fraction are whole (`4e3`)."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return str(value) if isinstance(value, Path) else value


@functools.cache
def _signature(
    function: Callable[..., Any], supplied: frozenset[str]
) -> tuple[TypeAdapter[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """What checks the arguments, the annotations and the defaults, but for those `supplied`."""
    called = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(called, include_extras=True)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in supplied
    }
    annotations = {name: hints.get(name, Any) for name in parameters}
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    if dataclasses.is_dataclass(function):
        defaults |= {
            field.name: field.default_factory()
            for field in dataclasses.fields(function)
            if field.name in defaults and field.default_factory is not dataclasses.MISSING
        }
    typed_dict: Any = TypedDict  # made of values here, which type checkers do not follow
    kind = typed_dict(
        "Arguments",
        {name: NotRequired[a] if name in defaults else a for name, a in annotations.items()},
    )
    # Strict JSON: lists are tuples, texts are paths, but true is no number and '48' neither.
    kind.__pydantic_config__ = ConfigDict(
        strict=True, allow_inf_nan=False, extra="forbid", arbitrary_types_allowed=True
    )
    return TypeAdapter(kind), annotations, defaults


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
    paths with `~` and `$HOME` replaced. `key: ~` asks for the default, or for 'none' where that is
    a choice, unless nothing is a value of the option.

    Args:
        where: YAML path of the section, '' for the whole file.
        label: what has these options, for messages.
        supplied: parameters that the program gives itself; the section may not set them.

    Returns:
        All keyword arguments, converted to the annotated types, with their defaults.

    Raises:
        UserError: an argument is unknown, missing, not finite or of a wrong type.
    """
    adapter, annotations, defaults = _signature(function, frozenset(supplied))
    given = {str(key): plain(value) for key, value in kwargs.items()}
    for key in [key for key, value in given.items() if value is None]:
        members = get_args(annotations.get(key)) or (annotations.get(key),)
        if "none" in members:
            given[key] = "none"
        elif key in defaults and not {type(None), Any} & set(members):
            del given[key]
    try:
        checked = adapter.validate_json(json.dumps(given))
    except ValidationError as error:
        raise UserError(_explanation(error, given, where, label, annotations)) from None
    return {
        key: Path(expanded(str(value))) if isinstance(value, Path) else value
        for key, value in {**defaults, **checked}.items()
    }


def _explanation(
    error: ValidationError,
    given: Mapping[str, Any],
    where: str,
    label: str | None,
    known: Mapping[str, Any],
) -> str:
    first, *others = error.errors(include_url=False)
    key, inner = str(first["loc"][0]), first["loc"][1:]
    place = f"{where}.{key}" if where else key
    if first["type"] == "extra_forbidden":
        unknown = f"{label} has no option '{key}'" if label else "there is no such option"
        return f"{place}: {unknown}{suggestion(key, known)}"
    if key not in given:
        return f"{place}: this option is missing{f', {label} needs it' if label else ''}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])  # of a section within this one, which names its place
    if first["type"] == "unexpected_keyword_argument":
        fields = [field.name for field in dataclasses.fields(known[key])]
        return f"{place}.{inner[0]}: there is no such option{suggestion(str(inner[0]), fields)}"
    value = given[key]
    # What pydantic names beyond the value is the branch of a union, or an entry that is absent.
    for step in inner:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            break
        place += f"[{step}]" if isinstance(step, int) else f".{step}"
    same = [first, *(e for e in others if e["loc"][0] == key and e["input"] == first["input"])]
    wanted = " or ".join(dict.fromkeys(map(_wanted, same)))
    hint = ""
    if isinstance(value, str):
        choices = [c for e in same for c in e.get("ctx", {}).get("expected", "").split("'")[1::2]]
        hint = suggestion(value, choices) if choices else _unquoted(value)
    return f"{place}: expected {wanted}, got {json.dumps(value, ensure_ascii=False)}{hint}"


def _wanted(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "literal_error":
        return problem["ctx"]["expected"]
    wanted = WANTED.get(problem["type"])
    return wanted.format(**problem.get("ctx", {})) if wanted else problem["msg"]


def _unquoted(text: str) -> str:
    """How to write a number that stands in quotes."""
    try:
        number = float(text)
    except ValueError:
        return ""
    return f"; write {number:g} without quotes" if math.isfinite(number) else ""
