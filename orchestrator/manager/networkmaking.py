"""New networks, one after the other: the subnet and the number of each must differ from all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import NETWORK_TURN, name_key
from orchestrator.manager.store.kv import Conflict, Guard, Kv, Put
from orchestrator.model.objects import Network


async def make_network(kv: Kv, cache: Cache, choose: Callable[[ClusterView], Network]) -> Network:
    """Write the network that `choose` makes of a view with all networks in it; it is asked again
    when somebody else made one meanwhile. Raises Conflict when that one has the name, and what
    `choose` raises."""
    while True:
        turn = await kv.get(NETWORK_TURN)
        stamp = turn.mod_revision if turn else 0
        await cache.wait_for(stamp)
        network = choose(cache.view)
        name = name_key(Network, network.name)
        try:
            revision = await commit(
                kv,
                [Change(None, network)],
                guards=[Guard(name, mod_revision=0), Guard(NETWORK_TURN, mod_revision=stamp)],
                ops=[Put(name, network.id.encode()), Put(NETWORK_TURN, network.id.encode())],
            )
        except Conflict as conflict:
            if name in conflict.keys:
                raise
        else:
            await cache.wait_for(revision)
            return replace(network, revision=revision)
