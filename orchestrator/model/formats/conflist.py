# SPDX-License-Identifier: Apache-2.0
"""CNI network configuration lists: parsing, validation, and placeholders. Pure.

A list names a chain of plugins: programs that connect a container, one after the other. Its strings
may have placeholders such as `{{.Node.Hostname}}`, which are filled in for each node, so one object
replaces a file on each host. Source: CNI specification 1.1, section 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.model.formats.task_templates import PLACEHOLDER
from orchestrator.model.names import near_miss
from orchestrator.model.specs import NetworkAttachment, PortSpec, PublishMode
from orchestrator.model.units import parse_rate

VERSIONS = ("1.1.0", "1.0.0", "0.4.0", "0.3.1", "0.3.0")
"""Supported versions of CNI's specification, the newest first."""

MOST = 256 << 10
"""Bytes of a list."""

PORTS, IPS, MAC, ALIASES, BANDWIDTH = "portMappings", "ips", "mac", "aliases", "bandwidth"
"""Supported capabilities (CNI's CONVENTIONS.md)."""

RATES = ("ingress-rate", "ingress-burst", "egress-rate", "egress-burst")
"""Options of an attachment: bits per second, and burst in bits; `ingress` is towards the
container."""

_KEYS = (
    "cniVersion",
    "cniVersions",
    "name",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "plugins",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FROM_RUNTIME = ("prevResult", "runtimeConfig")
_SLICE_FIELDS = (
    "Network.Subnet",
    "Node.Subnet",
    "Node.First",
    "Node.Last",
    "Node.Gateway",
    "Node.Subnet6",
)
"""Of a network whose subnet is cut in parts for its nodes: the whole; a node's part, the first and
the last address of it that can be a container's, its own address in it, and its part of IPv6."""
_FIELDS = ("Node.ID", "Node.Hostname", "Node.Address", *_SLICE_FIELDS)
_LABELS = "Node.Labels"
_LOCAL = ("bridge", "ptp", "host-device", "dummy")
"""Plugins that make a node-local network."""


class ConflistError(ValueError):
    """An invalid list: one line that names the key."""


@dataclass(frozen=True, slots=True)
class ChainPlugin:
    """One plugin of a chain."""

    type: str
    config: Mapping[str, Any]
    """As the list has it."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Capabilities that it requests from the runtime."""
        return frozenset(
            key for key, wanted in self.config.get("capabilities", {}).items() if wanted
        )

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that it needs: its own, and of those that it calls the ones it names."""
        called = (self.config.get(key) for key in ("ipam", "delegate"))
        types = (each.get("type", "") for each in called if isinstance(each, dict))
        return (self.type, *filter(None, types))


@dataclass(frozen=True, slots=True)
class Conflist:
    """A network configuration list."""

    name: str
    """The network's name for the plugins."""
    versions: tuple[str, ...]
    """Of the specification, any of which may be spoken; the newest first."""
    plugins: tuple[ChainPlugin, ...]
    checks: bool = True
    """CHECK may be called."""
    collects: bool = True
    """GC may be called."""

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs that it needs, in order."""
        return tuple(dict.fromkeys(name for each in self.plugins for name in each.programs))

    def has(self, capability: str) -> bool:
        """Whether any of its plugins has this capability."""
        return any(capability in each.capabilities for each in self.plugins)

    @property
    def local(self) -> bool:
        """Whether it makes node-local networks, as far as its first plugin shows."""
        return self.plugins[0].type in _LOCAL


def leases(chain: Conflist) -> bool:
    """Whether addresses are leased by DHCP, so that leases must be renewed."""
    ipams = (plugin.config.get("ipam") for plugin in chain.plugins)
    return any(isinstance(each, Mapping) and each.get("type") == "dhcp" for each in ipams)


def parse_conflist(text: str) -> Conflist:
    """Read and check a list. Raises ConflistError."""
    if len(text) > MOST:
        raise ConflistError(f"it is longer than {MOST >> 10} KiB")
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConflistError(
            f"line {error.lineno}, column {error.colno}: {error.msg.lower()}"
        ) from None
    except RecursionError:
        raise ConflistError("it is nested too deeply") from None
    if not isinstance(raw, dict):
        raise ConflistError("it is no JSON object; begin it with {")
    if "type" in raw and "plugins" not in raw:
        raise ConflistError(
            "type: this is the configuration of one plugin, no list; put it into "
            '"plugins": [ … ] beside "cniVersion" and "name"'
        )
    _check_keys(raw)
    found = Conflist(
        name=_name(raw),
        versions=_versions(raw),
        plugins=tuple(_plugins(raw)),
        checks=not _flag(raw, "disableCheck"),
        collects=not _flag(raw, "disableGC"),
    )
    _check_placeholders(raw)
    return found


def _check_keys(raw: Mapping[str, Any]) -> None:
    for key in raw:
        if key not in _KEYS and (meant := near_miss(key, _KEYS)):
            raise ConflistError(f"{key}: there is no such key; did you mean '{meant}'?")


def _name(raw: Mapping[str, Any]) -> str:
    name = raw.get("name")
    if not isinstance(name, str) or not name:
        raise ConflistError('name: it is missing; write "name": "…", which the plugins are told')
    if not _NAME.fullmatch(name):
        raise ConflistError(
            f"name: {name!r} begins with a letter or digit, and has only those, '_', '.' and '-'"
        )
    return name


def _versions(raw: Mapping[str, Any]) -> tuple[str, ...]:
    given = raw.get("cniVersions", [])
    if not isinstance(given, list):
        raise ConflistError("cniVersions: it is no list of versions")
    known = f"known are {', '.join(VERSIONS)}"
    if "cniVersion" in raw or not given:
        given = [*given, raw.get("cniVersion", "")]
    for each in given:
        if not isinstance(each, str) or not re.fullmatch(r"\d+\.\d+\.\d+", each):
            missing = "it is missing" if each == "" else f"{each!r} is no version"
            raise ConflistError(f"cniVersion: {missing}; {known}")
    found = tuple(version for version in VERSIONS if version in given)
    if not found:
        raise ConflistError(f"cniVersion: {', '.join(given)} is not supported; {known}")
    return found


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key, False)
    # The specification has strings too: "true" and "false".
    if value in (True, "true"):
        return True
    if value in (False, "false"):
        return False
    raise ConflistError(f"{key}: {value!r} is not a boolean (true or false)")


def _plugins(raw: Mapping[str, Any]) -> Iterator[ChainPlugin]:
    plugins = raw.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        raise ConflistError('plugins: there is none; write "plugins": [{"type": "bridge", …}]')
    for index, config in enumerate(plugins):
        place = f"plugins[{index}]"
        if not isinstance(config, dict):
            raise ConflistError(f"{place}: it is no JSON object")
        _type(config, place)
        for key in _FROM_RUNTIME:
            if key in config:
                raise ConflistError(f"{place}.{key}: the runtime sets this; leave it out")
        _check_capabilities(config.get("capabilities", {}), f"{place}.capabilities")
        for key in ("ipam", "delegate"):
            section = config.get(key, {})
            if not isinstance(section, dict):
                raise ConflistError(f"{place}.{key}: it is no JSON object")
            if section.get("type") or (key == "ipam" and section):
                _type(section, f"{place}.{key}")
        yield ChainPlugin(config["type"], config)


def _type(config: Mapping[str, Any], place: str) -> None:
    name = config.get("type")
    if not isinstance(name, str) or not name:
        meant = near_miss("type", [key for key in config if key != "type"])
        hint = (
            f"is '{meant}' meant to be it?" if meant else "it is the plugin's name, such as bridge"
        )
        raise ConflistError(f"{place}.type: it is missing; {hint}")
    if not _NAME.fullmatch(name):
        raise ConflistError(
            f"{place}.type: {name!r} is no plugin's name; write it without its folder, such as "
            "bridge"
        )


def _check_capabilities(capabilities: Any, place: str) -> None:
    if not isinstance(capabilities, dict):
        raise ConflistError(f'{place}: it is no JSON object such as {{"portMappings": true}}')
    for key, wanted in capabilities.items():
        if not isinstance(wanted, bool):
            raise ConflistError(f"{place}.{key}: {wanted!r} is not a boolean (true or false)")


# -- placeholders -------------------------------------------------------------------------


def _check_placeholders(raw: Any) -> None:
    for field, label in _placeholders(raw):
        if field == _LABELS if label else field in _FIELDS:
            continue
        whole = f"{field}.{label}" if label else field
        known = ", ".join(f"{{{{.{name}}}}}" for name in (*_FIELDS, f"{_LABELS}.KEY"))
        raise ConflistError(f"{{{{.{whole}}}}} is not known; known are {known}")


def wants_slices(text: str) -> bool:
    """Whether a valid list refers to the node's slice of the network."""
    return any(field in _SLICE_FIELDS for field, _ in _placeholders(json.loads(text)))


def filled_conflist(text: str, value: Callable[[str, str | None], str]) -> str:
    """A valid list with its placeholders filled in; `value` returns the value of a placeholder such
    as (`Node.Labels`, `zone`)."""
    if "{{" not in text:
        return text

    def fill(raw: Any) -> Any:
        if isinstance(raw, str):
            return PLACEHOLDER.sub(lambda match: value(match[1], match[2]), raw)
        if isinstance(raw, dict):
            return {key: fill(each) for key, each in raw.items()}
        return [fill(each) for each in raw] if isinstance(raw, list) else raw

    return json.dumps(fill(json.loads(text)))


def _placeholders(raw: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(raw, str):
        for match in PLACEHOLDER.finditer(raw):
            yield match[1], match[2]
    elif isinstance(raw, dict | list):
        for each in raw.values() if isinstance(raw, dict) else raw:
            yield from _placeholders(each)


# -- options of attachments ---------------------------------------------------------------


def check_asked(
    chain: Conflist, network: str, attachment: NetworkAttachment, ports: Iterable[PortSpec]
) -> None:
    """Raise ValueError if a container requires a capability that no plugin of the network's chain
    has; `ports` are those that are published in it."""
    asked = (
        (bool(attachment.ip or attachment.ip6), IPS, "fix an address"),
        (bool(attachment.mac), MAC, "fix a hardware address"),
        (bool(attachment.options), BANDWIDTH, "limit a rate"),
        (any(port.mode is PublishMode.HOST for port in ports), PORTS, "publish a port"),
    )
    for wanted, capability, words in asked:
        if wanted and not chain.has(capability):
            raise ValueError(
                f"network '{network}' cannot {words}: no plugin of its conflist has the capability "
                f"'{capability}'"
            )
    bandwidth(attachment.options)


def bandwidth(options: Mapping[str, str]) -> dict[str, int]:
    """The runtime configuration `bandwidth` that an attachment's options mean: bits a second, and
    bits at once, where none is said as many as go in a tenth of a second. Raises ValueError."""
    for key in options:
        if key not in RATES:
            meant = near_miss(key, RATES)
            hint = f"did you mean '{meant}'?" if meant else f"there are {', '.join(RATES)}"
            raise ValueError(f"driver-opt '{key}' is unknown to a CNI network; {hint}")
    found: dict[str, int] = {}
    for way in ("ingress", "egress"):
        rate, burst = options.get(f"{way}-rate", ""), options.get(f"{way}-burst", "")
        if burst and not rate:
            raise ValueError(f"driver-opt {way}-burst says nothing without {way}-rate")
        if rate:
            bits = parse_rate(rate)
            found[f"{way}Rate"] = bits
            found[f"{way}Burst"] = parse_rate(burst) if burst else max(bits // 10, 8 * 16384)
    return found
