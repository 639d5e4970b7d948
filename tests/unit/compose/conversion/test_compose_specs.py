# SPDX-License-Identifier: Apache-2.0
"""What the keys of a service become in the spec that the cluster gets."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest
from composekit import FOLDER, Given, service

from orchestrator.compose.tree import ComposeError
from orchestrator.model.dependencies import Dependency, DependencyCondition
from orchestrator.model.documents import FileReference
from orchestrator.model.jobs import JobSpec, Overlap
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.placement import GenericResource, Strategy
from orchestrator.model.scheduling.autoscaling import AutoscaleSpec
from orchestrator.model.scheduling.disruptions import DisruptionBudget
from orchestrator.model.specs import (
    EndpointMode,
    FailureAction,
    HealthCheck,
    Hook,
    LogConfig,
    PortSpec,
    Protocol,
    PublishMode,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    Ulimit,
    UpdateOrder,
    UpdatePolicy,
)

HOST, UDP = PublishMode.HOST, Protocol.UDP
STACK = {"com.docker.stack.namespace": "s"}

SPECS: list[tuple[str, str, Any]] = [
    ("image: a", "task.container.image", "a:latest"),
    ("image: docker.io/library/a:1", "task.container.image", "a:1"),
    ("command: a 'b c'", "task.container.command", ("a", "b c")),
    ("entrypoint: []", "task.container.entrypoint", ("",)),
    ("entrypoint: [a]", "task.container.entrypoint", ("a",)),
    ("environment: [A=1=2, B=]", "task.container.env", ("A=1=2", "B=")),
    ("user: 1000:100", "task.container.user", "1000:100"),
    ("working_dir: /a", "task.container.workdir", "/a"),
    ("hostname: h-{{.Task.Slot}}", "task.container.hostname", "h-{{.Task.Slot}}"),
    ("labels: [a=b]", "task.container.labels", {"a": "b", **STACK}),
    ("deploy: {labels: {a: b}}", "labels", {"a": "b", **STACK}),
    ("stop_signal: SIGINT", "task.container.stop_signal", "SIGINT"),
    ("stop_grace_period: 1m30s", "task.container.stop_grace", 90.0),
    ("read_only: true", "task.container.read_only", True),
    ("init: yes", "task.container.init", True),
    ("tty: true", "task.container.tty", True),
    ("stdin_open: true", "task.container.open_stdin", True),
    ("privileged: true", "task.container.privileged", True),
    ("pids_limit: 5", "task.container.pids_limit", 5),
    ("deploy: {resources: {limits: {pids: 6}}}", "task.container.pids_limit", 6),
    ("dns: 1.1.1.1", "task.container.dns", ("1.1.1.1",)),
    ("dns_search: [a.b]", "task.container.dns_search", ("a.b",)),
    ("dns_opt: ['ndots:2']", "task.container.dns_options", ("ndots:2",)),
    ("extra_hosts: ['a:1.2.3.4']", "task.container.hosts", ("a:1.2.3.4",)),
    ("extra_hosts: {a: 1.2.3.4, b: ['::1', 1.1.1.1]}", "task.container.hosts",
     ("a:1.2.3.4", "b:::1", "b:1.1.1.1")),
    ("group_add: [1, mail]", "task.container.groups", ("1", "mail")),
    ("cap_add: [net_admin]", "task.container.cap_add", ("CAP_NET_ADMIN",)),
    ("cap_drop: [ALL]", "task.container.cap_drop", ("ALL",)),
    ("devices: [/dev/fuse]", "task.container.devices", ("/dev/fuse:/dev/fuse:rwm",)),
    ("devices: [{source: /dev/a, target: /dev/b, permissions: r}]", "task.container.devices",
     ("/dev/a:/dev/b:r",)),
    ("sysctls: {net.ipv4.ip_forward: 1}", "task.container.sysctls", {"net.ipv4.ip_forward": "1"}),
    ("ulimits: {nofile: 5, core: {soft: 1, hard: -1}}", "task.container.ulimits",
     (Ulimit("nofile", 5, 5), Ulimit("core", 1, -1))),
    ("shm_size: 64mb", "task.container.shm_size", 64 << 20),
    ("tmpfs: /run:size=1m", "task.container.tmpfs", ("/run:size=1m",)),
    ("oom_score_adj: -5", "task.container.oom_score_adj", -5),
    ("cpuset: 0-1", "task.container.cpuset_cpus", "0-1"),
    ("userns_mode: host", "task.container.userns", "host"),
    ("pid: host", "task.container.pid", "host"),
    ("ipc: host", "task.container.ipc", "host"),
    ("logging: {driver: local, options: {max-size: 1m, max-file: 3}}", "task.container.logging",
     LogConfig("local", {"max-size": "1m", "max-file": "3"})),
    ("logging: {options: {tag: '{{.Name}}'}}", "task.container.logging",
     LogConfig("", {"tag": "{{.Name}}"})),
    ("logging: {driver: none}", "task.container.logging", LogConfig("none")),
    ("gpus: all", "task.generic_resources", (GenericResource("gpu", 1, every=True),)),
    ("gpus: [{driver: nvidia}]", "task.generic_resources",
     (GenericResource("gpu", 1, every=True),)),
    ("gpus: [{device_ids: ['0', GPU-7]}]", "task.generic_resources",
     (GenericResource("gpu", 2, ("0", "GPU-7")),)),
    ("gpus: [{count: 2, driver: nvidia}]", "task.generic_resources", (GenericResource("gpu", 2),)),
    ("runtime: runc", "task.container.runtime", "runc"),
    ("storage_opt: {size: 1g}", "task.container.storage_size", 1 << 30),
    ("security_opt: ['apparmor:strict']", "task.container.apparmor", "strict"),
    ("security_opt: [seccomp=unconfined]", "task.container.seccomp", "unconfined"),
    ("security_opt: ['no-new-privileges:false']", "task.container.new_privileges", True),
    ("security_opt: ['no-new-privileges:true']", "task.container.new_privileges", False),
    ("mem_limit: 1g\nmemswap_limit: -1", "task.container.memory_swap", -1),
    ("cpus: 0.5", "task.limit", Resources(512, 0)),
    ("mem_limit: 1g\nmem_reservation: 512m", "task.reservation", Resources(0, 512 << 20)),
    ("cpu_shares: 200", "task.shares", 200),
    ("deploy: {resources: {limits: {cpus: '2', memory: 50M}, reservations: {cpus: 0.25}}}",
     "task.limit", Resources(2048, 50 << 20)),
    ("deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: all}]}}}",
     "task.generic_resources", (GenericResource("gpu", 1, every=True),)),
    ("deploy: {resources: {reservations: {devices: [{capabilities: [tpu], device_ids: ['1']}]}}}",
     "task.generic_resources", (GenericResource("tpu", 1, ("1",)),)),
    ("deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: 2}]}}}",
     "task.generic_resources", (GenericResource("gpu", 2),)),
    ("restart: always", "task.restart.condition", RestartCondition.ANY),
    ("restart: no", "task.restart.condition", RestartCondition.NONE),
    ("restart: on-failure:4", "task.restart",
     RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=4)),
    ("restart: always\ndeploy: {restart_policy: {condition: none, delay: 1s, window: 2s}}",
     "task.restart", RestartPolicy(RestartCondition.NONE, 1.0, 0, 2.0)),
    ("scale: 3", "replicas", 3),
    ("deploy: {replicas: 0}", "replicas", 0),
    ("deploy: {mode: global}", "mode", ServiceMode.GLOBAL),
    ("deploy: {mode: replicated-job}", "task.restart",
     RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=3)),
    ("deploy: {endpoint_mode: dnsrr}", "endpoint_mode", EndpointMode.DNSRR),
    ("deploy: {update_config: {parallelism: 0, delay: 1s, failure_action: rollback, monitor: 2s, "
     "max_failure_ratio: 0.5, order: start-first}}", "update",
     UpdatePolicy(0, 1.0, UpdateOrder.START_FIRST, 2.0, FailureAction.ROLLBACK, 0.5)),
    ("deploy: {rollback_config: {failure_action: continue}}", "rollback",
     UpdatePolicy(failure_action=FailureAction.CONTINUE)),
    ("ports: ['80:8080', '53:53/udp']", "task.ports",
     (PortSpec(80, 8080), PortSpec(53, 53, UDP))),
    ("ports: [80:80]", "task.ports", (PortSpec(80, 80),)),
    ("ports: ['0.0.0.0:80:80']", "task.ports", (PortSpec(80, 80),)),
    ("ports: [{target: 1, published: 2, mode: host}]", "task.ports",
     (PortSpec(2, 1, mode=HOST),)),
    ("network_mode: host", "task.network_names", ("host",)),
    ("healthcheck: {disable: true}", "task.container.health", HealthCheck(test=("NONE",))),
    ("healthcheck: {test: a b, interval: 1s, retries: 2}", "task.container.health",
     HealthCheck(("CMD-SHELL", "a b"), 1.0, retries=2)),
    ("healthcheck: {test: [HTTP, 80/x]}", "task.container.health.test", ("HTTP", "80/x")),
    ("platform: linux/arm64", "constraints", ("node.platform.arch==aarch64",)),
    ("deploy: {placement: {preferences: [{spread: node.labels.z}], max_replicas_per_node: 2}}",
     "spread", ("node.labels.z",)),
    ("post_start: [{command: /prepare 'a b'}, {command: [warm], user: web:1, privileged: true, "
     "working_dir: sub, environment: {A: 1, B: null}}]", "task.container.post_start",
     (Hook(("/prepare", "a b")), Hook(("warm",), "web:1", True, "sub", ("A=1", "B")))),
    ("pre_stop: [{command: drain, environment: [A=b]}]", "task.container.pre_stop",
     (Hook(("drain",), env=("A=b",)),)),
    ("volumes: [/data]", "task.container.mounts", (MountSpec(target="/data"),)),
    ("volumes: ['./a:/b:ro,rshared']", "task.container.mounts",
     (MountSpec(MountType.BIND, f"{FOLDER}/a", "/b", True, "rshared", create_source=True),)),
    ("volumes: ['~/a:/b']", "task.container.mounts",
     (MountSpec(MountType.BIND, "/home/user/a", "/b", create_source=True),)),
    ("volumes: [{type: bind, source: ./a, target: /b, bind: {create_host_path: false}}]",
     "task.container.mounts", (MountSpec(MountType.BIND, f"{FOLDER}/a", "/b"),)),
    ("volumes: [{type: tmpfs, target: /b, tmpfs: {size: 1m, mode: 0o1770}}]",
     "task.container.mounts",
     (MountSpec(MountType.TMPFS, "", "/b", tmpfs_size=1 << 20, tmpfs_mode=0o1770),)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "path", "expected"), SPECS)
def test_keys_of_a_service(body: str, path: str, expected: Any) -> None:
    assert attrgetter(path)(service(body)) == expected


def test_volumes_have_the_stacks_names_drivers_and_labels() -> None:
    spec = service(
        "volumes: ['data:/d:nocopy', 'mine:/m', 'theirs:/t']",
        "volumes:\n  data: {driver: x, driver_opts: {a: b}, labels: [l=1]}",
        "  mine: {name: my-own}\n  theirs: {external: true}\n",
    )
    data, mine, theirs = spec.task.container.mounts
    assert (data.source, data.driver, data.options, data.no_copy) == (
        "s_data",
        "x",
        {"a": "b"},
        True,
    )
    assert data.labels == {"l": "1", **STACK}
    assert mine.source == "my-own"
    assert (theirs.source, theirs.labels) == ("theirs", {})


def test_networks_have_the_stacks_names_and_the_service_its_aliases() -> None:
    text = """
