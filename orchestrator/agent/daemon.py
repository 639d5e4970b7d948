# SPDX-License-Identifier: Apache-2.0
"""The agent process: its components, their start order, and shutdown.

Everything with a lifetime is entered on one exit stack, and every loop runs in one TaskGroup.
SIGTERM and SIGINT cancel the group; the process exits with status 0 and containers continue. An
unsuitable host raises `AgentFailure`, one line. An unexpected exception in a loop is logged with
its traceback and exits with status 1, so that the supervisor restarts the agent.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.agent.builds.build_cgroup import BuildGroups
from orchestrator.agent.builds.builder import Builder
from orchestrator.agent.builds.sandbox import Sandboxes
from orchestrator.agent.diagnostics.path_mtu import PathMtus
from orchestrator.agent.diagnostics.peer_tests import PeerTests
from orchestrator.agent.diagnostics.support_facts import SupportFacts
from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_gc import ImageGarbageCollector, disk_of
from orchestrator.agent.images.pulls import ImagePuller
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer.registry import Registry
from orchestrator.agent.logs.log_drivers import LogDrivers
from orchestrator.agent.logs.retained_logs import RetainedLogs
from orchestrator.agent.netplugins.composite import ThirdPartyNetworks
from orchestrator.agent.network.build_network import BUILD_NETWORK, BuildNetwork
from orchestrator.agent.network.encryption import Encryption
from orchestrator.agent.network.endpoint_table import EndpointTable
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.load_balancer import KernelLoadBalancer
from orchestrator.agent.network.name_server import NameServerProcess
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.agent.network.reconciler import NetworkReconciler, exposure_of
from orchestrator.agent.network.spoofing import SpoofingMonitor
from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.resources.cgroups import Cgroups, detect
from orchestrator.agent.session import node_description
from orchestrator.agent.session.channels import Channels, serve_blobs
from orchestrator.agent.session.credentials import NodeCertificate, RevocationStore
from orchestrator.agent.session.leaving import leave
from orchestrator.agent.session.session import Dialer, Node, Session
from orchestrator.agent.settings import AgentFailure, Settings
from orchestrator.agent.statedb import StateDb, StateDbError
from orchestrator.agent.streams import container_export, image_requests
from orchestrator.agent.streams.container_copy import ContainerCopies
from orchestrator.agent.streams.exec_attach import ExecAttach
from orchestrator.agent.streams.host_role import HostRole
from orchestrator.agent.streams.log_streams import LogStreams
from orchestrator.agent.streams.tunnels import Tunnels
from orchestrator.agent.tasks.backends import Backends
from orchestrator.agent.tasks.lifecycle_hooks import Hooks
from orchestrator.agent.tasks.probes import Probes
from orchestrator.agent.tasks.secret_files import FileError, SecretFiles
from orchestrator.agent.tasks.status_reporter import StatusReporter
from orchestrator.agent.tasks.worker import Worker, watch_connection
from orchestrator.agent.telemetry import agent_metrics
from orchestrator.agent.telemetry.disk_usage import DiskUsage
from orchestrator.agent.telemetry.network_flows import NetworkFlows
from orchestrator.agent.telemetry.resource_usage import ResourceUsage, UsageHistory
from orchestrator.agent.volumes.plugin_driver import VolumePlugins
from orchestrator.agent.volumes.task_volumes import TaskVolumes
from orchestrator.agent.volumes.volume_requests import (
    VOLUME_REQUESTS,
    VolumeListing,
    VolumeRequests,
)
from orchestrator.agent.volumes.volume_store import VolumeStore
from orchestrator.daemon.process import Supervisor
from orchestrator.identity.certificates import TlsFiles
from orchestrator.identity.host_identity import NodeIdentity, NoIdentity, read_node
from orchestrator.identity.own_address import record_address
from orchestrator.identity.revocation import Revocations
from orchestrator.linux.host_addresses import host_addresses
from orchestrator.linux.processes import boot_id
from orchestrator.model import nodes
from orchestrator.model.networks import CHAINS
from orchestrator.model.tasks import Task
from orchestrator.tracing.configuration import tracer
from orchestrator.tracing.spans import TracingError
from orchestrator.web.https import CannotListen

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Run the agent until a signal ends it. Raises AgentFailure; exits with 1 on any other
    exception."""
    try:
        asyncio.run(_until_signalled(settings))
    except AgentFailure:
        raise
    except Exception as error:
        if (failure := _failure_in(error)) is not None:
            raise failure from None
        log.critical("agent failed unexpectedly; containers continue", exc_info=error)
        raise SystemExit(1) from None


