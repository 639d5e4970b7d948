# SPDX-License-Identifier: Apache-2.0
"""Logging drivers and their options, with Docker's names. Pure.

A driver says where a node sends a container's output. Every driver but `none` keeps the newest
lines on the node as well, in files of a bounded size: `orc logs` reads them, and a driver that
sends lines elsewhere takes them from there. So a slow or unavailable target never blocks a
container. Sources: Docker's "Configure logging drivers" and the page of each driver.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from orchestrator.model.formats.gotemplate import BadTemplate, Template
from orchestrator.model.specs import LogConfig
from orchestrator.model.units import parse_memory

LOCAL = "local"
JSON_FILE = "json-file"
JOURNALD = "journald"
SYSLOG = "syslog"
NONE = "none"

DRIVERS = (LOCAL, JSON_FILE, JOURNALD, SYSLOG, NONE)

DEFAULT_TAG = "{{.ID}}"
MOST_TAG = 1 << 12
"""Characters that a tag may have."""
SYSLOG_PORT = 514
DEV_LOG = "/dev/log"
"""The socket of the node's own syslog daemon."""

FACILITIES: Mapping[str, int] = {
    name: number
    for number, name in enumerate(
        (
            *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron"),
            *("authpriv", "ftp"),
        )
    )
} | {f"local{number}": 16 + number for number in range(8)}
"""Of RFC 5424, section 6.2.1, as Docker names them."""

FORMATS = ("rfc5424", "rfc5424micro", "rfc3164")

_MOST_FILES = 1000
UNSUPPORTED = {
    "fluentd": "ship the files of json-file, or use syslog",
    "gelf": "ship the files of json-file, or use syslog",
    "awslogs": "ship the files of json-file, or use journald",
    "gcplogs": "ship the files of json-file, or use journald",
    "splunk": "ship the files of json-file, or use syslog",
    "etwlogs": "that is Windows'",
    "loki": "ship the files of json-file, or use journald",
    "logentries": "ship the files of json-file, or use syslog",
}
"""Other drivers of Docker, and what to do instead."""


def _size(name: str, text: str) -> None:
    if parse_memory(text, name) < 1:
        raise ValueError(f"{name} {text!r} must be at least 1 byte; write such as 10m")


def _files(name: str, text: str) -> None:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_FILES:
        raise ValueError(f"{name} {text!r} is not a number of files from 1 to {_MOST_FILES}")


def _tag(name: str, text: str) -> None:
    try:
        Template(text).check(tag_fields(_EXAMPLE))
    except BadTemplate as error:
        raise ValueError(f"{name} {text!r}: {error}") from None


def _any(name: str, text: str) -> None:
    pass


def _mode(name: str, text: str) -> None:
    if text == "blocking":
        raise ValueError(
            "mode 'blocking' is not supported: a container never waits for a log target; "
            "leave mode out, or write non-blocking"
        )
    if text != "non-blocking":
        raise ValueError(f"mode {text!r} is unknown; non-blocking is there")


def _compress(name: str, text: str) -> None:
    if text != "false":
        raise ValueError(
            "compress is not supported: rotated files stay as they are; write compress=false"
        )


def _facility(name: str, text: str) -> None:
    if text not in FACILITIES and not (text.isdecimal() and int(text) < 24):
        raise ValueError(
            f"{name} {text!r} is unknown; it is a number from 0 to 23 or one of "
            f"{', '.join(FACILITIES)}"
        )


def _format(name: str, text: str) -> None:
    if text not in FORMATS:
        raise ValueError(f"{name} {text!r} is unknown; {', '.join(FORMATS)} are there")


def _address(name: str, text: str) -> None:
    parse_address(text)


_KEPT = {"max-size": _size, "max-file": _files, "compress": _compress}
_CACHED = {"cache-max-size": _size, "cache-max-file": _files}
_DETAILS = {
    "tag": _tag,
    **dict.fromkeys(("labels", "env"), _any),
}
_SENT = {"mode": _mode, "max-buffer-size": _size}

_OPTIONS: Mapping[str, Mapping[str, Callable[[str, str], None]]] = {
    LOCAL: {**_KEPT, **_DETAILS, **_SENT},
    JSON_FILE: {**_KEPT, **_DETAILS, **_SENT},
    JOURNALD: {**_DETAILS, **_CACHED, **_SENT},
    SYSLOG: {
        "syslog-address": _address,
        "syslog-facility": _facility,
        "syslog-format": _format,
        "tag": _tag,
        **_CACHED,
        **_SENT,
    },
    NONE: {},
}
"""Driver → option → what checks its value, given the option's name."""

_REFUSED = {
    "cache-disabled": "the lines on the node are what the driver sends from, so they are kept",
    "cache-compress": "files on the node are not compressed",
    "labels-regex": "name each label with labels",
    "env-regex": "name each variable with env",
    **dict.fromkeys(
        (
            *("syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key"),
            "syslog-tls-skip-verify",
        ),
        "TLS is not supported; send to a syslog daemon of the node, which forwards",
    ),
}
"""Options of Docker's that are refused, and why."""


