# SPDX-License-Identifier: Apache-2.0
"""Simulated users: each lives its life again and again, from its own randomness, and removes what
it made. None gives up because a call failed; what it knows, it has read."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from orchestrator.model.convert import to_proto
from orchestrator.model.jobs import JobSpec
from orchestrator.model.specs import UpdatePolicy
from orchestrator.pb import (
    control_pb2,
    documents_pb2,
    networks_pb2,
    types_pb2,
    volumes_pb2,
)
from tests.bench import image
from tests.chaos.api import Api, Client, Failed
from tests.chaos.history import Call, Line
from tests.chaos.hosts import ORC, Answer, Testbed, command, send
from tests.chaos.observers import ContainerObserver
from tests.chaos.recorder import Recorder
from tests.chaos.storewatch import TAG

WEB = ("/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/bin")
STEADY, LABELLED, COUNTER = "steady", "labelled", "counter"
"""Services of the harness: one that no user changes, one whose labels are, one that counts."""
STEADY_PORT = 18080


@dataclass(slots=True)
class World:
    """What users share."""

    testbed: Testbed
    api: Api
    recorder: Recorder
    containers: ContainerObserver
    seed: int
    unlock_keys: list[str] = field(default_factory=list)
    """All that managers may have been locked with."""

    def learn_unlock_keys(self, printed: str) -> None:
        """Remember the keys that a command printed."""
        self.unlock_keys.extend(key for key in printed.split() if key not in self.unlock_keys)

    def client(self, name: str) -> tuple[Client, random.Random]:
        """A user's client and its randomness."""
        chance = random.Random(f"{self.seed}/{name}")
        return Client(name, self.api, self.recorder, random.Random(f"{self.seed}/{name}/calls")), (
            chance
        )


User = Callable[[World, str], Awaitable[None]]
"""Lives until it is cancelled, and leaves then what it has made."""


async def pause(chance: random.Random, most: float = 2.0) -> None:
    """Think for up to so many seconds."""
    await asyncio.sleep(chance.uniform(0.3, most))


def service_spec(name: str, tag: str, replicas: int) -> types_pb2.ServiceSpec:
    """A service of small web servers that end at once."""
    return types_pb2.ServiceSpec(
        name=name,
        labels={TAG: tag},
        replicas=replicas,
        task=types_pb2.TaskSpec(
            container=types_pb2.ContainerSpec(
                image=image.NAME, entrypoint=list(WEB), stop_signal="SIGKILL", stop_grace=5.0
            ),
            reservation=types_pb2.Resources(shares=16, memory=16 << 20),
            restart=types_pb2.RestartPolicy(delay=0.5),
        ),
        update=types_pb2.UpdatePolicy(parallelism=1, monitor=0.5),
    )


