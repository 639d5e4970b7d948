# SPDX-License-Identifier: Apache-2.0
"""Operations on networks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from orchestrator.manager.errors import (
    RequestError,
    already_exists,
    failed_precondition,
    invalid_argument,
    not_found,
    unavailable,
)
from orchestrator.manager.object_lookup import find_container, find_network, matches_prune_filters
from orchestrator.manager.operations.context import Operations, on_current_state
from orchestrator.manager.operations.references import in_use_error, resolve_networks
from orchestrator.manager.planning.consumers import network_consumers, not_stopping
from orchestrator.manager.planning.networking.addresses import AddressRefused, NewNetwork, complete
from orchestrator.manager.planning.networking.plugin_networks import complete_plugin_network
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import NETWORK_TURN, name_key
from orchestrator.manager.store.kv import Conflict, Guard, Kv, Put
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.networks import (
    BUILT_IN,
    DOCKER_MTU,
    MTU,
    NOT_CONNECTED,
    OVERLAY,
    check_network_name,
    connected,
    disconnected,
    is_connected,
    is_ours,
    stands_alone,
    takes_foreign_sources,
)
from orchestrator.model.objects import Network
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.validation.host_access import UNCHECKED_SOURCES, allows, refusal
from orchestrator.pb import networks_pb2, types_pb2


async def create_network(kv: Kv, cache: Cache, choose: Callable[[ClusterView], Network]) -> Network:
    """Commit the network that `choose` returns for a view with all networks; retried after a
    concurrent creation. Raises Conflict if the name is in use, and what `choose` raises."""
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


SETTLE_TIMEOUT = 10.0
"""Seconds that a node has to connect or disconnect a running container."""


class NetworkOperations(Operations):
    """Operations of `orc network …`."""

    async def create_network(self, request: networks_pb2.CreateNetworkRequest) -> types_pb2.Network:
        """Create a network with free subnets, or the given ones."""
        ctx = self.ctx
        wanted = NewNetwork(
            Network(
                id=ctx.new_id(),
                name=request.name,
                created_at=ctx.now(),
                driver=request.driver or OVERLAY,
                internal=request.internal,
                attachable=request.attachable,
                encrypted=request.encrypted,
                labels=dict(request.labels),
                options=_options(request.options, request.driver),
                ip_range=request.ip_range,
                gateway=request.gateway,
                conflist=request.conflist,
                ipam_driver=request.ipam_driver,
                ipam_options=dict(request.ipam_options),
            ),
            tuple(request.subnets),
            request.ipv6,
        )
        try:
            made = await create_network(ctx.kv, ctx.cache, lambda view: _completed(view, wanted))
        except Conflict:
            raise _name_taken(request.name) from None
        return to_proto(made)

    async def remove_network(
        self, request: networks_pb2.RemoveNetworkRequest
    ) -> networks_pb2.RemoveNetworkReply:
        """Remove a network that nothing uses."""
        network = find_network(self.ctx.view, request.network)
        await self._remove(network, when_unused=request.when_unused)
        return networks_pb2.RemoveNetworkReply(id=network.id, name=network.name)

    async def prune_networks(
        self, request: networks_pb2.PruneNetworksRequest
    ) -> networks_pb2.PruneNetworksReply:
        """Remove networks that nothing uses."""
        view = self.ctx.view
        reply = networks_pb2.PruneNetworksReply()
        for network in sorted(view.networks.values(), key=lambda each: each.name):
            unwanted = network.name not in BUILT_IN and matches_prune_filters(
                network.labels, network.created_at, request
            )
            if not unwanted or network_consumers(view, network):
                continue
            try:
                await self._remove(network)
            except RequestError as refusal:
                reply.notices.append(refusal.text)
            else:
                reply.names.append(network.name)
        return reply

    async def connect_network(self, request: networks_pb2.ConnectNetworkRequest) -> types_pb2.Task:
        """Connect a standalone container to a network; return once its node has done it."""
        attachment = from_proto(request.attachment, strict=True)

        def edit(task: Task) -> tuple[Task, list[Network]]:
            name = attachment.network
            if name in task.spec.network_names:
                raise already_exists(f"container '{task.name}' is already on network '{name}'")
            if stands_alone(name):
                raise invalid_argument(
                    f"a container cannot be connected to network {name} later; create it with "
                    f"'orc run --network {name}'"
                )
            try:
                spec = connected(task.spec, attachment)
            except ValueError as error:
                raise invalid_argument(str(error)) from None
            before = ServiceSpec(task=task.spec)
            wanted = ServiceSpec(task=spec)
            _check_allowed(self.ctx.view, task, name)
            networks = resolve_networks(self.ctx.view, wanted, before, name=task.name)
            return replace(task, spec=spec), networks

        task = await self._edit(request.container, edit)
        return to_proto(await self._wait_until_applied(task))

    async def disconnect_network(
        self, request: networks_pb2.DisconnectNetworkRequest
    ) -> types_pb2.Task:
        """Disconnect a standalone container from a network."""

        def edit(task: Task) -> tuple[Task, list[Network]]:
            if request.network not in task.spec.network_names:
                if request.force:
                    return task, []
                raise not_found(
                    f"container '{task.name}' is not on network '{request.network}'; it is on "
                    f"{', '.join(task.spec.network_names)}"
                )
            if stands_alone(request.network):
                raise invalid_argument(
                    f"container '{task.name}' cannot be disconnected from network "
                    f"{request.network}; create another container"
                )
            return replace(task, spec=disconnected(task.spec, request.network)), []

        task = await self._edit(request.container, edit)
        return to_proto(task if request.force else await self._wait_until_applied(task))

    @on_current_state
    async def _edit(self, word: str, edit: Callable[[Task], tuple[Task, list[Network]]]) -> Task:
        """Change a standalone container."""
        ctx = self.ctx
        task = find_container(ctx.view, word)
        if not task.standalone:
            raise failed_precondition(
                f"'{task.name}' is a task of service '{task.service_name}'; use 'orc service "
                f"update --network-add' or '--network-rm' on {task.service_name}"
            )
        after, networks = edit(task)
        if after == task:
            return task
        revision = await commit(ctx.kv, [Change(task, after)], networks)
        await ctx.cache.wait_for(revision)
        return replace(after, revision=revision)

    async def _wait_until_applied(self, task: Task) -> Task:
        """Wait until the container's node has applied its networks; the container then."""
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT), self.ctx.cache.subscribe() as feed:
                while True:
                    known = self.ctx.view.tasks.get(task.id)
                    if known is None or known.status.state is not TaskState.RUNNING:
                        return known or task
                    if is_connected(known.spec.attachments, known.slot, known.status):
                        return known
                    if known.status.message.startswith(NOT_CONNECTED):
                        raise failed_precondition(
                            f"container '{task.name}' is {known.status.message}"
                        )
                    await feed.next()
        except TimeoutError:
            node = self.ctx.view.nodes.get(task.node_id)
            hostname = node.description.hostname if node else task.node_id
            raise unavailable(
                f"node {hostname} has not done it within {SETTLE_TIMEOUT:g} seconds; it will when "
                "it can (see 'orc node ls')"
            ) from None

    async def _remove(self, network: Network, *, when_unused: bool = False) -> None:
        """Mark the network, so that it takes no new users, check that it has none, and delete it.
        With `when_unused`, stopping tasks may still use it, and `DeferredRemoval` deletes it."""
        ctx = self.ctx
        if network.name in BUILT_IN:
            raise failed_precondition(f"network '{network.name}' is part of every cluster")
        # Fail before anything is written, if possible.
        self._check_unused(network, when_unused)
        marked = await self._mark(network, when_unused=when_unused)
        try:
            self._check_unused(network, when_unused)
        except RequestError:
            await self._mark(marked, removing=False)
            raise
        if when_unused:
            return
        while True:
            try:
                revision = await commit(ctx.kv, [Change(marked, None)])
            except Conflict:
                # Joining nodes change it, too.
                marked = await self._mark(marked)
            else:
                await ctx.cache.wait_for(revision)
                return

    def _check_unused(self, network: Network, when_unused: bool) -> None:
        """Raise RequestError if it is in use; with `when_unused`, stopping tasks do not count."""
        found = network_consumers(self.ctx.view, network)
        if not_stopping(found) if when_unused else found:
            detach = {
                "service": f"orc service update --network-rm {network.name} {{}}",
                "container": f"orc network disconnect {network.name} {{}}",
            }
            raise in_use_error(f"network '{network.name}'", found, detach)

    @on_current_state
    async def _mark(
        self, network: Network, *, removing: bool = True, when_unused: bool = False
    ) -> Network:
        """The current network, marked or unmarked. Raises RequestError if it is gone."""
        ctx = self.ctx
        now = find_network(ctx.view, network.id)
        after = replace(now, removing=removing, remove_when_unused=when_unused)
        if after == now:
            return now
        revision = await commit(ctx.kv, [Change(now, after)])
        await ctx.cache.wait_for(revision)
        return replace(after, revision=revision)


