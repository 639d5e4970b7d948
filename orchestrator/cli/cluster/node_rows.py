# SPDX-License-Identifier: Apache-2.0
"""Nodes as rows: dicts whose keys are part of the interface for scripts, and their table.

Reads the messages themselves: `orc node ls` is what many scripts and prompts call, and the
dataclasses of nodes and their converters would be a sixth of its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cli.output.listings import Column, Row, column, rfc3339, short
from orchestrator.model.units import format_cores, format_memory
from orchestrator.model.validation.host_access import allowed
from orchestrator.pb import types_pb2


def node_row(message: Any) -> Row:
    """From a NodeRow."""
    node = message.node
    about = node.description
    return {
        "id": node.id,
        "hostname": about.hostname,
        "role": node.role,
        "availability": _word(types_pb2.Availability, "AVAILABILITY_", node.availability),
        "state": _word(types_pb2.NodeState, "NODE_", node.state),
        "address": about.address,
        "shares_total": about.resources.shares,
        "shares_reserved": message.reserved.shares,
        "memory_total": about.resources.memory,
        "memory_reserved": message.reserved.memory,
        "tasks": message.tasks,
        "version": about.version,
        "labels": dict(node.labels),
        "engine_labels": dict(about.labels),
        "message": node.message,
        "trouble": about.trouble,
        "created_at": rfc3339(node.created_at),
        "kernel": about.kernel,
        "os": about.os,
        "arch": about.arch,
        "cgroup": about.cgroup,
        "runtime": about.runtime,
        "drain": {
            "max_unavailable": node.drain_most,
            "deadline": rfc3339(node.drain_deadline),
        },
        "allowed": list(allowed(node)),
        "downs": [rfc3339(at) for at in node.downs],
        "generic_resources": _generic(about.generic_resources, message.generic_free),
        "network_features": list(about.network_features),
        "cni_plugins": list(about.cni_plugins),
        "network_drivers": dict(about.network_drivers),
        "ipam_drivers": list(about.ipam_drivers),
        "path_mtu": about.path_mtu or None,
        "tunnel_keys": [{"public": key.public, "port": key.port} for key in about.tunnel_keys],
    }


def _word(enum: Any, prefix: str, number: int) -> str:
    """A number of an enum in the users' form: `NODE_READY` is `ready`."""
    try:
        name: str = enum.Name(number)
    except ValueError:  # the manager is newer
        name = f"UNRECOGNIZED_{number}"
    return name.removeprefix(prefix).lower().replace("_", "-")


def node_columns(whole: bool) -> list[Column]:
    return [
        short("ID", "id", whole),
        column("HOSTNAME", "hostname"),
        Column("STATUS", lambda row: row["state"].capitalize()),
        Column("AVAILABILITY", lambda row: row["availability"].capitalize()),
        column("ROLE", "role"),
        column("ADDRESS", "address"),
        column("TASKS", "tasks"),
        Column("CPUS", lambda row: _used(row, "shares", format_cores)),
        Column("MEMORY", lambda row: _used(row, "memory", format_memory)),
        column("VERSION", "version"),
    ]


def _used(row: Row, what: str, text: Any) -> str:
    return f"{text(row[f'{what}_reserved'])} / {text(row[f'{what}_total'])}"


def _generic(supplies: Mapping[str, str], free: Mapping[str, int]) -> Row:
    """A node's generic resources by kind: total and reserved."""
    if not supplies:
        return {}
    from orchestrator.model.formats.generic_resources import supply_names, supply_size

    return {
        kind: {
            "total": supply_size(value),
            "reserved": supply_size(value) - free[kind],
            "names": list(supply_names(value)),
        }
        for kind, value in sorted(supplies.items())
    }
