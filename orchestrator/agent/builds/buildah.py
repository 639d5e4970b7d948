"""The buildah command, on a storage of its own and with nothing of it left when it ends."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from orchestrator.agent.builds.sandbox import Sandbox
from orchestrator.agent.images.errors import ImageError
from orchestrator.linux.priority import with_default_priority

Progress = Callable[[str], None]
"""Is told each line of output, without its newline."""

_CHUNK = 64 << 10
_KEPT = 200
"""Lines of output, the last ones, among which an error is looked for."""

# Its mounts and processes are made in namespaces that end with it, however it ends: with a kill,
# be it the agent's own, nothing stays mounted in the agent's view and no RUN goes on.
_CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)

_GROUPED = (
    *("sh", "-c"),
    'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 >"$1/cgroup.procs" || exit 125; shift; '
    'n=$((n - 1)); done; exec "$@"',
    "sh",
)
"""Enters the control groups whose folders follow their number, and runs the rest."""

_APART = ("unshare", "--mount", "--propagation", "private", "--ipc", "--uts", "--cgroup")

_SEEN = Path("/tmp")
"""Where what a build works on is mounted: folders above its own place may be closed to others."""
BLOBS = _SEEN / "blobs"
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
# First at a place that hides none of them.
mount -t tmpfs -o mode=755,nosuid,nodev none {_GROUPS}
mapped "$top" {_GROUPS}/build rw
mapped "$secrets" {_GROUPS}/secrets ro
[ -z "$blobs" ] || mapped "$blobs" {_GROUPS}/blobs ro
mount --move {_GROUPS} {_SEEN}
"$@"
exit
"""
"""With the rights of the host's root, in a mount namespace apart: give what the build works on the
owners that its user namespace sees. Its shell is the first process of
the pid namespace, so with it everything ends."""

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
"""As root of the user namespace: a `/run` of its own, which hides the host's sockets, the `/sys` of
its network, and no control groups."""


class Buildah:
    """Runs buildah on the storage under `root`, which is this object's alone."""

    def __init__(self, top: Path, root: Path, secrets: Path) -> None:
        """`top`: a folder that has `root` and the folders that commands run in. Those of `secrets`
        are seen, too."""
        self._top, self._secrets = top, secrets
        storage = self.seen(root)
        self._storage = (
            *("--root", str(storage / "root"), "--runroot", str(storage / "run")),
            *("--storage-driver", "overlay"),
        )

    def seen(self, path: Path) -> Path:
        """The path by which a command knows a file of `top` or of the secrets."""
        for folder, name in ((self._top, "build"), (self._secrets, "secrets")):
            if path.is_relative_to(folder):
                return _SEEN / name / path.relative_to(folder)
        raise ValueError(f"{path} is not there for a build")

    async def run(
        self,
        sandbox: Sandbox,
        work: Path,
        *arguments: str,
        progress: Progress | None = None,
        blobs: Path | None = None,
    ) -> str:
        """Run one command in the folder `work`, which also takes its temporary files; its output.

        It sees the folder `blobs` as `BLOBS`.
        Raises `ImageError` with its error when it fails.
        """
        (work / "resolv.conf").write_text(sandbox.resolver)
        self._secrets.mkdir(parents=True, exist_ok=True)
        enter, own = ["nsenter", f"--user={_by_number(sandbox.userns)}"], ""
        if sandbox.netns is not None:
            enter, own = [*enter, f"--net={_by_number(sandbox.netns)}"], "own"
        environment = {**os.environ}
        if sandbox.netns is not None:
            # The names of the host's own /etc/hosts are about its network.
            (work / "containers.conf").write_text('[containers]\nbase_hosts_file = "none"\n')
            environment["CONTAINERS_CONF_OVERRIDE"] = str(self.seen(work / "containers.conf"))
        given = (_by_number(sandbox.userns), str(self._top), str(self._secrets), str(blobs or ""))
        try:
            groups = sandbox.group.folders
            process = await asyncio.create_subprocess_exec(
                *(*_GROUPED, str(len(groups)), *map(str, groups)),
                *with_default_priority(),
                *_CONTAINED,
                *("sh", "-c", _AS_HOST, "sh", *given),
                *(*enter, *_APART, "sh", "-c", _AS_ROOT, "sh", own, str(self.seen(work))),
                *("buildah", *self._storage, *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=sandbox.descriptors,
                env=environment,
            )
        except FileNotFoundError:
            raise ImageError("unshare is not installed on this node: install util-linux") from None
        lines: deque[str] = deque(maxlen=_KEPT)
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
        raise ImageError(_error(list(lines)) or f"buildah ended with status {status}")


def limits(wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The limits of RUN: those that are wanted (NAME=SOFT:HARD), and else the agent's own, since
    buildah's default may be more than it is allowed to set."""
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
    """Until every process of the command is gone: then its output ends."""
    assert process.stdout is not None
    while await process.stdout.read(_CHUNK):
        pass
    await process.wait()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines without their ends. One of more than 64 KiB comes in pieces."""
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
