# SPDX-License-Identifier: Apache-2.0
"""Every flag of every command with each value that its help documents, and every example."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import click
import pytest
from commandkit import ALL

from orchestrator.cli.container.container_spec import container_request
from orchestrator.cli.flags.spec_builder import edited_spec, new_spec
from orchestrator.cli.flags.spec_settings import JOB_SETTINGS, default_job_spec
from orchestrator.cli.main import orc
from orchestrator.model.jobs import JobSpec
from orchestrator.model.specs import ContainerSpec, ServiceMode, TaskSpec

PLACEHOLDERS = {
    "ADDRESS": "10.0.0.1",
    "ALLOWANCE": "devices",
    "ATTRIBUTE": "node.labels.zone",
    "CAPABILITY": "NET_ADMIN",
    "COMMAND": "true",
    "CONFIG": "site",
    "CONTAINER": "web",
    "CORES": "0.5",
    "CPUS": "0-1,3",
    "DIR": "/tmp",
    "DOMAIN": "example.com",
    "DRIVER": "local",
    "DURATION": "1m30s",
    "FILE": "/dev/null",
    "GROUP": "audio",
    "HARD": "2048",
    "HOST": "db",
    "ID": "key",
    "IMAGE": "hello:1",
    "INTEGER": "2",
    "INTEGER RANGE": "2",
    "FLOAT RANGE": "5.5",
    "INSTRUCTION": "ENV A=b",
    "IP": "10.1.2.3",
    "KEY": "a",
    "KEYS": "ctrl-p,ctrl-q",
    "KIND": "gpu",
    "LIMIT": "nofile",
    "LOGOPT": "labels",
    "MAC": "02:00:00:00:00:01",
    "MOUNT": "type=volume,source=data,target=/data",
    "MIB": "10",
    "NAME": "web",
    "NETWORK": "back",
    "NODE": "node1",
    "NUMBER": "2",
    "OPTION": "ndots:2",
    "MICROSECONDS": "50000",
    "OPTIONS": "size=64m",
    "OS/ARCH": "linux/amd64",
    "PASSWORD": "hidden",
    "PATH": "/data",
    "PERCENT": "80",
    "PORT": "8080",
    "PORTS": "8080:80",
    "PUBLISHED": "8080",
    "QUEUE": "research",
    "RATIO": "0.25",
    "RULE": "node.labels.zone==a",
    "RUNTIME": "runc",
    "SCHEDULE": "*/5 * * * *",
    "SECONDS": "5",
    "SECRET": "password",
    "SERVICE": "db",
    "SHARES": "512",
    "SIGNAL": "SIGINT",
    "SIZE": "64m",
    "SOFT": "1024",
    "STAGE": "build",
    "SUBNET": "10.7.0.0/16",
    "SYSCTL": "net.core.somaxconn",
    "TARGET": "80",
    "TASK": "web.1",
    "TEMPLATE": "{{.ID}}",
    "TEXT": "words",
    "TIME": "2026-01-31T12:00:00Z",
    "TOKEN": "abc",
    "URL": "http://127.0.0.1:4318",
    "USER": "app",
    "VALUE": "1",
    "VERSION": "3",
    "VOLUME": "data:/data",
    "WORDS": "sh -c true",
    "ZONE": "Europe/Vienna",
}
"""A value for each word that stands for one."""

SPECIAL = {
    "CONTAINER[:ro]": ["web", "web:ro"],
    "HOST[:CONTAINER[:rwm]]": ["/dev/null", "/dev/null:/dev/x", "/dev/null:/dev/x:r"],
    "OPTION": ["ndots:2"],
    "PORT[/PATH]": ["8080", "8080/health"],
    "HOST:IP": ["db:10.1.2.3"],
    "HOST[:PORT]": ["10.0.0.1", "10.0.0.1:7420"],
    "RULE[,weight=NUMBER][,within=ATTRIBUTE]": [
        *("node.labels.disk==ssd", "node.labels.disk==ssd,weight=2", "service==db"),
        *("service==db,within=node.labels.zone", "service==db,weight=2,within=node.labels.zone"),
    ],
    "NUMBER|all|device=ID[,ID...]": ["2", "all", "device=0", "device=0,GPU-7"],
    "KIND=NUMBER|KIND=all|KIND=device=NAME[,NAME...]": ["a=2", "a=all", "a=device=b,c"],
    "KIND=NUMBER|KIND=NAME[,NAME...]": ["gpu=2", "gpu=a", "gpu=a,b"],
    "DIR|type=TYPE[,dest=PATH]": ["/tmp", "type=registry", "type=tar,dest=/tmp/a"],
    "id=ID[,src=FILE|,env=NAME]": ["id=key,src=/dev/null", "id=key,env=HOME"],
}
"""Values of metavars whose words stand for something else than elsewhere."""

BY_OPTION = {
    "--container-access": ["control-plane", "metadata,metrics", "all", "none"],
    "--autoscale-query": ["sum(rate(requests_total[1m]))"],
    "--prometheus": ["http://10.0.0.5:9090", "none"],
    "--ip": ["10.1.2.3"],
    "--ip6": ["fd00::3"],
    "--tmpfs-rm": ["/run"],
    "--mount-rm": ["/data"],
    "--security-opt": ["seccomp=unconfined", "no-new-privileges", "no-new-privileges=false"],
    "--opt": ["a=b"],
    "--storage-opt": ["size=64m"],
    "--userns": ["host", "private"],
    "--pid": ["host", "private", "container:web"],
    "--ipc": ["host", "private", "shareable", "container:web"],
    "--device-rm": ["/dev/null"],
    "--entrypoint": ["sh -c true", ""],
    "--time": ["5"],
    "--health-cmd": ["curl localhost"],
    "--no-proxy": ["localhost,10.0.0.0/8"],
}
"""Values of options that no metavar could say."""

_AUTOSCALED = ["--autoscale-max", "10", "--autoscale-min", "1", "--autoscale-cpu", "50"]

WITH = {
    "--deadline": ["--availability", "drain"],
    "--timeout": ["--availability", "drain"],
    "--max-unavailable": ["--availability", "drain"],
    "--network-alias": ["--network", "back"],
    "--autoscale-max": ["--autoscale-min", "1", "--autoscale-cpu", "50"],
    "--autoscale-min": ["--autoscale-max", "10", "--autoscale-cpu", "50"],
    "--autoscale-cpu": ["--autoscale-max", "10", "--autoscale-min", "1"],
    "--autoscale-memory": ["--autoscale-max", "10", "--autoscale-min", "1"],
    "--autoscale-query": [*_AUTOSCALED, "--autoscale-per-replica", "100"],
    "--autoscale-per-replica": [*_AUTOSCALED, "--autoscale-query", "sum(rate(requests[1m]))"],
    "--autoscale-up-window": _AUTOSCALED,
    "--autoscale-down-window": _AUTOSCALED,
    "--all-or-nothing": ["--queue", "research"],
    "--net-alias": ["--network", "back"],
    "--container-access": ["control-plane", "metadata,metrics", "all", "none"],
    "--ip": ["--network", "back"],
    "--ip6": ["--network", "back"],
    "--mac-address": ["--network", "back"],
    "--memory-swap": ["--memory", "32m"],
}
"""What an option makes sense with."""

OF_JOBS = [setting.name for setting in JOB_SETTINGS]


def expanded(pattern: str) -> list[str]:
    """`A[=B]` as `A` and `A=B`, `a|b` as both, `A...` as `A`."""
    if group := re.search(r"\[([^\[\]]*)\]", pattern):
        head, tail = pattern[: group.start()], pattern[group.end() :]
        return [
            *expanded(head + tail),
            *(each for one in group[1].split("|") if one for each in expanded(head + one + tail)),
        ]
    return [
        re.sub(r"[A-Z]+(/ARCH| RANGE)?", lambda word: PLACEHOLDERS[word[0]], each.strip("."))
        for each in pattern.split("|")
    ]


def documented(option: click.Option, ctx: click.Context) -> list[str]:
    """The values that a command's help documents for an option."""
    if keys := re.search(r"Keys: (.*)\.$", option.help or ""):
        values = {"type": "node"}
        return [f"{key}={values.get(key, '2026-01-31')}" for key in keys[1].split(", ")]
    name, metavar = max(option.opts, key=len), option.make_metavar(ctx)
    for table, key in ((BY_OPTION, name), (SPECIAL, metavar)):
        if key in table:
            return table[key]
    choice = re.fullmatch(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]", metavar)
    return expanded(choice[1] if choice else metavar)