def _failure_in(error: BaseException) -> AgentFailure | None:
    """The AgentFailure inside nested exception groups, if it is the only exception."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, AgentFailure) else None


async def _until_signalled(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    signalled = False
    owner = asyncio.current_task()
    assert owner is not None

    def end() -> None:
        nonlocal signalled
        if not signalled:
            signalled = True
            owner.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        await run(settings)
    except asyncio.CancelledError:
        if not signalled:
            raise
        log.info(
            "agent stopped by a signal; containers continue",
            extra={"node": settings.identity.node_id},
        )


async def run(settings: Settings) -> None:
    """Run this host's agent until cancelled. Raises AgentFailure."""
    identity, data = settings.identity, settings.data_dir
    supervisor = Supervisor.taken()
    rng = random.Random()
    async with AsyncExitStack() as stack:
        try:
            traces = tracer("orc-agent", identity.node_id, settings.otlp_endpoint)
            stack.callback(traces.close)
            db = stack.enter_context(StateDb(data / "state.db"))
            store = await stack.enter_async_context(
                ImageStore(data / "images", max_layer=settings.max_layer)
            )
            runtime = await stack.enter_async_context(
                CrunRuntime(
                    data / "containers",
                    settings.run_dir,
                    cgroup_parent=settings.cgroup_parent,
                    runtime=settings.runtime,
                    cdi_folders=settings.cdi_folders,
                )
            )
            network = await stack.enter_async_context(
                NodeNetwork(data / "network", settings.run_dir)
            )
            names = await stack.enter_async_context(
                NameServerProcess(
                    settings.run_dir,
                    lost=lambda: endpoints.resync(names),
                    clients=lambda: worker.clients(),
                    client=lambda task_id: worker.client(task_id),
                    places=lambda: third_party.with_own.places(),
                )
            )
            revocations = Revocations()
            revocation_store = RevocationStore(db, revocations, time.time)
            server, blob_port = await serve_blobs(settings, store, revocations)
            stack.push_async_callback(server.stop, None)
            record_address(data, identity.address, host_addresses())
            task_files = SecretFiles.in_memory(settings.run_dir / "documents")
        except (
            TracingError,
            StateDbError,
            ImageError,
            RuntimeFailure,
            NetworkError,
            FileError,
        ) as error:
            raise AgentFailure(str(error)) from error
        wake = asyncio.Event()
        db.wake = wake.set

        def observed() -> None:
            wake.set()
            endpoints.resync(names)

        reporter = StatusReporter(observed, names.mark_client)
        load_balancer = KernelLoadBalancer(network)
        endpoints = EndpointTable(
            db,
            (load_balancer, names),
            wake.set,
            identity.node_id,
        )
        encryption = Encryption(network, identity.address, settings.key_age, wake.set)
        try:
            await encryption.read_keys()
        except NetworkError as error:
            raise AgentFailure(str(error)) from error
        third_party = ThirdPartyNetworks(data / "network-plugins", socket.gethostname(), network)
        networks = NetworkReconciler(
            third_party.with_own,
            identity.address,
            encryption=encryption,
            held=lambda: worker.holders() | build_network.attached,
            running=lambda word: worker.running(word),
            unordered=(BUILD_NETWORK,),
            exposure=lambda nodes: exposure_of(
                nodes,
                managers=db.managers() or identity.managers,
                ports=(blob_port, metrics_port),
                access=db.container_access(),
                guests=third_party.addresses(),
                checked=third_party.checked(),
            ),
        )

        spoofing = SpoofingMonitor(network.forgeries, networks.applied, time.monotonic)

        def expose(access: Sequence[str]) -> None:
            db.put_container_access(access)
            networks.exposure_changed()

        build_network = BuildNetwork(
            network,
            settings.run_dir / "netns",
            identity.address,
            taken=lambda: (*node_description.routes(), *networks.subnets()),
        )
        path_mtus = PathMtus(identity.address, networks.peers, networks.plain, wake.set)
        retained_logs = RetainedLogs(data / "logs")
        log_drivers = stack.enter_context(
            LogDrivers(
                data / "log-drivers",
                data / "json-logs",
                settings.logging,
                node=socket.gethostname(),
            )
        )
        channels = Channels(settings)
        volumes = VolumeStore(
            data / "volumes",
            lambda: nodes.Node(id=identity.node_id, description=description),
            VolumePlugins(),
        )
        listing = stack.enter_context(VolumeListing(volumes))
        registry = Registry(settings.run_dir)
        images = ImagePuller(
            store,
            channels.node,
            f"{identity.address}:{blob_port}",
            rng,
            registry,
            lambda: dialer.channel,
        )
        backends = Backends(
            runtime=runtime,
            images=images,
            network=networks,
            volumes=TaskVolumes(volumes, images, lambda: worker.runners.values()),
            files=task_files,
            probes=Probes(runtime.access),
            hooks=Hooks(runtime.access),
            logs=retained_logs,
            log_drivers=log_drivers,
            boot_id=boot_id(),
            hostname=socket.gethostname(),
            tracer=traces,
        )
        worker = Worker(backends, db, reporter)
        flows = stack.enter_context(
            NetworkFlows(worker.runners, settings.run_dir / "bytes-counted")
        )
        exec_attach = await stack.enter_async_context(
            ExecAttach(worker.runners, runtime.access, runtime.wait)
        )
        copies = ContainerCopies(worker.runners, runtime.access, partial(_layers, images))
        usage = ResourceUsage(worker.runners, runtime.access)
        image_handler = image_requests.ImageRequests(
            store=store,
            images=images,
            registry=registry,
            runners=worker.runners,
            scratch=data / "image-work",
        )
        exports = container_export.ContainerExports(
            store=store, runners=worker.runners, roots=runtime, scratch=data / "container-files"
        )
        await exports.recover()
        uploads = data / "uploads"
        builder = Builder(
            store,
            data / "build",
            settings.run_dir / "build-secrets",
            images.base,
            await stack.enter_async_context(Sandboxes(build_network)),
            BuildGroups(Cgroups(detect(), settings.cgroup_parent), settings.build_memory),
        )
        builds = image_requests.BuildRequests(builder, uploads)
        history = UsageHistory(worker.runners, runtime.access)
        disk_usage = DiskUsage(
            store=store, builder=builder, runners=worker.runners, roots=runtime, data=data
        )
        image_gc = ImageGarbageCollector(
            store,
            settings.marks,
            image_handler.needed,
            clock=time.time,
            disk=partial(disk_of, data / "images"),
            spare=partial(builder.prune, everything=True),
        )
        peer_tests = PeerTests(identity.address, network, networks, path_mtus)
        tunnels = Tunnels(
            runners=worker.runners,
            images=store,
            scratch=uploads,
            handlers={
                "logs": LogStreams(
                    worker.runners,
                    lambda task_id: (runtime.log_path(task_id), retained_logs.path(task_id)),
                    config=runtime.logging,
                ).send,
                "exec": exec_attach.exec,
                "attach": exec_attach.attach,
                "resume": exec_attach.resume,
                "get_exec": exec_attach.get_exec,
                "copy_from": copies.copy_from,
                "copy_to": copies.copy_to,
                "top": usage.top,
                "stats": usage.stats,
            }
            | dict.fromkeys(VOLUME_REQUESTS, VolumeRequests(volumes, listing).serve)
            | dict.fromkeys(image_requests.IMAGE_REQUESTS, image_handler.serve)
            | dict.fromkeys(container_export.EXPORT_REQUESTS, exports.serve)
            | dict.fromkeys(image_requests.BUILD_REQUESTS, builds.serve)
            | {
                "disk_usage": disk_usage.serve,
                "history": history.serve,
                "flows": flows.serve,
                "diagnosis": peer_tests.serve,
                "host_role": HostRole(identity.address, settings.manager_command).serve,
                "support": SupportFacts(worker.runners, peer_tests.drifts).serve,
            },
        )
        program = await node_description.runtime_version(settings.runtime)
        metric_sources = agent_metrics.MetricSources(
            runners=worker.runners,
            access=runtime.access,
            holdings=partial(agent_metrics.holdings, store, volumes, networks, endpoints),
            connected=lambda: bool(dialer.connected_to),
            runtime=program,
            dropped=lambda: spoofing.dropped,
            tallies=log_drivers.tallies,
        )
        try:
            metrics_port = await stack.enter_async_context(
                agent_metrics.serving(settings, metric_sources, db.scrape_digest, revocations)
            )
        except CannotListen as error:
            raise AgentFailure(f"{error}; --metrics-port 0 takes any free port") from error
        description = node_description.describe(
            address=identity.address,
            blob_port=blob_port,
            metrics_port=metrics_port,
            cgroup=detect().mode.value,
            runtime=program,
            labels=settings.labels,
            offered=settings.offered,
        )

        def node() -> Node:
            here = replace(
                description,
                routes=node_description.routes(),
                features=(*description.features, *node_description.registry_features()),
                network_features=(*encryption.features, CHAINS),
            )
            return Node(
                lambda: replace(
                    third_party.described(here),
                    generic_resources=dict(settings.generic),
                    volume_drivers=dict(volumes.plugins.scopes),
                    path_mtu=path_mtus.least,
                    trouble="; ".join(
                        filter(None, (db.trouble, load_balancer.trouble, worker.orphans.text))
                    ),
                    tunnel_keys=encryption.keys,
                ),
                backends.boot_id,
                store.inventory,
            )

        dialer = Dialer(
            db=db,
            joined_by=lambda: _managers(identity, data),
            dial=channels.manager,
            dial_one_of_several=channels.one_of_several_managers,
            new_session=lambda: Session(
                node(),
                worker=worker,
                endpoints=endpoints,
                reporter=reporter,
                wake=wake,
                open_tunnel=tunnels.open,
                remove_images=image_handler.remove,
                scrapable=db.put_scrape_digest,
                expose=expose,
                revoked=revocation_store.take,
                trust=lambda order: certificate.trust(order),
            ),
            rng=rng,
            serial=lambda: certificate.serial,
        )
        certificate = NodeCertificate(TlsFiles.of(data, "node"), lambda: dialer.channel)
        log.info(
            "agent started",
            extra={"node": identity.node_id, "address": identity.address, "blob_port": blob_port},
        )
        async with worker, asyncio.TaskGroup() as group:
            group.create_task(supervisor.attend(), name="supervisor")
            group.create_task(db.run(), name="state file")
            group.create_task(history.run(), name="history")
            group.create_task(networks.run(), name="networks")
            group.create_task(spoofing.run(), name="source checks")
            group.create_task(path_mtus.run(), name="path MTUs")
            group.create_task(endpoints.run(), name="endpoints")
            group.create_task(
                watch_connection(
                    lambda: bool(dialer.connected_to), worker.runners.values, time.monotonic
                ),
                name="manager connection",
            )
            group.create_task(_report_images(store, dialer), name="images")
            group.create_task(builder.recover(), name="builds")
            group.create_task(image_gc.run(), name="image garbage collection")
            group.create_task(volumes.run(), name="volumes")
            group.create_task(_wake_for(volumes.changed, wake), name="volume drivers")
            group.create_task(third_party.run(wake.set), name="third-party networks")
            group.create_task(
                _dial(dialer, partial(leave, data, db, worker, endpoints, networks)),
                name="dialer",
            )
            group.create_task(certificate.run(rng.random()), name="certificate")


def _managers(identity: NodeIdentity, data_dir: Path) -> Sequence[str]:
    """The managers in the node's identity as it is now: 'orc cluster reconnect' changes them."""
    try:
        return read_node(data_dir).managers
    except NoIdentity:
        return identity.managers


async def _dial(dialer: Dialer, leave: Callable[[str], Coroutine[None, None, None]]) -> None:
    await leave(await dialer.run())


async def _layers(images: ImagePuller, task: Task) -> Sequence[Path]:
    """The layers of a task's image, lowest first."""
    return (await images.prepare(task.spec.container.image, task.image_digest, ())).layers


async def _report_images(store: ImageStore, dialer: Dialer) -> None:
    while True:
        await store.changed.wait()
        store.changed.clear()
        dialer.report_images()


async def _wake_for(changed: asyncio.Event, wake: asyncio.Event) -> None:
    while True:
        await changed.wait()
        changed.clear()
        wake.set()
