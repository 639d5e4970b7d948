# SPDX-License-Identifier: Apache-2.0
"""What is in the way of an upgrade: a pure judgement of a cluster's state.

It needs only what every release answers, so that a new client can check an old cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.model.compatibility.agent_features import AGENT_FEATURES, describe_feature
from orchestrator.model.compatibility.releases import MAX_SKEW, minor_release, newest, within_skew
from orchestrator.model.units import format_age

SEVERAL_MANAGERS = (0, 2)
"""The first minor release that knows several managers."""

OLD_BACKUP = 24 * 3600.0
"""Seconds after which a backup is too old to be the last one before an upgrade."""


@dataclass(frozen=True, slots=True)
class ManagerFacts:
    """A manager, as far as the check is concerned."""

    hostname: str
    version: str
    state: str = "ready"
    reason: str = ""
    features: tuple[str, ...] = ()
    etcd_member: bool = False


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node, as far as the check is concerned."""

    hostname: str
    version: str
    state: str = "ready"
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SchemaFacts:
    """The state of the store's schema."""

    version: int = 1
    requested: int = 1
    finalized: int = 1
    known: int = 1


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """The backups of a cluster."""

    age: float | None = None
    """Seconds since the newest; None: there is none."""
    failed: tuple[str, ...] = ()
    """Hostnames of the managers whose last scheduled backup failed."""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The state of a cluster."""

    managers: tuple[ManagerFacts, ...]
    nodes: tuple[NodeFacts, ...]
    schema: SchemaFacts = SchemaFacts()
    undecodable: tuple[str, ...] = ()
    """Keys of objects that the manager cannot decode."""
    updating: tuple[str, ...] = ()
    """Names of services that are being updated."""
    backups: BackupFacts | None = None
    """None if the managers do not say: they have release 0.1."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that an operator should know before an upgrade."""

    subject: str
    text: str
    remedy: str
    """What to do about it."""
    blocking: bool = True
    """Whether it is in the way; otherwise it is information."""


def findings(cluster: ClusterFacts, target: str) -> list[Finding]:
    """What is in the way of an upgrade to a target version, blocking findings first."""
    found = [
        *_skew(cluster, target),
        *_return(cluster, target),
        *_managers(cluster.managers),
        *_nodes(cluster.nodes),
        *_store(cluster, target),
        *_backups(cluster.backups),
        *_features(cluster),
    ]
    return sorted(found, key=lambda each: not each.blocking)


def _skew(cluster: ClusterFacts, target: str) -> Iterator[Finding]:
    hosts = [(f"manager {each.hostname}", each.version) for each in cluster.managers]
    hosts += [(f"node {each.hostname}", each.version) for each in cluster.nodes]
    for subject, version in hosts:
        if not within_skew(version, target):
            yield Finding(
                subject,
                f"has version {version or 'unknown'}, more than {MAX_SKEW} minor release from "
                f"{target}",
                "upgrade the cluster one minor release after the other",
            )
    latest = newest([version for _, version in hosts])
    if latest:
        for subject, version in hosts:
            if within_skew(version, target) and not within_skew(version, latest):
                yield Finding(
                    subject,
                    f"has version {version}, more than {MAX_SKEW} minor release from {latest}, "
                    "which the cluster already has",
                    "upgrade this host first",
                )
    manager = newest([each.version for each in cluster.managers])
    if (least := minor_release(manager)) is not None:
        ahead = [
            each.hostname
            for each in cluster.nodes
            if (minor_release(each.version) or (0, 0)) > least
        ]
        if ahead:
            yield Finding(
                _hosts("node", ahead),
                f"newer than every manager ({manager})",
                "upgrade the managers next",
                blocking=False,
            )


def _return(cluster: ClusterFacts, target: str) -> Iterator[Finding]:
    """What is in the way of a return to an older release."""
    wanted = minor_release(target)
    present = minor_release(newest([each.version for each in cluster.managers]))
    if wanted is None or present is None or wanted >= present:
        return
    if wanted < SEVERAL_MANAGERS and len(cluster.managers) > 1:
        yield Finding(
            "managers",
            f"{len(cluster.managers)}, and release {target} knows only one",
            "upgrade with this release, or remove all but one with 'orc manager rm' first",
        )
    if cluster.schema.requested > 1:
        yield Finding(
            "schema",
            f"version {cluster.schema.requested} is final: managers of a release that does not "
            "know it refuse to start",
            "return only to a release that knows it, or restore a backup of the older one",
            blocking=False,
        )