class ServiceCalls:
    """The calls of one user about one service, a register of specs."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name
        self._count = 0

    def tag(self) -> str:
        """The tag of the next write."""
        self._count += 1
        return f"{self.name}/{self._count}"

    async def read(self) -> types_pb2.Service | None:
        """The service; None if there is none."""

        def seen(reply: control_pb2.ListServicesReply) -> tuple[str, int, str]:
            return _seen(reply.services[0].service) if reply.services else ("", 0, "")

        try:
            reply = await self._client.call(
                lambda manager: manager.control.ListServices,
                control_pb2.ListServicesRequest(service=self.name),
                target=f"service/{self.name}",
                seen=seen,
            )
        except Failed as failure:
            if failure.status is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        found: types_pb2.Service | None = reply.services[0].service if reply.services else None
        return found

    async def create(self, spec: types_pb2.ServiceSpec) -> None:
        await self._client.call(
            lambda manager: manager.control.CreateService,
            control_pb2.CreateServiceRequest(spec=spec, no_resolve_image=True),
            target=f"service/{self.name}",
            tag=spec.labels[TAG],
            seen=_seen,
        )

    async def update(self, change: Callable[[types_pb2.ServiceSpec], None]) -> None:
        """Read, change, and write back if nothing else was written in between."""
        service = await self.read()
        if service is None or service.removed:
            return
        spec = types_pb2.ServiceSpec()
        spec.CopyFrom(service.spec)
        change(spec)
        spec.labels[TAG] = self.tag()
        await self._client.call(
            lambda manager: manager.control.UpdateService,
            control_pb2.UpdateServiceRequest(
                service=service.id,
                spec=spec,
                base=service.spec,
                revision=service.revision,
                no_resolve_image=True,
            ),
            target=f"service/{self.name}",
            tag=spec.labels[TAG],
            base=service.revision,
            seen=_seen,
        )

    async def remove(self) -> None:
        await self._client.call(
            lambda manager: manager.control.RemoveService,
            control_pb2.RemoveServiceRequest(service=self.name),
            target=f"service/{self.name}",
            seen=lambda reply: (reply.id, 0, ""),
        )


def _seen(service: types_pb2.Service) -> tuple[str, int, str]:
    return service.id, service.revision, service.spec.labels.get(TAG, "")


async def until(act: Callable[[], Awaitable[Any]], done: Callable[[Any], bool]) -> Any:
    """Repeat a call until it succeeds and its answer will do."""
    while True:
        try:
            answer = await act()
            if done(answer):
                return answer
        except Failed:
            pass
        await asyncio.sleep(0.5)


async def gone(service: ServiceCalls) -> None:
    """Remove a service, and wait until it is not found."""

    async def once() -> types_pb2.Service | None:
        found = await service.read()
        if found is not None and not found.removed:
            await service.remove()
            found = await service.read()
        return found

    await until(once, lambda found: found is None)


async def _try(call: Awaitable[Any]) -> bool:
    try:
        await call
    except Failed:
        return False
    return True


async def service_user(world: World, name: str) -> None:
    """Services that are created, scaled, updated and removed."""
    client, chance = world.client(name)
    life = 0
    while True:
        life += 1
        service = ServiceCalls(client, f"{name}-{life}")
        spec = service_spec(service.name, service.tag(), chance.randint(1, 4))
        if chance.random() < 0.3:
            spec.task.ports.add(published=0, target=80)
            spec.task.ports[0].published = 20000 + chance.randrange(1000)
        if chance.random() < 0.3:
            spec.update.order = types_pb2.UPDATE_START_FIRST
        await _try(service.create(spec))
        for _ in range(chance.randint(4, 10)):
            await pause(chance)
            await _try(chance.choice(_ACTS)(service, chance))
        await gone(service)


async def _look(service: ServiceCalls, chance: random.Random) -> None:
    await service.read()


async def _scale(service: ServiceCalls, chance: random.Random) -> None:
    replicas = chance.randint(1, 5)
    await service.update(lambda spec: setattr(spec, "replicas", replicas))


async def _roll(service: ServiceCalls, chance: random.Random) -> None:
    number = chance.randrange(1 << 30)

    def change(spec: types_pb2.ServiceSpec) -> None:
        del spec.task.container.env[:]
        spec.task.container.env.append(f"NUMBER={number}")

    await service.update(change)


_ACTS = (_look, _look, _scale, _scale, _roll)


async def job_user(world: World, name: str) -> None:
    """Jobs that run to their end."""
    client, chance = world.client(name)
    life = 0
    while True:
        life += 1
        job = ServiceCalls(client, f"{name}-{life}")
        spec = service_spec(job.name, job.tag(), chance.randint(2, 6))
        spec.mode = types_pb2.MODE_REPLICATED_JOB
        spec.job.CopyFrom(to_proto(JobSpec(parallelism=chance.randint(1, 3))))
        spec.update.CopyFrom(to_proto(UpdatePolicy()))
        del spec.task.container.entrypoint[:]
        seconds = chance.choice(("1", "2", "4"))
        spec.task.container.entrypoint.extend(("/bin/busybox", "sleep", seconds))
        spec.task.restart.condition = types_pb2.RESTART_ON_FAILURE
        await created(job, spec)
        await until(job.read, _has_ended)
        await gone(job)
        await pause(chance)


def _has_ended(service: types_pb2.Service | None) -> bool:
    return service is not None and any(
        run.state != types_pb2.JOB_RUNNING for run in service.job.runs
    )


async def created(service: ServiceCalls, spec: types_pb2.ServiceSpec) -> None:
    """Create a service, however often that has to be tried; each attempt has a tag of its own."""

    async def once() -> bool:
        if await service.read() is not None:
            return True
        spec.labels[TAG] = service.tag()
        await service.create(spec)
        return True

    await until(once, bool)


async def resource_user(world: World, name: str) -> None:
    """Networks, volumes and secrets, with a service that uses all of them."""
    client, chance = world.client(name)
    life = 0
    while True:
        life += 1
        own = f"{name}-{life}"
        secret = documents_pb2.CreateDocumentRequest(name=own, data=b"1")
        network = networks_pb2.CreateNetworkRequest(name=own)
        await _present(client, lambda m: m.documents.CreateDocument, secret, f"secret/{own}")
        await _present(client, lambda m: m.networks.CreateNetwork, network, f"network/{own}")
        service = ServiceCalls(client, own)
        spec = service_spec(own, service.tag(), 1)
        spec.task.networks.add(network=own)
        spec.task.container.secrets.add(source=own)
        spec.task.container.mounts.add(source=own, target="/data")
        await created(service, spec)
        for number in range(chance.randint(1, 3)):
            await pause(chance, 4.0)
            data = str(number + 2).encode()
            await _try(
                client.call(
                    lambda manager: manager.documents.UpdateDocument,
                    documents_pb2.UpdateDocumentRequest(document=own, data=data),
                    target=f"secret/{own}",
                )
            )
        await gone(service)
        await no_secret(client, own)
        await no_network(client, own)
        await no_volume(client, own)


async def no_secret(client: Client, name: str) -> None:
    """Remove a secret."""
    request = documents_pb2.RemoveDocumentRequest(document=name, when_unused=True)
    await _absent(client, lambda m: m.documents.RemoveDocument, request, f"secret/{name}")


async def no_network(client: Client, name: str) -> None:
    """Remove a network."""
    request = networks_pb2.RemoveNetworkRequest(network=name, when_unused=True)
    await _absent(client, lambda m: m.networks.RemoveNetwork, request, f"network/{name}")


async def no_volume(client: Client, name: str) -> None:
    """Remove a volume."""
    request = volumes_pb2.RemoveVolumeRequest(name=name)
    await _absent(client, lambda m: m.volumes.RemoveVolume, request, f"volume/{name}")


async def _present(client: Client, method: Callable[[Any], Any], request: Any, target: str) -> None:
    """Create something, however often that has to be tried."""
    while True:
        try:
            await client.call(method, request, target=target)
            return
        except Failed as failure:
            if failure.status is grpc.StatusCode.ALREADY_EXISTS:
                return
        await asyncio.sleep(0.5)


async def _absent(client: Client, method: Callable[[Any], Any], request: Any, target: str) -> None:
    """Remove something, however often that has to be tried."""
    while True:
        try:
            await client.call(method, request, target=target)
            return
        except Failed as failure:
            if failure.status is grpc.StatusCode.NOT_FOUND:
                return
        await asyncio.sleep(0.5)


async def orc(
    world: World, name: str, *words: str, target: str = "", tag: str = "", given: str = ""
) -> Answer:
    """Run an `orc` command, and record it. It finds a manager itself, and repeats what it may."""
    began = world.recorder.now()
    answer = await command((ORC, *words), 60.0, world.testbed.environment(), given)
    world.recorder.add(
        Call(
            client=name,
            manager="",
            method="UpdateService" if tag else f"Run {' '.join(words[:2])}",
            target=target,
            began=began,
            ended=world.recorder.now(),
            outcome="ok" if answer.status == 0 else "unknown",
            tag=tag,
            error="" if answer.status == 0 else answer.err.strip()[-600:],
        )
    )
    return answer


STACK = """
services:
  front:
    image: {image}
    entrypoint: ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/bin"]
    stop_signal: SIGKILL
    networks: [inner]
    deploy: {{replicas: {replicas}, resources: {{reservations: {{cpus: "0.02", memory: 16M}}}}}}
  back:
    image: {image}
    command: ["/bin/busybox", "sleep", "100000"]
    environment: {{NUMBER: "{number}"}}
    stop_signal: SIGKILL
    networks: [inner]
    deploy: {{replicas: 1, resources: {{reservations: {{cpus: "0.02", memory: 16M}}}}}}
