"""What a node may say of its keys for encrypted networks; all others will be told it."""

from __future__ import annotations

import base64

from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.nodes import TunnelKey

MOST = 2
"""Keys that a node has at once: one, and the one that takes its place."""


def honest_keys(
    view: ClusterView, node_id: str, keys: tuple[TunnelKey, ...]
) -> tuple[TunnelKey, ...]:
    """Of what a node says, the newest that are keys and nobody else's.

    One that is no key would stop the tunnels of whoever is told it; with another node's a node
    would lead that one's packets to itself, where they would be lost.
    """
    taken = {
        key.public
        for id, node in view.nodes.items()
        if id != node_id
        for key in node.description.tunnel_keys
    }
    found = [key for key in keys if _is_key(key) and key.public not in taken]
    return tuple(found[-MOST:])


def _is_key(key: TunnelKey) -> bool:
    try:
        raw = base64.b64decode(key.public, validate=True)
    except ValueError:
        return False
    # The same key is written in one way only, or two would differ that are one.
    return (
        len(raw) == 32 and base64.b64encode(raw).decode() == key.public and 0 < key.port < 1 << 16
    )
