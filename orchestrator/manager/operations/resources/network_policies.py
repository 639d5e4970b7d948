# SPDX-License-Identifier: Apache-2.0
"""Operations on the policies of networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.manager.errors import (
    already_exists,
    failed_precondition,
    invalid_argument,
    not_found,
)
from orchestrator.manager.object_lookup import find_network
from orchestrator.manager.operations.context import Operations, on_current_state
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.commit import commit
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.names import near_miss
from orchestrator.model.networks import OVERLAY, is_ours
from orchestrator.model.objects import Network, NetworkPolicy
from orchestrator.pb import policies_pb2, types_pb2


class NetworkPolicyOperations(Operations):
    """Operations of `orc network policy …`."""

    async def add_policy(self, request: policies_pb2.AddPolicyRequest) -> types_pb2.NetworkPolicy:
        """Add a policy to a network: which sources may connect to a destination."""
        ctx = self.ctx
        policy: NetworkPolicy = replace(
            from_proto(request.policy, strict=True), id=ctx.new_id(), created_at=ctx.now()
        )
        _check(ctx.view, policy)

        def add(network: Network) -> Network:
            if not is_ours(network.driver):
                raise failed_precondition(
                    f"network '{network.name}' has driver {network.driver}, which does not support "
                    "policies"
                )
            if network.driver != OVERLAY:
                raise failed_precondition(
                    f"network '{network.name}' is node-local and does not support policies"
                )
            if any(_same(each, policy) for each in network.policies):
                raise already_exists(f"network '{network.name}' already has this policy")
            return replace(network, policies=(*network.policies, policy))

        await self._edit(request.network, add)
        return to_proto(policy)

    async def remove_policy(
        self, request: policies_pb2.RemovePolicyRequest
    ) -> types_pb2.NetworkPolicy:
        """Remove a policy from a network."""
        removed: list[NetworkPolicy] = []

        def remove(network: Network) -> Network:
            removed[:] = [_find(network, request.policy)]
            kept = tuple(each for each in network.policies if each not in removed)
            return replace(network, policies=kept)

        await self._edit(request.network, remove)
        return to_proto(removed[0])

    @on_current_state
    async def _edit(self, word: str, edit: Callable[[Network], Network]) -> None:
        """Commit a change of a network. Joining nodes change it, too."""
        ctx = self.ctx
        network = find_network(ctx.view, word)
        await ctx.cache.wait_for(await commit(ctx.kv, [Change(network, edit(network))]))


def _check(view: ClusterView, policy: NetworkPolicy) -> None:
    """Raise RequestError for an unknown name, since such a policy would protect nothing, and for an
    invalid port."""
    known = {each.spec.name for each in view.services.values() if not each.removed}
    known |= {task.name for task in view.tasks_of_service("").values()}
    for name in (policy.destination, *policy.sources):
        if name not in known:
            guess = near_miss(name, known)
            hint = f"did you mean '{guess}'?" if guess else "see 'orc service ls' and 'orc ps'"
            raise not_found(f"no service or container '{name}'; {hint}")
    for port in policy.ports:
        if not 1 <= port.port <= 65535:
            raise invalid_argument(f"port {port.port} is not in 1-65535")


def _same(one: NetworkPolicy, other: NetworkPolicy) -> bool:
    return replace(one, id="", created_at=0.0) == replace(other, id="", created_at=0.0)


def _find(network: Network, word: str) -> NetworkPolicy:
    found = [each for each in network.policies if word and each.id.startswith(word)]
    if len(found) != 1:
        many = "several policies begin with" if found else "no policy"
        raise not_found(
            f"{many} '{word}' in network '{network.name}'; see 'orc network policy ls "
            f"{network.name}'"
        )
    return found[0]
