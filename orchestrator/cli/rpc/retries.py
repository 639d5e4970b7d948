# SPDX-License-Identifier: Apache-2.0
"""Which calls are repeated at another manager when their outcome is unknown.

| how | calls | why a repetition is safe |
| --- | --- | --- |
| read | `READS` | nothing is changed |
| recorded | `RECORDED` | the manager stores the request's id with the write, in one transaction, and answers a repetition from it |
| idempotent | `IDEMPOTENT` | the second one finds the state that the first one set: creation of an identical volume, stop of a stopped container |
| once | all others | it is not: a signal, the content of a stream; the user decides |
"""  # noqa: E501

from __future__ import annotations

READS = frozenset(
    {
        "Access.ListCertificates",
        "Audit.Entries",
        "Backup.GetOverview",
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
        "Managers.GetSchema",
        "Managers.ListManagers",
        "Security.GetCaStatus",
        "Security.GetDataKeyStatus",
        "Support.Collect",
        "System.DiskUsage",
        "Volumes.ListVolumes",
    }
)

RECORDED = frozenset(
    {
        "Containers.AdoptOrphan",
        "Containers.CreateContainer",
        "Containers.RemoveContainer",
        "Containers.RenameContainer",
        "Containers.RestartContainer",
        "Control.CreateService",
        "Control.PromoteService",
        "Control.RemoveNode",
        "Control.RemoveService",
        "Control.RollbackService",
        "Control.UpdateNode",
        "Control.UpdateService",
        "Documents.CreateDocument",
        "Documents.RemoveDocument",
        "Jobs.StartJob",
        "Jobs.StopJob",
        "Networks.CreateNetwork",
        "Networks.RemoveNetwork",
        "Volumes.RemoveVolume",
    }
)

IDEMPOTENT = frozenset(
    {
        "Access.Revoke",
        "Backup.SetSchedule",
        "Certificates.Renew",
        "Containers.PauseContainer",
        "Containers.PrepareContainer",
        "Containers.RemoveOrphan",
        "Containers.StartContainer",
        "Containers.StopContainer",
        "Containers.UnpauseContainer",
        "Containers.UpdateContainer",
        "Control.RotateToken",
        "Control.UpdateCluster",
        "Documents.UpdateDocument",
        "Images.Login",
        "Images.Logout",
        "Images.Prune",
        "Images.Pull",
        "Images.Push",
        "Images.Tag",
        "Managers.CompactStore",
        "Managers.DefragmentStore",
        "Managers.DisarmStore",
        "Managers.PromoteNode",
        "Networks.ConnectNetwork",
        "Networks.DisconnectNetwork",
        "Networks.PruneNetworks",
        "Security.GetUnlockKey",
        "Security.Lock",
        "Security.RotateCa",
        "Security.RotateDataKey",
        "Volumes.CreateVolume",
        "Volumes.PruneVolumes",
    }
)


def changes(method: str) -> bool:
    """Whether a method, as `Service.Method`, changes something."""
    return method not in READS


def may_repeat(method: str) -> bool:
    """Whether a method, as `Service.Method`, may be repeated."""
    return method in READS or method in RECORDED or method in IDEMPOTENT
