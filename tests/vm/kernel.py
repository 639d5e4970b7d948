# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels and their modules, fetched by apt and unpacked into a cache."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGE = "linux-image-amd64"


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel."""

    release: str
    image: Path
    modules: Path
    """The folder with all its modules."""

    def closure(self, names: Iterable[str]) -> list[tuple[str, bytes]]:
        """Modules, uncompressed, with all that they depend on, in the order to load them.

        A name that is no module is left out: it may be built in. If it is not, then the test that
        needs it says so.
        """
        files = {_name(path): path for path in self.modules.rglob("*.ko*")}
        loaded: dict[str, bytes] = {}

        def add(name: str) -> None:
            if name in loaded or name not in files:
                return
            content = _read(files[name])
            for needed in _depends(content):
                add(needed)
            loaded[name] = content

        for name in names:
            add(name)
        return list(loaded.items())


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _depends(module: bytes) -> Iterator[str]:
    """Names in the `depends=` of a module's information section."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    for name in found[1].decode().split(",") if found else ():
        if name:
            yield name.replace("-", "_")


def cache_folder() -> Path:
    """Where kernels are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orc-vm"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def ensure_kernel(suite: str, cache: Path) -> Kernel:
    """The kernel of a Debian release, such as `trixie`; fetched unless it is in the cache.

    Raises CalledProcessError when apt or dpkg fails.
    """
    place = cache / suite
    if not place.exists():
        draft = cache / f"{suite}.new"
        shutil.rmtree(draft, ignore_errors=True)
        _unpack(_fetch(suite, draft / "apt"), draft)
        shutil.rmtree(draft / "apt")
        draft.rename(place)
    (image,) = place.glob("boot/vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    # Debian 12 still has its modules outside of /usr.
    (modules,) = place.glob(f"**/lib/modules/{release}")
    return Kernel(release, image, modules)


def _fetch(suite: str, folder: Path) -> Path:
    """Download a release's kernel package with lists of packages of our own."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
    options = {
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "-",
        # The folder is root's own.
        "APT::Sandbox::User": "root",
    }
    flags = [f"-o{key}={value}" for key, value in options.items()]
    _run("apt-get", *flags, "-q", "update")
    depends = _run("apt-cache", *flags, "depends", PACKAGE)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise LookupError(f"{PACKAGE} of {suite} names no kernel: {depends}")
    _run("apt-get", *flags, "-q", "download", found[1], cwd=folder)
    (package,) = folder.glob("*.deb")
    return package


def _unpack(package: Path, folder: Path) -> None:
    _run("dpkg-deb", "-x", str(package), str(folder))


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout
