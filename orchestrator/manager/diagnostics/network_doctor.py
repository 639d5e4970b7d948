# SPDX-License-Identifier: Apache-2.0
"""`orc network doctor`: nodes test their paths to each other, and the results are diagnosed.

A tunnel to each node lasts as long as the diagnosis, which goes step by step: configuration,
packets from all to all at once, then bit rates, in rounds in which every node has one partner at
most. Everything is bounded: in time, and in large clusters each node tests only some others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.manager.diagnostics.path_diagnosis import diagnose
from orchestrator.manager.diagnostics.path_measurements import (
    ConfigurationDrift,
    DroppedPackets,
    EchoResult,
    Finding,
    NetworkFacts,
    NodeFacts,
    PathFacts,
    measurement_rounds,
)
from orchestrator.manager.dispatch.network_assignments import NetworkAssignments
from orchestrator.manager.dispatch.tunnels import Tunnel
from orchestrator.manager.errors import RequestError
from orchestrator.manager.object_lookup import find_network
from orchestrator.manager.operations.context import ManagerContext, Operations
from orchestrator.model.networks import MTU, OVERLAY
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.objects import Network
from orchestrator.model.specs import DEFAULT_NETWORK
from orchestrator.pb import dispatch_pb2, doctor_pb2

MOST_PARTNERS = 31
"""Other nodes that each node tests: in clusters of up to 32 nodes, all."""
RATED_PARTNERS = 19
"""Partners to which the bit rate is measured."""
RATE_SECONDS = 0.15
TOKEN_BYTES = 16

HERE_TIMEOUT, PROBE_TIMEOUT, RATE_TIMEOUT, RESULT_TIMEOUT = 10.0, 30.0, 5.0, 10.0
"""Seconds for a node's answer to each step."""


@dataclass(slots=True)
class _TestedNode:
    """A node under test: its tunnel and its answers."""

    node: Node
    tunnel: Tunnel
    answers: AsyncIterator[Any]
    number: int
    here: Any = field(default_factory=doctor_pb2.Here)
    probed: Mapping[str, Any] = field(default_factory=dict)
    """Node id → ProbedPath."""
    result: Any = field(default_factory=doctor_pb2.DiagnosisResult)
    rates: dict[str, float] = field(default_factory=dict)
    """Node id → bits per second."""
    trouble: str = ""

    @property
    def name(self) -> str:
        return self.node.description.hostname

    async def answer(self, within: float, **step: Any) -> Any:
        """The node's answer to a step (or its next one, without a step); empty if it does not
        answer, or has failed before."""
        if not self.trouble:
            try:
                async with asyncio.timeout(within):
                    if step:
                        told = doctor_pb2.DiagnosisFrame(**step)
                        await self.tunnel.send(dispatch_pb2.Frame(diagnosis=told))
                    frame = await anext(self.answers, None)
                    if frame is not None and not frame.result.error:
                        return frame
                    self.trouble = frame.result.error if frame else "it ended the test"
            except TimeoutError:
                self.trouble = f"it did not answer within {within:g} seconds"
            except RequestError as refusal:
                self.trouble = refusal.text
        return dispatch_pb2.Frame()


class NetworkDoctorOperations(Operations):
    """`orc network doctor`."""

    async def diagnose(
        self, request: doctor_pb2.DiagnoseRequest
    ) -> AsyncIterator[doctor_pb2.DiagnoseReply]:
        """Have nodes test their paths to each other; stream progress, then the diagnosis."""
        network = find_network(self.ctx.view, request.network or DEFAULT_NETWORK)
        diagnosis = _Diagnosis(self.ctx, network, alone=bool(request.network))
        async for line in diagnosis.run():
            yield doctor_pb2.DiagnoseReply(progress=line)
        yield doctor_pb2.DiagnoseReply(diagnosis=diagnosis.reply())