services:
  web:
    image: a
    networks:
      front: {aliases: [www], ipv4_address: "10.1.0.5", mac_address: 02:42:0A:00:00:02}
      shared:
  other: {image: a}
networks:
  front: {ipam: {config: [{subnet: 10.1.0.0/16, gateway: 10.1.0.1}, {subnet: "fd00::/48"}]}}
  shared: {external: true, name: proxy}
"""
    stack = Given(text).stack()
    web, other = (each.spec.task.networks for each in stack.services)
    assert [(each.network, each.aliases) for each in web] == [
        ("s_front", ("web", "www")),
        ("proxy", ("web",)),
    ]
    assert (web[0].ip, web[0].mac) == (("10.1.0.5",), "02:42:0a:00:00:02")
    assert [each.network for each in other] == ["s_default"]
    front, shared, default = stack.networks
    assert (front.subnets, front.gateway) == (("10.1.0.0/16", "fd00::/48"), "10.1.0.1")
    assert (shared.name, shared.external, default.name) == ("proxy", True, "s_default")


def test_x_orc_extension() -> None:
    spec = service("""
deploy: {mode: replicated-job, replicas: 4}
x-orc:
  schedule: "0 2 * * *"
  time-zone: Europe/Vienna
  overlap: replace
  max-concurrent: 2
  deadline: 1h
  strategy: binpack
  affinity: node.labels.disk==ssd,weight=5
  anti-affinity: [service==s_db]