networks:
  inner: {{}}
"""


async def stack_user(world: World, name: str) -> None:
    """A stack that is deployed, changed and removed by commands."""
    _, chance = world.client(name)
    file = world.testbed.folder / f"{name}.yml"
    while True:
        for _ in range(chance.randint(1, 3)):
            replicas, number = chance.randint(1, 3), chance.randrange(1 << 20)
            file.write_text(STACK.format(image=image.NAME, replicas=replicas, number=number))
            await orc(world, name, "stack", "deploy", "-d", "-c", str(file), name)
            await pause(chance, 6.0)
        while (await orc(world, name, "stack", "rm", name)).status != 0:
            await pause(chance)


async def command_user(world: World, name: str) -> None:
    """Commands that ask, label a service, and run programs in containers."""
    _, chance = world.client(name)
    number = 0
    while True:
        number += 1
        tag = f"{name}/{number}"
        act = chance.randrange(4)
        if act == 0:
            await orc(world, name, "service", "ps", STEADY)
        elif act == 1:
            await orc(world, name, "node", "ls")
        elif act == 2:
            words = ("service", "update", "-d", "--label-add", f"{TAG}={tag}", LABELLED)
            await orc(world, name, *words, target=f"service/{LABELLED}", tag=tag)
        else:
            await orc(world, name, "exec", f"{STEADY}.1", "/bin/busybox", "echo", tag)
        await pause(chance, 3.0)


COUNT = "n=0; while true; do echo $n; n=$((n+1)); /bin/busybox sleep 0.2; done"
"""What the counter's container prints: consecutive numbers."""


