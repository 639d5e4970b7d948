# SPDX-License-Identifier: Apache-2.0
"""Our tables beside the specification's own JSON schema, in the form that compose-viz ships it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from compose_viz.spec.compose_spec import ComposeSpecification
from composekit import Given
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.compose.schema import file_keys
from orchestrator.compose.schema.collection_kinds import MapOf, Object
from orchestrator.compose.schema.value_kinds import External, Ignored, Kind, Unsupported
from orchestrator.compose.tree import ComposeError

SPECIFICATION = ComposeSpecification.model_json_schema()
ITEM = "[]"
OURS_ALONE = {
    "services.x-orc": "an extension's name may begin with x-",
    "secrets.content": "the specification has it for configs",
    "services.build.provenance": "newer than the package",
    "services.build.sbom": "newer than the package",
    "services.pre_start": "newer than the package",
    "services.deploy.resources.reservations.pids": "Docker takes it",
}


def specified(
    node: Mapping[str, Any], path: str = "", above: frozenset[str] = frozenset()
) -> Iterator[str]:
    """The keys below a node of the schema, as `services.build.args`: names of entries left out."""
    while "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name in above:
            return
        node, above = SPECIFICATION["$defs"][name], above | {name}
    for key, below in node.get("properties", {}).items():
        yield f"{path}{key}"
        yield from specified(below, f"{path}{key}.", above)
    further = [*node.get("anyOf", ()), node.get("items"), node.get("additionalProperties")]
    for below in (*further, *node.get("patternProperties", {}).values()):
        if isinstance(below, Mapping):
            yield from specified(below, path, above)


def ours(kind: Kind, path: str = "") -> Iterator[tuple[str, Kind]]:
    """The keys that a kind knows, in the same form, with what each may be."""
    if isinstance(kind, Object):
        for key, below in kind.table.items():
            yield f"{path}{key}", below
            yield from ours(below, f"{path}{key}.")
    elif (below := inner(kind)) is not None:
        yield from ours(below, path)


def inner(kind: Kind) -> Kind | None:
    """What stands in a list, or behind the names of a map."""
    return getattr(kind, "kind", None) or getattr(kind, "entry", None)


def test_each_key_of_the_specification_is_in_the_schema() -> None:
    known = dict(ours(file_keys.FILE))
    whole = tuple(
        f"{key}."
        for key, kind in known.items()
        if isinstance(kind, Unsupported | Ignored | External)
    )
    unknown = set(specified(SPECIFICATION)) - known.keys()
    assert {key for key in unknown if not key.startswith(whole)} == set()


def test_schema_has_no_keys_beyond_the_specification() -> None:
    alone = {key for key, _ in ours(file_keys.FILE)} - set(specified(SPECIFICATION))
    assert {key for key in alone if not key.startswith("services.x-orc.")} == set(OURS_ALONE)


def put(path: tuple[str, ...], value: Any) -> Any:
    """The smallest document in which a value stands at a path."""
    if not path:
        return value
    below = put(path[1:], value)
    return [below] if path[0] == ITEM else {path[0]: below}


def paths(kind: Kind, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Kind]]:
    """Where something may stand, and what; names of entries are all `web`."""
    if isinstance(kind, Object):
        for key, below in kind.table.items():
            if f"{'.'.join(above)}.{key}".replace("web.", "") not in OURS_ALONE:
                yield (*above, key), below
                yield from paths(below, (*above, key))
    elif (below := inner(kind)) is not None:
        yield from paths(below, (*above, "web" if isinstance(kind, MapOf) else ITEM))


BASE = {
    "services": {"web": {"image": "web:1"}},
    "secrets": {"web": {"file": "./f"}},
    "configs": {"web": {"file": "./f"}},
}
NEEDED = {
    "ports": {"target": 80},
    "volumes": {"type": "volume", "target": "/x"},
    "secrets": {"source": "web"},
    "configs": {"source": "web"},
    "build": {"context": "."},
}
"""Keys of a service, and what must be there beside a key below."""
_WORDS = (None, True, 1, -1, 1.5, "", "a", "1", "a:b", "5s")
_LISTS = ([], ["a"], [1], [None], [[]], [{}], [True], [{"a": "b"}])
_MAPS = ({}, {"a": "b"}, {"a": None}, {"a": 1}, {"a": []}, {"a": {}}, {"a": {"a": "b"}})
VALUES = (*_WORDS, *_LISTS, *_MAPS)


def filled(base: Any, more: Any) -> Any:
    if isinstance(base, dict) and isinstance(more, dict):
        both = {key: filled(base[key], more[key]) for key in base.keys() & more.keys()}
        return {**base, **more, **both}
    return more


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(paths(file_keys.FILE))), st.sampled_from(VALUES))
def test_invalid_by_the_specification_is_an_error(
    place: tuple[tuple[str, ...], Kind], value: Any
) -> None:
    path, kind = place
    # Nothing is asked for by an empty list or map; and the package's form of the schema has lost
    # that `external` is mostly a boolean.
    assume(not isinstance(kind, Unsupported) or value not in ([], {}))
    assume(not isinstance(kind, External))
    document = filled(BASE, put(path, value))
    if path[0] == "services" and len(path) > 3 and path[2] in NEEDED:
        section = document["services"]["web"][path[2]]
        if isinstance(section, list):
            document["services"]["web"][path[2]] = [filled(NEEDED[path[2]], section[0])]
        else:
            document["services"]["web"][path[2]] = filled(NEEDED[path[2]], section)
    try:
        ComposeSpecification.model_validate(document)
    except ValidationError as error:
        wrong = error
    else:
        assume(False)
    with pytest.raises(ComposeError):
        assert not Given({"compose.yaml": json.dumps(document), "f": "x"}).stack(), wrong
