"""The flags that set one value of a spec, as Docker names them, and where each one goes.

They are data: `SETTINGS` names the flag, how its text is read, and the path in the spec. `create`
starts from an empty spec, `update` from the current one; what was not given is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli.flag_types import CPUS, DURATION, MEMORY, WORDS, Parsed, Setting
from orchestrator.cli.job_settings import JOB_SETTINGS
from orchestrator.cli.update_settings import UPDATE_SETTINGS, one_of
from orchestrator.model.disconnect import parse_disconnect
from orchestrator.model.placement import Strategy
from orchestrator.model.specs import (
    EndpointMode,
    HealthCheck,
    RestartCondition,
    ServiceSpec,
)
from orchestrator.model.units import parse_cpus, parse_memory
from orchestrator.model.validate import MIN_SHARES

F = TypeVar("F", bound=Callable[..., Any])

_CONDITIONS = [
    each.name.lower().replace("_", "-")
    for each in (RestartCondition.ANY, RestartCondition.ON_FAILURE, RestartCondition.NONE)
]


def _shares(text: str) -> int:
    try:
        shares = int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number of shares; a core has 1024") from None
    if shares < MIN_SHARES:
        raise ValueError(f"{text} shares must be at least {MIN_SHARES}; a core has 1024")
    return shares


def _reserved_cpus(text: str) -> int:
    shares = parse_cpus(text)
    if shares < MIN_SHARES:
        raise ValueError(f"{text} cores must be at least 0.002, which is {MIN_SHARES} shares")
    return shares


def _condition(text: str) -> RestartCondition:
    if text not in _CONDITIONS:
        raise ValueError(f"{text!r} is none of {', '.join(_CONDITIONS)}")
    return RestartCondition[text.upper().replace("-", "_")]


def _memory_swap(text: str) -> int:
    return -1 if text == "-1" else parse_memory(text, "memory swap")


def _seconds(text: str) -> float:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a number of seconds")
    return float(text)


SETTINGS = (
    Setting(("--replicas",), "replicas", click.INT, "How many tasks to run."),
    Setting(
        ("--endpoint-mode",),
        "endpoint_mode",
        Parsed("vip|dnsrr", one_of(EndpointMode)),
        "What its name stands for: an address that is balanced, or all tasks' (vip).",
    ),
    Setting(
        ("--replicas-max-per-node",),
        "max_per_node",
        click.INT,
        "Most tasks that a node may have (0: no limit).",
    ),
    Setting(
        ("--strategy",),
        "strategy",
        Parsed("spread|binpack|default", one_of(Strategy)),
        "Which nodes get its tasks: those with few, or the fullest (the cluster's).",
    ),
    Setting(
        ("--on-disconnect",),
        "on_disconnect",
        Parsed("replace|replace-after=30s|keep|stop-after=30s", parse_disconnect),
        "What becomes of tasks whose node is down (replace).",
    ),
    Setting(
        ("--reserve-cpu",),
        "task.reservation.shares",
        Parsed("cores", _reserved_cpus),
        "Cores that a node must have free, such as 0.5.",
    ),
    Setting(
        ("--reserve-memory",),
        "task.reservation.memory",
        MEMORY,
        "Memory that a node must have free, such as 64m.",
    ),
    Setting(("--limit-cpu", "--cpus"), "task.limit.shares", CPUS, "Most cores that it may use."),
    Setting(
        ("--limit-memory", "--memory", "-m"),
        "task.limit.memory",
        MEMORY,
        "Most memory that a task may use.",
    ),
    Setting(
        ("--memory-swap",),
        "task.container.memory_swap",
        Parsed("size", _memory_swap),
        "Most memory and swap together; -1: no limit.",
    ),
    Setting(
        ("--cpuset-cpus",), "task.container.cpuset_cpus", click.STRING, "CPUs to run on, 0-1,3."
    ),
    Setting(
        ("--cpu-shares",),
        "task.shares",
        Parsed("shares", _shares),
        "CPU weight, 1024 a core; what the scheduler counts unless --reserve-cpu says.",
    ),
    Setting(
        ("--pids-limit", "--limit-pids"),
        "task.container.pids_limit",
        click.INT,
        "Most processes of a task.",
    ),
    Setting(
        ("--restart-condition",),
        "task.restart.condition",
        Parsed("none|on-failure|any", _condition),
        "When an ended task is replaced (any).",
    ),
    Setting(
        ("--restart-delay",), "task.restart.delay", DURATION, "Time before a replacement (5s)."
    ),
    Setting(
        ("--restart-max-attempts",),
        "task.restart.max_attempts",
        click.INT,
        "Most restarts of a replica within the window (0: no limit).",
    ),
    Setting(
        ("--restart-window",),
        "task.restart.window",
        DURATION,
        "Time over which attempts are counted (0: forever).",
    ),
    *UPDATE_SETTINGS,
    *JOB_SETTINGS,
    Setting(
        ("--health-cmd",),
        "task.container.health.test",
        Parsed("command", lambda text: ("CMD-SHELL", text)),
        "A line for the container's shell; exit status 0 is healthy.",
    ),
    Setting(
        ("--health-http",),
        "task.container.health.test",
        Parsed("port[/path]", lambda text: ("HTTP", text)),
        "Ask by HTTP; 200 to 399 is healthy. As the next two, it needs nothing in the image.",
    ),
    Setting(
        ("--health-tcp",),
        "task.container.health.test",
        Parsed("port", lambda text: ("TCP", text)),
        "Open a connection.",
    ),
    Setting(
        ("--health-grpc",),
        "task.container.health.test",
        Parsed("port[/service]", lambda text: ("GRPC", text)),
        "Ask by gRPC's health checking protocol.",
    ),
    Setting(
        ("--health-interval",),
        "task.container.health.interval",
        DURATION,
        "Time between two probes (30s).",
    ),
    Setting(
        ("--health-timeout",), "task.container.health.timeout", DURATION, "Most of a probe (30s)."
    ),
    Setting(
        ("--health-retries",),
        "task.container.health.retries",
        click.INT,
        "Failures in a row that make it unhealthy (3).",
    ),
    Setting(
        ("--health-start-period",),
        "task.container.health.start_period",
        DURATION,
        "Time after the start in which failures do not count (0s).",
    ),
    Setting(
        ("--health-start-interval",),
        "task.container.health.start_interval",
        DURATION,
        "Most time between probes until one succeeds (5s).",
    ),
    Setting(
        ("--no-healthcheck",),
        "task.container.health",
        Parsed("flag", lambda _: HealthCheck(test=("NONE",))),
        "No probes, also if the image has some.",
        flag_value="none",
    ),
    Setting(
        ("--stop-signal",), "task.container.stop_signal", click.STRING, "Signal that asks to end."
    ),
    Setting(
        ("--stop-grace-period",),
        "task.container.stop_grace",
        DURATION,
        "Time between the stop signal and SIGKILL (10s).",
    ),
    Setting(
        ("--stop-timeout",),
        "task.container.stop_grace",
        Parsed("seconds", _seconds),
        "The same in seconds.",
    ),
    Setting(("--user", "-u"), "task.container.user", click.STRING, "USER[:GROUP] of the process."),
    Setting(
        ("--workdir", "-w"), "task.container.workdir", click.STRING, "Folder that it starts in."
    ),
    Setting(("--hostname",), "task.container.hostname", click.STRING, "The container's hostname."),
    Setting(
        ("--domainname",), "task.container.domainname", click.STRING, "The container's NIS domain."
    ),
    Setting(("--shm-size",), "task.container.shm_size", MEMORY, "Size of /dev/shm (64m)."),
    Setting(
        ("--oom-score-adj",),
        "task.container.oom_score_adj",
        click.INT,
        "How gladly the kernel kills it when the host's memory ends (-1000 to 1000).",
    ),
    Setting(
        ("--read-only/--no-read-only",),
        "task.container.read_only",
        click.BOOL,
        "Mount the container's root read-only.",
    ),
    Setting(
        ("--init/--no-init",),
        "task.container.init",
        click.BOOL,
        "Run a small init that passes signals on and reaps orphans.",
    ),
    Setting(
        ("--privileged/--no-privileged",),
        "task.container.privileged",
        click.BOOL,
        "All capabilities and devices of the node, as the node's own root.",
    ),
    Setting(
        ("--userns",),
        "task.container.userns",
        click.STRING,
        "host: the node's users; private: a range of ids of its own (the default).",
    ),
    Setting(("--runtime",), "task.container.runtime", click.STRING, "OCI runtime, such as runc."),
    Setting(
        ("--rootfs",),
        "task.container.rootfs",
        click.STRING,
        "host: a read-only view of the node's own files instead of an image.",
    ),
    Setting(
        ("--entrypoint",), "task.container.entrypoint", WORDS, "Replaces the image's entrypoint."
    ),
)


def setting_options(function: F) -> F:
    """Add the flags of SETTINGS; each is None unless given."""
    for setting in reversed(SETTINGS):
        function = click.option(
            *setting.flags,
            setting.name,
            type=setting.type,
            default=None,
            help=setting.help,
            **setting.click_options,
        )(function)
    return function


def apply_settings(spec: ServiceSpec, values: Mapping[str, Any]) -> ServiceSpec:
    """The spec with what was given of SETTINGS; other keys of `values` are ignored."""
    for setting in SETTINGS:
        if (value := values.get(setting.name)) is not None:
            spec = with_value(spec, setting.path, value)
    return spec


def with_value(obj: Any, path: str, value: Any) -> Any:
    """A copy of a nested dataclass with one value replaced."""
    name, _, rest = path.partition(".")
    return replace(obj, **{name: with_value(getattr(obj, name), rest, value) if rest else value})
