# SPDX-License-Identifier: Apache-2.0
"""gRPC services of certificates, the audit trail, web sessions and diagnostics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from orchestrator.manager.api.grpc_status import caller_of, streaming, unary
from orchestrator.manager.audit.trail import AuditTrail
from orchestrator.manager.diagnostics.network_doctor import NetworkDoctorOperations
from orchestrator.manager.diagnostics.support_bundle import SupportBundleOperations
from orchestrator.manager.operations.administration.audit_queries import AuditOperations
from orchestrator.manager.operations.administration.backups import BackupOperations
from orchestrator.manager.operations.administration.certificate_admin import CertificateOperations
from orchestrator.manager.operations.administration.web_sessions import WebSessionOperations
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.pb import (
    access_pb2_grpc,
    audit_pb2_grpc,
    backup_pb2_grpc,
    dashboard_pb2_grpc,
    doctor_pb2_grpc,
    support_pb2_grpc,
)


class AccessApi(access_pb2_grpc.AccessServicer):  # type: ignore[misc]
    """Handles the calls of `Access`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._certificate = CertificateOperations(ctx)

    @unary
    async def ListCertificates(self, request: Any, context: Any) -> Any:
        return await self._certificate.list_certificates(request, caller_of(context))

    @unary
    async def Revoke(self, request: Any, context: Any) -> Any:
        return await self._certificate.revoke(request, caller_of(context))


class AuditApi(audit_pb2_grpc.AuditServicer):  # type: ignore[misc]
    """Handles the calls of `Audit`."""

    def __init__(self, ctx: ManagerContext, trail: AuditTrail) -> None:
        self._audit = AuditOperations(ctx, trail)

    @streaming
    def Entries(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._audit.entries(request)


class DashboardApi(dashboard_pb2_grpc.DashboardServicer):  # type: ignore[misc]
    """Handles the calls of `Dashboard`."""

    def __init__(self, ctx: ManagerContext, data_dir: Path) -> None:
        self._web_session = WebSessionOperations(ctx, data_dir)

    @unary
    async def OpenDashboard(self, request: Any, context: Any) -> Any:
        return await self._web_session.open_dashboard(request, caller_of(context))

    @unary
    async def ListSessions(self, request: Any, context: Any) -> Any:
        return await self._web_session.list_sessions(request)


class DoctorApi(doctor_pb2_grpc.DoctorServicer):  # type: ignore[misc]
    """Handles the calls of `Doctor`."""

    def __init__(self, ctx: ManagerContext) -> None:
        self._network_doctor = NetworkDoctorOperations(ctx)

    @streaming
    def Diagnose(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._network_doctor.diagnose(request)


class SupportApi(support_pb2_grpc.SupportServicer):  # type: ignore[misc]
    """Handles the calls of `Support`."""

    def __init__(self, ctx: ManagerContext, data_dir: Path) -> None:
        self._support_bundle = SupportBundleOperations(ctx, data_dir)

    @streaming
    def Collect(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._support_bundle.collect(request)


class BackupApi(backup_pb2_grpc.BackupServicer):  # type: ignore[misc]
    """Handles the calls of `Backup`."""

    def __init__(self, ctx: ManagerContext, data_dir: Path) -> None:
        self._backups = BackupOperations(ctx, data_dir)

    @streaming
    def Create(self, request: Any, context: Any) -> AsyncIterator[Any]:
        return self._backups.create(request)

    @unary
    async def SetSchedule(self, request: Any, context: Any) -> Any:
        return await self._backups.set_schedule(request)

    @unary
    async def GetOverview(self, request: Any, context: Any) -> Any:
        return await self._backups.get_overview(request)