async def log_reader(world: World, name: str) -> None:
    """Follows the logs of a service that counts."""
    while True:
        process = await asyncio.create_subprocess_exec(
            *(ORC, "service", "logs", "-f", "-n", "0", COUNTER),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=world.testbed.environment(),
        )
        assert process.stdout is not None
        reading = f"{name}/{process.pid}"
        try:
            async for line in process.stdout:
                world.recorder.add(Line(world.recorder.now(), reading, line.decode().rstrip()))
        finally:
            send(process.pid, signal.SIGKILL)
            await process.wait()
        await asyncio.sleep(0.5)


async def operator(world: World, name: str) -> None:
    """Keeps the cluster in order: keys, database, backups, leader, nodes, locked managers."""
    _, chance = world.client(name)
    while True:
        await pause(chance, 10.0)
        await chance.choice(_UPKEEP)(world, name, chance)


async def _key(world: World, name: str, chance: random.Random) -> None:
    await orc(world, name, "cluster", "key", "rotate")


async def _store(world: World, name: str, chance: random.Random) -> None:
    await orc(world, name, "manager", "store", "compact")
    await orc(world, name, "manager", "store", "defrag", chance.choice(world.testbed.manager_hosts))


async def _backup(world: World, name: str, chance: random.Random) -> None:
    """Of the cluster to a file; and managers begin, or no longer, to do it on a schedule."""
    passphrase = world.testbed.folder / "passphrase"
    passphrase.write_text("of a run of chaos")
    flags = ("--passphrase-file", str(passphrase))
    await orc(world, name, "cluster", "backup", *flags, str(world.testbed.folder / "backup"))
    if chance.random() < 0.5:
        folder = "/run/orc-backups"
        await orc(world, name, "cluster", "backup", *flags, "--every", "10s", "--keep", "2", folder)
        await pause(chance, 20.0)
    await orc(world, name, "cluster", "backup", "--unschedule")


async def _leader(world: World, name: str, chance: random.Random) -> None:
    await orc(world, name, "manager", "step-down")


async def _drain(world: World, name: str, chance: random.Random) -> None:
    """A node is emptied for a while."""
    node = chance.choice(world.testbed.node_hosts)
    await orc(world, name, "node", "update", "-d", "--availability", "drain", node)
    try:
        await pause(chance, 8.0)
    finally:
        active = ("node", "update", "--availability", "active", node)
        while (await asyncio.shield(orc(world, name, *active))).status != 0:
            await pause(chance)


async def _lock(world: World, name: str, chance: random.Random) -> None:
    """Managers that start in between wait for the unlock key."""
    locked = await orc(world, name, "cluster", "lock")
    # It is printed before managers use it, so it is known also if the command fails.
    world.learn_unlock_keys(locked.out)
    while (shown := await orc(world, name, "cluster", "unlock-key")).status != 0:
        if _UNLOCKED in shown.err:
            return
        await pause(chance)
    world.learn_unlock_keys(shown.out)
    await pause(chance, 15.0)
    while (off := await orc(world, name, "cluster", "lock", "--off")).status != 0:
        if _UNLOCKED in off.err:
            return
        await pause(chance)


_UNLOCKED = "is not locked"
"""What `orc` says of a cluster that is not locked."""


_UPKEEP = (_key, _store, _backup, _leader, _drain, _lock)


async def unlocker(world: World) -> None:
    """Unlocks managers that have started locked. One that was down while the key was replaced needs
    the former one."""
    while True:
        await asyncio.sleep(4.0)
        for key in world.unlock_keys[-4:]:
            await orc(world, "unlocker", "cluster", "unlock", given=f"{key}\n")


USERS: tuple[tuple[str, User], ...] = (
    ("ann", service_user),
    ("ben", service_user),
    ("cleo", job_user),
    ("dan", resource_user),
    ("eve", command_user),
    ("flo", stack_user),
    ("gus", log_reader),
    ("hal", operator),
)