def check(config: LogConfig) -> None:
    """Raise ValueError for an unknown driver or option, or an invalid value. Without a driver,
    options of any driver are accepted, since the node's default is used."""
    driver = config.driver
    if driver and driver not in _OPTIONS:
        hint = f"; {UNSUPPORTED[driver]}" if driver in UNSUPPORTED else ""
        raise ValueError(
            f"logging driver {driver!r} is not supported{hint}; supported are {', '.join(DRIVERS)}"
        )
    known: dict[str, Callable[[str, str], None]] = {}
    for name in (driver,) if driver else DRIVERS:
        known.update(_OPTIONS[name])
    for option, text in config.options.items():
        if option in known:
            known[option](option, text)
            continue
        if option in _REFUSED:
            raise ValueError(f"log option {option!r} is not supported: {_REFUSED[option]}")
        of = f" of logging driver {driver}" if driver else ""
        accepted = f"accepted are {', '.join(sorted(known))}" if known else "it takes none"
        raise ValueError(f"log option {option!r}{of} is unknown; {accepted}")


def unreadable(name: str) -> str:
    """Why there are no logs of a container with the driver `none`, and what to do."""
    return (
        f"the logging driver none of {name} does not support reading; create it with another "
        "--log-driver"
    )


def effective(config: LogConfig, default: LogConfig) -> LogConfig:
    """The effective configuration on a node with this default. As in Docker, the default's options
    hold for containers of the default's driver, unless they say otherwise. Raises ValueError for an
    option that the driver does not take."""
    driver = config.driver or default.driver or LOCAL
    options = dict(config.options)
    if driver == (default.driver or LOCAL):
        options = {**default.options, **options}
    found = LogConfig(driver, options)
    check(found)
    return found


def kept(config: LogConfig, size: int, files: int) -> tuple[int, int]:
    """Bytes of one log file and number of files that a node keeps; `size` and `files` are the
    defaults."""
    options = config.options
    for name in ("max-size", "cache-max-size"):
        if text := options.get(name):
            size = parse_memory(text, name)
    for name in ("max-file", "cache-max-file"):
        if text := options.get(name):
            files = int(text)
    return size, files


@dataclass(frozen=True, slots=True)
class Address:
    """Where syslog messages go."""

    scheme: str = "unixgram"
    """`udp`, `tcp`, `unix` (a stream or datagram socket) or `unixgram`."""
    host: str = ""
    port: int = 0
    path: str = DEV_LOG


def parse_address(text: str) -> Address:
    """Read a `syslog-address`; an empty one is the node's own daemon. Raises ValueError."""
    if not text:
        return Address("unix", path=DEV_LOG)
    parts = urlsplit(text)
    if parts.scheme in ("unix", "unixgram"):
        path = parts.netloc + parts.path
        if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise ValueError(f"syslog-address {text!r} has no absolute path; write unix:///dev/log")
        return Address(parts.scheme, path=path)
    if parts.scheme == "tcp+tls":
        raise ValueError(
            f"syslog-address {text!r}: TLS is not supported; send to a syslog daemon of the node, "
            "which forwards"
        )
    try:
        port = parts.port or SYSLOG_PORT
    except ValueError:
        port = 0
    bare = parts.path in ("", "/") and not parts.query and not parts.username
    if parts.scheme not in ("udp", "tcp") or not parts.hostname or not port or not bare:
        raise ValueError(
            f"syslog-address {text!r} is not of the form udp://HOST[:PORT], tcp://HOST[:PORT] or "
            "unix:///PATH"
        )
    return Address(parts.scheme, parts.hostname, port, "")


def facility(text: str) -> int:
    """The number of a facility."""
    return FACILITIES[text] if text in FACILITIES else int(text or FACILITIES["daemon"])


@dataclass(frozen=True, slots=True)
class Source:
    """The container whose lines are sent, as tags name it."""

    id: str
    name: str
    image: str
    image_id: str
    node: str
    command: str = ""


_EXAMPLE = Source("0" * 25, "web.1", "web:1", "sha256:" + "0" * 64, "node-1", "serve")


def tag_fields(source: Source) -> dict[str, str]:
    """What a tag's template may name; Docker's "Log tags"."""
    return {
        "ID": source.id[:12],
        "FullID": source.id,
        "Name": source.name,
        "ImageID": source.image_id.removeprefix("sha256:")[:12],
        "ImageFullID": source.image_id,
        "ImageName": source.image,
        "DaemonName": "orc",
        "Node": source.node,
        "Command": source.command,
    }


def tag(template: str, source: Source) -> str:
    """The tag of a container's lines, with the id of the container where the template makes
    an empty text."""
    try:
        text = Template(template or DEFAULT_TAG).render(tag_fields(source), MOST_TAG)
    except BadTemplate:
        text = ""
    return re.sub(r"[\x00-\x1f\x7f]", "", text) or source.id[:12]


def chosen(
    options: Mapping[str, str], labels: Mapping[str, str], env: Mapping[str, str]
) -> dict[str, str]:
    """The labels and variables of a container that its lines carry, as selected by the options."""
    found: dict[str, str] = {}
    for kind, values in (("labels", labels), ("env", env)):
        names = {name.strip() for name in options.get(kind, "").split(",")}
        found.update((key, value) for key, value in values.items() if key in names)
    return found
