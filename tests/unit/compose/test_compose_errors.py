# SPDX-License-Identifier: Apache-2.0
"""Bad compose files: one line each, with file, line and key, and what to do."""

from __future__ import annotations

import pytest
from composekit import refusal

WEB = "services:\n  web:\n    image: web:1\n"
"""Three lines; what follows is at line 4."""

BAD_SERVICE = [
    ("imge: x", "services.web.imge: unknown key of a service; did you mean 'image'?"),
    ("comand: x", "services.web.comand: unknown key of a service; did you mean"),
    ("frobnicate: x", "services.web.frobnicate: unknown key of a service; see"),
    ("ports: 80", "services.web.ports: expected a list, got '80'"),
    ("ports: {a: b}", "services.web.ports: expected a list, got a map"),
    ("ports: [x]", "services.web.ports[0]: port 'x' is not of the form 8080:80[/udp]"),
    ("ports: ['80']", "services.web.ports[0]: the published port is missing; write, for example,"),
    ("ports: ['99999:80']", "services.web.ports[0]: port 99999 is not in 1-65535"),
    ("ports: ['8000-8002:80-81']", "differ in length"),
    ("ports: ['127.0.0.1:80:80']", "host_ip 127.0.0.1 is not supported: ports are published at"),
    ("ports: ['80:80/sctp']", "services.web.ports[0]: protocol sctp is not supported; use tcp or"),
    ("ports: [{target: 80, published: 80, protocl: tcp}]", "did you mean 'protocol'?"),
    ("ports: [{published: 80}]", "services.web.ports[0]: target is missing"),
    ("ports: ['80:80', '80:81']", "services.web.ports: port 80/tcp is published twice"),
    ("environment: [=x]", "services.web.environment: a name is empty; write NAME=value"),
    ("environment: {A: [1]}", "services.web.environment.A: expected a string, got a list"),
    ("env_file: none.env", "services.web.env_file[0]: cannot read none.env: no such file"),
    ("volumes: ['data:/data']", "volume 'data' is not declared; add it under volumes"),
    ("volumes: ['a:b:c:d']", "volume 'a:b:c:d' is not of the form SOURCE:TARGET[:ro]"),
    ("volumes: ['./a:/a:rx']", "volume './a:/a:rx': mode 'rx' is unknown; use one of ro, rw"),
    ("volumes: ['./a:a']", "services.web.volumes: mount target 'a' is not an absolute path"),
    ("volumes: [{type: bnd, target: /a}]", "'bnd' is unknown; did you mean 'bind'?"),
    ("volumes: [{type: cluster, target: /a}]", "cluster is not supported: use type volume with a"),
    ("volumes: [{type: tmpfs, target: /a, bind: {propagation: shared}}]", "takes no bind options"),
    ("networks: [back]", "network 'back' is not declared; add it under networks"),
    ("network_mode: 'service:db'", "'service:db' is not supported: tasks may"),
    ("depends_on: [db]", "services.web.depends_on.db: service 'db' not found; there are web"),
    ("depends_on: [web]", "services depend on each other in a cycle: web -> web"),
    ("depends_on: {web: {condition: healthy}}", "did you mean 'service_healthy'?"),
    ("links: ['other:db']", "give 'other' the alias 'db': networks: {NAME: {aliases:"),
    ("healthcheck: {test: [curl, x]}", "test list begins with CMD, CMD-SHELL, HTTP, TCP, GRPC or"),
    ("healthcheck: {interval: 5 parsecs}", "duration '5 parsecs' is not a duration"),
    ("healthcheck: {interval: 30}", "duration '30' is not a duration; write a number with"),
    ("deploy: {replicas: many}", "services.web.deploy.replicas: 'many' is not a whole number"),
    ("deploy: {replicas: -1}", "services.web.deploy.replicas: -1 is out of range: 0 or more"),
    ("deploy: {replicas: 10000000}", "replicas 10000000 is over 100000, the most"),
    ("deploy: {mode: globl}", "'globl' is unknown; did you mean 'global'?"),
    ("deploy: {mode: global, replicas: 2}", "a global service runs one task per node"),
    ("deploy: {placement: {constraints: [node.x == 1]}}", "deploy.placement.constraints[0]: "),
    ("deploy: {resources: {limits: {memory: much}}}", "memory 'much' is not a size"),
    ("deploy: {resources: {limits: {memory: 1k}}}", "services.web.deploy: memory limit 1KiB must"),
    ("deploy: {resources: {limits: {cpus: x}}}", "cpus 'x' is not a number of cores"),
    ("deploy: {update_config: {order: first}}", "services.web.deploy.update_config.order: 'first'"),
    ("deploy: {restart_policy: {condition: allways}}", "'allways' is unknown; there are any, none"),
    ("restart: sometimes", "'sometimes' is not one of no, always, on-failure[:N], unless-stopped"),
    ("scale: 2\n    deploy: {replicas: 3}", "2 conflicts with deploy.replicas: 3; leave one out"),
    ("mem_limit: 1g\n    deploy: {resources: {limits: {memory: 2g}}}", "leave one out"),
    ("cap_add: [NET_ADMN]", "services.web.cap_add[0]: capability 'NET_ADMN' is unknown"),
    ("sysctls: [kernel.domainname=x]", "sysctl 'kernel.domainname' is not the container's own"),
    ("ulimits: {nofle: 1}", "services.web.ulimits.nofle: ulimit 'nofle' is unknown"),
    ("ulimits: {nofile: {soft: 2, hard: 1}}", "has a soft limit of 2 above the hard one of 1"),
    ("devices: [sda]", "device 'sda' is not of the form /dev/NAME"),
    ("extra_hosts: ['h:host-gateway']", "host-gateway is not supported in a cluster; write an"),
    ("extra_hosts: ['h:nowhere']", "host 'h:nowhere' is not of the form NAME:IP"),
    ("security_opt: [magic]", "services.web.security_opt[0]: 'magic' is unknown"),
    ("security_opt: ['seccomp:none.json']", "cannot read the seccomp profile none.json: no such"),
    ("stop_signal: SIGFOO", "stop signal 'SIGFOO' is unknown"),
    ("user: a b", "services.web.user: user 'a b' is not of the form USER[:GROUP]"),
    ("command: \"it's\"", "\"it's\" cannot be split into words: a quote is not closed"),
    ("privileged: perhaps", "'perhaps' is not a boolean"),
    ("image: UPPER/x", "services.web.image: duplicate key"),
    ("pid: 'service:web'", "services.web.pid: 'service:web' is not supported: tasks of a"),
    ("pid: 'container:web'", "or this one by 'orc run --pid container:NAME'"),
    ("pid: hots", "services.web.pid: 'hots' is unknown; did you mean 'host'?"),
    ("ipc: 'service:web'", "services.web.ipc: 'service:web' is not supported: tasks of a"),
    ("post_start: [{command: []}]", "services.web.post_start[0].command: the command is empty;"),
    ("post_start: [{command: ''}]", "services.web.post_start[0].command: the command is empty;"),
    ("post_start: [{user: root}]", "services.web.post_start[0]: command is missing"),
    ("post_start: {command: a}", "services.web.post_start: expected a list, got a map"),
    ("post_start: [{command: a, user: a b}]", "services.web.post_start: user 'a b' of hook 1 is"),
    ("pre_stop: [{command: a, per_replica: true}]",
     "services.web.pre_stop[0].per_replica: unknown key of a lifecycle hook"),
    ("pre_stop: [{command: a, image: b}]", "services.web.pre_stop[0].image: unknown key of a"),
    ("pre_stop: [{command: a}, {command: b, privileged: perhaps}]",
     "services.web.pre_stop[1].privileged: 'perhaps' is not a boolean"),
    ("pre_start: [{command: a}]", "services.web.pre_start: run it as a separate service"),
    ("ipc: none", "services.web.ipc: none is not supported; leave it out: /dev/shm is"),
    ("volumes_from: ['container:x']", "only volumes of services of the file can be shared"),
    ("volumes_from: [x]", "services.web.volumes_from[0]: service 'x' not found; there are web"),
    ("gpus: [{count: some}]", "gpus[0].count: 'some' is not a number of devices or 'all'"),
    ("gpus: [{count: 1, device_ids: ['0']}]",
     "services.web.gpus[0]: count and device_ids exclude each other"),
    ("cgroup_parent: /x", "services.web.cgroup_parent: containers are in Orc's cgroup"),
    ("logging: {driver: gelf}", "gelf is not supported: ship the files of json-file, or use"),
    ("logging: {driver: local, options: {ratio: 1.50}}",
     "services.web.logging.options.ratio: log option 'ratio' of logging driver local is unknown"),
    ("external_links: [db]", "attach both services to a network"),
    ("secrets: [pw]", "secret 'pw' is not declared; add it under secrets"),
    ("configs: [c]", "config 'c' is not declared; add it under configs"),
    ("extends: base", "services.web.extends: service 'base' not found in compose.yaml"),
    ("extends: {service: a, file: none.yaml}", "cannot read none.yaml: no such file or directory"),
    ("extends: web", "services.web.extends: this service extends itself"),
    ("user: ${NOBODY:?who is it}", "services.web.user: variable NOBODY must be set: who is it"),
    ("user: ${1}", "services.web.user: '${1}' is not a variable; write ${NAME:-default}"),
    ("x-orc: {strtegy: spread}", "services.web.x-orc.strtegy: unknown key of x-orc; did"),
    ("x-orc: {affinity: [a]}", "services.web.x-orc.affinity[0]: "),
    ("x-orc: {schedule: '61 * * * *'}", "services.web.x-orc.schedule: "),
    ("x-orc: {schedule: '@daily'}", "services.web.x-orc: only jobs have a parallelism, deadline"),
    ("user: !secret x", "services.web.user: unknown tag !secret"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), BAD_SERVICE)
