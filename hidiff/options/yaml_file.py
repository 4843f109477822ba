"""Reading YAML option files: safely, merged with their base, every repeated key seen."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hidiff.utils.errors import UserError, missing

MAX_VALUES = 100_000
"""Values that an option file may have, each alias counted with all that it stands for."""

MAX_DEPTH = 50
"""Sections and lists that may stand within each other."""

MAX_LAYERS = 10
"""Files that may be based on one another."""

OPTION_FILES = "options"
"""Name of the folder of this project's option files, in the checkout."""

_MERGE = "tag:yaml.org,2002:merge"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
"""YAML's kinds of values that options have; dates, sets and bytes are none."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which alone would let the last of several equal keys win silently."""

    yaml_constructors = {  # noqa: RUF012 (PyYAML's own name and form)
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _KINDS
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [entry for entry in resolvers if not entry[0].endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, Any, Any, int]] = []
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} sections or lists within each other")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def _count(self, node: yaml.Node, known: dict[int, int | None]) -> int:
        """The values in a node; aliases may make them exponentially more than its lines."""
        if id(node) in known:
            if (count := known[id(node)]) is None:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: what stands here is a part of itself")
            return count
        known[id(node)] = None
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in inner for part in pair]
        count = 1 + sum(self._count(part, known) for part in inner)
        if count > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES} values, counted with what aliases repeat")
        known[id(node)] = count
        return count

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:  # `<<: *other` gives defaults, which keys may repeat
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a list or section cannot be a key", key_node.start_mark
                )
            value = self.construct_object(value_node, deep=True)
            if key in seen:
                self.repeated.append((str(key), seen[key], value, key_node.start_mark.line + 1))
            seen[key] = value
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 takes 2e-4 for text; everybody means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@functools.lru_cache(maxsize=256)  # many option files have the same bases
def _parse(text: str) -> tuple[Any, list[tuple[str, Any, Any, int]]]:
    """The content, and (key, earlier value, later value, line) of each key that stands twice.

    To be copied by the caller: who asks for the same text gets the same.

    Raises:
        yaml.YAMLError: the text is no YAML, or nested or repeated by aliases beyond reason.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.repeated
    except ValueError as error:  # a number with thousands of digits
        raise yaml.YAMLError(str(error)) from None


def _read_one(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The content of one option file, its base not looked at, and notices; see `read_yaml`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"the option file {missing(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the option file {path} cannot be read: {error}") from None
    try:
        content, repeated = copy.deepcopy(_parse(text))
    except yaml.YAMLError as error:
        raise UserError(f"the option file {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"the option file {path} holds no sections")
    notices = []
    for key, earlier, later, line in repeated:
        if earlier != later or type(earlier) is not type(later):
            raise UserError(
                f"{path}, line {line}: '{key}' stands twice in one section, first {earlier!r}, "
                f"then {later!r}; remove one"
            )
        notices.append(f"{path.name}, line {line}: '{key}' is repeated with the same value")
    return content, notices


def _merged(base: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `content` sets; a section of another `type` takes nothing from its base."""
    merged = dict(base)
    for key, value in content.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            same_type = value.get("type", old.get("type")) == old.get("type")
            value = _merged(old, value) if same_type else value
        merged[key] = value
    return merged


def merged(layers: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    """The content of the first of the `read_layers`, with all that it takes over."""
    return functools.reduce(_merged, reversed([*layers.values()]))


def shipped_options() -> Path:
    """The folder of this project's option files: in the checkout, or where a wheel has put it."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "option_files"  # see setup.py
    return installed if installed.is_dir() else package.parent / OPTION_FILES


def find_option_file(path: str | Path) -> Path:
    """The file itself; where it is not there and called options/…, this project's of that name."""
    path = Path(path)
    if path.exists() or path.is_absolute() or path.parts[:1] != (OPTION_FILES,):
        return path
    ours = shipped_options().joinpath(*path.parts[1:])
    return ours if ours.exists() else path


def read_layers(path: str | Path) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """An option file and the files it is based on, see `read_yaml`, each with its own content."""
    path = find_option_file(path)
    layers: dict[Path, dict[str, Any]] = {}
    notices: list[str] = []
    where = ""
    while True:
        try:
            content, more = _read_one(path)
        except UserError as error:
            raise UserError(f"{where}{error}") from None
        base = content.pop("base", None)
        layers[path] = content
        notices += more
        if base is None:
            return layers, notices
        where = f"{path}: base: "
        if not isinstance(base, str):
            raise UserError(f"{where}{base!r} is not the path of an option file")
        path = Path(os.path.normpath(path.parent / base))
        if any(path.resolve() == other.resolve() for other in layers):
            raise UserError(f"{where}{path} is based on this file in turn; remove one of the two")
        if len(layers) == MAX_LAYERS:
            raise UserError(f"{where}more than {MAX_LAYERS} files are based on one another")


def read_yaml(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Parse an option file.

    `base: other.yml`, a path from the file's own folder, takes over that file: sections are merged,
    other values replaced. A section with another `type` than its base's stands alone.

    Returns:
        The content, and a notice for every key that stands twice with the same value.

    Raises:
        UserError: a file is missing, is no YAML, or repeats a key with another value; files are
            based on one another in a circle or more than `MAX_LAYERS` deep.
    """
    layers, notices = read_layers(path)
    return merged(layers), notices


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set options from `--force_yml` texts such as `train:total_iter=1000`, in place.

    Sections are parted by `:` or `.`. Values are YAML: numbers, true/false, lists like [1, 2], ~
    for nothing; `none` is nothing too, as in the release. Sections on the way must exist or are
    made; whether the option exists is checked with the rest. Of a list of sections `train[0]` is
    the first.

    Raises:
        UserError: an override is not of that form.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = re.split("[:.]", path.strip())
        if not equals or not all(keys):
            raise UserError(
                f"--force_yml {override}: write section:option=value, "
                "for example train:total_iter=1000"
            )
        try:
            value = None if text.strip().lower() == "none" else copy.deepcopy(_parse(text)[0])
        except yaml.YAMLError:
            raise UserError(f"--force_yml {override}: '{text}' is not a YAML value") from None
        section = content
        for key in keys[:-1]:
            section = _inner(section, key, f"--force_yml {override}")
        section[keys[-1]] = value


def _inner(section: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """The section of that name, made where it is missing, or one of a list, as in `train[0]`."""
    match = re.fullmatch(r"(.*?)(?:\[(\d+)\])?", key, re.DOTALL)
    assert match is not None  # the pattern takes every text
    name, index = match.groups()
    if index is None and section.get(name) is None:
        section[name] = {}
    found = section.get(name)
    if isinstance(found, list) and index is None:
        raise UserError(f"{where}: '{name}' is a list; name one of its sections, as in {name}[0]")
    if index is not None:
        several = found if isinstance(found, list) else []
        if int(index) >= len(several):
            raise UserError(f"{where}: '{name}' has no section [{index}]")
        found = several[int(index)]
    if not isinstance(found, dict):
        raise UserError(f"{where}: '{key}' is an option, not a section")
    return found
