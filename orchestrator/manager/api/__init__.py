# SPDX-License-Identifier: Apache-2.0
"""The gRPC front end: what `orc` calls on a manager.

One handler class per gRPC service, grouped in modules as `operations` is. A handler passes the
decoded message, and where it matters the caller, to an operation and maps its errors to a status
(`grpc_status`). Interceptors do the rest of each call: `audit.audit_interceptor` records it,
`identity.roles` authorises it, `tracing_interceptor` gives it a span. Logic belongs in
`operations`, so that other front ends share it.

Services that agents call are with their logic: `dispatch` (sessions, image sources) and `security`
(join, certificate renewal).
"""

from __future__ import annotations

from pathlib import Path

import grpc

from orchestrator.manager.api.administration import (
    AccessApi,
    AuditApi,
    BackupApi,
    DashboardApi,
    DoctorApi,
    SupportApi,
)
from orchestrator.manager.api.control import ControlApi
from orchestrator.manager.api.images import ImagesApi
from orchestrator.manager.api.resources import (
    DocumentsApi,
    NetworksApi,
    PoliciesApi,
    SystemApi,
    VolumesApi,
)
from orchestrator.manager.api.workloads import ContainersApi, InteractApi, JobsApi
from orchestrator.manager.audit.trail import AuditTrail
from orchestrator.manager.operations.context import ManagerContext
from orchestrator.pb import (
    access_pb2_grpc,
    audit_pb2_grpc,
    backup_pb2_grpc,
    containers_pb2_grpc,
    control_pb2_grpc,
    dashboard_pb2_grpc,
    doctor_pb2_grpc,
    documents_pb2_grpc,
    images_pb2_grpc,
    interact_pb2_grpc,
    jobs_pb2_grpc,
    networks_pb2_grpc,
    policies_pb2_grpc,
    support_pb2_grpc,
    system_pb2_grpc,
    volumes_pb2_grpc,
)


def add_control_services(
    server: grpc.aio.Server, ctx: ManagerContext, trail: AuditTrail, data_dir: Path
) -> None:
    """Add every service that users call to a server."""
    access_pb2_grpc.add_AccessServicer_to_server(AccessApi(ctx), server)
    audit_pb2_grpc.add_AuditServicer_to_server(AuditApi(ctx, trail), server)
    backup_pb2_grpc.add_BackupServicer_to_server(BackupApi(ctx, data_dir), server)
    containers_pb2_grpc.add_ContainersServicer_to_server(ContainersApi(ctx), server)
    control_pb2_grpc.add_ControlServicer_to_server(ControlApi(ctx), server)
    dashboard_pb2_grpc.add_DashboardServicer_to_server(DashboardApi(ctx, data_dir), server)
    doctor_pb2_grpc.add_DoctorServicer_to_server(DoctorApi(ctx), server)
    documents_pb2_grpc.add_DocumentsServicer_to_server(DocumentsApi(ctx), server)
    images_pb2_grpc.add_ImagesServicer_to_server(ImagesApi(ctx), server)
    interact_pb2_grpc.add_InteractServicer_to_server(InteractApi(ctx), server)
    jobs_pb2_grpc.add_JobsServicer_to_server(JobsApi(ctx), server)
    networks_pb2_grpc.add_NetworksServicer_to_server(NetworksApi(ctx), server)
    policies_pb2_grpc.add_PoliciesServicer_to_server(PoliciesApi(ctx), server)
    support_pb2_grpc.add_SupportServicer_to_server(SupportApi(ctx, data_dir), server)
    system_pb2_grpc.add_SystemServicer_to_server(SystemApi(ctx), server)
    volumes_pb2_grpc.add_VolumesServicer_to_server(VolumesApi(ctx), server)
