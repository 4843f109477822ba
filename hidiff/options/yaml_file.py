"""Reading YAML option files: safely, merged with their base, every repeated key seen.

For messages each option's origin is remembered: the file, or `--force_yml`, that has set it.
"""

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
from hidiff.utils.files import read_regular_file

MAX_BYTES = 2**20
"""Of an option file."""

MAX_DEPTH = 50
"""Sections and lists that may stand within each other."""

MAX_ALIASES = 30
"""Uses of `*name` in a file; each may double what stands in it."""

MAX_LAYERS = 10
"""Files that may be based on one another."""

OPTION_FILES = "options"
"""Name of the folder of this project's option files, in the checkout."""

Origins = dict[str, str]
"""YAML path of an option → what has set it."""

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
        self._depth = self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._aliases += self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} sections or lists within each other")
        if self._aliases > MAX_ALIASES:
            raise yaml.YAMLError(f"more than {MAX_ALIASES} aliases (*name)")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

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


def _require_shallow(value: Any, depth: int = 0) -> None:
    """Refuse what contains itself, which aliases can write."""
    if depth > MAX_DEPTH:
        raise yaml.YAMLError(f"more than {MAX_DEPTH} sections or lists within each other")
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            _require_shallow(inner, depth + 1)


@functools.lru_cache(maxsize=256)  # many option files have the same bases
def _parse(text: str) -> tuple[Any, list[tuple[str, Any, Any, int]]]:
    """The content, and (key, earlier value, later value, line) of each key that stands twice.

    Raises:
        yaml.YAMLError: the text is no YAML, or has values that options cannot have.
    """
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except RecursionError:
        raise yaml.YAMLError("too many sections or lists within each other") from None
    except ValueError as error:  # a number with thousands of digits
        raise yaml.YAMLError(str(error)) from None
    _require_shallow([content])
    return content, loader.repeated


def _what_is_wrong(error: yaml.YAMLError, text: str) -> str:
    """', line N: what is wrong there' of a text that is no YAML."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return f": {error}"
    lines = text.splitlines()
    near = range(max(mark.line - 1, 0), min(mark.line + 1, len(lines)))
    for number in reversed(near):
        if re.match(r"\s*[\w-]+:[^\s:/]", lines[number]):
            return (
                f", line {number + 1}: a space is missing after the colon: {lines[number].strip()}"
            )
    problem = getattr(error, "problem", None) or str(error)
    if "'\\t'" in problem:
        problem = "a tab; YAML is indented with spaces"
    if "block" in problem or "mapping values" in problem:
        problem = (
            f"this line is indented under nothing, or two values stand in one line ({problem})"
        )
    there = lines[mark.line].strip() if mark.line < len(lines) else "the end of the file"
    return f", line {mark.line + 1}: {problem}: {there[:80]}"


def _read_one(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The content of one option file, its base not looked at, and notices; see `read_layers`."""
    if not path.exists():
        raise UserError(f"the option file {missing(path)}")
    try:
        text = read_regular_file(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: this is no option file, which is a text (YAML); a model's file is named by "
            "path.weights, or with -m"
        ) from None
    try:
        content, repeated = copy.deepcopy(_parse(text))
    except yaml.YAMLError as error:
        raise UserError(f"{path}{_what_is_wrong(error, text)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: the option file holds no sections")
    notices = []
    for key, earlier, later, line in repeated:
        if earlier != later or type(earlier) is not type(later):
            raise UserError(
                f"{path}, line {line}: '{key}' stands twice in one section, first {earlier!r}, "
                f"then {later!r}; remove one"
            )
        notices.append(f"{path.name}, line {line}: '{key}' is repeated with the same value")
    return content, notices


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


def _read_layers(path: Path) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """An option file and the files that it is based on, each with its own content, and notices."""
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


def _merge(
    content: dict[str, Any], more: Mapping[Any, Any], origins: Origins, source: str, prefix: str
) -> None:
    """Set in `content` what `more` says, in place, and note where it comes from."""
    for key, value in more.items():
        place, old = f"{prefix}{key}", content.get(key)
        origins[place] = source
        if isinstance(value, dict):
            same_type = isinstance(old, dict) and value.get("type", old.get("type")) == old.get(
                "type"
            )
            content[key] = dict(old) if same_type and isinstance(old, dict) else {}
            _merge(content[key], value, origins, source, f"{place}.")
        else:
            content[key] = value


def read_yaml(path: str | Path) -> tuple[dict[str, Any], list[str], Origins]:
    """Parse an option file.

    `base: other.yml`, a path from the file's own folder, takes over that file: sections are merged,
    other values replaced. A section with another `type` than its base's stands alone.

    Returns:
        The content; a notice for every key that stands twice with the same value; and the origin
        of each option.

    Raises:
        UserError: a file is missing, is no YAML, or repeats a key with another value; files are
            based on one another in a circle or more than `MAX_LAYERS` deep.
    """
    layers, notices = _read_layers(find_option_file(path))
    content: dict[str, Any] = {}
    origins: Origins = {}
    for file, layer in reversed(layers.items()):
        _merge(content, layer, origins, str(file), "")
    return content, notices, origins


def apply_overrides(
    content: dict[str, Any], overrides: Sequence[str], origins: Origins | None = None
) -> None:
    """Set options from `--force_yml` texts such as `train:total_iter=1000`, in place.

    Sections are parted by `:` or `.`. Values are YAML: numbers, true/false, lists like [1, 2], ~
    for nothing; `none` is nothing too, as in the release. Sections on the way must exist or are
    made; whether the option exists is checked with the rest.

    Raises:
        UserError: an override is not of that form.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = re.split("[:.]", path.strip())
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            raise UserError(
                f"--force_yml {override[:100]}: write section:option=value, "
                "for example train:total_iter=1000"
            )
        try:
            value = None if text.strip().lower() == "none" else copy.deepcopy(_parse(text)[0])
        except yaml.YAMLError:
            raise UserError(f"--force_yml {override}: '{text}' is not a YAML value") from None
        section = content
        for key in keys[:-1]:
            if section.get(key) is None:
                section[key] = {}
            if not isinstance(section[key], dict):
                raise UserError(f"--force_yml {override}: '{key}' is an option, not a section")
            section = section[key]
        section[keys[-1]] = value
        if origins is not None:
            origins[".".join(keys)] = "--force_yml"


def origin(place: str, origins: Origins) -> str:
    """What has set an option; for one that is missing, what has set its section; '' if nothing."""
    while place and place not in origins:
        place = re.sub(r"(\.|^)[^.\[]*$|\[\d+\]$", "", place)
    return origins.get(place, "")
