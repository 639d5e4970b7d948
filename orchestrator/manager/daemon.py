# SPDX-License-Identifier: Apache-2.0
"""The manager's process: wires store, cache, servers and, while it leads, the planning loop."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from orchestrator import __version__
from orchestrator.backups.archive import Archive
from orchestrator.daemon.background import background
from orchestrator.daemon.process import Supervisor
from orchestrator.identity import ca
from orchestrator.identity.authority import Authority, CannotSign, read_external
from orchestrator.identity.bootstrap import new_id
from orchestrator.identity.certificates import TlsFiles, issuer_key_id
from orchestrator.identity.enrolment import choose_peer_port, enroll
from orchestrator.identity.host_identity import (
    ManagerIdentity,
    check_certificates,
    read_manager,
    remember,
    retire_manager,
)
from orchestrator.identity.join import JoinRefused
from orchestrator.identity.join_tokens import new_secret
from orchestrator.identity.key_files import CA_KEY, EXTERNAL_KEY, KeyFiles
from orchestrator.identity.own_address import AddressLost, current_address, record_address
from orchestrator.identity.revocation import Revocations
from orchestrator.identity.roles import RoleGuard
from orchestrator.identity.sealing import unseal
from orchestrator.identity.tls import join_credentials, server_credentials
from orchestrator.linux.host_addresses import host_addresses
from orchestrator.manager.api import add_control_services
from orchestrator.manager.api.client_calls import ClientCalls
from orchestrator.manager.api.managers import add_manager_services
from orchestrator.manager.api.security import SecurityApi
from orchestrator.manager.api.tracing_interceptor import TracingInterceptor
from orchestrator.manager.audit.audit_interceptor import AuditInterceptor
from orchestrator.manager.audit.trail import FILE_BYTES, FILES, AuditTrail
from orchestrator.manager.backup.scheduled import ScheduledBackups
from orchestrator.manager.backup.store_dump import dump
from orchestrator.manager.cluster.enrolment import Enrolment, promote_learners, serving_endpoints
from orchestrator.manager.cluster.manager_calls import KEYS_PURPOSE, ManagerChannels
from orchestrator.manager.cluster.peering import peering_of
from orchestrator.manager.cluster.registration import OwnFacts, Presence, register, was_removed
from orchestrator.manager.cluster.schema import SchemaMigrator, UnknownSchema, check_schema
from orchestrator.manager.cluster.version_skew import refusal_to_start
from orchestrator.manager.dispatch import dispatcher
from orchestrator.manager.dispatch.dispatcher import Dispatcher
from orchestrator.manager.dispatch.image_sources import ImageSources
from orchestrator.manager.dispatch.pull_turns import PullTurns
from orchestrator.manager.dispatch.relay import Relay, RelayService
from orchestrator.manager.dispatch.secret_delivery import SecretDelivery
from orchestrator.manager.dispatch.session_records import SessionRecords
from orchestrator.manager.dispatch.task_readings import TaskReadings
from orchestrator.manager.dispatch.tunnels import Tunnels
from orchestrator.manager.event_loop import LivenessClock, freezing_survivors, offload
from orchestrator.manager.leader.agent_reports import RejectedClaims, ReportBuffer
from orchestrator.manager.leader.autoscaler import Autoscaler
from orchestrator.manager.leader.election import Deposed, Election, LeadershipLost, Term
from orchestrator.manager.leader.planning_loop import PlanningLoop
from orchestrator.manager.leader.prometheus_queries import ask_prometheus
from orchestrator.manager.leader.report_commit import ReportCommitter
from orchestrator.manager.operations.administration.managers import ManagerOperations
from orchestrator.manager.operations.administration.security import SecurityOperations
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.manager.operations.resources.deferred_removal import DeferredRemoval
from orchestrator.manager.operations.resources.networks import create_network
from orchestrator.manager.planning.networking.addresses import AddressRefused, NewNetwork, complete
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import Quarantined
from orchestrator.manager.security.ca_rotation import CaFollower
from orchestrator.manager.security.certificates import (
    CertificateAuthority,
    CertificateRegistry,
    CertificateRenewal,
    maintain_own_certificate,
)
from orchestrator.manager.security.document_store import DocumentStore
from orchestrator.manager.security.joining import JoinService
from orchestrator.manager.security.key_check import WrongKey, check_key
from orchestrator.manager.security.key_ring import KeyRing
from orchestrator.manager.security.locked_manager import wait_for_unlock
from orchestrator.manager.security.vault import CA_PURPOSE, Vault, VaultError
from orchestrator.manager.store.cache import Cache, log_undecodable
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.etcd import EtcdKv, EtcdRenewal
from orchestrator.manager.store.etcd_member import (
    QUOTA,
    EtcdMember,
    MemberRemoved,
    MembersChanged,
)
from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.instrumented_kv import InstrumentedKv, InstrumentedRenewal
from orchestrator.manager.store.keys import LEADER
from orchestrator.manager.store.kv import Conflict, Kv
from orchestrator.manager.store.lease_renewal import Renewal
from orchestrator.manager.telemetry import metrics
from orchestrator.manager.telemetry.etcd_collector import EtcdCollector
from orchestrator.manager.telemetry.event_log import EventLog
from orchestrator.manager.telemetry.task_traces import TaskSpans
from orchestrator.manager.web.application import serve_web
from orchestrator.model.administration.access import KeyRotation
from orchestrator.model.compatibility.manager_features import MANAGER_FEATURES
from orchestrator.model.networks import BRIDGE
from orchestrator.model.objects import Cluster, Network
from orchestrator.model.specs import BRIDGE_NETWORK, DEFAULT_NETWORK
from orchestrator.pb import (
    certificates_pb2_grpc,
    dispatch_pb2_grpc,
    identity_pb2_grpc,
    images_pb2_grpc,
    managers_pb2,
    security_pb2_grpc,
)
from orchestrator.tracing.configuration import tracer
from orchestrator.tracing.spans import OFF, Tracer, current
from orchestrator.web.https import CannotListen
from orchestrator.web.scrape import process_registry

log = logging.getLogger(__name__)

DEFAULT_VNI = 4096

LONE_LEASE = 10.0
"""Seconds that the leases of a manager last while there is no other one: a short lease only makes
another one take over sooner, and is lost under load."""
DEFERENCE = 1.0
"""Seconds that a leader that was asked to step down leaves to the other managers."""

_SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    # Agents and clients send keepalive pings often enough, and agents send heartbeats; with many of
    # them, pinging each as often would cost too much.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A restarted manager must get its ports back at once, and never share them.
    ("grpc.so_reuseport", 0),
]


class CannotServe(Exception):
    """The manager cannot start; one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """Settings of `orc manager`."""

    data_dir: Path
    etcd_endpoints: tuple[str, ...] = ()
    etcd_tls: EtcdTls | None = None
    node_timeout: float | None = None
    """Seconds of silence after which a node is down; None: as stored (initially 5)."""
    otlp_endpoint: str = ""
    """Where traces are sent; empty: as OpenTelemetry's environment variables say, otherwise
    nowhere."""
    lease: float = 3.0
    """Seconds from a leader's death until the next one is elected."""
    discard_secrets: bool = False
    """Start even if the store holds secrets that are sealed with another key."""
    audit_file_bytes: int = FILE_BYTES
    audit_files: int = FILES
    """Size of one file of the audit trail, and number of files kept."""
    etcd_quota: int = QUOTA
    """Bytes of the database at which its etcd member refuses writes."""


