# SPDX-License-Identifier: Apache-2.0
"""The audited RPCs, and how to find the object that each is about.

Every RPC is in exactly one of three tables; a test fails for one that is in none. Only names and
ids of objects are taken from messages, never their content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.model.documents import DocumentKind

MAX_NAME_LENGTH = 256
"""Longest recorded name, in characters."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The object of a call. Paths are field names with dots, in the first message of a side."""

    kind: str | Callable[[Any], str]
    """Kind of the object, or a function that derives it from the request."""
    asked: tuple[str, ...] = ()
    """Paths of the object's name or id in the request; the first that is set counts."""
    name: str = ""
    """Path of its name in the reply."""
    id: str = ""
    """Path of its id in the reply."""
    lasts: bool = False
    """Whether the call may last arbitrarily long: its beginning is recorded, too."""

    def kind_of(self, request: Any) -> str:
        """The kind of the object."""
        return self.kind if isinstance(self.kind, str) else self.kind(request)


def _document(request: Any) -> str:
    try:
        return DocumentKind(request.kind).word
    except ValueError:
        return "document"


def _revoked(request: Any) -> str:
    alone = request.kind in ("certificate", "session")
    return str(request.kind) if alone else f"{request.kind} certificates"


_SERVICE = Rule("service", ("service",), "spec.name", "id")
_JOB = Rule("job", ("job",), "spec.name", "id")
_CONTAINER = Rule("container", ("container",), "container_name", "id")

MUTATING: dict[str, Rule] = {
    "Access.Revoke": Rule(_revoked, ("name",), "", "revocation.id"),
    "Backup.Create": Rule("backup"),
    "Backup.SetSchedule": Rule("backup schedule", ("schedule.folder",)),
    "Certificates.Renew": Rule("certificate"),
    "Containers.AdoptOrphan": Rule("orphan", ("orphan",), "", "id"),
    "Containers.CreateContainer": Rule("container", ("name",), "container_name", "id"),
    "Containers.KillContainer": _CONTAINER,
    "Containers.PauseContainer": _CONTAINER,
    "Containers.PrepareContainer": _CONTAINER,
    "Containers.RemoveContainer": _CONTAINER,
    "Containers.RemoveOrphan": Rule("orphan", ("orphan",), "", "id"),
    "Containers.RenameContainer": _CONTAINER,
    "Containers.RestartContainer": _CONTAINER,
    "Containers.StartContainer": _CONTAINER,
    "Containers.StopContainer": _CONTAINER,
    "Containers.UnpauseContainer": _CONTAINER,
    "Containers.UpdateContainer": _CONTAINER,
    "Control.BuildImage": Rule("image", ("header.name",), "", "image.id", lasts=True),
    "Control.CreateService": Rule("service", ("spec.name",), "spec.name", "id"),
    "Control.LoadImage": Rule("image", ("header.name",), "", "image.id", lasts=True),
    "Control.PromoteService": _SERVICE,
    "Control.Rebalance": Rule("service", ("service",)),
    "Control.RemoveNode": Rule("node", ("node",)),
    "Control.RemoveService": Rule("service", ("service",), "", "id"),
    "Control.RollbackService": _SERVICE,
    "Control.RotateToken": Rule("token", ("role",)),
    "Control.UpdateCluster": Rule("cluster", (), "", "id"),
    "Control.UpdateNode": Rule("node", ("node",), "description.hostname", "id"),
    "Control.UpdateService": _SERVICE,
    "Dashboard.OpenDashboard": Rule("page"),
    "Documents.CreateDocument": Rule(_document, ("name",), "name", "id"),
    "Documents.RemoveDocument": Rule(_document, ("document",), "", "id"),
    "Documents.UpdateDocument": Rule(_document, ("document",), "document.name", "document.id"),
    "Images.BuildCaches": Rule("build cache", ("node",)),
    "Images.Commit": Rule("image", ("name", "container"), "names", "id"),
    "Images.Import": Rule("image", ("header.name",), "", "image.id", lasts=True),
    "Images.Login": Rule("registry", ("registry",), "registry"),
    "Images.Logout": Rule("registry", ("registry",), "registry"),
    "Images.Prune": Rule("image", (), "deleted"),
    "Images.Pull": Rule("image", ("name",), "", "image.id"),
    "Images.Push": Rule("image", ("name",), "", "image.id"),
    "Images.Remove": Rule("image", ("image",), "", "deleted"),
    "Images.Tag": Rule("image", ("name",), "", "id"),
    "Interact.Copy": Rule("container", ("copy_to.container", "copy_from.container")),
    "Interact.Session": Rule(
        "container", ("exec.container", "attach.container", "resume.container"), lasts=True
    ),
    "Jobs.RemoveQueue": Rule("queue", ("name",), "name"),
    "Jobs.SetQueue": Rule("queue", ("name",), "name"),
    "Jobs.StartJob": _JOB,
    "Jobs.StopJob": _JOB,
    "Join.Sign": Rule("node", ("hostname",), "", "node_id"),
    "Managers.CompactStore": Rule("store"),
    "Managers.DefragmentStore": Rule("manager", ("manager",)),
    "Managers.DisarmStore": Rule("store"),
    "Managers.StepDown": Rule("manager", (), "", "former"),
    "Managers.DemoteNode": Rule("node", ("node",)),
    "Managers.PromoteNode": Rule("node", ("node",), "", "node"),
    "Managers.RemoveManager": Rule("manager", ("manager",), "", "id"),
    "Managers.FinalizeUpgrade": Rule("cluster"),
    "Membership.Enroll": Rule("manager", ("hostname",)),
    "Membership.Remove": Rule("manager", ("manager",), "", "id"),
    "Networks.ConnectNetwork": _CONTAINER,
    "Networks.CreateNetwork": Rule("network", ("name",), "name", "id"),
    "Networks.DisconnectNetwork": _CONTAINER,
    "Networks.PruneNetworks": Rule("network", (), "names"),
    "Networks.RemoveNetwork": Rule("network", ("network",), "name", "id"),
    "Policies.AddPolicy": Rule("network", ("network",)),
    "Policies.RemovePolicy": Rule("network", ("network",)),
    "Security.GetUnlockKey": Rule("unlock key"),
    "Security.Lock": Rule("unlock key"),
    "Security.RotateCa": Rule("ca", (), "", "digest"),
    "Security.RotateDataKey": Rule("data key", (), "", "new_id"),
    "Security.Unlock": Rule("manager", (), "", "manager"),
    "Volumes.CreateVolume": Rule("volume", ("name",), "id", "id"),
    "Volumes.PruneVolumes": Rule("volume", (), "names"),
    "Volumes.RemoveVolume": Rule("volume", ("name",), "name", "name"),
}
"""`Service.Method` → its object. Recorded."""

