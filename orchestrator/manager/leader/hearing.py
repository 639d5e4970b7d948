# SPDX-License-Identifier: Apache-2.0
"""When the leader has last heard from each node, also from those in session with other managers.

Heartbeats reach only the manager that has the node's session; the store has its record
(`dispatch.session_records`). A node with a record is alive unless that manager says that it is
silent. If the record ends with the manager's lease, the node's silence begins at that moment: it
has the node timeout to open a session elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import SessionRecord
from orchestrator.model.objects import Cluster


class RemoteHearing:
    """What one term knows of nodes in session with other managers."""

    def __init__(self, manager_id: str) -> None:
        """`manager_id`: of this manager; empty: it has all sessions."""
        self._manager_id = manager_id
        self._lost: dict[str, float] = {}
        """Node id → when its record was lost, by the monotonic clock."""

    def is_local(self, view: ClusterView, node_id: str) -> bool:
        """Whether the store says that this manager has the node's session."""
        if not self._manager_id:
            return True
        record = view.sessions.get(node_id)
        return record is not None and record.manager_id == self._manager_id

    def heard(
        self, view: ClusterView, changes: Iterable[Change], local: Mapping[str, float], now: float
    ) -> Mapping[str, float]:
        """Node id → when it was last heard from. `changes` led to the view since the last call;
        `local` has the nodes that this manager hears; all times are of the monotonic clock."""
        if not self._manager_id:
            return local
        for change in changes:
            if isinstance(change.before, SessionRecord):
                if change.after is None:
                    self._lost[change.before.id] = now
                else:
                    self._lost.pop(change.before.id, None)
        heard = dict(local)
        for node_id, since in self._lost.items():
            heard[node_id] = max(heard.get(node_id, since), since)
        timeout = (view.cluster or Cluster()).node_timeout
        for node_id, record in view.sessions.items():
            if record.manager_id != self._manager_id:
                heard[node_id] = now - timeout if record.silent else now
        return heard