@asynccontextmanager
async def _store(
    settings: ManagerSettings, identity: ManagerIdentity
) -> AsyncIterator[tuple[Kv, Renewal, EtcdMember | None]]:
    """The store, what renews leases outside of the event loop, and the manager's own member of
    etcd; None with an external etcd."""
    async with AsyncExitStack() as stack:
        endpoints, tls = settings.etcd_endpoints, settings.etcd_tls
        member: EtcdMember | None = None
        if endpoints:
            kv = EtcdKv(endpoints, tls)
        else:
            peering = peering_of(settings.data_dir, identity) if identity.peer_port else None
            member = await stack.enter_async_context(
                EtcdMember(settings.data_dir / "etcd", peering=peering, quota=settings.etcd_quota)
            )
            endpoints, tls = member.endpoints, member.tls
            kv = EtcdKv(endpoints, tls, max_txn_ops=member.max_txn_ops)
        renewal = stack.enter_context(EtcdRenewal(endpoints, tls))
        yield await stack.enter_async_context(kv), renewal, member


async def _initialise_cluster(
    kv: Kv,
    cache: Cache,
    identity: ManagerIdentity,
    settings: ManagerSettings,
    vault: Vault,
    auth_key: str,
) -> None:
    """Initialise a new cluster, or update changed settings. `auth_key` is for requests to an
    external CA. Raises CannotServe."""
    certificate = (settings.data_dir / "ca.pem").read_text()
    cluster = cache.view.cluster
    now = time.time()
    if cluster is not None and cluster.id != identity.cluster_id:
        raise CannotServe(
            f"the store holds the cluster {cluster.id}, but {settings.data_dir} belongs to "
            f"{identity.cluster_id}; check --etcd-endpoints and --data-dir"
        )
    try:
        if not settings.discard_secrets:
            await check_key(kv, cache.view, vault, settings.data_dir)
    except WrongKey as error:
        raise CannotServe(str(error)) from None
    vault.save()
    changes: list[Change] = []
    if any(each.kind == "cluster" for each in cache.view.quarantined.values()):
        pass  # It exists; only a manager that can decode it may change it.
    elif cluster is None:
        fresh = Cluster(
            id=identity.cluster_id,
            created_at=now,
            ca_certificate=certificate,
            worker_token=identity.worker_token,
            manager_token=identity.manager_token,
            node_timeout=settings.node_timeout or Cluster().node_timeout,
            network_cidr=identity.network_cidr,
            scrape_token=new_secret(),
            certificate_lifetime=identity.certificate_lifetime,
            secrets_key_id=vault.key_id,
            external_ca=replace(
                read_external(settings.data_dir),
                auth_key=vault.seal(auth_key, CA_PURPOSE) if auth_key else "",
            ),
        )
        network = Network(
            id=new_id(),
            name=DEFAULT_NETWORK,
            created_at=now,
            subnet=identity.network_cidr,
            vni=DEFAULT_VNI,
            attachable=True,
        )
        changes = [Change(None, fresh), Change(None, network)]
    else:
        after = replace(
            cluster,
            node_timeout=settings.node_timeout or cluster.node_timeout,
            # A cluster of an earlier version has none.
            scrape_token=cluster.scrape_token or new_secret(),
            secrets_key_id=vault.key_id,
        )
        if cluster.secrets_key_id and vault.key_id != cluster.secrets_key_id:
            # Its key is lost, and with it what was sealed.
            external = replace(cluster.external_ca, auth_key="")
            after = replace(after, key_rotation=KeyRotation(), unlock_key="", external_ca=external)
        changes = [Change(cluster, after)] if after != cluster else []
    if changes:
        try:
            await cache.wait_for(await commit(kv, changes))
        except Conflict:
            log.info("another manager initialised the cluster concurrently")
    if cache.view.network_by_name(BRIDGE_NETWORK) is None:
        bridge = Network(id=new_id(), name=BRIDGE_NETWORK, created_at=now, driver=BRIDGE)
        try:
            await create_network(kv, cache, lambda view: complete(view, NewNetwork(bridge)))
        except Conflict:
            log.info("another manager created network %s concurrently", BRIDGE_NETWORK)
        except AddressRefused as refusal:
            log.warning("cannot create network %s: %s", BRIDGE_NETWORK, refusal)