""")
    assert spec.job == JobSpec(2, 3600.0, "0 2 * * *", "Europe/Vienna", Overlap.REPLACE)
    assert [(each.rule, each.anti, each.weight) for each in spec.affinities] == [
        ("node.labels.disk==ssd", False, 5),
        ("service==s_db", True, 0),
    ]
    assert spec.strategy is Strategy.BINPACK
    spec = service("x-orc: {update-canary: 1, on-disconnect: keep}")
    assert (spec.update.canary, spec.on_disconnect.action.name) == (1, "KEEP")
    spec = service("x-orc: {priority: high, min-available: 50%, max-unavailable: 1}")
    assert (spec.priority, spec.disruption) == (100, DisruptionBudget("50%", "1"))
    assert service("x-orc: {priority: -7}").priority == -7
    queued = "{queue: nightly, all-or-nothing: true}"
    job = service(f"deploy: {{mode: replicated-job}}\nx-orc: {queued}").job
    assert (job.queue, job.all_or_nothing) == ("nightly", True)
    keys = "autoscale-min: 2, autoscale-max: 9, autoscale-cpu: 60, autoscale-up-window: 1m"
    assert service(f"x-orc: {{{keys}}}").autoscale == AutoscaleSpec(2, 9, 60, 0, 60.0, 300.0)
    keys = (
        "autoscale-min: 1, autoscale-max: 9, autoscale-query: 'sum(up)', autoscale-per-replica: 0.5"
    )
    assert service(f"x-orc: {{{keys}}}").autoscale == AutoscaleSpec(
        1, 9, query="sum(up)", per_replica=0.5
    )


def test_dependencies_and_their_order() -> None:
    text = """
