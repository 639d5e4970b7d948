"""Where each object stands in the store: `/orc/<kind>/<id>`, encoded protobuf as the value.

A unique name is a key of its own, `/orc/names/<kind>/<name>`, whose value is the object's id; it
is created with a guard that it does not exist, so two clients cannot take one name.
"""

from __future__ import annotations

from orchestrator.model.objects import (
    Cluster,
    Credential,
    Image,
    Network,
    Node,
    Object,
    Service,
    Task,
    Volume,
)

PREFIX = "/orc/"
LEADER = PREFIX + "leader"
_NAMES = PREFIX + "names/"

_KINDS: dict[type[Object], str] = {
    Cluster: "clusters",
    Node: "nodes",
    Service: "services",
    Task: "tasks",
    Network: "networks",
    Image: "images",
    Volume: "volumes",
    Credential: "credentials",
}
_TYPES: dict[str, type[Object]] = {kind: type_ for type_, kind in _KINDS.items()}


def object_key(obj: Object) -> str:
    """The key of an object."""
    return f"{PREFIX}{_KINDS[type(obj)]}/{obj.id}"


def object_type(key: str) -> tuple[type[Object], str] | None:
    """The class and id behind a key; None when the key is not an object's."""
    if not key.startswith(PREFIX):
        return None
    kind, _, identifier = key[len(PREFIX) :].partition("/")
    type_ = _TYPES.get(kind)
    return (type_, identifier) if type_ and identifier else None


def name_key(type_: type[Object], name: str) -> str:
    """The key that makes `name` unique among the objects of a class."""
    return f"{_NAMES}{_KINDS[type_]}/{name}"


def unique_key(obj: Object) -> str | None:
    """The name key that lives and dies with an object, None when it has none."""
    if isinstance(obj, Task) and obj.container_name:
        return name_key(Task, obj.container_name)
    return None
