"""Reading YAML option files: safely, merged with their base, every repeated key seen.

For messages each option's origin is remembered: the file, or `--force_yml`, that has set it.
"""

from __future__ import annotations

import functools
import json
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

OPTION_FILES = "options"
"""Name of the folder of this project's option files, in the checkout."""

MAX_ALIASES = 30
"""Aliases in a text: each of them may double what it stands for."""

MAX_DEPTH = 20
"""Sections within each other that `--force_yml` makes."""

Origins = dict[str, str]
"""YAML path of an option → what has set it."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which alone would let the last of several equal keys win silently."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name and form); dates stay texts
        first: [entry for entry in resolvers if not entry[0].endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.notices: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag.endswith(":merge"):  # `<<: *other` gives defaults, no second values
                continue
            key = str(self.construct_object(key_node, deep=True))
            value = self.construct_object(value_node, deep=True)
            if key in seen:
                if repr(seen[key]) != repr(value):
                    raise yaml.MarkedYAMLError(
                        problem=f"'{key}' stands twice in one section, first {seen[key]!r}, then "
                        f"{value!r}; remove one",
                        problem_mark=key_node.start_mark,
                    )
                line = key_node.start_mark.line + 1
                self.notices.append(f"line {line}: '{key}' is repeated with the same value")
            seen[key] = value
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 takes 2e-4 for text; everybody means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@functools.lru_cache(maxsize=256)  # many option files have the same bases
def _as_json(text: str) -> tuple[str, list[str]]:
    """A YAML text as JSON, and a notice for each key that is repeated with the same value.

    Raises:
        ValueError: the text is no YAML, or has what JSON cannot hold; it begins with ', line N: '
            where that is known.
    """
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader) if "*" in text else []
        if sum(isinstance(event, yaml.AliasEvent) for event in events) > MAX_ALIASES:
            raise ValueError(f"more than {MAX_ALIASES} aliases (*name); write the values out")
        loader = _Loader(text)
        # JSON has no dates, no sets, no bytes and nothing that contains itself.
        return json.dumps(loader.get_single_data()), loader.notices
    except yaml.MarkedYAMLError as error:
        hint = ""
        if isinstance(error, (yaml.scanner.ScannerError, yaml.parser.ParserError)):
            hint = (
                "; options are written 'key: value', with a space after the colon, and sections "
                "are indented with spaces, not tabs"
            )
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{line}: {error.problem}{hint}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f": {error}") from None
    except TypeError:
        raise ValueError(": values are numbers, texts, true, false, lists and sections") from None
    except RecursionError:
        raise ValueError(": too many sections or lists within each other") from None


def _read_one(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The content of one option file, its base not looked at, and notices; see `read_yaml`."""
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
        content, notices = _as_json(text)
    except ValueError as error:
        raise UserError(f"{path}{error}") from None
    sections = json.loads(content)
    if not isinstance(sections, dict):
        raise UserError(f"{path}: the option file holds no sections")
    return sections, [f"{path.name}, {notice}" for notice in notices]


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
            layers[path], more = _read_one(path)
        except UserError as error:
            raise UserError(f"{where}{error}") from None
        notices += more
        base = layers[path].pop("base", None)
        if base is None:
            return layers, notices
        where = f"{path}: base: "
        if not isinstance(base, str):
            raise UserError(f"{where}{base!r} is not the path of an option file")
        path = Path(os.path.normpath(path.parent / base))
        if any(path.resolve() == other.resolve() for other in layers):
            raise UserError(f"{where}{path} is based on this file in turn; remove one of the two")


def _merge(
    content: dict[str, Any], more: Mapping[Any, Any], origins: Origins, source: str, prefix: str
) -> None:
    """Set in `content` what `more` says, in place, and note where it comes from."""
    for key, value in more.items():
        place, old = f"{prefix}{key}", content.get(key)
        origins[place] = source
        if not isinstance(value, dict):
            content[key] = value
            continue
        if not isinstance(old, dict) or value.get("type", old.get("type")) != old.get("type"):
            content[key] = {}
        _merge(content[key], value, origins, source, f"{place}.")


def read_yaml(path: str | Path) -> tuple[dict[str, Any], list[str], Origins]:
    """Parse an option file.

    `base: other.yml`, a path from the file's own folder, takes over that file: sections are merged,
    other values replaced. A section with another `type` than its base's stands alone.

    Returns:
        The content; a notice for every key that stands twice with the same value; and the origin
        of each option.

    Raises:
        UserError: a file is missing, is no YAML, or repeats a key with another value; files are
            based on one another in a circle.
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
            value = None if text.strip().lower() == "none" else json.loads(_as_json(text)[0])
        except ValueError:
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
