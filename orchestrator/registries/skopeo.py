# SPDX-License-Identifier: Apache-2.0
"""Running skopeo: resolving names to digests, and logins.

The cluster's credentials are passed to skopeo as an anonymous file in memory (memfd); without any,
skopeo uses the host's own.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.model.names import ImageName, parse_image
from orchestrator.registries.credsstore import stored_auth
from orchestrator.registries.registry_errors import ImageError, Unreachable, explain

HUB = "docker.io"
"""The default registry of names without one."""

INSPECT_TIMEOUT = 60.0
"""Timeout in seconds for resolving a name at a registry."""
_SLOW_DOWN = b"Too many requests"
"""In skopeo's log when a registry answers with status 429."""


def registry_of(name: ImageName) -> str:
    """The registry of an image name."""
    return name.registry or HUB


def remote(name: ImageName, digest: str = "") -> str:
    """skopeo's full reference of a name, with `digest` instead of the tag if given."""
    repository = name.repository
    if not name.registry and "/" not in repository:
        repository = f"library/{repository}"
    chosen = digest or name.digest
    return f"docker://{registry_of(name)}/{repository}" + (
        f"@{chosen}" if chosen else f":{name.tag or 'latest'}"
    )


class Skopeo:
    """The skopeo of this host."""

    def __init__(self, program: str = "skopeo", host: str = "node") -> None:
        """`host` is the kind of this host in errors: a node or a manager."""
        self.program = program
        self._host = host

    async def inspect(
        self, name: str, digest: str = "", auth: bytes = b"", within: float = INSPECT_TIMEOUT
    ) -> bytes:
        """The raw manifest or index of `digest`, or of the name if that is empty. Raises
        ImageError."""
        parsed = parse_image(name)
        async with credentials(registry_of(parsed), auth) as (options, fds):
            # When rate limited, skopeo retries for half a minute; only its debug log shows that.
            command = ("--debug", "inspect", *options, "--raw", remote(parsed, digest))
            return await self.run(registry_of(parsed), name, command, fds, within=within)

    async def login(self, registry: str, username: str, password: str, scratch: Path) -> None:
        """Verify credentials with a registry. `scratch` is an existing folder on a tmpfs. Raises
        ImageError with the registry's answer."""
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            options = ("--authfile", f"{folder}/auth.json", "--username", username)
            command = ("login", *options, "--password-stdin", registry)
            await self.run(
                registry, "", command, (), within=INSPECT_TIMEOUT, stdin=password.encode()
            )

    async def run(
        self,
        registry: str,
        name: str,
        arguments: tuple[str, ...],
        fds: tuple[int, ...],
        *,
        within: float | None = None,
        stdin: bytes = b"",
        on_log_line: Callable[[str], None] = lambda line: None,
        watch: Callable[[int], Coroutine[Any, Any, None]] | None = None,
    ) -> bytes:
        """Run skopeo and return its output. `on_log_line` is called with each line of its
        log; `watch`, called with its pid, runs concurrently. Raises ImageError."""
        try:
            process = await asyncio.create_subprocess_exec(
                self.program,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=fds,
            )
        except FileNotFoundError:
            raise ImageError(
                f"skopeo is not installed on this {self._host}: install skopeo"
            ) from None
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        output: list[bytes] = []
        errors: list[bytes] = []
        try:
            async with asyncio.timeout(within), asyncio.TaskGroup() as group:
                watching = group.create_task(watch(process.pid)) if watch is not None else None
                group.create_task(_collect(process.stdout, output))
                process.stdin.write(stdin)
                process.stdin.close()
                async for line in _lines(process.stderr, errors):
                    on_log_line(line)
                await process.wait()
                if watching is not None:
                    watching.cancel()
        except TimeoutError:
            if _SLOW_DOWN in b"".join(errors):
                raise self.failed(registry, name, "toomanyrequests") from None
            raise Unreachable(f"{registry} does not answer within {within:g} seconds") from None
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
        if process.returncode:
            raise self.failed(registry, name, b"".join(errors).decode(errors="replace"))
        return b"".join(output)

    def failed(self, registry: str, name: str, stderr: str) -> ImageError:
        """The error for skopeo's stderr."""
        return explain(registry, name, stderr, self._host)


async def _collect(stream: asyncio.StreamReader, into: list[bytes]) -> None:
    while piece := await stream.read(1 << 16):
        into.append(piece)


async def _lines(stream: asyncio.StreamReader, into: list[bytes]) -> AsyncIterator[str]:
    """Complete lines as they arrive; all output is collected in `into`."""
    rest = b""
    while piece := await stream.read(1 << 16):
        into.append(piece)
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")


@asynccontextmanager
async def credentials(
    registry: str, auth: bytes
) -> AsyncIterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """skopeo's options and inherited descriptors for an auth.json; if that is empty, for the
    credentials of the host's `credsStore`. Raises ImageError."""
    with _in_memory(auth or await stored_auth(registry)) as shown:
        yield shown


@contextmanager
def _in_memory(auth: bytes) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Options and descriptors for an auth.json in a memfd; none for an empty one."""
    if not auth:
        yield (), ()
        return
    fd = os.memfd_create("auth")
    try:
        os.write(fd, auth)
        yield ("--authfile", f"/proc/self/fd/{fd}"), (fd,)
    finally:
        os.close(fd)