def _managers(managers: Sequence[ManagerFacts]) -> Iterator[Finding]:
    for each in managers:
        if each.state != "ready":
            yield Finding(
                f"manager {each.hostname}",
                f"is {each.state}" + (f": {each.reason}" if each.reason else ""),
                "start it, or remove it with 'orc manager rm'",
            )
    members = [each for each in managers if each.etcd_member]
    if not members:
        return
    ready = sum(each.state == "ready" for each in members)
    margin = ready - (len(members) // 2 + 1)
    if len(members) == 1:
        yield Finding(
            "quorum",
            "one manager: no command is served while it restarts; containers are not affected",
            "with three managers, commands are served all the time: 'orc cluster token manager'",
            blocking=False,
        )
    elif margin < 1:
        yield Finding(
            "quorum",
            f"{ready} of {len(members)} etcd members are healthy, and {len(members) // 2 + 1} are "
            "needed: none can be restarted without an interruption",
            "start or add a manager first",
        )


def _nodes(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    down = sorted(each.hostname for each in nodes if each.state == "down")
    if down:
        yield Finding(
            _hosts("node", down),
            "down",
            "start their agents, or remove them with 'orc node rm'",
        )


def _store(cluster: ClusterFacts, target: str) -> Iterator[Finding]:
    schema = cluster.schema
    if cluster.undecodable:
        some = ", ".join(cluster.undecodable[:3])
        more = len(cluster.undecodable) - 3
        yield Finding(
            "store",
            f"objects cannot be decoded: {some}" + (f" and {more} more" if more > 0 else ""),
            "'orc cluster info' says why: upgrade the managers to the release that wrote them, "
            "else restore or delete the keys in etcd",
            # Objects of a newer release are what a return to an older one leaves.
            blocking=any(each.version == target for each in cluster.managers),
        )
    if schema.finalized < schema.requested:
        yield Finding(
            "schema",
            f"version {schema.requested} is being finalized",
            "wait until it is, or see the leader's log",
        )
    elif schema.requested < schema.version:
        yield Finding(
            "schema",
            f"version {schema.version} is not finalized: managers can return to schema version "
            f"{schema.requested}",
            "once all managers stay upgraded: 'orc cluster upgrade --finalize'",
            blocking=False,
        )
    if cluster.updating:
        yield Finding(
            f"services {', '.join(sorted(cluster.updating)[:5])}",
            "are being updated: an update pauses while the leader restarts",
            "wait until they are, or go on: the next leader continues them",
            blocking=False,
        )


def _backups(backups: BackupFacts | None) -> Iterator[Finding]:
    if backups is None:
        return
    remedy = "'orc cluster backup FILE' makes one"
    if backups.age is None:
        yield Finding("backup", "there is none since this cluster's managers began", remedy, False)
    elif backups.age > OLD_BACKUP:
        yield Finding(
            "backup", f"the newest is of {format_age(backups.age)} ago", remedy, blocking=False
        )
    if backups.failed:
        yield Finding(
            "backup",
            f"the last scheduled one failed on {_hosts('manager', backups.failed)}",
            "see 'orc cluster backups'",
            blocking=False,
        )


def _features(cluster: ClusterFacts) -> Iterator[Finding]:
    known = {feature for each in cluster.managers for feature in each.features}
    for feature in sorted(known):
        lacking = [each.hostname for each in cluster.managers if feature not in each.features]
        if lacking:
            yield Finding(
                f"feature {feature}",
                f"off until {_hosts('manager', lacking)} is upgraded",
                "upgrade all managers",
                blocking=False,
            )
    for feature in AGENT_FEATURES:
        lacking = [each.hostname for each in cluster.nodes if feature not in each.features]
        if lacking:
            yield Finding(
                f"feature {describe_feature(feature)}",
                f"tasks that need it are not placed on {_hosts('node', lacking)}",
                "upgrade these nodes",
                blocking=False,
            )


def _hosts(kind: str, names: Iterable[str]) -> str:
    """ "node a", "nodes a, b and 3 more"."""
    listed = sorted(names)
    shown = ", ".join(listed[:5])
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return f"{kind}{'s' if len(listed) > 1 else ''} {shown}{more}"
