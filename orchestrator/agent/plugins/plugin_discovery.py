# SPDX-License-Identifier: Apache-2.0
"""Plugin discovery as in Docker: sockets first, then `.spec` and `.json` files.

A plugin is activated when its file is new or has changed; activation is repeated while it does not
respond. Source: Docker's "Plugin API" (legacy plugins, version 1).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from orchestrator.agent.plugins.plugin_client import (
    Address,
    PluginError,
    PluginUnavailable,
    call_plugin,
    parse_address,
    with_retries,
)

log = logging.getLogger(__name__)

P = TypeVar("P")

SOCKET_FOLDERS = (Path("/run/docker/plugins"),)
SPEC_FOLDERS = (Path("/etc/docker/plugins"), Path("/usr/lib/docker/plugins"))

ACTIVATION_TIMEOUT = 2.0
"""Timeout of an activation call in seconds."""


@dataclass(frozen=True, slots=True)
class PluginFile:
    """A file that names a plugin."""

    name: str
    path: Path
    stamp: tuple[int, int]
    """Inode and time of change: a replaced file leads to a new activation."""


def find(sockets: Sequence[Path], specs: Sequence[Path]) -> dict[str, PluginFile]:
    """The plugins' files by name; the first of a name takes precedence."""
    found: dict[str, PluginFile] = {}
    places = [*((each, (".sock",)) for each in sockets), *((e, (".spec", ".json")) for e in specs)]
    for folder, kinds in places:
        for path in _files(folder, kinds):
            try:
                status = path.stat()
            except OSError:
                continue
            stamp = (status.st_ino, status.st_mtime_ns)
            found.setdefault(path.stem, PluginFile(path.stem, path, stamp))
    return found


def _files(folder: Path, kinds: Sequence[str]) -> Iterator[Path]:
    """Files in the folder, and in subfolders named after a plugin."""
    for kind in kinds:
        yield from sorted(folder.glob(f"*{kind}"))
        for path in sorted(folder.glob(f"*/*{kind}")):
            if path.parent.name == path.stem:
                yield path


def read_address(file: PluginFile) -> Address:
    """The address of the plugin of a file. Raises PluginError."""
    if file.path.suffix == ".sock":
        return Address(socket=file.path)
    try:
        text = file.path.read_text()
        if file.path.suffix == ".spec":
            return parse_address(text.strip())
        document = json.loads(text)
        return parse_address(document["Addr"], document.get("TLSConfig"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PluginError(f"the plugin file {file.path} cannot be read: {error}") from error


async def implements(name: str, address: Address) -> list[str]:
    """The interfaces that a plugin implements, such as `VolumeDriver`. Raises PluginError."""
    found = (await call_plugin(address, "/Plugin.Activate", {}, f"plugin {name}")).get("Implements")
    if not isinstance(found, list):
        raise PluginUnavailable("its response to /Plugin.Activate lacks the field Implements")
    return [str(each) for each in found]


class PluginSet(Generic[P]):
    """The plugins of one kind on this node."""

    def __init__(
        self,
        activate: Callable[[str, Address, list[str]], Awaitable[P | None]],
        noun: str,
        sockets: Sequence[Path] = SOCKET_FOLDERS,
        specs: Sequence[Path] = SPEC_FOLDERS,
    ) -> None:
        """`activate` makes a plugin from its name, address and interfaces; None when it is of
        another kind. It raises PluginError. `noun` is for messages: `volume driver`."""
        self._activate = activate
        self._noun = noun
        self._sockets, self._specs = tuple(sockets), tuple(specs)
        self._known: dict[str, tuple[PluginFile, P | None]] = {}
        """Plugins that have responded; None: it is of another kind."""
        self.silent: dict[str, str] = {}
        """Plugins that do not respond, with the reason."""

    def all(self) -> dict[str, P]:
        """Plugins that have responded and whose file exists, by name."""
        return {name: plugin for name, (_, plugin) in sorted(self._known.items()) if plugin}

    async def discover(self, timeout: float = ACTIVATION_TIMEOUT) -> None:
        """Look for plugin files, and activate new plugins, concurrently."""
        files = find(self._sockets, self._specs)
        for name in [*self._known]:
            if name not in files or files[name].stamp != self._known[name][0].stamp:
                del self._known[name]
        self.silent = {name: why for name, why in self.silent.items() if name in files}
        new = [file for name, file in files.items() if name not in self._known]
        await asyncio.gather(*(self._activate_file(file, timeout) for file in new))

    async def get(self, name: str) -> P:
        """The plugin of this name. Raises PluginUnavailable when it does not respond, PluginError
        when it is of another kind."""
        if name not in self._known:
            await self.discover()
        if (known := self._known.get(name)) is not None:
            if known[1] is None:
                raise PluginError(f"plugin {name} is not a {self._noun}")
            return known[1]
        raise PluginUnavailable(
            f"{self._noun} {name} does not answer: {self.silent[name]}"
            if name in self.silent
            else f"there is no {self._noun} {name} on this node; start its plugin"
        )

    async def get_with_retries(self, name: str) -> P:
        """As `get`, but retry for `plugin_client.PATIENCE` seconds."""
        return await with_retries(lambda: self.get(name))

    def mark_silent(self, name: str, why: str) -> None:
        """Mark a plugin as silent until it responds again."""
        if self._known.pop(name, None) is not None:
            self._note_silent(name, why)

    async def _activate_file(self, file: PluginFile, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                address = read_address(file)
                kinds = await implements(file.name, address)
                plugin = await self._activate(file.name, address, kinds)
        except TimeoutError:
            self._note_silent(file.name, f"no answer within {timeout:g} s")
        except PluginError as error:
            self._note_silent(file.name, str(error))
        else:
            self._known[file.name] = (file, plugin)
            self.silent.pop(file.name, None)
            if plugin is not None:
                log.info("%s found", self._noun, extra={"plugin": file.name})

    def _note_silent(self, name: str, why: str) -> None:
        if self.silent.get(name) != why:
            log.warning("plugin %s cannot be used: %s", name, why)
        self.silent[name] = why