def arguments(path: tuple[str, ...]) -> list[str]:
    """What a command cannot do without."""
    command = ALL[path]
    ctx = click.Context(command, info_name=path[-1])
    words = []
    for param in command.params:
        if isinstance(param, click.Option) and param.required:
            words += [param.opts[0], documented(param, ctx)[0]]
    for param in command.params:
        if isinstance(param, click.Argument) and (param.required or param.nargs == -1):
            if isinstance(param.type, click.Choice):
                words.append(param.type.choices[0])
            elif "=" in (metavar := param.make_metavar(ctx)):
                words.append(expanded(metavar.replace("REPLICAS", "NUMBER"))[0])
            else:
                words.append({"image": "hello:1"}.get(param.name or "", "web"))
    return words


def parsed(path: tuple[str, ...], words: list[str]) -> dict[str, Any]:
    """The values that a command is called with."""
    return dict(ALL[path].make_context(path[-1], list(words)).params)


def _updated(values: dict[str, Any]) -> object:
    is_job = any(values[name] is not None for name in OF_JOBS)
    mode = ServiceMode.REPLICATED_JOB if is_job else ServiceMode.REPLICATED
    image = ContainerSpec(image="hello:1")
    spec = replace(default_job_spec("web", mode), task=TaskSpec(container=image))
    return edited_spec(replace(spec, job=JobSpec(schedule="@daily")) if is_job else spec, values)


