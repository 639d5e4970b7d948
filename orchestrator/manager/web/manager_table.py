# SPDX-License-Identifier: Apache-2.0
"""The managers, with the state of their etcd members, for the web page. Pure."""

from __future__ import annotations

from typing import Any

from orchestrator.manager.cluster.quorum import quorum_of


def manager_table(reply: Any) -> dict[str, Any]:
    """A ListManagersReply as JSON: `managers`, and with members of etcd the `voters`, of which
    `healthy` ones are healthy and `quorum` must be."""
    rows = [_row(each) for each in reply.managers]
    voters = [row for row in rows if row["state"] != "joining" and row["role"] != "external"]
    return {
        "managers": rows,
        "voters": len(voters),
        "healthy": sum(row["healthy"] for row in voters),
        "quorum": quorum_of(len(voters)) if voters else 0,
    }


def _row(found: Any) -> dict[str, Any]:
    manager, status = found.manager, found.status
    return {
        "id": manager.id,
        "name": manager.hostname,
        "address": manager.address,
        "state": found.state,
        "reason": found.reason,
        "leader": found.leader,
        "current": found.current,
        "version": status.version or manager.version,
        "role": _role(manager, status),
        "healthy": bool(status.etcd_version) and not status.etcd_errors,
        "term": status.raft_term,
        "lag": found.lag,
        "size": status.database_size,
        "used": status.database_used,
        "quota": status.database_quota,
        "alarms": [each.kind for each in status.alarms if each.member_id == status.member_id],
        "defragmenting": status.defragmenting,
    }


def _role(manager: Any, status: Any) -> str:
    """The role of its etcd member; empty if it does not answer."""
    if not manager.member_id and not status.member_id:
        return "external"
    if status.learner:
        return "learner"
    return "leader" if status.etcd_leader else "follower" if status.etcd_version else ""
