"""Reading YAML option files safely, with every repeated key seen."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from hidiff.errors import UserError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which alone would let the last of several equal keys win silently."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, Any, Any, int]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
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


# Options are plain data, which a training state can hold: a date stays text, and the tags of YAML
# for other objects are refused.
_OBJECTS = {f"tag:yaml.org,2002:{n}" for n in ("timestamp", "binary", "omap", "pairs", "set")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OBJECTS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag not in _OBJECTS
}


def read_yaml(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Parse an option file.

    Returns:
        The content, and a notice for every key that stands twice with the same value.

    Raises:
        UserError: the file is missing, is no YAML, or repeats a key with another value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"the option file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the option file {path} cannot be read: {error}") from None
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"the option file {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"the option file {path} holds no sections")
    notices = []
    for key, earlier, later, line in loader.repeated:
        if earlier != later or type(earlier) is not type(later):
            raise UserError(
                f"{path}, line {line}: '{key}' stands twice in one section, first {earlier!r}, "
                f"then {later!r}; remove one"
            )
        notices.append(f"{path.name}, line {line}: '{key}' is repeated with the same value")
    return content, notices


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set options from `--force_yml` texts such as `train:total_iter=1000`, in place.

    Values are YAML: numbers, true/false, lists like [1, 2], ~ for nothing. Sections on the way
    must exist or are made; whether the option exists is checked with the rest.

    Raises:
        UserError: an override is not of that form.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(":")
        if not equals or not all(keys):
            raise UserError(
                f"--force_yml {override}: write section:option=value, "
                "for example train:total_iter=1000"
            )
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise UserError(f"--force_yml {override}: '{text}' is not a YAML value") from None
        section = content
        for key in keys[:-1]:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise UserError(f"--force_yml {override}: '{key}' is an option, not a section")
        section[keys[-1]] = value