BUILDERS: Mapping[tuple[str, ...], Callable[[dict[str, Any]], object]] = {
    ("service", "create"): new_spec,
    ("service", "update"): _updated,
    ("run",): lambda values: container_request(values, False),
    ("create",): lambda values: container_request(values, False),
}
"""What is made of the values of a command before it calls a manager."""

OPTIONS = [
    pytest.param(path, option, id=f"{' '.join(path)} {max(option.opts, key=len)}")
    for path, command in ALL.items()
    for option in command.params
    if isinstance(option, click.Option)
]


@pytest.mark.parametrize(("path", "option"), OPTIONS)
def test_flag_accepts_documented_values(path: tuple[str, ...], option: click.Option) -> None:
    ctx = click.Context(ALL[path], info_name=path[-1])
    beside = WITH.get(max(option.opts, key=len), [])
    has_it = any(beside[:1] == [name] for param in ALL[path].params for name in param.opts)
    fixed = [*(beside if has_it else []), *arguments(path)]
    if path == ("service", "create") and option.name in OF_JOBS:
        fixed = ["--mode", "replicated-job", "--schedule", "@hourly", *fixed]
    without = parsed(path, fixed)
    names = [name for name in (*option.opts, *option.secondary_opts)]
    takes_none = option.is_flag or option.count
    if takes_none:
        lines = [[name] for name in names]
    else:
        lines = [[name, value] for name in names for value in documented(option, ctx)]
    for words in lines:
        values = parsed(path, [*words, *fixed])
        others = {key for key in values if values[key] != without[key]} - {option.name}
        assert not others, f"{words} also changes {others}"
        if build := BUILDERS.get(path):
            build(values)
    if not takes_none:
        for name in names:
            with pytest.raises(click.BadOptionUsage, match="requires an argument"):
                parsed(path, [name])


INNER = re.compile(r"\((orc [^)]*)\)")


def example_lines(command: click.Command, path: str = "orc") -> list[tuple[str, str]]:
    found = [
        (path, line.strip())
        for line in (command.epilog or "").splitlines()
        if line.startswith("  ")
    ]
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None
            found += example_lines(child, f"{path} {name}")
    return found


def parse_line(words: list[str]) -> None:
    """Parse a command line as `orc` does, down to the command's own values."""
    command: click.Command = orc
    ctx = orc.make_context("orc", words)
    while isinstance(command, click.Group):
        if command.invoke_without_command and not [*ctx._protected_args, *ctx.args]:
            return
        _, found, rest = command.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        assert found is not None
        command, ctx = found, found.make_context(found.name, rest, parent=ctx)


@pytest.mark.parametrize(
    ("path", "line"), [pytest.param(*each, id=each[1]) for each in example_lines(orc)]
)
def test_an_example_parses(path: str, line: str) -> None:
    shown = 0
    for part in re.split(r" \| | && |; ", line):
        words = shlex.split(part.partition(" > ")[0].partition(" < ")[0], comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words[:1] == ["sudo"]:
            del words[0]
        # Or within a line for the shell: `$(orc …)` or `<(orc …)`.
        lines = [words] if words[:1] == ["orc"] else map(shlex.split, INNER.findall(part))
        for each in lines:
            parse_line(each[1:])
            shown += 1
    assert shown, f"{path}: {line!r} shows no command of orc"
