# SPDX-License-Identifier: Apache-2.0
"""A run: cluster, observers, users, faults, convergence, clean-up. It only records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.pb import (
    control_pb2,
    documents_pb2,
    managers_pb2,
    types_pb2,
    volumes_pb2,
)
from tests.chaos import traffic
from tests.chaos.api import Api, Client, Failed
from tests.chaos.faultplan import Planned
from tests.chaos.faults import Injector
from tests.chaos.history import Converged, Leftover, Run
from tests.chaos.hosts import RunError, Testbed
from tests.chaos.leftovers import Things, things
from tests.chaos.observers import ContainerObserver, StoreObserver, record_events
from tests.chaos.recorder import Recorder
from tests.chaos.users import (
    COUNT,
    COUNTER,
    LABELLED,
    STEADY,
    STEADY_PORT,
    USERS,
    ServiceCalls,
    World,
    created,
    gone,
    no_network,
    no_secret,
    no_volume,
    service_spec,
    unlocker,
    until,
)

PREDEFINED = frozenset({"bridge", "default", "host", "none"})
"""Networks of every cluster."""

GIVE_UP = 90.0
"""Seconds after which the harness no longer waits for convergence, for users to leave, or for
leftovers to go."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is run."""

    seed: int
    minutes: float
    plan: Sequence[Planned]


async def run(
    scenario: Scenario, testbed: Testbed, recorder: Recorder, say: Callable[[str], None]
) -> None:
    """Record a run of a cluster that is up."""
    node_timeout = 5.0
    recorder.add(
        Run(scenario.seed, scenario.minutes, testbed.managers, testbed.nodes, node_timeout)
    )
    containers = ContainerObserver(testbed, recorder)
    store = StoreObserver(testbed, recorder)
    async with (
        Api(testbed.name, recorder) as api,
        _background(containers.run(), store.run()),
    ):
        world = World(testbed, api, recorder, containers, scenario.seed)
        client, _ = world.client("harness")
        await store.ready()
        say("warm-up")
        await _warm_up(client, world)
        before = await _still(testbed, store)
        vip = await _declare(client, world)
        watchers = (
            traffic.through_published_port(world),
            traffic.through_vip(world, vip),
            record_events(api, recorder),
            unlocker(world),
        )
        async with _background(*watchers):
            injector = Injector(testbed, recorder, say)
            async with _background(*(user(world, name) for name, user in USERS)):
                await injector.run(scenario.plan)
            say(f"{injector.count} faults injected; waiting for convergence")
            await _converge(client, testbed.managers, recorder, say)
        await _clear(client, say)
        await _compare(testbed, store, before, recorder, say)


@asynccontextmanager
async def _background(*jobs: Any) -> AsyncIterator[None]:
    """Run these while the block lasts; an error of one ends the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
        yield
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=GIVE_UP)
            for task in late:  # there is no cluster that would remove what it has made
                task.cancel()


async def _warm_up(client: Client, world: World) -> None:
    """Run a container on every node once: what its first one makes there stays."""
    service = ServiceCalls(client, "warm")
    spec = service_spec("warm", service.tag(), 1)
    spec.mode = types_pb2.MODE_GLOBAL
    await created(service, spec)
    await _until_running(client, "warm", 60.0)
    await gone(service)


async def _declare(client: Client, world: World) -> str:
    """The harness's own services; the VIP of the one that gets the requests."""
    spec = service_spec(STEADY, f"{STEADY}/0", 2 * world.testbed.nodes)
    spec.task.ports.add(published=STEADY_PORT, target=80)
    await created(ServiceCalls(client, STEADY), spec)
    await created(ServiceCalls(client, LABELLED), service_spec(LABELLED, f"{LABELLED}/0", 1))
    spec = service_spec(COUNTER, f"{COUNTER}/0", 2)
    del spec.task.container.entrypoint[:]
    spec.task.container.entrypoint.extend(("/bin/busybox", "sh", "-c", COUNT))
    await created(ServiceCalls(client, COUNTER), spec)
    await _until_running(client, STEADY, 60.0)
    service = await until(ServiceCalls(client, STEADY).read, bool)
    return str(next(iter(service.vips.values())))


async def _until_running(client: Client, name: str, within: float) -> None:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        for row in await until(lambda: _services(client), lambda rows: rows is not None):
            if row.service.spec.name == name and row.running == row.desired > 0:
                return
        await asyncio.sleep(0.3)
    raise RunError(f"service {name} does not run within {within:g} s")