def _check_allowed(view: ClusterView, task: Task, name: str) -> None:
    """Raise RequestError if the container's node does not allow its containers on a network."""
    network, node = view.network_by_name(name), view.nodes.get(task.node_id)
    if network is None or node is None or not takes_foreign_sources(network.options):
        return
    if not allows(node, UNCHECKED_SOURCES):
        raise failed_precondition(refusal(UNCHECKED_SOURCES, node.description.hostname))


def _completed(view: ClusterView, wanted: NewNetwork) -> Network:
    """The new network with all fields, validated. Raises RequestError."""
    try:
        check_network_name(wanted.network.name)
        if view.network_by_name(wanted.network.name) is not None:
            raise _name_taken(wanted.network.name)
        ours = is_ours(wanted.network.driver)
        return complete(view, wanted) if ours else complete_plugin_network(view, wanted)
    except (AddressRefused, ValueError) as error:
        raise invalid_argument(str(error)) from None


def _name_taken(name: str) -> RequestError:
    return already_exists(f"network '{name}' already exists; choose another name")


def _options(given: Mapping[str, str], driver: str) -> dict[str, str]:
    """The options, with Docker's names translated for our drivers."""
    if driver and not is_ours(driver):
        return dict(given)
    return {MTU if key == DOCKER_MTU else key: value for key, value in given.items()}
