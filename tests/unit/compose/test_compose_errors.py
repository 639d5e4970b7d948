# SPDX-License-Identifier: Apache-2.0
"""Bad compose files: one line each, with file, line and key, and what to do."""

from __future__ import annotations

import pytest
from composekit import refusal

WEB = "services:\n  web:\n    image: web:1\n"
"""Three lines; what follows is at line 4."""

BAD_SERVICE = [
    ("imge: x", "services.web.imge: there is no such key of a service; did you mean 'image'?"),
    ("comand: x", "services.web.comand: there is no such key of a service; did you mean"),
    ("frobnicate: x", "services.web.frobnicate: there is no such key of a service; see"),
    ("ports: 80", "services.web.ports: this is '80'; it takes a list"),
    ("ports: {a: b}", "services.web.ports: this is a map; it takes a list"),
    ("ports: [x]", "services.web.ports[0]: port 'x' is not of the form 8080:80[/udp]"),
    ("ports: ['80']", "services.web.ports[0]: no published port is given; write such as 8080:80"),
    ("ports: ['99999:80']", "services.web.ports[0]: port 99999 is not in 1-65535"),
    ("ports: ['8000-8002:80-81']", "has ranges of different lengths"),
    ("ports: ['127.0.0.1:80:80']", "Orc publishes at all addresses of the nodes, not at 127.0.0.1"),
    ("ports: ['80:80/sctp']", "services.web.ports[0]: sctp cannot be published; tcp and udp can"),
    ("ports: [{target: 80, published: 80, protocl: tcp}]", "did you mean 'protocol'?"),
    ("ports: [{published: 80}]", "services.web.ports[0]: target is missing"),
    ("ports: ['80:80', '80:81']", "services.web.ports: port 80/tcp is published twice"),
    ("environment: [=x]", "services.web.environment: a name is empty; write NAME=value"),
    ("environment: {A: [1]}", "services.web.environment.A: this is a list; it takes a text"),
    ("env_file: none.env", "services.web.env_file[0]: cannot read none.env: no such file"),
    ("volumes: ['data:/data']", "volume 'data' is not declared; add it under volumes"),
    ("volumes: ['a:b:c:d']", "volume 'a:b:c:d' is not of the form SOURCE:TARGET[:ro]"),
    ("volumes: ['./a:/a:rx']", "volume './a:/a:rx' has 'rx', which is none of ro, rw"),
    ("volumes: ['./a:a']", "services.web.volumes: mount target 'a' is not an absolute path"),
    ("volumes: [{type: bnd, target: /a}]", "'bnd' is unknown; did you mean 'bind'?"),
    ("volumes: [{type: cluster, target: /a}]", "cluster cannot be done: name a volume of a plugin"),
    ("volumes: [{type: tmpfs, target: /a, bind: {propagation: shared}}]", "has no bind options"),
    ("networks: [back]", "network 'back' is not declared; add it under networks"),
    ("network_mode: 'service:db'", "'service:db' is not supported: tasks may"),
    ("depends_on: [db]", "services.web.depends_on.db: there is no service 'db'; there are web"),
    ("depends_on: [web]", "services wait for one another in a circle: web -> web"),
    ("depends_on: {web: {condition: healthy}}", "did you mean 'service_healthy'?"),
    ("links: ['other:db']", "give 'other' the alias 'db' instead: networks: {NAME: {aliases:"),
    ("healthcheck: {test: [curl, x]}", "a list begins with CMD, CMD-SHELL, HTTP, TCP, GRPC or"),
    ("healthcheck: {interval: 5 parsecs}", "duration '5 parsecs' is not a length of time"),
    ("healthcheck: {interval: 30}", "duration '30' is not a length of time; write a number with"),
    ("deploy: {replicas: many}", "services.web.deploy.replicas: 'many' is not a whole number"),
    ("deploy: {replicas: -1}", "services.web.deploy.replicas: -1 is out of range; it is 0 or more"),
    ("deploy: {replicas: 10000000}", "replicas 10000000 is over 100000, the most"),
    ("deploy: {mode: globl}", "'globl' is unknown; did you mean 'global'?"),
    ("deploy: {mode: global, replicas: 2}", "a global service has a task on each node"),
    ("deploy: {placement: {constraints: [node.x == 1]}}", "deploy.placement.constraints[0]: "),
    ("deploy: {resources: {limits: {memory: much}}}", "memory 'much' is not a size"),
    ("deploy: {resources: {limits: {memory: 1k}}}", "services.web.deploy: memory limit 1KiB must"),
    ("deploy: {resources: {limits: {cpus: x}}}", "cpus 'x' is not a number of cores"),
    ("deploy: {update_config: {order: first}}", "services.web.deploy.update_config.order: 'first'"),
    ("deploy: {restart_policy: {condition: allways}}", "'allways' is unknown; there are any, none"),
    ("restart: sometimes", "'sometimes' is none of no, always, on-failure[:N], unless-stopped"),
    ("scale: 2\n    deploy: {replicas: 3}", "this is 2, and deploy.replicas is 3; leave one out"),
    ("mem_limit: 1g\n    deploy: {resources: {limits: {memory: 2g}}}", "leave one out"),
    ("cap_add: [NET_ADMN]", "services.web.cap_add[0]: capability 'NET_ADMN' is unknown"),
    ("sysctls: [kernel.domainname=x]", "sysctl 'kernel.domainname' is not the container's own"),
    ("ulimits: {nofle: 1}", "services.web.ulimits.nofle: ulimit 'nofle' is unknown"),
    ("ulimits: {nofile: {soft: 2, hard: 1}}", "has a soft limit of 2 above the hard one of 1"),
    ("devices: [sda]", "device 'sda' is not of the form /dev/NAME"),
    ("extra_hosts: ['h:host-gateway']", "host-gateway is of one machine; write an address"),
    ("extra_hosts: ['h:nowhere']", "host 'h:nowhere' is not of the form NAME:IP"),
    ("security_opt: [magic]", "services.web.security_opt[0]: 'magic' is unknown"),
    ("security_opt: ['seccomp:none.json']", "cannot read the seccomp profile none.json: no such"),
    ("stop_signal: SIGFOO", "stop signal 'SIGFOO' is unknown"),
    ("user: a b", "services.web.user: user 'a b' is not of the form USER[:GROUP]"),
    ("command: \"it's\"", "\"it's\" cannot be split into words: a quote is not closed"),
    ("privileged: perhaps", "'perhaps' is neither true nor false"),
    ("image: UPPER/x", "services.web.image: this key is there twice"),
    ("pid: 'service:web'", "services.web.pid: 'service:web' is not supported: tasks of a"),
    ("pid: 'container:web'", "or this one by 'orc run --pid container:NAME'"),
    ("pid: hots", "services.web.pid: 'hots' is unknown; did you mean 'host'?"),
    ("ipc: 'service:web'", "services.web.ipc: 'service:web' is not supported: tasks of a"),
    ("post_start: [{command: []}]", "services.web.post_start[0].command: this is nothing; write"),
    ("post_start: [{command: ''}]", "services.web.post_start[0].command: this is nothing; write"),
    ("post_start: [{user: root}]", "services.web.post_start[0]: command is missing"),
    ("post_start: {command: a}", "services.web.post_start: this is a map; it takes a list"),
    ("post_start: [{command: a, user: a b}]", "services.web.post_start: user 'a b' of hook 1 is"),
    ("pre_stop: [{command: a, per_replica: true}]",
     "services.web.pre_stop[0].per_replica: there is no such key of a lifecycle hook"),
    ("pre_stop: [{command: a, image: b}]", "services.web.pre_stop[0].image: there is no such key"),
    ("pre_stop: [{command: a}, {command: b, privileged: perhaps}]",
     "services.web.pre_stop[1].privileged: 'perhaps' is neither true nor false"),
    ("pre_start: [{command: a}]", "services.web.pre_start: run it as a service of its own, for"),
    ("ipc: none", "services.web.ipc: none is not supported; leave it out: /dev/shm is"),
    ("volumes_from: ['container:x']", "only services of the file share their volumes"),
    ("volumes_from: [x]", "services.web.volumes_from[0]: there is no service 'x'; there are web"),
    ("gpus: [{count: some}]", "gpus[0].count: 'some' is not a number of devices, nor all"),
    ("gpus: [{count: 1, device_ids: ['0']}]",
     "services.web.gpus[0]: count and device_ids exclude each other"),
    ("cgroup_parent: /x", "services.web.cgroup_parent: Orc has a cgroup of its own"),
    ("logging: {driver: gelf}", "gelf cannot be done: ship the files of json-file, or use syslog"),
    ("logging: {driver: local, options: {ratio: 1.50}}",
     "services.web.logging.options.ratio: log option 'ratio' of logging driver local is unknown"),
    ("external_links: [db]", "put both services on one network, under networks"),
    ("secrets: [pw]", "secret 'pw' is not declared; add it under secrets"),
    ("configs: [c]", "config 'c' is not declared; add it under configs"),
    ("extends: base", "services.web.extends: there is no service 'base' in compose.yaml"),
    ("extends: {service: a, file: none.yaml}", "cannot read none.yaml: no such file or directory"),
    ("extends: web", "services.web.extends: this service extends itself"),
    ("user: ${NOBODY:?who is it}", "services.web.user: variable NOBODY must be set: who is it"),
    ("user: ${1}", "services.web.user: '${1}' is no variable; write such as ${NAME:-default}"),
    ("x-orc: {strtegy: spread}", "services.web.x-orc.strtegy: there is no such key of x-orc; did"),
    ("x-orc: {affinity: [a]}", "services.web.x-orc.affinity[0]: "),
    ("x-orc: {schedule: '61 * * * *'}", "services.web.x-orc.schedule: "),
    ("x-orc: {schedule: '@daily'}", "services.web.x-orc: only jobs have a parallelism, deadline"),
    ("user: !secret x", "services.web.user: the tag !secret is unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), BAD_SERVICE)
def test_a_bad_service_is_refused_with_its_line(line: str, words: str) -> None:
    text = refusal(f"{WEB}    {line}\n")
    assert words in text
    assert text.startswith("compose.yaml:"), text
    number = int(text.split(":")[1])
    # The key's own line; of what names no key, the service's.
    assert number in (2, 4, 5), text


BAD_FILE = [
    ("servces: {}", "compose.yaml:1: servces: there is no such key of a compose file; did you"),
    ("services: [web]", "compose.yaml:1: services: this is a list; it takes a map"),
    ("services:\n  web: nginx", "compose.yaml:2: services.web: this is 'nginx'; it takes a map"),
    ("services:\n  web: {}", "compose.yaml:2: services.web: neither image nor build says what"),
    ("services:\n  w.eb: {image: x}", "services.w.eb: service name 'w.eb' is not a"),
    ("services: {}", "compose.yaml:1: services: there is no service"),
    ("", "services: there is no service"),
    ("- a", "compose.yaml:1: this is no compose file; it has keys such as services"),
    ("a: b: c", "compose.yaml:1: mapping values are not allowed in this context"),
    ("services:\n\tweb: x", "compose.yaml:2: while scanning for the next token found character"),
    ("services: {web: {image: *x}}", "compose.yaml:1:"),
    ("a: &a [*a]", "an anchor contains itself"),
    ("? [a]\n: b", "compose.yaml:1: a key is a list or a map; keys are texts"),
    ("services:\n  web:\n    image: w:1\n    <<: 3", "services.web.<<: only maps can be merged"),
    (WEB + "networks:\n  back: {driver_opt: {}}", "compose.yaml:5: networks.back.driver_opt:"),
    (WEB + "networks:\n  back: {external: {name: x}, name: y}", "this is x, and name is y; leave"),
    (WEB + "networks:\n  back: {external: {nme: x}}", "back.external.nme: there is no such key"),
    (WEB + "volumes:\n  data: {external: true, driver: nfs}", "so driver is not this stack's"),
    (WEB + "networks:\n  ba.ck: {}", "network name 's_ba.ck' is not a DNS label"),
    (
        WEB + "networks:\n  back: {driver_opts: {encrypted: maybe}}",
        "networks.back.driver_opts: network option encrypted=maybe is neither true nor false",
    ),
    (
        WEB + "networks:\n  back: {driver_opts: {source-check: maybe}}",
        "networks.back.driver_opts: network option source-check=maybe is neither on nor off",
    ),
    (WEB + "volumes:\n  data: {driver_opts: {sze: 1g}}", "the local volume driver has no option"),
    (WEB + "volumes:\n  data: {external: 3}", "volumes.data.external: '3' is neither true nor"),
    (WEB + "secrets:\n  pw: {file: none}", "compose.yaml:5: secrets.pw.file: cannot read"),
    (WEB + "secrets:\n  pw: {environment: NONE}", "secrets.pw.environment: the environment has"),
    (WEB + "secrets:\n  pw: {}", "a secret has one of file, environment, content, or external:"),
    (WEB + "configs:\n  c: {file: a, content: b}", "a config has one of file, environment,"),
    (WEB + "include: [none.yaml]", "compose.yaml:4: include: cannot read none.yaml: no such file"),
    (WEB + "include: [compose.yaml]", "compose.yaml:4: include: files include each other in"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), BAD_FILE)
def test_a_bad_file_is_refused(text: str, words: str) -> None:
    assert words in refusal(text)


def test_two_files_may_not_bring_the_same_name() -> None:
    files = {
        "compose.yaml": "include: [other.yaml]\n" + WEB,
        "other.yaml": "services:\n  web: {image: other}\n",
    }
    words = "services.web: other.yaml:2 has it too, which is included; rename one of them"
    assert words in refusal(files)


def test_a_circle_of_dependencies_is_named() -> None:
    text = "services:\n" + "".join(
        f"  {name}: {{image: x, depends_on: [{other}]}}\n"
        for name, other in (("a", "b"), ("b", "c"), ("c", "a"))
    )
    words = "compose.yaml:2: services.a.depends_on: services wait for one another in a circle"
    assert words in refusal(text)
    assert "a -> b -> c -> a" in refusal(text)


def test_who_is_waited_for_to_complete_cannot_restart_always() -> None:
    text = (
        "services:\n"
        "  web: {image: x, depends_on: {job: {condition: service_completed_successfully}}}\n"
        "  job: {image: x, restart: always}\n"
    )
    words = "compose.yaml:3: services.job.restart: others wait for this service to complete"
    assert words in refusal(text)


def test_a_bomb_of_anchors_is_refused() -> None:
    lines = ["x-0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 9):
        lines.append(f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]")
    assert "the file has over" in refusal("\n".join(lines))