async def _services(client: Client) -> Sequence[control_pb2.ServiceRow]:
    request = control_pb2.ListServicesRequest()
    reply = await client.call(lambda m: m.control.ListServices, request, target="services")
    rows: Sequence[control_pb2.ServiceRow] = reply.services
    return rows


async def _missing(client: Client, count: int) -> list[str]:
    """What the cluster lacks of what is declared, and of its `count` managers."""
    managers = await client.call(
        lambda m: m.managers.ListManagers, managers_pb2.ListManagersRequest(), target="managers"
    )
    missing = [
        f"{row.manager.hostname} is {row.state}: {row.reason}"
        for row in managers.managers
        if row.state != "ready"
    ]
    if len(managers.managers) != count:
        missing.append(f"{len(managers.managers)} managers of {count}")
    nodes = await client.call(
        lambda m: m.control.ListNodes, control_pb2.ListNodesRequest(), target="nodes"
    )
    for row in nodes.nodes:
        if row.node.state != types_pb2.NODE_READY:
            hostname = row.node.description.hostname
            missing.append(f"{hostname} is not ready: {row.node.message}")
    for row in await _services(client):
        name, spec = row.service.spec.name, row.service.spec
        if row.service.removed:
            missing.append(f"{name} is being removed")
        elif spec.mode == types_pb2.MODE_REPLICATED_JOB:
            if any(run.state == types_pb2.JOB_RUNNING for run in row.service.job.runs):
                missing.append(f"job {name} completed {row.completed} of {row.completions}")
        elif row.running != row.desired:
            missing.append(f"{name} runs {row.running} of {row.desired}")
        elif row.service.update.state == types_pb2.UPDATE_UPDATING:
            missing.append(f"{name} is being updated")
    return missing


async def _converge(
    client: Client, managers: int, recorder: Recorder, say: Callable[[str], None]
) -> None:
    began = time.monotonic()
    while True:
        try:
            missing = await _missing(client, managers)
        except Failed as failure:
            missing = [str(failure)]
        seconds = round(time.monotonic() - began, 1)
        if not missing or seconds > GIVE_UP:
            break
        await asyncio.sleep(0.5)
    recorder.add(Converged(seconds, tuple(missing)))
    say(f"converged after {seconds:.0f} s" if not missing else f"not converged: {missing}")


async def _clear(client: Client, say: Callable[[str], None]) -> None:
    """Remove all that users made. What cannot be removed in time is left, and is then recorded."""
    say("removing everything")

    def listed(method: Callable[[Any], Any], request: Any, target: str) -> Awaitable[Any]:
        return until(lambda: client.call(method, request, target=target), bool)

    with suppress(TimeoutError):
        async with asyncio.timeout(GIVE_UP):
            for row in await until(lambda: _services(client), lambda rows: rows is not None):
                await gone(ServiceCalls(client, row.service.spec.name))
            secrets = await listed(
                lambda m: m.documents.ListDocuments, documents_pb2.ListDocumentsRequest(), "secrets"
            )
            for each in secrets.documents:
                await no_secret(client, each.document.name)
            networks = await listed(
                lambda m: m.control.ListNetworks, control_pb2.ListNetworksRequest(), "networks"
            )
            for network in networks.networks:
                if network.name not in PREDEFINED:
                    await no_network(client, network.name)
            volumes = await listed(
                lambda m: m.volumes.ListVolumes, volumes_pb2.ListVolumesRequest(), "volumes"
            )
            for row in volumes.volumes:
                await no_volume(client, row.volume.id or row.seen.name)


async def _still(testbed: Testbed, store: StoreObserver) -> Things:
    """What there is once nothing has changed for a few seconds."""
    last, since = things(testbed, store), time.monotonic()
    while time.monotonic() - since < 3.0:
        await asyncio.sleep(0.5)
        if (now := things(testbed, store)) != last:
            last, since = now, time.monotonic()
    return last


async def _compare(
    testbed: Testbed,
    store: StoreObserver,
    before: Things,
    recorder: Recorder,
    say: Callable[[str], None],
) -> None:
    """Wait until no more is there than was before the run; record what stays."""
    deadline = time.monotonic() + GIVE_UP
    while True:
        left = things(testbed, store) - before
        if not left or time.monotonic() > deadline:
            break
        await asyncio.sleep(1.0)
    for host, kind, name in sorted(left):
        say(f"left on {host}: {kind} {name}")
        recorder.add(Leftover(host, kind, name))
