# SPDX-License-Identifier: Apache-2.0
"""Keys of objects in the store: `/orc/<kind>/<id>`, encoded protobuf as the value.

A unique name is a key of its own, `/orc/names/<kind>/<name>`, whose value is the object's id; it is
created under the guard that it does not exist, so two clients cannot take the same name. In the
same way `/orc/addresses/<address>` holds the owner's id of each VIP and each fixed address, so that
none has two owners: networks do not overlap.

`/orc/names/nodes/<hostname>` is written with each change that gives a node the hostname.

The sealed data of a version of a secret or config is at `/orc-sealed/<id>/<version>`, outside of
what managers cache: only a node's session reads it, when a task needs it there.
"""

from __future__ import annotations

from ipaddress import ip_address

from orchestrator.model.administration.access import Certificate, PageSession, Revocation
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.documents import Document
from orchestrator.model.nodes import EndpointProgress, Node, SessionRecord
from orchestrator.model.objects import Cluster, Credential, Image, Network, Object, Volume
from orchestrator.model.services import Service
from orchestrator.model.tasks import Task

EVERYTHING = "/orc"
"""Prefix of all keys."""
PREFIX = "/orc/"
SEALED = "/orc-sealed/"
LEADER = PREFIX + "leader"
SEQUENCE = PREFIX + "sequence"
"""Written by every transaction of the leader, each of which requires its predecessor
(`leader.plan_commit`)."""
SCHEMA = PREFIX + "schema"
"""The version of the store's schema (`cluster.schema`). Without an id, so it is no object's key."""
_NAMES = PREFIX + "names/"
_ADDRESSES = PREFIX + "addresses/"

NETWORK_TURN = _NAMES + "networks//turn"
"""Written with each new network, so that of two concurrent creations the second sees the first:
their subnets and VNIs must differ."""

PORT_TURN = _NAMES + "ports//turn"
"""Written with each service or container that publishes ports, for the same reason."""

CERTIFICATE_TURN = _NAMES + "certificates//turn"
"""Written with each renewed certificate and each revocation, so that a certificate that is being
renewed while its holder is revoked is either refused or revoked with the others."""

NODE_TURN = _NAMES + "nodes//turn"
"""Written with each node that joins: hostnames must differ. Managers of older versions know only
this key; newer ones also claim the hostname (`claimed_hostname`)."""

_KINDS: dict[type[Object], str] = {
    Cluster: "clusters",
    Node: "nodes",
    Service: "services",
    Task: "tasks",
    Network: "networks",
    Image: "images",
    Volume: "volumes",
    Credential: "credentials",
    Document: "documents",
    Certificate: "certificates",
    Revocation: "revocations",
    PageSession: "pagesessions",
    Manager: "managers",
    ManagerPresence: "manager-presence",
    SessionRecord: "sessions",
    EndpointProgress: "endpointprogress",
    Orphan: "orphans",
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


def is_foreign_key(key: str) -> bool:
    """Whether it is the key of an object of a kind that this version does not know."""
    kind, _, identifier = key.removeprefix(PREFIX).partition("/")
    known = kind in _TYPES or key.startswith((_NAMES, _ADDRESSES))
    return bool(identifier) and not known


def name_key(type_: type[Object], name: str) -> str:
    """The key that makes `name` unique among the objects of a class. Names of services and networks
    are DNS names, so they are case-insensitive."""
    if type_ in (Service, Network):
        name = name.lower()
    return f"{_NAMES}{_KINDS[type_]}/{name}"


def unique_key(obj: Object) -> str | None:
    """The name key of an object, created and deleted with it; None without one."""
    if isinstance(obj, Task) and obj.container_name:
        return name_key(Task, obj.container_name)
    if isinstance(obj, Network):
        return name_key(Network, obj.name)
    if isinstance(obj, Document):
        return name_key(Document, f"{obj.kind.word}/{obj.name}")
    return None


def claimed_hostname(before: Object | None, after: Object | None) -> str | None:
    """The key of the hostname that a change gives to a node; None if it gives none. It is written
    with the change, which is refused if it was written after the view in which no other node had
    the hostname. The key remains when the node is renamed, and is deleted with the node."""
    if not isinstance(after, Node) or not (name := after.description.hostname):
        return None
    had = before.description.hostname if isinstance(before, Node) else ""
    return name_key(Node, name) if name != had else None


def sealed_key(document_id: str, version: int) -> str:
    """The key of the data of a document's version."""
    return f"{SEALED}{document_id}/{version}"


def claimed_address(key: str) -> str | None:
    """The address of a claim's key; None if the key is no claim's."""
    return key.removeprefix(_ADDRESSES) if key.startswith(_ADDRESSES) else None


def address_keys(obj: Object | None) -> frozenset[str]:
    """The keys of the addresses that an object owns; the service owns those of its tasks."""
    found: list[str] = []
    if isinstance(obj, Service):
        found += [*obj.vips.values(), *obj.vips6.values()]
        attachments = obj.spec.task.networks
    elif isinstance(obj, Task) and obj.standalone:
        attachments = obj.spec.networks
    else:
        return frozenset()
    for attachment in attachments:
        found += [*attachment.ip, *attachment.ip6]
    return frozenset(f"{_ADDRESSES}{ip_address(text)}" for text in found)
