# SPDX-License-Identifier: Apache-2.0
"""The flags that set one value of a spec, as Docker names them, and where each one goes.

They are data: `SETTINGS` names the flag, its type, and the path in the spec. `create` starts from
an empty spec, `update` from the current one; values not given stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli.flags.flag_types import CPUS, DURATION, MEMORY, WORDS, Parsed, Setting
from orchestrator.cli.flags.update_settings import UPDATE_SETTINGS, parse_member
from orchestrator.model.jobs import Missed, Overlap
from orchestrator.model.placement import Strategy, parse_disconnect
from orchestrator.model.scheduling.disruptions import parse_count, parse_priority
from orchestrator.model.specs import (
    EndpointMode,
    HealthCheck,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.model.units import parse_cpus, parse_memory
from orchestrator.model.validation.job_specs import DEFAULT_RETRIES
from orchestrator.model.validation.service_specs import MIN_SHARES


def _boolean(text: str) -> bool:
    return text == "true"


JOB_SETTINGS = (
    Setting(
        ("--max-concurrent", "--parallelism"),
        "job.parallelism",
        click.INT,
        "Maximum number of tasks of a job at a time; 0: all at once.",
        default="0",
    ),
    Setting(
        ("--deadline",),
        "job.deadline",
        DURATION,
        "Time after which a job has failed; 0s: no limit.",
        default="0s",
    ),
    Setting(
        ("--schedule",),
        "job.schedule",
        click.STRING,
        "When to run the job, such as '*/5 8-17 * * mon-fri' or @daily.",
        metavar="SCHEDULE",
    ),
    Setting(
        ("--time-zone",),
        "job.time_zone",
        click.STRING,
        "Time zone of the schedule, such as Europe/Vienna.",
        default="UTC",
        metavar="ZONE",
    ),
    Setting(
        ("--overlap",),
        "job.overlap",
        Parsed("forbid|allow|replace", parse_member(Overlap)),
        "What to do when a run is due while another is in progress; forbid skips it.",
        default="forbid",
    ),
    Setting(
        ("--missed",),
        "job.missed",
        Parsed("once|skip", parse_member(Missed)),
        "Whether to make up, with one run, for those missed while no manager was available.",
        default="once",
    ),
    Setting(
        ("--queue",),
        "job.queue",
        click.STRING,
        "The queue in which its tasks wait for their share of the cluster.",
        metavar="QUEUE",
    ),
    Setting(
        ("--all-or-nothing",),
        "job.all_or_nothing",
        Parsed("boolean", _boolean),
        "Start the tasks of a run together, or none of them; needs --queue.",
        flag_value="true",
    ),
    Setting(
        ("--history",),
        "job.history",
        click.INT,
        "Number of runs to keep, with their tasks.",
        default="5",
    ),
)


def default_job_spec(name: str, mode: ServiceMode) -> ServiceSpec:
    """The default spec of a job."""
    if not mode.is_job:
        return ServiceSpec(name=name, mode=mode)
    restart = RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=DEFAULT_RETRIES)
    return ServiceSpec(name=name, mode=mode, task=TaskSpec(restart=restart))


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
        raise ValueError(f"{text!r} is not one of {', '.join(_CONDITIONS)}")
    return RestartCondition[text.upper().replace("-", "_")]


def _memory_swap(text: str) -> int:
    return -1 if text == "-1" else parse_memory(text, "memory swap")


MEMORY_SWAP = Parsed("size", _memory_swap)


def _seconds(text: str) -> float:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a number of seconds")
    return float(text)


AUTOSCALE_SETTINGS = (
    Setting(
        ("--autoscale-max",),
        "autoscale.most",
        click.INT,
        "Autoscale it to at most this number of replicas; 0: not at all.",
        default="0",
    ),
    Setting(
        ("--autoscale-min",),
        "autoscale.least",
        click.INT,
        "Autoscale it to at least this number of replicas.",
    ),
    Setting(
        ("--autoscale-cpu",),
        "autoscale.cpu",
        click.INT,
        "Target of the mean CPU use of its tasks, in percent of --reserve-cpu.",
        metavar="PERCENT",
    ),
    Setting(
        ("--autoscale-memory",),
        "autoscale.memory",
        click.INT,
        "Target of the mean memory use of its tasks, in percent of --reserve-memory.",
        metavar="PERCENT",
    ),
    Setting(
        ("--autoscale-query",),
        "autoscale.query",
        click.STRING,
        "PromQL for the load of the whole service, such as its requests per second.",
        metavar="PROMQL",
    ),
    Setting(
        ("--autoscale-per-replica",),
        "autoscale.per_replica",
        click.FLOAT,
        "The query's value that one replica is for.",
        metavar="NUMBER",
    ),
    Setting(
        ("--autoscale-up-window",),
        "autoscale.up_window",
        DURATION,
        "How long more replicas must have been needed before some are added.",
        default="0s",
    ),
    Setting(
        ("--autoscale-down-window",),
        "autoscale.down_window",
        DURATION,
        "How long fewer replicas must have sufficed before some are removed.",
        default="5m",
    ),
)
RESERVED_CPUS = Parsed("cores", _reserved_cpus)
PRIORITY = Parsed("priority", parse_priority)
PRIORITY_METAVAR = "low|normal|high|critical|NUMBER"
PRIORITY_HELP = (
    "Tasks of higher priority are placed first, and preempt those of lower priority if they fit"
    " nowhere."
)

SETTINGS = (
    Setting(("--replicas",), "replicas", click.INT, "Number of tasks."),
    Setting(
        ("--endpoint-mode",),
        "endpoint_mode",
        Parsed("vip|dnsrr", parse_member(EndpointMode)),
        "How its name resolves: to one virtual IP (vip), or to all tasks (dnsrr).",
        default="vip",
    ),
    Setting(
        ("--replicas-max-per-node",),
        "max_per_node",
        click.INT,
        "Maximum number of its tasks on one node; 0: no limit.",
        default="0",
    ),
    Setting(
        ("--strategy",),
        "strategy",
        Parsed("spread|binpack|default", parse_member(Strategy)),
        "Placement of its tasks: on nodes with the fewest of them, or the fullest.",
        default="the cluster's",
    ),
    Setting(
        ("--on-disconnect",),
        "on_disconnect",
        Parsed("replace|replace-after=DURATION|keep|stop-after=DURATION", parse_disconnect),
        "What to do with tasks whose node is down.",
        default="replace",
    ),
    Setting(
        ("--min-available",),
        "disruption.min_available",
        Parsed("number|percent%", parse_count),
        "Minimum number of its tasks that keep working when others are stopped for a drain or a"
        " preemption.",
        metavar="NUMBER|PERCENT%",
    ),
    Setting(
        ("--max-unavailable",),
        "disruption.max_unavailable",
        Parsed("number|percent%", parse_count),
        "Maximum number of its tasks that a drain or a preemption makes unavailable at a time.",
        metavar="NUMBER|PERCENT%",
    ),
    *AUTOSCALE_SETTINGS,
    Setting(
        ("--priority",),
        "priority",
        PRIORITY,
        PRIORITY_HELP,
        default="normal",
        metavar=PRIORITY_METAVAR,
    ),
    Setting(
        ("--reserve-cpu",),
        "task.reservation.shares",
        RESERVED_CPUS,
        "Cores to reserve on the node, such as 0.5.",
    ),
    Setting(
        ("--reserve-memory",),
        "task.reservation.memory",
        MEMORY,
        "Memory to reserve on the node, such as 64m.",
    ),
    Setting(
        ("--limit-cpu", "--cpus"),
        "task.limit.shares",
        CPUS,
        "Maximum number of cores, such as 1.5.",
    ),
    Setting(
        ("--limit-memory", "--memory", "-m"),
        "task.limit.memory",
        MEMORY,
        "Maximum memory.",
    ),
    Setting(
        ("--memory-swap",),
        "task.container.memory_swap",
        MEMORY_SWAP,
        "Maximum memory and swap together; -1: no limit.",
        metavar="SIZE|-1",
    ),
    Setting(
        ("--cpuset-cpus",),
        "task.container.cpuset_cpus",
        click.STRING,
        "CPUs to run on, such as 0-1,3.",
        metavar="CPUS",
    ),
    Setting(
        ("--cpu-shares",),
        "task.shares",
        Parsed("shares", _shares),
        "CPU weight, 1024 a core. Reserved as well, unless --reserve-cpu is given.",
    ),
    Setting(
        ("--pids-limit", "--limit-pids"),
        "task.container.pids_limit",
        click.INT,
        "Maximum number of processes.",
    ),
    Setting(
        ("--restart-condition",),
        "task.restart.condition",
        Parsed("none|on-failure|any", _condition),
        "When to restart a task that has ended.",
        default="any",
    ),
    Setting(
        ("--restart-delay",),
        "task.restart.delay",
        DURATION,
        "Delay between restarts.",
        default="5s",
    ),
    Setting(
        ("--restart-max-attempts",),
        "task.restart.max_attempts",
        click.INT,
        "Maximum number of restarts of a replica within the window; 0: no limit.",
        default="0",
    ),
    Setting(
        ("--restart-window",),
        "task.restart.window",
        DURATION,
        "Period in which attempts are counted; 0s: no limit.",
        default="0s",
    ),
    *UPDATE_SETTINGS,
    *JOB_SETTINGS,
    Setting(
        ("--health-cmd",),
        "task.container.health.test",
        Parsed("command", lambda text: ("CMD-SHELL", text)),
        "Check health with a command in the container's shell; exit status 0 is healthy.",
    ),
    Setting(
        ("--health-http",),
        "task.container.health.test",
        Parsed("port[/path]", lambda text: ("HTTP", text)),
        "Check health with an HTTP request; 200 to 399 is healthy. Needs no program in the image.",
    ),
    Setting(
        ("--health-tcp",),
        "task.container.health.test",
        Parsed("port", lambda text: ("TCP", text)),
        "Check health by opening a TCP connection.",
    ),
    Setting(
        ("--health-grpc",),
        "task.container.health.test",
        Parsed("port[/service]", lambda text: ("GRPC", text)),
        "Check health with the gRPC health checking protocol.",
    ),
    Setting(
        ("--health-interval",),
        "task.container.health.interval",
        DURATION,
        "Time between two checks.",
        default="30s",
    ),
    Setting(
        ("--health-timeout",),
        "task.container.health.timeout",
        DURATION,
        "Maximum time of one check.",
        default="30s",
    ),
    Setting(
        ("--health-retries",),
        "task.container.health.retries",
        click.INT,
        "Consecutive failures before it is unhealthy.",
        default="3",
    ),
    Setting(
        ("--health-start-period",),
        "task.container.health.start_period",
        DURATION,
        "Time after the start in which failures do not count.",
        default="0s",
    ),
    Setting(
        ("--health-start-interval",),
        "task.container.health.start_interval",
        DURATION,
        "Maximum time between checks until one succeeds.",
        default="5s",
    ),
    Setting(
        ("--no-healthcheck",),
        "task.container.health",
        Parsed("flag", lambda _: HealthCheck(test=("NONE",))),
        "Disable any health check of the image.",
        flag_value="none",
    ),
    Setting(
        ("--stop-signal",),
        "task.container.stop_signal",
        click.STRING,
        "Signal to stop the container.",
        metavar="SIGNAL",
    ),
    Setting(
        ("--stop-grace-period",),
        "task.container.stop_grace",
        DURATION,
        "Time between the stop signal and SIGKILL.",
        default="10s",
    ),
    Setting(
        ("--stop-timeout",),
        "task.container.stop_grace",
        Parsed("seconds", _seconds),
        "The same as --stop-grace-period, in seconds.",
    ),
    Setting(
        ("--user", "-u"),
        "task.container.user",
        click.STRING,
        "User and group of the process.",
        metavar="USER[:GROUP]",
    ),
    Setting(
        ("--workdir", "-w"),
        "task.container.workdir",
        click.STRING,
        "Working directory.",
        metavar="DIR",
    ),
    Setting(
        ("--hostname",),
        "task.container.hostname",
        click.STRING,
        "Container hostname.",
        metavar="NAME",
    ),
    Setting(
        ("--domainname",),
        "task.container.domainname",
        click.STRING,
        "Container NIS domain name.",
        metavar="NAME",
    ),
    Setting(("--shm-size",), "task.container.shm_size", MEMORY, "Size of /dev/shm.", default="64m"),
    Setting(
        ("--oom-score-adj",),
        "task.container.oom_score_adj",
        click.INT,
        "OOM score adjustment, -1000 to 1000; 0: by the memory that it reserves.",
    ),
    Setting(
        ("--read-only/--no-read-only",),
        "task.container.read_only",
        click.BOOL,
        "Mount the container's root filesystem read-only.",
    ),
    Setting(
        ("--init/--no-init",),
        "task.container.init",
        click.BOOL,
        "Run an init that forwards signals and reaps processes.",
    ),
    Setting(
        ("--privileged/--no-privileged",),
        "task.container.privileged",
        click.BOOL,
        "Give the container all capabilities and devices, as root of the node.",
    ),
    Setting(
        ("--userns",),
        "task.container.userns",
        click.STRING,
        "User namespace: the node's, or a private one with its own id range.",
        default="private",
        metavar="[host|private]",
    ),
    Setting(
        ("--pid",),
        "task.container.pid",
        click.STRING,
        "PID namespace: the node's, a private one, or that of another container, on whose node "
        "it then runs (not for services).",
        default="private",
        metavar="[host|private|container:NAME]",
    ),
    Setting(
        ("--ipc",),
        "task.container.ipc",
        click.STRING,
        "IPC namespace: the node's, a private one, or that of another container that is "
        "shareable, on whose node it then runs (not for services).",
        default="private",
        metavar="[host|private|shareable|container:NAME]",
    ),
    Setting(
        ("--runtime",),
        "task.container.runtime",
        click.STRING,
        "OCI runtime, such as runc.",
        metavar="RUNTIME",
    ),
    Setting(
        ("--rootfs",),
        "task.container.rootfs",
        click.STRING,
        "Run on a read-only view of the node's own files instead of an image.",
        metavar="host",
    ),
    Setting(
        ("--entrypoint",), "task.container.entrypoint", WORDS, "Override the image's entrypoint."
    ),
)


def setting_options(function: F) -> F:
    """Add the flags of SETTINGS; each is None unless given."""
    for setting in reversed(SETTINGS):
        function = click.option(
            *setting.flags,
            setting.name,
            **setting.click_options,
        )(function)
    return function


def apply_settings(spec: ServiceSpec, values: Mapping[str, Any]) -> ServiceSpec:
    """The spec with the given values of SETTINGS; other keys of `values` are ignored."""
    for setting in SETTINGS:
        if (value := values.get(setting.name)) is not None:
            spec = with_value(spec, setting.path, value)
    return spec


def with_value(obj: Any, path: str, value: Any) -> Any:
    """A copy of a nested dataclass with one value replaced."""
    name, _, rest = path.partition(".")
    return replace(obj, **{name: with_value(getattr(obj, name), rest, value) if rest else value})