READ_ONLY = frozenset(
    {
        "Access.ListCertificates",
        "Audit.Entries",
        "Backup.GetOverview",
        "Blobs.Get",
        "Containers.Events",
        "Containers.ListContainers",
        "Containers.ListOrphans",
        "Containers.WatchContainer",
        "Control.GetCapacity",
        "Control.GetCluster",
        "Control.GetPlacement",
        "Control.ListImages",
        "Control.ListNetworks",
        "Control.ListNodes",
        "Control.ListServices",
        "Control.ListTasks",
        "Control.Logs",
        "Control.Plan",
        "Control.WatchService",
        "Dashboard.ListSessions",
        "Doctor.Diagnose",
        "Documents.ListDocuments",
        "Images.Diff",
        "Images.Export",
        "Images.Inspect",
        "Images.Save",
        "Interact.GetExec",
        "Interact.Stats",
        "Interact.Top",
        "Jobs.ListQueues",
        "Join.GetCa",
        "Managers.ListManagers",
        "Managers.GetSchema",
        "Membership.GetDataKeys",
        "Membership.GetStatus",
        "Security.GetCaStatus",
        "Security.GetDataKeyStatus",
        "Support.Collect",
        "System.DiskUsage",
        "Volumes.ListVolumes",
    }
)
"""Calls without changes. Not recorded."""

AGENTS = frozenset(
    {
        "Dispatch.Session",
        "Dispatch.Tunnel",
        "Membership.DefragmentMember",
        "Membership.DefragmentStore",
        "Relay.AcquirePull",
        "Relay.ReportPull",
        "Relay.Tunnel",
        "Sources.Acquire",
        "Sources.Locate",
        "Sources.Progress",
    }
)
"""Continuous reports of agents about their own nodes, and calls that another manager has recorded.
Not recorded."""


def value_at(message: Any, path: str) -> str:
    """The text at a path, repeated values joined by commas; empty if unset."""
    for part in path.split(".") if path else ():
        fields = message.DESCRIPTOR.fields_by_name
        if part not in fields:
            return ""
        field = fields[part]
        if field.message_type is not None and not message.HasField(part):
            return ""
        message = getattr(message, part)
    if not path or message is None:
        return ""
    text = message if isinstance(message, str) else ",".join(map(str, message))
    return text[:MAX_NAME_LENGTH]
