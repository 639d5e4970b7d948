# SPDX-License-Identifier: Apache-2.0
"""The flags of containers that need more than a path in the spec, as Docker reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import click

from orchestrator.cli.flags.flag_types import Parsed
from orchestrator.cli.flags.spec_flags import checked_image
from orchestrator.cli.flags.spec_settings import with_value
from orchestrator.model.formats import log_options
from orchestrator.model.specs import ContainerSpec, LogConfig
from orchestrator.model.validation import confinement

F = TypeVar("F", bound=Callable[..., Any])


def _text(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class RepeatableFlag:
    """A flag that may be given several times."""

    flags: tuple[str, ...]
    field: str
    """Of ContainerSpec."""
    metavar: str
    help: str
    read: Callable[[str], Any] = _text
    """Parses the flag's text; raises ValueError with a message for the user."""
    key: Callable[[Any], str] = str
    """The key that `-rm` names; a later entry with the same key replaces an earlier one."""
    add: str = ""
    """The flag's name in an update, where it is not NAME-add."""

    @property
    def name(self) -> str:
        return self.flags[0].lstrip("-").replace("-", "_")

    @property
    def add_name(self) -> str:
        return f"{self.name}_add"

    @property
    def rm_name(self) -> str:
        return f"{self.name}_rm"


def _sysctl(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"sysctl {text!r} is not of the form NAME=VALUE")
    confinement.check_sysctl(name)
    return name, value


