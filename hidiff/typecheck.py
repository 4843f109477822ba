"""Check and convert values read from YAML against Python type annotations.

Both the option dataclasses and the registries use these functions, so a wrong option is reported
in the same words wherever it stands.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from hidiff.errors import UserError

NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    dict: "a section (key: value lines)",
    list: "a list",
    tuple: "a list",
    type(None): "nothing (~)",
}


def describe(value: Any) -> str:
    """Say in words what was found in the option file."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{str(value).lower()}"
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, (list, tuple)):
        return f"the list {list(value)}"
    return f"the number {value}" if isinstance(value, (int, float)) else repr(value)


def suggestion(name: str, known: Iterable[str]) -> str:
    """'; did you mean …?' for a misspelled name, or the list of the known ones."""
    known = sorted(known)
    return _close(name, known) or (f"; known: {', '.join(known)}" if known else "")


def _close(name: str, known: list[str]) -> str:
    """The known name that differs least, above all not by more than its capitals."""
    by_lower = {other.lower(): other for other in reversed(known)}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def _unquoted(text: str) -> str:
    """How to write a number that stands in quotes."""
    try:
        return f"; write {float(text):g} without quotes"
    except ValueError:
        return ""


def expanded(path: str) -> str:
    """A path with `~` and `$HOME` (or another variable) replaced."""
    # pathlib would fail where a user is unknown; this leaves the text as it is.
    return os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """Return `value` as `annotation` wants it, or say why it cannot be.

    Whole floats become int (the released files write `4e3`), ints become float, and so does what
    YAML 1.1 takes for text (`2e-4`); lists become tuples where a tuple is annotated, and texts
    paths, with `~` and `$HOME` replaced. Nothing (`~`) becomes 'none' where that is a choice.
    Nothing else is converted.

    Raises:
        UserError: the value is of another type or not finite; the message starts with `where`, the
            YAML path.
    """
    if annotation is Any or annotation is inspect.Parameter.empty:
        return value
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, args, where)
    if origin is Literal:
        if value is None and "none" in args:
            return "none"
        if value in args:
            return value
        choices = list(map(str, args))
        hint = _close(value, choices) if isinstance(value, str) else ""
        raise UserError(f"{where}: {describe(value)} is not one of {', '.join(choices)}{hint}")
    base = origin or annotation
    if base in (list, tuple, Sequence):
        return _coerce_sequence(value, base, args, where)
    if base in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected {NAMES[dict]}, got {describe(value)}")
        if not args:
            return dict(value)
        return {
            coerce(key, args[0], where): coerce(item, args[1], f"{where}.{key}")
            for key, item in value.items()
        }
    return _coerce_scalar(value, base, where)


def _coerce_scalar(value: Any, kind: type, where: str) -> Any:
    if kind in (int, float):
        if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {value} is not finite; give a number")
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise UserError(f"{where}: the number is too large")
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(expanded(value))
    # bool is a subclass of int, but `dim: true` is a mistake.
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    hint = _unquoted(value) if isinstance(value, str) and kind in (int, float) else ""
    wanted = NAMES.get(kind, f"a {getattr(kind, '__name__', kind)}")
    raise UserError(f"{where}: expected {wanted}, got {describe(value)}{hint}")


def _coerce_sequence(value: Any, base: type, args: tuple, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: expected a list, got {describe(value)}")
    if base is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise UserError(f"{where}: expected {len(args)} entries, got {len(value)}")
        kinds: Sequence[Any] = args
    else:
        kinds = [args[0] if args else Any] * len(value)
    pairs = zip(value, kinds, strict=True)
    items = [coerce(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(pairs)]
    return items if base is list else tuple(items)


def _coerce_union(value: Any, members: tuple, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    candidates = [member for member in members if member is not type(None)]
    if len(candidates) == 1:
        return coerce(value, candidates[0], where)
    for member in candidates:
        try:
            return coerce(value, member, where)
        except UserError:
            continue
    wanted = " or ".join(NAMES.get(get_origin(m) or m, str(m)) for m in candidates)
    raise UserError(f"{where}: expected {wanted}, got {describe(value)}")


def check_call(
    function: Callable[..., Any],
    kwargs: Mapping[str, Any],
    where: str,
    *,
    label: str | None = None,
    supplied: Iterable[str] = (),
) -> dict[str, Any]:
    """Check keyword arguments from an option section against a signature.

    `supplied` names the parameters that the program gives itself and that the section therefore
    neither needs nor may set.

    Returns:
        The keyword arguments, converted to the annotated types.

    Raises:
        UserError: an argument is unknown, missing or of a wrong type.
    """
    label = label or getattr(function, "__name__", str(function))
    supplied = set(supplied)
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in supplied
    }
    for name in kwargs:
        if name not in parameters:
            raise UserError(
                f"{where}.{name}: {label} has no option '{name}'{suggestion(name, parameters)}"
            )
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in kwargs:
            raise UserError(f"{where}: {label} needs the option '{name}', which is missing")
    return {
        name: coerce(value, hints.get(name, Any), f"{where}.{name}")
        for name, value in kwargs.items()
    }
