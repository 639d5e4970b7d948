# SPDX-License-Identifier: Apache-2.0
"""Other releases of Orc as programs: an earlier one, made from this repository's history, and the
next one, which is the present source under a new version."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packagedhost import ROOT

from orchestrator import __version__

FIRST = ("v0.1.0", "2b947310543068305d4803a12de6acab419f92d4")
"""Release 0.1.0: its tag, and its commit for clones without tags."""

_ORC = """\
#!{python}
import sys
from orchestrator.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Release:
    """The `orc` command of a release. Daemons that it starts are of that release, too."""

    orc: Path

    def run(self, env: Mapping[str, str], *arguments: str) -> str:
        """Run `orc`, which must succeed; its output."""
        done = subprocess.run(
            [self.orc, *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"orc {' '.join(arguments)}: {done.stderr or done.stdout}"
        return done.stdout


def build(folder: Path, revisions: tuple[str, ...] = FIRST) -> Release:
    """Build a release in an empty folder: its source, its generated code, and a virtual
    environment. The Python packages that it needs are those of the present version."""
    source = folder / "source"
    source.mkdir(parents=True)
    tar = subprocess.run(
        ["git", "-C", ROOT, "archive", _commit(revisions)], capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", source], input=tar, check=True)
    subprocess.run(["sh", source / "scripts" / "protoc", sys.executable], check=True)
    return _install(folder, source)


def build_next(folder: Path) -> tuple[Release, str]:
    """Build the next minor release in an empty folder; it and its version."""
    source = folder / "source"
    shutil.copytree(
        ROOT / "orchestrator", source / "orchestrator", ignore=shutil.ignore_patterns("__pycache__")
    )
    major, minor, _ = __version__.split(".", 2)
    version = f"{major}.{int(minor) + 1}.0"
    package = source / "orchestrator" / "__init__.py"
    text, count = re.subn(r'__version__ = ".*"', f'__version__ = "{version}"', package.read_text())
    assert count == 1
    package.write_text(text)
    return _install(folder, source), version


def _install(folder: Path, source: Path) -> Release:
    """The release with this source, in a virtual environment of its own."""
    environment = folder / "venv"
    # Not of this process' own environment, which would be found before the release's.
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    subprocess.run([base, "-m", "venv", "--without-pip", environment], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # The source comes first. A folder in a .pth file is only added to the path: the editable
    # installation of the present version, a .pth file itself, is not followed.
    here = sysconfig.get_path("purelib")
    (packages / "release.pth").write_text(f"{source}\n{here}\n")
    orc = environment / "bin" / "orc"
    orc.write_text(_ORC.format(python=environment / "bin" / "python"))
    orc.chmod(0o755)
    return Release(orc)


def _commit(revisions: tuple[str, ...]) -> str:
    """The first of the revisions that this clone has."""
    for revision in revisions:
        found = subprocess.run(
            ["git", "-C", ROOT, "rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode == 0:
            return found.stdout.strip()
    raise LookupError(f"this clone has none of {', '.join(revisions)}; fetch its tags")
