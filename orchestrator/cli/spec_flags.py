"""A service's flags, as Docker names them, and where in the spec each one goes.

Flags that set one value are data: `SETTINGS` names the flag, how its text is read, and the path
in the spec. `create` starts from an empty spec, `update` from the current one; what was not given
is left alone.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.model.names import parse_image
from orchestrator.model.specs import (
    HealthCheck,
    PortSpec,
    Protocol,
    PublishMode,
    RestartCondition,
    ServiceSpec,
    UpdateOrder,
)
from orchestrator.model.units import parse_cpus, parse_duration, parse_memory
from orchestrator.model.validate import MIN_SHARES, InvalidSpec, validate_service

F = TypeVar("F", bound=Callable[..., Any])

_CONDITIONS = [
    each.name.lower().replace("_", "-")
    for each in (RestartCondition.ANY, RestartCondition.ON_FAILURE, RestartCondition.NONE)
]


if TYPE_CHECKING:
    AnyType = click.ParamType[Any]
else:
    AnyType = click.ParamType  # not generic before click 8.4


class Parsed(AnyType):
    """A flag's text, read by a function that raises ValueError in the user's words."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


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


def _order(text: str) -> UpdateOrder:
    names = {each.name.lower().replace("_", "-"): each for each in UpdateOrder}
    if text not in names:
        raise ValueError(f"{text!r} is neither {' nor '.join(names)}")
    return names[text]


def _words(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def _memory_swap(text: str) -> int:
    return -1 if text == "-1" else parse_memory(text, "memory swap")


def _seconds(text: str) -> float:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a number of seconds")
    return float(text)


MEMORY = Parsed("size", parse_memory)
CPUS = Parsed("cores", parse_cpus)
DURATION = Parsed("duration", parse_duration)
WORDS = Parsed("words", _words)


@dataclass(frozen=True, slots=True)
class Setting:
    """A flag that sets one value of a spec."""

    flags: tuple[str, ...]
    path: str
    """Where in ServiceSpec, such as `task.container.user`."""
    type: AnyType
    help: str
    flag_value: str | None = None
    """The text that it stands for, of a flag that takes none."""

    @property
    def click_options(self) -> dict[str, Any]:
        return {} if self.flag_value is None else {"is_flag": True, "flag_value": self.flag_value}

    @property
    def name(self) -> str:
        return self.flags[0].partition("/")[0].lstrip("-").replace("-", "_")


SETTINGS = (
    Setting(("--replicas",), "replicas", click.INT, "How many tasks to run."),
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
    Setting(("--pids-limit",), "task.container.pids_limit", click.INT, "Most processes of a task."),
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
    Setting(
        ("--update-parallelism",),
        "update.parallelism",
        click.INT,
        "Tasks that an update replaces at a time (1; 0: all).",
    ),
    Setting(
        ("--update-order",),
        "update.order",
        Parsed("stop-first|start-first", _order),
        "What comes first, the end of the old task or the start of the new one (stop-first).",
    ),
    Setting(("--update-delay",), "update.delay", DURATION, "Time between two batches (0s)."),
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


def checked(spec: ServiceSpec) -> ServiceSpec:
    """The spec, if it is valid; otherwise a usage error with the words of the validator."""
    try:
        validate_service(spec)
    except InvalidSpec as error:
        raise click.UsageError(str(error)) from None
    return spec


def checked_image(text: str) -> str:
    """An image's name with its tag (`hello` is `hello:latest`), else a usage error."""
    try:
        return str(parse_image(text))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def pairs(what: str, texts: Iterable[str]) -> dict[str, str]:
    """`KEY=value` texts as a dict; `KEY` alone has an empty value."""
    result = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key:
            raise click.BadParameter(f"{what} {text!r} is not of the form KEY=value")
        result[key] = value
    return result


def label_lines(files: Iterable[str]) -> list[str]:
    """The `KEY=value` lines of `--label-file`s. Raises a usage error for one that cannot be
    read."""
    return list(_env_lines(files, "label"))


def environment(texts: Iterable[str], files: Iterable[str] = ()) -> tuple[str, ...]:
    """`KEY=value` of `--env-file` and then `--env`, the last of a key winning. `KEY` alone is
    taken from our own environment, and left out if it is not there (as Docker does)."""
    result: dict[str, str] = {}
    for text in [*_env_lines(files), *texts]:
        key, equals, value = text.partition("=")
        if not key or re.search(r"\s", key):
            raise click.BadParameter(f"env {text!r} is not of the form KEY=value")
        if equals:
            result[key] = value
        elif (own := os.environ.get(key)) is not None:
            result[key] = own
    return tuple(f"{key}={value}" for key, value in result.items())


def _env_lines(files: Iterable[str], what: str = "env") -> Iterable[str]:
    for name in files:
        try:
            with open(name, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise click.BadParameter(f"cannot read {what} file {name}: {reason}") from None
        yield from (line for line in map(str.lstrip, lines) if line and not line.startswith("#"))


def ports(texts: Iterable[str]) -> tuple[PortSpec, ...]:
    """Ports of `8080:80[/udp]`, `8000-8002:80-82` or `published=8080,target=80,protocol=tcp`,
    which may say `mode=host`, too."""
    return tuple(port for text in texts for port in _ports(text))


def _ports(text: str) -> list[PortSpec]:
    if "=" in text:
        fields = dict(part.partition("=")[::2] for part in text.lower().split(","))
        unknown = fields.keys() - {"published", "target", "protocol", "mode"}
        mode = fields.get("mode", "ingress").upper()
        if unknown or mode not in PublishMode.__members__ or "published" not in fields:
            raise _bad_port(text)
        published, target = fields["published"], fields.get("target", "")
        protocol = fields.get("protocol", "tcp")
    else:
        addresses, _, protocol = text.lower().partition("/")
        published, _, target = addresses.rpartition(":")
        protocol, mode = protocol or "tcp", "INGRESS"
    if protocol.upper() not in Protocol.__members__:
        raise click.BadParameter(f"port {text!r} has the protocol {protocol!r}; tcp and udp are")
    outside, inside = _range(text, published), _range(text, target)
    if len(outside) != len(inside):
        raise click.BadParameter(f"port {text!r} has ranges of different lengths")
    kind = Protocol[protocol.upper()]
    where = PublishMode[mode]
    return [PortSpec(one, other, kind, where) for one, other in zip(outside, inside, strict=True)]


def _range(whole: str, text: str) -> range:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII)
    if match is None:
        raise _bad_port(whole)
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= 65535:
        raise click.BadParameter(f"port {text} of {whole!r} is not in 1-65535")
    return range(first, last + 1)


def _bad_port(text: str) -> click.BadParameter:
    return click.BadParameter(
        f"port {text!r} is not of the form PUBLISHED:TARGET[/udp], such as 8080:80"
    )