services:
  web: {image: a, depends_on: {job: {condition: service_completed_successfully}, db: {condition: service_healthy}}, links: [cache]}
  cache: {image: a}
  job: {image: a, depends_on: [db]}
  db: {image: a}
"""  # noqa: E501
    stack = Given(text).stack()
    found = {each.key: each.spec for each in stack.services}
    assert [each.key for each in stack.services] == ["db", "job", "cache", "web"]
    assert found["web"].depends_on == (
        Dependency("s_job", DependencyCondition.COMPLETED),
        Dependency("s_db", DependencyCondition.HEALTHY),
        Dependency("s_cache", DependencyCondition.STARTED),
    )
    # Who is waited for to complete is not started again when it has.
    assert found["job"].task.restart.condition is RestartCondition.ON_FAILURE
    assert found["db"].task.restart.condition is RestartCondition.ANY


def test_built_image_is_named_after_the_stack() -> None:
    (one,) = Given("services: {web: {build: ./web}}").stack("shop").services
    assert one.spec.task.container.image == "shop_web:latest"
    assert one.build is not None
    assert one.build.section.text("context") == f"{FOLDER}/web"


@pytest.mark.parametrize("long", [False, True])
def test_build_context_is_a_url(long: bool) -> None:
    url = "https://git.example/me/web.git#v1:docker"
    section = f"{{context: '{url}'}}" if long else f"'{url}'"
    (one,) = Given(f"services: {{web: {{build: {section}}}}}").stack("shop").services
    assert one.build is not None
    assert one.build.section.text("context") == url
    with pytest.raises(ComposeError, match="contexts of ftp:// are unknown"):
        Given(f"services: {{web: {{build: {section.replace('https', 'ftp')}}}}}").stack("shop")


def test_seccomp_profile_is_embedded_in_the_spec() -> None:
    profile = '{"defaultAction": "SCMP_ACT_ALLOW"}'
    files = {
        "compose.yaml": "services: {web: {image: a, security_opt: ['seccomp:p.json']}}",
        "p.json": profile,
    }
    (one,) = Given(files).stack().services
    assert one.spec.task.container.seccomp == profile


def test_grants_of_files() -> None:
    text = """
services:
  web:
    image: a
    secrets: [pw, {source: key, target: certs/key, uid: "1", mode: 0400}]
    configs: [{source: c, target: /etc/c}]
secrets: {pw: {content: x}, key: {external: true, name: tls-key}}
configs: {c: {environment: C}}
"""
    stack = Given(text, {"C": "value"}).stack()
    (web,) = stack.services
    container = web.spec.task.container
    assert container.secrets == (
        FileReference("s_pw", "pw"),
        FileReference("tls-key", "certs/key", uid=1, mode=0o400),
    )
    assert container.configs == (FileReference("s_c", "/etc/c"),)
    assert [(each.name, each.external, each.content) for each in stack.files] == [
        ("s_pw", False, b"x"),
        ("tls-key", True, b""),
        ("s_c", False, b"value"),
    ]
    assert "'x'" not in repr(stack)


def test_volumes_from_another_service() -> None:
    text = """
services:
  web: {image: a, volumes_from: ["db:ro"], volumes: ["own:/own"], tmpfs: /run}
  db: {image: b, volumes_from: [base], volumes: ["data:/data", "/etc/x:/own"]}
  base: {image: c, volumes: ["data:/base", {type: tmpfs, target: /t}]}
volumes: {data: , own: }
"""
    found = {each.key: each.spec for each in Given(text).stack().services}
    mounts = [(m.source, m.target, m.read_only) for m in found["web"].task.container.mounts]
    assert mounts == [
        ("s_own", "/own", False),
        ("s_data", "/data", True),
        ("s_data", "/base", True),
    ]
    assert [each.service for each in found["web"].depends_on] == ["s_db"]
    with pytest.raises(ComposeError, match="of service 'db' has no name; give it one"):
        Given(text.replace("data:/data", "/data")).stack()
    with pytest.raises(ComposeError, match="depend on each other in a cycle"):
        Given(text.replace("image: c", "image: c, volumes_from: [web]")).stack()
