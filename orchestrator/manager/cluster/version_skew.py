# SPDX-License-Identifier: Apache-2.0
"""Refusals of hosts and clients whose release is more than one minor release away.

A host is checked when it joins; an agent also at the beginning of each session, a client at each
call, and a manager when it starts. So an upgrade that leaves out a release is stopped at its first
host, while the others serve.
"""

from __future__ import annotations

from orchestrator import __version__
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.compatibility.releases import FIRST, skew_refusal
from orchestrator.model.nodes import NodeState


def refusal_to_join(view: ClusterView, hostname: str, version: str) -> str:
    """Why a host with a version cannot join; empty if it can. It must work with every manager."""
    managers = [(f"manager {each.hostname}", each.version) for each in view.managers.values()]
    subject = f"this host ({hostname})"
    found = (skew_refusal(subject, version or FIRST, *other) for other in sorted(managers))
    return next(filter(None, found), "")


def refusal_of_session(hostname: str, version: str) -> str:
    """Why an agent with a version cannot have a session with this manager; empty if it can."""
    return skew_refusal(f"the agent of {hostname}", version, "the manager", __version__)


def refusal_of_call(version: str) -> str:
    """Why a client with a version cannot call this manager; empty if it can. One that does not
    send its version has release 0.1, or is no `orc` command."""
    return skew_refusal("this client", version, "the manager", __version__)


def refusal_to_start(view: ClusterView, id: str) -> str:
    """Why the manager with this id cannot start with its version; empty if it can. It must work
    with the managers that run, and with the nodes that are ready."""
    others = [
        (f"manager {each.hostname}", each.version)
        for each in view.managers.values()
        if each.id != id and each.id in view.manager_presence
    ]
    others += [
        (f"node {each.description.hostname}", each.description.version)
        for each in view.nodes.values()
        if each.state is NodeState.READY
    ]
    found = (skew_refusal("this manager", __version__, *other) for other in sorted(others))
    return next(filter(None, found), "")
