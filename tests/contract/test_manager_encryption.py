# SPDX-License-Identifier: Apache-2.0
"""Keys of encrypted networks, from an agent by the manager to another agent, over real gRPC."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.identity.certificates import KeyPair
from orchestrator.model.convert import to_proto
from orchestrator.model.networks import ENCRYPTED
from orchestrator.model.nodes import NodeDescription, TunnelKey
from orchestrator.model.specs import (
    ContainerSpec,
    NetworkAttachment,
    Resources,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.pb import (
    control_pb2,
    control_pb2_grpc,
    dispatch_pb2,
    dispatch_pb2_grpc,
    networks_pb2,
    networks_pb2_grpc,
)

OLD, NEW = (TunnelKey(base64.b64encode(bytes([n]) * 32).decode(), 51840 + n) for n in (0, 1))


class Agent:
    """An agent's end of its session, which hears of networks."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.networks: dict[str, Any] = {}

    async def say(self, **message: Any) -> None:
        await self._call.write(dispatch_pb2.AgentMessage(**message))

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                message = await self._call.read()
                if message.WhichOneof("kind") == "assignments" and message.assignments.networks:
                    self.networks = {each.name: each for each in message.assignments.networks}

    def keys_of_others(self) -> list[str]:
        """In the encrypted network."""
        network = self.networks.get("secret")
        return [key.public for peer in network.peers for key in peer.tunnel_keys] if network else []


@asynccontextmanager
async def agent(
    running: Running, hostname: str, address: str, *features: str
) -> AsyncIterator[Agent]:
    joined = await running.join(running.token)
    await running.allow(joined.node_id, "host-files")
    async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
        call = dispatch_pb2_grpc.DispatchStub(channel).Session()
        agent = Agent(call)
        description = NodeDescription(
            hostname=hostname,
            address=address,
            resources=Resources(shares=2048, memory=4 << 30),
            network_features=features,
        )
        await agent.say(hello=dispatch_pb2.Hello(description=to_proto(description)))
        await agent.until(lambda: agent.networks)
        yield agent
        call.cancel()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager", node_timeout=60.0) as running:
        yield running


@pytest.fixture
async def control(running: Running) -> AsyncIterator[Any]:
    """The control API; there is an encrypted network, and a service on it on each node."""
    async with running.channel(running.admin) as channel:
        request = networks_pb2.CreateNetworkRequest(name="secret", encrypted=True)
        await networks_pb2_grpc.NetworksStub(channel).CreateNetwork(request)
        spec = ServiceSpec(
            name="box",
            mode=ServiceMode.GLOBAL,
            task=TaskSpec(
                container=ContainerSpec(rootfs="host", command=("true",)),
                networks=(NetworkAttachment("secret"),),
            ),
        )
        control = control_pb2_grpc.ControlStub(channel)
        await control.CreateService(control_pb2.CreateServiceRequest(spec=to_proto(spec)))
        yield control


async def test_keys_go_from_node_to_node_and_an_order_to_have_another(
    running: Running, control: Any
) -> None:
    async with (
        agent(running, "one", "10.0.0.1", ENCRYPTED) as one,
        agent(running, "two", "10.0.0.2", ENCRYPTED) as two,
        agent(running, "plain", "10.0.0.3") as plain,
    ):
        await one.until(lambda: "secret" in one.networks)
        assert one.keys_of_others() == []
        await two.say(tunnel_keys=dispatch_pb2.TunnelKeys(keys=[to_proto(OLD)]))
        await one.until(lambda: one.keys_of_others() == [OLD.public])
        await two.until(lambda: "secret" in two.networks)
        assert two.networks["secret"].key_rotation == 0
        update = control_pb2.UpdateNodeRequest(node="two", rotate_key=True)
        await control.UpdateNode(update)
        await two.until(lambda: two.networks["secret"].key_rotation == 1)
        assert one.networks["secret"].key_rotation == 0
        await two.say(tunnel_keys=dispatch_pb2.TunnelKeys(keys=[to_proto(OLD), to_proto(NEW)]))
        await one.until(lambda: one.keys_of_others() == [OLD.public, NEW.public])
        await two.say(tunnel_keys=dispatch_pb2.TunnelKeys(keys=[to_proto(NEW)]))
        await one.until(lambda: one.keys_of_others() == [NEW.public])
        # A node that cannot encrypt has no task of it, no order of it, and no key to replace.
        assert set(plain.networks) == {"default"}
        with pytest.raises(grpc.aio.AioRpcError, match="node plain has no key: its kernel has no"):
            await control.UpdateNode(control_pb2.UpdateNodeRequest(node="plain", rotate_key=True))
        nodes = (await control.ListNodes(control_pb2.ListNodesRequest())).nodes
        keys = {row.node.description.hostname: row.node.description.tunnel_keys for row in nodes}
        assert [key.public for key in keys["two"]] == [NEW.public]