class Manager:
    """A running manager."""

    def __init__(
        self,
        settings: ManagerSettings,
        identity: ManagerIdentity,
        kv: Kv,
        supervisor: Supervisor,
        tracer: Tracer = OFF,
        renewal: Renewal | None = None,
        member: EtcdMember | None = None,
        keys: KeyFiles | None = None,
    ) -> None:
        """`renewal` renews the manager's leases outside of the event loop; without it, the event
        loop does. `member` is the etcd member that this manager runs, if it does. `keys` are its
        key files, unlocked; read if not given."""
        self._member = member
        self._keys = keys or KeyFiles(settings.data_dir)
        self._settings = settings
        self._identity = identity
        self._supervisor = supervisor
        self._registry = process_registry()
        times = metrics.StoreMetrics(self._registry)
        self._tracer = tracer
        self._kv = kv = InstrumentedKv(
            kv, _store_timer(times, tracer), times.failed, lambda ops: self.cache.admit(ops)
        )
        self._renewal = InstrumentedRenewal(renewal, times.took, times.failed) if renewal else None
        self.cache = Cache(kv)
        self._latencies = metrics.TaskMetrics(self.cache, self._registry)
        self._spans = TaskSpans(self.cache, tracer, lambda: bool(self._leader))
        self._listening = LivenessClock()
        self.report_buffer = ReportBuffer(time.monotonic, self._listening)
        self._events = EventLog(self.cache, time.time)
        self._planning = metrics.PlanningMetrics(self._registry, self._events)
        self.cache.on_undecodable = self._undecodable
        self._tunnels = Tunnels(new_id)
        self._leader = ""
        self._term = 0
        """Store revision at which this manager's term began; 0 while it does not lead."""
        self.serving = asyncio.Event()
        """Set once the ports are open."""
        self._address = f"{identity.address}:{identity.port}"
        try:
            self._vault = Vault.of(self._keys)
        except VaultError as error:
            raise CannotServe(str(error)) from error
        self._tls = TlsFiles.of(settings.data_dir, "manager")
        self._authority = CertificateAuthority(
            Authority.of_host(self._keys),
            lambda: self.cache.view,
            time.time,
        )
        self._channels = ManagerChannels(self._tls, lambda: self.cache.view)
        self._key_ring = KeyRing(
            kv,
            self.cache,
            self._vault,
            self._keys,
            identity.manager_id,
            self._fetch_data_keys,
            lambda: bool(self._leader),
        )
        self._renew = asyncio.Event()
        self._ca_follower = CaFollower(
            kv,
            self.cache,
            self._vault,
            self._tls,
            self._keys,
            self._authority,
            identity.manager_id,
            restart_etcd=self._restart_etcd,
            leads=lambda: bool(self._leader),
            now=time.time,
            renew=self._renew,
            end_sessions=lambda signer, renewed: self._dispatcher.end_outdated(signer, renewed),
        )
        self._revocations = Revocations()
        self._revocations.refused = metrics.RevocationMetrics(self._registry).refused
        self._audit = AuditTrail(
            settings.data_dir / "audit",
            file_bytes=settings.audit_file_bytes,
            files=settings.audit_files,
        )
        self._etcd_metrics = EtcdCollector(member, self._registry) if member else None
        metrics.AuditMetrics(self._registry).count(self._audit)
        self._records = CertificateRegistry(kv, self.cache, self._revocations, time.time)
        self._presence = Presence(
            kv,
            self.cache,
            identity.manager_id,
            now=time.time,
            renewal=self._renewal,
            extended_ttl=self._lone_lease,
        )
        self._session_records = SessionRecords(
            kv,
            self.cache,
            self._presence,
            lambda: self.report_buffer.heard,
        )
        self._dispatcher = Dispatcher(
            self.cache,
            self.report_buffer,
            self._tunnels,
            SecretDelivery(self.cache, DocumentStore(kv, self._vault)),
            self._session_records,
            self._managers,
            new_id,
            random.Random(),
            tracer,
        )
        self._pulls = PullTurns(
            self.cache, identity.manager_id, self._leading_manager, self._channels.channel
        )
        self._tunnels.remote = Relay(self._dispatcher.locate, self._channels.channel).open

    async def _leading_manager(self) -> str | None:
        """The id of the manager that leads. Raises StoreError."""
        entry = await self._kv.get(LEADER)
        return entry.value.decode() if entry is not None else None

    def _undecodable(self, found: Quarantined) -> None:
        log_undecodable(found)
        self._events.undecodable(found)

    def _lone_lease(self) -> float:
        """Seconds that leases last at least."""
        return LONE_LEASE if len(self.cache.view.managers) < 2 else 0.0

    def _managers(self) -> list[str]:
        """HOST:PORT of all managers."""
        return serving_endpoints(self.cache.view) or [self._address]

    async def _restart_etcd(self) -> None:
        if self._member is not None:
            await self._member.restart()

    async def _fetch_data_keys(self, ids: Collection[str]) -> list[bytes]:
        """Data keys by id, from other managers."""
        own = self._identity.manager_id

        def unsealed(reply: bytes) -> list[bytes]:
            texts = json.loads(unseal(self._tls.pair.read().key, reply, KEYS_PURPOSE + own))
            return [base64.b64decode(text) for text in texts]

        return await self._channels.data_keys(ids, own, unsealed)

    def _cluster_keys(self) -> dict[str, str]:
        """The keys that a joining manager gets."""
        return {"ca_key": self._keys.text(CA_KEY) or "", "cluster_key": self._vault.text()}

    async def run(self) -> None:
        """Serve until cancelled. Raises CannotServe."""
        with freezing_survivors():
            await self._run()

    async def _run(self) -> None:
        with self._audit.running():
            await self._run_components()

    async def _run_components(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(metrics.EventLoopLag(self._registry).measure())
            group.create_task(self.cache.follow())
            await self.cache.wait_for(1)
            try:
                await check_schema(self._kv)
            except UnknownSchema as unknown:
                raise CannotServe(str(unknown)) from None
            if reason := refusal_to_start(self.cache.view, self._identity.manager_id):
                raise CannotServe(reason)
            group.create_task(self._records.run())
            if not self._settings.discard_secrets:
                await self._key_ring.prepare()
            await _initialise_cluster(
                self._kv,
                self.cache,
                self._identity,
                self._settings,
                self._vault,
                self._keys.text(EXTERNAL_KEY) or "",
            )
            try:
                await self._ca_follower.prepare()
            except VaultError as error:
                raise CannotServe(str(error)) from error
            await self._register()
            async with (
                self._channels,
                self._events.following(),
                self._latencies.following(),
                self._spans.following(),
                self._dispatcher.following(),
                background(self._listening.run()),
                background(DeferredRemoval(self._kv, self.cache).run()),
            ):
                await self._serve()

    async def _register(self) -> None:
        """Bring this manager's own object in the store up to date, and the managers that it will
        ask when it leaves."""
        identity, member = self._identity, self._member
        if was_removed(self.cache.view, identity.manager_id):
            raise MemberRemoved("this manager was removed from the cluster")
        status = await member.membership.status() if member else None
        peering = member.peering if member else None
        own = OwnFacts(
            id=identity.manager_id,
            hostname=socket.gethostname(),
            address=identity.address,
            port=identity.port,
            version=__version__,
            features=MANAGER_FEATURES,
            peer_port=peering.port if peering else 0,
            member_id=f"{status.id:x}" if status else "",
        )
        await register(self._kv, self.cache, own, time.time())
        remember(self._settings.data_dir, joining=False, managers=tuple(self._managers()))

    async def _open_to_peers(self) -> None:
        """Have the etcd member listen for those of other managers."""
        assert self._member is not None
        folder = self._settings.data_dir
        if self._member.peering is not None:
            return
        identity = read_manager(folder)
        port = identity.peer_port or choose_peer_port(identity.address, identity.port)
        # Before etcd has it, so that a manager that is killed in between starts with it.
        remember(folder, peer_port=port)
        await self._member.open_to_peers(peering_of(folder, read_manager(folder)))
        await self._register()

    def _backups(self) -> ScheduledBackups:
        folder, keys = self._settings.data_dir, self._keys.texts

        async def take(cluster_id: str) -> Archive:
            return await dump(self._kv, folder, cluster_id, time.time(), keys)

        return ScheduledBackups(self._kv, self.cache, self._identity.manager_id, take, time.time)

    def _state(self) -> metrics.ManagerState:
        return metrics.ManagerState(
            leader=bool(self._leader),
            term=self._term,
            sessions=self._dispatcher.sessions,
            reports=self.report_buffer.waiting,
            orders=self._dispatcher.waiting,
            streams=self._tunnels.count,
        )

    async def _refresh_metrics(self) -> None:
        if self._etcd_metrics is not None:
            await self._etcd_metrics.refresh()

    async def _serve(self) -> None:
        api = self._api()
        operations = ManagerOperations(api, self._channels, self._member)
        if operations.upkeep is not None and self._etcd_metrics is not None:
            operations.upkeep.finished = self._etcd_metrics.defragmented
        server = self._server(api, operations)
        await server.start()
        try:
            async with (
                serve_web(
                    api,
                    self._settings.data_dir,
                    self._registry,
                    self._state,
                    self._refresh_metrics,
                    lambda: operations.list_managers(managers_pb2.ListManagersRequest()),
                ),
                background(self._supervisor.attend()),
                background(self._promote()),
                background(_upkeep(operations)),
                background(self._key_ring.run()),
                background(self._ca_follower.run()),
                background(self._backups().run()),
                background(self._session_records.run()),
                background(self._follow_managers()),
                background(
                    maintain_own_certificate(
                        self._authority,
                        self._identity,
                        self._tls,
                        random.random(),
                        self._records,
                        self._renew,
                    )
                ),
            ):
                self.serving.set()
                record_address(self._settings.data_dir, self._identity.address, host_addresses())
                log.info(
                    "serving",
                    extra={"address": self._address, "manager": self._identity.manager_id},
                )
                await self._lead()
        except CannotListen as error:
            raise CannotServe(str(error)) from error
        finally:
            await server.stop(0.2)

    async def _follow_managers(self) -> None:
        """Remember the managers, for a start or a leave without them. Raise MemberRemoved once
        another manager has removed this one: with an external etcd, nothing else ends it."""
        own, known = self._identity.manager_id, self._managers()
        while not was_removed(self.cache.view, own):
            await asyncio.sleep(1.0)
            if known != (found := self._managers()):
                known = found
                folder = self._settings.data_dir
                await asyncio.to_thread(remember, folder, managers=tuple(found))
        raise MemberRemoved("this manager was removed from the cluster")

    async def _promote(self) -> None:
        if self._member is not None:
            await promote_learners(
                self._member.membership, lambda: self.cache.view, lambda: bool(self._leader)
            )
        else:
            await asyncio.Event().wait()

    def _api(self) -> ManagerContext:
        folder = self._settings.data_dir
        return ManagerContext(
            kv=self._kv,
            cache=self.cache,
            dispatcher=self._dispatcher,
            tunnels=self._tunnels,
            events=self._events,
            vault=self._vault,
            identity=self._identity,
            ca_digest=ca.digest((folder / "ca.pem").read_text()),
            leader=lambda: self._leader,
            now=time.time,
            new_id=new_id,
            keys=self._keys.texts,
            revocations=self._revocations,
            record=self._audit.record,
            tracer=self._tracer,
        )

    def _server(self, context: ManagerContext, operations: ManagerOperations) -> grpc.aio.Server:
        folder, identity = self._settings.data_dir, self._identity
        guards: list[grpc.aio.ServerInterceptor[Any, Any]] = [
            AuditInterceptor(self._audit, identity.manager_id, lambda: self.cache.view),
            RoleGuard(identity.cluster_id, self._revocations, self._records.seen),
        ]
        if self._tracer.on:
            guards.append(TracingInterceptor(self._tracer))
        guards.append(ClientCalls(self._kv, self.cache, self._managers, time.monotonic))
        server = grpc.aio.server(interceptors=guards, options=_SERVER_OPTIONS)
        add_control_services(server, context, self._audit, folder)
        enrolment = Enrolment(
            self._kv, self.cache, self._cluster_keys, self._member, self._open_to_peers, time.time
        )
        add_manager_services(server, operations, enrolment)
        security_pb2_grpc.add_SecurityServicer_to_server(
            SecurityApi(
                SecurityOperations(
                    context, lambda: self._keys.text(CA_KEY) or "", self._tls.pair.read
                )
            ),
            server,
        )
        sources = ImageSources(self.cache, context.vault, self._tunnels.pulls, self._pulls)
        images_pb2_grpc.add_SourcesServicer_to_server(sources, server)
        dispatcher.serve(self._dispatcher, server)
        relay = RelayService(
            self._tunnels, self._dispatcher.deliver, self._dispatcher.is_local, self._pulls
        )
        dispatch_pb2_grpc.add_RelayServicer_to_server(relay, server)
        joining = JoinService(
            self._kv,
            self.cache,
            self._authority,
            lambda: issuer_key_id(self._tls.pair.read().certificate),
            self._managers,
            time.time,
            new_id,
        )
        identity_pb2_grpc.add_JoinServicer_to_server(joining, server)
        certificates = CertificateRenewal(self._authority, self._kv, self.cache)
        certificates_pb2_grpc.add_CertificatesServicer_to_server(certificates, server)
        for port, credentials in (
            (identity.port, server_credentials(self._tls)),
            (identity.port + 1, join_credentials(self._tls)),
        ):
            try:
                server.add_secure_port(f"{identity.address}:{port}", credentials)
            except RuntimeError as error:
                raise CannotServe(
                    f"cannot listen on {identity.address}:{port}: is another manager running, "
                    "or is that not this host's address?"
                ) from error
        return server

    async def _lead(self) -> None:
        """Campaign, lead, and campaign again when the term ends."""
        election = Election(
            self._kv,
            LEADER,
            self._identity.manager_id,
            ttl=self._settings.lease,
            extended_ttl=self._lone_lease,
            renewal=self._renewal,
        )
        reports = ReportCommitter(
            self._kv,
            self.cache,
            self.report_buffer,
            is_local=self._session_records.is_local,
            now=time.time,
            offload=offload,
            rejected=RejectedClaims(self._planning.refused),
        )
        deference = 0.0
        while True:
            try:
                async with background(reports.run()) as stop:
                    await asyncio.sleep(deference)
                    deference = 0.0
                    async with election.term() as won:
                        await stop()
                        await self._plan(won)
            except LeadershipLost as lost:
                log.warning("leadership lost", extra={"reason": lost})
                if isinstance(lost, Deposed) and len(self.cache.view.manager_presence) > 1:
                    deference = DEFERENCE
            finally:
                self._leader, self._term = "", 0

    async def _plan(self, won: Term) -> None:
        self.report_buffer.begin_term()
        self._leader, self._term = self._identity.manager_id, won.revision
        term = PlanningLoop(
            self._kv,
            self.cache,
            self.report_buffer,
            fence=won.guard,
            now=time.time,
            new_id=new_id,
            times=self._planning,
            manager_id=self._identity.manager_id,
        )
        readings = TaskReadings(self.cache, self._tunnels, self._dispatcher.deliver)
        autoscaler = Autoscaler(
            self._kv, self.cache, won.guard, readings.read, ask_prometheus, time.time
        )
        async with (
            background(autoscaler.run()),
            background(SchemaMigrator(self._kv, self.cache, won.guard).run()),
            self._pulls.leading(),
        ):
            await term.run(won.revision)


async def _upkeep(operations: ManagerOperations) -> None:
    if operations.upkeep is not None:
        await operations.upkeep.run()
    else:
        await asyncio.Event().wait()


def _with_own_address(data_dir: Path, identity: ManagerIdentity) -> ManagerIdentity:
    """The identity with an address of this host: see `own_address`. Raises CannotServe."""
    if identity.joining:
        return identity
    try:
        new = current_address(data_dir, identity.address)
    except AddressLost as lost:
        raise CannotServe(
            f"{lost}; give it that address, or choose another one for its manager: "
            f"orc cluster advertise {lost.candidate or 'ADDRESS'}"
        ) from None
    if new == identity.address:
        return identity
    log.warning(
        "the host has another address; it is advertised from now on",
        extra={"was": identity.address, "address": new},
    )
    return remember(data_dir, address=new)


def _certify_address(keys: KeyFiles, identity: ManagerIdentity) -> None:
    """Issue another certificate unless this manager's names its address."""
    pair = TlsFiles.of(keys.folder, "manager").pair
    if identity.joining or identity.address in ca.addresses_of(pair.read().certificate):
        return
    try:
        pair.replace(
            Authority.of_host(keys).issue(
                common_name=identity.manager_id,
                role="manager",
                cluster_id=identity.cluster_id,
                now=dt.datetime.now(dt.UTC),
                addresses=[identity.address, "127.0.0.1"],
            )
        )
    except CannotSign as error:
        # Agents, managers and commands check a name that all managers have; browsers do not.
        log.warning("no certificate for the new address", extra={"reason": str(error)})


async def serve(settings: ManagerSettings) -> None:
    """Run a manager until cancelled. Raises CannotServe, NoIdentity, StoreError."""
    supervisor = Supervisor.taken()
    identity = _with_own_address(settings.data_dir, read_manager(settings.data_dir))
    if identity.joining and not identity.initial_cluster:
        try:
            identity = await asyncio.to_thread(
                enroll, settings.data_dir, identity, socket.gethostname()
            )
        except JoinRefused as error:
            raise CannotServe(f"cannot join the cluster: {error}") from error
    check_certificates(settings.data_dir, "manager")
    try:
        keys = KeyFiles(settings.data_dir)
    except OSError as error:
        raise CannotServe(str(error)) from error
    if keys.locked:
        try:
            await wait_for_unlock(keys, identity, supervisor)
        except RuntimeError as error:
            raise CannotServe(f"cannot listen on {identity.address}: {error}") from error
    await asyncio.to_thread(_certify_address, keys, identity)
    traces = tracer("orc-manager", identity.manager_id, settings.otlp_endpoint)
    with closing(traces):
        try:
            async with _store(settings, identity) as (kv, renewal, member):
                await Manager(
                    settings, identity, kv, supervisor, traces, renewal, member, keys
                ).run()
        except* MembersChanged as changed:
            # The next start enrols again, for the members as they are then.
            remember(settings.data_dir, initial_cluster="")
            raise CannotServe(
                "the members of etcd changed while this manager joined; start it again"
            ) from changed
        except* MemberRemoved as removed:
            retire_manager(settings.data_dir)
            raise CannotServe(
                "this manager was removed from the cluster; 'orc cluster join' lets it join again"
            ) from removed


def _store_timer(times: metrics.StoreMetrics, traces: Tracer) -> Callable[[str, float], None]:
    """Callback that measures the store's requests."""
    if not traces.on:
        return times.took

    def took(operation: str, seconds: float) -> None:
        times.took(operation, seconds)
        now = time.time()
        traces.record(f"store {operation}", now - seconds, now, current())

    return took