def test_invalid_service_is_an_error_with_its_line(line: str, words: str) -> None:
    text = refusal(f"{WEB}    {line}\n")
    assert words in text
    assert text.startswith("compose.yaml:"), text
    number = int(text.split(":")[1])
    # The key's own line; of what names no key, the service's.
    assert number in (2, 4, 5), text


BAD_FILE = [
    ("servces: {}", "compose.yaml:1: servces: unknown key of a compose file; did you"),
    ("services: [web]", "compose.yaml:1: services: expected a map, got a list"),
    ("services:\n  web: nginx", "compose.yaml:2: services.web: expected a map, got 'nginx'"),
    ("services:\n  web: {}", "compose.yaml:2: services.web: image and build are both missing"),
    ("services:\n  w.eb: {image: x}", "services.w.eb: service name 'w.eb' is not a"),
    ("services: {}", "compose.yaml:1: services: the file has no services"),
    ("", "services: the file has no services"),
    ("- a", "compose.yaml:1: not a compose file, which is a map with keys such as"),
    ("a: b: c", "compose.yaml:1: mapping values are not allowed in this context"),
    ("services:\n\tweb: x", "compose.yaml:2: while scanning for the next token found character"),
    ("services: {web: {image: *x}}", "compose.yaml:1:"),
    ("a: &a [*a]", "an anchor contains itself"),
    ("? [a]\n: b", "compose.yaml:1: a key must be a string, not a list or map"),
    ("services:\n  web:\n    image: w:1\n    <<: 3", "services.web.<<: only maps can be merged"),
    (WEB + "networks:\n  back: {driver_opt: {}}", "compose.yaml:5: networks.back.driver_opt:"),
    (WEB + "networks:\n  back: {external: {name: x}, name: y}", "x conflicts with name: y; leave"),
    (WEB + "networks:\n  back: {external: {nme: x}}", "back.external.nme: unknown key; did you"),
    (WEB + "volumes:\n  data: {external: true, driver: nfs}", "driver and external exclude each"),
    (WEB + "networks:\n  ba.ck: {}", "network name 's_ba.ck' is not a DNS label"),
    (
        WEB + "networks:\n  back: {driver_opts: {encrypted: maybe}}",
        "networks.back.driver_opts: network option encrypted=maybe is not a boolean",
    ),
    (
        WEB + "networks:\n  back: {driver_opts: {source-check: maybe}}",
        "networks.back.driver_opts: network option source-check=maybe is neither on nor off",
    ),
    (WEB + "volumes:\n  data: {driver_opts: {sze: 1g}}", "the local volume driver has no option"),
    (WEB + "volumes:\n  data: {external: 3}", "volumes.data.external: '3' is not a boolean"),
    (WEB + "secrets:\n  pw: {file: none}", "compose.yaml:5: secrets.pw.file: cannot read"),
    (WEB + "secrets:\n  pw: {environment: NONE}", "secrets.pw.environment: environment variable"),
    (WEB + "secrets:\n  pw: {}", "a secret takes exactly one of file, environment, content, or"),
    (WEB + "configs:\n  c: {file: a, content: b}", "a config takes exactly one of file,"),
    (WEB + "include: [none.yaml]", "compose.yaml:4: include: cannot read none.yaml: no such file"),
    (WEB + "include: [compose.yaml]", "compose.yaml:4: include: include cycle: compose.yaml ->"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), BAD_FILE)