def _annotation(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise ValueError(f"annotation {text!r} is not of the form KEY=VALUE")
    return name, value


def _device(text: str) -> str:
    return str(confinement.parse_device(text))


def _tmpfs(text: str) -> str:
    confinement.parse_tmpfs(text)
    return text


def _head(entry: str) -> str:
    return entry.partition(":")[0]


REPEATABLE_FLAGS = (
    RepeatableFlag(
        ("--host", "--add-host"),
        "hosts",
        "HOST:IP",
        "Entry of /etc/hosts; repeatable.",
        confinement.parse_host,
    ),
    RepeatableFlag(("--dns",), "dns", "IP", "DNS server instead of the network's; repeatable."),
    RepeatableFlag(("--dns-search",), "dns_search", "DOMAIN", "DNS search domain; `.`: none."),
    RepeatableFlag(
        ("--dns-option", "--dns-opt"),
        "dns_options",
        "OPTION",
        "DNS resolver option, such as ndots:2.",
    ),
    RepeatableFlag(
        ("--group", "--group-add"),
        "groups",
        "GROUP",
        "Supplementary group of the process.",
        add="--group-add",
    ),
    RepeatableFlag(
        ("--cap-add",),
        "cap_add",
        "CAPABILITY",
        "Capability to add to the default set, such as NET_ADMIN or ALL.",
        confinement.parse_capability,
        add="--cap-add",
    ),
    RepeatableFlag(
        ("--cap-drop",),
        "cap_drop",
        "CAPABILITY",
        "Capability to drop from the default set, or ALL.",
        confinement.parse_capability,
        add="--cap-drop",
    ),
    RepeatableFlag(
        ("--device",),
        "devices",
        "HOST[:CONTAINER[:rwm]]",
        "Device of the node, by its path or CDI name; repeatable.",
        _device,
        _head,
    ),
    RepeatableFlag(
        ("--tmpfs",),
        "tmpfs",
        "PATH[:OPTIONS]",
        "Mount a tmpfs; options such as size=64m.",
        _tmpfs,
        _head,
    ),
    RepeatableFlag(
        ("--ulimit",),
        "ulimits",
        "LIMIT=SOFT[:HARD]",
        "Resource limit of the process, such as nofile=1024.",
        confinement.parse_ulimit,
        lambda limit: str(limit.name),
    ),
    RepeatableFlag(
        ("--annotation",),
        "annotations",
        "KEY=VALUE",
        "An OCI annotation of the container; repeatable.",
        _annotation,
        lambda pair: str(pair[0]),
    ),
    RepeatableFlag(
        ("--sysctl",),
        "sysctls",
        "SYSCTL=VALUE",
        "Kernel parameter of the container's namespaces.",
        _sysctl,
        lambda pair: str(pair[0]),
    ),
)


def repeatable_options(function: F) -> F:
    """Add the flags of MANY as `create` and `run` have them, and `--security-opt`."""
    function = _security_option(function)
    for flag in reversed(REPEATABLE_FLAGS):
        function = click.option(
            *flag.flags, flag.name, multiple=True, metavar=flag.metavar, help=flag.help
        )(function)
    return function


def repeatable_edit_options(function: F) -> F:
    """Add the flags of MANY as `update` has them, and `--security-opt`."""
    function = _security_option(function)
    for flag in reversed(REPEATABLE_FLAGS):
        name = flag.flags[0]
        function = click.option(
            f"{name}-rm",
            flag.rm_name,
            multiple=True,
            metavar=flag.metavar.partition("=")[0].partition("[")[0],
            help=f"Remove a value of {name}; repeatable.",
        )(function)
        function = click.option(
            flag.add or f"{name}-add",
            flag.add_name,
            multiple=True,
            metavar=flag.metavar,
            help=flag.help,
        )(function)
    return function


def _security_option(function: F) -> F:
    return click.option(
        "--security-opt",
        multiple=True,
        metavar="OPTION",
        help="seccomp=FILE|unconfined, apparmor=PROFILE|unconfined, "
        "no-new-privileges[=false]; repeatable.",
    )(function)


def with_repeatable(container: ContainerSpec, values: Mapping[str, Any]) -> ContainerSpec:
    """The container with the given values of MANY on `create` or `run`, or `-add` and `-rm` of an
    `update`. Raises a usage error for invalid values."""
    for flag in REPEATABLE_FLAGS:
        added = values.get(flag.name) or values.get(flag.add_name) or ()
        removed = values.get(flag.rm_name) or ()
        if added or removed:
            entries = _merged(flag, _entries(container, flag), added, removed)
            container = _stored(container, flag, entries)
    return _with_security(container, values.get("security_opt") or ())


def image_and_command(values: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The image and the command of `IMAGE [COMMAND…]`; with `--rootfs host` there is no image, only
    a command. Raises a usage error for an invalid image name."""
    image, command = values["image"], tuple(values["command"])
    if values.get("rootfs") == "host":
        return "", (image, *command)
    return checked_image(image), command


def _entries(container: ContainerSpec, flag: RepeatableFlag) -> list[Any]:
    value = getattr(container, flag.field)
    return list(value.items() if isinstance(value, dict) else value)


def _stored(container: ContainerSpec, flag: RepeatableFlag, entries: list[Any]) -> ContainerSpec:
    is_map = isinstance(getattr(container, flag.field), dict)
    value: Any = dict(entries) if is_map else tuple(entries)
    stored: ContainerSpec = with_value(container, flag.field, value)
    return stored


def _merged(flag: RepeatableFlag, entries: list[Any], added: Any, removed: Any) -> list[Any]:
    """The list without removed entries; an added entry replaces one with the same key."""
    by_key = {
        flag.key(entry): entry
        for entry in entries
        if not any(text == flag.key(entry) or _reads_as(flag, text, entry) for text in removed)
    }
    for text in added:
        try:
            entry = flag.read(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        by_key[flag.key(entry)] = entry
    return list(by_key.values())


def _reads_as(flag: RepeatableFlag, text: str, entry: Any) -> bool:
    try:
        return bool(flag.read(text) == entry)
    except ValueError:
        return False


def _with_security(container: ContainerSpec, options: tuple[str, ...]) -> ContainerSpec:
    for option in options:
        key, _, value = option.replace(":", "=", 1).partition("=")
        if key == "seccomp":
            container = replace(container, seccomp=_profile(value))
        elif key == "no-new-privileges" and value in ("", "true", "false"):
            container = replace(container, new_privileges=value == "false")
        elif key == "apparmor" and value:
            container = replace(container, apparmor=value)
        elif key == "label":
            if value != "disable":
                click.echo(f"--security-opt {option} is ignored: Orc uses no SELinux", err=True)
        else:
            raise click.BadParameter(
                f"security option {option!r} is unknown; known are seccomp=FILE|unconfined, "
                "apparmor=PROFILE|unconfined, label=disable and no-new-privileges[=false]"
            )
    return container


def _profile(value: str) -> str:
    """A seccomp profile by its file name on this host; its text is sent with the spec."""
    if value == "unconfined":
        return value
    try:
        with open(value, encoding="utf-8") as file:
            text = file.read()
        confinement.check_seccomp(text)
    except OSError as error:
        raise click.BadParameter(
            f"cannot read the seccomp profile {value!r}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


def _driver(text: str) -> str:
    log_options.check(LogConfig(text))
    return text


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"log option {text!r} is not of the form KEY=VALUE, such as max-size=10m")
    log_options.check(LogConfig("", {key: value}))
    return key, value


def logging_options(function: F) -> F:
    """Add the flags, as Docker names them."""
    function = click.option(
        "--log-opt",
        type=Parsed("LOGOPT=VALUE", _option),
        multiple=True,
        help="Option of the logging driver, such as max-size=10m; repeatable.",
    )(function)
    return click.option(
        "--log-driver",
        type=Parsed("|".join(log_options.DRIVERS), _driver),
        help="Logging driver.  [default: the node's]",
    )(function)


def with_logging(container: ContainerSpec, values: Mapping[str, Any]) -> ContainerSpec:
    """The container with the given driver and options. A driver replaces the previous one and its
    options; options alone are merged. Raises a usage error for an option that the driver does not
    accept."""
    driver, options = values.get("log_driver"), dict(values.get("log_opt") or ())
    if driver is None and not options:
        return container
    old = container.logging
    if driver not in (None, old.driver):
        old = LogConfig(driver)
    logging = replace(old, options={**old.options, **options})
    try:
        log_options.check(logging)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return replace(container, logging=logging)
