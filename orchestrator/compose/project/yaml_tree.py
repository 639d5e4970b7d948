# SPDX-License-Identifier: Apache-2.0
"""Parsing YAML to a tree and dumping a tree as YAML, with PyYAML.

Only the structure comes from PyYAML. Its types of scalars are those of YAML 1.1, in which `no` is
false and `8080:80` a number.
"""

from __future__ import annotations

from typing import Any

import yaml

from orchestrator.compose.tree import (
    OVERRIDE,
    RESET,
    ComposeError,
    List,
    Map,
    Node,
    Place,
    Scalar,
    key_path,
    to_python,
)

MAX_NODES = 200_000
"""Maximum number of values in a file, with anchors expanded: protects from "billion laughs"."""

_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_VALUES: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_USUAL = "tag:yaml.org,2002:"
_MERGE = "<<"
_NOWHERE = Place("", 0)


def parse(text: str, file: str) -> Map:
    """The top-level map of a file; empty if the file is. Raises ComposeError."""
    top = Place(file, 1)
    try:
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(filter(None, (error.context, error.problem)))
        raise ComposeError(Place(file, mark.line + 1 if mark else 0), "", message) from None
    except yaml.YAMLError as error:
        raise ComposeError(top, "", f"invalid YAML: {' '.join(str(error).split())}") from None
    if root is None:
        return Map({}, top)
    tree = _Builder(file).build(root, "")
    if isinstance(tree, Scalar) and tree.is_null:
        return Map({}, top)
    if not isinstance(tree, Map):
        raise ComposeError(top, "", "not a compose file, which is a map with keys such as services")
    return tree


def values_in(text: str, file: str) -> Any:
    """The content of a YAML file as Python values, by PyYAML's rules. Raises ComposeError."""
    try:
        return yaml.load(text, Loader=_VALUES)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ComposeError(
            Place(file, mark.line + 1 if mark else 0), "", str(error.problem)
        ) from None
    except yaml.YAMLError as error:
        raise ComposeError(Place(file, 1), "", f"invalid YAML: {error}") from None


class _Builder:
    def __init__(self, file: str) -> None:
        self._file = file
        self._made = 0
        self._open: set[int] = set()

    def build(self, node: Any, at: str, place: Place | None = None) -> Node:
        """The tree of a YAML node. The value of a key has the key's `place`."""
        place = place or Place(self._file, node.start_mark.line + 1)
        self._made += 1
        if self._made > MAX_NODES:
            raise ComposeError(place, at, f"the file has more than {MAX_NODES} values")
        if id(node) in self._open:
            raise ComposeError(place, at, "an anchor contains itself")
        tag = self._tag(node, place, at)
        if isinstance(node, yaml.ScalarNode):
            return Scalar(node.value, place, not node.style, tag)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                items = (self.build(each, key_path(at, i)) for i, each in enumerate(node.value))
                return List(tuple(items), place, tag)
            return Map(self._entries(node, at), place, tag)
        finally:
            self._open.discard(id(node))

    def _tag(self, node: Any, place: Place, at: str) -> str:
        tag: str = node.tag or ""
        if tag in (RESET, OVERRIDE):
            return tag
        if tag and not tag.startswith(_USUAL) and tag != "!":
            raise ComposeError(place, at, f"unknown tag {tag}; use !reset or !override")
        return ""

    def _entries(self, node: Any, at: str) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = Place(self._file, key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ComposeError(place, at, "a key must be a string, not a list or map")
            key = key_node.value
            if key == _MERGE and not key_node.style:
                for entry, value in self._merged(value_node, place, at).items():
                    merged.setdefault(entry, value)
                continue
            if key in own:
                raise ComposeError(place, key_path(at, key), "duplicate key")
            own[key] = self.build(value_node, key_path(at, key), place)
        # Keys keep their order; those of merge keys follow the map's own.
        return own | {key: value for key, value in merged.items() if key not in own}

    def _merged(self, node: Any, place: Place, at: str) -> dict[str, Node]:
        """The entries of a merge key (`<<`): of a map, or of several, of which the first wins."""
        built = self.build(node, key_path(at, _MERGE))
        found: dict[str, Node] = {}
        for each in built.items if isinstance(built, List) else (built,):
            if not isinstance(each, Map):
                raise ComposeError(place, key_path(at, _MERGE), "only maps can be merged")
            for key, value in each.entries.items():
                found.setdefault(key, value)
        return found


class _Dumper(_DUMPER):  # type: ignore[misc]
    """Writes repeated values in full instead of anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, text: str) -> Any:
        """Quotes strings that another reader may take for a number, such as 08, or a boolean."""
        is_text = isinstance(to_python(Scalar(text, _NOWHERE)), str)
        return self.represent_scalar(f"{_USUAL}str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _Dumper.represent_str)


def dump(tree: Node) -> str:
    """A tree as YAML that all readers interpret alike."""
    return yaml.dump(
        to_python(tree),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
    )