def test_invalid_file_is_an_error(text: str, words: str) -> None:
    assert words in refusal(text)


def test_conflicting_definitions_of_an_include_are_an_error() -> None:
    files = {
        "compose.yaml": "include: [other.yaml]\n" + WEB,
        "other.yaml": "services:\n  web: {image: other}\n",
    }
    words = (
        "services.web: conflicts with the included definition at other.yaml:2; rename one of them"
    )
    assert words in refusal(files)


def test_dependency_cycle_is_an_error() -> None:
    text = "services:\n" + "".join(
        f"  {name}: {{image: x, depends_on: [{other}]}}\n"
        for name, other in (("a", "b"), ("b", "c"), ("c", "a"))
    )
    words = "compose.yaml:2: services.a.depends_on: services depend on each other in a cycle"
    assert words in refusal(text)
    assert "a -> b -> c -> a" in refusal(text)


def test_restart_always_conflicts_with_waiting_for_completion() -> None:
    text = (
        "services:\n"
        "  web: {image: x, depends_on: {job: {condition: service_completed_successfully}}}\n"
        "  job: {image: x, restart: always}\n"
    )
    words = "compose.yaml:3: services.job.restart: other services wait for this one to complete"
    assert words in refusal(text)


def test_nested_anchors_beyond_the_limit_are_an_error() -> None:
    lines = ["x-0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 9):
        lines.append(f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]")
    assert "the file has more than" in refusal("\n".join(lines))
