# SPDX-License-Identifier: Apache-2.0
"""A copy of this host without the source tree, where the package can be installed and run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELLO = ROOT / "charts" / "hello"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "COLUMNS": "200"}

# In a mount, pid and network namespace of its own the copy is the root, not a folder that a process
# was put into: the kernel lets nobody in a chroot make user namespaces.
_INSIDE = """
set -e
cd "$0"
mkdir -p .old
pivot_root . .old
umount -l /.old
mount -t proc proc /proc
ip link set lo up
cd "$HOME"
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class PackagedHost:
    """This host's root with a layer over it, without our own installation."""

    root: Path

    def command(self, *words: str) -> list[str]:
        return ["unshare", "--pid", "--fork", "--kill-child", "chroot", str(self.root), *words]

    def alone(self, *words: str) -> list[str]:
        """A command with which a whole cluster of its own begins, and ends."""
        apart = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child")
        return [*apart, "sh", "-c", _INSIDE, str(self.root), *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words),
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout


@contextmanager
def packaged_host(work: Path) -> Iterator[PackagedHost]:
    """The copy, for the length of the block, in a new folder `work`."""
    with ExitStack() as stack:

        def mount(*arguments: str | Path) -> None:
            subprocess.run(["mount", *arguments], check=True)
            stack.callback(subprocess.run, ["umount", "-l", arguments[-1]], check=False)

        work.mkdir()
        # Its own file system, since one overlay cannot lie over another everywhere.
        mount("-t", "tmpfs", "-o", "size=2g", "tmpfs", work)
        upper, inner, root = (work / name for name in ("upper", "work", "root"))
        for folder in (upper, inner, root):
            folder.mkdir()
        layers = f"lowerdir=/,upperdir={upper},workdir={inner}"
        mount("-t", "overlay", "overlay", "-o", layers, root)
        for special in ("proc", "dev", "sys"):
            mount("--rbind", f"/{special}", root / special)
            subprocess.run(["mount", "--make-rslave", root / special], check=True)
        for ours in (ROOT.relative_to("/"), "usr/local/bin/orc", "usr/local/bin/orc-cni"):
            path = root / ours
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (root / "tmp").mkdir(exist_ok=True)
        # What clusters of the host keep there is hidden, as it changes meanwhile and an overlay of
        # changing files is undefined. A tmpfs also can hold the overlays of containers.
        for state in (root / "var/lib/orc", root / "var/lib/orc-dev"):
            state.mkdir(exist_ok=True)
            mount("-t", "tmpfs", "tmpfs", state)
        yield PackagedHost(root)
