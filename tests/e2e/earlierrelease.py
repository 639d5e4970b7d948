# SPDX-License-Identifier: Apache-2.0
"""An earlier release of Orc as a program, made from this repository's history."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packagedhost import ROOT

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
