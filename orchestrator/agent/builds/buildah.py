# SPDX-License-Identifier: Apache-2.0
"""Runs buildah on a separate storage, without leftover mounts or processes."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from orchestrator.agent.builds.sandbox import Sandbox
from orchestrator.agent.images.image_errors import ImageError
from orchestrator.linux.priority import with_default_priority

Progress = Callable[[str], None]
"""Called with each line of output, without its newline."""

_CHUNK = 64 << 10
_KEPT_LINES = 200
"""Last lines of output, which are searched for an error."""

# Its mounts and processes are in namespaces that end with it, also if it or the agent is killed:
# nothing stays mounted on the host and no RUN continues.
_IN_NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)

_IN_CGROUPS = (
    *("sh", "-c"),
    'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 >"$1/cgroup.procs" || exit 125; shift; '
    'n=$((n - 1)); done; exec "$@"',
    "sh",
)
"""Enters cgroups, given as their number and folders, and runs the rest."""

_SEPARATE = ("unshare", "--mount", "--propagation", "private", "--ipc", "--uts", "--cgroup")

_SANDBOX_FILES = Path("/tmp")
"""Mount point of a build's files: their parent folders may not be accessible to other users."""
BLOBS = _SANDBOX_FILES / "blobs"
_GROUPS = Path("/sys/fs/cgroup")

_AS_HOST = f"""
set -e
users=$1 top=$2 secrets=$3 blobs=$4
shift 4
echo 0 >/proc/self/oom_score_adj
mapped() {{
    mkdir "$2"
    mount --bind -o "$3,X-mount.idmap=$users" "$1" "$2"
}}
# First at a mount point that hides none of them.
mount -t tmpfs -o mode=755,nosuid,nodev none {_GROUPS}
mapped "$top" {_GROUPS}/build rw
mapped "$secrets" {_GROUPS}/secrets ro
[ -z "$blobs" ] || mapped "$blobs" {_GROUPS}/blobs ro
mount --move {_GROUPS} {_SANDBOX_FILES}
"$@"
exit
"""
"""As the host's root, in a separate mount namespace: idmap the build's files to its user namespace.
The shell is the first process of the PID namespace, which ends with it."""

_AS_ROOT = f"""
set -e
own=$1 work=$2
shift 2
cd "$work"
resolver=$(readlink -m /etc/resolv.conf)
mount -t tmpfs -o mode=755,nosuid,nodev none /run
mkdir -m 1777 /run/lock
mkdir -p "${{resolver%/*}}"
[ -e "$resolver" ] || : >"$resolver"
mount --bind resolv.conf "$resolver"
if [ -n "$own" ]; then
    ip link set lo up
    mount -t sysfs -o ro,nosuid,nodev,noexec none /sys
fi
mount -t tmpfs -o ro,nosuid,nodev,noexec none {_GROUPS}
HOME=$work TMPDIR=$work exec "$@"
"""
"""As root of the user namespace: an empty `/run`, which hides the host's sockets, the `/sys` of its
network namespace, and no cgroups."""


class Buildah:
    """Runs buildah on the storage under `root`, which must not have other users."""

    def __init__(self, top: Path, root: Path, secrets: Path) -> None:
        """`top`: a folder with `root` and the folders in which commands run. Commands also see
        those of `secrets`."""
        self._top, self._secrets = top, secrets
        storage = self.path_in_sandbox(root)
        self._storage = (
            *("--root", str(storage / "root"), "--runroot", str(storage / "run")),
            *("--storage-driver", "overlay"),
        )

    def path_in_sandbox(self, path: Path) -> Path:
        """The path of a file of `top` or of the secrets in the sandbox."""
        for folder, name in ((self._top, "build"), (self._secrets, "secrets")):
            if path.is_relative_to(folder):
                return _SANDBOX_FILES / name / path.relative_to(folder)
        raise ValueError(f"{path} is not visible to a build")

    async def run(
        self,
        sandbox: Sandbox,
        work: Path,
        *arguments: str,
        progress: Progress | None = None,
        blobs: Path | None = None,
    ) -> str:
        """Run one command in the folder `work`, also for its temporary files; returns its output.

        It sees the folder `blobs` as `BLOBS`. Raises `ImageError` with its error when it fails.
        """
        (work / "resolv.conf").write_text(sandbox.resolver)
        self._secrets.mkdir(parents=True, exist_ok=True)
        enter, own = ["nsenter", f"--user={_by_number(sandbox.userns)}"], ""
        if sandbox.netns is not None:
            enter, own = [*enter, f"--net={_by_number(sandbox.netns)}"], "own"
        environment = {**os.environ}
        if sandbox.netns is not None:
            # The host's /etc/hosts applies to the host's network only.
            (work / "containers.conf").write_text('[containers]\nbase_hosts_file = "none"\n')
            environment["CONTAINERS_CONF_OVERRIDE"] = str(
                self.path_in_sandbox(work / "containers.conf")
            )
        given = (_by_number(sandbox.userns), str(self._top), str(self._secrets), str(blobs or ""))
        try:
            groups = sandbox.group.folders
            process = await asyncio.create_subprocess_exec(
                *(*_IN_CGROUPS, str(len(groups)), *map(str, groups)),
                *with_default_priority(),
                *_IN_NAMESPACES,
                *("sh", "-c", _AS_HOST, "sh", *given),
                *(
                    *enter,
                    *_SEPARATE,
                    "sh",
                    "-c",
                    _AS_ROOT,
                    "sh",
                    own,
                    str(self.path_in_sandbox(work)),
                ),
                *("buildah", *self._storage, *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=sandbox.descriptors,
                env=environment,
            )
        except FileNotFoundError:
            raise ImageError("unshare is not installed on this node: install util-linux") from None
        lines: deque[str] = deque(maxlen=_KEPT_LINES)
        assert process.stdout is not None
        output = _lines(process.stdout)
        try:
            async for line in output:
                lines.append(line)
                if progress is not None:
                    progress(line)
            status = await process.wait()
        except BaseException:
            if process.returncode is None:
                process.kill()
            await asyncio.shield(_ended(process))
            raise
        if status == 0:
            return "\n".join(lines)
        if status in (126, 127) and lines and "buildah" in lines[-1]:
            raise ImageError("buildah is not installed on this node: install buildah")
        raise ImageError(_error(list(lines)) or f"buildah: exit status {status}")


def limits(wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Resource limits of RUN: the wanted ones (NAME=SOFT:HARD), else the agent's own, since buildah
    may not be permitted to set its defaults."""
    most = 1 << 20
    found = {text.partition("=")[0]: text for text in wanted}
    for key, which in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(which)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        found.setdefault(key, f"{key}={value}:{value}")
    return tuple(f"--ulimit={text}" for text in found.values())


def _by_number(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait until every process of the command has ended, when its output ends."""
    assert process.stdout is not None
    while await process.stdout.read(_CHUNK):
        pass
    await process.wait()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines without newlines; one of more than 64 KiB is split."""
    rest = b""
    while data := await stream.read(_CHUNK):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
        if len(rest) >= _CHUNK:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")


def _error(lines: list[str]) -> str:
    """buildah's last error, as one line (it repeats an instruction with its line breaks)."""
    starts = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    text = lines[starts[-1] :] if starts else lines[-1:]
    return " ".join(" ".join(text).removeprefix("Error: ").split())