class _Diagnosis:
    """One diagnosis."""

    def __init__(self, ctx: ManagerContext, network: Network, *, alone: bool) -> None:
        """`alone`: diagnose only this network."""
        self._ctx = ctx
        self._network = network
        self._alone = alone
        self._token = os.urandom(TOKEN_BYTES)
        view = ctx.view
        self._nodes = sorted(view.nodes.values(), key=lambda node: node.description.hostname)
        if alone:
            orders = NetworkAssignments()
            self._nodes = [
                node
                for node in self._nodes
                if any(order.id == network.id for order in orders.of(view, node.id))
            ]
        self._tested: dict[str, _TestedNode] = {}
        self._untested: dict[str, str] = {}
        """Node id → why there is no tunnel to it."""

    async def run(self) -> AsyncIterator[str]:
        """Run the tests; lines of progress."""
        async with AsyncExitStack() as stack:
            yield f"asking {_number(len(self._nodes), 'node')}"
            await self._open(stack)
            await asyncio.gather(*map(self._ask_here, self._tested.values()))
            plan = self._plan()
            if plan:
                pairs = sum(map(len, plan))
                yield f"sending packets between {_number(pairs, 'pair')} of nodes"
            await self._probe(plan)
            for index, pairs_of_round in enumerate(plan[:RATED_PARTNERS], 1):
                yield f"measuring rates, round {index} of {min(len(plan), RATED_PARTNERS)}"
                await asyncio.gather(*(self._rate(*pair) for pair in pairs_of_round))
            await asyncio.gather(*map(self._finish, self._tested.values()))

    async def _open(self, stack: AsyncExitStack) -> None:
        ctx = self._ctx
        order = dispatch_pb2.OpenTunnel(
            diagnosis=doctor_pb2.DiagnosisOrder(
                network_id=self._network.id,
                token=self._token,
                reserved_port=self._network.internal,
            )
        )
        for number, node in enumerate(self._nodes, 1):
            if node.state is not NodeState.READY:
                continue
            try:
                tunnel = await stack.enter_async_context(
                    ctx.tunnels.open(
                        node.id, node.description.hostname, order, ctx.dispatcher.deliver
                    )
                )
            except RequestError as refusal:
                self._untested[node.id] = refusal.text
            else:
                frames = tunnel.frames()
                self._tested[node.id] = _TestedNode(node, tunnel, aiter(frames), number)

    async def _ask_here(self, tested: _TestedNode) -> None:
        tested.here = (await tested.answer(HERE_TIMEOUT)).diagnosis.here

    def _plan(self) -> list[list[tuple[str, str]]]:
        """Pairs of nodes to test, by id, in rounds."""
        if self._network.driver != OVERLAY:
            return []
        return measurement_rounds([node.id for node in self._nodes], MOST_PARTNERS)

    async def _probe(self, plan: list[list[tuple[str, str]]]) -> None:
        pairs = [pair for each in plan for pair in each]
        partners: dict[str, list[str]] = {node.id: [] for node in self._nodes}
        for one, two in pairs:
            partners[one].append(two)
            partners[two].append(one)
        await asyncio.gather(
            *(self._send(tested, partners[id]) for id, tested in self._tested.items())
        )

    async def _send(self, tested: _TestedNode, others: Collection[str]) -> None:
        view = self._ctx.view
        targets = []
        for id in others:
            node = view.nodes.get(id)
            if node is None:
                continue
            here = self._tested[id].here if id in self._tested else doctor_pb2.Here()
            targets.append(
                doctor_pb2.ProbeTarget(
                    node_id=id,
                    underlay=node.description.address,
                    overlay=here.address,
                    port=here.port,
                )
            )
        if not targets:
            return
        probe = doctor_pb2.Probe(number=tested.number, targets=targets)
        answer = await tested.answer(PROBE_TIMEOUT, probe=probe)
        tested.probed = {path.node_id: path for path in answer.diagnosis.probed.paths}

    async def _rate(self, one: str, two: str) -> None:
        """Measure in both directions, one after the other."""
        for source, target in ((one, two), (two, one)):
            tested, other = self._tested.get(source), self._tested.get(target)
            if tested is None or other is None or not other.here.port:
                continue
            path = tested.probed.get(target)
            if path is None or not path.overlay.received:
                continue
            order = doctor_pb2.RateOrder(
                address=other.here.address, port=other.here.port, seconds=RATE_SECONDS
            )
            answer = await tested.answer(RATE_TIMEOUT, rate=order)
            tested.rates[target] = answer.diagnosis.rated.rate

    async def _finish(self, tested: _TestedNode) -> None:
        answer = await tested.answer(RESULT_TIMEOUT, finish=True)
        tested.result = answer.result.diagnosis

    def reply(self) -> Any:
        """The diagnosis."""
        network, nodes, paths = self._network, self._facts(), self._paths()
        others = [
            _network_facts(each)
            for each in self._ctx.view.networks.values()
            if each.driver == OVERLAY and each.id != network.id and not self._alone
        ]
        findings = diagnose(_network_facts(network), nodes, paths, others)
        return doctor_pb2.Diagnosis(
            network=network.name,
            nodes=[_described(node, facts) for node, facts in zip(self._nodes, nodes, strict=True)],
            paths=map(_path, paths),
            findings=map(_finding, findings),
            pairs=len(nodes) * (len(nodes) - 1) // 2 if network.driver == OVERLAY else 0,
        )

    def _facts(self) -> list[NodeFacts]:
        found = []
        for node in self._nodes:
            tested = self._tested.get(node.id)
            facts = NodeFacts(
                node.description.hostname,
                node.description.address,
                node.state.name.lower(),
                self._untested.get(node.id, ""),
            )
            if tested is not None:
                here = tested.here
                drifts = _merged([*here.drifts, *tested.result.drifts])
                facts = replace(
                    facts,
                    trouble=tested.trouble,
                    mtu=here.mtu,
                    device=here.device,
                    device_mtu=here.device_mtu,
                    tracked=here.tracked,
                    trackable=here.trackable,
                    dropped=tuple(self._dropped(here.dropped)),
                    drifts=tuple(
                        drift
                        for drift in drifts
                        if not self._alone or drift.network in ("", self._network.name)
                    ),
                )
            found.append(facts)
        return found

    def _dropped(self, told: Iterable[Any]) -> Iterator[DroppedPackets]:
        """By the container names that users know."""
        view = self._ctx.view
        for each in told:
            network, task = view.networks.get(each.network), view.tasks.get(each.container)
            if self._alone and each.network != self._network.id:
                continue
            yield DroppedPackets(
                network.name if network else each.network,
                task.name if task else each.container,
                each.packets,
            )

    def _paths(self) -> list[PathFacts]:
        found = []
        names = {node.id: node.description.hostname for node in self._nodes}
        for tested in self._tested.values():
            for id, path in tested.probed.items():
                heard = self._heard(id, tested.number)
                found.append(
                    PathFacts(
                        source=tested.name,
                        target=names[id],
                        underlay=_echoes(path.underlay),
                        overlay=_echoes(path.overlay),
                        large=_echoes(path.large),
                        path_mtu=path.path_mtu,
                        datagrams=path.datagrams,
                        checked=heard.checked,
                        unchecked=heard.unchecked,
                        rate=tested.rates.get(id, 0.0),
                    )
                )
        return sorted(found, key=lambda path: (path.source, path.target))

    def _heard(self, node_id: str, number: int) -> Any:
        """What a node received from the one with that number."""
        heard = self._tested[node_id].result.heard if node_id in self._tested else ()
        return next((each for each in heard if each.number == number), doctor_pb2.Heard())


