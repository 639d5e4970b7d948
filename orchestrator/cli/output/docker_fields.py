# SPDX-License-Identifier: Apache-2.0
"""Docker's names for fields of our documents, for the templates of `inspect --format`.

`{{.State.Running}}`, `{{.Status.Addr}}` and the like stand in many scripts. Each function here
takes a document of ours and gives what Docker has in one of its own under names that are not ours;
a name that differs in its letters alone (`.CreatedAt`) needs no word here. Where both have a name
for different things, as `.State`, it is a `Word`: our text, with Docker's fields. Source: Docker's
Engine API 1.47, the answers of `/containers/ID/json`, `/nodes/ID` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orchestrator.model.formats.gotemplate import Fields, Word
from orchestrator.model.units import SHARES_PER_CORE

_Row = Mapping[str, Any]

_RESTART = {"none": "no", "any": "always"}
"""Our restart policies that Docker names differently."""

_UPDATES = {
    "canary": "updating",
    "rolling-back": "rollback_started",
    "rollback-paused": "rollback_paused",
    "rolled-back": "rollback_completed",
}
"""Our update states that Docker names differently."""


def _nano_cpus(shares: int) -> int:
    return shares * 10**9 // SHARES_PER_CORE


def _amount(resources: _Row) -> Mapping[str, int]:
    return {"NanoCPUs": _nano_cpus(resources["shares"]), "MemoryBytes": resources["memory"]}


def _container(row: _Row) -> Mapping[str, Any]:
    task, status = row["spec"], row["status"]
    spec, restart = task["container"], task["restart"]
    health = {"Status": status["health"], "Log": [{"Output": status["health_output"]}]}
    state = {
        "Status": row["state"],
        "Running": row["state"] in ("running", "paused"),
        "Paused": row["state"] == "paused",
        "Restarting": row["state"] == "restarting",
        "Dead": False,
        "OOMKilled": row["oom_killed"],
        "Pid": row["pid"],
        "ExitCode": status["exit_code"],
        "Error": row["error"],
        "StartedAt": row["started_at"],
        "FinishedAt": row["finished_at"],
        "Health": None if status["health"] == "none" else health,
    }
    config = {
        "Hostname": spec["hostname"],
        "Domainname": spec["domainname"],
        "User": spec["user"],
        "Env": spec["env"],
        "Cmd": spec["command"],
        "Entrypoint": spec["entrypoint"],
        "Image": spec["image"],
        "WorkingDir": spec["workdir"],
        "Labels": spec["labels"],
        "Tty": spec["tty"],
        "OpenStdin": spec["open_stdin"],
        "StopSignal": spec["stop_signal"],
        "StopTimeout": round(spec["stop_grace"]),
    }
    host = {
        "Memory": task["limit"]["memory"],
        "MemoryReservation": task["reservation"]["memory"],
        "MemorySwap": spec["memory_swap"],
        "NanoCpus": _nano_cpus(task["limit"]["shares"]),
        "CpuShares": task["shares"],
        "CpusetCpus": spec["cpuset_cpus"],
        "PidsLimit": spec["pids_limit"],
        "OomScoreAdj": spec["oom_score_adj"],
        "ShmSize": spec["shm_size"],
        "NetworkMode": row["networks"][0] if row["networks"] else "",
        "PortBindings": _bindings(row["ports"]),
        "RestartPolicy": {
            "Name": _RESTART.get(restart["condition"], restart["condition"]),
            "MaximumRetryCount": restart["max_attempts"],
        },
        "AutoRemove": row["auto_remove"],
        "Privileged": spec["privileged"],
        "ReadonlyRootfs": spec["read_only"],
        "CapAdd": spec["cap_add"],
        "CapDrop": spec["cap_drop"],
        "Dns": spec["dns"],
        "DnsOptions": spec["dns_options"],
        "DnsSearch": spec["dns_search"],
        "ExtraHosts": spec["hosts"],
        "GroupAdd": spec["groups"],
        "Annotations": spec.get("annotations", {}),
        "Sysctls": spec["sysctls"],
        "UsernsMode": spec["userns"],
        "PidMode": spec["pid"],
        "IpcMode": spec["ipc"],
        "Runtime": spec["runtime"],
        "Init": spec["init"],
        "VolumesFrom": spec["volumes_from"],
        "LogConfig": {
            "Type": spec["logging"]["driver"],
            "Config": spec["logging"]["options"],
        },
    }
    return {
        "State": Word(row["state"], state),
        "Config": config,
        "HostConfig": host,
        "NetworkSettings": _network_settings(row),
        "Mounts": [_mount(mount) for mount in spec["mounts"]],
        "Created": row["created_at"],
        "Path": row["command"][0] if row["command"] else "",
        "Args": row["command"][1:],
        "RestartCount": row["restarts"],
        "SizeRw": row.get("size"),
    }


def _network_settings(row: _Row) -> Mapping[str, Any]:
    four, six = row["addresses"], row["status"]["addresses6"]
    return {
        "IPAddress": next(iter(four.values()), ""),
        "GlobalIPv6Address": next(iter(six.values()), ""),
        "Ports": _bindings(row["ports"]),
        "Networks": {
            name: {"IPAddress": four.get(name, ""), "GlobalIPv6Address": six.get(name, "")}
            for name in row["networks"]
        },
    }


def _bindings(ports: Iterable[_Row]) -> Mapping[str, list[_Row]]:
    found: dict[str, list[_Row]] = {}
    for port in ports:
        binding = {"HostIp": port["address"], "HostPort": str(port["published"])}
        found.setdefault(f"{port['target']}/{port['protocol']}", []).append(binding)
    return found


def _mount(mount: _Row) -> Mapping[str, Any]:
    return {
        "Type": mount["type"],
        "Name": mount["source"] if mount["type"] == "volume" else "",
        "Source": mount["source"],
        "Destination": mount["target"],
        "Driver": mount["driver"],
        "RW": not mount["read_only"],
        "Propagation": mount["propagation"],
    }


def _node(row: _Row) -> Mapping[str, Any]:
    resources = {"shares": row["shares_total"], "memory": row["memory_total"]}
    return {
        "Status": {"State": row["state"], "Addr": row["address"], "Message": row["message"]},
        "Spec": {
            "Name": row["hostname"],
            "Role": row["role"],
            "Availability": row["availability"],
            "Labels": row["labels"],
        },
        "Description": {
            "Hostname": row["hostname"],
            "Platform": {"Architecture": row["arch"], "OS": "linux"},
            "Resources": _amount(resources),
            "Engine": {"EngineVersion": row["version"], "Labels": row["engine_labels"]},
        },
    }


def _service(row: _Row) -> Mapping[str, Any]:
    spec, task = row["spec"], row["spec"]["task"]
    container, restart = task["container"], task["restart"]
    ports = [
        {
            "Protocol": port["protocol"],
            "TargetPort": port["target"],
            "PublishedPort": port["published"],
            "PublishMode": port["mode"],
        }
        for port in task["ports"]
    ]
    counted = {"Replicas": spec["replicas"]}
    mode = {
        "Replicated": counted if spec["mode"] == "replicated" else None,
        "Global": spec["mode"] == "global" or None,
        "ReplicatedJob": (
            {"TotalCompletions": spec["replicas"], "MaxConcurrent": spec["job"]["parallelism"]}
            if spec["mode"] == "replicated-job"
            else None
        ),
        "GlobalJob": spec["mode"] == "global-job" or None,
    }
    template = {
        "ContainerSpec": {
            "Image": container["image"],
            "Labels": container["labels"],
            "Command": container["entrypoint"],
            "Args": container["command"],
            "Env": container["env"],
            "Dir": container["workdir"],
            "User": container["user"],
            "Hostname": container["hostname"],
            "Mounts": [
                {
                    "Type": mount["type"],
                    "Source": mount["source"],
                    "Target": mount["target"],
                    "ReadOnly": mount["read_only"],
                }
                for mount in container["mounts"]
            ],
            "Secrets": [{"SecretName": each["source"]} for each in container["secrets"]],
            "Configs": [{"ConfigName": each["source"]} for each in container["configs"]],
        },
        "Resources": {
            "Limits": _amount(task["limit"]),
            "Reservations": _amount(task["reservation"]),
        },
        "RestartPolicy": {
            "Condition": restart["condition"],
            "MaxAttempts": restart["max_attempts"],
        },
        "Placement": {"Constraints": spec["constraints"], "MaxReplicas": spec["max_per_node"]},
        "Networks": [{"Target": each["network"]} for each in task["networks"]],
        "LogDriver": {
            "Name": container["logging"]["driver"],
            "Options": container["logging"]["options"],
        },
        "ForceUpdate": task["force"],
    }
    ours = {
        "Mode": Word(spec["mode"], mode),
        "TaskTemplate": template,
        "EndpointSpec": {"Mode": spec["endpoint_mode"], "Ports": ports},
        "UpdateConfig": spec["update"],
        "RollbackConfig": spec["rollback"],
    }
    vips = [{"NetworkID": id, "Addr": address} for id, address in row["vips"].items()]
    return {
        "Spec": Fields(spec, ours),
        "Endpoint": {"Ports": ports, "VirtualIPs": vips},
        "UpdateStatus": _update(row["update"]),
        "ServiceStatus": {"RunningTasks": row["running"]},
        "Version": {"Index": row["revision"]},
    }


def _update(update: _Row) -> Mapping[str, Any]:
    return {
        "State": _UPDATES.get(update["state"], update["state"]),
        "StartedAt": update["started_at"],
        "CompletedAt": update["finished_at"],
        "Message": update["message"],
    }


def _network(row: _Row) -> Mapping[str, Any]:
    four = {"Subnet": row["subnet"], "Gateway": row["gateway"], "IPRange": row["ip_range"]}
    subnets = [four] if row["subnet"] else []
    subnets += [{"Subnet": row["subnet6"]}] if row["subnet6"] else []
    return {
        "Created": row["created_at"],
        "EnableIPv6": bool(row["subnet6"]),
        "Scope": "local" if row["driver"] == "bridge" else "swarm",
        "IPAM": {"Driver": row["ipam_driver"] or "default", "Config": subnets},
        "Containers": {
            each["id"]: Fields(
                each, {"IPv4Address": each["address"], "IPv6Address": each["address6"]}
            )
            for each in row["containers"]
        },
    }


def _image(row: _Row) -> Mapping[str, Any]:
    repositories = dict.fromkeys(name.rpartition(":")[0] for name in row["names"])
    return {
        "RepoTags": row["names"],
        "RepoDigests": [f"{each}@{row['digests'][0]}" for each in repositories],
        "Created": row["created_at"],
        "RootFS": {"Type": "layers", "Layers": row["layers"]},
    }


DOCKER: Mapping[str, Callable[[_Row], Mapping[str, Any]]] = {
    "container": _container,
    "node": _node,
    "service": _service,
    "network": _network,
    "image": _image,
}
"""Kind of a document → Docker's names for its fields."""