def _network_facts(network: Network) -> NetworkFacts:
    asked_mtu = int(network.options.get(MTU, 0))
    return NetworkFacts(network.name, network.vni, asked_mtu, network.encrypted)


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _merged(drifts: Iterable[Any]) -> list[ConfigurationDrift]:
    """The drift seen of each network at any time."""
    found: dict[str, ConfigurationDrift] = {}
    for each in drifts:
        before = found.get(each.network, ConfigurationDrift(each.network))
        deviations = tuple(dict.fromkeys((*before.deviations, *each.deviations)))
        found[each.network] = ConfigurationDrift(
            each.network, deviations, each.failure or before.failure
        )
    return list(found.values())


def _echoes(message: Any) -> EchoResult:
    return EchoResult(message.sent, message.received, message.latency)


def _described(node: Node, facts: NodeFacts) -> Any:
    return doctor_pb2.DiagnosedNode(
        id=node.id,
        name=facts.name,
        state=facts.state,
        tested=facts.tested,
        mtu=facts.mtu,
        drifts=[
            doctor_pb2.Drift(
                network=drift.network, deviations=drift.deviations, failure=drift.failure
            )
            for drift in facts.drifts
        ],
    )


def _path(path: PathFacts) -> Any:
    def echoes(kind: EchoResult) -> Any:
        return doctor_pb2.Echoes(sent=kind.sent, received=kind.received, latency=kind.latency)

    return doctor_pb2.DiagnosedPath(
        source=path.source,
        target=path.target,
        underlay=echoes(path.underlay),
        overlay=echoes(path.overlay),
        path_mtu=path.path_mtu,
        rate=path.rate,
    )


def _finding(finding: Finding) -> Any:
    return doctor_pb2.Finding(
        wrong=finding.wrong, nodes=finding.nodes, text=finding.text, remedy=finding.remedy
    )
